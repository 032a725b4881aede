//! HTTP for this host alone: on a Unix socket or on loopback. Connections are few and short, and each carries
//! one request. Other streams are served in the same way by [`serve_stream`].

#![forbid(unsafe_code)]

use std::{convert::Infallible, error::Error, future::Future, io, sync::Arc, time::Duration};

pub use http_body_util::Full;
pub use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header,
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Notify, Semaphore},
    time::{sleep, timeout},
};
use tracing::warn;

/// Pause after a failure to accept, so that existing connections have time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The names that lead to this host. A page of another site whose name leads here too (DNS rebinding) has its
/// own.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// A bound, non-blocking socket.
pub enum LocalListener {
    /// A Unix socket.
    Unix(std::os::unix::net::UnixListener),
    /// A port of the loopback interface.
    Loopback(std::net::TcpListener),
}

/// What clients may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Concurrent connections. Further ones wait.
    pub connections: usize,
    /// How long a client may take to send the head of its request, and again to take the answer.
    pub transfer: Duration,
    /// How long the answer may take.
    pub patience: Duration,
}

/// Answers each request with `answer`, as long as it is polled.
///
/// Errors: the socket cannot be used at all.
pub async fn serve<F, B>(
    listener: &LocalListener,
    limits: Limits,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> io::Result<Infallible>
where
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Error + Send + Sync> + From<String> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(limits.connections));
    match listener {
        LocalListener::Unix(socket) => {
            let socket = UnixListener::from_std(socket.try_clone()?)?;
            loop {
                let accepted = socket.accept().await.map(|(stream, _)| stream);
                admit(accepted, &room, limits, &answer).await;
            }
        }
        LocalListener::Loopback(socket) => {
            let socket = TcpListener::from_std(socket.try_clone()?)?;
            loop {
                let accepted = socket.accept().await.map(|(stream, _)| stream);
                admit(accepted, &room, limits, &answer).await;
            }
        }
    }
}

async fn admit<F, B>(
    accepted: io::Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    room: &Arc<Semaphore>,
    limits: Limits,
    answer: &(impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static),
) where
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Error + Send + Sync> + From<String> + Send + 'static,
{
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            warn!("cannot accept an HTTP connection: {error}");
            return sleep(ACCEPT_PAUSE).await;
        }
    };
    // It is never closed.
    let Ok(permit) = Arc::clone(room).acquire_owned().await else {
        return;
    };
    let answer = answer.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let of_this_host =
            async |request: Request<Incoming>| match is_for_this_host(request.headers()) {
                true => answer(request).await,
                false => plain(
                    StatusCode::MISDIRECTED_REQUEST,
                    "the host must be localhost, 127.0.0.1 or [::1]\n",
                ),
            };
        serve_stream(stream, limits, of_this_host).await;
    });
}

/// Answers one request of a connection, within the times of `limits`. A client that leaves, or is too slow, loses only its
/// own answer.
pub async fn serve_stream<F, B>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    limits: Limits,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes, Error: Error + Send + Sync> + 'static,
{
    let (asked, answered) = (Notify::new(), Notify::new());
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(async |request| {
                asked.notify_one();
                let response = answer(request).await;
                answered.notify_one();
                Ok::<_, Infallible>(response)
            }),
        );
    let too_slow = async {
        if timeout(limits.transfer, asked.notified()).await.is_ok()
            && timeout(limits.patience, answered.notified()).await.is_ok()
        {
            sleep(limits.transfer).await;
        }
    };
    tokio::select! {
        _ = connection => {}
        () = too_slow => {}
    }
}

/// Whether the Host header names this host, with any port: `ssh -L` may use another one.
fn is_for_this_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let host = host.to_str().unwrap_or_default();
    OWN_NAMES.iter().any(|name| {
        host.strip_prefix(name)
            .and_then(|rest| match rest.strip_prefix(':') {
                Some(port) => port.parse::<u16>().ok().map(drop),
                None => rest.is_empty().then_some(()),
            })
            .is_some()
    })
}

/// A response of plain text.
pub fn plain<B: From<String>>(status: StatusCode, text: impl Into<String>) -> Response<B> {
    let mut response = Response::new(B::from(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn headers(hosts: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, header::HeaderValue::from_static(host));
        }
        headers
    }

    #[test]
    fn only_the_names_of_this_host_are_accepted() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:9917"] {
            assert!(is_for_this_host(&headers(&[host])), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "localhost:99999",
            "localhost:",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(!is_for_this_host(&headers(&[host])), "{host}");
        }
        assert!(!is_for_this_host(&headers(&[])));
        assert!(!is_for_this_host(&headers(&["localhost", "evil.example"])));
    }

    #[test]
    fn a_client_that_does_not_take_the_answer_loses_the_connection() {
        const MINUTE: Duration = Duration::from_secs(60);
        let limits = Limits {
            connections: 1,
            transfer: Duration::from_millis(100),
            patience: MINUTE,
        };
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let served = runtime.enable_time().build().unwrap().block_on(async {
            // Room for the request, and for little of the answer.
            let (mut client, server) = tokio::io::duplex(1000);
            let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
            client.write_all(request).await.unwrap();
            let answer = async |_| plain::<Full<Bytes>>(StatusCode::OK, "x".repeat(100_000));
            timeout(MINUTE, serve_stream(server, limits, answer)).await
        });
        assert!(served.is_ok());
    }
}
