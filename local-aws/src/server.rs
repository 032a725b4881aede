//! The sockets: loopback only, HTTP/1.1, TLS if asked for.

use std::error::Error;
use std::fs::TryLockError;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::error::complain;
use crate::exchange::{Ending, Exchange};
use crate::machine;
use crate::operation::Request;
use crate::store::StoreError;

/// The file in the state directory that holds the server's URL while it runs.
pub const ENDPOINT_FILE: &str = "endpoint";
/// Locked while a server runs.
const LOCK_FILE: &str = "serving";
/// More than the longest request: a key policy of 32 KiB, escaped.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// How long to wait after a connection could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the server could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address that others could reach.
    #[error("refusing to listen on {0}: this is for one machine only. Use 127.0.0.1 or [::1]")]
    NotLoopback(SocketAddr),
    /// The address is taken, say.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Another server has the same state.
    #[error("another 'local-aws serve' runs with this state directory: stop it first")]
    Running,
    /// A certificate or key file that cannot be used.
    #[error("cannot use '{path}' for TLS: {why}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system.
    #[error("cannot serve: {0}")]
    Io(#[from] io::Error),
}

/// The fault that resets a connection, on its way through the HTTP connection that it ends.
#[derive(Debug, thiserror::Error)]
#[error("reset on demand")]
struct ResetOnDemand;

/// The PEM files of a server certificate (with its chain) and its key.
pub struct TlsFiles {
    /// Certificates, the server's first.
    pub certificates: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Serves until SIGTERM or SIGINT. When ready it writes the URL to the endpoint file and then
/// `listening on URL` to standard output.
pub async fn serve(
    exchange: Exchange,
    address: SocketAddr,
    tls: Option<TlsFiles>,
) -> Result<(), ServeError> {
    if !address.ip().is_loopback() {
        return Err(ServeError::NotLoopback(address));
    }
    let tls = tls.map(|files| tls_acceptor(&files)).transpose()?;
    let lock = exchange.store.lock_file(LOCK_FILE)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => ServeError::Running,
        TryLockError::Error(error) => ServeError::Io(error),
    })?;
    // Before the announcement: whoever reads it may send a signal at once.
    let (mut sigterm, mut sigint) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })?;
    machine::write_tokens(&exchange)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr()?);
    exchange
        .store
        .write(ENDPOINT_FILE, format!("{url}\n").as_bytes())?;
    writeln!(io::stdout(), "listening on {url}")?;
    tokio::select! {
        () = accept(&listener, &exchange, tls.as_ref()) => {}
        _ = sigterm.recv() => {}
        _ = sigint.recv() => {}
    }
    Ok(exchange.store.remove(ENDPOINT_FILE)?)
}

/// Accepts connections for ever: an error is of one connection, or of a moment without descriptors.
async fn accept(listener: &TcpListener, exchange: &Exchange, tls: Option<&TlsAcceptor>) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                complain(format_args!("cannot accept a connection: {error}"));
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (exchange, tls) = (exchange.clone(), tls.cloned());
        tokio::spawn(async move {
            if let Err(error) = connection(exchange, stream, peer, tls).await {
                complain(format_args!("connection from {peer}: {error}"));
            }
        });
    }
}

async fn connection(
    exchange: Exchange,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A second handle on the socket: the first goes into the HTTP connection.
    let socket = SockRef::from(&stream).try_clone()?;
    match tls {
        None => http(exchange, stream, socket, peer).await,
        Some(tls) => http(exchange, tls.accept(stream).await?, socket, peer).await,
    }
}

async fn http(
    exchange: Exchange,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    socket: socket2::Socket,
    peer: SocketAddr,
) -> io::Result<()> {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let exchange = exchange.clone();
        async move { respond(&exchange, request, peer).await }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    match connection.await {
        Err(error) if is_reset(&error) => {
            socket.set_linger(Some(Duration::ZERO))?;
            Ok(())
        }
        // A client that does not wait for the answer any longer is no event, nor one that keeps
        // a connection without using it.
        Err(error) if error.is_incomplete_message() || error.is_timeout() => Ok(()),
        Err(error) => Err(io::Error::other(error)),
        Ok(()) => Ok(()),
    }
}

async fn respond(
    exchange: &Exchange,
    request: hyper::Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<Full<Bytes>>, ResetOnDemand> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
        return Ok(bare(StatusCode::PAYLOAD_TOO_LARGE));
    };
    let request = Request {
        method: head.method,
        uri: head.uri,
        headers: head.headers,
        body: body.to_bytes(),
        source_ip: peer.ip(),
    };
    if request.uri.path() != "/" {
        return Ok(machine::answer(exchange, &request));
    }
    match exchange.answer(request).await {
        Ending::Response(response) => Ok(response),
        Ending::Reset => Err(ResetOnDemand),
        Ending::Silence => std::future::pending().await,
    }
}

fn bare(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn is_reset(error: &hyper::Error) -> bool {
    error
        .source()
        .is_some_and(|source| source.is::<ResetOnDemand>())
}

fn tls_acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ServeError> {
    let certificates = CertificateDer::pem_file_iter(&files.certificates)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(&files.certificates, error))?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unusable(&files.key, error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(certificates, key))
        .map_err(|error| unusable(&files.certificates, error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn unusable(path: &Path, error: impl std::fmt::Display) -> ServeError {
    ServeError::Tls {
        path: path.to_owned(),
        why: error.to_string(),
    }
}
