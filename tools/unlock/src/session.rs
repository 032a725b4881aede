//! The one session: in exchange for an MFA code, from a sign-in of the AWS CLI, or from standard input.

use std::{io, process::Command, time::Duration};

use tracing::info;

use crate::command_line::CommandLine;
use aws_session::{
    child_output::{Limits, OutputError, Terminal, output_of},
    config::{Config, ConfigError, MAX_ROLE_SECONDS, Mfa},
    credentials::{Credentials, parse_document},
    settings::{Reader, Settings, SettingsError},
};
use code_channel::{
    interactive_session::{self, InteractiveSessionError},
    mfa_prompt::PromptError,
};
use service::signals::Signals;

/// Longest output of the AWS CLI, in bytes.
const MAX_DOCUMENT_BYTES: usize = 64 * 1024;

/// How long the AWS CLI may take, which may ask for an MFA code.
const SIGN_IN_TIMEOUT: Duration = Duration::from_secs(300);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The defaults of the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Region, endpoints, network.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Neither code nor document gave one.
    #[error(transparent)]
    Session(InteractiveSessionError),
    /// Longer than a role's session may be.
    #[error("--duration-seconds may be {MAX_ROLE_SECONDS} at most with --role-arn")]
    Duration,
    /// The AWS CLI has none.
    #[error("the AWS CLI has no session of profile {profile}: {why}{hint}")]
    SignIn {
        /// The profile.
        profile: String,
        /// Why.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// A signal has arrived.
    #[error("stopped by a signal; no host was called")]
    Interrupted,
}

impl From<InteractiveSessionError> for SessionError {
    fn from(error: InteractiveSessionError) -> Self {
        match error {
            InteractiveSessionError::MfaPrompt(PromptError::Interrupted) => Self::Interrupted,
            error => Self::Session(error),
        }
    }
}

/// Opens the session that the command line asks for.
pub fn open(command_line: &CommandLine, signals: &Signals) -> Result<Credentials, SessionError> {
    match (&command_line.mfa_serial, &command_line.profile) {
        (None, Some(profile)) => of_sign_in(profile, signals),
        (serial_number, _) => of_input(command_line, serial_number.as_ref(), signals),
    }
}

/// Asks for a code, or for a session document where there is no device.
fn of_input(
    command_line: &CommandLine,
    serial_number: Option<&String>,
    signals: &Signals,
) -> Result<Credentials, SessionError> {
    let mut config = Config::without_file()?;
    let session = &mut config.session;
    session.mfa = match serial_number.cloned() {
        Some(serial_number) => Mfa::Here { serial_number },
        None => Mfa::Elsewhere,
    };
    session.profile.clone_from(&command_line.profile);
    session.role_arn.clone_from(&command_line.role_arn);
    session.region.clone_from(&command_line.region);
    if let Some(seconds) = command_line.duration_seconds {
        session.duration_seconds = seconds;
    }
    if session.role_arn.is_some() && session.duration_seconds > MAX_ROLE_SECONDS {
        return Err(SessionError::Duration);
    }
    let aws = Settings::read(&config.session, Reader::Operator)?;
    let interrupt = signals.descriptor();
    let reason = command_line.reason.as_deref();
    Ok(interactive_session::open_session(
        &config, &aws, None, reason, interrupt,
    )?)
}

/// IAM Identity Center, `aws login`, roles: whatever the AWS CLI can sign in to.
///
/// Source: <https://docs.aws.amazon.com/cli/latest/reference/configure/export-credentials.html>.
fn of_sign_in(profile: &str, signals: &Signals) -> Result<Credentials, SessionError> {
    info!("asking the AWS CLI for the session of profile {profile}");
    let mut command = Command::new("aws");
    command.args([
        "configure",
        "export-credentials",
        "--format",
        "process",
        "--profile",
        profile,
    ]);
    signals.give_inherited_mask(&mut command);
    let limits = Limits {
        timeout: SIGN_IN_TIMEOUT,
        timeout_setting: None,
        max_bytes: MAX_DOCUMENT_BYTES,
        interrupt: Some(signals.descriptor()),
    };
    let failed = |why: String, hint| SessionError::SignIn {
        profile: profile.into(),
        why,
        hint,
    };
    let output = match output_of(&mut command, Terminal::Lent, &limits) {
        Ok(output) => output,
        Err(OutputError::Interrupted) => return Err(SessionError::Interrupted),
        Err(OutputError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(failed("it is not installed".into(), "; install version 2"));
        }
        Err(error) => {
            let hint = "; sign in first (aws sso login, or aws login), with the same --profile. This needs the AWS CLI, version 2 (aws --version)";
            return Err(failed(error.to_string(), hint));
        }
    };
    match parse_document(&output) {
        Ok(session) => Ok(session),
        Err(why) => {
            let hint = "; if the profile has a long-term key, add --mfa-serial=ARN to exchange a code for a session";
            Err(failed(format!("it printed {why}"), hint))
        }
    }
}
