//! `iam-kms-wrapper code`: takes an MFA code or a session document from a person and writes it to the
//! FIFO of a process that waits for it, then says what became of it.
//!
//! A shell's `echo CODE > FIFO` does the same, but root's shell follows a symbolic link that the server's
//! user has put in the FIFO's place, and overwrites what it points to. This program follows none, makes
//! and truncates no file, and works with the rights of the FIFO's owner.

use std::{
    ffi::OsString,
    io,
    path::{PathBuf, absolute},
};

use clap::{
    Parser,
    error::{ContextKind, ContextValue},
};
use nix::{
    sys::prctl,
    unistd::{Uid, geteuid, setgroups, setresgid, setresuid},
};
use tracing::{error, info, warn};

use aws_session::{
    config::{Config, ConfigError, DEFAULT_FIFO},
    token_code::TokenCode,
};
use code_channel::{
    Channel, Event, FifoError, Input, Stage, StateReader, Wait,
    answer::{Answer, AnswerState},
    note::{Note, check_reason},
    writer::{FifoWriter, Outcome, WriteError},
};
use service::{process, signals::Signals, usage::show_usage};

/// The first argument that chooses this part of the program.
pub const SUBCOMMAND: &str = "code";

const REFUSED: i32 = 1;
const UNKNOWN: i32 = 3;
const NOT_AWAITED: i32 = 4;
const FAILURE: i32 = 125;

/// Enter an MFA code, or a session document, for a service that waits for one.
#[derive(Debug, Parser)]
#[command(
    name = SUBCOMMAND,
    bin_name = "iam-kms-wrapper code",
    about = "Enter an MFA code for a service that waits for one, and show the result",
    override_usage = "iam-kms-wrapper code [--fifo=PATH | --config=FILE] [--reason=TEXT] [--json]",
    after_help = "\
At a terminal, it prompts for the code without echo, again after a refusal.
Otherwise it reads one line, or a session document, from standard input:
  iam-kms-wrapper code < session.json

Run it as root, which then acts with the rights of the FIFO's owner, or as a
user who may write to the FIFO. It never creates or changes a file.

Exit status: 0 accepted, 1 refused, 3 not known (see the log of the service),
4 nothing waits for a code, 125 failed.

`iam-kms-wrapper --config=FILE code` runs a program called code instead."
)]
pub struct CodeCommandLine {
    /// The FIFO [default: that of --config, or /run/iam-kms-wrapper/mfa]
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    fifo: Option<PathBuf>,

    /// Take the FIFO from this configuration (kms_mfa_socket)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Why, for the audit; not a secret
    #[arg(long, value_name = "TEXT", value_parser = check_reason)]
    reason: Option<String>,

    /// Also print the result as JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Why the code was not written, or what became of it where that is no success.
#[derive(Debug, thiserror::Error)]
enum CodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("cannot become user {user}, who owns the FIFO: {source}")]
    Privileges { user: Uid, source: io::Error },
    #[error(transparent)]
    Read(#[from] FifoError),
    #[error("refused: {0}")]
    Refused(String),
    #[error("{0}")]
    Unknown(String),
}

impl CodeError {
    fn exit_code(&self) -> i32 {
        match self {
            Self::Write(WriteError::NotAwaited(_)) => NOT_AWAITED,
            Self::Refused(_) => REFUSED,
            Self::Unknown(_) => UNKNOWN,
            _ => FAILURE,
        }
    }

    /// The text beside [`Self::state`].
    fn message(&self) -> String {
        match self {
            Self::Refused(why) => why.clone(),
            other => other.to_string(),
        }
    }

    fn state(&self) -> AnswerState {
        match self {
            Self::Write(WriteError::NotAwaited(_)) => AnswerState::NotWaiting,
            Self::Refused(_) => AnswerState::Refused,
            Self::Unknown(_) => AnswerState::Unknown,
            _ => AnswerState::Failed,
        }
    }
}

/// Runs this part of the program with its own arguments, [`SUBCOMMAND`] first; returns the exit code,
/// unless it is to die of a signal.
pub fn main(arguments: impl Iterator<Item = OsString>) -> i32 {
    let command_line = match CodeCommandLine::try_parse_from(arguments) {
        Ok(command_line) => command_line,
        Err(usage) => {
            let code = show_usage(&usage).into();
            if let Some(ContextValue::String(argument)) = usage.get(ContextKind::InvalidArg)
                && TokenCode::is_code(argument.as_bytes())
            {
                error!(
                    "enter the code at the prompt, or on standard input: every user of this host can read arguments"
                );
            }
            return code;
        }
    };
    let held = process::protect().and_then(|()| Signals::hold());
    let signals = match held {
        Ok(signals) => signals,
        Err(error) => {
            error!("{}", CodeError::System("protect this process", error));
            return FAILURE;
        }
    };
    match run(&command_line, &signals) {
        Ok(accepted) => {
            info!("accepted: {accepted}");
            command_line.answer(AnswerState::Accepted, accepted);
            0
        }
        Err(failure) => {
            error!("{failure}");
            command_line.answer(failure.state(), failure.message());
            die_of_signal(&failure, signals);
            failure.exit_code()
        }
    }
}

impl CodeCommandLine {
    /// Prints the line for programs. Whether somebody reads it changes nothing.
    fn answer(&self, state: AnswerState, message: String) {
        if self.json {
            let _ = Answer { state, message }.print();
        }
    }
}

fn die_of_signal(failure: &CodeError, signals: Signals) {
    if let CodeError::Write(WriteError::Interrupted(_)) = failure
        && let Some(signal) = signals.received()
    {
        // Where that is not possible, the exit code says that something failed.
        let _: Result<(), _> = signals.die_of(signal);
    }
}

fn run(command_line: &CodeCommandLine, signals: &Signals) -> Result<String, CodeError> {
    let note = Note::of_login(command_line.reason.as_deref());
    let mut fifo = FifoWriter::find(&path(command_line)?)?;
    take_rights_of_owner(&fifo)?;
    fifo.check_directory()?;
    fifo.check_access()?;
    // One of an older release has none, and takes no note.
    let state = StateReader::open(fifo.path()).ok();
    let note = match (&state, &command_line.reason) {
        (Some(_), _) => Some(note),
        (None, Some(_)) => {
            warn!("the service is of an older release, which does not record the reason");
            None
        }
        (None, None) => None,
    };
    let mut channel = Channel::standard_input()?;
    let awaited = state.as_ref().and_then(StateReader::read);
    let path = fifo.path().display();
    let there = match awaited.filter(|state| state.stage == Stage::Awaited) {
        Some(awaited) => format!("{path} awaits {}", awaited.text),
        None => format!("{path} awaits a code or a session document"),
    };
    info!("{there}");
    command_line.answer(AnswerState::Waiting, there);
    loop {
        channel.prompt();
        let wait = Wait {
            interrupt: signals.descriptor(),
            deadline: None,
            alive: &|| {},
        };
        let outcome = match channel.next(&wait)? {
            Event::Interrupted | Event::DeadlinePassed => {
                return Err(WriteError::Interrupted("nothing was written").into());
            }
            Event::Input(input) => give(&mut fifo, input, note.as_ref(), signals),
        };
        match outcome {
            Err(CodeError::Refused(why)) if !channel.is_line() && fifo.is_there() => {
                warn!("refused: {why}");
            }
            outcome => return outcome,
        }
    }
}

fn path(command_line: &CodeCommandLine) -> Result<PathBuf, CodeError> {
    let path = match (&command_line.fifo, &command_line.config) {
        (Some(path), _) => path.clone(),
        (None, Some(file)) => Config::read(file)?.fifo.path,
        (None, None) => DEFAULT_FIFO.into(),
    };
    absolute(path).map_err(|error| CodeError::System("find the current directory", error))
}

/// Writes an input that could be good, and waits for what becomes of it.
fn give(
    fifo: &mut FifoWriter,
    input: Input,
    note: Option<&Note>,
    signals: &Signals,
) -> Result<String, CodeError> {
    let bytes = match (input, note) {
        (Input::TokenCode(code, _), Some(note)) => note.document_of_code(&code),
        (Input::TokenCode(code, _), None) => code.line(),
        // A program that hands a session over may have put the reason beside it.
        (Input::Session(session, given), Some(note)) => {
            let reason = note.reason.clone().or(given.reason);
            Note {
                reason,
                ..note.clone()
            }
            .document_of_session(&session)
        }
        (Input::Session(session, _), None) => session.document(),
        (Input::Refused(why), _) => {
            return Err(CodeError::Refused(format!("{why}; nothing was written")));
        }
        (Input::Vanished, _) => return Err(CodeError::Refused("nothing was entered".into())),
    };
    match fifo.give(&bytes, signals.descriptor(), |text| info!("{text}"))? {
        Outcome::Accepted(text) => Ok(text),
        Outcome::Refused(why) => Err(CodeError::Refused(why)),
        Outcome::Unknown(why) => Err(CodeError::Unknown(why)),
    }
}

/// Becomes the owner of the FIFO, who can replace it by anything at any moment: with root's rights,
/// that could be anything that root may write to.
fn take_rights_of_owner(fifo: &FifoWriter) -> Result<(), CodeError> {
    let (owner, group) = fifo.owner();
    if !geteuid().is_root() || owner.is_root() {
        return Ok(());
    }
    setgroups(&[])
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(owner, owner, owner))
        // Where fs.suid_dumpable says so, the change has made us dumpable again.
        .and_then(|()| prctl::set_dumpable(false))
        .and_then(|()| prctl::set_no_new_privs())
        .map_err(|error| CodeError::Privileges {
            user: owner,
            source: error.into(),
        })
}
