//! Turns at making key files, between threads and between processes.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{FileError, KeyDirectory};

/// The lock is held for a few writes to the disk, never across a call of KMS.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// The lock, until it is dropped or the process dies.
pub(super) struct DirectoryLock {
    _lock: Option<Flock<OwnedFd>>,
}

impl KeyDirectory {
    /// Locks the directory. It is opened anew for that: threads would share a lock on the same
    /// open file.
    pub(super) fn lock(&self) -> Result<DirectoryLock, FileError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.try_lock()? {
                Some(lock) => return Ok(lock),
                None if Instant::now() < until => std::thread::sleep(PAUSE),
                None => return Err(self.directory_error("lock", Errno::EWOULDBLOCK)),
            }
        }
    }

    /// Locks the directory unless somebody else has.
    pub(super) fn try_lock(&self) -> Result<Option<DirectoryLock>, FileError> {
        let descriptor = self
            .reopen()
            .map_err(|error| self.directory_error("open", error))?;
        match Flock::lock(descriptor, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(DirectoryLock { _lock: Some(lock) })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            // Network file systems that cannot lock a directory: the rename that never replaces a
            // file still keeps two processes from making the same one.
            Err((_, Errno::EBADF | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS)) => {
                Ok(Some(DirectoryLock { _lock: None }))
            }
            Err((_, error)) => Err(self.directory_error("lock", error)),
        }
    }
}
