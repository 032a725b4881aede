//! The SDK's HTTP client, for what holds secrets on a host that it does not own: it reads the
//! system's CA certificates only for a connection that needs them, takes answers of a limited length
//! only, keeps no connection for long, and resolves names without a pool of threads.
//!
//! The SDK's own reads the certificates for every client that is made and throws the first result
//! away: most of what a call costs, also of one over plain HTTP (local-aws, an instance's metadata).

use std::time::Duration;

use aws_smithy_http_client::{
    Builder,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{
    connector_metadata::ConnectorMetadata,
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
        SharedHttpConnector,
    },
    orchestrator::HttpRequest,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;

use crate::dns::Resolver;

/// Longest answer that is read, in bytes. Those of STS, KMS and an instance's metadata have some
/// thousand.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// A connection that is kept holds the last answer in its buffers, data keys among them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes a client for HTTP and HTTPS. It trusts the CA certificates of the system, or of
/// `SSL_CERT_FILE` and `SSL_CERT_DIR`.
pub fn new() -> SharedHttpClient {
    let resolver = Resolver::default();
    let provider = || {
        Builder::new()
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tls_provider(Provider::rustls(CryptoMode::Ring))
    };
    // An empty trust store cannot be a wrong one; the default would do too, only slower.
    let trusts_nobody = TlsContext::builder()
        .with_trust_store(TrustStore::empty())
        .build()
        .unwrap_or_default();
    SharedHttpClient::new(Client {
        http: provider()
            .tls_context(trusts_nobody)
            .build_with_resolver(resolver.clone()),
        https: provider().build_with_resolver(resolver),
    })
}

/// Both keep their connections, and the second its certificates, for later requests.
#[derive(Clone, Debug)]
struct Client {
    http: SharedHttpClient,
    https: SharedHttpClient,
}

impl HttpClient for Client {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            client: self.clone(),
            settings: settings.clone(),
            components: components.clone(),
        })
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.https.connector_metadata()
    }
}

#[derive(Debug)]
struct Connector {
    client: Client,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = match request.uri().starts_with("http://") {
            true => &self.client.http,
            false => &self.client.https,
        };
        let answer = client
            .http_connector(&self.settings, &self.components)
            .call(request);
        HttpConnectorFuture::new(async move { Ok(answer.await?.map(limited)) })
    }
}

/// Reading more than [`MAX_ANSWER_BYTES`] fails.
fn limited(body: SdkBody) -> SdkBody {
    SdkBody::from_body_1_x(Limited::new(body, MAX_ANSWER_BYTES))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use aws_credential_types::Credentials;
    use aws_sdk_sts::config::{BehaviorVersion, Region, retry::RetryConfig};
    use aws_smithy_runtime_api::client::{http::http_client_fn, result::ConnectorError};

    use super::*;

    #[derive(Debug)]
    struct Unreachable;

    impl HttpConnector for Unreachable {
        fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
            HttpConnectorFuture::ready(Err(ConnectorError::other("unreachable".into(), None)))
        }
    }

    /// The clients whose connectors are made for a call to `endpoint`.
    fn clients_used(endpoint: &str) -> Vec<&'static str> {
        let used = Arc::new(Mutex::new(Vec::new()));
        let client = |name| {
            let used = Arc::clone(&used);
            http_client_fn(move |_, _| {
                used.lock().unwrap().push(name);
                SharedHttpConnector::new(Unreachable)
            })
        };
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("AKIAX", "secret", None, None, "test"))
            .retry_config(RetryConfig::disabled())
            .endpoint_url(endpoint)
            .http_client(SharedHttpClient::new(Client {
                http: client("http"),
                https: client("https"),
            }))
            .build();
        let call = aws_sdk_sts::Client::from_conf(config)
            .get_caller_identity()
            .send();
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(call)
            .unwrap_err();
        used.lock().unwrap().clone()
    }

    #[test]
    fn plain_http_makes_no_connector_that_reads_certificates() {
        assert_eq!(clients_used("http://127.0.0.1:1"), ["http"]);
    }

    #[test]
    fn https_makes_the_connector_that_reads_certificates_and_only_once_a_call() {
        assert_eq!(clients_used("https://127.0.0.1:1"), ["https"]);
    }
}
