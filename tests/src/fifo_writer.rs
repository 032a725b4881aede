//! A writer that does not behave like `echo`.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{PATIENCE_SECONDS, wait_until};

/// A FIFO opened for writing, until dropped.
pub struct FifoWriter {
    fifo: File,
}

impl FifoWriter {
    /// Opens it as soon as it is there and somebody reads it.
    pub fn open(path: &Path) -> Self {
        let mut opened = None;
        wait_until("a reader of the FIFO", || {
            opened = OpenOptions::new()
                .write(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(path)
                .ok();
            opened.is_some()
        });
        let fifo = opened.unwrap();
        fcntl(&fifo, FcntlArg::F_SETFL(OFlag::O_WRONLY)).unwrap();
        // A pipe of one page takes bytes only when it is empty.
        fcntl(&fifo, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        Self { fifo }
    }

    /// Writes, and returns when all of it has been read.
    pub fn write(&mut self, bytes: &[u8]) {
        self.fifo.write_all(bytes).unwrap();
        let mut descriptors = [PollFd::new(self.fifo.as_fd(), PollFlags::POLLOUT)];
        let patience = PollTimeout::try_from(PATIENCE_SECONDS * 1000).unwrap();
        assert_eq!(poll(&mut descriptors, patience), Ok(1), "nobody reads");
    }
}
