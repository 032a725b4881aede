//! The unwrapped data keys. Readers take no lock: keys are only ever added.

#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use key_store::key_name::{Algorithm, KeyName};
use locked_memory::{Arena, LockedKey};

const BUCKETS: usize = 1024;

/// A hash table of chains that grow at their ends and never shrink, so that a reader only follows
/// pointers.
struct AppendOnlyTable<T> {
    buckets: Box<[Link<T>]>,
}

type Link<T> = OnceLock<Box<Node<T>>>;

struct Node<T> {
    entry: T,
    next: Link<T>,
}

impl<T> AppendOnlyTable<T> {
    fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| OnceLock::new()).collect(),
        }
    }

    #[inline]
    fn bucket(&self, hash: u32) -> Option<&Link<T>> {
        self.buckets.get(hash as usize % BUCKETS)
    }

    #[inline]
    fn find(&self, hash: u32, matches: impl Fn(&T) -> bool) -> Option<&T> {
        let mut node = self.bucket(hash)?.get();
        while let Some(here) = node {
            if matches(&here.entry) {
                return Some(&here.entry);
            }
            node = here.next.get();
        }
        None
    }

    /// Appends to the chain of `hash`. Callers take turns.
    fn insert(&self, hash: u32, entry: T) {
        let Some(mut link) = self.bucket(hash) else {
            return;
        };
        while let Some(node) = link.get() {
            link = &node.next;
        }
        link.get_or_init(|| {
            Box::new(Node {
                entry,
                next: OnceLock::new(),
            })
        });
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.buckets.iter().flat_map(|bucket| {
            core::iter::successors(bucket.get(), |node| node.next.get()).map(|node| &node.entry)
        })
    }
}

/// A data key and how it encrypts.
pub struct DataKey {
    name: KeyName,
    key: LockedKey,
}

impl DataKey {
    /// How this version encrypts.
    #[inline]
    pub fn algorithm(&self) -> Algorithm {
        self.name.algorithm
    }

    /// Length of the key: 16, 24 or 32 bytes.
    #[inline]
    pub fn length_bytes(&self) -> usize {
        self.key.length_bytes()
    }

    /// Copies the key into `destination`, which is as long as the key. False if the plugin is being
    /// unloaded and the key was wiped meanwhile.
    #[inline]
    pub fn copy_to(&self, destination: &mut [u8]) -> bool {
        self.key.copy_to(destination)
    }

    /// A copy of the key, for tests.
    #[cfg(test)]
    pub fn copy(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length_bytes()];
        assert!(self.copy_to(&mut bytes));
        bytes
    }
}

struct LatestVersion {
    id: u32,
    version: AtomicU32,
}

/// All data keys in memory.
pub struct Keyring {
    keys: AppendOnlyTable<DataKey>,
    latest: AppendOnlyTable<LatestVersion>,
    arena: Arena,
    writers: Mutex<()>,
    id_count: AtomicU64,
    version_count: AtomicU64,
}

/// What came of adding a key.
pub struct Added {
    /// Why the memory of the key could not be locked, told once for each new piece of memory.
    pub lock_failure: Option<io::Error>,
}

impl Default for Keyring {
    fn default() -> Self {
        Self {
            keys: AppendOnlyTable::new(),
            latest: AppendOnlyTable::new(),
            arena: Arena::default(),
            writers: Mutex::new(()),
            id_count: AtomicU64::new(0),
            version_count: AtomicU64::new(0),
        }
    }
}

/// Spreads ids and versions, which mostly count up, over the buckets.
#[inline]
fn hash(id: u32, version: u32) -> u32 {
    id.wrapping_mul(0x9e37_79b1)
        .wrapping_add(version.wrapping_mul(0x85eb_ca77))
        >> 16
}

impl Keyring {
    /// Returns a key version.
    #[inline]
    pub fn key(&self, id: u32, version: u32) -> Option<&DataKey> {
        self.keys.find(hash(id, version), |key| {
            key.name.id == id && key.name.version == version
        })
    }

    /// Returns the highest version of a key that is in memory.
    #[inline]
    pub fn latest_version(&self, id: u32) -> Option<u32> {
        self.latest
            .find(hash(id, 0), |latest| latest.id == id)
            .map(|latest| latest.version.load(Ordering::Acquire))
    }

    /// The ids of which a version is in memory.
    pub fn ids(&self) -> Vec<u32> {
        self.latest.iter().map(|latest| latest.id).collect()
    }

    /// Number of ids of which a version is in memory.
    pub fn id_count(&self) -> u64 {
        self.id_count.load(Ordering::Relaxed)
    }

    /// Number of key versions in memory.
    pub fn version_count(&self) -> u64 {
        self.version_count.load(Ordering::Relaxed)
    }

    /// Adds a key version; one that is there already stays as it is.
    ///
    /// Errors: no memory.
    pub fn add(&self, name: KeyName, key: &[u8]) -> io::Result<Added> {
        let _turn = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.key(name.id, name.version).is_some() {
            return Ok(Added { lock_failure: None });
        }
        let stored = self.arena.store(key)?;
        let key = DataKey {
            name,
            key: stored.key,
        };
        // The key before its version number: who reads the number finds the key.
        self.keys.insert(hash(name.id, name.version), key);
        self.version_count.fetch_add(1, Ordering::Relaxed);
        self.raise_latest(name.id, name.version);
        Ok(Added {
            lock_failure: stored.lock_failure,
        })
    }

    /// Overwrites all keys; none is given any more.
    pub fn wipe(&self) {
        self.arena.wipe();
    }

    fn raise_latest(&self, id: u32, version: u32) {
        if let Some(latest) = self.latest.find(hash(id, 0), |latest| latest.id == id) {
            latest.version.fetch_max(version, Ordering::Release);
        } else {
            let version = AtomicU32::new(version);
            self.latest
                .insert(hash(id, 0), LatestVersion { id, version });
            self.id_count.fetch_add(1, Ordering::Relaxed);
        }
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
    fn many_keys_are_found_and_the_highest_version_is_the_latest() {
        let (keyring, end) = (Keyring::default(), if cfg!(miri) { 20 } else { 3000 });
        for id in (1..end).chain([u32::MAX - 1]) {
            for version in [2, 1, u32::MAX - 1, 3] {
                keyring.add(name(id, version), &bytes(id, version)).unwrap();
            }
            assert_eq!(keyring.latest_version(id), Some(u32::MAX - 1));
        }
        for id in 1..end {
            assert_eq!(keyring.key(id, 2).unwrap().copy(), bytes(id, 2));
            assert!(keyring.key(id, 4).is_none());
        }
        assert_eq!(keyring.latest_version(end), None);
        let count = u64::from(end);
        assert_eq!(
            (keyring.id_count(), keyring.version_count()),
            (count, 4 * count)
        );
        assert_eq!(keyring.ids().len(), end as usize);
    }

    #[test]
    fn a_key_once_added_never_changes() {
        let keyring = Keyring::default();
        keyring.add(name(1, 1), &[1; 16]).unwrap();
        keyring.add(name(1, 1), &[2; 16]).unwrap();
        assert_eq!(keyring.key(1, 1).unwrap().copy(), [1; 16]);
        assert_eq!(keyring.version_count(), 1);
    }

    #[test]
    fn who_reads_a_version_number_finds_its_key_while_others_are_added() {
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
                    assert_eq!(keyring.key(1, version).unwrap().copy(), bytes(1, version));
                }
            });
        });
    }
}
