//! Key rotation: makes new versions of existing keys.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use broker_api::WaitPolicy;
use key_files::key_name::KeyName;

use crate::concurrent;
use crate::keys::error::KeyError;
use crate::keys::manager::{KeyManager, retry_for};
use crate::kms::client::Limits;
use crate::server::symbols::statement_is_killed;

/// The longest time that SET GLOBAL takes, whatever KMS does.
const LONGEST: Duration = Duration::from_secs(30);

/// What follows from a rotation. InnoDB's variables decide about existing pages.
pub const NOTE: &str = "new data is encrypted with the new key versions. InnoDB re-encrypts existing pages in the background once they are more than innodb_encryption_rotate_key_age versions behind (never if that variable, innodb_encryption_threads or innodb_encrypt_tables is 0). Keep all old key files: logs, backups and Aria tables need them";

/// Which keys to rotate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Every existing key.
    All,
    /// One key.
    Id(u32),
}

/// The result of a rotation.
#[derive(Debug, Default)]
pub struct Rotated {
    /// The new versions.
    pub made: Vec<KeyName>,
    /// Ids that were not rotated, and why.
    pub failed: Vec<(u32, String)>,
    /// Which keys were not tried, and why, if the rotation ended early.
    pub not_tried: Option<String>,
}

/// Makes a new version of each key of `target`, several at a time, and returns within a bounded time.
pub fn rotate(manager: &KeyManager, target: Target) -> Result<Rotated, KeyError> {
    let mut known = manager.known_ids()?;
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
    Ok(rotate_ids(manager, oldest_first(manager, known)))
}

/// Orders ids by the age of their newest versions, so that a repeated statement goes on where the one before it ended.
fn oldest_first(manager: &KeyManager, ids: BTreeSet<u32>) -> Vec<u32> {
    let newest: BTreeMap<u32, SystemTime> = manager
        .manifest
        .entries()
        .iter()
        .map(|entry| (entry.name.id, entry.recorded))
        .collect();
    let mut ids: Vec<u32> = ids.into_iter().collect();
    ids.sort_by_key(|id| newest.get(id));
    ids
}

fn rotate_ids(manager: &KeyManager, ids: Vec<u32>) -> Rotated {
    let end = Instant::now() + LONGEST;
    let may_retry = retry_for(manager.kms.call_patience().min(LONGEST));
    let mut rotated = Rotated::default();
    let mut why_stopped = None;
    let work = |id, is_stopped: &AtomicBool| {
        let limits = Limits {
            // SET GLOBAL holds locks and must not wait for an MFA code.
            wait: WaitPolicy::Never,
            deadline: Some(end),
            may_retry: &may_retry,
            is_interrupted: &|| is_stopped.load(Ordering::Relaxed),
        };
        (id, rotate_id(manager, id, &limits))
    };
    let left = concurrent::for_each(ids, work, |result| {
        match result {
            Some((_, Ok(name))) => rotated.made.push(name),
            Some((id, Err(reason))) => rotated.failed.push((id, reason)),
            None => {}
        }
        if statement_is_killed() {
            why_stopped = Some("the statement was killed");
        } else if Instant::now() >= end {
            why_stopped = Some("KMS or the disk takes too long; repeat the statement");
        }
        why_stopped.is_none()
    });
    rotated.not_tried = why_stopped.and_then(|reason| not_tried(&left, reason));
    rotated.made.sort_unstable();
    rotated.failed.sort_unstable();
    rotated
}

/// Describes all keys that were not tried in one line, because there may be thousands.
fn not_tried(ids: &[u32], reason: &str) -> Option<String> {
    let (first, last) = (ids.iter().min()?, ids.iter().max()?);
    Some(match ids.len() {
        1 => format!("key {first} was not rotated: {reason}"),
        count => format!("{count} keys between {first} and {last} were not rotated: {reason}"),
    })
}

fn rotate_id(manager: &KeyManager, id: u32, limits: &Limits<'_>) -> Result<KeyName, String> {
    let text = |error: KeyError| error.to_string();
    // The server must be able to decrypt existing data before a new version makes sense.
    if manager.keyring.latest_version(id).is_none() {
        manager.denied.check(id).map_err(text)?;
        let known = manager.known_versions(id);
        let loaded = known.and_then(|known| manager.load_highest(&known, limits));
        loaded.map_err(|error| text(error.for_reading(id)))?;
    }
    manager.make_next(id, limits).map_err(text)
}

#[cfg(test)]
mod tests;
