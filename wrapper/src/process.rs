//! What a process that holds credentials does first.

use std::{
    io,
    os::fd::{AsRawFd, IntoRawFd},
};

use nix::{
    fcntl::{OFlag, open},
    sys::{prctl, stat::Mode},
};

/// Keeps what we hold from core dumps and from other processes of our user (exec undoes it), and
/// our descriptors from taking the place of standard ones that our parent has closed.
pub fn protect() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    loop {
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        if null.as_raw_fd() > io::stderr().as_raw_fd() {
            return Ok(());
        }
        // Stays open until exec closes it, so that the command finds the place as empty as we did.
        let _ = null.into_raw_fd();
    }
}
