//! Starts `iam-kms-broker` and hands the session over to it.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use broker_api::{FrameError, read_frame_of, write_frame_of};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    unistd::{AccessFlags, access, geteuid},
};
use serde::{Deserialize, Serialize};
use trusted_directory::DirectoryError;

use crate::{
    clock::Reading,
    command::{CommandError, find_program},
    config::Config,
    environment::{Variables, without_secrets},
    session::Session,
};

const PROGRAM: &str = "iam-kms-broker";

/// Version of the form of [`Handover`] and [`Started`].
const HANDOVER_FORMAT: u8 = 2;

/// The broker only binds a socket before it answers.
const START_TIMEOUT_MILLISECONDS: u16 = 10_000;

/// How long a broker of an earlier server may take to notice that its server has gone.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(5);

/// What the broker is given, as one frame on its standard input. It answers on its standard output
/// with a [`Started`].
#[derive(Serialize, Deserialize)]
pub struct Handover {
    /// The configuration, as the launcher read it.
    pub config: Config,
    /// The open session.
    pub session: Session,
    /// The time by which it ends.
    pub clock: Reading,
    /// The source credentials; `None` where sessions are opened elsewhere.
    pub source: Option<Session>,
    /// The process that becomes the server; the broker leaves when it ends.
    pub server_pid: i32,
}

impl Handover {
    /// Reads it on the broker's side.
    pub fn read(stream: &mut impl io::Read) -> Result<Self, FrameError> {
        read_frame_of(HANDOVER_FORMAT, stream)
    }

    fn write(&self, stream: &mut impl io::Write) -> Result<(), FrameError> {
        write_frame_of(HANDOVER_FORMAT, stream, self)
    }
}

/// Whether the broker listens; the error is a line for the operator.
pub type Started = Result<(), String>;

/// Answers a [`Handover`].
pub fn answer(stream: &mut impl io::Write, started: &Started) -> Result<(), FrameError> {
    write_frame_of(HANDOVER_FORMAT, stream, started)
}

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The program is missing.
    #[error("cannot start the broker: {0}")]
    Program(CommandError),
    /// The socket's directory is missing or not ours to write.
    #[error(
        "cannot make the broker's socket {path}: {source}; create its directory, for the default path with RuntimeDirectory=iam-kms-wrapper in the unit",
        path = path.display()
    )]
    Directory {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could put their own socket in its place.
    #[error(
        "will not make the broker's socket {path}: {source}, and could put another in its place; use a directory of the service's own, such as /run/iam-kms-wrapper",
        path = path.display()
    )]
    DirectoryOpen {
        /// The socket.
        path: PathBuf,
        /// Who could.
        source: DirectoryError,
    },
    /// There is one already.
    #[error(
        "another broker listens at {path}; stop its server first, or set broker_socket to another path",
        path = path.display()
    )]
    AlreadyThere {
        /// The socket.
        path: PathBuf,
    },
    /// Something else lies at the path.
    #[error(
        "will not replace {path}: it is no socket of this user; remove it, or set broker_socket to another path",
        path = path.display()
    )]
    Occupied {
        /// The socket.
        path: PathBuf,
    },
    /// It cannot be started or talked to.
    #[error("cannot start the broker {path}: {source}", path = path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended or was silent.
    #[error("the broker {path} did not come up: {source}", path = path.display())]
    Silent {
        /// The program.
        path: PathBuf,
        /// Why.
        source: FrameError,
    },
    /// It says why it cannot run.
    #[error("{0}")]
    Refused(String),
}

/// A broker that can be started.
pub struct Broker {
    program: PathBuf,
}

impl Broker {
    /// Finds the program (beside our own, or in `PATH`) and checks that its socket can be made.
    pub fn find(config: &Config) -> Result<Self, BrokerError> {
        let program = find_beside_us()
            .map_or_else(|| find_program(OsStr::new(PROGRAM)), Ok)
            .map_err(BrokerError::Program)?;
        check_directory(&config.broker_socket)?;
        if !is_free_or_socket(&config.broker_socket) {
            return Err(BrokerError::Occupied {
                path: config.broker_socket.clone(),
            });
        }
        wait_for_predecessor(&config.broker_socket)?;
        Ok(Self { program })
    }

    /// The program's path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts it, gives it `handover` and returns when its socket listens.
    pub fn start(&self, handover: &Handover, environment: Variables) -> Result<(), BrokerError> {
        let failed = |source| BrokerError::Start {
            path: self.program.clone(),
            source,
        };
        let silent = |source| BrokerError::Silent {
            path: self.program.clone(),
            source,
        };
        let mut child = Command::new(&self.program)
            .arg("--handover")
            .env_clear()
            .envs(without_secrets(environment))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        handover.write(&mut stdin).map_err(silent)?;
        drop(stdin);
        let started = wait_readable(&stdout)
            .map_err(FrameError::Io)
            .and_then(|()| read_frame_of::<Started>(HANDOVER_FORMAT, &mut stdout))
            .map_err(silent)?;
        // What we started ended when the broker left us for init; the server is not to inherit it.
        match child.wait() {
            // Where our parent has us ignore SIGCHLD, the kernel has taken it away already.
            Err(error) if error.raw_os_error() != Some(Errno::ECHILD as i32) => {
                return Err(failed(error));
            }
            _ => {}
        }
        started.map_err(BrokerError::Refused)
    }
}

fn find_beside_us() -> Option<PathBuf> {
    let beside = env::current_exe().ok()?.with_file_name(PROGRAM);
    find_program(beside.as_os_str()).ok()
}

/// Checks that a socket can be made at `socket`, and that nobody else could put another in its place.
pub fn check_directory(socket: &Path) -> Result<(), BrokerError> {
    let directory = socket.parent().unwrap_or(Path::new("/"));
    trusted_directory::check(directory, None).map_err(|error| match error {
        DirectoryError::Examine { source, .. } => BrokerError::Directory {
            path: socket.into(),
            source,
        },
        source => BrokerError::DirectoryOpen {
            path: socket.into(),
            source,
        },
    })?;
    access(directory, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| {
        BrokerError::Directory {
            path: socket.into(),
            source: error.into(),
        }
    })
}

/// Whether a socket may be made at `path`: nothing lies there, or a socket of our own user.
pub fn is_free_or_socket(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type().is_socket() && metadata.uid() == geteuid().as_raw(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether somebody listens at `path`.
pub fn has_listener(path: &Path) -> bool {
    let connected = UnixAddr::new(path).and_then(|address| {
        // One that is too busy for another connection is to keep nobody waiting.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(descriptor.as_raw_fd(), &address)
    });
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}

fn wait_for_predecessor(socket: &Path) -> Result<(), BrokerError> {
    let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
    while has_listener(socket) {
        if Instant::now() > deadline {
            return Err(BrokerError::AlreadyThere {
                path: socket.into(),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn wait_readable(stdout: &impl AsFd) -> io::Result<()> {
    let mut descriptors = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    match poll(
        &mut descriptors,
        PollTimeout::from(START_TIMEOUT_MILLISECONDS),
    )? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}
