//! Manages the wrapped data keys of MariaDB's `aws_key_management` plugin.
//!
//! Each subcommand is a module with its `Arguments` and its `run`.

#![forbid(unsafe_code)]

mod access;
mod check;
mod command_line;
mod concurrent;
mod derivation;
mod directories;
mod export;
mod fork;
mod import;
mod list;
mod manifest;
mod names;
mod option_value;
mod password;
mod progress;
mod regional_kms;
mod rewrap;
mod rotation;
mod stored;
mod table;
mod textfile;
mod unwrapping;
mod verify;

use std::{io, path::PathBuf, process::ExitCode};

use aws_session::{
    config::ConfigError,
    settings::{self, SettingsError},
    source_credentials::CredentialsError,
};
use clap::{CommandFactory, Parser};
use code_channel::interactive_session::InteractiveSessionError;
use key_files::key_directory::FileError;
use key_store::StoreError;
use offline_keys::{file::OfflineFileError, password::PasswordError};
use service::{logging, process, standard_output, usage::show_usage};
use tracing::error;
use visible_text::escape;

use command_line::{Command, CommandLine};

const PROGRAM: &str = "kms-data-keys";

/// Exit code if a subcommand could not do its work, as for `iam-kms-wrapper`.
const FAILURE: u8 = 125;

/// The result of a subcommand that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Everything is in order.
    Good,
    /// Something is wrong and has been reported.
    Bad,
    /// The key store has keys that are not here.
    OnlyStored,
    /// The key store has other keys than those here.
    Differs,
}

impl Outcome {
    /// Returns the same, or `Bad` if keys have failed.
    fn unless_failed(self, failed: usize) -> Self {
        match failed {
            0 => self,
            _ => Self::Bad,
        }
    }

    /// Returns the same, unless all is well but for what could not be written.
    fn despite(self, written: Result<(), DataKeysError>) -> Result<Self, DataKeysError> {
        match (written, self) {
            (Ok(()), outcome) => Ok(outcome),
            (Err(failure), Self::Good) => Err(failure),
            (Err(failure), outcome) => {
                error!("{failure}");
                Ok(outcome)
            }
        }
    }

    /// Returns the error that leaves the outcome open, and logs what could not be written.
    fn unknown(
        why: DataKeysError,
        written: Result<(), DataKeysError>,
    ) -> Result<Self, DataKeysError> {
        if let Err(failure) = written {
            error!("{failure}");
        }
        Err(why)
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Good => Self::SUCCESS,
            Outcome::Bad => Self::FAILURE,
            Outcome::OnlyStored => Self::from(2),
            Outcome::Differs => Self::from(3),
        }
    }
}

/// Why a subcommand could not do its work.
#[derive(Debug, thiserror::Error)]
enum DataKeysError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(
        "found no AWS credentials: {0}; name a configuration with --config=FILE to enter an MFA code, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. list, verify and export can also ask a broker (--broker-socket=PATH)"
    )]
    NoCredentials(String),
    #[error(transparent)]
    Session(#[from] InteractiveSessionError),
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error("cannot prompt for the password: there is no terminal; use --password-file")]
    NoTerminal,
    #[error(
        "cannot read the password: what was typed is not UTF-8; set the terminal to UTF-8, or use --password-file"
    )]
    PasswordEncoding,
    #[error(transparent)]
    Offline(#[from] OfflineFileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "no key store is configured: set key_store in the configuration and give --config, or give --store=LOCATION"
    )]
    NoStore,
    #[error("cannot write '{}': {source}", path.display())]
    Textfile { path: PathBuf, source: io::Error },
    #[error("cannot open the data directory '{}': {source}", path.display())]
    DataDirectory { path: PathBuf, source: io::Error },
    #[error("cannot ask the server: {0}")]
    Server(String),
    #[error("cannot compare: {0}")]
    Broker(String),
    #[error(
        "there is no key file in '{}'; name the data directory, or aws_key_management_keyfile_dir, and see that it is mounted", .0.display()
    )]
    NoKeyFiles(PathBuf),
    #[error("not all keys could be checked: fix the errors above, and run this again")]
    NotVerified,
    #[error("not all keys could be compared with the key store: see above")]
    NotCompared,
    #[error("the keys were exported to '{}', but the lines for the option file are lost: {why}", path.display())]
    Exported { path: PathBuf, why: Box<Self> },
    #[error("{why}; the work is done: {summary}")]
    SummaryLost { summary: String, why: Box<Self> },
    #[error("nothing was exported: {0}")]
    NotExported(String),
    #[error("nothing was imported: {0}")]
    NotImported(String),
    #[error("cannot wrap keys under '{key}': {why}")]
    MasterKey { key: String, why: String },
    #[error(
        "'{}' is not the data directory of a server: it has none of ibdata1, aria_log_control, mysql and aws-kms-keys.list; nothing was changed", .0.display()
    )]
    NotADataDirectory(PathBuf),
    #[error(
        "'{}' belongs to another user, whose server could not read what you write there; run this as root, or as that user; nothing was changed", .0.display()
    )]
    NotOwner(PathBuf),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error(transparent)]
    NotStopped(#[from] check::NotStopped),
    #[error("do not move any key files: it is uncertain which are needed")]
    Undetermined,
}

/// Returns the command line, for man pages and completions.
pub fn command_line() -> clap::Command {
    CommandLine::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    logging::init(PROGRAM);
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(usage) => return show_usage(&usage).into(),
    };
    match run(&command_line.command) {
        Ok(outcome) => outcome.into(),
        Err(failure) => {
            error!("{failure}");
            ExitCode::from(FAILURE)
        }
    }
}

fn run(command: &Command) -> Result<Outcome, DataKeysError> {
    process::protect().map_err(|error| DataKeysError::System("protect this process", error))?;
    // If this is not allowed, a key might be swapped out during the short time that it is in memory.
    let _ = process::lock_memory();
    match command {
        Command::List(arguments) => list::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Rewrap(arguments) => rewrap::run(arguments),
        Command::Rotation(arguments) => rotation::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Fork(arguments) => fork::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Push(arguments) => stored::push::run(arguments),
        Command::Pull(arguments) => stored::pull::run(arguments),
    }
}

/// Does `work`, such as KMS calls. Does not wait for what it has given up, such as a file server that does not answer.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, DataKeysError> {
    let runtime =
        settings::runtime().map_err(|error| DataKeysError::System("start the AWS SDK", error))?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done)
}

/// Formats a number of data keys.
fn data_keys(count: usize) -> String {
    match count {
        1 => "1 data key".into(),
        _ => format!("{count} data keys"),
    }
}

/// Writes `text` to standard output, each line escaped.
fn print(text: &str) -> Result<(), DataKeysError> {
    let lines: String = text.lines().map(|line| escape(line) + "\n").collect();
    write(&lines)
}

/// Does the same with what a subcommand says when all is done.
fn print_summary(text: &str) -> Result<(), DataKeysError> {
    print(text).map_err(|why| DataKeysError::SummaryLost {
        summary: text.trim().replace('\n', " "),
        why: Box::new(why),
    })
}

/// Writes `value` to standard output in ASCII, so that no file name does anything to a terminal.
fn print_json(value: &serde_json::Value) -> Result<(), DataKeysError> {
    let mut line = String::new();
    for c in value.to_string().chars() {
        match c {
            ' '..='~' => line.push(c),
            _ => {
                let units = c.encode_utf16(&mut [0; 2]).to_vec();
                line.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
    write(&(line + "\n"))
}

fn write(text: &str) -> Result<(), DataKeysError> {
    standard_output::print(text)
        .map_err(|error| DataKeysError::System("write to the standard output", error))
}
