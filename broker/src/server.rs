//! What the broker lives for: the server's process, or until a signal.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use iam_kms_wrapper::signals::Signals;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tracing::info;

/// The process that is, or becomes, the server.
pub(crate) struct Server {
    pidfd: OwnedFd,
}

impl Server {
    /// Opens the process. It waits for us while we do, so the number cannot be another's yet.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            pidfd: pidfd_open(pid, PidfdFlags::empty())?,
        })
    }

    /// Returns when it has ended.
    pub fn wait(&self) -> io::Result<()> {
        wait_readable(self.pidfd.as_fd())?;
        info!("the server has ended, and so does its broker");
        Ok(())
    }
}

/// Returns when a signal asks us to end.
pub(crate) fn wait_for_signal(signals: &Signals) -> io::Result<()> {
    wait_readable(signals.descriptor())?;
    if let Some(signal) = signals.received() {
        info!("ended by {signal}");
    }
    Ok(())
}

fn wait_readable(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        match poll(
            &mut [PollFd::new(descriptor, PollFlags::POLLIN)],
            PollTimeout::NONE,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
