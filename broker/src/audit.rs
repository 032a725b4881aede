//! Who asked for what and got it or not, for the journal and the log in JSON.

use broker_api::{Failure, Reply, Request};
use iam_kms_wrapper::logging::AUDIT;
use tracing::{info, warn};

use crate::listener::Peer;

/// A request of a peer, and what came of it. Of questions about the session there is nothing to keep.
pub(crate) fn answered(peer: &Peer, request: &Request, answered: &Result<Reply, Failure>) {
    let (operation, options) = match request {
        Request::Session => return,
        Request::Decrypt(request) => ("Decrypt", &request.options),
        Request::GenerateDataKey(request) => ("GenerateDataKeyWithoutPlaintext", &request.options),
    };
    let (key_id, key_version) = (options.key_id, options.key_version);
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

/// A peer that is not served.
pub(crate) fn peer_refused(peer: &Peer, why: &str) {
    warn!(
        event = "peer_refused",
        peer_uid = peer.uid,
        peer_pid = peer.pid,
        "dropped a peer: {peer}: {why}"
    );
}
