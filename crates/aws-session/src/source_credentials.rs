//! The search for the source credentials, before a code is asked for, in the order of the AWS CLI.
//!
//! The SDK's chain is not used: it reads more of the environment than a service may trust, waits
//! without limit, and does not say why a source failed.

mod machine;
mod process;
mod profile;

use std::{os::fd::BorrowedFd, path::PathBuf};

use secrecy::SecretString;

use crate::{
    clock::parse_utc,
    config::{Config, Mfa, SessionConfig},
    credentials::Credentials,
    interrupt::unless_readable,
    service_credential,
    settings::{self, Profiles, Reader, Settings, SettingsError},
    variables::{self, ACCESS_KEY_ID, VariableError},
};

/// Variables of the other parts of the credentials. The SDK of the Go program uses the second names.
const SECRET_ACCESS_KEY: [&str; 2] = ["AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"];
const SESSION_TOKEN: [&str; 2] = ["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"];
const EXPIRATION: &str = "AWS_CREDENTIAL_EXPIRATION";

/// Why there are no usable source credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// None were found.
    #[error(
        "found no AWS credentials to exchange the code with: {why}; {}",
        where_to_put_them(*reader)
    )]
    NotFound {
        /// Where they were looked for.
        why: String,
        /// Who needs them.
        reader: Reader,
    },
    /// A source was found, but it failed.
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
    /// Those for the key store.
    #[error("cannot use key_store_profile: {0}")]
    KeyStore(Box<Self>),
    /// The interrupt descriptor became readable.
    #[error("interrupted")]
    Interrupted,
    /// None were found, with `mfa = false`.
    #[error(
        "found no AWS credentials to use as they are (mfa = false): {0}; give this host a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    NoneToUse(String),
    /// Temporary credentials, which `GetSessionToken` does not accept.
    #[error(
        "the AWS credentials found are temporary ({access_key_id}), but GetSessionToken accepts only long-term keys; {}",
        what_else_to_use(*reader)
    )]
    Temporary {
        /// Their id.
        access_key_id: String,
        /// Who needs long-term keys.
        reader: Reader,
    },
    /// They have expired.
    #[error("the AWS credentials found ({0}) expired at {1}; start again with fresh ones")]
    Expired(String, String),
    /// The SDK could not be started.
    #[error("cannot look for AWS credentials: {0}")]
    Runtime(#[from] std::io::Error),
}

fn where_to_put_them(reader: Reader) -> &'static str {
    match reader {
        Reader::Service => {
            "set LoadCredential=aws-credentials:FILE in the unit, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile (or mfa = elsewhere if sessions are opened on another machine)"
        }
        Reader::Operator => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile (AWS_PROFILE, or --profile of iam-kms-unlock)"
        }
    }
}

fn what_else_to_use(reader: Reader) -> &'static str {
    match reader {
        Reader::Service => "set role_arn, or mfa = false to use them as they are",
        Reader::Operator => {
            "use the profile of a long-term key, or assume a role with the code (role_arn, or --role-arn of iam-kms-unlock)"
        }
    }
}

/// Finds the credentials of `key_store_profile`; `None`: the key store is used with the session.
pub fn of_key_store(
    config: &Config,
    aws: &Settings,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Option<Credentials>, CredentialsError> {
    let (Some(_), Some(profile)) = (&config.broker.key_store, &config.broker.key_store_profile)
    else {
        return Ok(None);
    };
    let config = &SessionConfig {
        profile: Some(profile.clone()),
        mfa: Mfa::Off,
        ..config.session.clone()
    };
    let finder = Finder {
        config,
        aws,
        interrupt,
    };
    match finder.find() {
        Ok(credentials) => Ok(Some(credentials)),
        Err(CredentialsError::Interrupted) => Err(CredentialsError::Interrupted),
        Err(error) => Err(CredentialsError::KeyStore(Box::new(match error {
            CredentialsError::Settings(SettingsError::NoProfile {
                profile: missing,
                files,
                ..
            }) if missing == *profile => SettingsError::NoProfile {
                profile: missing,
                by: "key_store_profile in the configuration",
                files,
            }
            .into(),
            error => error,
        }))),
    }
}

/// Searches for credentials.
pub struct Finder<'a> {
    /// The configuration.
    pub config: &'a SessionConfig,
    /// How AWS is called.
    pub aws: &'a Settings,
    /// Ends the search when it becomes readable.
    pub interrupt: Option<BorrowedFd<'a>>,
}

impl Finder<'_> {
    /// Finds the credentials that `mfa` requires: ones to exchange a code with, ones to use as they
    /// are, or none.
    pub fn find_for_mfa(&self) -> Result<Option<Credentials>, CredentialsError> {
        match self.config.mfa {
            Mfa::Here { .. } => self.find_for_exchange().map(Some),
            Mfa::Off => self.find().map(Some),
            Mfa::Elsewhere => Ok(None),
        }
    }

    /// Finds the source credentials: those of the service, or else those that the AWS CLI would use.
    pub fn find(&self) -> Result<Credentials, CredentialsError> {
        let session = self.search()?;
        match session.remaining_seconds() {
            Some(left) if left <= 0 => Err(CredentialsError::Expired(
                session.access_key_id.clone(),
                session.expiration_text(),
            )),
            _ => Ok(session),
        }
    }

    /// They must be long-term keys, unless a role is assumed.
    fn find_for_exchange(&self) -> Result<Credentials, CredentialsError> {
        let session = self.find()?;
        if session.session_token.is_some() && self.config.role_arn.is_none() {
            return Err(CredentialsError::Temporary {
                access_key_id: session.access_key_id,
                reader: self.aws.reader(),
            });
        }
        Ok(session)
    }

    fn search(&self) -> Result<Credentials, CredentialsError> {
        if let Some(path) = service_credential::file() {
            return self.search_file_of_service(path);
        }
        if self.config.profile.is_none()
            && let Some(session) = from_environment()?
        {
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
                    "there are none in the environment or in a profile of {}; {why}",
                    profiles.looked_at()
                );
                Err(match self.config.mfa {
                    Mfa::Off => CredentialsError::NoneToUse(why),
                    _ => CredentialsError::NotFound {
                        why,
                        reader: self.aws.reader(),
                    },
                })
            }
        }
    }

    fn search_file_of_service(&self, path: PathBuf) -> Result<Credentials, CredentialsError> {
        let profiles = Profiles::read_only(self.config, path.clone())?;
        let (section, _) = settings::selected_profile(self.config);
        let why = match profile::credentials(self, &profiles) {
            Ok(Some(session)) => return Ok(session),
            Ok(None) => format!("it has no aws_access_key_id in [{section}]"),
            Err(CredentialsError::Settings(SettingsError::NoProfile { .. })) => {
                format!("it has no section [{section}]")
            }
            Err(CredentialsError::Source { why, .. }) => why,
            Err(error) => return Err(error),
        };
        Err(SettingsError::FileOfService { path, section, why }.into())
    }

    /// Runs a call of AWS until it ends or the search is interrupted.
    fn run<T>(&self, call: impl Future<Output = T>) -> Result<T, CredentialsError> {
        let runtime = settings::runtime()?;
        let ended = match self.interrupt {
            Some(interrupt) => runtime.block_on(unless_readable(interrupt, call)),
            None => Some(runtime.block_on(call)),
        };
        // Do not wait for blocking threads of libraries.
        runtime.shutdown_background();
        ended.ok_or(CredentialsError::Interrupted)
    }
}

fn from_environment() -> Result<Option<Credentials>, CredentialsError> {
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
    // A long-term key does not expire.
    let expiration = variables::text(EXPIRATION).filter(|_| session_token.is_some());
    let expiration = expiration.map(|text| {
        parse_utc(&text).ok_or_else(|| {
            VariableError::new(EXPIRATION, "is not a time, such as 2026-01-31T12:00:00Z")
        })
    });
    let session = Credentials {
        access_key_id,
        secret_access_key: SecretString::from(secret_access_key),
        session_token: session_token.map(|(_, token)| SecretString::from(token)),
        expiration_unix_seconds: expiration.transpose()?,
    };
    let checked = session.checked().map(Some);
    checked.map_err(|why| CredentialsError::Source {
        from: "the environment (AWS_ACCESS_KEY_ID and related variables)".into(),
        why: format!("the key {why}"),
    })
}
