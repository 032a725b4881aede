//! The page over TLS, for persons whose certificate names them as operators.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_session::config::TlsFiles;
use axum::{Router, http::StatusCode, response::IntoResponse};
use local_http::serve_stream;
use mutual_tls::{Guest, Host, ServerTls, TlsFilesError, WatchedFiles, accept, watch};
use rustls_pki_types::CertificateDer;
use service::logging::not_logged;
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::warn;

use crate::{
    LIMITS,
    rate::Rate,
    site::{Visitor, answer},
};

/// Refusals of a kind that are logged: so many in a minute.
const MAX_LOGGED: usize = 20;

/// Visitors who are told at the same time that they are no operators. Less than the handshakes of one network, so that
/// they leave some to operators.
const MAX_REFUSED: usize = 8;

/// How many names of a certificate a message shows.
const MAX_SHOWN_NAMES: usize = 5;

/// Serves the page to operators.
pub(crate) struct Operators {
    tls: WatchedFiles<ServerTls>,
    names: Vec<String>,
    routes: Router,
    /// For requests of operators.
    room: Semaphore,
    /// For visitors who are told that they are none.
    refused: Semaphore,
    /// For the log lines about those without a certificate of the authority, which cost nothing.
    strangers: Mutex<Rate>,
    /// For those about visitors who have one: strangers must not hide a certificate that was stolen.
    visitors: Mutex<Rate>,
}

impl Operators {
    pub fn new(files: TlsFiles, names: Vec<String>, routes: Router) -> Result<Self, TlsFilesError> {
        Ok(Self {
            tls: WatchedFiles::read(files, ServerTls::for_browsers)?,
            names,
            routes,
            room: Semaphore::new(LIMITS.connections),
            refused: Semaphore::new(MAX_REFUSED),
            strangers: refusals(),
            visitors: refusals(),
        })
    }

    /// Serves as long as it is polled. The certificates are read again when they change.
    ///
    /// Errors: the socket cannot be used.
    pub async fn serve(self: Arc<Self>, socket: StdListener) -> io::Result<()> {
        let socket = TcpListener::from_std(socket)?;
        let watched = Arc::clone(&self);
        tokio::select! {
            () = accept(&socket, &self) => {}
            () = watch(move || watched.tls.refresh(), || ()) => {}
        }
        Ok(())
    }

    /// Returns the name of the operator with these certificates. The error is the reason why there is none.
    fn admit(&self, chain: &[CertificateDer<'_>]) -> Result<String, String> {
        let certificate = self.tls.current().verify(chain)?;
        let names = [certificate.names, certificate.email_addresses].concat();
        match names.iter().find(|name| self.names.contains(name)) {
            Some(name) => Ok(name.clone()),
            None if names.is_empty() => {
                Err("the certificate has no name among its subject alternative names".into())
            }
            None => {
                let shown: Vec<_> = names
                    .iter()
                    .take(MAX_SHOWN_NAMES)
                    .map(String::as_str)
                    .collect();
                Err(format!(
                    "the certificate names no --operator; its names are {}",
                    shown.join(", ")
                ))
            }
        }
    }
}

impl Host for Operators {
    fn tls(&self) -> Arc<ServerTls> {
        self.tls.current()
    }

    fn refuse(&self, address: SocketAddr, why: &str) {
        log_refusal(&self.strangers, address, why);
    }

    async fn serve(self: Arc<Self>, guest: Guest) {
        let admitted = self.admit(&guest.chain);
        let _refused = match &admitted {
            Ok(_) => None,
            Err(why) => {
                log_refusal(&self.visitors, guest.address, why);
                let Ok(place) = self.refused.try_acquire() else {
                    // The log has the reason.
                    return;
                };
                Some(place)
            }
        };
        serve_stream(guest.stream, LIMITS, async |request| match &admitted {
            Ok(operator) => {
                // Only a request needs a place: browsers keep connections that they do not use. It is never closed.
                let _place = self.room.acquire().await;
                let visitor = Visitor {
                    operator: operator.clone(),
                    from: Some(guest.address.ip()),
                    scheme: "https",
                };
                answer(&self.routes, visitor, request).await
            }
            Err(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
        })
        .await;
        // Until here it counts, because handshakes are limited for each network.
        drop(guest.handshake);
    }
}

fn refusals() -> Mutex<Rate> {
    Mutex::new(Rate::new(MAX_LOGGED, Duration::from_secs(60)))
}

/// Logs a refusal, unless there were too many.
fn log_refusal(refusals: &Mutex<Rate>, address: SocketAddr, why: &str) {
    let mut refusals = refusals.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(suppressed) = refusals.take(Instant::now()) {
        let suppressed = not_logged(suppressed);
        warn!(event = "operator_refused", %address, "refused {address}: {why}{suppressed}");
    }
}
