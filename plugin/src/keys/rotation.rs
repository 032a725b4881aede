//! New versions of keys that exist.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use broker_api::WaitPolicy;
use key_store::key_directory::VersionPolicy;
use key_store::key_name::KeyName;

use crate::concurrent;
use crate::keys::error::KeyError;
use crate::keys::manager::{KeyManager, until};
use crate::kms::client::Limits;
use crate::server::symbols::statement_is_killed;

/// SET GLOBAL takes no longer, whatever KMS does.
const LONGEST: Duration = Duration::from_secs(30);

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
    /// Which keys were not tried, and why, if the rotation ended before its time.
    pub not_tried: Option<String>,
}

/// Makes a new version of each key of `target`, all at the same time. Returns after a bounded time:
/// a call of KMS takes at most its time limit and is not repeated for longer than that.
pub fn rotate(manager: &KeyManager, target: Target) -> Result<Rotated, KeyError> {
    let mut known: BTreeSet<u32> = manager.keyring.ids().into_iter().collect();
    known.extend(manager.directory.list()?.keys.iter().map(|key| key.id));
    known.extend(manager.manifest.entries().iter().map(|entry| entry.name.id));
    match target {
        Target::All => {}
        Target::Id(id) if known.contains(&id) => known = BTreeSet::from([id]),
        Target::Id(id) => {
            return Ok(Rotated {
                failed: vec![(id, "there is no such key".into())],
                ..Rotated::default()
            });
        }
    }
    Ok(rotate_ids(manager, known))
}

fn rotate_ids(manager: &KeyManager, ids: BTreeSet<u32>) -> Rotated {
    let end = Instant::now() + LONGEST;
    let may_retry = until(manager.kms.call_patience().min(LONGEST));
    let mut rotated = Rotated::default();
    let mut why_stopped = None;
    let work = |id, is_stopped: &AtomicBool| {
        let limits = Limits {
            // A SET is short whatever happens.
            wait: WaitPolicy::Never,
            deadline: Some(end),
            may_retry: &may_retry,
            is_interrupted: &|| is_stopped.load(Ordering::Relaxed),
        };
        (id, rotate_id(manager, id, &limits))
    };
    let left = concurrent::for_each(ids.into_iter().collect(), work, |result| {
        match result {
            Some((_, Ok(name))) => rotated.made.push(name),
            Some((id, Err(reason))) => rotated.failed.push((id, reason)),
            None => {}
        }
        if statement_is_killed() {
            why_stopped = Some("the statement was killed");
        } else if Instant::now() >= end {
            why_stopped = Some("KMS takes too long; repeat the statement");
        }
        why_stopped.is_none()
    });
    rotated.not_tried = why_stopped.and_then(|reason| not_tried(&left, reason));
    rotated.made.sort_unstable();
    rotated.failed.sort_unstable();
    rotated
}

/// One entry for all of them: there may be thousands.
fn not_tried(ids: &[u32], reason: &str) -> Option<String> {
    let (first, last) = (ids.iter().min()?, ids.iter().max()?);
    Some(match ids.len() {
        1 => format!("key {first} was not rotated: {reason}"),
        count => format!("{count} keys between {first} and {last} were not rotated: {reason}"),
    })
}

fn rotate_id(manager: &KeyManager, id: u32, limits: &Limits<'_>) -> Result<KeyName, String> {
    let text = |error: KeyError| error.to_string();
    // A new version is of no use while the server cannot decrypt what the others encrypted.
    if manager.keyring.latest_version(id).is_none() {
        manager.check_refused(id).map_err(text)?;
        manager.load_latest(id, limits).map_err(text)?;
    }
    let known = manager.highest_known(id).map_err(text)?;
    match manager.make(id, VersionPolicy::Next { known }, limits) {
        Ok(Some(name)) => Ok(name),
        Ok(None) => Err("another process is making keys in the same directory; try again".into()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
