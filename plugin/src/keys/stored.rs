//! The broker's key store, where there is one: a second copy of the wrapped keys. A key file that is missing
//! comes back from it, and a new key is in it before it is used.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use broker_api::{Numbering, SessionPhase, WaitPolicy};
use key_files::check_value::CheckValue;
use key_files::fault_points::{self, Step};
use key_files::key_directory::{KeyDirectory, Stored, VersionPolicy};
use key_files::key_name::{Algorithm, KeyName};
use key_files::manifest::Entry;
use key_files::{PlaintextKey, WrappedKey};

use crate::concurrent;
use crate::keys::error::KeyError;
use crate::keys::manager::{KeyManager, Program, retry_for};
use crate::kms::client::{KmsError, Limits, Unwrapped};
use crate::kms::waiting::is_interrupted;
use crate::lock::lock;
use crate::server::log;

/// How long the start of the server waits for the list of keys. What is on disk is served without it.
const LIST_PATIENCE: Duration = Duration::from_secs(15);
/// How long the start retries what the key store does not give.
const FETCH_PATIENCE: Duration = Duration::from_secs(10);

/// How the keys here differ from those of the key store.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Versions of the key store that are not here.
    pub missing_here: Vec<KeyName>,
    /// Versions that are another key here, each with what is to be said about it.
    pub different: Vec<String>,
}

impl KeyManager {
    /// Where the key store is, if there is one.
    pub(super) fn key_store(&self, limits: &Limits<'_>) -> Result<Option<String>, KeyError> {
        if self.offline_keys().is_some() {
            return Ok(None);
        }
        self.kms
            .key_store(limits)
            .map_err(|source| KeyError::KeyStore {
                what: "keys".into(),
                source,
            })
    }

    /// Fetches a version of a key, or its highest version, from the key store, into memory.
    ///
    /// Returns `None` if the key store does not have it, or there is no key store.
    pub(super) fn fetch(
        &self,
        id: u32,
        version: Option<u32>,
        limits: &Limits<'_>,
    ) -> Result<Option<KeyName>, KeyError> {
        match self.key_store(limits)? {
            Some(key_store) => self.fetch_from(&key_store, id, version, limits),
            None => Ok(None),
        }
    }

    fn fetch_from(
        &self,
        key_store: &str,
        id: u32,
        version: Option<u32>,
        limits: &Limits<'_>,
    ) -> Result<Option<KeyName>, KeyError> {
        let failed = |source| KeyError::KeyStore {
            what: match version {
                Some(version) => format!("version {version} of key {id}"),
                None => format!("key {id}"),
            },
            source,
        };
        let Some(key) = self.kms.find_key(id, version, limits).map_err(failed)? else {
            return Ok(None);
        };
        let name = key.name;
        self.keep(key, key_store)?;
        Ok(Some(name))
    }

    /// Makes a version in the key store, then its key file. If the key store has the key already, loads that.
    pub(super) fn make_in_key_store(
        &self,
        key_store: &str,
        master_key_id: &str,
        id: u32,
        version_policy: VersionPolicy,
        limits: &Limits<'_>,
    ) -> Result<KeyName, KeyError> {
        let failed = |source| KeyError::Generate {
            id,
            master_key_id: master_key_id.into(),
            source,
        };
        let numbering = match version_policy {
            VersionPolicy::Next { known } => Numbering::Next { known },
            _ => Numbering::First,
        };
        let (made, is_new) = self
            .kms
            .make_key(
                master_key_id.into(),
                self.dynamic.key_bytes(),
                (id, numbering),
                limits,
            )
            .map_err(failed)?;
        fault_points::reach(Step::Generated);
        let name = made.name;
        if !is_new {
            self.keep(made, key_store)?;
            if name.algorithm == Algorithm::AesCtr {
                // Another server encrypts its pages with this one.
                let next = VersionPolicy::Next {
                    known: name.version,
                };
                return self.make_in_key_store(key_store, master_key_id, id, next, limits);
            }
            self.load(&name, limits)?;
            return Ok(name);
        }
        let decrypted = self
            .kms
            .decrypt(
                made.ciphertext_blob.clone(),
                Some(made.check_value),
                name.number(),
                limits,
            )
            .map_err(failed)?;
        fault_points::reach(Step::Unwrapped);
        if CheckValue::of(&decrypted.key) != made.check_value {
            return Err(failed(KmsError::WrongReply));
        }
        if !made.is_on_key_server() {
            let version = name.version;
            self.directory.store(
                id,
                name.algorithm,
                VersionPolicy::Fetched { version },
                &made.ciphertext_blob,
            )?;
        }
        let why = match self.dynamic.algorithm() {
            Algorithm::AesCtr => {
                " (AES_CTR is not for keys of a key store, which servers may share)"
            }
            Algorithm::AesCbc => "",
        };
        let entry = Entry::new(name, &decrypted.key, &made.master_key_arn);
        self.publish_new(entry, &decrypted.key, why)?;
        Ok(name)
    }

    /// Keeps a key of the key store in memory. Once it has proved to be what its check value says, its key file is
    /// written.
    fn keep(&self, key: WrappedKey, key_store: &str) -> Result<(), KeyError> {
        let name = key.name;
        if let Some(listed) = self.manifest.get(name.id, name.version)
            && (listed.name, listed.check_value) != (name, key.check_value)
        {
            return Err(KeyError::OtherInKeyStore {
                name,
                stored: key.check_value,
                listed: listed.check_value,
                key_store: key_store.into(),
            });
        }
        lock(&self.fetched).insert(name, (key, key_store.to_owned()));
        Ok(())
    }

    /// A wrapped key that was fetched and has no key file.
    pub(super) fn fetched(&self, name: &KeyName) -> Option<WrappedKey> {
        lock(&self.fetched).get(name).map(|(key, _)| key.clone())
    }

    /// Fails if a key that was fetched is not what its check value says.
    pub(super) fn check_fetched(&self, name: &KeyName, key: &PlaintextKey) -> Result<(), KeyError> {
        let Some(fetched) = self.fetched(name) else {
            return Ok(());
        };
        match CheckValue::of(key) == fetched.check_value {
            true => Ok(()),
            false => Err(KeyError::WrongInKeyStore { name: *name }),
        }
    }

    /// Writes the key file of a key that was fetched and has proved right. In mariadb-backup, which writes none, where it
    /// cannot be written, and where a key server keeps it, it stays in memory.
    pub(super) fn put_into_place(&self, name: &KeyName) {
        if self.program == Program::Backup {
            return;
        }
        let Some((key, key_store)) = lock(&self.fetched).get(name).cloned() else {
            return;
        };
        if key.is_on_key_server() {
            return;
        }
        let version = name.version;
        let stored = self.directory.store(
            name.id,
            name.algorithm,
            VersionPolicy::Fetched { version },
            &key.ciphertext_blob,
        );
        match stored {
            Ok(Stored::New(_)) => {
                log::note(&format!("restored {name} from the key store {key_store}"));
            }
            // Another thread has.
            Ok(Stored::Exists) => {}
            Err(error) => {
                log::warning(&format!(
                    "fetched {name} from the key store {key_store}, but cannot write its key file here: {error}"
                ));
                return;
            }
        }
        lock(&self.fetched).remove(name);
    }

    /// Decrypts the form of a key that the key store has in place of its key file `refused`, which KMS refuses: the master
    /// key may have been changed with kms-data-keys rewrap on another host. Replaces the key file.
    ///
    /// `None` if the key store has no other form, or one that does not prove to be the key that the manifest lists.
    pub(super) fn decrypt_rewrapped(
        &self,
        directory: &KeyDirectory,
        listed: &Entry,
        refused: &[u8],
        limits: &Limits<'_>,
    ) -> Option<Unwrapped> {
        let name = listed.name;
        let key_store = self.key_store(limits).ok()??;
        let found = self.kms.find_key(name.id, Some(name.version), limits);
        let key = found.ok()?.filter(|key| {
            (key.name, key.check_value) == (name, listed.check_value)
                && !key.is_on_key_server()
                && key.ciphertext_blob != refused
        })?;
        let number = (name.id, name.version);
        let blob = key.ciphertext_blob;
        let check_value = Some(listed.check_value);
        let decrypted = self.kms.decrypt(blob.clone(), check_value, number, limits);
        let decrypted = decrypted.ok()?;
        if CheckValue::of(&decrypted.key) != listed.check_value {
            return None;
        }
        let path = directory.path_of(&name);
        let path = path.display();
        if self.program == Program::Server {
            match directory.replace(&name, refused, &blob) {
                Ok(()) => log::note(&format!(
                    "KMS refuses key file '{path}', so it was replaced by what the key store {key_store} has: the same key, under master key {}",
                    decrypted.master_key_arn
                )),
                Err(error) => log::warning(&format!(
                    "KMS refuses key file '{path}'. The key store {key_store} has the same key under master key {}, which is used, and cannot be saved here: {error}",
                    decrypted.master_key_arn
                )),
            }
        }
        Some(decrypted)
    }

    /// Keys that were fetched and have no key file.
    pub(super) fn fetched_names(&self) -> Vec<KeyName> {
        lock(&self.fetched).keys().copied().collect()
    }

    /// Fetches the keys that the manifest lists and that have no key file here. Only for the newest version of a key
    /// does the start wait for a session: older ones may have been moved away because nothing needs them.
    pub(super) fn fetch_missing(&self) -> Result<(), KeyError> {
        let here = self.directory.list()?;
        let mut missing: Vec<KeyName> = self
            .manifest
            .entries()
            .iter()
            .map(|entry| entry.name)
            .collect();
        missing.retain(|name| here.keys.binary_search(name).is_err());
        if missing.is_empty() {
            return Ok(());
        }
        let limits = self.limits_at_start(&|_| false);
        let Some(key_store) = self.key_store(&limits)? else {
            return Ok(());
        };
        let (old, new): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|name| here.is_retired(name));
        self.fetch_all(&key_store, &new, self.policy_at_start());
        self.fetch_all(&key_store, &old, WaitPolicy::Never);
        Ok(())
    }

    /// Compares the keys here with those of the key store, and fetches what is missing here. Tells of what is
    /// missing there. Without a session, or if the key store does not answer, nothing is compared.
    pub(super) fn compare_with_key_store(&self) -> Comparison {
        let mut comparison = Comparison::default();
        let not_compared = |error: &dyn std::fmt::Display| {
            log::warning(&format!(
                "the keys here were not compared with the key store: {error}"
            ));
        };
        let limits = list_limits(&is_interrupted);
        let key_store = match self.key_store(&limits) {
            Ok(Some(key_store)) => key_store,
            Ok(None) => return comparison,
            Err(error) => {
                not_compared(&error);
                return comparison;
            }
        };
        let listed = match self.kms.list_keys(&limits) {
            Ok(listed) => listed,
            Err(error) => {
                not_compared(&error);
                return comparison;
            }
        };
        let (only_here, different) = self.differences(&listed, &key_store);
        comparison.different = different;
        self.note_compared(only_here.len());
        if !only_here.is_empty() {
            log::warning(&format!(
                "key versions that are not in the key store {key_store} and would be lost with this host: {}; put them there with kms-data-keys push, those that have no key file once that is back: {}",
                only_here.len(),
                first_of(&only_here)
            ));
        }
        let has = |name: &KeyName| {
            self.manifest.get(name.id, name.version).is_some()
                || self.keyring.contains(name.id, name.version)
        };
        comparison.missing_here = listed.into_iter().map(|(name, _)| name).collect();
        comparison.missing_here.retain(|name| !has(name));
        if comparison.different.is_empty() {
            self.fetch_all(&key_store, &comparison.missing_here, WaitPolicy::Never);
        }
        comparison
    }

    /// Counts again what is only here or another key there, if there is a key store and a session. Anything that fails is left for the
    /// next time: nothing depends on it.
    pub(super) fn compare_again(&self, is_interrupted: &dyn Fn() -> bool) {
        let session = self.session();
        let open = session.filter(|it| it.phase == SessionPhase::Open);
        let Some(key_store) = open.and_then(|it| it.key_store) else {
            return;
        };
        if let Ok(listed) = self.kms.list_keys(&list_limits(is_interrupted)) {
            let (only_here, different) = self.differences(&listed, &key_store);
            self.note_compared(only_here.len() + different.len());
            let problem = different.into_iter().next();
            self.report_once(problem, |inspected| &mut inspected.store_problem);
        }
    }

    /// Returns the versions of the manifest that the key store does not have, and what is to be said of those that are other
    /// keys there.
    fn differences(
        &self,
        listed: &[(KeyName, CheckValue)],
        key_store: &str,
    ) -> (Vec<String>, Vec<String>) {
        let stored: BTreeMap<_, _> = listed
            .iter()
            .map(|(name, check)| (name.number(), (*name, *check)))
            .collect();
        let (mut only_here, mut different) = (Vec::new(), Vec::new());
        for entry in self.manifest.entries() {
            let name = entry.name;
            match stored.get(&name.number()) {
                None => only_here.push(format!("{}.{}", name.id, name.version)),
                Some(&(stored, check)) if (stored, check) != (name, entry.check_value) => {
                    let error = KeyError::OtherInKeyStore {
                        name,
                        stored: check,
                        listed: entry.check_value,
                        key_store: key_store.to_owned(),
                    };
                    different.push(error.to_string());
                }
                Some(_) => {}
            }
        }
        (only_here, different)
    }

    fn note_compared(&self, only_here: usize) {
        let mut inspected = lock(&self.inspected);
        inspected.not_in_store = u64::try_from(only_here).unwrap_or(u64::MAX);
        inspected.compared = Some(SystemTime::now());
    }

    /// Fetches several keys at the same time. A failure that each of them would have is reported once, and what is
    /// missing is asked for again when it is needed.
    fn fetch_all(&self, key_store: &str, names: &[KeyName], wait: WaitPolicy) {
        let may_retry = retry_for(FETCH_PATIENCE);
        let work = |name: KeyName, is_stopped: &AtomicBool| {
            let limits = Limits {
                wait,
                deadline: None,
                may_retry: &|error| !is_stopped.load(Ordering::Relaxed) && may_retry(error),
                is_interrupted: &is_interrupted,
            };
            self.fetch_from(key_store, name.id, Some(name.version), &limits)
        };
        let mut goes_on = true;
        concurrent::for_each(names.to_vec(), work, |result| {
            if let Some(Err(error)) = result {
                if goes_on || !error.is_transient() {
                    log::error(&error.to_string());
                }
                // A worker reports what may pass only when its patience is over.
                goes_on &= !error.is_transient();
            }
            goes_on
        });
    }
}

/// A list is asked for once, and waits for no session.
fn list_limits(is_interrupted: &dyn Fn() -> bool) -> Limits<'_> {
    Limits {
        wait: WaitPolicy::Never,
        deadline: Some(Instant::now() + LIST_PATIENCE),
        may_retry: &|_| false,
        is_interrupted,
    }
}

/// The first names of a list, and how many there are more.
pub(super) fn first_of(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = names
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
