//! Unwrapping all key files when the plugin starts.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use key_store::key_directory::{KeyDirectory, Listing};
use key_store::key_name::KeyName;

use crate::key_manager::{KeyError, KeyManager};
use crate::kms::KmsError;
use crate::offline::OfflineError;
use crate::server_log;

/// KMS calls at a time: 1,000 keys at 20 ms a call take less than a second, and the broker has room
/// for other clients.
const WORKERS: usize = 32;
/// Calls that fail are repeated until no key at all could be unwrapped for so long.
const PATIENCE: Duration = Duration::from_secs(30);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Why the plugin cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The broker or the key file directory.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The broker cannot be asked.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The offline keys.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// There are key files and none could be used.
    #[error("none of the {0} key files could be loaded; the reasons are above")]
    NoKeyLoaded(usize),
}

/// Loads every key file. A file that fails is reported and tried again when its key is needed.
///
/// Errors: no broker, or key files of which none could be loaded.
pub fn load_all(manager: &KeyManager, backup: bool) -> Result<(), StartError> {
    manager.kms.check_broker()?;
    if !backup {
        remove_left_overs(manager);
    }
    let listing = manager.directory.list().map_err(KeyError::from)?;
    for name in &listing.malformed {
        server_log::note(&format!(
            "ignoring file '{name}': key files are named aws-kms-key.<id>.<version>, with .ctr for AES_CTR"
        ));
    }
    let loadable = without_conflicts(manager, &listing);
    if !loadable.is_empty() {
        manager.directory.sync().map_err(KeyError::from)?;
    }
    load_concurrently(manager, &manager.directory, loadable);
    match listing.keys.len() {
        0 => Ok(()),
        count if manager.keyring.version_count() == 0 => Err(StartError::NoKeyLoaded(count)),
        _ => Ok(()),
    }
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
                server_log::note(&format!(
                    "removed '{name}', left by a server that died while it made a key; nothing was encrypted with it"
                ));
            }
        }
        Err(error) => server_log::warning(&error.to_string()),
    }
}

fn without_conflicts(manager: &KeyManager, listing: &Listing) -> Vec<KeyName> {
    let keep = |name: &&KeyName| match manager.directory.check_conflict(&listing.keys, name) {
        Ok(()) => true,
        Err(error) => {
            server_log::error(&error.to_string());
            false
        }
    };
    listing.keys.iter().filter(keep).copied().collect()
}

/// What the workers share.
struct Work {
    queue: Mutex<VecDeque<KeyName>>,
    last_success: Mutex<Instant>,
    /// Why a call was last tried again.
    trouble: Mutex<Option<String>>,
    /// A failure that all keys have in common: no use going on.
    stopped: AtomicBool,
}

fn load_concurrently(manager: &KeyManager, directory: &KeyDirectory, names: Vec<KeyName>) {
    let count = names.len();
    let work = Work {
        queue: Mutex::new(names.into()),
        last_success: Mutex::new(Instant::now()),
        trouble: Mutex::new(None),
        stopped: AtomicBool::new(false),
    };
    let (results, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for started in 0..WORKERS.min(count) {
            let (shared, sender) = (&work, results.clone());
            let worker = move || work_off(manager, directory, shared, &sender);
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, worker) {
                server_log::warning(&format!(
                    "loading keys with {started} threads, more cannot be started: {error}"
                ));
                if started == 0 {
                    work_off(manager, directory, &work, &results);
                }
                break;
            }
        }
        // This thread reports what the others do: it belongs to the server and may log.
        drop(results);
        report(manager, &work, count, &receiver);
    });
    let left = work
        .queue
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .len();
    if left > 0 {
        server_log::warning(&format!(
            "{left} key files have not been tried; each is when its key is needed"
        ));
    }
}

type Outcome = (KeyName, Result<(), KeyError>);

fn work_off(
    manager: &KeyManager,
    directory: &KeyDirectory,
    work: &Work,
    results: &mpsc::Sender<Outcome>,
) {
    while !work.stopped.load(Ordering::Relaxed) {
        let next = lock(&work.queue).pop_front();
        let Some(name) = next else { return };
        let may_retry = |error: &KmsError| {
            *lock(&work.trouble) = Some(error.to_string());
            let progress = Some(*lock(&work.last_success)).max(manager.kms.waits.last());
            !work.stopped.load(Ordering::Relaxed)
                && progress.is_some_and(|progress| progress.elapsed() < PATIENCE)
        };
        let result = manager.load(directory, &name, manager.load_may_wait(), may_retry);
        match &result {
            Ok(()) => *lock(&work.last_success) = Instant::now(),
            Err(error) if error.is_for_all_keys() => work.stopped.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
        if results.send((name, result)).is_err() {
            return;
        }
    }
}

fn report(manager: &KeyManager, work: &Work, count: usize, receiver: &mpsc::Receiver<Outcome>) {
    let mut said_stopped = false;
    let (mut done, mut said_done) = (0, 0);
    let mut next_progress = Instant::now() + PROGRESS_INTERVAL;
    loop {
        match receiver.recv_timeout(next_progress.saturating_duration_since(Instant::now())) {
            Ok((name, Ok(()))) => {
                done += 1;
                say_loaded(manager, &name);
            }
            Ok((_, Err(error))) => {
                done += 1;
                // Workers that were under way fail of the same reason.
                if !(said_stopped && error.is_for_all_keys()) {
                    server_log::error(&error.to_string());
                }
                said_stopped |= work.stopped.load(Ordering::Relaxed);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if Instant::now() >= next_progress {
            next_progress = Instant::now() + PROGRESS_INTERVAL;
            let trouble = lock(&work.trouble).take();
            if done == said_done && trouble.is_none() {
                continue;
            }
            said_done = done;
            let trouble =
                trouble.map_or(String::new(), |reason| format!("; trying again: {reason}"));
            server_log::note(&format!("{done} of {count} key files done{trouble}"));
        }
    }
}

fn say_loaded(manager: &KeyManager, name: &KeyName) {
    if let Some(key) = manager.keyring.key(name.id, name.version) {
        server_log::note(&format!(
            "loaded key {}, version {}, key length {} bit",
            name.id,
            name.version,
            key.length_bytes() * 8
        ));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
