//! Credentials that a machine has because of where it runs: a web identity, a container's role, an
//! instance's role.
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
use zeroize::Zeroizing;

use super::{CredentialsError, Finder};
use crate::{
    input_file, root_cause::root_cause, session::Session, settings::is_url, sts, variables,
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

/// Where an instance's metadata service answers, it answers at once.
const INSTANCE_TIMEOUT: Duration = Duration::from_secs(1);
const INSTANCE_ATTEMPTS: u32 = 2;

/// Why there are none, for people.
type Reason = String;

/// Asks for web identity, container and instance, in this order.
pub(super) fn credentials(
    finder: &Finder<'_>,
) -> Result<Result<Session, Reason>, CredentialsError> {
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

/// Exchanges the token in a file, and what names the file, for a session of a role.
pub(super) fn web_identity(
    finder: &Finder<'_>,
    token_file: (&str, &str),
    role_arn: Option<&str>,
    session_name: Option<&str>,
) -> Result<Result<Session, Reason>, CredentialsError> {
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

/// The token in a file, which is read here for its messages.
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
        _ => Err(failed("its text is not a token".into())),
    }
}

/// The credentials of the container; `None`: no variable names its endpoint.
pub(super) fn container(
    finder: &Finder<'_>,
) -> Result<Option<Result<Session, Reason>>, CredentialsError> {
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
    let found = finder.run(provider.provide_credentials())?;
    Ok(Some(
        found
            .map_err(|error| failure(&error))
            .and_then(|found| usable(Session::from(&found))),
    ))
}

/// The SDK takes an empty variable for one that is set, and reads a token file without limit.
fn check_container(url: &str) -> Result<(), Reason> {
    for (name, other) in [
        (RELATIVE_URI, FULL_URI),
        (CONTAINER_TOKEN_FILE, CONTAINER_TOKEN),
    ] {
        let is_empty = std::env::var_os(name).is_some_and(|value| value.is_empty());
        if is_empty && variables::text(other).is_some() {
            return Err(format!("{name} is set and empty beside {other}; unset it"));
        }
    }
    if !is_url(url) {
        return Err(format!(
            "{url:?} ({FULL_URI} or {RELATIVE_URI}) is not a URL"
        ));
    }
    match variables::text(CONTAINER_TOKEN_FILE) {
        Some(file) => token((&file, CONTAINER_TOKEN_FILE)).map(|_| ()),
        None => Ok(()),
    }
}

/// The credentials of the instance's role.
pub(super) fn instance(finder: &Finder<'_>) -> Result<Result<Session, Reason>, CredentialsError> {
    if variables::text(INSTANCE_DISABLED).is_some_and(|it| it.eq_ignore_ascii_case("true")) {
        return Ok(Err(format!(
            "no variable names a web identity or a container, and the instance metadata is not asked ({INSTANCE_DISABLED})"
        )));
    }
    let url = match instance_endpoint() {
        Ok(url) => url,
        Err(why) => return Ok(Err(why)),
    };
    let config =
        ProviderConfig::without_region().with_http_client(finder.aws.metadata_client(&url));
    // With its endpoint given, the SDK looks for none in ~/.aws.
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
        .and_then(|found| usable(Session::from(&found))))
}

fn instance_endpoint() -> Result<String, Reason> {
    if let Some(url) = variables::text(INSTANCE_ENDPOINT) {
        return match is_url(&url) {
            true => Ok(url),
            false => Err(format!("{url:?} ({INSTANCE_ENDPOINT}) is not a URL")),
        };
    }
    let is_ipv6 = variables::text(INSTANCE_ENDPOINT_MODE)
        .is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
    Ok(match is_ipv6 {
        true => "http://[fd00:ec2::254]".into(),
        false => "http://169.254.169.254".into(),
    })
}

fn usable(session: Session) -> Result<Session, Reason> {
    match session.check() {
        Ok(()) => Ok(session),
        Err(why) => Err(format!("the key {why}")),
    }
}

fn instance_failure(error: &SdkError, url: &str) -> Reason {
    let cause = failure(error);
    if cause.contains("404") {
        return format!("the instance metadata service at {url} has no role for this instance");
    }
    format!(
        "the instance metadata service at {url} gave no credentials: {cause}; on an instance of EC2, in a container, the hop limit must be 2 or more (aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2)"
    )
}

/// The innermost reason, without the SDK's names of types.
fn failure(error: &SdkError) -> Reason {
    let cause = root_cause(error);
    let status = cause.split("StatusCode(").nth(1);
    match status.and_then(|rest| rest.split(')').next()) {
        Some(status) => format!("it answered with HTTP status {status}"),
        None => cause,
    }
}
