//! Data keys: in memory, else on disk, else made, if they are new.

#![forbid(unsafe_code)]

use core::ops::RangeInclusive;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use broker_api::WaitPolicy;
use data_files::usage;
use key_store::PlaintextKey;
use key_store::fault_points::{self, Step};
use key_store::key_directory::{FileError, KeyDirectory, ServerLock, Stored, VersionPolicy};
use key_store::key_name::{Algorithm, KeyName, is_valid_number};
use key_store::manifest::{Entry, ManifestFile};

use crate::keys::error::KeyError;
use crate::keys::failure_backoff::{FailureBackoff, KeyRequest};
use crate::keys::keyring::Keyring;
use crate::keys::private_descriptors;
use crate::kms::client::{KmsClient, KmsError, Limits, Unwrapped};
use crate::kms::waiting::is_unwanted;
use crate::server::log;
use crate::server::symbols::{
    is_cluster_node, is_main_thread, server_is_starting, statement_is_killed,
};
use crate::settings::{GlobalSettings, StartupSettings};

/// How long a statement waits for a KMS that fails at once, beyond its first call.
const STATEMENT_PATIENCE: Duration = Duration::from_secs(3);
/// Keys that the server wants without a statement: `ENCRYPTION_KEY_SYSTEM_DATA` and
/// `ENCRYPTION_KEY_TEMPORARY_DATA` of `handler.h`.
pub const SYSTEM_IDS: RangeInclusive<u32> = 1..=2;

/// What program has loaded the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// A server.
    Server,
    /// mariadb-backup, which reads keys and makes none.
    Backup,
}

/// Everything the plugin knows while it is loaded.
pub struct KeyManager {
    /// The keys in memory.
    pub keyring: Keyring,
    /// The key files.
    pub directory: KeyDirectory,
    /// All keys that the server has ever had.
    pub manifest: ManifestFile,
    /// KMS.
    pub kms: KmsClient,
    pub(crate) settings: StartupSettings,
    dynamic: &'static GlobalSettings,
    program: Program,
    backoff: FailureBackoff,
    /// Key ids that the server must not get before it is restarted, and why.
    refused: Mutex<BTreeMap<u32, String>>,
    /// Versions that exist and are not in memory, and why.
    unloaded: Mutex<BTreeMap<KeyName, String>>,
    server_lock: Mutex<Option<ServerLock>>,
}

impl KeyManager {
    /// Opens the key file directory, unless offline keys take its place, and the manifest.
    pub fn new(
        settings: StartupSettings,
        dynamic: &'static GlobalSettings,
        program: Program,
    ) -> Result<Self, FileError> {
        // With offline keys nothing is looked for there, and a host that restores need not have it.
        let (keyfile_dir, makes_keys) = match settings.offline_keys() {
            Some(_) => (Path::new(""), false),
            None => (&*settings.keyfile_dir, program == Program::Server),
        };
        let directory = KeyDirectory::open(keyfile_dir)?;
        let server_lock = match makes_keys {
            true => Some(directory.lock_for_server()?),
            false => None,
        };
        Ok(Self {
            keyring: Keyring::default(),
            directory,
            manifest: ManifestFile::open(&settings.datadir)?,
            kms: KmsClient::new(&settings, dynamic),
            settings,
            dynamic,
            program,
            backoff: FailureBackoff::default(),
            refused: Mutex::default(),
            unloaded: Mutex::default(),
            server_lock: Mutex::new(server_lock),
        })
    }

    /// Wipes the keys, and lets another server use the directory.
    pub fn stop(&self) {
        self.keyring.wipe();
        lock(&self.server_lock).take();
    }

    /// Returns the latest version of a key. A key that has never existed is made.
    ///
    /// Never fails for an id that has been served: its versions stay in memory. The error is the
    /// reason, and has been logged.
    pub fn latest_version(&self, id: u32) -> Result<u32, String> {
        match self.keyring.latest_version(id) {
            Some(version) => Ok(version),
            None => self.run(KeyRequest { id, version: None }, || self.find_or_make(id)),
        }
    }

    /// Whether the server has another key for what it wants this one for, so that its absence
    /// is no error: `file_key_management` need not have it either.
    pub fn is_dispensable(&self, id: u32) -> bool {
        self.settings.offline_keys().is_some() && id == *SYSTEM_IDS.end()
    }

    /// Makes sure that a key version is in memory. The error is the reason, and has been logged.
    pub fn ensure_loaded(&self, id: u32, version: u32) -> Result<(), String> {
        if self.keyring.key(id, version).is_some() {
            return Ok(());
        }
        let request = KeyRequest {
            id,
            version: Some(version),
        };
        self.run(request, || {
            self.find_version(id, version)
                .map_err(|error| error.for_reading(id))
        })
    }

    fn run<T>(
        &self,
        request: KeyRequest,
        attempt: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<T, String> {
        let id = request.id;
        self.check_refused(id).map_err(|error| error.to_string())?;
        let may_wait = || {
            if statement_is_killed() {
                Err(KeyError::Killed { id })
            } else if self.policy() == WaitPolicy::Never && self.kms.waits.is_waiting() {
                Err(KeyError::AwaitsCode { id })
            } else {
                Ok(())
            }
        };
        self.backoff.run(request, may_wait, attempt)
    }

    fn find_version(&self, id: u32, version: u32) -> Result<(), KeyError> {
        check_number(id)?;
        check_number(version)?;
        if self.keyring.key(id, version).is_some() {
            return Ok(());
        }
        self.expect_key_files(|| format!("version {version} of key {id}"))?;
        let listed = || self.manifest.get(id, version).map(|entry| entry.name);
        let Some(name) = self.directory.find(id, version)?.or_else(listed) else {
            let path = self.directory.path().to_owned();
            return Err(KeyError::NoSuchVersion { id, version, path });
        };
        self.directory.sync()?;
        let may_retry = until(STATEMENT_PATIENCE);
        self.load(&self.directory, &name, &self.limits(&may_retry))
    }

    fn find_or_make(&self, id: u32) -> Result<u32, KeyError> {
        check_number(id)?;
        if let Some(version) = self.keyring.latest_version(id) {
            return Ok(version);
        }
        self.expect_key_files(|| format!("key {id}"))?;
        let may_retry = until(STATEMENT_PATIENCE);
        match self.load_latest(id, &self.limits(&may_retry))? {
            Some(version) => Ok(version),
            None => self.make_first(id),
        }
    }

    /// Loads the highest version that can be loaded; `None` if no version is known.
    ///
    /// If none can be, the server must not get the key until it is restarted: InnoDB remembers that a
    /// tablespace has no key, and ends the server when it writes a page there all the same.
    pub(crate) fn load_latest(
        &self,
        id: u32,
        limits: &Limits<'_>,
    ) -> Result<Option<u32>, KeyError> {
        let known = self.known_versions(id)?;
        if known.is_empty() {
            return Ok(None);
        }
        self.directory.sync()?;
        let mut first_failure = None;
        for name in known.iter().rev() {
            let loaded = self
                .directory
                .check_conflict(&known, name)
                .map_err(KeyError::from)
                .and_then(|()| self.load(&self.directory, name, limits));
            match loaded {
                Ok(()) => {
                    self.report_unloaded(id);
                    return Ok(Some(name.version));
                }
                Err(error) => {
                    let is_for_all = error.is_for_all_keys();
                    first_failure = first_failure.or(Some(error));
                    if is_for_all {
                        break;
                    }
                }
            }
        }
        match first_failure {
            None => Ok(None),
            Some(error) => {
                if self.program == Program::Server {
                    self.refuse(id, &error.to_string());
                }
                Err(error.for_reading(id))
            }
        }
    }

    /// The versions of a key on disk and in the manifest, in order. A version of two algorithms is there
    /// twice.
    pub(crate) fn known_versions(&self, id: u32) -> Result<Vec<KeyName>, KeyError> {
        let mut known = self.directory.versions(id)?;
        for entry in self.manifest.versions(id) {
            if !known.iter().any(|name| name.version == entry.name.version) {
                known.push(entry.name);
            }
        }
        known.sort_unstable();
        Ok(known)
    }

    /// Makes the first version of a key, if neither key files nor manifest know it and no data is
    /// encrypted with it.
    fn make_first(&self, id: u32) -> Result<u32, KeyError> {
        if self.program == Program::Backup {
            let path = self.directory.path().to_owned();
            return Err(KeyError::NotInBackup { id, path });
        }
        if let Some(proof) = self.find_data(id)? {
            let path = self.directory.path().to_owned();
            let error = KeyError::AllFilesMissing { id, path, proof };
            self.refuse(id, &error.to_string());
            return Err(error.for_reading(id));
        }
        let may_retry = until(STATEMENT_PATIENCE);
        let limits = self.limits(&may_retry);
        match self.make(id, VersionPolicy::First, &limits)? {
            Some(name) => Ok(name.version),
            // Another process made it between our look and our attempt.
            None => self.load_latest(id, &limits)?.ok_or_else(|| {
                let path = self.directory.path().to_owned();
                KeyError::NoSuchVersion {
                    id,
                    version: 1,
                    path,
                }
            }),
        }
    }

    /// Looks for a file of the server that is encrypted with a key.
    fn find_data(&self, id: u32) -> Result<Option<PathBuf>, KeyError> {
        let manifest = self.manifest.path();
        let datadir = manifest.parent().unwrap_or(Path::new("."));
        private_descriptors::run(|| usage::find(datadir, id))
            .map_err(|source| KeyError::CannotLook { id, source })?
            .map_err(|source| KeyError::Unclear { id, source })
    }

    /// The highest version of a key that is known anywhere; 0 if none is.
    pub(crate) fn highest_known(&self, id: u32) -> Result<u32, KeyError> {
        let on_disk = self.known_versions(id)?.last().map(|name| name.version);
        Ok(on_disk.max(self.keyring.latest_version(id)).unwrap_or(0))
    }

    pub(crate) fn file_missing(&self, name: &KeyName) -> KeyError {
        KeyError::FileMissing {
            name: *name,
            path: self.directory.path().to_owned(),
            manifest: self.manifest.path(),
        }
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

    /// Keeps a key from the server until it is restarted.
    pub(crate) fn refuse(&self, id: u32, reason: &str) {
        lock(&self.refused)
            .entry(id)
            .or_insert_with(|| reason.to_owned());
    }

    pub(crate) fn check_refused(&self, id: u32) -> Result<(), KeyError> {
        match lock(&self.refused).get(&id) {
            None => Ok(()),
            Some(reason) => Err(KeyError::NeedsRestart {
                id,
                reason: reason.clone(),
            }),
        }
    }

    /// The limits of a call for the running statement, or for the server's start.
    fn limits<'a>(&self, may_retry: &'a dyn Fn(&KmsError) -> bool) -> Limits<'a> {
        Limits {
            wait: self.policy(),
            deadline: None,
            may_retry,
            is_interrupted: &is_unwanted,
        }
    }

    /// The same while the plugin is loaded.
    pub(crate) fn limits_at_start<'a>(
        &self,
        may_retry: &'a dyn Fn(&KmsError) -> bool,
    ) -> Limits<'a> {
        Limits {
            wait: self.policy_at_start(),
            ..self.limits(may_retry)
        }
    }

    /// Whether a call may wait for somebody to open a session. Only the thread that starts the server may:
    /// all others hold locks that somebody else needs.
    fn policy(&self) -> WaitPolicy {
        if server_is_starting() && is_main_thread() {
            self.policy_at_start()
        } else {
            WaitPolicy::Never
        }
    }

    /// The same while the plugin is loaded.
    fn policy_at_start(&self) -> WaitPolicy {
        match self.program {
            Program::Backup => WaitPolicy::Limited,
            Program::Server if server_is_starting() => WaitPolicy::UntilOpen,
            Program::Server => WaitPolicy::Never,
        }
    }

    /// Reads, unwraps, checks and publishes one key file, and adds it to the manifest.
    pub(crate) fn load(
        &self,
        directory: &KeyDirectory,
        name: &KeyName,
        limits: &Limits<'_>,
    ) -> Result<(), KeyError> {
        let loaded = self.unwrap(directory, name, limits).and_then(|unwrapped| {
            self.record_loaded(&[Entry::new(*name, &unwrapped.key, &unwrapped.master_key_arn)]);
            self.publish(name, &unwrapped.key)
        });
        self.note_loaded(name, &loaded);
        loaded
    }

    /// Remembers whether a version that exists is in memory.
    pub(crate) fn note_loaded<T>(&self, name: &KeyName, loaded: &Result<T, KeyError>) {
        let mut unloaded = lock(&self.unloaded);
        match loaded {
            Ok(_) => drop(unloaded.remove(name)),
            Err(error) => drop(unloaded.insert(*name, error.to_string())),
        }
    }

    /// Reads, unwraps and checks one key file.
    pub(crate) fn unwrap(
        &self,
        directory: &KeyDirectory,
        name: &KeyName,
        limits: &Limits<'_>,
    ) -> Result<Unwrapped, KeyError> {
        let blob = directory.read(name).map_err(|error| {
            if error.is_not_found() && self.manifest.get(name.id, name.version).is_some() {
                self.file_missing(name)
            } else {
                error.into()
            }
        })?;
        let listed = self.manifest.get(name.id, name.version);
        let unwrapped = self
            .kms
            .decrypt(
                blob,
                listed.map(|entry| entry.check_value),
                (name.id, name.version),
                limits,
            )
            .map_err(|source| KeyError::Decrypt {
                path: directory.path_of(name),
                source,
            })?;
        self.check(&directory.path_of(name), name, &unwrapped.key)?;
        Ok(unwrapped)
    }

    /// Fails if the manifest lists another key under this name than the one that `path` holds.
    pub(crate) fn check(
        &self,
        path: &Path,
        name: &KeyName,
        key: &PlaintextKey,
    ) -> Result<(), KeyError> {
        self.manifest
            .check(name, key)
            .map_err(|source| KeyError::WrongKey {
                path: path.to_owned(),
                source,
            })
    }

    /// Adds keys that are on disk already to the manifest. Not being able to is no reason not to serve
    /// them.
    pub(crate) fn record_loaded(&self, entries: &[Entry]) {
        if self.program == Program::Backup {
            return;
        }
        match self.manifest.record(entries) {
            Ok(()) => {}
            Err(error) if error.is_read_only() => {}
            Err(error) => log::warning(&format!(
                "{error}; until then a key file that is lost may not be noticed"
            )),
        }
    }

    /// Makes a new version; `None` if [`VersionPolicy::First`] found one that another process made.
    ///
    /// The key is used only after it proved to open, and after its file and the manifest are on disk for
    /// good: losing it afterwards would lose the data.
    pub(crate) fn make(
        &self,
        id: u32,
        placement: VersionPolicy,
        limits: &Limits<'_>,
    ) -> Result<Option<KeyName>, KeyError> {
        if self.program == Program::Backup {
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
        let wrapped = self
            .kms
            .generate(master_key_id.clone(), key_bytes, id, limits)
            .map_err(failed)?;
        fault_points::reach(Step::Generated);
        let unwrapped = self
            .kms
            .decrypt(wrapped.ciphertext_blob.clone(), None, (id, 0), limits)
            .map_err(failed)?;
        let key = unwrapped.key;
        if key.expose().len() != usize::from(key_bytes) {
            return Err(failed(KmsError::WrongReply));
        }
        fault_points::reach(Step::Unwrapped);
        let (algorithm, why) = self.algorithm_of_new_version(id);
        let stored = self
            .directory
            .store(id, algorithm, placement, &wrapped.ciphertext_blob)?;
        let Stored::New(name) = stored else {
            return Ok(None);
        };
        let entry = Entry::new(name, &key, &wrapped.master_key_arn);
        self.manifest.record(&[entry])?;
        self.publish(&name, &key)?;
        fault_points::reach(Step::Published);
        log::note(&format!(
            "made key {id}, version {}, key length {} bit, {algorithm}{why}, with master key {}",
            name.version,
            key.expose().len() * 8,
            wrapped.master_key_arn
        ));
        Ok(Some(name))
    }

    pub(crate) fn algorithm_of_new_keys(&self) -> Algorithm {
        self.dynamic.algorithm()
    }

    /// How a new version of a key encrypts, and why if that is not what was asked for.
    ///
    /// MariaDB encrypts different data with the same key and IV in the redo log, in temporary tables and in
    /// Aria, which all use the system's keys; and the nodes of a cluster encrypt different pages with the
    /// same key. Both would give the data of AES_CTR away.
    pub(crate) fn algorithm_of_new_version(&self, id: u32) -> (Algorithm, &'static str) {
        match self.dynamic.algorithm() {
            Algorithm::AesCtr if SYSTEM_IDS.contains(&id) => {
                (Algorithm::AesCbc, " (AES_CTR is for key ids from 3 on)")
            }
            Algorithm::AesCtr if is_cluster_node() => {
                (Algorithm::AesCbc, " (AES_CTR is not for cluster nodes)")
            }
            asked_for => (asked_for, ""),
        }
    }

    pub(crate) fn publish(&self, name: &KeyName, key: &PlaintextKey) -> Result<(), KeyError> {
        let added = self
            .keyring
            .add(*name, key.expose())
            .map_err(KeyError::Memory)?;
        if let Some(reason) = added.lock_failure {
            log::warning(&format!(
                "keys in memory may be swapped to disk: {reason}; raise the limit of locked memory (LimitMEMLOCK= of the service, ulimit -l)"
            ));
        }
        Ok(())
    }

    /// Versions that exist and are not in memory, in order, and why.
    pub fn unloaded(&self) -> Vec<(KeyName, String)> {
        let unloaded = lock(&self.unloaded);
        unloaded
            .iter()
            .map(|(name, reason)| (*name, reason.clone()))
            .collect()
    }

    /// Warns that new data is encrypted with an older version than there is.
    pub(crate) fn report_unloaded(&self, id: u32) {
        let Some(latest) = self.keyring.latest_version(id) else {
            return;
        };
        for (name, _) in self.unloaded() {
            if name.id == id && name.version > latest {
                log::warning(&format!(
                    "encrypting new data with version {latest} of key {id} although version {} exists, because {name} could not be loaded; see the error before this one",
                    name.version
                ));
            }
        }
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

/// What these locks protect is whole at every unlock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
