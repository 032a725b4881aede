//! What the broker does to itself before it touches a secret.

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

/// Continues as a child of init, in a session of its own. The process that `iam-kms-wrapper`
/// started ends here, so that the server gets no child that it would never reap.
///
/// Must be called before the first thread is started: only the calling one goes on.
pub(crate) fn leave_parent() -> io::Result<()> {
    let keep_standard_streams = true;
    Ok(daemon(false, keep_standard_streams)?)
}

/// No core dumps, no ptrace by others of our user, no new privileges, no swap where that is
/// allowed, and files that are ours alone.
pub(crate) fn harden() -> io::Result<()> {
    process::refuse_dumps()?;
    prctl::set_no_new_privs()?;
    on_abort::clean_up()?;
    umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
    if let Err(limit_bytes) = process::lock_memory() {
        info!(
            "memory is not locked and may be swapped out (RLIMIT_MEMLOCK is {limit_bytes} bytes); \
             set LimitMEMLOCK=infinity in the unit, or encrypt the swap"
        );
    }
    Ok(())
}

/// Connections that all peers together may have: as many as there are descriptors, without those that
/// the broker needs itself. Raises the limit of descriptors first, as far as that is allowed.
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
    // Under a small limit, half of it.
    usize::try_from(limit.saturating_sub(OWN).max(limit / 2)).unwrap_or(usize::MAX)
}

/// Closes all descriptors but the standard ones: what the server inherits is not for us to hold.
///
/// Must be called before any is opened here.
pub(crate) fn close_inherited_descriptors() -> io::Result<()> {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > io::stderr().as_raw_fd())
        .collect();
    for descriptor in open {
        match close(descriptor) {
            // The one that read the directory.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Lets go of the pipes to `iam-kms-wrapper`.
pub(crate) fn close_standard_streams() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(null.as_fd())?;
    Ok(dup2_stdout(null.as_fd())?)
}
