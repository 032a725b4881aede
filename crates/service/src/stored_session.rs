//! The session in systemd's file descriptor store: a restart of the service needs no person while
//! it lasts, and nothing touches the disk.
//!
//! systemd hands it back after a crash and after `systemctl restart`, and drops it when the service
//! is stopped. Where the unit has no `FileDescriptorStoreMax=`, or `NotifyAccess=` leaves the sender
//! out, systemd drops it at once. Sources: FDSTORE=1 in sd_notify(3), memfd_create(2).
//!
//! Each process of the service, and so each that the server's user gets into its control group, can put
//! a descriptor of its own into the store. So what comes back proves that it is ours: by a MAC under the
//! secret of the long-term key, which processes of that user cannot read while the server is up. With
//! a session of an attacker's the server would have its new data keys made by the attacker's master key.
//! - `mfa = true`: proven. Who reads the secret while the server starts, in `$CREDENTIALS_DIRECTORY`,
//!   can still forge; they could read the code then, too.
//! - `mfa = elsewhere`: this host has no secret, so the session is not kept.
//! - `mfa = false`: no session needs a person, so none is kept.

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

/// Version of the form in which the session is stored.
const FORMAT: u8 = 2;

/// Name of the descriptor in the store.
pub const NAME: &str = "iam-kms-session";

/// What the MAC is about, so that it is none of AWS's signatures under the same secret.
const PURPOSE: &[u8] = b"iam-kms-wrapper: session kept by systemd, form 2\n";

/// Length of a proof in bytes.
const PROOF_BYTES: usize = 32;

/// Has systemd keep `session`, in place of the one that it may have, proven by the secret of `source`.
/// Does nothing without `$NOTIFY_SOCKET`, or with `mfa = false`, where no session needs a person.
pub fn keep(config: &SessionConfig, source: Option<&Credentials>, session: &Credentials) {
    if config.mfa == Mfa::Off || env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let Some(source) = source else {
        info!(
            "systemd does not keep the session for a restart: without a long-term key on this host, nothing would prove that it is the same (mfa = elsewhere); run iam-kms-broker as a service, and a restart of the server needs no session document"
        );
        return;
    };
    let kept = seal(config, source, session)
        .and_then(|memfd| Ok(systemd::store_descriptor(NAME, memfd.as_fd())?));
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

/// Why a session that systemd has kept will not do.
enum Refusal {
    /// Time or the configuration have passed it by.
    Stale(String),
    /// It is not what we stored.
    Foreign(String),
}

/// The session that systemd has kept, unless it will not do: then says why and has it dropped. AWS's time
/// goes on from when it was stored.
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
        Refusal::Stale(why) => info!("the session that systemd has kept is not used: {why}"),
        Refusal::Foreign(why) => warn!(
            event = "kept_session_refused",
            "the session that systemd has kept is not used: {why}; either the long-term key was changed, or a process of the service's user has put something else in its place: look for one that should not be there"
        ),
    }
    forget();
    None
}

/// What is stored before the proof.
#[derive(Serialize, Deserialize)]
struct StoredSession {
    /// What the session was opened for: a changed configuration wants a new one.
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
        Refusal::Stale("there is no long-term key to prove it (mfa = elsewhere)".into())
    })?;
    let stored = read_sealed(file).map_err(Refusal::Foreign)?;
    if stored.first().is_some_and(|form| *form != FORMAT) {
        return Err(Refusal::Stale("another release has stored it".into()));
    }
    let damaged = |error: FrameError| Refusal::Foreign(format!("it is damaged ({error})"));
    let (mut frame, proof) = stored
        .split_last_chunk::<PROOF_BYTES>()
        .ok_or(damaged(FrameError::Closed))?;
    mac(source, frame)
        .map_err(|error| damaged(error.into()))?
        .verify_slice(proof)
        .map_err(|_| {
            Refusal::Foreign(
                "the secret of the long-term key does not prove that it is ours".into(),
            )
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

/// The content of a sealed memory file of our own user.
fn read_sealed(file: File) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |error: io::Error| format!("it cannot be examined: {error}");
    let owner = fstat(&file).map_err(|error| failed(error.into()))?.st_uid;
    if owner != geteuid().as_raw() {
        return Err(format!("it belongs to uid {owner}"));
    }
    // EINVAL: it is no memory file.
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
