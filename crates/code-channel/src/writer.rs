//! Writing to the FIFO of another process, for the programs in which an operator enters a code.
//!
//! A shell's `echo CODE > FIFO` does the same, but follows a symbolic link that the owner of the directory has
//! put in the FIFO's place. This module follows none, and makes and truncates no file.

use std::{
    fs::Metadata,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{FileStat, Mode, SFlag, fstat},
    unistd::{Gid, Uid, write},
};
use trusted_directory::DirectoryError;

use crate::state_file::{Stage, State, StateReader};
use aws_session::interrupt::sleep_until;

/// How long the process at the FIFO tries to have a code judged by AWS, and some.
const JUDGEMENT_PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks at what has become of the code.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// How long a process that has just made the FIFO may take to open it.
const OPENING_PATIENCE: Duration = Duration::from_secs(2);

/// How long the FIFO may be too full for a session document.
const WRITE_PATIENCE_MILLISECONDS: u16 = 10_000;

/// Why an input was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No process waits.
    #[error(
        "nothing waits for a code at {}; if the service has another FIFO, name it with --fifo or --config: its status shows the command (systemctl status)",
        .0.display()
    )]
    NotAwaited(PathBuf),
    /// Something else is at the path.
    #[error(
        "will not write to {}: {what}; only a FIFO is written to", path.display()
    )]
    NoFifo {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// Others could replace the FIFO.
    #[error(
        "will not write to {}: {source}, and could take the code", path.display()
    )]
    Directory {
        /// The FIFO.
        path: PathBuf,
        /// Who could.
        source: DirectoryError,
    },
    /// The kernel refuses.
    #[error("cannot write to {}: {source}{hint}", path.display())]
    Write {
        /// The FIFO.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The interrupt descriptor became readable.
    #[error("stopped by a signal; {0}")]
    Interrupted(&'static str),
}

/// What became of an input, as its reader says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It opened a session.
    Accepted(String),
    /// Another one is needed.
    Refused(String),
    /// The reader has not said it.
    Unknown(String),
}

/// The FIFO of a process that waits, as it was found.
pub struct FifoWriter {
    path: PathBuf,
    identity: (u64, u64),
    owner: Uid,
    group: Gid,
}

impl FifoWriter {
    /// Finds the FIFO at `path`. Errors: nothing is there, or something else.
    pub fn find(path: &Path) -> Result<Self, WriteError> {
        let metadata = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(WriteError::NotAwaited(path.into()));
            }
            metadata => metadata.map_err(|source| WriteError::Write {
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

    /// The FIFO.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its owner and group.
    pub fn owner(&self) -> (Uid, Gid) {
        (self.owner, self.group)
    }

    /// Checks that nobody but the owner and root can replace the FIFO.
    pub fn check_directory(&self) -> Result<(), WriteError> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        trusted_directory::check(directory, Some(self.owner.as_raw())).map_err(|source| {
            WriteError::Directory {
                path: self.path.clone(),
                source,
            }
        })
    }

    /// Whether it still waits.
    pub fn is_there(&self) -> bool {
        self.path
            .symlink_metadata()
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
    }

    fn open(&self, interrupt: BorrowedFd<'_>) -> Result<OwnedFd, WriteError> {
        let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let until = Instant::now() + OPENING_PATIENCE;
        let descriptor = loop {
            match open(&self.path, flags, Mode::empty()) {
                // Nobody reads it yet.
                Err(Errno::ENXIO) if Instant::now() < until => {
                    if sleep_until(Instant::now() + LOOK_PAUSE, interrupt) {
                        return Err(WriteError::Interrupted("nothing was written"));
                    }
                }
                Err(Errno::ENOENT | Errno::ENXIO) => {
                    return Err(WriteError::NotAwaited(self.path.clone()));
                }
                descriptor => break descriptor.map_err(|error| self.write_error(error))?,
            }
        };
        let status = fstat(&descriptor).map_err(|error| self.write_error(error))?;
        if !is_fifo(&status) || (status.st_dev, status.st_ino) != self.identity {
            return Err(WriteError::NoFifo {
                path: self.path.clone(),
                what: "something else has taken the place of the FIFO",
            });
        }
        Ok(descriptor)
    }

    /// Finds the FIFO again if its maker was restarted, or waits for the next code: another one of the same owner.
    fn follow(&mut self) -> Result<(), WriteError> {
        if self.is_there() {
            return Ok(());
        }
        let found = Self::find(&self.path)?;
        if found.owner == self.owner {
            found.check_directory()?;
            *self = found;
        }
        Ok(())
    }

    /// Writes an input, and waits for its outcome. `progress` is told what the reader says meanwhile.
    ///
    /// Errors: nothing, or not all of it, was written, or the wait was interrupted.
    pub fn give(
        &mut self,
        bytes: &[u8],
        interrupt: BorrowedFd<'_>,
        progress: impl Fn(&str),
    ) -> Result<Outcome, WriteError> {
        self.follow()?;
        // One of an older release has none.
        let state = StateReader::open(&self.path).ok();
        let before = state
            .as_ref()
            .and_then(StateReader::read)
            .map(|state| state.number);
        self.write(bytes, interrupt)?;
        match state {
            Some(state) => self.wait_for_outcome(&state, before, interrupt, progress),
            None => Ok(Outcome::Unknown(
                "written; this service does not say what becomes of it: see its log".into(),
            )),
        }
    }

    fn write(&self, mut bytes: &[u8], interrupt: BorrowedFd<'_>) -> Result<(), WriteError> {
        let descriptor = self.open(interrupt)?;
        while !bytes.is_empty() {
            match write(&descriptor, bytes) {
                Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait_for_room(&descriptor, interrupt)?,
                // Its reader has ended.
                Err(Errno::EPIPE) => return Err(WriteError::NotAwaited(self.path.clone())),
                Err(error) => return Err(self.write_error(error)),
            }
        }
        Ok(())
    }

    fn wait_for_room(
        &self,
        descriptor: &OwnedFd,
        interrupt: BorrowedFd<'_>,
    ) -> Result<(), WriteError> {
        let mut ready = [
            PollFd::new(descriptor.as_fd(), PollFlags::POLLOUT),
            PollFd::new(interrupt, PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::from(WRITE_PATIENCE_MILLISECONDS)) {
            Ok(0) => Err(self.write_error(Errno::ETIMEDOUT)),
            Ok(_) if ready[1].any() == Some(true) => {
                Err(WriteError::Interrupted("it was not written as a whole"))
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
        interrupt: BorrowedFd<'_>,
        progress: impl Fn(&str),
    ) -> Result<Outcome, WriteError> {
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
                }) => return Ok(Outcome::Accepted(text)),
                Some(State {
                    stage: Stage::Refused,
                    text,
                    ..
                }) => return Ok(Outcome::Refused(text)),
                Some(state) => {
                    said = Some(state.number);
                    if !state.text.is_empty() {
                        progress(&state.text);
                    }
                }
                None if !is_there => {
                    return Ok(Outcome::Unknown(
                        "written, but the service ended before it said what became of it: see its log"
                            .into(),
                    ));
                }
                None if Instant::now() > until => {
                    return Ok(Outcome::Unknown(
                        "written, but the service has not said yet what became of it: see its log"
                            .into(),
                    ));
                }
                None => {}
            }
            if sleep_until(Instant::now() + LOOK_PAUSE, interrupt) {
                return Err(WriteError::Interrupted(
                    "the code was written, and the service continues",
                ));
            }
        }
    }

    fn write_error(&self, error: Errno) -> WriteError {
        let source = io::Error::from(error);
        WriteError::Write {
            path: self.path.clone(),
            hint: hint(&source),
            source,
        }
    }
}

fn is_fifo(status: &FileStat) -> bool {
    SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFIFO
}

fn no_fifo(path: &Path, metadata: &Metadata) -> WriteError {
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
    WriteError::NoFifo {
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
