//! How AWS is called: region, endpoints and network, from the configuration, the environment and the
//! profile. All of it is read and checked here, once. The SDK's own loaders are not used: they ignore
//! invalid values, and read `~/.aws` whoever can write to it.

mod bucket;
mod profiles;

use std::{borrow::Cow, fmt, io, path::PathBuf, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::{retry::RetryConfig, timeout::TimeoutConfig};
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};
use tokio::runtime::{Builder, Runtime};

pub use bucket::{Bucket, BucketUrl};
pub use profiles::{Profile, Profiles, Reader, selected_profile};

use crate::{
    config::SessionConfig,
    credentials::Credentials,
    http_client::{Network, NetworkError},
    region::is_region,
    service_credential,
    variables::{self, REGION, VariableError},
};

/// The region if none is configured, as in the stock plugin.
pub const DEFAULT_REGION: &str = "us-east-1";

/// Longest time to wait for a connection.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How much longer than a request a call may take. So the HTTP client, which can name the host, notices
/// a time-out first.
pub const OPERATION_GRACE: Duration = Duration::from_millis(250);

/// How much of an invalid value is shown.
const MAX_SHOWN_CHARACTERS: usize = 200;

/// Longest URL of an endpoint, in bytes.
const MAX_URL_BYTES: usize = 2048;

/// Why AWS cannot be called with these settings.
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
    /// The credentials of the service cannot be used.
    #[error(
        "cannot use the AWS credentials in {path}: {why}; it must be an AWS credentials file with aws_access_key_id and aws_secret_access_key in [{section}]",
        path = path.display()
    )]
    FileOfService {
        /// The file.
        path: PathBuf,
        /// The section that the configuration selects.
        section: String,
        /// Why.
        why: String,
    },
    /// The requested profile is not in any file.
    #[error("there is no profile {profile} ({by}); looked for it in {files}")]
    NoProfile {
        /// Its name.
        profile: String,
        /// What names it.
        by: &'static str,
        /// Where it was looked for.
        files: String,
    },
    /// A setting has an invalid value.
    #[error("{setting} ({place}) is {value:?}, which is not {expected}")]
    Value {
        /// Its name.
        setting: &'static str,
        /// Where it is set.
        place: String,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A FIPS or dual-stack endpoint together with an endpoint URL.
    #[error(
        "both {kind} ({kind_by}) and the endpoint {url} are set, which AWS does not allow; unset one of them"
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

/// An AWS service that this project calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Security Token Service.
    Sts,
    /// Key Management Service.
    Kms,
}

impl Service {
    /// Returns its name in the SDK.
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
    /// Errors: one of them is invalid.
    pub fn read(config: &SessionConfig, reader: Reader) -> Result<Self, SettingsError> {
        variables::check()?;
        let profiles = Profiles::read(config, reader)?;
        // In the credentials of the service, and next to a key in the environment, it is looked up
        // later.
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

    /// Returns the same settings for another region.
    #[must_use]
    pub fn in_region(&self, region: Option<&str>) -> Self {
        let mut settings = self.clone();
        if let Some(region) = region {
            settings.region = Some(region.into());
        }
        settings
    }

    /// Returns whose files are read.
    pub fn reader(&self) -> Reader {
        self.reader
    }

    /// Returns the region of the calls.
    pub fn region(&self) -> &str {
        self.configured_region().unwrap_or(DEFAULT_REGION)
    }

    /// Returns the region that the configuration, the environment or the profile names.
    pub fn configured_region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// Returns the time limit of a request.
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// Returns the configured endpoint of a service; `None`: AWS's endpoint for the region.
    pub fn endpoint_url(&self, service: Service) -> Option<&str> {
        self.endpoints.url(service)
    }

    /// Names a service for messages, with its region if the endpoint is AWS's.
    pub fn name(&self, service: Service) -> String {
        match self.endpoint_url(service) {
            Some(_) => service.to_string(),
            None => format!("{service} in {}", self.region()),
        }
    }

    /// Says what to check if the answer did not come from AWS.
    pub fn wrong_answer_hint(&self, service: Service) -> String {
        match self.endpoint_url(service) {
            Some(url) => format!("check the endpoint URL {url}"),
            None => format!(
                "something between this host and AWS answers instead of it{}",
                self.network.proxy_text()
            ),
        }
    }

    /// Creates an HTTP client for the calls of one runtime. Its connections end with that runtime.
    pub fn http_client(&self) -> SharedHttpClient {
        self.network.client(self.endpoints.need_tls())
    }

    /// Creates an HTTP client for the metadata service of a container or an instance, which is never
    /// behind a proxy.
    pub fn metadata_client(&self, url: &str) -> SharedHttpClient {
        let without_proxy = self.network.without_proxy();
        without_proxy.client(url.starts_with("https:"))
    }

    /// Returns a connection to the bucket `bucket` of S3, and where it is found there.
    pub fn bucket(&self, bucket: &str) -> Bucket {
        let url = bucket::url(self, bucket);
        Bucket {
            connector: self.network.connector(url.is_tls(), self.connect_timeout()),
            url,
        }
    }

    /// Returns the settings for the SDK's clients, with the credentials of the calls.
    ///
    /// The SDK neither retries nor corrects the clock: this project decides whether a code may be sent
    /// again, and what the operator is told.
    pub fn sdk_config(&self, credentials: Option<&Credentials>) -> SdkConfig {
        self.sdk_config_with(credentials, self.http_client())
    }

    /// Returns the same settings with an HTTP client that other services use as well.
    pub fn sdk_config_with(
        &self,
        credentials: Option<&Credentials>,
        http_client: SharedHttpClient,
    ) -> SdkConfig {
        let timeouts = TimeoutConfig::builder()
            .operation_timeout(self.request_timeout + OPERATION_GRACE)
            .connect_timeout(self.connect_timeout())
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

    fn connect_timeout(&self) -> Duration {
        self.request_timeout.min(MAX_CONNECT_TIMEOUT)
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
        setting: switch.key,
        place: place.into(),
        value: value.into(),
        expected: "true or false",
    })
}

/// A setting that was found.
struct Found {
    value: String,
    /// Its variable or key.
    setting: &'static str,
    place: String,
}

impl Found {
    /// Looks for one of the variables `names`, and then for `key` in the profile.
    fn find(
        names: &[&'static str],
        key: &'static str,
        in_profile: Option<(&str, &str)>,
    ) -> Option<Self> {
        if let Some((setting, value)) = variables::first(names) {
            let place = "environment".into();
            return Some(Self {
                value,
                setting,
                place,
            });
        }
        let (value, place) = in_profile?;
        Some(Self {
            value: value.into(),
            setting: key,
            place: place.into(),
        })
    }

    fn checked(
        self,
        is_valid: impl Fn(&str) -> bool,
        expected: &'static str,
    ) -> Result<String, SettingsError> {
        match is_valid(&self.value) {
            true => Ok(self.value),
            false => Err(SettingsError::Value {
                setting: self.setting,
                place: self.place,
                value: without_user(&self.value)
                    .chars()
                    .take(MAX_SHOWN_CHARACTERS)
                    .collect(),
                expected,
            }),
        }
    }
}

/// Looks in the configuration, the environment and the profile. It does not ask the instance metadata
/// service, which does not answer outside EC2.
fn region(config: &SessionConfig, profiles: &Profiles) -> Result<Option<String>, SettingsError> {
    if let Some(region) = &config.region {
        return Ok(Some(region.clone()));
    }
    Found::find(&REGION, "region", profiles.setting("region"))
        .map(|found| found.checked(is_region, "an AWS region, such as us-east-1"))
        .transpose()
}

/// Endpoint URLs that replace AWS's endpoints.
#[derive(Debug, Clone, Default)]
struct Endpoints {
    sts: Option<String>,
    kms: Option<String>,
    s3: Option<String>,
}

impl Endpoints {
    fn read(profiles: &Profiles) -> Result<Self, SettingsError> {
        if switch(profiles, IGNORE_ENDPOINTS)? {
            return Ok(Self::default());
        }
        Ok(Self {
            sts: endpoint(profiles, Service::Sts.id(), "AWS_ENDPOINT_URL_STS")?,
            kms: endpoint(profiles, Service::Kms.id(), "AWS_ENDPOINT_URL_KMS")?,
            s3: endpoint(profiles, "S3", "AWS_ENDPOINT_URL_S3")?,
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
    service_id: &str,
    variable: &'static str,
) -> Result<Option<String>, SettingsError> {
    let names = [variable, "AWS_ENDPOINT_URL"];
    let in_profile = profiles.endpoint_url(service_id);
    Found::find(&names, "endpoint_url", in_profile)
        .map(|found| {
            let expected = "a URL without a user, such as https://kms.us-east-1.amazonaws.com";
            found.checked(is_url, expected)
        })
        .transpose()
}

/// A URL as it is shown: without user and password, even if it is malformed.
pub fn without_user(url: &str) -> Cow<'_, str> {
    let Some((before, rest)) = url.rsplit_once('@') else {
        return url.into();
    };
    match before.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://…@{rest}").into(),
        None => format!("…@{rest}").into(),
    }
}

/// Whether `text` is an absolute HTTP or HTTPS URL without a user.
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

/// Creates a runtime for one call. It ends with the call, so that a waiting process stays small.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_user() {
        for (url, shown) in [
            ("https://kms.example/p", "https://kms.example/p"),
            ("https://user:s3cret@kms.example", "https://…@kms.example"),
            ("https://user:s3/cret@kms.example", "https://…@kms.example"),
            ("https://user:s3@cret@kms.example", "https://…@kms.example"),
            ("user:s3cret@kms.example", "…@kms.example"),
            ("https:/user:s3cret@kms.example", "…@kms.example"),
        ] {
            assert_eq!(without_user(url), shown);
        }
    }

    #[test]
    fn invalid_endpoint_urls_are_refused() {
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
