//! The descriptors that systemd passes to the service: takes ours out and leaves the others for the
//! command.
//!
//! mariadbd takes all descriptors that `LISTEN_FDS` counts for sockets to listen on, and aborts if one
//! is not. Source: sd_listen_fds(3).

use std::{
    env,
    fs::File,
    io,
    os::{
        fd::RawFd,
        unix::{fs::OpenOptionsExt, net::UnixDatagram},
    },
};

use nix::{fcntl::OFlag, unistd::close};
use sendfd::{RecvWithFd, SendWithFd};

/// A descriptor that was taken out, and the remaining ones.
pub struct TakenDescriptor {
    /// The file, reopened for reading.
    pub file: io::Result<File>,
    /// Names of those that remain for the command, from descriptor 3 on.
    pub left: Vec<String>,
}

/// Takes the descriptor with this `name` out of those that systemd has passed to this process, and
/// moves the others down. If there is none, returns `None` and changes nothing.
pub fn take(name: &str) -> io::Result<Option<TakenDescriptor>> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    if !names.split(':').any(|known| known == name) {
        return Ok(None);
    }
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(None); // those of another process, whose `LISTEN_PID` is not ours
    }
    let passed: Vec<_> = sd_notify::listen_fds_with_names()?.collect();
    let Some((number, _)) = passed.iter().rfind(|(_, known)| known == name) else {
        return Ok(None);
    };
    // Reopened, because using an inherited number takes `unsafe`; non-blocking, in case it is a FIFO.
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(format!("/proc/self/fd/{number}"));
    let all: Vec<_> = passed.iter().map(|(number, _)| *number).collect();
    let (kept, left): (Vec<_>, _) = passed
        .into_iter()
        .filter(|(_, known)| known != name)
        .unzip();
    renumber(&all, &kept)?;
    Ok(Some(TakenDescriptor { file, left }))
}

/// Closes `all` and moves the `kept` ones to 3 and up, without close-on-exec.
///
/// They are sent through a socket, because the kernel assigns the lowest free numbers, in order, to
/// what is received. Another way would take `unsafe`.
fn renumber(all: &[RawFd], kept: &[RawFd]) -> io::Result<()> {
    let (sender, receiver) = UnixDatagram::pair()?;
    sender.send_with_fd(&[0], kept)?;
    for number in all {
        close(*number)?;
    }
    let mut numbers = vec![-1; kept.len()];
    receiver.recv_with_fd(&mut [0], &mut numbers)?;
    if numbers.iter().copied().eq((3..).take(kept.len())) {
        return Ok(());
    }
    Err(io::Error::other("they cannot be numbered from 3 on"))
}
