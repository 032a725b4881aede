//! Loading all data keys when the plugin starts.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use broker_api::WaitPolicy;
use data_files::scan::SYSTEM_KEY_ID;
use key_files::key_directory::{KeyDirectory, Listing};
use key_files::key_name::{Algorithm, KeyName};
use key_files::manifest::Entry;

use crate::concurrent;
use crate::keys::error::KeyError;
use crate::keys::manager::{KeyManager, Program, retry_for};
use crate::keys::offline::OfflineError;
use crate::keys::stored::first_of;
use crate::kms::client::{KmsError, Limits};
use crate::kms::waiting::is_interrupted;
use crate::lock::lock;
use crate::server::log;
use crate::server::symbols::statement_is_killed;

/// Failed calls are retried until no key at all has been decrypted for this long.
const PATIENCE: Duration = Duration::from_secs(30);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// The first pause between two attempts to load what is missing. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How many keys a list of errors names.
const LISTED: usize = 10;

/// Why the plugin cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The key file directory, the manifest or a key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The broker does not answer.
    #[error(transparent)]
    KmsClient(#[from] KmsError),
    /// The offline keys.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// Key files hold different keys than the manifest lists. InnoDB would report the data as corrupted and
    /// advise dropping the tables.
    #[error("key files that hold the wrong key: {0}; the reasons are above")]
    WrongKeys(usize),
    /// The key store has different keys under the names of those here.
    #[error(
        "key versions that are other keys in the key store than here: {0}; the reasons are above"
    )]
    OtherInKeyStore(usize),
    /// Keys exist and none could be loaded.
    #[error("no data key could be loaded (data keys: {0}); the reasons are above")]
    NoKeyLoaded(usize),
}

/// Loads every key, and makes the new versions that a safe start needs. A key that fails is reported and tried
/// again when it is needed.
///
/// Errors: no broker answers, or keys exist and none could be loaded.
pub fn load_all(manager: &KeyManager, program: Program) -> Result<(), StartError> {
    manager.kms.check_broker()?;
    if program == Program::Server {
        remove_left_overs(manager);
    }
    let listing = manager.directory.list().map_err(KeyError::from)?;
    for name in &listing.malformed {
        log::note(&format!(
            "ignoring file '{name}': key files are named aws-kms-key.ID.VERSION or, for AES_CTR, aws-kms-key.ID.VERSION.ctr"
        ));
    }
    let forked = match program {
        Program::Server if manager.manifest.is_forked() => fork_keys(manager)?,
        _ => BTreeSet::new(),
    };
    if let Err(error) = manager.fetch_missing() {
        log::error(&error.to_string());
    }
    // Listed again: a copied data directory has new versions now, and key files have come back.
    let mut listing = manager.directory.list().map_err(KeyError::from)?;
    listing.keys.extend(manager.fetched_names());
    listing.keys.sort_unstable();
    report_missing(manager, &listing);
    let mut loadable = without_conflicts(manager, &listing);
    loadable.retain(|name| !forked.contains(&name.id));
    let count = loadable.len();
    if count > 0 {
        manager.directory.sync().map_err(KeyError::from)?;
    }
    let wait = manager.policy_at_start();
    let loaded = load_concurrently(manager, &manager.directory, loadable, wait);
    manager.record_loaded(&loaded.entries);
    if loaded.wrong_keys > 0 {
        return Err(StartError::WrongKeys(loaded.wrong_keys));
    }
    if program == Program::Server {
        load_from_key_store(manager)?;
    }
    let known = count.max(manager.manifest.entries().len());
    if known > 0 && manager.keyring.version_count() == 0 && forked.is_empty() {
        return Err(StartError::NoKeyLoaded(known));
    }
    let may_retry = retry_for(PATIENCE);
    for id in manager.keyring.ids() {
        manager.report_unloaded(id);
        if program == Program::Server
            && let Some(latest) = manager.keyring.latest_name(id)
        {
            manager.replace_ctr(&latest, &manager.limits_at_start(&may_retry));
        }
    }
    if program == Program::Server {
        report_unreadable_logs(manager)?;
    }
    Ok(())
}

/// Warns if binary or relay logs need versions of key 1 of which nothing is known here. The data directory then comes from
/// a backup that is older than those versions.
fn report_unreadable_logs(manager: &KeyManager) -> Result<(), KeyError> {
    let known = manager.known_versions(SYSTEM_KEY_ID)?;
    let mut logs = manager.log_versions();
    for unclear in logs.unclear.iter().take(LISTED) {
        log::warning(&unclear.to_string());
    }
    logs.versions
        .retain(|version, _| !known.iter().any(|name| name.version == *version));
    let further = logs.versions.len().saturating_sub(1);
    if let Some((version, path)) = logs.versions.pop_first() {
        let further = match further {
            0 => String::new(),
            count => format!(" (logs need {count} more such versions)"),
        };
        log::warning(&format!(
            "'{}' needs version {version} of key {SYSTEM_KEY_ID}, of which this server knows nothing{further}: the data directory is older than that log. {}. No new version will have that number",
            path.display(),
            match manager.kms.has_key_server() {
                true => "The key server does not have it: restore its key store".into(),
                false => format!(
                    "To read the log, restore aws-kms-key.{SYSTEM_KEY_ID}.{version} from the data directory before this one, or from a backup of the key files"
                ),
            }
        ));
    }
    Ok(())
}

/// Compares the keys here with those of the key store, and loads what only the key store has.
///
/// Errors: a version is another key there. What is encrypted here from now on, other servers could not read.
fn load_from_key_store(manager: &KeyManager) -> Result<(), StartError> {
    let compared = manager.compare_with_key_store();
    if !compared.different.is_empty() {
        for different in compared.different.iter().take(LISTED) {
            log::error(different);
        }
        return Err(StartError::OtherInKeyStore(compared.different.len()));
    }
    let fetched = manager.fetched_names();
    let mut missing = compared.missing_here;
    missing.retain(|name| fetched.contains(name));
    // Nobody here needs them yet.
    let loaded = load_concurrently(manager, &manager.directory, missing, WaitPolicy::Never);
    manager.record_loaded(&loaded.entries);
    Ok(())
}

/// Loads the keys that only the increment has which mariadb-backup is about to apply. Its log may be encrypted
/// with them, and mariadb-backup copies their files into the backup only at the end.
///
/// Errors: the directory cannot be read.
pub fn load_increment(manager: &KeyManager, increment: &Path) -> Result<(), KeyError> {
    let directory = KeyDirectory::open(increment)?;
    let mut names = directory.list()?.keys;
    names.retain(|name| !manager.keyring.contains(name.id, name.version));
    load_concurrently(manager, &directory, names, manager.policy_at_start());
    Ok(())
}

/// Removes temporary files of keys and of the manifest, which may have another directory. A failure does not stop the
/// start.
fn remove_left_overs(manager: &KeyManager) {
    let datadir = manager.manifest.datadir();
    remove_left_overs_in(&manager.directory);
    if datadir != manager.directory.path() {
        match KeyDirectory::open(datadir) {
            Ok(directory) => remove_left_overs_in(&directory),
            Err(error) => log::warning(&error.to_string()),
        }
    }
}

fn remove_left_overs_in(directory: &KeyDirectory) {
    match directory.remove_stale_temporaries() {
        Ok(names) => {
            for name in names {
                log::note(&format!(
                    "removed '{name}', left behind by a server that died while making a key; nothing was encrypted with that key"
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
            let error = KeyError::from(error);
            // It names both files, so it is reported for one of them.
            if name.algorithm == Algorithm::AesCbc {
                log::error(&error.to_string());
            }
            manager.note_loaded(name, &Err::<(), _>(error));
            false
        }
    };
    listing.keys.iter().filter(keep).copied().collect()
}

/// Reports the versions that the manifest lists and that have no key file: as an error if the version is the
/// newest of its key. Older ones may have been moved away because nothing needs them any more.
fn report_missing(manager: &KeyManager, listing: &Listing) {
    let entries = manager.manifest.entries();
    let has_none = listing.keys.is_empty() && !manager.kms.has_key_server();
    if has_none && !entries.is_empty() {
        log::error(&manager.all_files_missing(entries.len()).to_string());
    }
    let mut old = Vec::new();
    for entry in entries {
        let name = entry.name;
        if listing.has(&name) {
            continue;
        }
        if listing.is_retired(&name) {
            old.push(format!("{}.{}", name.id, name.version));
            continue;
        }
        let error = manager.file_missing(&name);
        if !has_none {
            log::error(&error.to_string());
        }
        manager.note_loaded(&name, &Err::<(), _>(error));
    }
    if !old.is_empty() {
        log::warning(&format!(
            "'{}' lists older key versions that have no key file here: {}. Data encrypted with them cannot be decrypted. Ignore this if kms-data-keys check has reported them as not needed",
            manager.manifest.path().display(),
            first_of(&old)
        ));
    }
}

/// Makes new versions of all AES_CTR keys of a copied data directory: the original server continues to use the
/// old ones, and both would encrypt different pages with the same key and IV. Returns the ids for which this
/// failed, which are refused to the server.
fn fork_keys(manager: &KeyManager) -> Result<BTreeSet<u32>, KeyError> {
    let mut refused = BTreeSet::new();
    for id in manager.known_ids()? {
        let latest = manager.known_versions(id)?.pop();
        if latest.is_none_or(|name| name.algorithm != Algorithm::AesCtr) {
            continue;
        }
        let may_retry = retry_for(PATIENCE);
        if let Err(error) = manager.make_next(id, &manager.limits_at_start(&may_retry)) {
            let reason = error.to_string();
            let error = KeyError::Forked { id, reason };
            log::error(&error.to_string());
            manager
                .denied
                .refuse(id, &error.to_string(), &manager.keyring);
            refused.insert(id);
        }
    }
    if refused.is_empty() {
        manager.manifest.set_forked(false)?;
        log::note(
            "this data directory is a copy (kms-data-keys fork); all its AES_CTR keys have new versions now, so it shares none with the original",
        );
    }
    Ok(refused)
}

/// The result of loading keys.
#[derive(Default)]
struct Loaded {
    /// The manifest entries of the keys that were loaded.
    entries: Vec<Entry>,
    /// How many files hold a different key than the manifest lists.
    wrong_keys: usize,
}

fn load_concurrently(
    manager: &KeyManager,
    directory: &KeyDirectory,
    names: Vec<KeyName>,
    wait: WaitPolicy,
) -> Loaded {
    let mut progress = Progress::new(names.len());
    let (last_success, trouble) = (Mutex::new(Instant::now()), Mutex::new(None));
    let is_killed = AtomicBool::new(false);
    let work = |name: KeyName, is_stopped: &AtomicBool| {
        let may_retry = |error: &KmsError| {
            *lock(&trouble) = Some(error.to_string());
            let progress = Some(*lock(&last_success)).max(manager.kms.waits().last());
            !is_stopped.load(Ordering::Relaxed)
                && progress.is_some_and(|progress| progress.elapsed() < PATIENCE)
        };
        let limits = Limits {
            wait,
            is_interrupted: &|| is_killed.load(Ordering::Relaxed) || is_interrupted(),
            ..manager.limits_at_start(&may_retry)
        };
        let loaded = load(manager, directory, &name, &limits);
        match &loaded {
            Ok(_) => *lock(&last_success) = Instant::now(),
            // All other keys would fail for the same reason.
            Err(error) => drop(is_stopped.fetch_or(error.is_for_all_keys(), Ordering::Relaxed)),
        }
        loaded
    };
    let mut all = Loaded::default();
    let left = concurrent::for_each(names, work, |result| {
        let Some(loaded) = result else {
            progress.report(|| lock(&trouble).take());
            // INSTALL SONAME is a statement, but the workers do not belong to it.
            is_killed.fetch_or(statement_is_killed(), Ordering::Relaxed);
            progress.should_continue &= !is_killed.load(Ordering::Relaxed);
            return progress.should_continue;
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
        progress.should_continue
    });
    if !left.is_empty() {
        log::warning(&format!(
            "data keys not loaded at startup: {}; each will be loaded on first use, or when KMS answers again",
            left.len()
        ));
    }
    for name in left {
        manager.note_loaded(&name, &Err::<(), _>(KeyError::NotTried));
    }
    all
}

/// Loads one key. The caller writes the manifest once for all keys.
fn load(
    manager: &KeyManager,
    directory: &KeyDirectory,
    name: &KeyName,
    limits: &Limits<'_>,
) -> Result<Entry, KeyError> {
    let loaded = manager
        .decrypt(directory, name, limits)
        .and_then(|decrypted| {
            manager.publish(name, &decrypted.key)?;
            Ok(Entry::new(*name, &decrypted.key, &decrypted.master_key_arn))
        });
    manager.note_loaded(name, &loaded);
    loaded
}

/// Reports to the error log how loading proceeds.
struct Progress {
    total: usize,
    done: usize,
    reported: usize,
    next_report: Instant,
    /// Time between two reports. It doubles when there is no progress.
    interval: Duration,
    /// False after a failure that would hit every other key too, or that lasted too long.
    should_continue: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self {
            total,
            done: 0,
            reported: 0,
            next_report: Instant::now() + PROGRESS_INTERVAL,
            interval: PROGRESS_INTERVAL,
            should_continue: true,
        }
    }

    /// Reports the progress, and what has delayed it since the last report.
    fn report(&mut self, trouble: impl FnOnce() -> Option<String>) {
        if Instant::now() < self.next_report {
            return;
        }
        let reason = match trouble() {
            Some(trouble) => format!("; retrying: {trouble}"),
            None if self.done == self.reported => "; waiting for the broker".into(),
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
        // Workers that were in the middle of a call fail for the same reason, which is logged once.
        if self.should_continue || !is_for_all {
            log::error(&error.to_string());
        }
        // A worker reports a transient failure only after the patience for all keys is over.
        self.should_continue &= !is_for_all && !error.is_transient();
    }
}

fn log_loaded(entry: &Entry) {
    log::note(&format!(
        "loaded key {}, version {}, key length {} bit",
        entry.name.id, entry.name.version, entry.bits
    ));
}

/// Retries keys that could not be loaded when the plugin started, until all are loaded or `wait` returns false
/// because the plugin stops. Without this, a server whose newest version was missing would keep encrypting with
/// an older one.
///
/// `wait` sleeps for the given time.
pub fn load_the_rest(manager: &KeyManager, wait: impl Fn(Duration) -> bool) {
    let mut pause = FIRST_PAUSE;
    for round in 0.. {
        if !wait(pause) {
            return;
        }
        let mut unloaded = manager.unloaded();
        unloaded.retain(|(name, _)| manager.denied.check(name.id).is_ok());
        if unloaded.is_empty() {
            return;
        }
        // Another one is the first of its master key in each round: its file may have been replaced.
        let first = round % unloaded.len();
        unloaded.rotate_left(first);
        // The other keys of a master key would be refused as this one was.
        let mut refused = BTreeSet::new();
        for (name, _) in unloaded {
            let listed = manager.manifest.get(name.id, name.version);
            let master_key = listed.and_then(|entry| entry.master_key_arn);
            if master_key.as_ref().is_some_and(|arn| refused.contains(arn)) {
                continue;
            }
            let limits = Limits {
                wait: WaitPolicy::Never,
                deadline: None,
                may_retry: &|_| false,
                is_interrupted: &|| !wait(Duration::ZERO),
            };
            // Before the server gets it as the latest version.
            if manager.keyring.latest_version(name.id) < Some(name.version) {
                manager.replace_ctr(&name, &limits);
            }
            match manager.load(&name, &limits) {
                Ok(()) => log::note(&format!(
                    "loaded key {}, version {}, which was missing before",
                    name.id, name.version
                )),
                // The others would fail for the same reason.
                Err(error) if error.is_transient() => break,
                Err(error) if error.is_of_master_key() => refused.extend(master_key),
                Err(_) => {}
            }
            if !wait(Duration::ZERO) {
                return;
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests;
