//! Which hosts the key server serves: a certificate of an accepted authority that has not ended, and exactly one
//! `[client]` section for its names. All of it is decided here, for a new connection and again for one that is open.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_session::{
    clock::unix_seconds_now,
    config::{ClientConfig, KeyServerConfig},
};
use broker_api::CertificateEnd;
use mutual_tls::{ServerTls, TlsFilesError, WatchedFiles};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::{sync::watch, time::sleep};
use tracing::{error, info};

/// How many names of a certificate a message shows.
const MAX_SHOWN_NAMES: usize = 5;

/// The certificates and the sections of the configuration, as they are now.
pub(crate) struct Clients {
    path: PathBuf,
    tls: WatchedFiles<ServerTls>,
    sections: Mutex<Sections>,
    changed: watch::Sender<()>,
}

struct Sections {
    clients: Arc<Vec<ClientConfig>>,
    /// What was wrong with the file when it was last read.
    failure: Option<String>,
}

/// A host that is served, for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub client: ClientConfig,
    /// The end of its certificate.
    not_after_unix_seconds: i64,
}

impl Clients {
    /// Reads the certificates. `path` is the configuration file, which is read again when it changes.
    pub fn new(config: KeyServerConfig, path: &Path) -> Result<Self, TlsFilesError> {
        Ok(Self {
            path: path.into(),
            tls: WatchedFiles::read(config.tls, ServerTls::for_brokers)?,
            sections: Mutex::new(Sections {
                clients: Arc::new(config.clients),
                failure: None,
            }),
            changed: watch::Sender::new(()),
        })
    }

    /// Returns the file of the certificate and when it ends.
    pub fn certificate_end(&self) -> CertificateEnd {
        self.tls.certificate_end()
    }

    /// For the next handshake.
    pub fn tls(&self) -> Arc<ServerTls> {
        self.tls.current()
    }

    /// Decides whether the host with these certificates is served. The error is the reason.
    pub fn admit(&self, chain: &[CertificateDer<'_>]) -> Result<Admitted, String> {
        let certificate = self.tls.current().verify(chain)?;
        let clients = Arc::clone(&self.sections.lock().clients);
        let mut matching = clients
            .iter()
            .filter(|client| certificate.names.contains(&client.name));
        match (matching.next(), matching.next()) {
            (Some(client), None) => Ok(Admitted {
                client: client.clone(),
                not_after_unix_seconds: certificate.not_after_unix_seconds,
            }),
            (Some(one), Some(other)) => Err(format!(
                "the names in its certificate match more than one section: [client {:?}] and [client {:?}]",
                one.name, other.name
            )),
            (None, _) => {
                let names = certificate.names.iter().take(MAX_SHOWN_NAMES);
                let names: Vec<_> = names.map(|name| format!("{name:?}")).collect();
                Err(match names.as_slice() {
                    [] => "its certificate has no DNS name and no URI among its subject alternative names".into(),
                    names => format!(
                        "the key server's configuration has no [client] section for its certificate, whose names are {}",
                        names.join(", ")
                    ),
                })
            }
        }
    }

    /// Waits until the host with these certificates may no longer be served as it was admitted, and returns the reason.
    pub async fn until_revoked(&self, chain: &[CertificateDer<'_>], admitted: &Admitted) -> String {
        let mut changed = self.changed.subscribe();
        loop {
            match self.admit(chain) {
                Err(why) => return why,
                Ok(now) if now != *admitted => {
                    return format!(
                        "the section [client {:?}] has changed",
                        admitted.client.name
                    );
                }
                Ok(_) => {}
            }
            let left = admitted
                .not_after_unix_seconds
                .saturating_sub(unix_seconds_now());
            // The clock may be set, and the host suspended.
            let pause = u64::try_from(left)
                .unwrap_or_default()
                .saturating_add(1)
                .min(60);
            tokio::select! {
                // The sender lives as long as this.
                _ = changed.changed() => {}
                () = sleep(std::time::Duration::from_secs(pause)) => {}
            }
        }
    }

    /// Reads certificates and configuration again when they change, as long as it is polled.
    pub async fn watch_files(self: &Arc<Self>) {
        let watched = Arc::clone(self);
        let refresh = move || {
            let has_certificates = watched.tls.refresh();
            watched.refresh_sections() || has_certificates
        };
        let changed = || {
            self.changed.send_replace(());
        };
        mutual_tls::watch(refresh, changed).await;
    }

    fn refresh_sections(&self) -> bool {
        let read = KeyServerConfig::read(&self.path)
            .map_err(|error| error.to_string())
            .and_then(|config| {
                config.ok_or_else(|| {
                    format!(
                        "{} has no tls_listen any more; restart the broker",
                        self.path.display()
                    )
                })
            });
        let mut sections = self.sections.lock();
        match read {
            Ok(config) => {
                sections.failure = None;
                if *sections.clients == config.clients {
                    return false;
                }
                sections.clients = Arc::new(config.clients);
                let count = sections.clients.len();
                info!(
                    event = "clients_loaded",
                    "{} was read again: {count} client section{}",
                    self.path.display(),
                    if count == 1 { "" } else { "s" }
                );
                true
            }
            Err(failure) => {
                if sections.failure.as_ref() != Some(&failure) {
                    error!(
                        event = "clients_failed",
                        "the changed configuration is not used, and clients are served as before: {failure}"
                    );
                    sections.failure = Some(failure);
                }
                false
            }
        }
    }
}
