//! The session in systemd's file descriptor store: while it lasts, a restart of the service needs no
//! code, and nothing is written to disk.
//!
//! systemd returns it after a crash and after `systemctl restart`, and drops it when the service is
//! stopped. If the unit does not set `FileDescriptorStoreMax=`, or `NotifyAccess=` excludes the sender,
//! systemd drops it immediately. Sources: FDSTORE=1 in sd_notify(3), memfd_create(2).
//!
//! Every process in the control group of the service can store a descriptor. With an attacker's
//! session, the server would make new data keys under the attacker's master key. So a stored session is
//! authenticated with a MAC whose key is the secret of the long-term key, which processes of the
//! server's user cannot read while the server runs:
//! - `mfa = true`: authenticated. A process that reads the secret in `$CREDENTIALS_DIRECTORY` while the
//!   server starts can forge a session; but it could read the code then, too.
//! - `mfa = elsewhere`: this host has no secret, so the session is not stored.
//! - `mfa = false`: no session needs a code, so none is stored.

use std::{
    env,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use broker_api::{FrameError, HEADER_BYTES, MAX_FRAME_BYTES, encode, read_frame_of};
use hmac::{Hmac, KeyInit, Mac};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::fstat,
    },
    unistd::geteuid,
};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::systemd;
use aws_session::{
    clock::{self, Reading},
    config::{Mfa, SessionConfig},
    credentials::Credentials,
};

/// Version of the format of a stored session.
const FORMAT: u8 = 2;

/// Name of the descriptor in the store.
pub const NAME: &str = "iam-kms-session";

/// Separates the MAC from AWS's signatures with the same secret.
const PURPOSE: &[u8] = b"iam-kms-wrapper: session kept by systemd, form 2\n";

/// Length of the MAC in bytes.
const PROOF_BYTES: usize = 32;

/// Stores `session` in place of a previous one, authenticated with the secret of `source`. Does nothing
/// without `$NOTIFY_SOCKET`, or with `mfa = false`, where no session needs a code.
pub fn keep(config: &SessionConfig, source: Option<&Credentials>, session: &Credentials) {
    if config.mfa == Mfa::Off || env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let Some(source) = source else {
        info!(
            "the session is not stored for a restart: without a long-term key on this host, a stored session could not be authenticated (mfa = elsewhere); if you run iam-kms-broker as a service, a restart of the server needs no session document"
        );
        return;
    };
    let kept = seal(config, source, session)
        .and_then(|memfd| Ok(systemd::store_descriptor(NAME, memfd.as_fd())?));
    if let Err(error) = kept {
        warn!("cannot store the session: {error}; a restart of the service will need a new code");
    }
}

/// Makes systemd drop the stored session, if there is one.
pub fn forget() {
    systemd::drop_descriptor(NAME);
}

/// Why a stored session is not used.
enum Refusal {
    /// It has expired, or does not match the configuration.
    Stale(String),
    /// It is not what was stored.
    Foreign(String),
}

/// Returns the stored session. If it cannot be used, logs why and makes systemd drop it. AWS's time
/// continues from when it was stored.
pub fn reuse(
    config: &SessionConfig,
    source: Option<&Credentials>,
    file: io::Result<File>,
) -> Option<Credentials> {
    let read = file
        .map_err(|error| Refusal::Foreign(format!("it cannot be opened: {error}")))
        .and_then(|file| read(config, source, file));
    let refusal = match read {
        Ok(session) => return Some(session),
        Err(refusal) => refusal,
    };
    match refusal {
        Refusal::Stale(why) => info!("the stored session is not used: {why}"),
        Refusal::Foreign(why) => warn!(
            event = "kept_session_refused",
            "the stored session is not used: {why}; either the long-term key was changed, or a process of the service's user has replaced the session: look for a process that should not be there"
        ),
    }
    forget();
    None
}

/// What is stored before the MAC.
#[derive(Serialize, Deserialize)]
struct StoredSession {
    /// What the session was opened for: a changed configuration needs a new one.
    parameters: SessionParameters,
    clock: Reading,
    session: Credentials,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct SessionParameters {
    mfa: Mfa,
    role_arn: Option<String>,
    profile: Option<String>,
    region: Option<String>,
}

impl SessionParameters {
    fn of(config: &SessionConfig) -> Self {
        Self {
            mfa: config.mfa.clone(),
            role_arn: config.role_arn.clone(),
            profile: config.profile.clone(),
            region: config.region.clone(),
        }
    }
}

fn seal(
    config: &SessionConfig,
    source: &Credentials,
    session: &Credentials,
) -> Result<OwnedFd, FrameError> {
    let kept = StoredSession {
        parameters: SessionParameters::of(config),
        clock: clock::read(),
        session: session.clone(),
    };
    let frame = encode(FORMAT, &kept)?;
    let proof = mac(source, &frame)?.finalize().into_bytes();
    let memfd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(io::Error::from)?;
    let mut file = File::from(memfd);
    file.write_all(&frame)?;
    file.write_all(&proof)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals())).map_err(io::Error::from)?;
    Ok(file.into())
}

fn mac(source: &Credentials, frame: &[u8]) -> io::Result<Hmac<Sha256>> {
    let secret = source.secret_access_key.expose_secret().as_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(io::Error::other)?;
    mac.update(PURPOSE);
    mac.update(frame);
    Ok(mac)
}

fn read(
    config: &SessionConfig,
    source: Option<&Credentials>,
    file: File,
) -> Result<Credentials, Refusal> {
    let source = source.ok_or_else(|| {
        Refusal::Stale("there is no long-term key to authenticate it (mfa = elsewhere)".into())
    })?;
    let stored = read_sealed(file).map_err(Refusal::Foreign)?;
    if stored.first().is_some_and(|form| *form != FORMAT) {
        return Err(Refusal::Stale("it was stored by another release".into()));
    }
    let damaged = |error: FrameError| Refusal::Foreign(format!("it is damaged ({error})"));
    let (mut frame, proof) = stored
        .split_last_chunk::<PROOF_BYTES>()
        .ok_or(damaged(FrameError::Closed))?;
    mac(source, frame)
        .map_err(|error| damaged(error.into()))?
        .verify_slice(proof)
        .map_err(|_| {
            Refusal::Foreign("it is not authenticated by the secret of the long-term key".into())
        })?;
    let kept: StoredSession = read_frame_of(FORMAT, &mut frame).map_err(damaged)?;
    if kept.parameters != SessionParameters::of(config) {
        let why = "it was opened for another configuration";
        return Err(Refusal::Stale(why.into()));
    }
    clock::restore(kept.clock);
    let session = kept.session;
    let least = config.reuse_min_seconds;
    let stale = match session.remaining_seconds() {
        None => "it has no end".into(),
        Some(left) if left <= 0 => format!("it ended at {}", session.expiration_text()),
        Some(left) if left < least => {
            format!("it ends in {left} seconds, and reuse_session_min_seconds is {least}")
        }
        Some(_) => return Ok(session),
    };
    Err(Refusal::Stale(stale))
}

/// Reads a sealed memory file of this user.
fn read_sealed(file: File) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |error: io::Error| format!("it cannot be examined: {error}");
    let owner = fstat(&file).map_err(|error| failed(error.into()))?.st_uid;
    if owner != geteuid().as_raw() {
        return Err(format!("it belongs to uid {owner}"));
    }
    // EINVAL: it is not a memory file.
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap_or_default();
    if !SealFlag::from_bits_truncate(seals).contains(all_seals()) {
        return Err("it is not sealed".into());
    }
    const MOST_BYTES: usize = HEADER_BYTES + MAX_FRAME_BYTES + PROOF_BYTES;
    let mut stored = Zeroizing::new(Vec::with_capacity(MOST_BYTES));
    file.take(MOST_BYTES.try_into().unwrap_or(u64::MAX))
        .read_to_end(&mut stored)
        .map_err(failed)?;
    Ok(stored)
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}
