//! New versions of keys that exist.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use broker_api::MayWait;
use key_store::key_directory::Placement;
use key_store::key_name::KeyName;

use crate::key_manager::{KeyError, KeyManager, until};
use crate::kms::KmsError;

const WORKERS: usize = 32;
/// SET GLOBAL does not wait much longer than that, whatever KMS does.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);

/// The variables of InnoDB that decide what becomes of pages under old versions; `None` where they
/// cannot be found out.
#[derive(Debug, Clone, Copy)]
pub struct Reencryption {
    /// `innodb_encrypt_tables`: 0 is OFF.
    pub encrypt_tables: Option<u64>,
    /// `innodb_encryption_threads`.
    pub threads: Option<u64>,
    /// `innodb_encryption_rotate_key_age`.
    pub rotate_key_age: Option<u64>,
}

impl Reencryption {
    /// What InnoDB will re-encrypt after a rotation, and what not.
    pub fn note(self) -> String {
        let off = [
            (self.encrypt_tables, "innodb_encrypt_tables is OFF"),
            (self.threads, "innodb_encryption_threads is 0"),
            (self.rotate_key_age, "innodb_encryption_rotate_key_age is 0"),
        ]
        .into_iter()
        .find_map(|(value, reason)| (value == Some(0)).then_some(reason));
        let pages = match (off, self.rotate_key_age) {
            (Some(reason), _) => format!("InnoDB re-encrypts no existing pages, because {reason}"),
            (None, Some(age)) => format!(
                "InnoDB re-encrypts in the background pages that are now more than {age} version{} behind, and leaves the others, because innodb_encryption_rotate_key_age is {age}",
                if age == 1 { "" } else { "s" }
            ),
            (None, None) => "InnoDB re-encrypts in the background pages that are now more than innodb_encryption_rotate_key_age versions behind, and leaves the others".into(),
        };
        format!(
            "what is written from now on uses the new versions. {pages}. Keep all old key files: logs, backups and Aria tables need them"
        )
    }
}

/// Which keys to rotate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Every key there is.
    All,
    /// One key.
    Id(u32),
}

/// What came of a rotation.
#[derive(Debug, Default)]
pub struct Rotated {
    /// The new versions.
    pub made: Vec<KeyName>,
    /// Ids that were not rotated, and why.
    pub failed: Vec<(u32, String)>,
}

/// Makes a new version of each key of `target`, all at the same time. Returns after a bounded time:
/// a call of KMS takes at most its time limit and is not repeated for longer than that.
pub fn rotate(manager: &KeyManager, target: Target) -> Result<Rotated, KeyError> {
    let mut known: BTreeSet<u32> = manager.keyring.ids().into_iter().collect();
    known.extend(manager.directory.list()?.keys.iter().map(|key| key.id));
    match target {
        Target::All => {}
        Target::Id(id) if known.contains(&id) => known = BTreeSet::from([id]),
        Target::Id(id) => {
            return Ok(Rotated {
                made: Vec::new(),
                failed: vec![(id, "there is no such key".into())],
            });
        }
    }
    Ok(rotate_ids(manager, known))
}

fn rotate_ids(manager: &KeyManager, ids: BTreeSet<u32>) -> Rotated {
    let patience = manager.settings.request_timeout().min(LONGEST_PATIENCE);
    let may_retry = until(patience);
    let workers = WORKERS.min(ids.len());
    let queue = Mutex::new(ids);
    let rotated = Mutex::new(Rotated::default());
    let work = || {
        loop {
            let next = lock(&queue).pop_first();
            let Some(id) = next else { return };
            let result = rotate_id(manager, id, &may_retry);
            let mut rotated = lock(&rotated);
            match result {
                Ok(name) => rotated.made.push(name),
                Err(reason) => rotated.failed.push((id, reason)),
            }
        }
    };
    thread::scope(|scope| {
        // This thread takes part, so that a lack of threads only slows it down.
        for _ in 1..workers {
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    let mut rotated = rotated.into_inner().unwrap_or_else(PoisonError::into_inner);
    rotated.made.sort_unstable();
    rotated.failed.sort_unstable();
    rotated
}

fn rotate_id(
    manager: &KeyManager,
    id: u32,
    may_retry: impl Fn(&KmsError) -> bool,
) -> Result<KeyName, String> {
    let known = manager.keyring.latest_version(id).unwrap_or(0);
    // A SET is short whatever happens.
    let may_wait = MayWait::No;
    match manager.make(id, Placement::Next { known }, may_wait, may_retry) {
        Ok(Some(name)) => Ok(name),
        Ok(None) => Err("another process is making keys in the same directory; try again".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
