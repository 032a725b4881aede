//! TLS with a certificate on both sides: between a key server and its clients, and between the console and browsers.
//!
//! TLS 1.3 only, by rustls: no early data, no resumption, no tickets. A certificate counts only by its
//! subject alternative names, and only if one of the configured authorities has issued it.

#![forbid(unsafe_code)]

mod blocking;
mod certificate;
mod files;
mod handshakes;
mod listener;
mod watched;

use std::sync::Arc;

use aws_session::{
    clock::{unix_seconds_now, utc_text},
    config::TlsFiles,
};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InvalidMessage, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, UnixTime};

pub use blocking::{BlockingStream, reason};
pub use certificate::{Certificate, CertificateFormatError};
pub use files::{Content, TlsFilesError};
pub use handshakes::Handshake;
pub use listener::{Guest, HANDSHAKE_TIMEOUT, Host, accept};
pub use watched::{Side, WatchedFiles, watch};

/// The protocol of brokers inside TLS, so that neither side talks to something else by mistake.
const BROKER_ALPN: &[u8] = b"iam-kms-broker/2";

/// That of browsers. Source: RFC 7301.
const HTTP_ALPN: &[u8] = b"http/1.1";

/// How long before its end a certificate is worth a warning, in seconds.
pub const WARNING_SECONDS: i64 = 30 * 86_400;

/// The side of a key server or of the console.
#[derive(Debug)]
pub struct ServerTls {
    /// For the handshake.
    pub config: Arc<ServerConfig>,
    /// The certificate that it shows.
    pub certificate: Certificate,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ServerTls {
    /// Makes it of the content of its files, for the brokers of other hosts.
    ///
    /// Errors: what a file contains is not what it should.
    pub fn for_brokers(files: &TlsFiles, content: &Content) -> Result<Self, TlsFilesError> {
        Self::new(files, content, BROKER_ALPN)
    }

    /// Makes it of the content of its files, for browsers.
    ///
    /// Errors: what a file contains is not what it should.
    pub fn for_browsers(files: &TlsFiles, content: &Content) -> Result<Self, TlsFilesError> {
        Self::new(files, content, HTTP_ALPN)
    }

    fn new(files: &TlsFiles, content: &Content, protocol: &[u8]) -> Result<Self, TlsFilesError> {
        let provider = provider();
        let (chain, key, certificate) = content.identity(files, &provider)?;
        let roots = Arc::new(content.authorities(files)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| TlsFilesError::authorities(files, &error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(Arc::clone(&verifier))
                    .with_single_cert(chain, key)
            })
            .map_err(|error| TlsFilesError::identity(files, &error))?;
        config.alpn_protocols = vec![protocol.to_vec()];
        config.max_early_data_size = 0;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            config: Arc::new(config),
            certificate,
            verifier,
        })
    }

    /// Checks the certificates of a client again, as in the handshake: it may have ended since, and its authority
    /// may have been removed.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Certificate, String> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err("it has no certificate".into());
        };
        self.verifier
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(|error| in_words(&error))?;
        Certificate::parse(leaf).map_err(|error| error.to_string())
    }
}

/// The side of a client.
#[derive(Debug)]
pub struct ClientTls {
    /// For the handshake.
    pub config: Arc<ClientConfig>,
    /// The certificate that it shows.
    pub certificate: Certificate,
}

impl ClientTls {
    /// Makes it of the content of its files.
    ///
    /// Errors: what a file contains is not what it should.
    pub fn new(files: &TlsFiles, content: &Content) -> Result<Self, TlsFilesError> {
        let provider = provider();
        let (chain, key, certificate) = content.identity(files, &provider)?;
        let roots = content.authorities(files)?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain, key)
            })
            .map_err(|error| TlsFilesError::identity(files, &error))?;
        config.alpn_protocols = vec![BROKER_ALPN.to_vec()];
        config.enable_early_data = false;
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            certificate,
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Says in people's words why a handshake failed.
pub fn in_words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => of_certificate(why),
        Error::NoCertificatesPresented => "it shows no certificate".into(),
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => format!(
                "the other side says that the certificate of this host has expired or is not valid yet ({})",
                clock()
            ),
            AlertDescription::UnknownCA => {
                "the other side does not accept the authority of this host's certificate".into()
            }
            AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied => {
                "the other side does not accept this host's certificate; see its log".into()
            }
            alert => format!(
                "the other side ended the TLS handshake (alert {}); see its log",
                u8::from(*alert)
            ),
        },
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what the other side sends is not TLS".into()
        }
        error => error.to_string(),
    }
}

fn of_certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::ExpiredContext { not_after, .. } => format!(
            "its certificate expired at {} ({})",
            utc_text(seconds(*not_after)),
            clock()
        ),
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "its certificate is valid only from {} ({})",
            utc_text(seconds(*not_before)),
            clock()
        ),
        // An authority of the same name has another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is of an authority that is not accepted here".into()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let names: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            format!(
                "its certificate is for {}, not for {}",
                names.join(", "),
                expected.to_str()
            )
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for this purpose (extended key usage)".into()
        }
        why => format!("its certificate is not accepted: {why}"),
    }
}

/// Returns the name without its kind: webpki writes `DnsName("keys2")`.
fn bare(name: &str) -> &str {
    name.split_once('(').map_or(name, |(_, rest)| {
        rest.trim_end_matches(')').trim_matches('"')
    })
}

fn clock() -> String {
    format!(
        "the clock of this host says {}; correct it if that is wrong",
        utc_text(unix_seconds_now())
    )
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
