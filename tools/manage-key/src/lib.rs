//! Enables, disables or shows the master key, with a session that was opened with an MFA code.
//!
//! `master_key` makes the calls, `change` waits until they take effect, `unlock` runs a command in
//! between.

mod change;
mod child;
pub mod command_line;
mod master_key;
mod signals;
mod unlock;

use std::{
    io,
    os::fd::BorrowedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::Duration,
};

use aws_sdk_kms::types::KeyState;
use broker_api::FailureKind;
use clap::Parser;
use tracing::error;
use visible_text::escape;

use aws_session::{
    config::{Config, ConfigError},
    credentials::Credentials,
    master_key_id::MasterKeyId,
    settings::{Reader, Settings, SettingsError},
};
use change::Attempt;
use code_channel::{
    interactive_session::{self, InteractiveSessionError},
    mfa_prompt::PromptError,
    note::Note,
};
use command_line::{Action, CommandLine};
use master_key::{CallError, Change, Description, MasterKey};
use service::{
    command::{Command, CommandError},
    logging, process, standard_output,
    usage::show_usage,
};
use signals::{Number, Signals};

/// Name of the program, in the log and in its help.
const PROGRAM: &str = "kms-manage-key";

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Code(i32),
    Signal(Number),
}

/// Why the action failed.
#[derive(Debug, thiserror::Error)]
enum ManageError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Region, endpoints, network.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("no master key is named; set master_key_id in {path}, or give --key=KEY", path = .0.display())]
    NoKey(PathBuf),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Session(InteractiveSessionError),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error("{0}")]
    Interrupted(String),
    #[error("{0}")]
    LeftEnabled(String),
    /// KMS accepted a change, but its effect cannot be confirmed.
    #[error("{0}")]
    Unconfirmable(String),
    /// The key is unchanged.
    #[error("{0}")]
    Refused(String),
    /// The session ended before KMS accepted a change.
    #[error("{0}")]
    SessionOver(String),
    #[error("{0}")]
    TimedOut(String),
    #[error("internal error (panic); please report it with the preceding log lines")]
    Defect,
}

impl ManageError {
    /// As kms-manage-key(8) lists them.
    fn exit_code(&self) -> i32 {
        match self {
            Self::LeftEnabled(_) => 121,
            Self::Unconfirmable(_) => 122,
            Self::Refused(_) | Self::SessionOver(_) => 123,
            Self::TimedOut(_) => 124,
            Self::Command(CommandError::NotExecutable { .. }) => 126,
            Self::Command(CommandError::NotFound(_)) => 127,
            _ => 125,
        }
    }
}

impl From<InteractiveSessionError> for ManageError {
    fn from(error: InteractiveSessionError) -> Self {
        match error {
            InteractiveSessionError::MfaPrompt(PromptError::Interrupted) => {
                Self::Interrupted("no session was opened".into())
            }
            error => Self::Session(error),
        }
    }
}

/// Runs the program and returns its exit code, or dies of a signal.
pub fn main() -> i32 {
    logging::init(PROGRAM);
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(usage) => return show_usage(&usage).into(),
    };
    let may_stop = !matches!(command_line.action, Action::Unlock { .. });
    let held = process::protect().and_then(|()| Signals::hold(may_stop));
    let signals = match held {
        Ok(signals) => signals,
        Err(error) => {
            error!("cannot protect this process: {error}");
            return 125;
        }
    };
    let end = catch_panic(|| manage(command_line, &signals));
    match end.unwrap_or_else(|failure| end_of(&failure, &signals)) {
        End::Code(code) => code,
        End::Signal(number) => {
            // Returns only if that is not possible.
            signals.die_of(number);
            128 + number.get()
        }
    }
}

/// Turns a panic, even of a library, into a failure, so that the clean-up still runs.
fn catch_panic<T>(work: impl FnOnce() -> Result<T, ManageError>) -> Result<T, ManageError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(ManageError::Defect))
}

fn end_of(failure: &ManageError, signals: &Signals) -> End {
    match (failure, signals.received()) {
        (ManageError::Interrupted(text), Some(received)) => {
            error!("ended by {}: {text}", received.number);
            End::Signal(received.number)
        }
        _ => {
            error!("{failure}");
            End::Code(failure.exit_code())
        }
    }
}

fn manage(command_line: CommandLine, signals: &Signals) -> Result<End, ManageError> {
    let mut config = Config::read(&command_line.config)?;
    logging::use_format(config.log_format);
    let key = command_line
        .key
        .or_else(|| config.master_key_id.clone())
        .ok_or_else(|| ManageError::NoKey(command_line.config.clone()))?;
    if config.session.region.is_none() {
        config.session.region = key.region().map(str::to_owned);
    }
    let aws = Settings::read(&config.session, Reader::Operator)?;
    let tool = Tool {
        config,
        aws,
        config_path: command_line.config,
        key,
        timeout: Duration::from_secs(command_line.timeout_seconds),
        note: Note::of_login(command_line.reason.as_deref()),
        signals,
    };
    match command_line.action {
        Action::Enable { code } => tool.change(Change::Enable, code.as_deref()),
        Action::Disable { code } => tool.change(Change::Disable, code.as_deref()),
        Action::Status { code } => tool.show_status(code.as_deref()),
        Action::Unlock { command } => unlock::unlock(&tool, &Command::find(command)?),
    }
}

/// The command line and the configuration.
struct Tool<'a> {
    config: Config,
    aws: Settings,
    config_path: PathBuf,
    key: MasterKeyId,
    timeout: Duration,
    note: Note,
    signals: &'a Signals,
}

impl Tool<'_> {
    fn open_session(&self, code: Option<&str>) -> Result<Credentials, ManageError> {
        let interrupt = self.signals.descriptor();
        Ok(interactive_session::open_session(
            &self.config,
            &self.aws,
            code,
            self.note.reason.as_deref(),
            interrupt,
        )?)
    }

    fn open_key<'a>(
        &'a self,
        session: &'a Credentials,
        interrupt: Option<BorrowedFd<'a>>,
    ) -> Result<MasterKey<'a>, ManageError> {
        MasterKey::open(&self.aws, session, &self.key, interrupt)
            .map_err(|error| ManageError::System("call KMS", error))
    }

    fn change(&self, change: Change, code: Option<&str>) -> Result<End, ManageError> {
        let session = self.open_session(code)?;
        let key = self.open_key(&session, Some(self.signals.descriptor()))?;
        let (caller, description) = key.look(self.key.as_str());
        let id = self.id_for_change(description)?;
        self.attempt(&key, &id, change, &caller).make()?;
        Ok(End::Code(0))
    }

    fn attempt<'a>(
        &'a self,
        key: &'a MasterKey<'a>,
        id: &'a str,
        change: Change,
        caller: &'a str,
    ) -> Attempt<'a> {
        Attempt {
            key,
            id,
            change,
            caller,
            note: &self.note,
            request_patience: self.timeout,
            timeout: self.timeout,
        }
    }

    /// Returns the id or ARN of the key. A user may be allowed to change the key, but not to describe
    /// it.
    fn id_for_change(
        &self,
        description: Result<Description, CallError>,
    ) -> Result<String, ManageError> {
        match description {
            Ok(description) => description.changeable().map_err(ManageError::Refused),
            Err(CallError::Interrupted) => {
                Err(ManageError::Interrupted("nothing was changed".into()))
            }
            Err(CallError::Failed(failure))
                if self.key.is_alias() && failure.kind.is_retryable() =>
            {
                Err(ManageError::TimedOut(failure.message))
            }
            Err(CallError::Failed(failure)) if self.key.is_alias() => {
                Err(ManageError::Refused(format!(
                    "cannot look up the key {}; name it by its id or ARN: {}",
                    self.key.as_str(),
                    failure.message
                )))
            }
            Err(CallError::Failed(_)) => Ok(self.key.as_str().into()),
        }
    }

    fn show_status(&self, code: Option<&str>) -> Result<End, ManageError> {
        let session = self.open_session(code)?;
        let key = self.open_key(&session, Some(self.signals.descriptor()))?;
        let (caller, description) = key.look(self.key.as_str());
        let description = description.map_err(not_described)?;
        print_status(&description, &caller)
            .map_err(|error| ManageError::System("write to standard output", error))?;
        Ok(End::Code(match description.state {
            KeyState::Enabled => 0,
            KeyState::Disabled => 3,
            _ => 4,
        }))
    }
}

/// Converts the error of a description that is needed.
fn not_described(error: CallError) -> ManageError {
    match error {
        CallError::Interrupted => ManageError::Interrupted("nothing was changed".into()),
        CallError::Failed(failure) if failure.kind.is_retryable() => {
            ManageError::TimedOut(failure.message)
        }
        CallError::Failed(failure) if failure.kind == FailureKind::AccessDenied => {
            ManageError::Refused(format!("allow kms:DescribeKey: {}", failure.message))
        }
        CallError::Failed(failure) => ManageError::Refused(failure.message),
    }
}

/// Prints one line each, with the name first, so that scripts can parse it.
fn print_status(key: &Description, caller: &str) -> io::Result<()> {
    let mut text = format!("state: {}\nkey: {}\n", key.state.as_str(), escape(&key.arn));
    if let Some(date) = key.deletion_text() {
        text += &format!("deletion: {date}\n");
    }
    if let Some(advice) = key.advice() {
        text += &format!("advice: {advice}\n");
    }
    text += &format!("asked by: {}\n", escape(caller));
    standard_output::print(&text)
}
