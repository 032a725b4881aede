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
    unistd::{AccessFlags, Gid, Uid, access, write},
};
use trusted_directory::DirectoryError;

use crate::state_file::{Stage, State, StateReader};
use aws_session::interrupt::{remaining, sleep_until};

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

    /// Checks that this process may write to the FIFO, before somebody takes the code from the device.
    pub fn check_access(&self) -> Result<(), WriteError> {
        access(&self.path, AccessFlags::W_OK).map_err(|error| match error {
            Errno::ENOENT => WriteError::NotAwaited(self.path.clone()),
            error => self.write_error(error),
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
            Some(state) => {
                let until = Instant::now() + JUDGEMENT_PATIENCE;
                self.wait_for_outcome(&state, before, until, interrupt, progress)
            }
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

    /// Waits, at most until then, for the reader to say what has become of what was written after `before`.
    fn wait_for_outcome(
        &self,
        state: &StateReader,
        before: Option<u64>,
        until: Instant,
        interrupt: BorrowedFd<'_>,
        progress: impl Fn(&str),
    ) -> Result<Outcome, WriteError> {
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
                None if remaining(until).is_zero() => {
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

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        fs::{self, File},
        io::Read,
        os::unix::fs::PermissionsExt,
        thread,
    };

    use aws_session::config::{FifoAccess, FifoConfig};
    use nix::{
        fcntl::{FcntlArg, FdFlag, fcntl},
        unistd::{mkfifo, pipe},
    };

    use super::*;
    use crate::{Channel, Event, Wait};

    struct Scene {
        directory: tempfile::TempDir,
        path: PathBuf,
        interrupt: OwnedFd,
        interrupter: Option<OwnedFd>,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (interrupt, interrupter) = pipe().unwrap();
            Self {
                path: directory.path().join("mfa"),
                directory,
                interrupt,
                interrupter: Some(interrupter),
            }
        }

        fn fifo(&self) -> FifoWriter {
            mkfifo(&self.path, Mode::S_IRWXU).unwrap();
            FifoWriter::find(&self.path).unwrap()
        }

        /// A service that waits, with a FIFO that this process may write to.
        fn service(&self) -> Channel {
            let channel = Channel::fifo(&FifoConfig {
                path: self.path.clone(),
                is_configured: true,
                access: FifoAccess {
                    mode: 0o600,
                    gid: None,
                },
                prompt_timeout: None,
            });
            channel.unwrap()
        }

        fn give(&self, writer: &mut FifoWriter) -> Result<Outcome, WriteError> {
            writer.give(b"111676\n", self.interrupt.as_fd(), |_| {})
        }
    }

    /// Waits for an input.
    fn takes(channel: &mut Channel) {
        let (never, _open) = pipe().unwrap();
        let event = channel.next(&Wait {
            interrupt: never.as_fd(),
            deadline: Some(Instant::now() + Duration::from_secs(10)),
            alive: &|| {},
        });
        assert!(matches!(event, Ok(Event::Input(_))));
    }

    /// The processor time that this thread has used.
    fn processor_time() -> Duration {
        let times = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())
    }

    #[test]
    fn what_is_written_is_answered_and_the_writer_sleeps_meanwhile() {
        let scene = Scene::new();
        let mut service = scene.service();
        service.tell(Stage::Refused, "an answer to somebody else");
        let mut writer = FifoWriter::find(&scene.path).unwrap();
        let reader = thread::spawn(move || {
            takes(&mut service);
            service.tell(Stage::Asking, "");
            service.tell(Stage::Asking, "the network is slow");
            // It is the duration that is tested.
            thread::sleep(Duration::from_millis(500));
            service.tell(Stage::Refused, "a wrong code");
            takes(&mut service);
            service.tell(Stage::Accepted, "open");
        });
        let said = RefCell::new(Vec::new());
        let before = processor_time();
        let outcome = writer.give(b"111676\n", scene.interrupt.as_fd(), |text| {
            said.borrow_mut().push(text.to_owned());
        });
        assert!(processor_time() - before < Duration::from_millis(50));
        assert_eq!(outcome.unwrap(), Outcome::Refused("a wrong code".into()));
        assert_eq!(said.into_inner(), ["the network is slow"]);
        assert_eq!(
            scene.give(&mut writer).unwrap(),
            Outcome::Accepted("open".into())
        );
        reader.join().unwrap();
    }

    #[test]
    fn it_says_so_if_there_is_no_answer() {
        let scene = Scene::new();
        let mut service = scene.service();
        let mut writer = FifoWriter::find(&scene.path).unwrap();
        let state = StateReader::open(&scene.path).unwrap();
        let now = Instant::now();
        let silent = writer.wait_for_outcome(&state, None, now, scene.interrupt.as_fd(), |_| {});
        let Outcome::Unknown(why) = silent.unwrap() else {
            panic!("it was silent");
        };
        assert!(why.contains("has not said yet"), "{why}");
        let reader = thread::spawn(move || takes(&mut service));
        let Outcome::Unknown(why) = scene.give(&mut writer).unwrap() else {
            panic!("it has ended");
        };
        assert!(why.contains("the service ended before"), "{why}");
        reader.join().unwrap();
    }

    #[test]
    fn a_service_of_an_older_release_is_not_waited_for() {
        let scene = Scene::new();
        let mut writer = scene.fifo();
        let reader = File::options().read(true).write(true).open(&scene.path);
        let Outcome::Unknown(why) = scene.give(&mut writer).unwrap() else {
            panic!("nothing answers");
        };
        assert!(why.contains("does not say what becomes of it"), "{why}");
        let mut written = [0; 7];
        reader.unwrap().read_exact(&mut written).unwrap();
        assert_eq!(&written, b"111676\n");
    }

    #[test]
    fn a_wait_for_the_outcome_ends_at_an_interrupt() {
        let mut scene = Scene::new();
        let _service = scene.service();
        let mut writer = FifoWriter::find(&scene.path).unwrap();
        scene.interrupter = None;
        let error = scene.give(&mut writer).unwrap_err().to_string();
        assert_eq!(
            error,
            "stopped by a signal; the code was written, and the service continues"
        );
    }

    #[test]
    fn a_fifo_that_nobody_reads_is_tried_for_a_while() {
        let mut scene = Scene::new();
        let mut writer = scene.fifo();
        let (start, before) = (Instant::now(), processor_time());
        let error = scene.give(&mut writer).unwrap_err();
        assert!(matches!(error, WriteError::NotAwaited(_)), "{error}");
        assert!(start.elapsed() >= OPENING_PATIENCE);
        assert!(processor_time() - before < Duration::from_millis(100));
        scene.interrupter = None;
        let error = scene.give(&mut writer).unwrap_err().to_string();
        assert_eq!(error, "stopped by a signal; nothing was written");
    }

    #[test]
    fn a_reader_that_comes_a_little_later_gets_the_code() {
        let scene = Scene::new();
        let writer = scene.fifo();
        let reader = thread::spawn({
            let path = scene.path.clone();
            // Waits for the writer.
            move || fs::read_to_string(path).unwrap()
        });
        writer.write(b"111676", scene.interrupt.as_fd()).unwrap();
        assert_eq!(reader.join().unwrap(), "111676");
    }

    #[test]
    fn a_full_fifo_is_waited_for_and_an_interrupt_ends_that() {
        let mut scene = Scene::new();
        let writer = scene.fifo();
        let document = vec![b'x'; 1 << 20];
        let reader = thread::spawn({
            let path = scene.path.clone();
            move || fs::read(path).unwrap()
        });
        writer.write(&document, scene.interrupt.as_fd()).unwrap();
        assert!(reader.join().unwrap() == document);
        let _reader = File::options()
            .read(true)
            .write(true)
            .open(&scene.path)
            .unwrap();
        scene.interrupter = None;
        let error = writer
            .write(&document, scene.interrupt.as_fd())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "stopped by a signal; it was not written as a whole"
        );
    }

    #[test]
    fn something_else_in_the_place_of_the_fifo_is_not_written_to() {
        let scene = Scene::new();
        let refusal = |path: &Path| FifoWriter::find(path).err().unwrap().to_string();
        assert!(refusal(&scene.path).contains("nothing waits for a code"));
        assert!(refusal(scene.directory.path()).contains("it is a directory"));
        let file = scene.directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file).contains("it is a regular file"));
        assert!(refusal(&file.join("mfa")).contains("cannot write to"));
        std::os::unix::fs::symlink(&file, &scene.path).unwrap();
        assert!(refusal(&scene.path).contains("it is a symbolic link"));
        assert!(refusal(Path::new("/dev/null")).contains("it is a socket or a device"));
        fs::remove_file(&scene.path).unwrap();

        let mut writer = scene.fifo();
        assert!(writer.is_there());
        fs::rename(&scene.path, scene.directory.path().join("moved")).unwrap();
        assert!(!writer.is_there());
        let taken = |writer: &FifoWriter| {
            let error = writer.open(scene.interrupt.as_fd()).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("something else has taken the place")
            );
        };
        mkfifo(&scene.path, Mode::S_IRWXU).unwrap();
        let _reader = File::options()
            .read(true)
            .write(true)
            .open(&scene.path)
            .unwrap();
        taken(&writer);
        // A file may get the number that the FIFO had.
        fs::remove_file(&scene.path).unwrap();
        fs::write(&scene.path, "").unwrap();
        let metadata = scene.path.metadata().unwrap();
        writer.identity = (metadata.dev(), metadata.ino());
        taken(&writer);
        // A link is not followed, wherever it leads.
        fs::rename(&scene.path, scene.directory.path().join("moved")).unwrap();
        std::os::unix::fs::symlink("moved", &scene.path).unwrap();
        let error = writer.open(scene.interrupt.as_fd()).unwrap_err();
        assert!(matches!(error, WriteError::Write { .. }), "{error}");
    }

    #[test]
    fn programs_do_not_inherit_it() {
        let scene = Scene::new();
        let writer = scene.fifo();
        let _reader = File::options()
            .read(true)
            .write(true)
            .open(&scene.path)
            .unwrap();
        let descriptor = writer.open(scene.interrupt.as_fd()).unwrap();
        let flags = fcntl(&descriptor, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
    }

    #[test]
    fn a_service_that_was_restarted_is_followed_if_it_has_the_same_owner() {
        let scene = Scene::new();
        let mut writer = scene.fifo();
        let restart = || {
            fs::rename(&scene.path, scene.directory.path().join("before")).unwrap();
            mkfifo(&scene.path, Mode::S_IRWXU).unwrap();
        };
        restart();
        writer.follow().unwrap();
        assert!(writer.is_there());
        restart();
        writer.owner = Uid::from_raw(writer.owner.as_raw() + 1);
        writer.follow().unwrap();
        assert!(!writer.is_there());
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let scene = Scene::new();
        let writer = scene.fifo();
        writer.check_directory().unwrap();
        let open = fs::Permissions::from_mode(0o777);
        fs::set_permissions(scene.directory.path(), open).unwrap();
        let error = writer.check_directory().unwrap_err().to_string();
        assert!(
            error.contains("every user can write to the directory"),
            "{error}"
        );
    }

    #[test]
    fn a_hint_follows_where_there_is_something_to_do() {
        let of = |errno: Errno| hint(&errno.into());
        assert!(of(Errno::EACCES).starts_with("; run this as root"));
        assert_eq!(of(Errno::EIO), "");
    }
}
