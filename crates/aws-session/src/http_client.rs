//! The SDK's HTTP client with what it lacks: it checks the proxy and the CA certificates before a code
//! is asked for (the SDK ignores an invalid proxy and panics on an invalid certificate), reads
//! `AWS_CA_BUNDLE`, limits the length of an answer and the time for it, and names the host in its
//! errors.
//!
//! Sources: <https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-proxy.html>, `ca_bundle`
//! in <https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html>, and
//! `SSL_CERT_FILE` in <https://docs.openssl.org/master/man7/openssl-env/>.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_smithy_http_client::{
    Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
        SharedHttpConnector,
    },
    orchestrator::HttpRequest,
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::{base64, body::SdkBody};
use http::Uri;
use http_body_util::Limited;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    sync::{Mutex, oneshot},
    time::timeout,
};
use zeroize::Zeroizing;

use crate::{
    clock::seconds_text, dns::Resolver, input_file, root_cause::root_cause, thread, variables,
};

/// Longest answer that is read, in bytes. Those of STS, KMS and the instance metadata have some
/// thousand.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// Longest answer of S3 that is read, in bytes. A page of a list has up to 1,000 objects with names of up to
/// 1,024 bytes.
const MAX_LIST_BYTES: usize = 4 * 1024 * 1024;

/// Longest file of CA certificates, in bytes. That of a system has a quarter of a million.
const MAX_BUNDLE_BYTES: usize = 8 * 1024 * 1024;

/// How long an idle connection is kept: its buffers hold the last answer, which may contain a data key.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// An error in the network settings of this host.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The URL of the proxy. It may contain a password, so it is not shown.
    #[error(
        "the environment variable {0} is not the URL of an HTTP proxy, such as http://proxy.example:3128; correct it (an @ in a password is written %40) or unset it"
    )]
    Proxy(&'static str),
    /// A file of CA certificates.
    #[error("cannot use the CA certificates in {path} ({by}): {why}", path = path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// The variable or setting that names it.
        by: &'static str,
        /// Why not.
        why: String,
    },
    /// `SSL_CERT_FILE` or `SSL_CERT_DIR` without a value, which would mean no certificates at all.
    #[error(
        "the environment variable {0} is set but empty; unset it, or set it to the path of CA certificates"
    )]
    Empty(&'static str),
    /// The system has none.
    #[error(
        "this host has no CA certificates; install them (package ca-certificates), or set AWS_CA_BUNDLE to a file that contains them"
    )]
    NoCertificates,
    /// They cannot be read now.
    #[error("cannot start a thread that reads the CA certificates: {0}")]
    Thread(String),
}

/// How this host reaches AWS.
#[derive(Debug, Clone)]
pub struct Network {
    proxy: Option<Proxy>,
    trust: Trust,
    request_timeout: Duration,
}

#[derive(Clone)]
struct Proxy {
    config: ProxyConfig,
    /// Whether the URL names a user.
    has_user: bool,
    /// The variable and the URL without the password, for messages.
    text: String,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The certificate authorities that are trusted. They are checked at the start and read when a connection is made: a
/// quarter of a megabyte is too much to keep for hours.
#[derive(Debug, Clone)]
struct Trust {
    /// `None`: those of the system or of `SSL_CERT_DIR`.
    bundle: Option<Bundle>,
    /// Where they are, for messages.
    text: String,
}

/// A file of CA certificates.
#[derive(Debug, Clone)]
struct Bundle {
    path: PathBuf,
    /// The variable or setting that names it.
    by: &'static str,
}

impl Network {
    /// Reads proxy and CA certificates from the environment, and from the `ca_bundle` of the
    /// profile.
    ///
    /// Errors: one of them is invalid.
    pub fn read(
        ca_bundle_of_profile: Option<&str>,
        request_timeout: Duration,
    ) -> Result<Self, NetworkError> {
        Ok(Self {
            proxy: Proxy::read()?,
            trust: Trust::read(ca_bundle_of_profile)?,
            request_timeout,
        })
    }

    /// Returns the same settings without a proxy.
    #[must_use]
    pub fn without_proxy(&self) -> Self {
        Self {
            proxy: None,
            ..self.clone()
        }
    }

    /// Describes the proxy for messages, after a separator; empty if there is none.
    pub fn proxy_text(&self) -> String {
        let Some(proxy) = &self.proxy else {
            return String::new();
        };
        format!("; {}", proxy.text)
    }

    /// Creates a client. Unless it `needs_tls`, it reads no certificates.
    pub fn client(&self, needs_tls: bool) -> SharedHttpClient {
        SharedHttpClient::new(Client(Connectors::new(self, needs_tls)))
    }

    /// Creates a connection for calls that are not made by the SDK. Unless it `needs_tls`, it reads no
    /// certificates.
    pub fn connector(&self, needs_tls: bool, connect_timeout: Duration) -> SharedHttpConnector {
        let settings = HttpConnectorSettings::builder()
            .connect_timeout(connect_timeout)
            .read_timeout(self.request_timeout)
            .build();
        SharedHttpConnector::new(NamingConnector {
            connectors: Connectors::new(self, needs_tls),
            settings,
            max_answer_bytes: MAX_LIST_BYTES,
        })
    }

    fn connect(
        &self,
        trusted: TrustStore,
        settings: &HttpConnectorSettings,
    ) -> SharedHttpConnector {
        // This cannot fail: the certificates have been parsed before.
        let tls = TlsContext::builder()
            .with_trust_store(trusted)
            .build()
            .unwrap_or_default();
        let mut builder = Connector::builder()
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tls_provider(Provider::rustls(CryptoMode::Ring))
            .tls_context(tls)
            .connector_settings(settings.clone());
        builder.set_proxy_config(self.proxy.as_ref().map(|proxy| proxy.config.clone()));
        SharedHttpConnector::new(builder.build_with_resolver(Resolver))
    }

    /// Explains a failed request to `url` in one line that names the host.
    fn explain(
        &self,
        error: &ConnectorError,
        url: &Uri,
        settings: &HttpConnectorSettings,
    ) -> String {
        let host = url.authority().map_or("", |it| it.as_str());
        let has_user = self.proxy.as_ref().is_some_and(|proxy| proxy.has_user);
        let cause = cause(error, settings, has_user);
        if cause.contains("InvalidContentType") {
            return format!(
                "{host} answers, but does not speak TLS; if that is intended, use http:// in its URL, not https://"
            );
        }
        if is_unknown_issuer(&cause) {
            return format!(
                "the certificate of {host} is not signed by any of {}; add the right CA certificate there, or set AWS_CA_BUNDLE to its file",
                self.trust.text
            );
        }
        // An error of the resolver names the host already.
        let text = match cause.starts_with("cannot resolve") {
            true => cause,
            false => format!("{host}: {cause}"),
        };
        match (&self.proxy, url.scheme_str()) {
            (Some(proxy), Some("https")) => format!("{text}; {}", proxy.text),
            (None, Some("https")) if !text.contains("certificate") => {
                let region = match text.starts_with("cannot resolve") {
                    true => region_in(host),
                    false => None,
                };
                let region = region.map_or_else(String::new, |it| format!(", and the region {it}"));
                format!("{text}; check DNS and firewall (HTTPS_PROXY is not set){region}")
            }
            _ => text,
        }
    }
}

/// The region in a host name of AWS, such as `sts.us-east-1.amazonaws.com`, which anybody may have mistyped.
fn region_in(host: &str) -> Option<&str> {
    let (service, rest) = host.split_once('.')?;
    let (region, domain) = rest.split_once('.')?;
    let is_of_region = ["sts", "kms"].iter().any(|it| service.starts_with(it));
    let is_aws = ["amazonaws.com", "api.aws"]
        .iter()
        .any(|it| domain.starts_with(it));
    (is_of_region && is_aws).then_some(region)
}

/// Returns the innermost reason, with clearer texts for time-outs and for errors of the proxy.
fn cause(error: &ConnectorError, settings: &HttpConnectorSettings, has_user: bool) -> String {
    if error.is_timeout() {
        let connecting = chain(error).any(|error| error.to_string().starts_with("HTTP connect"));
        let (what, limit) = match connecting {
            true => ("connection", settings.connect_timeout()),
            false => ("answer", settings.read_timeout()),
        };
        let seconds = limit.unwrap_or_default().as_secs();
        return format!("no {what} within {}", seconds_text(seconds));
    }
    let cause = root_cause(error);
    match cause.strip_prefix("tunnel error: ") {
        Some("proxy authorization required") if has_user => {
            "the proxy does not accept the user and password of its URL".into()
        }
        Some("proxy authorization required") => {
            "the proxy requires a user and a password (http://USER:PASSWORD@HOST:PORT)".into()
        }
        Some("unsuccessful") => "the proxy refuses the connection".into(),
        Some(why) => format!("the proxy cannot connect: {why}"),
        None => cause,
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn is_unknown_issuer(cause: &str) -> bool {
    cause.contains("UnknownIssuer")
}

impl Proxy {
    /// Lower-case names take precedence, as in curl and the AWS CLI. Plain HTTP never uses a proxy:
    /// AWS's endpoints require TLS, and what does not is on this host or on its link.
    fn read() -> Result<Option<Self>, NetworkError> {
        let Some((variable, value)) = variables::first(&["https_proxy", "HTTPS_PROXY"]) else {
            return Ok(None);
        };
        let no_proxy = variables::first(&["no_proxy", "NO_PROXY"]);
        Self::parse(variable, &value, no_proxy)
            .map(Some)
            .ok_or(NetworkError::Proxy(variable))
    }

    fn parse(
        variable: &str,
        value: &str,
        no_proxy: Option<(&'static str, String)>,
    ) -> Option<Self> {
        let url = match value.contains("://") {
            true => value.to_owned(),
            false => format!("http://{value}"),
        };
        let uri: Uri = url.parse().ok()?;
        let authority = uri.authority()?.as_str();
        // Of two `@`, one is of the password, and who reads the URL may not agree which.
        if authority.matches('@').count() > 1 {
            return None;
        }
        let host = authority.rsplit('@').next()?.to_owned();
        let mut config = ProxyConfig::https(uri.clone()).ok()?;
        let mut text = format!("{variable} is {}://{host}", uri.scheme_str()?);
        if let Some((variable, hosts)) = no_proxy {
            text += &format!(", {variable} {hosts}");
            config = config.no_proxy(hosts);
        }
        let has_user = host != authority;
        Some(Self {
            config,
            has_user,
            text,
        })
    }
}

impl Trust {
    fn read(ca_bundle_of_profile: Option<&str>) -> Result<Self, NetworkError> {
        let bundle = variables::first(&["AWS_CA_BUNDLE"]);
        let of_profile = ca_bundle_of_profile.map(|path| ("ca_bundle in the profile", path.into()));
        if let Some((by, path)) = bundle.or(of_profile) {
            let bundle = Bundle::checked(by, path)?;
            return Ok(Self {
                text: bundle.to_string(),
                bundle: Some(bundle),
            });
        }
        for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
            if std::env::var_os(name).is_some_and(|value| value.is_empty()) {
                return Err(NetworkError::Empty(name));
            }
        }
        let directory = variables::text("SSL_CERT_DIR");
        let bundle = match (variables::first(&["SSL_CERT_FILE"]), &directory) {
            (Some((by, path)), _) => Some(Bundle::checked(by, path)?),
            (None, Some(path)) if !Path::new(path).is_dir() => {
                return Err(NetworkError::Bundle {
                    path: path.into(),
                    by: "SSL_CERT_DIR",
                    why: "it is not a directory".into(),
                });
            }
            (None, _) => None,
        };
        let bundle = bundle.filter(|_| directory.is_none());
        let of_host = || "the CA certificates of this host".into();
        Ok(Self {
            text: bundle.as_ref().map_or_else(of_host, Bundle::to_string),
            bundle,
        })
    }

    /// Reads them. It may take as long as the file system does.
    fn read_files(&self) -> Result<Certificates, NetworkError> {
        Ok(match &self.bundle {
            Some(bundle) => Certificates::OfBundle(bundle.clone(), bundle.text()?),
            // The SDK's own way to the system's certificates keeps for ever what it finds the first time.
            None => Certificates::OfSystem(rustls_native_certs::load_native_certs().certs),
        })
    }
}

/// What was in the files.
#[derive(Debug)]
enum Certificates {
    OfBundle(Bundle, Zeroizing<String>),
    OfSystem(Vec<CertificateDer<'static>>),
}

impl Certificates {
    /// Takes those that can be used.
    ///
    /// Errors: none can be used.
    fn store(self) -> Result<TrustStore, NetworkError> {
        let mut store = TrustStore::empty();
        match self {
            Self::OfBundle(bundle, text) => bundle.read(&text, |pem| {
                store.add_pem_certificate(pem);
            })?,
            Self::OfSystem(found) => {
                let mut usable = found.into_iter().filter(is_usable).peekable();
                if usable.peek().is_none() {
                    return Err(NetworkError::NoCertificates);
                }
                for certificate in usable {
                    let text = base64::encode(&certificate);
                    store.add_pem_certificate(format!("{BEGIN}\n{text}\n{END}\n"));
                }
            }
        }
        Ok(store)
    }
}

impl Bundle {
    /// Fails if the file has no usable certificate.
    fn checked(by: &'static str, path: String) -> Result<Self, NetworkError> {
        let bundle = Self {
            path: path.into(),
            by,
        };
        bundle.read(&bundle.text()?, |_| {})?;
        Ok(bundle)
    }

    fn text(&self) -> Result<Zeroizing<String>, NetworkError> {
        input_file::read_text(&self.path, MAX_BUNDLE_BYTES)
            .map_err(|error| self.error(error.to_string()))
    }

    /// Passes the certificates in its text to `usable`.
    fn read(&self, text: &str, usable: impl FnMut(&str)) -> Result<(), NetworkError> {
        for_each_usable(text, usable).map_err(|why| self.error(why))
    }

    fn error(&self, why: String) -> NetworkError {
        NetworkError::Bundle {
            path: self.path.clone(),
            by: self.by,
            why,
        }
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "those in {} ({})", self.path.display(), self.by)
    }
}

/// Passes the certificates of a PEM file to `usable`, without those that rustls cannot use: the SDK
/// panics on them. The error says why there are none.
fn for_each_usable(pem: &str, mut usable: impl FnMut(&str)) -> Result<(), String> {
    let mut rest = pem;
    let mut has_any = false;
    while let Some(begin) = rest.find(BEGIN) {
        let section = &rest[begin..];
        let Some(end) = section.find(END).map(|end| end + END.len()) else {
            return Err("it ends inside a certificate".into());
        };
        let (certificate, after) = section.split_at(end);
        let der = CertificateDer::from_pem_slice(certificate.as_bytes());
        if der.is_ok_and(|der| is_usable(&der)) {
            has_any = true;
            usable(certificate);
        }
        rest = after;
    }
    match has_any {
        true => Ok(()),
        false if pem.trim().is_empty() => Err("it is empty".into()),
        false => Err("it has no usable certificate in PEM form".into()),
    }
}

/// Whether rustls can use this certificate of an authority.
fn is_usable(certificate: &CertificateDer<'_>) -> bool {
    rustls::RootCertStore::empty()
        .add(certificate.clone())
        .is_ok()
}

/// The connectors of a client, which keep its connections. One is made only of CA certificates that could be read: what
/// is in their files for a moment must not decide about the calls of hours.
#[derive(Debug)]
struct Connectors {
    network: Network,
    needs_tls: bool,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    connectors: Vec<(HttpConnectorSettings, SharedHttpConnector)>,
    /// The thread that reads the files of certificates. It outlives a call that has given up, so that a file server that hangs
    /// blocks only one.
    reading: Option<oneshot::Receiver<Result<Certificates, NetworkError>>>,
}

impl Connectors {
    fn new(network: &Network, needs_tls: bool) -> Arc<Self> {
        Arc::new(Self {
            network: network.clone(),
            needs_tls,
            made: Mutex::default(),
        })
    }

    /// Returns the connector for these settings, and makes it if there is none.
    ///
    /// Errors: the CA certificates cannot be read.
    async fn get(
        &self,
        settings: &HttpConnectorSettings,
    ) -> Result<SharedHttpConnector, NetworkError> {
        let limits = |of: &HttpConnectorSettings| (of.connect_timeout(), of.read_timeout());
        let mut made = self.made.lock().await;
        let mut connectors = made.connectors.iter();
        if let Some((_, connector)) = connectors.find(|(of, _)| limits(of) == limits(settings)) {
            return Ok(connector.clone());
        }
        let trusted = match self.needs_tls {
            true => self.trusted(&mut made).await?,
            false => TrustStore::empty(),
        };
        let connector = self.network.connect(trusted, settings);
        made.connectors.push((settings.clone(), connector.clone()));
        Ok(connector)
    }

    async fn trusted(&self, made: &mut Made) -> Result<TrustStore, NetworkError> {
        let reading = match &mut made.reading {
            Some(reading) => reading,
            none => {
                let trust = self.network.trust.clone();
                let reading = thread::apart("ca-bundle", move || trust.read_files());
                none.insert(reading.map_err(|error| NetworkError::Thread(error.to_string()))?)
            }
        };
        let read = reading.await;
        made.reading = None;
        // The allocator keeps what a thread has used apart, so the many small pieces are made here.
        read.unwrap_or_else(|lost| Err(NetworkError::Thread(lost.to_string())))?
            .store()
    }

    /// Has the next call read the CA certificates again.
    async fn forget(&self) {
        self.made.lock().await.connectors.clear();
    }
}

/// The SDK's client, with limited answers, and errors that name the host.
#[derive(Clone, Debug)]
struct Client(Arc<Connectors>);

impl HttpClient for Client {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(NamingConnector {
            connectors: Arc::clone(&self.0),
            settings: settings.clone(),
            max_answer_bytes: MAX_ANSWER_BYTES,
        })
    }
}

#[derive(Debug)]
struct NamingConnector {
    connectors: Arc<Connectors>,
    settings: HttpConnectorSettings,
    max_answer_bytes: usize,
}

impl HttpConnector for NamingConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let url: Uri = request.uri().parse().unwrap_or_default();
        let (connectors, settings) = (Arc::clone(&self.connectors), self.settings.clone());
        let max_bytes = self.max_answer_bytes;
        HttpConnectorFuture::new(async move {
            let network = &connectors.network;
            let limit = network.request_timeout;
            let (host, seconds) = (
                url.authority().map_or("", |it| it.as_str()),
                seconds_text(limit.as_secs()),
            );
            let unchecked =
                |why: String| format!("cannot check the certificate of {host}: {why}").into();
            let connector = match timeout(limit, connectors.get(&settings)).await {
                Ok(Ok(connector)) => connector,
                Ok(Err(error)) => return Err(ConnectorError::io(unchecked(error.to_string()))),
                Err(_) => {
                    let why = format!("the CA certificates could not be read within {seconds}");
                    return Err(ConnectorError::timeout(unchecked(why)));
                }
            };
            match timeout(limit, connector.call(request)).await {
                Ok(Ok(answer)) => {
                    // Reading more fails.
                    Ok(answer.map(|body| SdkBody::from_body_1_x(Limited::new(body, max_bytes))))
                }
                Ok(Err(error)) => {
                    if is_unknown_issuer(&root_cause(&error)) {
                        // Perhaps the file was cut off when it was read, and perhaps somebody adds the right one.
                        connectors.forget().await;
                    }
                    Err(renamed(&error, network.explain(&error, &url, &settings)))
                }
                Err(_) => Err(ConnectorError::timeout(
                    format!(
                        "{host} gave no answer within {seconds} (request_timeout_seconds){}",
                        network.proxy_text()
                    )
                    .into(),
                )),
            }
        })
    }
}

/// Returns an error of the same kind with another text.
fn renamed(error: &ConnectorError, text: String) -> ConnectorError {
    let text: Box<dyn Error + Send + Sync> = text.into();
    match error {
        error if error.is_timeout() => ConnectorError::timeout(text),
        error if error.is_io() => ConnectorError::io(text),
        error if error.is_user() => ConnectorError::user(text),
        error => ConnectorError::other(text, error.as_other()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_found_in_aws_own_host_names_alone() {
        for (host, region) in [
            ("sts.useast1.amazonaws.com", Some("useast1")),
            ("kms-fips.us-est-1.amazonaws.com:443", Some("us-est-1")),
            ("kms.eu-central-1.api.aws", Some("eu-central-1")),
            ("kms.example.com", None),
            ("proxy", None),
        ] {
            assert_eq!(region_in(host), region, "{host}");
        }
    }

    #[test]
    fn a_proxy_is_shown_without_its_password() {
        let no_proxy = Some(("NO_PROXY", "localhost,.example".into()));
        for (value, text) in [
            ("http://proxy:3128", "HTTPS_PROXY is http://proxy:3128"),
            ("proxy:3128", "HTTPS_PROXY is http://proxy:3128"),
            (
                "http://user:s3cret@proxy:3128/",
                "HTTPS_PROXY is http://proxy:3128",
            ),
            ("user:s3cret@proxy:3128", "HTTPS_PROXY is http://proxy:3128"),
        ] {
            let proxy = Proxy::parse("HTTPS_PROXY", value, no_proxy.clone()).unwrap();
            let expected = format!("{text}, NO_PROXY localhost,.example");
            assert_eq!(format!("{proxy:?}"), expected);
        }
        for value in [
            "socks5://proxy:1080",
            "http://",
            "a b",
            "http://[::1",
            "http://user:s3@cret@proxy:3128",
        ] {
            assert!(
                Proxy::parse("HTTPS_PROXY", value, None).is_none(),
                "{value}"
            );
        }
    }

    #[test]
    fn an_error_says_why_a_bundle_has_no_usable_certificate() {
        let garbage = format!("{BEGIN}\nAAAA\n{END}\n");
        for (pem, why) in [
            ("", "it is empty"),
            ("text", "it has no usable certificate in PEM form"),
            (garbage.as_str(), "it has no usable certificate in PEM form"),
            (BEGIN, "it ends inside a certificate"),
        ] {
            assert_eq!(for_each_usable(pem, |_| {}).unwrap_err(), why);
        }
    }
}
