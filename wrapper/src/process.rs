//! What a process that holds credentials or data keys does first.

use std::{
    io,
    os::fd::{AsRawFd, IntoRawFd},
};

use nix::{
    fcntl::{OFlag, open},
    sys::{
        prctl,
        resource::{RLIM_INFINITY, Resource, getrlimit},
        stat::Mode,
    },
};
use rustix::mm::{MlockAllFlags, mlockall};

use crate::{on_abort, process_status};

/// Keeps what we hold from core dumps and from other processes of our user (exec undoes it), and
/// our descriptors from taking the place of standard ones that our parent has closed.
pub fn protect() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    on_abort::clean_up()?;
    loop {
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        if null.as_raw_fd() > io::stderr().as_raw_fd() {
            return Ok(());
        }
        // Stays open until exec closes it, so that the command finds the place as empty as we did.
        let _ = null.into_raw_fd();
    }
}

/// Locks all memory, present and to come, page by page as it is used. Under a limit it is left
/// alone: reaching that later would end the process. The error is the limit, in bytes.
pub fn lock_memory() -> Result<(), u64> {
    let limit_bytes = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if (limit_bytes == RLIM_INFINITY || may_lock_without_limit()) && mlockall(flags).is_ok() {
        return Ok(());
    }
    Err(limit_bytes)
}

/// Whether we have CAP_IPC_LOCK, capability 14 of capabilities(7).
fn may_lock_without_limit() -> bool {
    process_status::mask("CapEff") >> 14 & 1 == 1
}
