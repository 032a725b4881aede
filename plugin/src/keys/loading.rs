//! Loading all data keys when the plugin starts.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use broker_api::WaitPolicy;
use key_store::key_directory::{KeyDirectory, Listing, VersionPolicy};
use key_store::key_name::{Algorithm, KeyName};
use key_store::manifest::Entry;

use crate::concurrent;
use crate::keys::error::KeyError;
use crate::keys::manager::{KeyManager, Program, SYSTEM_IDS, until};
use crate::keys::offline::OfflineError;
use crate::kms::client::{KmsError, Limits};
use crate::server::log;

/// Calls that fail are repeated until no key at all could be unwrapped for so long.
const PATIENCE: Duration = Duration::from_secs(30);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// Between two attempts at what could not be loaded.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why the plugin cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The broker or the key file directory.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The broker cannot be asked.
    #[error(transparent)]
    KmsClient(#[from] KmsError),
    /// The offline keys.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// Key files hold other keys than the manifest lists. InnoDB would take the data for corrupted, and advise
    /// to drop the tables.
    #[error("{} key files hold other keys than they should; the reasons are above", .0)]
    WrongKeys(usize),
    /// There are keys and none could be used.
    #[error("none of the {0} data keys could be loaded; the reasons are above")]
    NoKeyLoaded(usize),
}

/// Loads every key, and makes those that a safe start needs. A key that fails is reported and tried again
/// when it is needed.
///
/// Errors: no broker, or keys of which none could be loaded.
pub fn load_all(manager: &KeyManager, program: Program) -> Result<(), StartError> {
    manager.kms.check_broker()?;
    if program == Program::Server {
        remove_left_overs(manager);
    }
    let listing = manager.directory.list().map_err(KeyError::from)?;
    for name in &listing.malformed {
        log::note(&format!(
            "ignoring file '{name}': key files are named aws-kms-key.<id>.<version>, with .ctr for AES_CTR"
        ));
    }
    let forked = match program {
        Program::Server if manager.manifest.is_forked() => leave_origin(manager)?,
        _ => BTreeSet::new(),
    };
    // A copy's new versions are on disk too by now.
    let listing = manager.directory.list().map_err(KeyError::from)?;
    report_missing(manager, &listing);
    let mut loadable = without_conflicts(manager, &listing);
    loadable.retain(|name| !forked.contains(&name.id));
    let count = loadable.len();
    if count > 0 {
        manager.directory.sync().map_err(KeyError::from)?;
    }
    let loaded = load_concurrently(manager, &manager.directory, loadable);
    manager.record_loaded(&loaded.entries);
    if loaded.wrong_keys > 0 {
        return Err(StartError::WrongKeys(loaded.wrong_keys));
    }
    let known = count.max(manager.manifest.entries().len());
    if known > 0 && manager.keyring.version_count() == 0 && forked.is_empty() {
        return Err(StartError::NoKeyLoaded(known));
    }
    for id in manager.keyring.ids() {
        manager.report_unloaded(id);
    }
    if program == Program::Server {
        replace_ctr_of_system_keys(manager);
    }
    Ok(())
}

/// Loads the keys that only the increment has which mariadb-backup is about to apply: its log may be
/// encrypted with them, and mariadb-backup copies their files to the backup last of all.
///
/// Errors: the directory cannot be read.
pub fn load_increment(manager: &KeyManager, increment: &Path) -> Result<(), KeyError> {
    let directory = KeyDirectory::open(increment)?;
    let mut names = directory.list()?.keys;
    names.retain(|name| manager.keyring.key(name.id, name.version).is_none());
    load_concurrently(manager, &directory, names);
    Ok(())
}

/// Not being able to clean up is no reason to stay down.
fn remove_left_overs(manager: &KeyManager) {
    match manager.directory.remove_stale_temporaries() {
        Ok(names) => {
            for name in names {
                log::note(&format!(
                    "removed '{name}', left by a server that died while it made a key; nothing was encrypted with it"
                ));
            }
        }
        Err(error) => log::warning(&error.to_string()),
    }
}

fn without_conflicts(manager: &KeyManager, listing: &Listing) -> Vec<KeyName> {
    let keep = |name: &&KeyName| match manager.directory.check_conflict(&listing.keys, name) {
        Ok(()) => true,
        Err(error) => {
            manager.note_loaded(name, &Err::<(), _>(error.into()));
            // Either of the two would be told of the other.
            if name.algorithm == Algorithm::AesCbc {
                report_failure(manager, name);
            }
            false
        }
    };
    listing.keys.iter().filter(keep).copied().collect()
}

fn report_failure(manager: &KeyManager, name: &KeyName) {
    for (unloaded, reason) in manager.unloaded() {
        if unloaded == *name {
            log::error(&reason);
        }
    }
}

/// Reports the versions that the manifest lists and that have no key file: loudly where one is the newest of
/// its key. Older ones may have been moved away because nothing needs them any more.
fn report_missing(manager: &KeyManager, listing: &Listing) {
    let newest_on_disk: BTreeMap<u32, u32> = listing
        .keys
        .iter()
        .map(|key| (key.id, key.version))
        .collect();
    let has_file = |name: &KeyName| {
        listing
            .keys
            .iter()
            .any(|key| (key.id, key.version) == (name.id, name.version))
    };
    let mut old = Vec::new();
    for entry in manager.manifest.entries() {
        let name = entry.name;
        if has_file(&name) {
            continue;
        }
        if newest_on_disk
            .get(&name.id)
            .is_some_and(|&newest| newest > name.version)
        {
            old.push(format!("{}.{}", name.id, name.version));
            continue;
        }
        let error = manager.file_missing(&name);
        log::error(&error.to_string());
        manager.note_loaded(&name, &Err::<(), _>(error));
    }
    if !old.is_empty() {
        log::note(&format!(
            "'{}' lists older key versions that have no key file here: {}. What they encrypted cannot be decrypted; that is well if kms-data-keys check has called them not needed",
            manager.manifest.path().display(),
            old.join(", ")
        ));
    }
}

/// Makes new versions of all keys of a copied data directory that encrypt with AES_CTR: its origin goes
/// on with the old ones, and both would encrypt different pages with the same key and IV. Returns the ids
/// of which none could be made, which the server does not get.
fn leave_origin(manager: &KeyManager) -> Result<BTreeSet<u32>, KeyError> {
    let mut ids: BTreeSet<u32> = manager
        .directory
        .list()?
        .keys
        .iter()
        .map(|key| key.id)
        .collect();
    ids.extend(manager.manifest.entries().iter().map(|entry| entry.name.id));
    let mut refused = BTreeSet::new();
    for id in ids {
        let latest = manager.known_versions(id)?.pop();
        let Some(latest) = latest.filter(|name| name.algorithm == Algorithm::AesCtr) else {
            continue;
        };
        let placement = VersionPolicy::Next {
            known: latest.version,
        };
        let may_retry = until(PATIENCE);
        if let Err(error) = manager.make(id, placement, &manager.limits_at_start(&may_retry)) {
            let reason = error.to_string();
            let error = KeyError::Forked { id, reason };
            log::error(&error.to_string());
            manager.refuse(id, &error.to_string());
            refused.insert(id);
        }
    }
    if refused.is_empty() {
        manager.manifest.set_forked(false)?;
        log::note(
            "this data directory is a copy (kms-data-keys fork), and no key of its origin encrypts with AES_CTR here any more",
        );
    }
    Ok(refused)
}

/// Makes versions of AES_CBC where the system's keys encrypt with AES_CTR, as they do after a move from
/// file_key_management: MariaDB uses an IV more than once in the redo log, temporary tables and Aria.
fn replace_ctr_of_system_keys(manager: &KeyManager) {
    for id in SYSTEM_IDS {
        let Some(version) = manager.keyring.latest_version(id) else {
            continue;
        };
        let is_ctr = manager
            .keyring
            .key(id, version)
            .is_some_and(|key| key.algorithm() == Algorithm::AesCtr);
        if !is_ctr {
            continue;
        }
        let placement = VersionPolicy::Next { known: version };
        let may_retry = until(PATIENCE);
        match manager.make(id, placement, &manager.limits_at_start(&may_retry)) {
            Ok(Some(name)) => log::warning(&format!(
                "key {id} now has version {} of AES_CBC, because AES_CTR is not safe for what MariaDB encrypts with it. The redo log goes on under version {version} until innodb_log_file_size changes",
                name.version
            )),
            Ok(None) => {}
            Err(error) => log::error(&format!(
                "key {id} encrypts with AES_CTR, which is not safe for what MariaDB encrypts with it, and no version of AES_CBC could be made: {error}"
            )),
        }
    }
}

/// What came of loading keys.
#[derive(Default)]
struct Loaded {
    /// What the manifest should say of those that were loaded.
    entries: Vec<Entry>,
    /// How many files hold another key than the manifest lists.
    wrong_keys: usize,
}

fn load_concurrently(
    manager: &KeyManager,
    directory: &KeyDirectory,
    names: Vec<KeyName>,
) -> Loaded {
    let mut progress = Progress::new(names.len());
    let (last_success, trouble) = (Mutex::new(Instant::now()), Mutex::new(None));
    let work = |name: KeyName, is_stopped: &AtomicBool| {
        let may_retry = |error: &KmsError| {
            *lock(&trouble) = Some(error.to_string());
            let progress = Some(*lock(&last_success)).max(manager.kms.waits.last());
            !is_stopped.load(Ordering::Relaxed)
                && progress.is_some_and(|progress| progress.elapsed() < PATIENCE)
        };
        let loaded = load(
            manager,
            directory,
            &name,
            &manager.limits_at_start(&may_retry),
        );
        match &loaded {
            Ok(_) => *lock(&last_success) = Instant::now(),
            // The others need not find that out one by one.
            Err(error) => drop(is_stopped.fetch_or(error.is_for_all_keys(), Ordering::Relaxed)),
        }
        loaded
    };
    let mut all = Loaded::default();
    let left = concurrent::for_each(names, work, |result| {
        let Some(loaded) = result else {
            progress.report(lock(&trouble).take());
            return progress.goes_on;
        };
        progress.done += 1;
        match loaded {
            Ok(entry) => {
                log_loaded(&entry);
                all.entries.push(entry);
            }
            Err(error) => {
                all.wrong_keys += usize::from(matches!(error, KeyError::WrongKey { .. }));
                progress.failed(&error);
            }
        }
        progress.goes_on
    });
    if !left.is_empty() {
        log::warning(&format!(
            "{} data keys were not loaded at startup; each will be loaded on first use",
            left.len()
        ));
    }
    all
}

/// Loads one key; the manifest is written once for all of them.
fn load(
    manager: &KeyManager,
    directory: &KeyDirectory,
    name: &KeyName,
    limits: &Limits<'_>,
) -> Result<Entry, KeyError> {
    let loaded = manager
        .unwrap(directory, name, limits)
        .and_then(|unwrapped| {
            manager.publish(name, &unwrapped.key)?;
            Ok(Entry::new(*name, &unwrapped.key, &unwrapped.master_key_arn))
        });
    manager.note_loaded(name, &loaded);
    loaded
}

/// What the error log gets to know while keys are loaded.
struct Progress {
    total: usize,
    done: usize,
    reported: usize,
    next_report: Instant,
    /// Between two reports; longer each time that nothing has come of it.
    interval: Duration,
    /// False after a failure that the other keys would share, or that lasted.
    goes_on: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self {
            total,
            done: 0,
            reported: 0,
            next_report: Instant::now() + PROGRESS_INTERVAL,
            interval: PROGRESS_INTERVAL,
            goes_on: true,
        }
    }

    /// Reports how far it is, and what keeps it.
    fn report(&mut self, trouble: Option<String>) {
        if Instant::now() < self.next_report {
            return;
        }
        let reason = match trouble {
            Some(trouble) => format!("; retrying: {trouble}"),
            None if self.done == self.reported => "; waiting for the broker's answer".into(),
            None => String::new(),
        };
        self.interval = match self.done == self.reported {
            true => self.interval * 2,
            false => PROGRESS_INTERVAL,
        };
        self.next_report = Instant::now() + self.interval;
        self.reported = self.done;
        let (done, total) = (self.done, self.total);
        log::note(&format!("loaded {done} of {total} data keys{reason}"));
    }

    fn failed(&mut self, error: &KeyError) {
        let is_for_all = error.is_for_all_keys();
        // Workers that were in the middle of a call fail for the same reason.
        if self.goes_on || !is_for_all {
            log::error(&error.to_string());
        }
        // Whoever failed of something that may pass has tried for as long as all are to be tried.
        self.goes_on &= !is_for_all && !error.is_transient();
    }
}

fn log_loaded(entry: &Entry) {
    log::note(&format!(
        "loaded key {}, version {}, key length {} bit",
        entry.name.id, entry.name.version, entry.bits
    ));
}

/// Tries again to load what could not be loaded when the plugin started, until everything is there or
/// `wait` says that the plugin stops: a table that nobody reads would keep new data under an old version.
pub fn load_the_rest(manager: &KeyManager, wait: impl Fn(Duration) -> bool) {
    let mut pause = FIRST_PAUSE;
    while wait(pause) {
        let mut unloaded = manager.unloaded();
        unloaded.retain(|(name, _)| manager.check_refused(name.id).is_ok());
        if unloaded.is_empty() {
            return;
        }
        for (name, _) in unloaded {
            let limits = Limits {
                wait: WaitPolicy::Never,
                deadline: None,
                may_retry: &|_| false,
                is_interrupted: &|| !wait(Duration::ZERO),
            };
            if manager.load(&manager.directory, &name, &limits).is_ok() {
                log::note(&format!(
                    "loaded key {}, version {}, which was missing until now",
                    name.id, name.version
                ));
            }
            if !wait(Duration::ZERO) {
                return;
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
