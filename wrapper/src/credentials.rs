//! The source credentials: found before a code is asked for.

use std::env;

use secrecy::SecretString;

use crate::{
    aws,
    config::{Config, Mfa},
    session::Session,
};

/// Why there are no usable source credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// None were found.
    #[error(
        "found no AWS credentials to trade the code with: {0}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (EnvironmentFile= in the unit) or a profile (or mfa = elsewhere if sessions are opened on another machine)"
    )]
    NotFound(String),
    /// Temporary ones, which `GetSessionToken` does not take.
    #[error(
        "the AWS credentials found are temporary ({0}), but GetSessionToken takes long-term keys only; set role_arn, or mfa = false to use them as they are"
    )]
    Temporary(String),
    /// They are over.
    #[error("the AWS credentials found ({0}) ended at {1}; start again with fresh ones")]
    Expired(String, String),
    /// The SDK could not be started.
    #[error("cannot look for AWS credentials: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Finds what `mfa` asks for: credentials that a code can be traded with, or ones to be used as they
/// are, or none.
pub fn find_for_mfa(config: &Config) -> Result<Option<Session>, CredentialsError> {
    match config.mfa {
        Mfa::Here { .. } => find_tradable(config).map(Some),
        Mfa::Off => find(config).map(Some),
        Mfa::Elsewhere => Ok(None),
    }
}

/// Finds the source credentials as the Go program and the AWS CLI would.
pub fn find(config: &Config) -> Result<Session, CredentialsError> {
    let session = match (&config.profile, from_environment()) {
        (None, Some(session)) => session,
        _ => aws::runtime()?
            .block_on(aws::find_credentials(config))
            .map_err(CredentialsError::NotFound)?,
    };
    match session.remaining_seconds() {
        Some(left) if left <= 0 => Err(CredentialsError::Expired(
            session.access_key_id.clone(),
            session.expiration_text(),
        )),
        _ => Ok(session),
    }
}

/// Long-term ones, unless a role is to be assumed.
fn find_tradable(config: &Config) -> Result<Session, CredentialsError> {
    let session = find(config)?;
    if session.session_token.is_some() && config.role_arn.is_none() {
        return Err(CredentialsError::Temporary(session.access_key_id));
    }
    Ok(session)
}

/// The usual case, without the SDK: a process that waits for days should not carry it. The second
/// names are those that the Go program's SDK read.
fn from_environment() -> Option<Session> {
    let variable = |names: [&str; 2]| {
        names
            .into_iter()
            .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    };
    Some(Session {
        access_key_id: variable(["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"])?,
        secret_access_key: SecretString::from(variable([
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SECRET_KEY",
        ])?),
        session_token: variable(["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"])
            .map(SecretString::from),
        expiration_unix_seconds: None,
    })
}
