//! The credentials for KMS.

use std::path::PathBuf;

use aws_session::{
    config::Config,
    credentials::Credentials,
    settings::{Reader, Settings},
    source_credentials::{self, CredentialsError, Finder},
};
use clap::Args;
use code_channel::interactive_session;
use service::{logging, signals::Signals};

use crate::DataKeysError;

/// Where the credentials come from.
#[derive(Debug, Args)]
pub(crate) struct AccessArguments {
    /// Prompt for an MFA code, with this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Credentials, and the settings for calling AWS.
pub(crate) struct Access {
    pub aws: Settings,
    pub session: Credentials,
    /// Those of `key_store_profile`, for the key store.
    pub of_key_store: Option<Credentials>,
}

impl AccessArguments {
    /// The configuration, or that of a tool that was given none.
    pub fn config(&self) -> Result<Config, DataKeysError> {
        Ok(match &self.config {
            None => Config::without_file()?,
            Some(path) => Config::read(path)?,
        })
    }

    /// Gets the credentials: those that the AWS CLI would find, or a session in exchange for a code.
    pub fn open(&self) -> Result<Access, DataKeysError> {
        let config = self.config()?;
        let aws = Settings::read(&config.session, Reader::Operator)?;
        let of_key_store = source_credentials::of_key_store(&config, &aws, None)?;
        let session = match &self.config {
            None => {
                let finder = Finder {
                    config: &config.session,
                    aws: &aws,
                    // A signal simply ends the program.
                    interrupt: None,
                };
                finder.find().map_err(|error| match error {
                    // There is no configuration whose mfa could be false.
                    CredentialsError::NoneToUse(why) => DataKeysError::NoCredentials(why),
                    error => error.into(),
                })?
            }
            Some(_) => {
                logging::use_format(config.log_format);
                ask(&config, &aws)?
            }
        };
        Ok(Access {
            aws,
            session,
            of_key_store,
        })
    }
}

/// Prompts at the terminal, or reads a line of standard input.
fn ask(config: &Config, aws: &Settings) -> Result<Credentials, DataKeysError> {
    let signals = Signals::hold().map_err(|error| DataKeysError::System("hold signals", error))?;
    let session = interactive_session::open_session(config, aws, None, None, signals.descriptor());
    // A signal that ended the prompt ends the program here.
    signals
        .release()
        .map_err(|error| DataKeysError::System("release signals", error))?;
    Ok(session?)
}
