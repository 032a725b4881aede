//! `iam-kms-wrapper code`: takes an MFA code or a session document from a person and writes it to the
//! FIFO of a process that waits for it, then says what became of it.
//!
//! A shell's `echo CODE > FIFO` does the same, but root's shell follows a symbolic link that the server's
//! user has put in the FIFO's place, and overwrites what it points to. This program follows none, makes
//! and truncates no file, and works with the rights of the FIFO's owner.

use std::{
    ffi::OsString,
    fs::Metadata,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf, absolute},
    time::{Duration, Instant},
};

use clap::Parser;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        stat::{FileStat, Mode, SFlag, fstat},
    },
    unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid, write},
};
use tracing::{error, info, warn};
use trusted_directory::DirectoryError;
use zeroize::Zeroizing;

use aws_session::{
    config::{Config, ConfigError, DEFAULT_FIFO},
    interrupt::sleep_until,
};
use code_channel::{Channel, Event, FifoError, Input, Stage, State, StateReader, Wait};
use service::{process, signals::Signals, usage::show_usage};

/// The first argument that chooses this part of the program.
pub const SUBCOMMAND: &str = "code";

/// How long the process at the FIFO tries to have a code judged by AWS, and some.
const JUDGEMENT_PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks at what has become of the code.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// How long a process that has just made the FIFO may take to open it.
const OPENING_PATIENCE: Duration = Duration::from_secs(2);

/// How long the FIFO may be too full for a session document.
const WRITE_PATIENCE_MILLISECONDS: u16 = 10_000;

const REFUSED: i32 = 1;
const UNKNOWN: i32 = 3;
const NOT_AWAITED: i32 = 4;
const FAILURE: i32 = 125;

/// Enter an MFA code, or a session document, where one is awaited.
#[derive(Debug, Parser)]
#[command(
    name = SUBCOMMAND,
    bin_name = "iam-kms-wrapper code",
    about = "Enter an MFA code where one is awaited, and see what becomes of it",
    override_usage = "iam-kms-wrapper code [--fifo=PATH | --config=FILE]",
    after_help = "\
In a terminal, the code is asked for without echo, again after a refusal. Else
one line of standard input is taken, or a session document:
  iam-kms-wrapper code < session.json

Run it as root, which takes on the rights of the FIFO's owner for it, or as a
user who may write to the FIFO. It never creates or changes a file.

Exit status: 0 accepted, 1 refused, 3 not known (see the log of the service),
4 nothing waits for a code, 125 failed.

`iam-kms-wrapper --config=FILE code` runs a program called code instead."
)]
pub struct CodeCommandLine {
    /// The FIFO; else that of --config, or /run/iam-kms-wrapper/mfa
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    fifo: Option<PathBuf>,

    /// Take the FIFO from this configuration (kms_mfa_socket)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why the code was not written, or what became of it where that is no success.
#[derive(Debug, thiserror::Error)]
enum CodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error("nothing waits for a code at {}", .0.display())]
    NotAwaited(PathBuf),
    #[error(
        "will not write to {}: {what}; only a FIFO is written to", path.display()
    )]
    NoFifo { path: PathBuf, what: &'static str },
    #[error(
        "will not write to {}: {source}, and could take the code", path.display()
    )]
    Directory {
        path: PathBuf,
        source: DirectoryError,
    },
    #[error("cannot become user {user}, who owns the FIFO: {source}")]
    Privileges { user: Uid, source: io::Error },
    #[error("cannot write to {}: {source}{hint}", path.display())]
    Write {
        path: PathBuf,
        source: io::Error,
        hint: &'static str,
    },
    #[error(transparent)]
    Read(#[from] FifoError),
    #[error("refused: {0}")]
    Refused(String),
    #[error("{0}")]
    Unknown(String),
    #[error("stopped by a signal; {0}")]
    Interrupted(&'static str),
}

impl CodeError {
    fn exit_code(&self) -> i32 {
        match self {
            Self::NotAwaited(_) => NOT_AWAITED,
            Self::Refused(_) => REFUSED,
            Self::Unknown(_) => UNKNOWN,
            _ => FAILURE,
        }
    }
}

/// Runs this part of the program with its own arguments, [`SUBCOMMAND`] first; returns the exit code,
/// unless it is to die of a signal.
pub fn main(arguments: impl Iterator<Item = OsString>) -> i32 {
    let command_line = match CodeCommandLine::try_parse_from(arguments) {
        Ok(command_line) => command_line,
        Err(usage) => return show_usage(&usage).into(),
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
            0
        }
        Err(failure) => {
            error!("{failure}");
            die_of_signal(&failure, signals);
            failure.exit_code()
        }
    }
}

fn die_of_signal(failure: &CodeError, signals: Signals) {
    if let CodeError::Interrupted(_) = failure
        && let Some(signal) = signals.received()
    {
        // Where that is not possible, the exit code says that something failed.
        let _: Result<(), _> = signals.die_of(signal);
    }
}

fn run(command_line: &CodeCommandLine, signals: &Signals) -> Result<String, CodeError> {
    let fifo = Fifo::find(&path(command_line)?)?;
    fifo.take_rights_of_owner()?;
    fifo.check_directory()?;
    // One of an older release has none.
    let state = StateReader::open(&fifo.path).ok();
    let mut channel = Channel::standard_input()?;
    let awaited = state.as_ref().and_then(StateReader::read);
    if let Some(awaited) = awaited.filter(|state| state.stage == Stage::Awaited) {
        info!("{} awaits {}", fifo.path.display(), awaited.text);
    }
    loop {
        channel.prompt();
        let wait = Wait {
            interrupt: signals.descriptor(),
            deadline: None,
            alive: &|| {},
        };
        let outcome = match channel.next(&wait)? {
            Event::Interrupted | Event::DeadlinePassed => {
                return Err(CodeError::Interrupted("nothing was written"));
            }
            Event::Input(input) => give(&fifo, state.as_ref(), input, signals),
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
    fifo: &Fifo,
    state: Option<&StateReader>,
    input: Input,
    signals: &Signals,
) -> Result<String, CodeError> {
    let bytes = match input {
        Input::TokenCode(code) => {
            let mut line = Zeroizing::new(Vec::with_capacity(code.expose().len() + 1));
            line.extend(code.expose().bytes());
            line.push(b'\n');
            line
        }
        Input::Session(session) => session.document(),
        Input::Refused(why) => {
            return Err(CodeError::Refused(format!("{why}; nothing was written")));
        }
        Input::Vanished => return Err(CodeError::Refused("nothing was entered".into())),
    };
    let before = state.and_then(StateReader::read).map(|state| state.number);
    fifo.write(&bytes, signals)?;
    drop(bytes);
    match state {
        Some(state) => fifo.wait_for_outcome(state, before, signals),
        None => Err(CodeError::Unknown(
            "written; this service does not say what becomes of it: see its log".into(),
        )),
    }
}

/// The FIFO of a process that waits, as it was found.
struct Fifo {
    path: PathBuf,
    identity: (u64, u64),
    owner: Uid,
    group: Gid,
}

impl Fifo {
    fn find(path: &Path) -> Result<Self, CodeError> {
        let metadata = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CodeError::NotAwaited(path.into()));
            }
            metadata => metadata.map_err(|source| CodeError::Write {
                path: path.into(),
                hint: hint(&source),
                source,
            })?,
        };
        if !metadata.file_type().is_fifo() {
            return Err(no_fifo(path, &metadata));
        }
        Ok(Self {
            path: path.into(),
            identity: (metadata.dev(), metadata.ino()),
            owner: Uid::from_raw(metadata.uid()),
            group: Gid::from_raw(metadata.gid()),
        })
    }

    /// Becomes the owner of the FIFO, who can replace it by anything at any moment: with root's rights,
    /// that could be anything that root may write to.
    fn take_rights_of_owner(&self) -> Result<(), CodeError> {
        if !geteuid().is_root() || self.owner.is_root() {
            return Ok(());
        }
        setgroups(&[])
            .and_then(|()| setresgid(self.group, self.group, self.group))
            .and_then(|()| setresuid(self.owner, self.owner, self.owner))
            // Where fs.suid_dumpable says so, the change has made us dumpable again.
            .and_then(|()| prctl::set_dumpable(false))
            .and_then(|()| prctl::set_no_new_privs())
            .map_err(|error| CodeError::Privileges {
                user: self.owner,
                source: error.into(),
            })
    }

    fn check_directory(&self) -> Result<(), CodeError> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        trusted_directory::check(directory, Some(self.owner.as_raw())).map_err(|source| {
            CodeError::Directory {
                path: self.path.clone(),
                source,
            }
        })
    }

    fn is_there(&self) -> bool {
        self.path
            .symlink_metadata()
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
    }

    fn open(&self, signals: &Signals) -> Result<OwnedFd, CodeError> {
        let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let until = Instant::now() + OPENING_PATIENCE;
        let descriptor = loop {
            match open(&self.path, flags, Mode::empty()) {
                // Nobody reads it yet.
                Err(Errno::ENXIO) if Instant::now() < until => {
                    if sleep_until(Instant::now() + LOOK_PAUSE, signals.descriptor()) {
                        return Err(CodeError::Interrupted("nothing was written"));
                    }
                }
                Err(Errno::ENOENT | Errno::ENXIO) => {
                    return Err(CodeError::NotAwaited(self.path.clone()));
                }
                descriptor => break descriptor.map_err(|error| self.write_error(error))?,
            }
        };
        let status = fstat(&descriptor).map_err(|error| self.write_error(error))?;
        if !is_fifo(&status) || (status.st_dev, status.st_ino) != self.identity {
            return Err(CodeError::NoFifo {
                path: self.path.clone(),
                what: "something else has taken the place of the FIFO",
            });
        }
        Ok(descriptor)
    }

    fn write(&self, mut bytes: &[u8], signals: &Signals) -> Result<(), CodeError> {
        let descriptor = self.open(signals)?;
        while !bytes.is_empty() {
            match write(&descriptor, bytes) {
                Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait_for_room(&descriptor, signals)?,
                // Its reader has ended.
                Err(Errno::EPIPE) => return Err(CodeError::NotAwaited(self.path.clone())),
                Err(error) => return Err(self.write_error(error)),
            }
        }
        Ok(())
    }

    fn wait_for_room(&self, descriptor: &OwnedFd, signals: &Signals) -> Result<(), CodeError> {
        let mut ready = [
            PollFd::new(descriptor.as_fd(), PollFlags::POLLOUT),
            PollFd::new(signals.descriptor(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::from(WRITE_PATIENCE_MILLISECONDS)) {
            Ok(0) => Err(self.write_error(Errno::ETIMEDOUT)),
            Ok(_) if ready[1].any() == Some(true) => {
                Err(CodeError::Interrupted("it was not written as a whole"))
            }
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(self.write_error(error)),
        }
    }

    /// Waits until the reader says what has become of what was written after `before`.
    fn wait_for_outcome(
        &self,
        state: &StateReader,
        before: Option<u64>,
        signals: &Signals,
    ) -> Result<String, CodeError> {
        let until = Instant::now() + JUDGEMENT_PATIENCE;
        let mut said = before;
        loop {
            // First, because the reader says what there is to say before it removes the FIFO.
            let is_there = self.is_there();
            match state.read().filter(|state| Some(state.number) > said) {
                Some(State {
                    stage: Stage::Accepted,
                    text,
                    ..
                }) => return Ok(text),
                Some(State {
                    stage: Stage::Refused,
                    text,
                    ..
                }) => return Err(CodeError::Refused(text)),
                Some(state) => {
                    said = Some(state.number);
                    if !state.text.is_empty() {
                        info!("{}", state.text);
                    }
                }
                None if !is_there => {
                    return Err(CodeError::Unknown(
                        "written, but the service ended before it said what became of it: see its log"
                            .into(),
                    ));
                }
                None if Instant::now() > until => {
                    return Err(CodeError::Unknown(
                        "written, but the service has not said yet what became of it: see its log"
                            .into(),
                    ));
                }
                None => {}
            }
            if sleep_until(Instant::now() + LOOK_PAUSE, signals.descriptor()) {
                return Err(CodeError::Interrupted(
                    "the code is written, and the service goes on",
                ));
            }
        }
    }

    fn write_error(&self, error: Errno) -> CodeError {
        let source = io::Error::from(error);
        CodeError::Write {
            path: self.path.clone(),
            hint: hint(&source),
            source,
        }
    }
}

fn is_fifo(status: &FileStat) -> bool {
    SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFIFO
}

fn no_fifo(path: &Path, metadata: &Metadata) -> CodeError {
    let kind = metadata.file_type();
    let what = if kind.is_symlink() {
        "it is a symbolic link"
    } else if kind.is_dir() {
        "it is a directory"
    } else if kind.is_file() {
        "it is a regular file"
    } else {
        "it is a socket or a device"
    };
    CodeError::NoFifo {
        path: path.into(),
        what,
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run this as root, as the FIFO's owner, or as a member of its group (kms_mfa_socket_group)"
        }
        _ => "",
    }
}
