//! Credentials that a machine has because of where it runs: a web identity, the role of a container or
//! of an instance. The SDK fetches them; the checks here give clear messages and limit what is read.
//!
//! Sources: <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>,
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-imds-credentials.html>.

use std::{path::Path, time::Duration};

use aws_config::{
    ecs::EcsCredentialsProvider,
    imds::{self, credentials::ImdsCredentialsProvider},
    provider_config::ProviderConfig,
};
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError as SdkError};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{CredentialsError, Finder};
use crate::{
    credentials::Credentials,
    input_file,
    root_cause::root_cause,
    settings::{is_url, without_user},
    sts, variables,
};

const RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const CONTAINER_TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const CONTAINER_TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
const WEB_IDENTITY_TOKEN_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const INSTANCE_ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const INSTANCE_ENDPOINT_MODE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE";
const INSTANCE_DISABLED: &str = "AWS_EC2_METADATA_DISABLED";

/// Longest token, in bytes.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// An instance metadata service that answers does so at once.
const INSTANCE_TIMEOUT: Duration = Duration::from_secs(1);
const INSTANCE_ATTEMPTS: u32 = 2;

/// Why there are none, as text for a message.
type Reason = String;

/// Tries web identity, container and instance, in this order.
pub(super) fn credentials(
    finder: &Finder<'_>,
) -> Result<Result<Credentials, Reason>, CredentialsError> {
    if let Some(file) = variables::text(WEB_IDENTITY_TOKEN_FILE) {
        let session = web_identity(
            finder,
            (&file, WEB_IDENTITY_TOKEN_FILE),
            variables::text("AWS_ROLE_ARN").as_deref(),
            variables::text("AWS_ROLE_SESSION_NAME").as_deref(),
        )?;
        return Ok(Ok(session.map_err(|why| source("the web identity", why))?));
    }
    if let Some(found) = container(finder)? {
        return Ok(Ok(found.map_err(|why| source("the container", why))?));
    }
    instance(finder)
}

fn source(from: &str, why: String) -> CredentialsError {
    CredentialsError::Source {
        from: from.into(),
        why,
    }
}

/// Exchanges the token in a file for a session of a role. `token_file` is the path and what names it.
pub(super) fn web_identity(
    finder: &Finder<'_>,
    token_file: (&str, &str),
    role_arn: Option<&str>,
    session_name: Option<&str>,
) -> Result<Result<Credentials, Reason>, CredentialsError> {
    let Some(role_arn) = role_arn else {
        let (_, by) = token_file;
        return Ok(Err(format!(
            "{by} is set, but no role (AWS_ROLE_ARN, or role_arn)"
        )));
    };
    let token = match token(token_file) {
        Ok(token) => token,
        Err(why) => return Ok(Err(why)),
    };
    let session = sts::assume_role_with_web_identity(finder.aws, role_arn, session_name, &token);
    finder.run(session)
}

/// Reads a token. (The SDK's errors do not name the file.)
fn token((path, by): (&str, &str)) -> Result<Zeroizing<String>, Reason> {
    let failed = |why: String| format!("cannot use the token file {path} ({by}): {why}");
    let text = input_file::read_text(Path::new(path), MAX_TOKEN_BYTES)
        .map_err(|error| failed(error.to_string()))?;
    let token = text.trim_end();
    match token {
        "" => Err(failed("it is empty".into())),
        token if token.chars().all(|c| (' '..='~').contains(&c)) => {
            Ok(Zeroizing::new(token.into()))
        }
        _ => Err(failed("it does not contain a token".into())),
    }
}

/// Fetches the credentials of the container; `None`: no variable names its endpoint.
pub(super) fn container(
    finder: &Finder<'_>,
) -> Result<Option<Result<Credentials, Reason>>, CredentialsError> {
    let url = match (variables::text(RELATIVE_URI), variables::text(FULL_URI)) {
        (Some(path), _) => format!("http://169.254.170.2{path}"),
        (None, Some(url)) => url,
        (None, None) => return Ok(None),
    };
    if let Err(why) = check_container(&url) {
        return Ok(Some(Err(why)));
    }
    let config =
        ProviderConfig::without_region().with_http_client(finder.aws.metadata_client(&url));
    let provider = EcsCredentialsProvider::builder().configure(&config).build();
    // The SDK does not limit the time for the body of the answer.
    let patience = finder.aws.request_timeout();
    let call = async { timeout(patience, provider.provide_credentials()).await };
    Ok(Some(match finder.run(call)? {
        Ok(Ok(found)) => usable(Credentials::from(&found)),
        Ok(Err(error)) => Err(failure(&error)),
        Err(_) => Err(format!(
            "{url} gave no credentials in {} seconds (request_timeout_seconds)",
            patience.as_secs()
        )),
    }))
}

/// Checks what the SDK does not: it treats an empty variable as set, and reads a token file without
/// limit.
fn check_container(url: &str) -> Result<(), Reason> {
    for (name, other) in [
        (RELATIVE_URI, FULL_URI),
        (CONTAINER_TOKEN_FILE, CONTAINER_TOKEN),
    ] {
        let is_empty = std::env::var_os(name).is_some_and(|value| value.is_empty());
        if is_empty && variables::text(other).is_some() {
            return Err(format!(
                "{name} is set but empty, in addition to {other}; unset it"
            ));
        }
    }
    if !is_url(url) {
        return Err(format!(
            "{:?} ({FULL_URI} or {RELATIVE_URI}) is not a URL without a user",
            without_user(url)
        ));
    }
    match variables::text(CONTAINER_TOKEN_FILE) {
        Some(file) => token((&file, CONTAINER_TOKEN_FILE)).map(|_| ()),
        None => Ok(()),
    }
}

/// Fetches the credentials of the instance's role.
pub(super) fn instance(
    finder: &Finder<'_>,
) -> Result<Result<Credentials, Reason>, CredentialsError> {
    if variables::text(INSTANCE_DISABLED).is_some_and(|it| it.eq_ignore_ascii_case("true")) {
        return Ok(Err(format!(
            "no variable names a web identity or a container, and the instance metadata service is disabled ({INSTANCE_DISABLED})"
        )));
    }
    let url = match instance_endpoint() {
        Ok(url) => url,
        Err(why) => return Ok(Err(why)),
    };
    let config =
        ProviderConfig::without_region().with_http_client(finder.aws.metadata_client(&url));
    // With an explicit endpoint, the SDK does not look for one in ~/.aws.
    let client = imds::Client::builder()
        .configure(&config)
        .max_attempts(INSTANCE_ATTEMPTS)
        .connect_timeout(INSTANCE_TIMEOUT)
        .read_timeout(INSTANCE_TIMEOUT)
        .endpoint(&url);
    let client = match client {
        Ok(client) => client.build(),
        Err(error) => return Ok(Err(format!("{url}: {error}"))),
    };
    let provider = ImdsCredentialsProvider::builder()
        .configure(&config)
        .imds_client(client)
        .build();
    let found = finder.run(provider.provide_credentials())?;
    Ok(found
        .map_err(|error| instance_failure(&error, &url))
        .and_then(|found| usable(Credentials::from(&found))))
}

fn instance_endpoint() -> Result<String, Reason> {
    if let Some(url) = variables::text(INSTANCE_ENDPOINT) {
        return match is_url(&url) {
            true => Ok(url),
            false => Err(format!(
                "{:?} ({INSTANCE_ENDPOINT}) is not a URL without a user",
                without_user(&url)
            )),
        };
    }
    let is_ipv6 = variables::text(INSTANCE_ENDPOINT_MODE)
        .is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
    Ok(match is_ipv6 {
        true => "http://[fd00:ec2::254]".into(),
        false => "http://169.254.169.254".into(),
    })
}

fn usable(session: Credentials) -> Result<Credentials, Reason> {
    session.checked().map_err(|why| format!("the key {why}"))
}

fn instance_failure(error: &SdkError, url: &str) -> Reason {
    let cause = failure(error);
    if cause.contains("404") {
        return format!("the instance metadata service at {url} has no role for this instance");
    }
    format!(
        "the instance metadata service at {url} gave no credentials: {cause}; in a container on EC2, the hop limit must be 2 or more (aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2)"
    )
}

/// Returns the innermost reason, without the SDK's type names.
fn failure(error: &SdkError) -> Reason {
    let cause = root_cause(error);
    let status = cause.split("StatusCode(").nth(1);
    match status.and_then(|rest| rest.split(')').next()) {
        Some(status) => format!("it answered with HTTP status {status}"),
        None => cause,
    }
}
