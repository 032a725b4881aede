//! What clients send: how frames become requests, and which requests are refused. Nothing here needs network, keys or
//! AWS, so that `fuzz/` reaches all of it.

use aws_session::config::ClientConfig;
use broker_api::{Failure, FailureKind, FrameError, MakeKey, PROTOCOL_VERSION, Request, decode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};

use crate::{connection::Connection, kms_calls::check};

/// Longest frame body of a client, in bytes: a request to make a key, with the id of a master key.
pub(crate) const MAX_REQUEST_BYTES: usize = 4096;

/// Reads the next request. Each frame that has begun needs one of `frames`.
pub(crate) async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    frames: &Semaphore,
) -> Result<Request, FrameError> {
    let version = connection.begin().await?;
    let reading = frames.acquire().await;
    let frame = connection.finish(version).await?;
    drop(reading);
    if frame.version != PROTOCOL_VERSION {
        return Err(FrameError::Version(frame.version));
    }
    if frame.body_bytes > MAX_REQUEST_BYTES {
        return Err(FrameError::TooLong(frame.body_bytes));
    }
    decode(&frame.body)
}

/// Returns why a client may not make a request. `master_key_id` is the master key of the configuration.
pub(crate) fn refusal(
    client: &ClientConfig,
    master_key_id: Option<&str>,
    request: &Request,
) -> Option<Failure> {
    let denied = |message: String| {
        Some(Failure {
            kind: FailureKind::AccessDenied,
            message,
        })
    };
    let not_given = |id: u32| match client.key_ids.contains(id) {
        true => None,
        false => denied(format!(
            "client {} may not use key {id} (key_ids of its section in the key server's configuration)",
            client.name
        )),
    };
    match request {
        Request::Session | Request::ListKeys(_) => None,
        Request::GetKey(request) => not_given(request.context.key_id),
        Request::FindKey(request) => not_given(request.context.key_id),
        Request::MakeKey(make) => {
            if let Some(refusal) = not_given(make.generate.context.key_id) {
                return Some(refusal);
            }
            if !client.may_make {
                return denied(format!(
                    "client {} may not make keys (may_make of its section in the key server's configuration)",
                    client.name
                ));
            }
            let wanted = make.generate.master_key_id.as_str();
            if !wanted.is_empty() && master_key_id != Some(wanted) {
                return denied(
                    "the key server chooses the master key; leave aws_key_management_master_key_id empty".into(),
                );
            }
            check(&Request::MakeKey(with_master_key(master_key_id, make))).err()
        }
        Request::Overview | Request::Events { .. } => {
            denied("a key server shows its own state on its own host only".into())
        }
        Request::Decrypt(_) | Request::GenerateDataKey(_) => denied(
            "a key server takes no wrapped keys and gives none; ask for a key by its number".into(),
        ),
    }
}

/// Puts in the master key of the configuration: no client chooses it.
pub(crate) fn with_master_key(master_key_id: Option<&str>, make: &MakeKey) -> MakeKey {
    let mut make = make.clone();
    make.generate.master_key_id = master_key_id.unwrap_or_default().into();
    make
}
