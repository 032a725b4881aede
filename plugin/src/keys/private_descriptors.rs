//! Opens the server's own files without releasing its locks.

#![allow(unsafe_code)]

use core::ffi::{c_int, c_uint};
use std::io;
use std::thread;

use nix::errno::Errno;
use nix::libc::{SYS_close_range, syscall};
use nix::sched::{CloneFlags, unshare};

/// `CLOSE_RANGE_UNSHARE` of `linux/close_range.h`.
const CLOSE_RANGE_UNSHARE: c_uint = 1 << 1;
/// Standard input, output and error stay open.
const FIRST_TO_CLOSE: c_int = 3;

/// Runs `work` in a thread with a private table of file descriptors.
///
/// InnoDB keeps other servers out with fcntl(2) locks. A process loses such a lock as soon as it closes any
/// descriptor of the file. The kernel does not count a close in a private table as one by the process.
///
/// Errors: no thread can be started, or the system forbids a private table (Linux before 5.9 in a container
/// that forbids unshare(2)).
pub fn run<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let work = || {
            unshare_descriptors()?;
            Ok(work())
        };
        let thread = thread::Builder::new().spawn_scoped(scope, work)?;
        let panicked = |_| Err(io::Error::other("the thread panicked"));
        thread.join().unwrap_or_else(panicked)
    })
}

/// Source: close_range(2).
fn unshare_descriptors() -> io::Result<()> {
    // SAFETY: the call makes the table private to this thread before it closes anything, and this thread owns
    // no descriptor above the first three. It goes through syscall(2) because not every C library has it.
    let closed = unsafe {
        syscall(
            SYS_close_range,
            FIRST_TO_CLOSE as c_uint,
            c_uint::MAX,
            CLOSE_RANGE_UNSHARE,
        )
    };
    match Errno::result(closed) {
        Ok(_) => Ok(()),
        Err(_) => Ok(unshare(CloneFlags::CLONE_FILES)?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;

    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc::{F_UNLCK, F_WRLCK, SEEK_SET, flock};

    use super::*;

    /// A lock of the whole file.
    const LOCK: flock = flock {
        l_type: F_WRLCK as _,
        l_whence: SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };

    /// Whether a process holds the lock, as another process sees it. A lock of an open file description,
    /// which is asked for here, conflicts with that of the process it is in (fcntl(2)).
    fn is_locked(probe: &File) -> bool {
        let mut lock = LOCK;
        fcntl(probe, FcntlArg::F_OFD_GETLK(&mut lock)).unwrap();
        lock.l_type != F_UNLCK as i16
    }

    #[test]
    fn reading_a_file_in_the_thread_keeps_its_lock_and_reading_it_elsewhere_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ibdata1");
        fs::write(&path, "page").unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        // Stays open to the end: closing it would end the lock, too.
        let probe = File::options().read(true).write(true).open(&path).unwrap();
        assert!(!is_locked(&probe));
        fcntl(&file, FcntlArg::F_SETLK(&LOCK)).unwrap();
        assert_eq!(run(|| fs::read(&path).unwrap()).unwrap(), b"page");
        assert!(is_locked(&probe));
        // Control: without the thread, the lock is lost.
        fs::read(&path).unwrap();
        assert!(!is_locked(&probe));
    }

    #[test]
    fn the_process_keeps_its_descriptors() {
        let file = File::open("/proc/self/status").unwrap();
        let number = file.as_raw_fd();
        let is_open = || fs::exists(format!("/proc/thread-self/fd/{number}")).unwrap();
        assert!(!run(is_open).unwrap());
        assert!(is_open());
    }
}
