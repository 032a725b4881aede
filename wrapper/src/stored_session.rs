//! The session in systemd's file descriptor store: a restart of the service needs no person while
//! it lasts, and nothing touches the disk.
//!
//! systemd hands it back after a crash and after `systemctl restart`, and drops it when the service
//! is stopped. Where the unit has no `FileDescriptorStoreMax=`, or `NotifyAccess=` leaves the sender
//! out, systemd drops it at once. Sources: FDSTORE=1 in sd_notify(3), memfd_create(2).

use std::{
    env,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use broker_api::{FrameError, read_frame_of, write_frame_of};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::fstat,
    },
    unistd::geteuid,
};
use tracing::{info, warn};

use crate::{
    config::{Config, Mfa},
    session::Session,
    systemd,
};

/// Version of the form in which the session is stored.
const FORMAT: u8 = 1;

/// Name of the descriptor in the store.
pub const NAME: &str = "iam-kms-session";

/// Has systemd keep `session`, in place of the one that it may have. Does nothing without
/// `$NOTIFY_SOCKET`, or with `mfa = false`, where no session needs a person.
pub fn keep(config: &Config, session: &Session) {
    if config.mfa == Mfa::Off || env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let kept =
        seal(config, session).and_then(|memfd| Ok(systemd::store_descriptor(NAME, memfd.as_fd())?));
    if let Err(error) = kept {
        warn!(
            "cannot have systemd keep the session: {error}; a restart of the service will need a new code"
        );
    }
}

/// Has systemd drop the session that it may have.
pub fn forget() {
    systemd::drop_descriptor(NAME);
}

/// The session that systemd has kept, unless it will not do: then says why and has it dropped.
pub fn reuse(config: &Config, file: io::Result<File>) -> Option<Session> {
    let read = file
        .map_err(|error| format!("it cannot be opened: {error}"))
        .and_then(|file| read(config, file));
    match read {
        Ok(session) => Some(session),
        Err(why) => {
            info!("the session that systemd has kept is not used: {why}");
            forget();
            None
        }
    }
}

/// What a session was opened for stands before it: a changed configuration wants a new one.
fn seal(config: &Config, session: &Session) -> Result<OwnedFd, FrameError> {
    let memfd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(io::Error::from)?;
    let mut file = File::from(memfd);
    write_frame_of(FORMAT, &mut file, &(&config.mfa, &config.role_arn, session))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals())).map_err(io::Error::from)?;
    Ok(file.into())
}

fn read(config: &Config, mut file: File) -> Result<Session, String> {
    let failed = |error: Errno| format!("it cannot be looked at: {error}");
    let owner = fstat(&file).map_err(failed)?.st_uid;
    if owner != geteuid().as_raw() {
        return Err(format!("it is of uid {owner}"));
    }
    // EINVAL: it is no memory file.
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap_or_default();
    if !SealFlag::from_bits_truncate(seals).contains(all_seals()) {
        return Err("it is not sealed".into());
    }
    let (mfa, role_arn, session): (Mfa, Option<String>, Session) =
        read_frame_of(FORMAT, &mut file).map_err(|error| format!("it is damaged ({error})"))?;
    if (&mfa, &role_arn) != (&config.mfa, &config.role_arn) {
        return Err("it was opened for another configuration".into());
    }
    let least = config.reuse_session_min_seconds;
    match session.remaining_seconds() {
        None => Err("it has no end".into()),
        Some(left) if left <= 0 => Err(format!("it ended at {}", session.expiration_text())),
        Some(left) if left < least => Err(format!(
            "it ends in {left} seconds, and reuse_session_min_seconds is {least}"
        )),
        Some(_) => Ok(session),
    }
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}
