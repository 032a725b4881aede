//! Opens one AWS session and hands it to many hosts over ssh.
//!
//! `hosts` lists them, `session` opens the session, `fleet` hands it to all and `dialogue` to one, `report`
//! shows what becomes of it (`outcome`).

#![forbid(unsafe_code)]

pub mod command_line;
mod dialogue;
mod fleet;
mod hosts;
mod outcome;
mod report;
mod session;

use std::{io, time::Duration};

use clap::Parser;
use tracing::{error, info};

use aws_session::{credentials::Credentials, settings};
use code_channel::note::Note;
use command_line::CommandLine;
use dialogue::Delivery;
use fleet::Fleet;
use hosts::HostsError;
use outcome::{exit_code, summary};
use report::Report;
use service::{logging, process, signals::Signals, usage::show_usage};
use session::SessionError;

/// Name of the program, in the log and in its help.
const PROGRAM: &str = "iam-kms-unlock";

/// The exit code where no host was called.
const FAILURE: i32 = 125;

/// Why no host was called, or the run ended early.
#[derive(Debug, thiserror::Error)]
enum UnlockError {
    #[error(transparent)]
    Hosts(#[from] HostsError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error("stopped by a signal")]
    Interrupted,
}

/// Runs the program and returns its exit code, or dies of a signal.
pub fn main() -> i32 {
    logging::init(PROGRAM);
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(usage) => return show_usage(&usage).into(),
    };
    let held = process::protect().and_then(|()| Signals::hold());
    let signals = match held {
        Ok(signals) => signals,
        Err(error) => {
            error!("{}", UnlockError::System("protect this process", error));
            return FAILURE;
        }
    };
    run(&command_line, &signals).unwrap_or_else(|failure| {
        error!("{failure}");
        if let Some(signal) = signals.received() {
            // Returns only if that is not possible.
            let _ = signals.die_of(signal);
        }
        FAILURE
    })
}

fn run(command_line: &CommandLine, signals: &Signals) -> Result<i32, UnlockError> {
    let hosts = hosts::list(command_line, signals)?;
    let session = match command_line.dry_run {
        true => None,
        false => Some(session::open(command_line, signals)?),
    };
    let expiration = session.as_ref().map(Credentials::expiration_text);
    let document = session.map(|session| {
        // Each host adds who has logged in there, and from where.
        let note = Note {
            reason: command_line.reason.clone(),
            ..Note::default()
        };
        note.document_of_session(&session)
    });
    let delivery = Delivery {
        document: document.as_ref().map(|document| document.as_slice()),
        fifo: command_line.fifo.as_deref().and_then(|path| path.to_str()),
        sudo: command_line.sudo,
        timeout: Duration::from_secs(command_line.timeout_seconds),
        signals,
    };
    let report = Report::new(&hosts, expiration, command_line.json);
    let fleet = Fleet::new(&hosts, &report);
    let cannot_report = |error| UnlockError::System("write what became of the hosts", error);
    let runtime = settings::runtime().map_err(|error| UnlockError::System("start", error))?;
    let delivered = fleet.deliver(&runtime, &delivery, usize::from(command_line.jobs));
    let outcomes = fleet.finish().map_err(cannot_report)?;
    report.finish(&outcomes).map_err(cannot_report)?;
    info!("{}", summary(&outcomes, command_line.dry_run));
    match delivered.map_err(cannot_report)? {
        true => Ok(exit_code(outcomes.iter())),
        false => Err(UnlockError::Interrupted),
    }
}
