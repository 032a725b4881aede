//! Serves data keys from memory, else from disk.

#![forbid(unsafe_code)]

use core::ops::RangeInclusive;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use broker_api::{SessionState, WaitPolicy};
use key_files::key_directory::{FileError, KeyDirectory, ServerLock};
use key_files::key_name::{Algorithm, KeyName, is_valid_number};
use key_files::manifest::{Entry, ManifestFile};
use key_files::{PlaintextKey, WrappedKey};

use crate::keys::denied::DeniedKeys;
use crate::keys::error::KeyError;
use crate::keys::failure_backoff::{FailureBackoff, KeyRequest};
use crate::keys::keyring::{DataKey, Keyring};
use crate::keys::page_compression::PageCompression;
use crate::kms::client::{KmsClient, KmsError, Limits, Unwrapped};
use crate::kms::counters::Counters;
use crate::kms::waiting::is_interrupted;
use crate::lock::lock;
use crate::server::log;
use crate::server::symbols::{is_main_thread, server_is_starting, statement_is_killed};
use crate::settings::{GlobalSettings, StartupSettings};

/// How long a statement keeps retrying a KMS that fails at once.
pub(super) const STATEMENT_PATIENCE: Duration = Duration::from_secs(3);
/// Keys that the server uses without being told by a statement: `ENCRYPTION_KEY_SYSTEM_DATA` and
/// `ENCRYPTION_KEY_TEMPORARY_DATA` of `handler.h`.
pub const SYSTEM_IDS: RangeInclusive<u32> = 1..=2;

/// The program that has loaded the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// A server.
    Server,
    /// mariadb-backup, which only reads keys.
    Backup,
}

/// The state of the plugin while it is loaded.
pub struct KeyManager {
    /// The keys in memory.
    pub(super) keyring: Keyring,
    /// The key files.
    pub(super) directory: KeyDirectory,
    /// All keys that the server has ever had.
    pub(super) manifest: ManifestFile,
    pub(super) kms: KmsClient,
    pub(super) settings: StartupSettings,
    pub(super) dynamic: &'static GlobalSettings,
    pub(super) program: Program,
    backoff: FailureBackoff,
    pub(super) denied: DeniedKeys,
    /// Versions that exist but are not in memory, and why.
    unloaded: Mutex<BTreeMap<KeyName, String>>,
    server_lock: Mutex<Option<ServerLock>>,
    /// Keys of the key store that have no key file here, and where they come from.
    pub(super) fetched: Mutex<BTreeMap<KeyName, (WrappedKey, String)>>,
    page_compression: PageCompression,
    /// What the last inspection found.
    pub(super) inspected: Mutex<Inspected>,
}

/// What an inspection of the key files and the key store found, for the status variables.
#[derive(Debug, Default)]
pub(super) struct Inspected {
    /// Versions that have no key file, although they are in memory or the newest of their key.
    pub files_missing: BTreeSet<KeyName>,
    /// Why the key files could not be looked for, as the log says.
    pub problem: Option<String>,
    /// How many versions that are here the key store does not have, or has as another key.
    pub not_in_store: u64,
    /// The first version that is another key in the key store, as the log says.
    pub store_problem: Option<String>,
    /// When the keys were last compared with the key store; `None` if they never were.
    pub compared: Option<SystemTime>,
}

impl KeyManager {
    /// Opens the manifest and, unless offline keys replace it, the key file directory.
    pub fn new(
        settings: StartupSettings,
        dynamic: &'static GlobalSettings,
        program: Program,
    ) -> Result<Self, FileError> {
        // Offline keys need no such directory, and a host that restores a backup may not have it.
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
            denied: DeniedKeys::default(),
            unloaded: Mutex::default(),
            server_lock: Mutex::new(server_lock),
            fetched: Mutex::default(),
            page_compression: PageCompression::default(),
            inspected: Mutex::default(),
        })
    }

    /// Wipes the keys and releases the directory for another server.
    pub fn stop(&self) {
        self.keyring.wipe();
        lock(&self.server_lock).take();
    }

    /// Returns the latest version of a key, and makes the key if it has never existed.
    ///
    /// Never fails for an id that has been served before, whose versions stay in memory. The error is the
    /// reason, and has been logged.
    #[inline]
    pub fn latest_version(&self, id: u32) -> Result<u32, String> {
        match self.keyring.latest_version(id) {
            Some(version) => Ok(version),
            None => self
                .run(KeyRequest { id, version: None }, || self.find_or_make(id))
                .or_else(|reason| {
                    let loaded = match self.program {
                        Program::Server => self.denied.note(id, &self.keyring),
                        Program::Backup => self.keyring.latest_version(id),
                    };
                    loaded.ok_or(reason)
                }),
        }
    }

    /// Returns a key version. Loads it if it is not in memory. The error is the reason, and has been logged.
    #[inline]
    pub fn key(&self, id: u32, version: u32) -> Result<&DataKey, String> {
        if let Some(key) = self.keyring.get(id, version) {
            return Ok(key);
        }
        self.ensure_loaded(id, version)?;
        let unloaded = || format!("version {version} of key {id} is not loaded");
        self.keyring.get(id, version).ok_or_else(unloaded)
    }

    /// The file whose keys are served instead of those of key files and KMS, if there is one.
    pub fn offline_keys(&self) -> Option<&Path> {
        self.settings.offline_keys()
    }

    /// Number of key ids that have a version in memory.
    pub fn loaded_ids(&self) -> u64 {
        self.keyring.id_count()
    }

    /// Number of key versions in memory.
    pub fn loaded_versions(&self) -> u64 {
        self.keyring.version_count()
    }

    /// Counts the calls of KMS, for the status variables.
    pub fn kms_counters(&self) -> &Counters {
        self.kms.counters()
    }

    /// The state of the broker's session; `None` if no broker answers or none is needed.
    pub fn session(&self) -> Option<SessionState> {
        match self.offline_keys() {
            Some(_) => None,
            None => self.kms.session().ok(),
        }
    }

    /// Whether the server uses another key where this one is missing, so that its absence is no error:
    /// `file_key_management` may lack it too.
    #[inline]
    pub fn is_dispensable(&self, id: u32) -> bool {
        id == *SYSTEM_IDS.end()
            && self.offline_keys().is_some()
            && self.keyring.latest_version(id).is_none()
    }

    /// Makes sure that a key version is in memory. The error is the reason, and has been logged.
    pub(super) fn ensure_loaded(&self, id: u32, version: u32) -> Result<(), String> {
        if self.keyring.contains(id, version) {
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

    #[cold]
    fn run<T>(
        &self,
        request: KeyRequest,
        attempt: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<T, String> {
        let id = request.id;
        self.denied.check(id).map_err(|error| error.to_string())?;
        let may_wait = || {
            if statement_is_killed() {
                Err(KeyError::Killed { id })
            } else if self.policy() == WaitPolicy::Never && self.kms.waits().is_waiting() {
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
        if self.keyring.contains(id, version) {
            return Ok(());
        }
        self.expect_key_files(|| format!("version {version} of key {id}"))?;
        let may_retry = retry_for(STATEMENT_PATIENCE);
        let limits = self.limits(&may_retry);
        let listed = || self.manifest.get(id, version).map(|entry| entry.name);
        let mut known = self.directory.find(id, version)?.or_else(listed);
        if known.is_none() {
            known = self.fetch(id, Some(version), &limits)?;
        }
        let Some(name) = known else {
            return Err(self.no_such_version(id, version));
        };
        self.directory.sync()?;
        self.load_with(&name, &limits, |entry| {
            self.record_loaded(&[entry]);
            Ok(())
        })
    }

    fn find_or_make(&self, id: u32) -> Result<u32, KeyError> {
        check_number(id)?;
        if let Some(version) = self.keyring.latest_version(id) {
            return Ok(version);
        }
        self.expect_key_files(|| format!("key {id}"))?;
        let may_retry = retry_for(STATEMENT_PATIENCE);
        let limits = self.limits(&may_retry);
        if let Some(version) = self.latest_for_server(id, &limits)? {
            return Ok(version);
        }
        if let Some(name) = self.fetch(id, None, &limits)? {
            if name.algorithm == Algorithm::AesCtr && self.program == Program::Server {
                // Another server encrypts its pages with this one, so this server gets it for reading only.
                return Ok(self.make_next(id, &limits)?.version);
            }
            self.load(&name, &limits)
                .map_err(|error| error.for_reading(id))?;
            return Ok(name.version);
        }
        self.make_first(id)
    }

    /// Returns the highest version that can be loaded; `None` if no version is known.
    ///
    /// If versions are known but none can be loaded, the server does not get the key until it is restarted.
    pub(super) fn latest_for_server(
        &self,
        id: u32,
        limits: &Limits<'_>,
    ) -> Result<Option<u32>, KeyError> {
        let known = self.known_versions(id)?;
        let loaded = self.load_highest(&known, limits).or_else(|error| {
            let loaded = match (self.program, &error) {
                // Perhaps made a moment ago, and nothing is encrypted with it. Or its data could not be looked for.
                (
                    Program::Server,
                    KeyError::NotListed { .. }
                    | KeyError::Unclear { .. }
                    | KeyError::CannotLook { .. },
                ) => return Err(error),
                (Program::Server, _) => self.denied.refuse(id, &error.to_string(), &self.keyring),
                (Program::Backup, _) => None,
            };
            loaded.map(Some).ok_or_else(|| error.for_reading(id))
        })?;
        if self.program == Program::Backup {
            return Ok(loaded);
        }
        let replaced = self
            .keyring
            .latest_name(id)
            .and_then(|latest| self.replace_ctr(&latest, limits));
        Ok(replaced.or(loaded))
    }

    /// Loads the highest of these versions of one key that can be loaded; `None` if there are none.
    pub(super) fn load_highest(
        &self,
        known: &[KeyName],
        limits: &Limits<'_>,
    ) -> Result<Option<u32>, KeyError> {
        if known.is_empty() {
            return Ok(None);
        }
        self.directory.sync()?;
        let mut first_failure = None;
        for name in known.iter().rev() {
            let loaded = self
                .directory
                .check_conflict(known, name)
                .map_err(KeyError::from)
                .and_then(|()| self.load(name, limits));
            match loaded {
                Ok(()) => {
                    self.report_unloaded(name.id);
                    return Ok(Some(name.version));
                }
                Err(error) => {
                    let is_for_all = error.is_for_all_keys() || error.is_of_silent_store();
                    first_failure = first_failure.or(Some(error));
                    if is_for_all {
                        break;
                    }
                }
            }
        }
        first_failure.map_or(Ok(None), Err)
    }

    /// Returns the versions of a key on disk, in the manifest and fetched from the key store, in order. A version that exists with both
    /// algorithms appears twice.
    pub(super) fn known_versions(&self, id: u32) -> Result<Vec<KeyName>, KeyError> {
        let mut known = self.directory.versions(id)?;
        let listed = self
            .manifest
            .versions(id)
            .into_iter()
            .map(|entry| entry.name);
        let names = listed.chain(self.fetched_names());
        for name in names.filter(|name| name.id == id) {
            if !known.iter().any(|it| it.version == name.version) {
                known.push(name);
            }
        }
        known.sort_unstable();
        Ok(known)
    }

    /// The ids of the keys in memory, on disk and in the manifest.
    pub(super) fn known_ids(&self) -> Result<BTreeSet<u32>, KeyError> {
        let mut ids: BTreeSet<u32> = self.keyring.ids().into_iter().collect();
        ids.extend(self.directory.list()?.keys.iter().map(|key| key.id));
        ids.extend(self.manifest.entries().iter().map(|entry| entry.name.id));
        Ok(ids)
    }

    pub(super) fn no_such_version(&self, id: u32, version: u32) -> KeyError {
        match self.kms.has_key_server() {
            true => KeyError::NotServed {
                what: format!("version {version} of key {id}"),
                proof: None,
            },
            false => KeyError::NoSuchVersion {
                id,
                version,
                path: self.directory.path().to_owned(),
            },
        }
    }

    pub(super) fn file_missing(&self, name: &KeyName) -> KeyError {
        if self.kms.has_key_server() {
            return KeyError::NotOnKeyServer {
                name: *name,
                manifest: self.manifest.path(),
            };
        }
        KeyError::FileMissing {
            name: *name,
            path: self.directory.path().to_owned(),
            manifest: self.manifest.path(),
        }
    }

    /// Why no version can be loaded where the directory has no key file at all.
    pub(super) fn all_files_missing(&self, versions: usize) -> KeyError {
        KeyError::NoKeyFiles {
            path: self.directory.path().to_owned(),
            manifest: self.manifest.path(),
            versions,
        }
    }

    /// Fails if offline keys are served, because all of those are in memory already.
    fn expect_key_files(&self, what: impl FnOnce() -> String) -> Result<(), KeyError> {
        match self.offline_keys() {
            None => Ok(()),
            Some(path) => Err(KeyError::NotOffline {
                what: what(),
                path: path.to_owned(),
            }),
        }
    }

    /// Returns the limits of a KMS call for the running statement or for the start of the server.
    pub(super) fn limits<'a>(&self, may_retry: &'a dyn Fn(&KmsError) -> bool) -> Limits<'a> {
        Limits {
            wait: self.policy(),
            deadline: None,
            may_retry,
            is_interrupted: &is_interrupted,
        }
    }

    /// Returns the limits of a KMS call while the plugin is being loaded.
    pub(super) fn limits_at_start<'a>(
        &self,
        may_retry: &'a dyn Fn(&KmsError) -> bool,
    ) -> Limits<'a> {
        Limits {
            wait: self.policy_at_start(),
            ..self.limits(may_retry)
        }
    }

    /// Returns whether a call may wait until somebody opens a session. Only the thread that starts the server
    /// may wait: other threads hold locks that others need.
    fn policy(&self) -> WaitPolicy {
        if server_is_starting() && is_main_thread() {
            self.policy_at_start()
        } else {
            WaitPolicy::Never
        }
    }

    /// Returns the same for a plugin that is being loaded.
    pub(super) fn policy_at_start(&self) -> WaitPolicy {
        match self.program {
            Program::Backup => WaitPolicy::Limited,
            Program::Server if server_is_starting() => WaitPolicy::UntilOpen,
            Program::Server => WaitPolicy::Never,
        }
    }

    /// Reads, decrypts, checks and publishes a key version that may become the latest, once the manifest lists it.
    pub(super) fn load(&self, name: &KeyName, limits: &Limits<'_>) -> Result<(), KeyError> {
        self.load_with(name, limits, |entry| self.list(entry))
    }

    fn load_with(
        &self,
        name: &KeyName,
        limits: &Limits<'_>,
        list: impl FnOnce(Entry) -> Result<(), KeyError>,
    ) -> Result<(), KeyError> {
        let loaded = self
            .decrypt(&self.directory, name, limits)
            .and_then(|decrypted| {
                list(Entry::new(*name, &decrypted.key, &decrypted.master_key_arn))?;
                self.publish(name, &decrypted.key)
            });
        self.note_loaded(name, &loaded);
        loaded
    }

    /// Adds a key to the manifest, if anything can be written there.
    fn list(&self, entry: Entry) -> Result<(), KeyError> {
        let name = entry.name;
        match self.program {
            Program::Backup => Ok(()),
            Program::Server => match self.manifest.record(&[entry]) {
                Err(source) if !source.is_read_only() => Err(KeyError::NotListed { name, source }),
                _ => Ok(()),
            },
        }
    }

    /// Records whether a version that exists is in memory.
    pub(super) fn note_loaded<T>(&self, name: &KeyName, loaded: &Result<T, KeyError>) {
        let mut unloaded = lock(&self.unloaded);
        match loaded {
            Ok(_) => drop(unloaded.remove(name)),
            Err(error) => drop(unloaded.insert(*name, error.to_string())),
        }
    }

    /// Reads, decrypts and checks one key file.
    pub(super) fn decrypt(
        &self,
        directory: &KeyDirectory,
        name: &KeyName,
        limits: &Limits<'_>,
    ) -> Result<Unwrapped, KeyError> {
        let blob = self.read_wrapped(directory, name, limits)?;
        let is_on_key_server = blob.is_empty();
        let listed = self.manifest.get(name.id, name.version);
        let decrypted = self.kms.decrypt(
            blob.clone(),
            listed.as_ref().map(|entry| entry.check_value),
            name.number(),
            limits,
        );
        let decrypted = match (decrypted, listed) {
            (Err(source), Some(listed))
                if source.refuses_key() && !is_on_key_server && listed.name == *name =>
            {
                self.decrypt_rewrapped(directory, &listed, &blob, limits)
                    .ok_or(source)
            }
            (decrypted, _) => decrypted,
        };
        let decrypted = decrypted.map_err(|source| match is_on_key_server {
            true => KeyError::KeyServer {
                name: *name,
                source,
            },
            false => KeyError::Decrypt {
                path: directory.path_of(name),
                source,
            },
        })?;
        self.check(&directory.path_of(name), name, &decrypted.key)?;
        self.check_fetched(name, &decrypted.key)?;
        self.put_into_place(name);
        Ok(decrypted)
    }

    /// Reads a key file. One that is missing is fetched from the key store, if there is one.
    fn read_wrapped(
        &self,
        directory: &KeyDirectory,
        name: &KeyName,
        limits: &Limits<'_>,
    ) -> Result<Vec<u8>, KeyError> {
        let error = match directory.read(name) {
            Err(error) if error.is_not_found() => error,
            read => return Ok(read?),
        };
        if self.fetched(name).is_none() {
            self.fetch(name.id, Some(name.version), limits)?;
        }
        if let Some(fetched) = self.fetched(name) {
            return Ok(fetched.ciphertext_blob);
        }
        Err(match self.manifest.get(name.id, name.version) {
            Some(_) => self.file_missing(name),
            None => error.into(),
        })
    }

    /// Fails if the key that `path` holds is not the one that the manifest lists under this name.
    pub(super) fn check(
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

    /// Adds keys that are already on disk to the manifest. They are served even if this fails.
    pub(super) fn record_loaded(&self, entries: &[Entry]) {
        if self.program == Program::Backup {
            return;
        }
        match self.manifest.record(entries) {
            Ok(()) => {}
            Err(error) if error.is_read_only() => {}
            Err(error) => log::warning(&format!(
                "{error}; until this is fixed, the loss of a key file may go unnoticed"
            )),
        }
    }

    /// Takes note of a piece of data that AES_CTR is about to encrypt without padding.
    pub fn notice_ctr(&self, id: u32, encrypted_bytes: usize) {
        if !SYSTEM_IDS.contains(&id)
            && self.program == Program::Server
            && self.offline_keys().is_none()
        {
            self.page_compression
                .notice(id, encrypted_bytes, &self.manifest);
        }
    }

    /// Whether AES_CTR has encrypted page-compressed pages with a key.
    pub(super) fn is_page_compressed(&self, id: u32) -> bool {
        self.page_compression.is_noticed(id, &self.manifest)
    }

    /// Puts a key into memory, unless it is refused to the server.
    pub(super) fn publish(&self, name: &KeyName, key: &PlaintextKey) -> Result<(), KeyError> {
        let find_data = || self.find_data(name.id);
        let add = || {
            self.keyring
                .add(*name, key.expose())
                .map_err(KeyError::Memory)
        };
        let lock_failure = self.denied.admit(name.id, &self.keyring, find_data, add)?;
        if let Some(reason) = lock_failure {
            log::warning(&format!(
                "keys in memory may be swapped to disk, dumped or inherited by a forked process: {reason}. If memory cannot be locked, raise its limit (LimitMEMLOCK= of the service, ulimit -l)"
            ));
        }
        Ok(())
    }

    /// Returns the versions that exist but are not in memory, in order, with the reasons.
    pub fn unloaded(&self) -> Vec<(KeyName, String)> {
        let unloaded = lock(&self.unloaded);
        unloaded
            .iter()
            .map(|(name, reason)| (*name, reason.clone()))
            .collect()
    }

    /// Warns if new data is encrypted with a version that is not the newest.
    pub(super) fn report_unloaded(&self, id: u32) {
        let Some(latest) = self.keyring.latest_version(id) else {
            return;
        };
        for (name, _) in self.unloaded() {
            if name.id == id && name.version > latest {
                log::warning(&format!(
                    "encrypting new data with version {latest} of key {id} although version {} exists, because {name} could not be loaded; see the preceding error",
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

/// Returns a condition that allows retries until `patience` has passed.
pub(super) fn retry_for(patience: Duration) -> impl Fn(&KmsError) -> bool {
    let end = Instant::now() + patience;
    move |_| Instant::now() < end
}

#[cfg(test)]
mod tests;
