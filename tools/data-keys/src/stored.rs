//! The key store of the broker, for the subcommands that use it.

pub(crate) mod compare;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod rewrapped;

use std::fmt::Display;

use aws_session::{
    key_store_location::KeyStoreLocation,
    settings::{Reader, Settings},
    source_credentials,
};
use clap::Args;
use key_files::{key_directory::KeyDirectory, key_name::KeyName};
use key_store::{KeyStore, StoreError};

use crate::{
    DataKeysError,
    access::{Access, AccessArguments},
};

/// Which key store.
#[derive(Debug, Args)]
pub(crate) struct StoreArguments {
    /// The key store [default: key_store of --config]
    #[arg(long, value_name = "LOCATION")]
    pub store: Option<KeyStoreLocation>,
}

impl StoreArguments {
    /// Its location, from here or from the configuration.
    pub fn location(&self, access: &AccessArguments) -> Result<KeyStoreLocation, DataKeysError> {
        let configured = || Ok::<_, DataKeysError>(access.config()?.broker.key_store);
        match &self.store {
            Some(location) => Ok(location.clone()),
            None => configured()?.ok_or(DataKeysError::NoStore),
        }
    }
}

/// Opens the store. Neither a directory nor a store with credentials of its own needs a session.
pub(crate) fn open(
    location: &KeyStoreLocation,
    access: &AccessArguments,
) -> Result<KeyStore, DataKeysError> {
    let config = access.config()?;
    let aws = Settings::read(&config.session, Reader::Operator)?;
    let own = source_credentials::of_key_store(&config, &aws, None)?;
    Ok(match (location, &own) {
        (KeyStoreLocation::S3 { .. }, None) => open_with(location, &access.open()?)?,
        _ => KeyStore::open(location, &aws, own.as_ref())?,
    })
}

/// Opens the store with credentials that are there.
pub(crate) fn open_with(
    location: &KeyStoreLocation,
    access: &Access,
) -> Result<KeyStore, StoreError> {
    let credentials = access.of_key_store.as_ref().unwrap_or(&access.session);
    KeyStore::open(location, &access.aws, Some(credentials))
}

/// Turns an error of the store into the report on one key.
fn failed(key: impl Display) -> impl Fn(StoreError) -> String {
    move |error| format!("{key}: {error}; correct that, and run this again")
}

/// Says that a key has one check value here and another one in the store.
fn differs(name: &KeyName, directory: &KeyDirectory, store: &KeyStoreLocation) -> String {
    format!(
        "{} is another key than {}/{} in the key store {store}: they belong to different servers, or to servers that made keys of their own",
        directory.path_of(name).display(),
        name.id,
        name.version
    )
}
