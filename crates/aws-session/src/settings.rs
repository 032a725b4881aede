//! How AWS is called: region, endpoints and network, from the configuration, the environment and the
//! profile. Everything is read and checked here, once; the SDK looks for none of it by itself.

mod profiles;

use std::{fmt, io, path::PathBuf, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::{retry::RetryConfig, timeout::TimeoutConfig};
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};
use tokio::runtime::{Builder, Runtime};

pub use profiles::{Profile, Profiles, Reader, selected_profile};

use crate::{
    config::SessionConfig,
    http_client::{Network, NetworkError},
    region::is_region,
    service_credential,
    session::Session,
    variables::{self, REGION, VariableError},
};

/// The region where nothing names one, as the stock plugin has it.
pub const DEFAULT_REGION: &str = "us-east-1";

/// Longest wait for a connection.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How much longer than a request a call may take: the HTTP client, which can name the host, is to
/// notice a timeout first.
pub const OPERATION_GRACE: Duration = Duration::from_millis(250);

/// Longest URL of an endpoint, in bytes.
const MAX_URL_BYTES: usize = 2048;

/// What AWS is asked for cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A variable.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// A file of profiles.
    #[error("cannot use the AWS file {path}{by}: {why}", path = path.display(), by = by(*variable))]
    File {
        /// The file.
        path: PathBuf,
        /// The variable that names it.
        variable: Option<&'static str>,
        /// Why not.
        why: String,
    },
    /// The profile that is asked for is in no file.
    #[error("there is no profile {profile} ({by}); looked for it in {files}")]
    NoProfile {
        /// Its name.
        profile: String,
        /// What names it.
        by: &'static str,
        /// Where it was looked for.
        files: String,
    },
    /// A setting has a value that it cannot have.
    #[error("{setting} ({place}) is {value:?}, which is not {expected}")]
    Value {
        /// Its name.
        setting: String,
        /// Where it stands.
        place: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// AWS has no FIPS or dual-stack form of somebody else's endpoint.
    #[error(
        "{kind} is asked for ({kind_by}) and so is the endpoint {url}, which AWS does not allow; unset one of them"
    )]
    EndpointConflict {
        /// FIPS or dual-stack.
        kind: &'static str,
        /// The setting.
        kind_by: &'static str,
        /// The endpoint.
        url: String,
    },
    /// Proxy or CA certificates.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

fn by(variable: Option<&'static str>) -> String {
    variable.map_or_else(String::new, |variable| format!(" ({variable})"))
}

/// A service of AWS that this project calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Security Token Service.
    Sts,
    /// Key Management Service.
    Kms,
}

impl Service {
    /// As the SDK names it.
    fn id(self) -> &'static str {
        match self {
            Self::Sts => "STS",
            Self::Kms => "KMS",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// Region, endpoints and network of every call.
#[derive(Debug, Clone)]
pub struct Settings {
    reader: Reader,
    region: Option<String>,
    endpoints: Endpoints,
    use_fips: bool,
    use_dual_stack: bool,
    request_timeout: Duration,
    network: Network,
}

impl Settings {
    /// Reads them from `config`, the environment and the profiles that `reader` may read.
    ///
    /// Errors: one of them cannot be used.
    pub fn read(config: &SessionConfig, reader: Reader) -> Result<Self, SettingsError> {
        variables::check()?;
        let profiles = Profiles::read(config, reader)?;
        // In the service's own file, and beside a key in the environment, it is looked for later.
        if config.profile.is_some() && service_credential::file().is_none() {
            profiles.selected()?;
        }
        let settings = Self {
            reader,
            region: region(config, &profiles)?,
            endpoints: Endpoints::read(&profiles)?,
            use_fips: switch(&profiles, FIPS)?,
            use_dual_stack: switch(&profiles, DUAL_STACK)?,
            request_timeout: config.request_timeout,
            network: Network::read(
                profiles.setting("ca_bundle").map(|(path, _)| path),
                config.request_timeout,
            )?,
        };
        settings.check_conflicts()?;
        Ok(settings)
    }

    /// The same in another region.
    #[must_use]
    pub fn in_region(&self, region: Option<&str>) -> Self {
        let mut settings = self.clone();
        if let Some(region) = region {
            settings.region = Some(region.into());
        }
        settings
    }

    /// Whose files are read.
    pub fn reader(&self) -> Reader {
        self.reader
    }

    /// The region of the calls.
    pub fn region(&self) -> &str {
        self.configured_region().unwrap_or(DEFAULT_REGION)
    }

    /// The region that configuration, environment or profile name.
    pub fn configured_region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// How long a request may take.
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// The URL at which a service is called; `None`: AWS's own for the region.
    pub fn endpoint_url(&self, service: Service) -> Option<&str> {
        self.endpoints.url(service)
    }

    /// A service, and its region where the endpoint is AWS's own, for people.
    pub fn name(&self, service: Service) -> String {
        match self.endpoint_url(service) {
            Some(_) => service.to_string(),
            None => format!("{service} in {}", self.region()),
        }
    }

    /// What to look at where something else than AWS has answered.
    pub fn wrong_answer_hint(&self, service: Service) -> String {
        match self.endpoint_url(service) {
            Some(url) => format!("check the endpoint URL {url}"),
            None => format!(
                "something between this host and AWS answers in its place{}",
                self.network.proxy_text()
            ),
        }
    }

    /// A client for the calls of one runtime. Its connections end with that runtime.
    pub fn http_client(&self) -> SharedHttpClient {
        self.network.client(self.endpoints.need_tls())
    }

    /// A client for the metadata service of a container or an instance, which is never behind a
    /// proxy.
    pub fn metadata_client(&self, url: &str) -> SharedHttpClient {
        let without_proxy = self.network.without_proxy();
        without_proxy.client(url.starts_with("https:"))
    }

    /// The settings for the SDK's clients, with the credentials of the calls.
    ///
    /// The SDK retries nothing and corrects no clock: whether an MFA code may be sent again, and
    /// what the operator is told, are ours to decide.
    pub fn sdk_config(&self, credentials: Option<&Session>) -> SdkConfig {
        self.sdk_config_with(credentials, self.http_client())
    }

    /// The same with a client that other services use too.
    pub fn sdk_config_with(
        &self,
        credentials: Option<&Session>,
        http_client: SharedHttpClient,
    ) -> SdkConfig {
        let timeouts = TimeoutConfig::builder()
            .operation_timeout(self.request_timeout + OPERATION_GRACE)
            .connect_timeout(self.request_timeout.min(MAX_CONNECT_TIMEOUT))
            .build();
        let mut builder = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(self.region().to_owned()))
            .use_fips(self.use_fips)
            .use_dual_stack(self.use_dual_stack)
            .service_config(self.endpoints.clone())
            .http_client(http_client)
            .retry_config(RetryConfig::disabled())
            .disable_clock_skew_correction(true)
            .timeout_config(timeouts);
        builder.set_credentials_provider(
            credentials.map(|session| SharedCredentialsProvider::new(session.to_sdk())),
        );
        builder.build()
    }

    fn check_conflicts(&self) -> Result<(), SettingsError> {
        for (is_on, switch) in [(self.use_fips, FIPS), (self.use_dual_stack, DUAL_STACK)] {
            for service in [Service::Sts, Service::Kms] {
                if let (true, Some(url)) = (is_on, self.endpoint_url(service)) {
                    return Err(SettingsError::EndpointConflict {
                        kind: switch.name,
                        kind_by: switch.variable,
                        url: url.into(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// A setting that is true or false.
#[derive(Clone, Copy)]
struct Switch {
    name: &'static str,
    variable: &'static str,
    key: &'static str,
}

const FIPS: Switch = Switch {
    name: "a FIPS endpoint",
    variable: "AWS_USE_FIPS_ENDPOINT",
    key: "use_fips_endpoint",
};

const DUAL_STACK: Switch = Switch {
    name: "a dual-stack endpoint",
    variable: "AWS_USE_DUALSTACK_ENDPOINT",
    key: "use_dualstack_endpoint",
};

const IGNORE_ENDPOINTS: Switch = Switch {
    name: "that configured endpoints are ignored",
    variable: "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    key: "ignore_configured_endpoint_urls",
};

fn switch(profiles: &Profiles, switch: Switch) -> Result<bool, SettingsError> {
    if let Some(is_on) = variables::boolean(switch.variable)? {
        return Ok(is_on);
    }
    let Some((value, place)) = profiles.setting(switch.key) else {
        return Ok(false);
    };
    variables::parse_boolean(value).ok_or_else(|| SettingsError::Value {
        setting: switch.key.into(),
        place: place.into(),
        value: value.into(),
        expected: "true or false",
    })
}

/// Configuration, environment, profile; never the instance's metadata service, which a host outside EC2
/// would wait for in vain.
fn region(config: &SessionConfig, profiles: &Profiles) -> Result<Option<String>, SettingsError> {
    if let Some(region) = &config.region {
        return Ok(Some(region.clone()));
    }
    let (region, setting, place) = match variables::first(&REGION) {
        Some((variable, region)) => (region, variable, "environment".to_owned()),
        None => match profiles.setting("region") {
            Some((region, place)) => (region.into(), "region", place.to_owned()),
            None => return Ok(None),
        },
    };
    if is_region(&region) {
        return Ok(Some(region));
    }
    Err(SettingsError::Value {
        setting: setting.into(),
        place,
        value: region,
        expected: "an AWS region, such as us-east-1",
    })
}

/// URLs of services that are not AWS's own.
#[derive(Debug, Clone)]
struct Endpoints {
    sts: Option<String>,
    kms: Option<String>,
}

impl Endpoints {
    fn read(profiles: &Profiles) -> Result<Self, SettingsError> {
        if switch(profiles, IGNORE_ENDPOINTS)? {
            return Ok(Self {
                sts: None,
                kms: None,
            });
        }
        Ok(Self {
            sts: endpoint(profiles, Service::Sts, "AWS_ENDPOINT_URL_STS")?,
            kms: endpoint(profiles, Service::Kms, "AWS_ENDPOINT_URL_KMS")?,
        })
    }

    fn url(&self, service: Service) -> Option<&str> {
        match service {
            Service::Sts => self.sts.as_deref(),
            Service::Kms => self.kms.as_deref(),
        }
    }

    fn need_tls(&self) -> bool {
        let is_plain =
            |url: &Option<String>| url.as_deref().is_some_and(|it| it.starts_with("http://"));
        !(is_plain(&self.sts) && is_plain(&self.kms))
    }
}

impl LoadServiceConfig for Endpoints {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        let url = match key.service_id() {
            "STS" => &self.sts,
            "KMS" => &self.kms,
            _ => return None,
        };
        url.clone().filter(|_| key.env() == "AWS_ENDPOINT_URL")
    }
}

fn endpoint(
    profiles: &Profiles,
    service: Service,
    variable: &'static str,
) -> Result<Option<String>, SettingsError> {
    let (url, setting, place) = match variables::first(&[variable, "AWS_ENDPOINT_URL"]) {
        Some((variable, url)) => (url, variable, "environment".to_owned()),
        None => match profiles.endpoint_url(service.id()) {
            Some((url, place)) => (url.into(), "endpoint_url", place.to_owned()),
            None => return Ok(None),
        },
    };
    if is_url(&url) {
        return Ok(Some(url));
    }
    Err(SettingsError::Value {
        setting: setting.into(),
        place,
        value: url.chars().take(200).collect(),
        expected: "a URL, such as https://kms.us-east-1.amazonaws.com",
    })
}

/// Whether `text` is an absolute URL that HTTP can be spoken to.
pub fn is_url(text: &str) -> bool {
    let is_http = text.starts_with("https://") || text.starts_with("http://");
    let has_host = |text: &str| {
        let url = text.parse::<http::Uri>().ok();
        let authority = url.as_ref().and_then(http::Uri::authority);
        authority.is_some_and(|it| {
            let after_host = it.as_str().rsplit(']').next().unwrap_or_default();
            let has_port = after_host.contains(':');
            !it.host().is_empty()
                && !it.as_str().contains('@')
                && has_port == it.port_u16().is_some()
        })
    };
    is_http
        && text.len() <= MAX_URL_BYTES
        && text.chars().all(|c| c.is_ascii_graphic())
        && has_host(text)
}

/// A runtime for one call. It lives only as long: a process that waits needs none of it.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_url_is_no_endpoint() {
        for url in [
            "http://127.0.0.1:4566",
            "https://[::1]:4566",
            "https://kms.example/p",
        ] {
            assert!(is_url(url), "{url}");
        }
        for url in [
            "kms",
            "file:///etc/passwd",
            "http://a b",
            "https://\u{e9}",
            "http://",
            "http://[::1",
            "https://kms:port",
        ] {
            assert!(!is_url(url), "{url}");
        }
    }
}
