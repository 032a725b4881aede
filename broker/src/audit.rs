//! The audit log, for the journal and the log in JSON: who requested what, and the result.

use broker_api::{Failure, FrameError, Reply, Request};
use service::logging::AUDIT;
use tracing::{info, warn};

use crate::{peer::Peer, users::User};

/// Logs a request of a peer and its result. Requests for the state of the session are not logged.
pub(crate) fn answered(peer: &Peer, request: &Request, answered: &Result<Reply, Failure>) {
    let (operation, context) = match request {
        Request::Session => return,
        Request::Decrypt(request) => ("Decrypt", &request.context),
        Request::GenerateDataKey(request) => ("GenerateDataKeyWithoutPlaintext", &request.context),
    };
    let (key_id, key_version) = (context.key_id, context.key_version);
    let key = match key_version {
        0 => format!("a new version of key {key_id}"),
        version => format!("key {key_id}, version {version}"),
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
                "{operation} of {key}, for {peer}: {from}"
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
            "{operation} of {key}, for {peer}: {}",
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

fn not_logged(suppressed: u64) -> String {
    match suppressed {
        0 => String::new(),
        count => format!("; {count} more such events of this user were not logged"),
    }
}
