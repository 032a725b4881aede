//! The AWS SDK as this project uses it: which files, region and endpoints, no retries of its own.

use std::{env, io, path::PathBuf, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig,
    environment::EnvironmentVariableRegionProvider,
    meta::region::{ProvideRegion, RegionProviderChain},
    profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider},
    provider_config::ProviderConfig,
    retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_sts::config::endpoint::{self, DefaultResolver, ResolveEndpoint};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::service_config::ServiceConfigKey;
use tokio::runtime::{Builder, Runtime};

use crate::{config::Config, http_client, session::Session};

/// The region where nothing names one, as the stock plugin has it.
pub const DEFAULT_REGION: &str = "us-east-1";

/// Loads the SDK's settings from `config`, the environment and the profile. Calls are made with
/// `credentials`, or with what the SDK's provider chain finds.
///
/// The SDK retries nothing and corrects no clock: whether an MFA code may be sent again, and what
/// the operator is told, are ours to decide.
pub async fn load(config: &Config, credentials: Option<&Session>) -> SdkConfig {
    load_with(config, credentials, http_client::new()).await
}

/// The same with a client that other services use too.
pub async fn load_with(
    config: &Config,
    credentials: Option<&Session>,
    http_client: SharedHttpClient,
) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .operation_timeout(config.request_timeout)
        .connect_timeout(config.request_timeout.min(Duration::from_secs(5)))
        .build();
    let region = region_chain(config).region().await;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client.clone())
        .retry_config(RetryConfig::disabled())
        .disable_clock_skew_correction(true)
        .timeout_config(timeouts)
        .region(region.clone())
        .profile_files(profile_files());
    if let Some(profile) = &config.profile {
        loader = loader.profile_name(profile);
    }
    match (credentials, &config.profile) {
        (Some(session), _) => loader.credentials_provider(session.to_sdk()),
        (None, Some(profile)) => {
            // The loader's client is not this provider's; without one it panics.
            let provider_config = ProviderConfig::without_region()
                .with_http_client(http_client)
                .with_region(region);
            let provider = ProfileFileCredentialsProvider::builder()
                .configure(&provider_config)
                .profile_name(profile)
                .profile_files(profile_files());
            loader.credentials_provider(provider.build())
        }
        (None, None) => loader,
    }
    .load()
    .await
}

/// A service of AWS that this project calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Security Token Service.
    Sts,
    /// Key Management Service.
    Kms,
}

/// The URL at which calls of `service` are made: of the environment or the profile, else AWS's own.
///
/// The error says why the region has none.
pub async fn endpoint(config: &Config, service: Service) -> Result<String, String> {
    let host = match service {
        Service::Sts => "https://sts.",
        Service::Kms => "https://kms.",
    };
    let settings = load(config, None).await;
    if let Some(url) = configured_endpoint(&settings, service)? {
        return Ok(url);
    }
    // Of the SDK's list of partitions: not every region is in amazonaws.com.
    let parameters = endpoint::Params::builder()
        .region(region_of(&settings))
        .build();
    let of_sts = DefaultResolver::new()
        .resolve_endpoint(&parameters.map_err(|error| error.to_string())?)
        .await
        .map_err(|error| error.to_string())?;
    Ok(of_sts.url().replacen("https://sts.", host, 1))
}

/// The URL for `service` of the environment (`AWS_ENDPOINT_URL` and its like) or the profile; an
/// empty one is none.
///
/// The error says what is wrong with them.
pub fn configured_endpoint(
    settings: &SdkConfig,
    service: Service,
) -> Result<Option<String>, String> {
    let id = match service {
        Service::Sts => "STS",
        Service::Kms => "KMS",
    };
    let key = ServiceConfigKey::builder()
        .service_id(id)
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .map_err(|error| error.to_string())?;
    let configured = settings
        .service_config()
        .and_then(|settings| settings.load_config(key))
        .or_else(|| settings.endpoint_url().map(Into::into));
    Ok(configured.filter(|url| !url.is_empty()))
}

/// The region in which calls are made.
pub fn region_of(settings: &SdkConfig) -> &str {
    settings.region().map_or(DEFAULT_REGION, AsRef::as_ref)
}

/// A runtime for one call. It lives only as long: a process that waits needs none of it.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// The region that the configuration or the profile names, for a command that is to see neither.
pub async fn configured_region(config: &Config) -> Option<String> {
    match &config.region {
        Some(region) => Some(region.clone()),
        None => profile_region(config).region().await.map(|r| r.to_string()),
    }
}

/// Finds the source credentials as the AWS CLI would: in the profile of the configuration, or else
/// in environment, default profile, web identity, container and instance.
///
/// The error says why there are none.
pub async fn find_credentials(config: &Config) -> Result<Session, String> {
    let settings = load(config, None).await;
    let provider = settings
        .credentials_provider()
        .ok_or("the SDK offers none")?;
    let credentials = provider
        .provide_credentials()
        .await
        .map_err(|error| no_credentials(config, &error))?;
    Ok(Session::from(&credentials))
}

/// Says in one line where there were none; the SDK takes a paragraph.
fn no_credentials(config: &Config, error: &CredentialsError) -> String {
    match (error, &config.profile) {
        (CredentialsError::CredentialsNotLoaded(_), Some(profile)) => {
            format!("there is no profile {profile} with credentials in AWS's configuration files")
        }
        (CredentialsError::CredentialsNotLoaded(_), None) => {
            "environment, profile, web identity, container and instance offer none".into()
        }
        _ => root_cause(error),
    }
}

/// Configuration, environment, profile, us-east-1; never the instance's metadata service, which a
/// host outside EC2 would wait for in vain.
fn region_chain(config: &Config) -> RegionProviderChain {
    RegionProviderChain::first_try(config.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile_region(config))
        .or_else(Region::new(DEFAULT_REGION))
}

fn profile_region(config: &Config) -> ProfileFileRegionProvider {
    let provider = ProfileFileRegionProvider::builder().profile_files(profile_files());
    match &config.profile {
        Some(name) => provider.profile_name(name).build(),
        None => provider.build(),
    }
}

fn profile_files() -> EnvConfigFiles {
    match credentials_file_of_the_manual() {
        Some(file) => EnvConfigFiles::builder()
            .with_file(EnvConfigFileKind::Credentials, file)
            .include_default_config_file(true)
            .build(),
        None => EnvConfigFiles::default(),
    }
}

/// The variable that MariaDB's manual uses, of the first AWS SDKs.
fn credentials_file_of_the_manual() -> Option<PathBuf> {
    let file = env::var_os("AWS_CREDENTIAL_PROFILES_FILE")?;
    env::var_os("AWS_SHARED_CREDENTIALS_FILE")
        .is_none()
        .then(|| file.into())
}

/// The innermost reason of an error: "Connection refused", not "dispatch failure".
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
