//! The audit log, for the journal and the log in JSON: who requested what, and the result.

use std::{fmt, net::SocketAddr};

use broker_api::{Failure, FrameError, Reply, Request};
use service::logging::{AUDIT, not_logged};
use tracing::{info, warn};

use crate::{peer::Peer, users::User};

/// Who asks: a process of this host, or a client of the key server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    uid: Option<u32>,
    pid: Option<i32>,
    client: Option<&'a str>,
    address: Option<SocketAddr>,
}

impl<'a> Caller<'a> {
    /// A host that has connected to the key server; `client` is the name of its section, if it has one.
    pub fn host(client: Option<&'a str>, address: SocketAddr) -> Self {
        Self {
            uid: None,
            pid: None,
            client,
            address: Some(address),
        }
    }
}

impl From<&Peer> for Caller<'_> {
    fn from(peer: &Peer) -> Self {
        Self {
            uid: Some(peer.uid),
            pid: Some(peer.pid),
            client: None,
            address: None,
        }
    }
}

impl fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.uid, self.pid, self.client, self.address) {
            (Some(uid), Some(pid), ..) => write!(f, "uid {uid}, pid {pid}"),
            (.., Some(client), Some(address)) => write!(f, "client {client} at {address}"),
            (.., Some(address)) => write!(f, "a host at {address}"),
            _ => write!(f, "somebody"),
        }
    }
}

/// Logs a call that a peer has asked for and its result. Requests for the state of the session are not logged.
pub(crate) fn answered(peer: &Caller<'_>, request: &Request, answered: &Result<Reply, Failure>) {
    // A list names no key; what comes of it is asked for by name.
    if matches!(request, Request::ListKeys(_)) && answered.is_ok() {
        return;
    }
    let Some((operation, context)) = request.call() else {
        return;
    };
    let (key_id, key_version) = (context.key_id, context.key_version);
    let key_text = match (request, key_version) {
        (Request::ListKeys(_), _) => "the key store".into(),
        (Request::FindKey(_), 0) => format!("key {key_id}"),
        (_, 0) => format!("a new version of key {key_id}"),
        (_, version) => format!("key {key_id}, version {version}"),
    };
    match answered {
        Ok(
            Reply::Decrypted {
                master_key_arn,
                request_id,
                ..
            }
            | Reply::Generated {
                master_key_arn,
                request_id,
                ..
            },
        ) => {
            let from = match request_id.as_str() {
                "" => "from the key cache".into(),
                id => format!("from KMS, request {id}"),
            };
            info!(
                target: AUDIT,
                event = "kms_call",
                operation,
                request_id = Some(request_id.as_str()).filter(|id| !id.is_empty()),
                master_key = master_key_arn.as_str(),
                key_id,
                key_version,
                peer_uid = peer.uid,
                peer_pid = peer.pid,
                client = peer.client,
                address = peer.address.map(tracing::field::display),
                "{operation} of {key_text}, for {peer}: {from}"
            );
        }
        Ok(Reply::Stored {
            key,
            is_new,
            request_id,
        }) => {
            let found = match (key, is_new) {
                (None, _) => "it is not in the key store".into(),
                (Some(key), false) => format!("{} is in the key store", key.name),
                (Some(key), true) => {
                    format!(
                        "{} is made, and in the key store; KMS request {request_id}",
                        key.name
                    )
                }
            };
            info!(
                target: AUDIT,
                event = "key_store_call",
                operation,
                request_id = Some(request_id.as_str()).filter(|id| !id.is_empty()),
                master_key = key.as_ref().map(|key| key.master_key_arn.as_str()),
                key_id,
                key_version = key.as_ref().map(|key| key.name.version),
                peer_uid = peer.uid,
                peer_pid = peer.pid,
                client = peer.client,
                address = peer.address.map(tracing::field::display),
                "{operation} of {key_text}, for {peer}: {found}"
            );
        }
        Err(failure) => warn!(
            target: AUDIT,
            event = "kms_call_failed",
            operation,
            kind = ?failure.kind,
            key_id,
            key_version,
            peer_uid = peer.uid,
            peer_pid = peer.pid,
            client = peer.client,
            address = peer.address.map(tracing::field::display),
            "{operation} of {key_text}, for {peer}: {}",
            failure.message
        ),
        Ok(_) => {}
    }
}

/// Logs a connection that was rejected.
pub(crate) fn peer_refused(user: &User, peer: &Peer, why: &str) {
    if let Some(suppressed) = user.may_log() {
        warn!(
            event = "peer_refused",
            peer_uid = peer.uid,
            peer_pid = peer.pid,
            "rejected a connection ({peer}): {why}{}",
            not_logged(suppressed)
        );
    }
}

/// Logs a host that the key server has refused, or will no longer serve. `suppressed` events before it were not logged.
pub(crate) fn host_refused(caller: &Caller<'_>, suppressed: u64, why: &str) {
    warn!(
        event = "client_refused",
        client = caller.client,
        address = caller.address.map(tracing::field::display),
        "refused {caller}: {why}{}",
        not_logged(suppressed)
    );
}

/// Logs a connection that was closed because of what the peer sent.
pub(crate) fn peer_dropped(user: &User, peer: &Peer, why: &FrameError) {
    if let Some(suppressed) = user.may_log() {
        warn!(
            "closed a connection ({peer}): {why}{}",
            not_logged(suppressed)
        );
    }
}

/// Logs a data key that could not be cached, or not safely.
pub(crate) fn not_kept(user: &User, why: &str) {
    if let Some(suppressed) = user.may_log() {
        warn!("{why}{}", not_logged(suppressed));
    }
}
