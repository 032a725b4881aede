//! What a client sends to a key server, without the network, for `fuzz/`.

use aws_session::config::ClientConfig;
use broker_api::Request;
use tokio::{
    io::{join, sink},
    sync::Semaphore,
};

use crate::{
    connection::Connection,
    key_server::requests::{MAX_REQUEST_BYTES, read, refusal},
};

/// Reads what a client sends over a connection until the key server would close it. Returns the requests, and whether
/// each is refused.
pub async fn requests(
    bytes: &[u8],
    client: &ClientConfig,
    master_key_id: Option<&str>,
) -> Vec<(Request, bool)> {
    let mut connection = Connection::new(join(bytes, sink()), MAX_REQUEST_BYTES);
    let frames = Semaphore::new(1);
    let mut requests = Vec::new();
    while let Ok(request) = read(&mut connection, &frames).await {
        let is_refused = refusal(client, master_key_id, &request).is_some();
        requests.push((request, is_refused));
    }
    requests
}
