//! The decrypted data keys. Readers take no lock, because the server looks a key up for each page, event and
//! temporary block that it encrypts.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Mutex;

use key_files::key_name::{Algorithm, KeyName};
use locked_memory::{Arena, LockedKey};
use papaya::HashMap;
use rustc_hash::FxBuildHasher;

use crate::lock::lock;

/// A data key and how it encrypts.
pub struct DataKey {
    algorithm: Algorithm,
    key: LockedKey,
}

impl DataKey {
    /// How this version encrypts.
    #[inline]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Length of the key: 16, 24 or 32 bytes.
    #[inline]
    pub fn length_bytes(&self) -> usize {
        self.key.length_bytes()
    }

    /// Copies the key into `destination`, which is as long as the key. Returns false if the plugin is being
    /// unloaded and has wiped the key in the meantime.
    #[inline]
    pub fn copy_to(&self, destination: &mut [u8]) -> bool {
        self.key.copy_to(destination)
    }
}

/// All data keys in memory. Keys are only ever added.
///
/// The default hasher would take a third of a look-up. It protects against somebody who picks colliding numbers, each of
/// which costs a call of KMS here.
#[derive(Default)]
pub struct Keyring {
    /// By key id and version.
    keys: HashMap<(u32, u32), DataKey, FxBuildHasher>,
    /// The highest version in `keys`, by key id.
    latest: HashMap<u32, u32, FxBuildHasher>,
    arena: Arena,
    /// Held by the thread that adds a key.
    adding: Mutex<()>,
}

/// The result of adding a key.
pub struct Added {
    /// Why the memory of the key could not be locked; reported once for each new piece of memory.
    pub lock_failure: Option<io::Error>,
}

impl Keyring {
    /// Passes a key version to `read` and returns its result; `None` if the version is not in memory.
    #[inline]
    pub fn read<R>(&self, id: u32, version: u32, read: impl FnOnce(&DataKey) -> R) -> Option<R> {
        self.keys.pin().get(&(id, version)).map(read)
    }

    /// Returns whether a key version is in memory.
    pub fn contains(&self, id: u32, version: u32) -> bool {
        self.keys.pin().contains_key(&(id, version))
    }

    /// Returns the highest version of a key that is in memory.
    #[inline]
    pub fn latest_version(&self, id: u32) -> Option<u32> {
        self.latest.pin().get(&id).copied()
    }

    /// The ids that have a version in memory.
    pub fn ids(&self) -> Vec<u32> {
        self.latest.pin().keys().copied().collect()
    }

    /// The versions in memory, in order.
    pub fn names(&self) -> Vec<KeyName> {
        let keys = self.keys.pin();
        let mut names: Vec<_> = keys
            .iter()
            .map(|(&(id, version), key)| KeyName {
                id,
                version,
                algorithm: key.algorithm,
            })
            .collect();
        names.sort_unstable();
        names
    }

    /// Number of ids that have a version in memory.
    pub fn id_count(&self) -> u64 {
        self.latest.len() as u64
    }

    /// Number of key versions in memory.
    pub fn version_count(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Adds a key version. One that is there already stays as it is.
    ///
    /// Errors: no memory.
    pub fn add(&self, name: KeyName, key: &[u8]) -> io::Result<Added> {
        let _adding = lock(&self.adding);
        if self.contains(name.id, name.version) {
            return Ok(Added { lock_failure: None });
        }
        let stored = self.arena.store(key)?;
        let key = DataKey {
            algorithm: name.algorithm,
            key: stored.key,
        };
        // The key comes before its version number: a thread that reads the number finds the key.
        self.keys.pin().insert((name.id, name.version), key);
        if self.latest_version(name.id) < Some(name.version) {
            self.latest.pin().insert(name.id, name.version);
        }
        Ok(Added {
            lock_failure: stored.lock_failure,
        })
    }

    /// Overwrites all keys. From then on, [`DataKey::copy_to`] returns none of them.
    pub fn wipe(&self) {
        self.arena.wipe();
    }

    /// A copy of a key, for tests.
    #[cfg(test)]
    pub fn copy(&self, id: u32, version: u32) -> Option<Vec<u8>> {
        self.read(id, version, |key| {
            let mut bytes = vec![0; key.length_bytes()];
            assert!(key.copy_to(&mut bytes));
            bytes
        })
    }

    /// Returns how a key version encrypts.
    #[inline]
    pub fn algorithm(&self, id: u32, version: u32) -> Option<Algorithm> {
        self.read(id, version, DataKey::algorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: u32, version: u32) -> KeyName {
        KeyName {
            id,
            version,
            algorithm: Algorithm::AesCbc,
        }
    }

    fn bytes(id: u32, version: u32) -> Vec<u8> {
        [id.to_le_bytes(), version.to_le_bytes()].concat().repeat(2)
    }

    #[test]
    fn keys_are_found_and_the_highest_version_is_the_latest() {
        let (keyring, end) = (Keyring::default(), if cfg!(miri) { 20 } else { 3000 });
        for id in (1..end).chain([u32::MAX - 1]) {
            for version in [2, 1, u32::MAX - 1, 3] {
                keyring.add(name(id, version), &bytes(id, version)).unwrap();
            }
            assert_eq!(keyring.latest_version(id), Some(u32::MAX - 1));
        }
        for id in 1..end {
            assert_eq!(keyring.copy(id, 2), Some(bytes(id, 2)));
            assert!(!keyring.contains(id, 4));
        }
        assert_eq!(keyring.latest_version(end), None);
        let count = u64::from(end);
        assert_eq!(
            (keyring.id_count(), keyring.version_count()),
            (count, 4 * count)
        );
        assert_eq!(keyring.ids().len(), end as usize);
        let names = keyring.names();
        assert_eq!(names.len(), 4 * end as usize);
        assert_eq!(names[..2], [name(1, 1), name(1, 2)]);
    }

    #[test]
    fn an_added_key_never_changes() {
        let keyring = Keyring::default();
        keyring.add(name(1, 1), &[1; 16]).unwrap();
        keyring.add(name(1, 1), &[2; 16]).unwrap();
        assert_eq!(keyring.copy(1, 1), Some(vec![1; 16]));
        assert_eq!(keyring.version_count(), 1);
    }

    #[test]
    fn a_reader_of_a_version_number_finds_its_key_while_others_are_added() {
        let (keyring, end) = (Keyring::default(), if cfg!(miri) { 20 } else { 2000 });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for version in 1..=end {
                    keyring.add(name(1, version), &bytes(1, version)).unwrap();
                }
            });
            scope.spawn(|| {
                let mut latest = 0;
                while latest < end {
                    let Some(version) = keyring.latest_version(1) else {
                        continue;
                    };
                    assert!(version >= latest);
                    latest = version;
                    assert_eq!(keyring.copy(1, version), Some(bytes(1, version)));
                }
            });
        });
    }
}
