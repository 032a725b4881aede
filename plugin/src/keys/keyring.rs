//! The decrypted data keys. Readers take no lock, because the server looks a key up for each page, event and
//! temporary block that it encrypts.

#![forbid(unsafe_code)]

use std::io;
use std::iter::successors;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use key_files::key_name::{Algorithm, KeyName};
use locked_memory::{Arena, LockedKey};

use crate::lock::lock;

/// A data key and how it encrypts.
pub struct DataKey {
    /// How this version encrypts.
    pub algorithm: Algorithm,
    /// 16, 24 or 32 bytes, which are wiped when the plugin is unloaded.
    pub key: LockedKey,
}

/// All data keys in memory. Keys are only ever added.
#[derive(Default)]
pub struct Keyring {
    /// By key id and version.
    keys: Chains<DataKey>,
    /// The highest version in `keys`, by key id.
    latest: Chains<AtomicU32>,
    arena: Arena,
    /// Held by the thread that adds a key.
    adding: Mutex<()>,
}

/// The number in `Keyring::keys` of a key version.
#[inline]
fn number(id: u32, version: u32) -> u64 {
    u64::from(id) << u32::BITS | u64::from(version)
}

/// Chains of values, found by a number. A value is never removed and stays where it is, so that those who read need no
/// lock, and nobody has to count them.
///
/// On the heap: a statement that installs the plugin runs on a small stack.
struct Chains<T>(Box<[Link<T>]>);

/// More than most servers have versions, so that most chains have one value.
const CHAINS: usize = 1024;

/// The next value of a chain, once there is one.
type Link<T> = OnceLock<Box<Chained<T>>>;

struct Chained<T> {
    number: u64,
    value: T,
    next: Link<T>,
}

impl<T> Default for Chains<T> {
    fn default() -> Self {
        Self((0..CHAINS).map(|_| Link::new()).collect())
    }
}

impl<T> Chains<T> {
    /// The beginning of the chain that a number is in. Ids and versions are counted from 1, so the remainder spreads
    /// them; the factor keeps the next id from the next version.
    #[inline]
    fn first(&self, number: u64) -> Option<&Link<T>> {
        let (id, version) = (number >> u32::BITS, number & u64::from(u32::MAX));
        self.0.get((id * 31 + version) as usize % CHAINS)
    }

    #[inline]
    fn get(&self, number: u64) -> Option<&T> {
        let mut link = self.first(number)?;
        while let Some(chained) = link.get() {
            if chained.number == number {
                return Some(&chained.value);
            }
            link = &chained.next;
        }
        None
    }

    /// Adds a value to the end of its chain.
    fn add(&self, number: u64, value: T) {
        let Some(mut link) = self.first(number) else {
            return;
        };
        let mut new = Box::new(Chained {
            number,
            value,
            next: Link::new(),
        });
        while let Err(rejected) = link.set(new) {
            new = rejected;
            link = link.get().map_or(link, |chained| &chained.next);
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.0.iter().flat_map(|first| {
            successors(first.get(), |chained| chained.next.get())
                .map(|chained| (chained.number, &chained.value))
        })
    }
}

impl Keyring {
    /// Returns a key version; `None` if it is not in memory.
    #[inline]
    pub fn get(&self, id: u32, version: u32) -> Option<&DataKey> {
        self.keys.get(number(id, version))
    }

    /// Returns whether a key version is in memory.
    pub fn contains(&self, id: u32, version: u32) -> bool {
        self.get(id, version).is_some()
    }

    /// Returns the highest version of a key that is in memory.
    #[inline]
    pub fn latest_version(&self, id: u32) -> Option<u32> {
        let version = self.latest.get(u64::from(id))?;
        // Pairs with `add`: a thread that reads the version finds its key.
        Some(version.load(Ordering::Acquire))
    }

    /// The latest version of a key, and how it encrypts.
    pub fn latest_name(&self, id: u32) -> Option<KeyName> {
        let version = self.latest_version(id)?;
        let algorithm = self.algorithm(id, version)?;
        Some(KeyName {
            id,
            version,
            algorithm,
        })
    }

    /// The ids that have a version in memory.
    pub fn ids(&self) -> Vec<u32> {
        self.latest.iter().map(|(id, _)| id as u32).collect()
    }

    /// The versions in memory, in order.
    pub fn names(&self) -> Vec<KeyName> {
        let name = |(number, key): (u64, &DataKey)| KeyName {
            id: (number >> u32::BITS) as u32,
            version: number as u32,
            algorithm: key.algorithm,
        };
        let mut names: Vec<_> = self.keys.iter().map(name).collect();
        names.sort_unstable();
        names
    }

    /// Number of ids that have a version in memory.
    pub fn id_count(&self) -> u64 {
        self.latest.iter().count() as u64
    }

    /// Number of key versions in memory.
    pub fn version_count(&self) -> u64 {
        self.keys.iter().count() as u64
    }

    /// Adds a key version. One that is there already stays as it is. Returns why the memory of the key could not be
    /// locked, once for each new piece of memory.
    ///
    /// Errors: no memory.
    pub fn add(&self, name: KeyName, key: &[u8]) -> io::Result<Option<io::Error>> {
        let _adding = lock(&self.adding);
        if self.contains(name.id, name.version) {
            return Ok(None);
        }
        let stored = self.arena.store(key)?;
        let key = DataKey {
            algorithm: name.algorithm,
            key: stored.key,
        };
        self.keys.add(number(name.id, name.version), key);
        let id = u64::from(name.id);
        match self.latest.get(id) {
            Some(latest) => _ = latest.fetch_max(name.version, Ordering::Release),
            None => self.latest.add(id, AtomicU32::new(name.version)),
        }
        Ok(stored.lock_failure)
    }

    /// Overwrites all keys. From then on, [`LockedKey::copy_to`] returns none of them.
    pub fn wipe(&self) {
        self.arena.wipe();
    }

    /// A copy of a key, for tests.
    #[cfg(test)]
    pub fn copy(&self, id: u32, version: u32) -> Option<Vec<u8>> {
        let key = self.get(id, version)?;
        let mut bytes = vec![0; key.key.length_bytes()];
        assert!(key.key.copy_to(&mut bytes));
        Some(bytes)
    }

    /// Returns how a key version encrypts.
    #[inline]
    pub fn algorithm(&self, id: u32, version: u32) -> Option<Algorithm> {
        self.get(id, version).map(|key| key.algorithm)
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
