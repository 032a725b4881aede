//! A directory in which data keys are kept, and writing small files there so that a crash at any moment
//! leaves either the whole file or none.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{
    AtFlags, Flock, FlockArg, OFlag, PosixFadviseAdvice, RenameFlags, open, openat, posix_fadvise,
    renameat, renameat2,
};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat, stat};
use nix::unistd::{UnlinkatFlags, fsync, linkat, unlinkat};

use crate::fault_points::{self, Step};
use crate::file_error::{FileError, FileKind};
use crate::key_name::TEMPORARY_SUFFIX;

/// The lock is held for a few writes to the disk, never across a call of KMS.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// A process that has not been seen with the lock for this long may have released it meanwhile.
const SIGHT: Duration = Duration::from_secs(1);
/// More than a new key adds to any file.
const PROBE_BYTES: usize = 4096;
/// Where there are no locks, a temporary file of this age belongs to nobody who is still writing it.
const STALE_AGE: Duration = Duration::from_secs(24 * 3600);

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
    /// What was opened, which is relative to the working directory if the caller's path was.
    opened: PathBuf,
    /// The turn between the threads of this process. They would not come in order to the lock of the file system, which
    /// is asked for again and again.
    threads: Threads,
}

type Threads = Arc<Mutex<Option<Foreign>>>;

/// Another process has the turn.
#[derive(Debug, Clone, Copy)]
struct Foreign {
    since: Instant,
    seen: Instant,
}

/// One for each directory, by device and inode, however often it is opened.
static THREADS: Mutex<BTreeMap<(u64, u64), Threads>> = Mutex::new(BTreeMap::new());

/// A file of the directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileName<'a> {
    pub kind: FileKind,
    pub name: &'a str,
}

/// The turn at writing, until it is dropped or the process dies.
pub(crate) struct Turn<'a> {
    /// Released first.
    lock: Option<Flock<OwnedFd>>,
    _among_threads: MutexGuard<'a, Option<Foreign>>,
}

/// Who may use a file.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    mode: Mode,
    /// User and group; `None`: those of the process.
    owner: Option<(u32, u32)>,
}

impl Access {
    /// Only the user who makes it.
    pub const OURS: Self = Self {
        mode: Mode::S_IRUSR.union(Mode::S_IWUSR),
        owner: None,
    };

    /// The same as another file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            mode: Mode::from_bits_truncate(metadata.mode()),
            owner: Some((metadata.uid(), metadata.gid())),
        }
    }
}

impl Directory {
    /// Opens `path`, or the working directory if it is empty.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let (to_open, path) = if path.as_os_str().is_empty() {
            let here = Path::new(".");
            let full = std::env::current_dir().unwrap_or_else(|_| here.to_owned());
            (here, full)
        } else {
            (
                path,
                std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            )
        };
        let failed = |error| FileError::directory("open", &path, error);
        let descriptor = open(to_open, DIRECTORY_FLAGS, Mode::empty()).map_err(failed)?;
        let status = fstat(&descriptor).map_err(failed)?;
        let mut all = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = all.entry((status.st_dev, status.st_ino)).or_default();
        Ok(Self {
            threads: Arc::clone(threads),
            descriptor,
            opened: to_open.to_owned(),
            path,
        })
    }

    /// The absolute path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if the path no longer leads to this directory, so that whoever opens it next would not find its files.
    pub fn expect_in_place(&self) -> Result<(), FileError> {
        let failed = |error| self.error("examine", error);
        let this = fstat(&self.descriptor).map_err(failed)?;
        match stat(&self.opened) {
            Ok(there) if (there.st_dev, there.st_ino) == (this.st_dev, this.st_ino) => Ok(()),
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {
                Err(FileError::Replaced(self.path.clone()))
            }
            // A directory above it may no longer be searched, which does not say that this one was moved.
            Err(Errno::EACCES) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// The same, and fails if a file of this length cannot be written, as on a full or read-only disk.
    pub fn expect_writable(&self, file: FileName<'_>, bytes: usize) -> Result<(), FileError> {
        self.expect_in_place()?;
        let mut temporary = self.create_temporary(file)?;
        let written = temporary.file.write_all(&vec![0; bytes + PROBE_BYTES]);
        written.map_err(|error| self.write_error(file, "write", error))
    }

    pub fn path_of(&self, file: FileName<'_>) -> PathBuf {
        self.path.join(file.name)
    }

    /// The names in the directory.
    pub fn names(&self) -> Result<Vec<CString>, FileError> {
        let failed = |error| self.error("read", error);
        let mut directory = Dir::from_fd(self.reopen().map_err(failed)?).map_err(failed)?;
        directory
            .iter()
            .map(|entry| Ok(entry.map_err(failed)?.file_name().to_owned()))
            .collect()
    }

    /// Makes sure that the names in the directory survive a power failure.
    pub fn sync(&self) -> Result<(), FileError> {
        fsync(&self.descriptor).map_err(|error| self.error("sync", error))
    }

    /// Opens a regular file for reading.
    pub fn open_file(&self, file: FileName<'_>) -> Result<(File, Metadata), FileError> {
        // Without O_NONBLOCK a FIFO of that name would stop the server.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let opened = openat(&self.descriptor, file.name, flags, Mode::empty())
            .map(File::from)
            .map_err(|error| self.file_error(file, "open", error))?;
        let metadata = opened
            .metadata()
            .map_err(|error| self.read_error(file, error))?;
        if !metadata.is_file() {
            return Err(self.unusable(file, "is not a regular file".into()));
        }
        Ok((opened, metadata))
    }

    /// Reads all of an open file, and one byte more than `max_bytes` of a longer one.
    pub fn content(
        &self,
        file: FileName<'_>,
        opened: &File,
        max_bytes: usize,
    ) -> Result<Vec<u8>, FileError> {
        let mut content = Vec::new();
        opened
            .take(max_bytes as u64 + 1)
            .read_to_end(&mut content)
            .map_err(|error| self.read_error(file, error))?;
        Ok(content)
    }

    pub fn exists(&self, file: FileName<'_>) -> Result<bool, FileError> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.descriptor, file.name, flags, Mode::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(self.file_error(file, "look up", error)),
        }
    }

    /// When a file was last written.
    pub fn modified(&self, file: FileName<'_>) -> Result<SystemTime, FileError> {
        let status = fstatat(&self.descriptor, file.name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|error| self.file_error(file, "examine", error))?;
        let seconds = u64::try_from(status.st_mtime).unwrap_or_default();
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// Waits for the turn at writing, between threads and between processes.
    ///
    /// Errors: another process does not end its turn.
    pub fn turn(&self) -> Result<Turn<'_>, FileError> {
        self.turn_within(LOCK_PATIENCE)
    }

    fn turn_within(&self, patience: Duration) -> Result<Turn<'_>, FileError> {
        let mut among_threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = Instant::now();
        // Threads that come one after the other do not wait for the same process one after the other.
        let since = match *among_threads {
            Some(foreign) if now - foreign.seen < SIGHT => foreign.since,
            _ => now,
        };
        loop {
            among_threads = match self.turn_of(among_threads)? {
                Ok(turn) => return Ok(turn),
                Err(still) => still,
            };
            now = Instant::now();
            *among_threads = Some(Foreign { since, seen: now });
            if now - since >= patience {
                return Err(self.error("lock", Errno::EWOULDBLOCK));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
    }

    /// Takes the turn unless somebody else has it.
    pub fn try_turn(&self) -> Result<Option<Turn<'_>>, FileError> {
        match self.threads.try_lock() {
            Ok(among_threads) => Ok(self.turn_of(among_threads)?.ok()),
            Err(TryLockError::Poisoned(poisoned)) => Ok(self.turn_of(poisoned.into_inner())?.ok()),
            Err(TryLockError::WouldBlock) => Ok(None),
        }
    }

    /// Takes the turn between processes for the thread that has it in this one. Gives that back if another process has it.
    fn turn_of<'a>(
        &self,
        mut among_threads: MutexGuard<'a, Option<Foreign>>,
    ) -> Result<Result<Turn<'a>, MutexGuard<'a, Option<Foreign>>>, FileError> {
        // Opened again: a lock belongs to the open file.
        let descriptor = self.reopen().map_err(|error| self.error("open", error))?;
        let lock = match Flock::lock(descriptor, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Some(lock),
            Err((_, Errno::EWOULDBLOCK)) => return Ok(Err(among_threads)),
            // Network file systems that cannot lock a directory: temporary names that nobody else has, and
            // a rename that never replaces a file, still keep two processes apart.
            Err((_, error)) if cannot_lock(error) => None,
            Err((_, error)) => return Err(self.error("lock", error)),
        };
        *among_threads = None;
        Ok(Ok(Turn {
            lock,
            _among_threads: among_threads,
        }))
    }

    /// Locks a file of that name for as long as the process lives, or the lock is kept. `None` where
    /// nothing can be written or locked.
    pub fn lock_for_life(&self, name: &str) -> Result<Option<Flock<File>>, FileError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = match openat(&self.descriptor, name, flags, Access::OURS.mode) {
            Ok(descriptor) => File::from(descriptor),
            Err(Errno::EACCES | Errno::EPERM | Errno::EROFS) => return Ok(None),
            Err(error) => return Err(self.error("lock", error)),
        };
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(lock)),
                Err((_, error)) if cannot_lock(error) => return Ok(None),
                Err((again, Errno::EWOULDBLOCK)) if Instant::now() < until => file = again,
                Err((_, Errno::EWOULDBLOCK)) => return Err(FileError::InUse(self.path.clone())),
                Err((_, error)) => return Err(self.error("lock", error)),
            }
            std::thread::sleep(LOCK_PAUSE);
        }
    }

    /// Shares the lock of a file that [`Self::lock_for_life`] locks, and changes nothing. `None` if there is no such file,
    /// or it cannot be locked here.
    ///
    /// Errors: somebody has locked it for life.
    pub fn share_lock(&self, name: &str) -> Result<Option<Flock<File>>, FileError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(&self.descriptor, name, flags, Mode::empty()) {
            Ok(descriptor) => File::from(descriptor),
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(self.error("lock", error)),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, error)) if cannot_lock(error) => Ok(None),
            Err((_, Errno::EWOULDBLOCK)) => Err(FileError::InUse(self.path.clone())),
            Err((_, error)) => Err(self.error("lock", error)),
        }
    }

    /// For the owner of the directory alone.
    pub fn access_of_owner(&self) -> Result<Access, FileError> {
        let directory = fstat(&self.descriptor).map_err(|error| self.error("examine", error))?;
        Ok(Access {
            owner: Some((directory.st_uid, directory.st_gid)),
            ..Access::OURS
        })
    }

    /// Writes `content` to the disk under a name that nobody else has, to be published as `file`.
    pub fn write_temporary(
        &self,
        file: FileName<'_>,
        content: &[u8],
        access: Access,
    ) -> Result<Temporary<'_>, FileError> {
        let mut temporary = self.create_temporary(file)?;
        fault_points::reach_of(file.kind, Step::TemporaryMade);
        // Before there is something to be read.
        if let Some((uid, gid)) = access.owner {
            fchown(&temporary.file, Some(uid), Some(gid)).map_err(|source| FileError::File {
                action: "change the owner of the new",
                kind: file.kind,
                path: self.path_of(file),
                source,
                advice: "run this as root, or as the owner of the file",
            })?;
        }
        // A umask of 0277 or the like takes bits away.
        fchmod(&temporary.file, access.mode)
            .map_err(|error| self.write_error(file, "set the mode of", error.into()))?;
        fault_points::write_all(file.kind, &mut temporary.file, content)
            .inspect(|()| fault_points::reach_of(file.kind, Step::Written))
            .and_then(|()| temporary.file.sync_all())
            .inspect(|()| fault_points::reach_of(file.kind, Step::FileSynced))
            .map_err(|error| self.write_error(file, "write", error))?;
        temporary.check_disk(file, content)?;
        Ok(temporary)
    }

    fn create_temporary(&self, file: FileName<'_>) -> Result<Temporary<'_>, FileError> {
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let name = temporary_name(file.name);
        let created = openat(&self.descriptor, name.as_str(), flags, Access::OURS.mode)
            .map_err(|error| self.write_error(file, "create", error.into()))?;
        Ok(Temporary {
            directory: self,
            name,
            file: created.into(),
            is_published: false,
        })
    }

    /// Removes temporary files that nobody is writing any more. Returns their names.
    ///
    /// Whoever writes one holds the turn, so with the turn in hand nobody is at it. Where there are no
    /// locks, their age decides.
    pub fn remove_stale(&self, temporaries: Vec<String>) -> Result<Vec<String>, FileError> {
        let Some(turn) = self.try_turn()? else {
            return Ok(Vec::new());
        };
        let mut removed = Vec::new();
        for name in temporaries {
            let file = FileName {
                kind: FileKind::Key,
                name: &name,
            };
            let is_old = || {
                self.modified(file)
                    .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > STALE_AGE))
            };
            if turn.lock.is_some() || is_old() {
                match unlinkat(&self.descriptor, name.as_str(), UnlinkatFlags::NoRemoveDir) {
                    Ok(()) => removed.push(name),
                    Err(Errno::ENOENT) => {}
                    Err(error) => return Err(self.error("remove a left-over file from", error)),
                }
            }
        }
        Ok(removed)
    }

    pub fn error(&self, action: &'static str, error: Errno) -> FileError {
        FileError::directory(action, &self.path, error)
    }

    pub fn file_error(&self, file: FileName<'_>, action: &'static str, error: Errno) -> FileError {
        FileError::file(file.kind, self.path_of(file), action, error)
    }

    pub fn write_error(
        &self,
        file: FileName<'_>,
        action: &'static str,
        error: io::Error,
    ) -> FileError {
        FileError::writing(file.kind, self.path_of(file), action, error)
    }

    fn read_error(&self, file: FileName<'_>, source: io::Error) -> FileError {
        FileError::File {
            action: "read",
            kind: file.kind,
            path: self.path_of(file),
            source,
            advice: "check the disk",
        }
    }

    pub fn unusable(&self, file: FileName<'_>, problem: String) -> FileError {
        FileError::Unusable {
            kind: file.kind,
            path: self.path_of(file),
            problem: format!("{problem}; restore it from a backup of the key files"),
        }
    }

    fn reopen(&self) -> nix::Result<OwnedFd> {
        openat(&self.descriptor, ".", DIRECTORY_FLAGS, Mode::empty())
    }
}

const DIRECTORY_FLAGS: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

fn cannot_lock(error: Errno) -> bool {
    matches!(
        error,
        Errno::EBADF | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS
    )
}

/// A name that no other process has, on any host that shares the directory: threads, containers and hosts
/// have process ids in common.
pub(crate) fn temporary_name(name: &str) -> String {
    // Its keys are random, from the operating system.
    let random = RandomState::new().hash_one(name);
    format!(".{name}.{random:016x}{TEMPORARY_SUFFIX}")
}

/// A file on disk that has no name yet under which anybody looks for it; removed when dropped.
pub(crate) struct Temporary<'a> {
    directory: &'a Directory,
    name: String,
    file: File,
    is_published: bool,
}

impl Temporary<'_> {
    /// Reads back what was written: from the disk, because the system lets go of its copy first.
    fn check_disk(&self, file: FileName<'_>, written: &[u8]) -> Result<(), FileError> {
        let failed = |error| FileError::File {
            action: "read back the new",
            kind: file.kind,
            path: self.directory.path_of(file),
            source: error,
            advice: "check the disk",
        };
        posix_fadvise(
            self.file.as_fd(),
            0,
            0,
            PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        )
        .map_err(|error| failed(error.into()))?;
        let mut on_disk = vec![0; written.len()];
        self.file.read_exact_at(&mut on_disk, 0).map_err(failed)?;
        if on_disk != written {
            return Err(failed(io::Error::other(
                "the disk returns something other than what was written",
            )));
        }
        Ok(())
    }

    /// Gives the file its name for good; false if the name is taken.
    pub fn publish_as_new(mut self, file: FileName<'_>) -> Result<bool, FileError> {
        let directory = &self.directory.descriptor;
        let renamed = renameat2(
            directory,
            self.name.as_str(),
            directory,
            file.name,
            RenameFlags::RENAME_NOREPLACE,
        );
        let published = match renamed {
            // File systems that cannot rename without replacing; a link never replaces.
            Err(Errno::EINVAL | Errno::ENOSYS) => linkat(
                directory,
                self.name.as_str(),
                directory,
                file.name,
                AtFlags::empty(),
            ),
            renamed => renamed.inspect(|()| self.is_published = true),
        };
        match published {
            Ok(()) => self.sync(file).map(|()| true),
            Err(Errno::EEXIST) => Ok(false),
            Err(error) => Err(self.directory.write_error(file, "rename", error.into())),
        }
    }

    /// Gives the file its name for good, in the place of the one that has it.
    pub fn replace(mut self, file: FileName<'_>) -> Result<(), FileError> {
        let directory = &self.directory.descriptor;
        renameat(directory, self.name.as_str(), directory, file.name)
            .map_err(|error| self.directory.write_error(file, "replace", error.into()))?;
        self.is_published = true;
        self.sync(file)
    }

    fn sync(&self, file: FileName<'_>) -> Result<(), FileError> {
        fault_points::reach_of(file.kind, Step::Named);
        self.directory.sync()?;
        fault_points::reach_of(file.kind, Step::DirectorySynced);
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_published {
            // What stays is removed at the next start.
            let _ = unlinkat(
                &self.directory.descriptor,
                self.name.as_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    fn file(name: &str) -> FileName<'_> {
        FileName {
            kind: FileKind::Key,
            name,
        }
    }

    fn open() -> (tempfile::TempDir, Directory) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        (temporary, directory)
    }

    #[test]
    fn a_turn_that_another_process_does_not_end_is_an_error() {
        const PATIENCE: Duration = Duration::from_millis(200);
        const THREADS: u32 = 100;
        let (_temporary, directory) = open();
        let flag = FlockArg::LockExclusiveNonblock;
        let other = Flock::lock(directory.reopen().unwrap(), flag).unwrap();
        assert!(directory.try_turn().unwrap().is_none());
        let start = Instant::now();
        assert!(directory.turn_within(PATIENCE).is_err());
        assert!(start.elapsed() >= PATIENCE);
        // The next ones have waited with it.
        for _ in 1..THREADS {
            assert!(directory.turn_within(PATIENCE).is_err());
        }
        assert!(start.elapsed() < THREADS / 2 * PATIENCE);
        drop(other);
        assert!(directory.try_turn().unwrap().is_some());
    }

    #[test]
    fn threads_wait_for_each_other_however_long_it_takes() {
        const TURN: Duration = Duration::from_millis(20);
        const PATIENCE: Duration = Duration::from_millis(100);
        const THREADS: u32 = 32;
        assert!(TURN * THREADS > 5 * PATIENCE);
        let (temporary, directory) = open();
        // As the manifest is in the directory of the key files.
        let again = Directory::open(temporary.path()).unwrap();
        let take = |directory: &Directory| {
            let turn = directory.turn_within(PATIENCE).unwrap();
            std::thread::sleep(TURN);
            assert!(turn.lock.is_some());
        };
        std::thread::scope(|threads| {
            for _ in 0..THREADS / 2 {
                threads.spawn(|| take(&directory));
                threads.spawn(|| take(&again));
            }
        });
    }

    #[test]
    fn what_is_not_published_is_removed() {
        let (_temporary, directory) = open();
        let write = || directory.write_temporary(file("key"), b"wrapped", Access::OURS);
        let names = || directory.names().unwrap().len();
        let before = names();
        let written = write().unwrap();
        assert_eq!(names(), before + 1);
        drop(written);
        assert_eq!(names(), before);
        assert!(write().unwrap().publish_as_new(file("key")).unwrap());
        assert!(!write().unwrap().publish_as_new(file("key")).unwrap());
        assert_eq!(names(), before + 1);
    }

    #[test]
    fn a_symbolic_link_exists_and_is_never_followed() {
        let (temporary, directory) = open();
        let elsewhere = tempfile::tempdir().unwrap();
        let target = elsewhere.path().join("target");
        symlink(&target, temporary.path().join("link")).unwrap();
        assert!(directory.exists(file("link")).unwrap());
        assert!(directory.lock_for_life("link").is_err());
        assert!(!target.exists());
        std::fs::write(&target, "").unwrap();
        assert!(directory.open_file(file("link")).is_err());
        assert!(directory.lock_for_life("link").is_err());
    }

    #[test]
    fn no_file_is_inherited_by_programs() {
        let (_temporary, directory) = open();
        let written = directory
            .write_temporary(file("key"), b"wrapped", Access::OURS)
            .unwrap();
        let lock = directory.lock_for_life("lock").unwrap().unwrap();
        let (read, _) = directory.open_file(file("lock")).unwrap();
        for descriptor in [
            written.file.as_fd(),
            lock.as_fd(),
            read.as_fd(),
            directory.descriptor.as_fd(),
        ] {
            let flags = fcntl(descriptor, FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
        }
    }

    #[test]
    fn what_the_disk_returns_is_compared_with_what_was_written() {
        let (_temporary, directory) = open();
        let file = file("key");
        let written = directory
            .write_temporary(file, b"wrapped", Access::OURS)
            .unwrap();
        written.check_disk(file, b"wrapped").unwrap();
        let changed = written.check_disk(file, b"wrapper").unwrap_err();
        assert!(changed.to_string().contains("something other"), "{changed}");
        written.check_disk(file, b"wrapped key").unwrap_err();
    }

    #[test]
    fn a_file_was_modified_when_it_was_written() {
        let (_temporary, directory) = open();
        let before = SystemTime::now() - Duration::from_secs(2);
        directory
            .write_temporary(file("key"), b"wrapped", Access::OURS)
            .unwrap()
            .replace(file("key"))
            .unwrap();
        let modified = directory.modified(file("key")).unwrap();
        assert!(before < modified && modified <= SystemTime::now());
    }
}
