//! A TLS listener: who has no valid certificate gets no further.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::warn;

use crate::{
    ServerTls,
    blocking::reason,
    handshakes::{Handshake, Handshakes},
};

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a failure to accept, so that existing connections have time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Someone with a valid certificate.
pub struct Guest {
    /// The connection. On the heap, because whoever passes it on keeps room for it.
    pub stream: Box<TlsStream<TcpStream>>,
    /// The certificates that were shown, at least one; the first is the guest's own.
    pub chain: Vec<CertificateDer<'static>>,
    /// Where the guest is.
    pub address: SocketAddr,
    /// To be dropped as soon as the guest counts against another limit.
    pub handshake: Handshake,
}

/// Who serves the guests of a listener.
pub trait Host: Send + Sync + 'static {
    /// The certificates for the next handshake.
    fn tls(&self) -> Arc<ServerTls>;

    /// Serves a guest until they leave.
    fn serve(self: Arc<Self>, guest: Guest) -> impl Future<Output = ()> + Send;

    /// Learns that a host was refused, and why.
    fn refuse(&self, address: SocketAddr, why: &str);
}

/// Accepts connections as long as it is polled. Concurrent handshakes are limited, in all and for each network. While all
/// of them are under way, others wait in the listener's queue.
pub async fn accept(listener: &TcpListener, host: &Arc<impl Host>) {
    let handshakes = Handshakes::new();
    let mut has_failed = false;
    loop {
        let place = handshakes.place().await;
        match listener.accept().await {
            Ok((stream, address)) => {
                has_failed = false;
                match handshakes.begin(address.ip(), place) {
                    Ok(handshake) => {
                        let host = Arc::clone(host);
                        tokio::spawn(greet(host, stream, address, handshake));
                    }
                    Err(why) => host.refuse(address, &why),
                }
            }
            Err(error) => {
                if !has_failed {
                    warn!("cannot accept a TLS connection: {error}; trying again");
                }
                has_failed = true;
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Finds out who has connected.
async fn greet(host: Arc<impl Host>, stream: TcpStream, address: SocketAddr, handshake: Handshake) {
    let accepted = timeout(HANDSHAKE_TIMEOUT, async {
        // An answer is one small packet.
        stream.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(Arc::clone(&host.tls().config));
        acceptor.accept(stream).await
    });
    // Large, so on the heap, and only for the handshake: a connection keeps its memory for as long as it is open.
    let stream = match Box::pin(accepted).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return,
        Ok(Err(error)) => return host.refuse(address, &reason(error)),
        Err(_) => {
            let seconds = HANDSHAKE_TIMEOUT.as_secs();
            return host.refuse(
                address,
                &format!("the TLS handshake took longer than {seconds} s"),
            );
        }
    };
    let Some(chain) = stream.get_ref().1.peer_certificates() else {
        return host.refuse(address, "it has shown no certificate");
    };
    let chain = chain.iter().map(|it| it.clone().into_owned()).collect();
    let guest = Guest {
        stream: Box::new(stream),
        chain,
        address,
        handshake,
    };
    host.serve(guest).await;
}
