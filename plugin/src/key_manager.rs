//! Data keys: in memory, else on disk, else made.

#![forbid(unsafe_code)]

use core::ops::RangeInclusive;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use broker_api::MayWait;
use key_store::fault_points::{self, Step};
use key_store::key_directory::{FileError, KeyDirectory, Placement, Stored};
use key_store::key_name::{Algorithm, KeyName, is_valid_number};

use crate::attempts::Attempts;
use crate::keyring::Keyring;
use crate::kms::{Kms, KmsError, Purpose};
use crate::server_log;
use crate::server_symbols::{server_is_starting, statement_may_name_new_key, statement_may_wait};
use crate::settings::{Dynamic, Fixed};

/// How long a statement waits for a KMS that fails at once, beyond its first call.
const STATEMENT_PATIENCE: Duration = Duration::from_secs(3);
/// Keys that the server wants without a statement: `ENCRYPTION_KEY_SYSTEM_DATA` and
/// `ENCRYPTION_KEY_TEMPORARY_DATA` of `handler.h`.
const SYSTEM_IDS: RangeInclusive<u32> = 1..=2;

/// Why a key cannot be had. The message is for the person at the client or the error log.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Unwrapping the key of a file failed.
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
    /// The key file.
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
    /// A version that is neither in memory nor on disk.
    #[error("key {id} has no version {version}: '{}' does not exist; restore it from a backup of the key files", path.display())]
    NoSuchVersion {
        /// Key id.
        id: u32,
        /// Version.
        version: u32,
        /// The file it would be in.
        path: PathBuf,
    },
    /// A key of which the server has data, and no file. A new one would take its version number, and
    /// restoring the file would then lose what the new one encrypted.
    #[error(
        "key {id} has no key file in '{}', and there are tables of it; restore aws-kms-key.{id}.* from a backup of the key files", path.display()
    )]
    FileMissing {
        /// Key id.
        id: u32,
        /// The directory.
        path: PathBuf,
    },
    /// Encrypted data is to be read and its key cannot be had. The server itself takes that for
    /// corruption and gives dangerous advice.
    #[error(
        "cannot read what key {id} encrypted (it is not corrupted: drop nothing, and restart the server once the key is back): {source}"
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
    /// A number that is no key id or version.
    #[error("{0} is not a key id or version")]
    InvalidNumber(u32),
}

impl KeyError {
    /// Tells whether trying again costs nothing, because nobody beyond this host is asked.
    pub fn is_cheap(&self) -> bool {
        match self {
            Self::Decrypt { source, .. } | Self::Generate { source, .. } => source.is_local(),
            Self::Memory(_) => false,
            Self::Unreadable { source, .. } => source.is_cheap(),
            _ => true,
        }
    }

    fn for_reading(self, id: u32) -> Self {
        let source = self.into();
        Self::Unreadable { id, source }
    }

    /// Tells whether every key fails like that until a person does something about the session or
    /// the broker.
    pub fn is_for_all_keys(&self) -> bool {
        matches!(self, Self::Decrypt { source, .. } | Self::Generate { source, .. } if source.is_local())
    }
}

/// Everything the plugin knows while it is loaded.
pub struct KeyManager {
    /// The keys in memory.
    pub keyring: Keyring,
    /// The key files.
    pub directory: KeyDirectory,
    /// KMS.
    pub kms: Kms,
    pub(crate) settings: Fixed,
    dynamic: &'static Dynamic,
    attempts: Attempts,
    /// Ids of tables that the server has, without a key file.
    missing: Mutex<BTreeSet<u32>>,
    backup: bool,
}

impl KeyManager {
    /// Opens the key file directory, unless offline keys take its place. `backup` says that keys must
    /// not be made.
    pub fn new(
        settings: Fixed,
        dynamic: &'static Dynamic,
        backup: bool,
    ) -> Result<Self, FileError> {
        // With offline keys nothing is looked for there, and a host that restores need not have it.
        let keyfile_dir = match settings.offline_keys() {
            Some(_) => Path::new(""),
            None => &settings.keyfile_dir,
        };
        Ok(Self {
            keyring: Keyring::default(),
            directory: KeyDirectory::open(keyfile_dir)?,
            kms: Kms::new(&settings, dynamic),
            settings,
            dynamic,
            attempts: Attempts::default(),
            missing: Mutex::default(),
            backup,
        })
    }

    /// Returns the latest version of a key. One that does not exist is made where that is meant: for
    /// a statement that names it, or for the server itself.
    ///
    /// Never fails for an id that has been served: its versions stay in memory. The error is the
    /// reason, and has been logged.
    pub fn latest_version(&self, id: u32) -> Result<u32, String> {
        match self.keyring.latest_version(id) {
            Some(version) => Ok(version),
            None if self.backup || SYSTEM_IDS.contains(&id) || statement_may_name_new_key() => {
                self.attempts.run((id, 0), || self.find_or_make(id))
            }
            None => self.attempts.run((id, 0), || {
                self.find_existing(id)
                    .map_err(|error| error.for_reading(id))
            }),
        }
    }

    /// Tells whether the server has another key for what it wants this one for, so that its absence
    /// is no error: `file_key_management` need not have it either.
    pub fn is_dispensable(&self, id: u32) -> bool {
        self.settings.offline_keys().is_some() && id == *SYSTEM_IDS.end()
    }

    /// Makes sure that a key version is in memory. The error is the reason, and has been logged.
    pub fn ensure_loaded(&self, id: u32, version: u32) -> Result<(), String> {
        if self.keyring.key(id, version).is_some() {
            return Ok(());
        }
        self.attempts.run((id, version), || {
            self.find_version(id, version)
                .map_err(|error| error.for_reading(id))
        })
    }

    fn find_version(&self, id: u32, version: u32) -> Result<(), KeyError> {
        check_number(id)?;
        check_number(version)?;
        if self.keyring.key(id, version).is_some() {
            return Ok(());
        }
        self.expect_key_files(|| format!("version {version} of key {id}"))?;
        let name = self.directory.find(id, version)?.ok_or_else(|| {
            let path = self.directory.path_of(&KeyName {
                id,
                version,
                algorithm: Algorithm::AesCbc,
            });
            KeyError::NoSuchVersion { id, version, path }
        })?;
        self.directory.sync()?;
        let may_wait = self.load_may_wait();
        self.load(&self.directory, &name, may_wait, until(STATEMENT_PATIENCE))
    }

    fn find_or_make(&self, id: u32) -> Result<u32, KeyError> {
        check_number(id)?;
        if let Some(version) = self.keyring.latest_version(id) {
            return Ok(version);
        }
        if let Some(version) = self.find_latest(id)? {
            return Ok(version);
        }
        if self.missing().contains(&id) {
            return Err(self.file_missing(id));
        }
        match self.make(
            id,
            Placement::First,
            self.make_may_wait(),
            until(STATEMENT_PATIENCE),
        )? {
            Some(name) => Ok(name.version),
            // Another process made it between our look and our attempt.
            None => self.find_latest(id)?.ok_or_else(|| self.lost(id)),
        }
    }

    /// The latest version of a key that the server has data of.
    fn find_existing(&self, id: u32) -> Result<u32, KeyError> {
        check_number(id)?;
        if let Some(version) = self.keyring.latest_version(id) {
            return Ok(version);
        }
        self.find_latest(id)?.ok_or_else(|| {
            self.missing().insert(id);
            self.file_missing(id)
        })
    }

    /// Fails if the keys are offline keys: all of them are in memory already.
    fn expect_key_files(&self, what: impl FnOnce() -> String) -> Result<(), KeyError> {
        match self.settings.offline_keys() {
            None => Ok(()),
            Some(path) => Err(KeyError::NotOffline {
                what: what(),
                path: path.to_owned(),
            }),
        }
    }

    fn file_missing(&self, id: u32) -> KeyError {
        let path = self.directory.path().to_owned();
        KeyError::FileMissing { id, path }
    }

    fn missing(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, id: u32) -> KeyError {
        let name = KeyName {
            id,
            version: 1,
            algorithm: self.dynamic.algorithm(),
        };
        KeyError::NoSuchVersion {
            id,
            version: 1,
            path: self.directory.path_of(&name),
        }
    }

    /// Loads the latest version on disk, if there is any.
    fn find_latest(&self, id: u32) -> Result<Option<u32>, KeyError> {
        self.expect_key_files(|| format!("key {id}"))?;
        let versions = self.directory.versions(id)?;
        let Some(name) = versions.last() else {
            return Ok(None);
        };
        self.directory.check_conflict(&versions, name)?;
        self.directory.sync()?;
        let may_wait = self.load_may_wait();
        self.load(&self.directory, name, may_wait, until(STATEMENT_PATIENCE))?;
        Ok(Some(name.version))
    }

    /// How long loading a key may wait for a person to open a session. Once the server runs, not at
    /// all: it opens tables and reads pages under latches, and ends itself when one is held too long.
    pub(crate) fn load_may_wait(&self) -> MayWait {
        if self.backup {
            MayWait::Statement
        } else if server_is_starting() {
            MayWait::Start
        } else {
            MayWait::No
        }
    }

    /// The same for making a key, which a statement that names a new one asks for first of all.
    fn make_may_wait(&self) -> MayWait {
        match self.load_may_wait() {
            MayWait::No if statement_may_wait() => MayWait::Statement,
            other => other,
        }
    }

    /// Reads and unwraps one key file.
    pub(crate) fn load(
        &self,
        directory: &KeyDirectory,
        name: &KeyName,
        may_wait: MayWait,
        may_retry: impl Fn(&KmsError) -> bool,
    ) -> Result<(), KeyError> {
        let blob = directory.read(name)?;
        let purpose = Purpose {
            key_id: name.id,
            key_version: name.version,
            may_wait,
        };
        let key = self
            .kms
            .decrypt(blob, purpose, may_retry)
            .map_err(|source| KeyError::Decrypt {
                path: directory.path_of(name),
                source,
            })?;
        self.publish(name, key.expose())
    }

    /// Makes a new version; `None` if [`Placement::First`] found one that another process made.
    ///
    /// The key is used only after it proved to open and is on disk for good: losing it afterwards
    /// would lose the data.
    pub(crate) fn make(
        &self,
        id: u32,
        placement: Placement,
        may_wait: MayWait,
        may_retry: impl Fn(&KmsError) -> bool,
    ) -> Result<Option<KeyName>, KeyError> {
        if self.backup {
            let path = self.directory.path().to_owned();
            return Err(KeyError::NotInBackup { id, path });
        }
        if let Some(path) = self.settings.offline_keys() {
            let path = path.to_owned();
            return Err(KeyError::OnlyRead { path });
        }
        let master_key_id = self.dynamic.master_key_id();
        if master_key_id.is_empty() {
            return Err(KeyError::NoMasterKey { id });
        }
        let failed = |source| KeyError::Generate {
            id,
            master_key_id: master_key_id.clone(),
            source,
        };
        let key_bytes = self.dynamic.key_bytes();
        let purpose = Purpose {
            key_id: id,
            key_version: 0,
            may_wait,
        };
        let wrapped = self
            .kms
            .generate(master_key_id.clone(), key_bytes, purpose, &may_retry)
            .map_err(failed)?;
        fault_points::reach(Step::Generated);
        let key = self
            .kms
            .decrypt(wrapped.ciphertext_blob.clone(), purpose, &may_retry)
            .map_err(failed)?;
        if key.expose().len() != usize::from(key_bytes) {
            return Err(failed(KmsError::WrongReply));
        }
        fault_points::reach(Step::Unwrapped);
        let algorithm = self.dynamic.algorithm();
        let stored = self
            .directory
            .store(id, algorithm, placement, &wrapped.ciphertext_blob)?;
        let Stored::New(name) = stored else {
            return Ok(None);
        };
        self.publish(&name, key.expose())?;
        fault_points::reach(Step::Published);
        server_log::note(&format!(
            "made key {id}, version {}, key length {} bit, with master key {}",
            name.version,
            key.expose().len() * 8,
            wrapped.master_key_arn
        ));
        Ok(Some(name))
    }

    pub(crate) fn algorithm_of_new_keys(&self) -> Algorithm {
        self.dynamic.algorithm()
    }

    pub(crate) fn publish(&self, name: &KeyName, key: &[u8]) -> Result<(), KeyError> {
        let added = self.keyring.add(*name, key).map_err(KeyError::Memory)?;
        if let Some(reason) = added.lock_failure {
            server_log::warning(&format!(
                "keys in memory may be swapped to disk: {reason}; raise the limit of locked memory (LimitMEMLOCK= of the service, ulimit -l)"
            ));
        }
        Ok(())
    }
}

fn check_number(number: u32) -> Result<(), KeyError> {
    if is_valid_number(number) {
        Ok(())
    } else {
        Err(KeyError::InvalidNumber(number))
    }
}

/// Allows retries for `patience` from now.
pub(crate) fn until(patience: Duration) -> impl Fn(&KmsError) -> bool {
    let end = Instant::now() + patience;
    move |_| Instant::now() < end
}

#[cfg(test)]
mod tests;
