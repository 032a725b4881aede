//! The source credentials: found before a code is asked for, in the order of the AWS CLI.
//!
//! Each source is asked here, and not by the SDK's chain, which reads more of the environment than a
//! service may trust, waits without limit, and keeps the reasons to itself.

mod machine;
mod process;
mod profile;

use std::{os::fd::BorrowedFd, path::PathBuf};

use secrecy::SecretString;

use crate::{
    clock::parse_utc,
    config::{Mfa, SessionConfig},
    interrupt::unless_readable,
    service_credential,
    session::Session,
    settings::{self, Profiles, Settings, SettingsError},
    variables::{self, ACCESS_KEY_ID, VariableError},
};

/// Names in the environment of what belongs to the access key id. The second are those of the Go program's SDK.
const SECRET_ACCESS_KEY: [&str; 2] = ["AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"];
const SESSION_TOKEN: [&str; 2] = ["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"];
const EXPIRATION: &str = "AWS_CREDENTIAL_EXPIRATION";

/// Why there are no usable source credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// None were found.
    #[error(
        "found no AWS credentials to exchange the code with: {0}; set LoadCredential=aws-credentials:FILE in the unit, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile (or mfa = elsewhere if sessions are opened on another machine)"
    )]
    NotFound(String),
    /// The service's credential is damaged.
    #[error(
        "cannot use the AWS credentials in {path}: {why}; it must be an AWS credentials file with aws_access_key_id and aws_secret_access_key in [{section}]",
        path = path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The section that the configuration chooses.
        section: String,
        /// Why.
        why: String,
    },
    /// A source was found, and it gives none.
    #[error("cannot get AWS credentials from {from}: {why}")]
    Source {
        /// The source, with the variable or file that names it.
        from: String,
        /// Why not, and what to do.
        why: String,
    },
    /// Region, endpoints, files.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A variable.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// The interrupt descriptor became readable.
    #[error("interrupted")]
    Interrupted,
    /// None were found to be used as they are.
    #[error(
        "found no AWS credentials to use as they are (mfa = false): {0}; give this host a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    NoneToUse(String),
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

/// Looks for credentials.
pub struct Finder<'a> {
    /// The configuration.
    pub config: &'a SessionConfig,
    /// How AWS is called.
    pub aws: &'a Settings,
    /// Ends the search when it becomes readable.
    pub interrupt: Option<BorrowedFd<'a>>,
}

impl Finder<'_> {
    /// Finds what `mfa` asks for: credentials that a code can be exchanged with, or ones to be used
    /// as they are, or none.
    pub fn find_for_mfa(&self) -> Result<Option<Session>, CredentialsError> {
        match self.config.mfa {
            Mfa::Here { .. } => self.find_tradable().map(Some),
            Mfa::Off => self.find().map(Some),
            Mfa::Elsewhere => Ok(None),
        }
    }

    /// Finds the source credentials: the service's credential, or else as the AWS CLI would.
    pub fn find(&self) -> Result<Session, CredentialsError> {
        let session = self.search()?;
        match session.remaining_seconds() {
            Some(left) if left <= 0 => Err(CredentialsError::Expired(
                session.access_key_id.clone(),
                session.expiration_text(),
            )),
            _ => Ok(session),
        }
    }

    /// Long-term ones, unless a role is to be assumed.
    fn find_tradable(&self) -> Result<Session, CredentialsError> {
        let session = self.find()?;
        if session.session_token.is_some() && self.config.role_arn.is_none() {
            return Err(CredentialsError::Temporary(session.access_key_id));
        }
        Ok(session)
    }

    fn search(&self) -> Result<Session, CredentialsError> {
        if let Some(path) = service_credential::file() {
            return self.search_file_of_service(path);
        }
        let environment = from_environment()?;
        if let (None, Some(session)) = (&self.config.profile, environment) {
            return Ok(session);
        }
        let profiles = Profiles::read(self.config, self.aws.reader())?;
        if let Some(session) = profile::credentials(self, &profiles)? {
            return Ok(session);
        }
        if let Some(profile) = &self.config.profile {
            return Err(CredentialsError::Source {
                from: format!("profile {profile}"),
                why: format!("it has none in {}", profiles.looked_at()),
            });
        }
        match machine::credentials(self)? {
            Ok(session) => Ok(session),
            Err(why) => {
                let why = format!(
                    "the environment has none, nor has a profile in {}; {why}",
                    profiles.looked_at()
                );
                Err(match self.config.mfa {
                    Mfa::Off => CredentialsError::NoneToUse(why),
                    _ => CredentialsError::NotFound(why),
                })
            }
        }
    }

    fn search_file_of_service(&self, path: PathBuf) -> Result<Session, CredentialsError> {
        let failed = |section: &str, why| CredentialsError::File {
            path: path.clone(),
            section: section.into(),
            why,
        };
        let (section, _) = settings::selected_profile(self.config);
        let profiles = match Profiles::read_only(self.config, path.clone()) {
            Err(SettingsError::File { why, .. }) => return Err(failed(&section, why)),
            profiles => profiles?,
        };
        match profile::credentials(self, &profiles) {
            Ok(Some(session)) => Ok(session),
            Ok(None) => Err(failed(
                &section,
                format!("it has no aws_access_key_id in [{section}]"),
            )),
            Err(CredentialsError::Settings(SettingsError::NoProfile { .. })) => {
                Err(failed(&section, format!("it has no section [{section}]")))
            }
            Err(CredentialsError::Source { why, .. }) => Err(failed(&section, why)),
            Err(error) => Err(error),
        }
    }

    /// Runs a call of AWS until it ends or the search is interrupted.
    fn run<T>(&self, call: impl Future<Output = T>) -> Result<T, CredentialsError> {
        let runtime = settings::runtime()?;
        let ended = match self.interrupt {
            Some(interrupt) => runtime.block_on(unless_readable(interrupt, call)),
            None => Some(runtime.block_on(call)),
        };
        // Not even a library's blocking thread is to keep us from ending.
        runtime.shutdown_background();
        ended.ok_or(CredentialsError::Interrupted)
    }
}

fn from_environment() -> Result<Option<Session>, CredentialsError> {
    let pair = (
        variables::first(&ACCESS_KEY_ID),
        variables::first(&SECRET_ACCESS_KEY),
    );
    let (access_key_id, secret_access_key) = match pair {
        (Some((_, id)), Some((_, secret))) => (id, secret),
        (None, None) => return Ok(None),
        (Some((name, _)), None) => {
            return Err(
                VariableError::new(name, "is set, but AWS_SECRET_ACCESS_KEY is not").into(),
            );
        }
        (None, Some((name, _))) => {
            return Err(VariableError::new(name, "is set, but AWS_ACCESS_KEY_ID is not").into());
        }
    };
    let session_token = variables::first(&SESSION_TOKEN);
    // A long-term key has no end.
    let expiration = variables::text(EXPIRATION).filter(|_| session_token.is_some());
    let expiration = expiration.map(|text| {
        parse_utc(&text).ok_or_else(|| {
            VariableError::new(EXPIRATION, "is not a time, such as 2026-01-31T12:00:00Z")
        })
    });
    let session = Session {
        access_key_id,
        secret_access_key: SecretString::from(secret_access_key),
        session_token: session_token.map(|(_, token)| SecretString::from(token)),
        expiration_unix_seconds: expiration.transpose()?,
    };
    match session.check() {
        Ok(()) => Ok(Some(session)),
        Err(why) => Err(CredentialsError::Source {
            from: "the environment (AWS_ACCESS_KEY_ID and its like)".into(),
            why: format!("the key {why}"),
        }),
    }
}
