//! Keys that the server has asked for in vain. InnoDB remembers that a tablespace has no key, and aborts the server when
//! it later writes a page there, so such a key must not appear afterwards.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;

use crate::keys::error::KeyError;
use crate::keys::keyring::Keyring;
use crate::lock::lock;

/// The keys that the server has asked for in vain.
#[derive(Default)]
pub(super) struct DeniedKeys(Mutex<Denied>);

#[derive(Default)]
struct Denied {
    /// Key ids that the server does not get until it is restarted, and why.
    refused: BTreeMap<u32, String>,
    /// How often the server asked for other key ids. It may have been for a table that was to be made, which then was not.
    /// Whether a tablespace is encrypted with one, [`DeniedKeys::admit`] finds out.
    asked: BTreeMap<u32, u64>,
}

impl DeniedKeys {
    /// Notes that the server does not get a key now. Returns its latest version if it has come into memory in the meantime.
    pub(super) fn note(&self, id: u32, keyring: &Keyring) -> Option<u32> {
        let mut denied = lock(&self.0);
        let loaded = keyring.latest_version(id);
        if loaded.is_none() {
            *denied.asked.entry(id).or_default() += 1;
        }
        loaded
    }

    /// Refuses a key to the server until it is restarted. Returns its latest version if it has come into memory in the
    /// meantime, and is not refused.
    pub(super) fn refuse(&self, id: u32, reason: &str, keyring: &Keyring) -> Option<u32> {
        let mut denied = lock(&self.0);
        let loaded = keyring.latest_version(id);
        if loaded.is_none() {
            let reason = || reason.to_owned();
            denied.refused.entry(id).or_insert_with(reason);
        }
        loaded
    }

    /// The key ids that the server does not get until it is restarted.
    pub(super) fn refused_ids(&self) -> BTreeSet<u32> {
        lock(&self.0).refused.keys().copied().collect()
    }

    /// Fails if the server does not get a key until it is restarted.
    pub(super) fn check(&self, id: u32) -> Result<(), KeyError> {
        lock(&self.0).check(id)
    }

    /// Lets `add` put a key into memory, unless it is refused to the server. Refuses one that the server has asked for in
    /// vain if `find_data` finds a file that is encrypted with it, since the server may have asked for that file. While
    /// `find_data` cannot tell, the key does not get into memory.
    pub(super) fn admit<T>(
        &self,
        id: u32,
        keyring: &Keyring,
        find_data: impl Fn() -> Result<Option<PathBuf>, KeyError>,
        add: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let mut looked_after = None;
        loop {
            let mut denied = lock(&self.0);
            let asked = denied.asked.get(&id).copied();
            if asked == looked_after {
                denied.asked.remove(&id);
                denied.check(id)?;
                return add();
            }
            drop(denied);
            if let Some(proof) = find_data()? {
                let reason = format!(
                    "there was no such key when the server asked for it, and '{}' is encrypted with it",
                    proof.display()
                );
                self.refuse(id, &reason, keyring);
            }
            looked_after = asked;
        }
    }
}

impl Denied {
    fn check(&self, id: u32) -> Result<(), KeyError> {
        match self.refused.get(&id) {
            None => Ok(()),
            Some(reason) => Err(KeyError::NeedsRestart {
                id,
                reason: reason.clone(),
            }),
        }
    }
}
