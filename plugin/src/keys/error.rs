//! Why a data key cannot be served. The messages are for the client of the statement or the error log.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use data_files::usage::Unclear;
use key_store::key_directory::FileError;
use key_store::key_name::KeyName;
use key_store::manifest::WrongKey;

use crate::kms::client::KmsError;

/// Why a data key cannot be served. The messages are for the client of the statement or the error log.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Decrypting the key of a file failed.
    #[error("cannot decrypt key file '{}': {source}", path.display())]
    Decrypt {
        /// The key file.
        path: PathBuf,
        /// Why.
        source: KmsError,
    },
    /// Making a key failed.
    #[error("cannot make key {id} with master key '{master_key_id}': {source}")]
    Generate {
        /// Key id.
        id: u32,
        /// The master key.
        master_key_id: String,
        /// Why.
        source: KmsError,
    },
    /// The key file, its directory or the manifest.
    #[error(transparent)]
    File(#[from] FileError),
    /// No memory for the key.
    #[error("no memory for a key: {0}")]
    Memory(io::Error),
    /// No master key is set to make a key with.
    #[error(
        "cannot make a version of key {id}: aws_key_management_master_key_id is empty; set it to the id, ARN or alias of the master key"
    )]
    NoMasterKey {
        /// Key id.
        id: u32,
    },
    /// The key does not exist, and a backup makes none.
    #[error("key {id} has no key file in '{}', and a backup makes no keys; copy the key files there", path.display())]
    NotInBackup {
        /// Key id.
        id: u32,
        /// The directory.
        path: PathBuf,
    },
    /// A version without a file, of which nothing is known but that somebody wants it.
    #[error("key {id} has no version {version} in '{}'; restore aws-kms-key.{id}.{version} or aws-kms-key.{id}.{version}.ctr from a backup of the key files", path.display())]
    NoSuchVersion {
        /// Key id.
        id: u32,
        /// Version.
        version: u32,
        /// The directory.
        path: PathBuf,
    },
    /// A version that existed, and whose file is gone. A new key must not take its place: restoring the
    /// file would then lose what the new one encrypted.
    #[error("{name} is missing in '{}': '{}' lists it; restore it from a backup of the key files, and never let another key take its name", path.display(), manifest.display())]
    FileMissing {
        /// The key file.
        name: KeyName,
        /// Where it should be.
        path: PathBuf,
        /// The manifest.
        manifest: PathBuf,
    },
    /// A key of which nothing is known but that data is encrypted with it.
    #[error("key {id} has no key file in '{}', but '{}' is encrypted with it; restore aws-kms-key.{id}.* from a backup of the key files", path.display(), proof.display())]
    AllFilesMissing {
        /// Key id.
        id: u32,
        /// The directory.
        path: PathBuf,
        /// The encrypted file.
        proof: PathBuf,
    },
    /// Nobody knows whether a key is new.
    #[error(
        "cannot make the first version of key {id} as long as it may have existed before: {source}; repair that file or move it out of the data directory"
    )]
    Unclear {
        /// Key id.
        id: u32,
        /// The file that does not tell.
        source: Unclear,
    },
    /// The data cannot be looked at.
    #[error(
        "cannot make the first version of key {id}, because the server's files cannot be searched for data that is encrypted with it: {source}"
    )]
    CannotLook {
        /// Key id.
        id: u32,
        /// Why.
        source: io::Error,
    },
    /// A file holds another key than the one that its name stands for.
    #[error("key file '{}' {source}", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// Which key it holds.
        source: WrongKey,
    },
    /// The server was told that a key does not exist; InnoDB would end the server if it did now.
    #[error(
        "InnoDB can use key {id} only after a restart of the server, because it could not be loaded before: {reason}"
    )]
    NeedsRestart {
        /// Key id.
        id: u32,
        /// Why it was not available.
        reason: String,
    },
    /// A copy of a data directory must not go on with the AES_CTR keys of its origin.
    #[error(
        "key {id} encrypts with AES_CTR, and this data directory is a copy (kms-data-keys fork): it needs a new version before anything is written with it, and none could be made: {reason}"
    )]
    Forked {
        /// Key id.
        id: u32,
        /// Why no version could be made.
        reason: String,
    },
    /// Encrypted data is to be read and its key cannot be served. The server itself takes that for
    /// corruption and gives dangerous advice.
    #[error(
        "cannot decrypt data encrypted with key {id}. The data is not corrupted: do not drop the table. {source}; then restart the server"
    )]
    Unreadable {
        /// Key id.
        id: u32,
        /// Why.
        source: Box<KeyError>,
    },
    /// A key that the offline keys do not have.
    #[error("{what} is not in '{}' (aws_key_management_offline_keys), and no keys are made without KMS; export the keys again with kms-data-keys, or start the server with a broker and without that variable", path.display())]
    NotOffline {
        /// The key, or its version.
        what: String,
        /// The file.
        path: PathBuf,
    },
    /// A new version, with offline keys.
    #[error("the keys are those of '{}' (aws_key_management_offline_keys), which is only read; start the server with a broker and without that variable to make keys", path.display())]
    OnlyRead {
        /// The file.
        path: PathBuf,
    },
    /// Another thread asks for the same key and waits for a person.
    #[error("key {id} waits for an MFA code that the server has asked for; enter it and try again")]
    AwaitsCode {
        /// Key id.
        id: u32,
    },
    /// The statement was killed.
    #[error(
        "stopped waiting for key {id}: the statement was killed or the server is shutting down"
    )]
    Killed {
        /// Key id.
        id: u32,
    },
    /// A number that is no key id or version.
    #[error("{0} is not a key id or version")]
    InvalidNumber(u32),
}

impl KeyError {
    /// Whether trying again costs nothing, because nobody beyond this host is asked.
    pub fn is_cheap(&self) -> bool {
        match self {
            Self::Decrypt { source, .. } | Self::Generate { source, .. } => source.is_local(),
            Self::Memory(_) => false,
            Self::Unreadable { source, .. } => source.is_cheap(),
            _ => true,
        }
    }

    /// Whether every key fails like that until somebody mends the session or the broker.
    pub fn is_for_all_keys(&self) -> bool {
        matches!(self, Self::Decrypt { source, .. } | Self::Generate { source, .. } if source.is_local())
    }

    /// Whether the same key may be served a little later without anybody's doing.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Decrypt { source, .. } if source.is_local() || source.is_retryable())
    }

    /// The same error where the server wants the key in order to read data.
    pub fn for_reading(self, id: u32) -> Self {
        let source = self.into();
        Self::Unreadable { id, source }
    }
}
