//! The protection of the broker's process, before it reads a secret.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{close, daemon, dup2_stdin, dup2_stdout},
};
use service::{on_abort, process};
use tracing::info;

/// Continues as a child of init, in its own session. The process that `iam-kms-wrapper` started ends
/// here, because the server would never reap it.
///
/// Must be called before the first thread is started: only the calling thread continues.
pub(crate) fn leave_parent() -> io::Result<()> {
    let keep_standard_streams = true;
    Ok(daemon(false, keep_standard_streams)?)
}

/// Prevents core dumps, ptrace by other processes of this user, new privileges and, if allowed,
/// swapping; and makes new files private.
pub(crate) fn harden() -> io::Result<()> {
    process::refuse_dumps()?;
    prctl::set_no_new_privs()?;
    on_abort::clean_up()?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    if let Err(limit_bytes) = process::lock_memory() {
        info!(
            "memory is not locked and may be swapped out (RLIMIT_MEMLOCK is {limit_bytes} bytes); \
             set LimitMEMLOCK=infinity in the unit, or encrypt the swap"
        );
    }
    Ok(())
}

/// Returns the number of connections that all peers together may have: the number of descriptors
/// without those that the broker needs. Raises the limit of descriptors first, as far as allowed.
pub(crate) fn max_connections() -> usize {
    const WANTED: u64 = 8192;
    const OWN: u64 = 256;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 0;
    };
    let raised = WANTED.clamp(soft, hard.max(soft));
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, raised, hard) {
        Ok(()) => raised,
        Err(_) => soft,
    };
    // With a small limit, half of it.
    usize::try_from(limit.saturating_sub(OWN).max(limit / 2)).unwrap_or(usize::MAX)
}

/// Closes all descriptors but the standard ones, which belong to the server.
///
/// Must be called before this process opens any.
pub(crate) fn close_inherited_descriptors() -> io::Result<()> {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > io::stderr().as_raw_fd())
        .collect();
    for descriptor in open {
        match close(descriptor) {
            // The descriptor that reads the directory is closed already.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Closes the pipes to `iam-kms-wrapper`.
pub(crate) fn close_standard_streams() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(null.as_fd())?;
    Ok(dup2_stdout(null.as_fd())?)
}
