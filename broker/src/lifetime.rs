//! How long the broker runs: as long as the server, or until a signal.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use service::signals::Signals;
use tokio::net::unix::pipe;
use tracing::info;

/// How long the broker runs.
pub(crate) enum Lifetime {
    /// As long as this process, which is or becomes the server.
    OfServer(OwnedFd),
    /// Until a signal.
    UntilSignal(Signals),
}

impl Lifetime {
    /// As long as a process, which waits for the broker at this time, so its number cannot have been
    /// reused.
    pub fn of_server(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self::OfServer(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Waits for the end, and logs the reason.
    pub async fn wait(&self) -> io::Result<()> {
        match self {
            Self::OfServer(process) => {
                readable(process.as_fd()).await?;
                info!("the server has ended, so its broker exits");
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

/// Creating an `AsyncFd` is unsafe. The receiver of a pipe works as well for any descriptor that can be
/// polled, because nothing is read from it.
async fn readable(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor = descriptor.try_clone_to_owned()?;
    pipe::Receiver::from_owned_fd_unchecked(descriptor)?
        .readable()
        .await
}
