//! What the broker lives for: the server's process, or until a signal.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use service::signals::Signals;
use tokio::net::unix::pipe;
use tracing::info;

/// How long the broker lives.
pub(crate) enum Lifetime {
    /// As long as the process that is, or becomes, the server.
    OfServer(OwnedFd),
    /// Until a signal.
    UntilSignal(Signals),
}

impl Lifetime {
    /// That of a process. It waits for us meanwhile, so the number cannot be another's yet.
    pub fn of_server(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self::OfServer(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Returns when it is over, and logs why.
    pub async fn wait(&self) -> io::Result<()> {
        match self {
            Self::OfServer(process) => {
                readable(process.as_fd()).await?;
                info!("the server has ended, and so does its broker");
            }
            Self::UntilSignal(signals) => {
                readable(signals.descriptor()).await?;
                if let Some(signal) = signals.received() {
                    info!("ended by {signal}");
                }
            }
        }
        Ok(())
    }
}

/// `AsyncFd` is unsafe to make. The receiver of a pipe does as well for any descriptor that can be
/// polled: nothing is read from it.
async fn readable(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor = descriptor.try_clone_to_owned()?;
    pipe::Receiver::from_owned_fd_unchecked(descriptor)?
        .readable()
        .await
}
