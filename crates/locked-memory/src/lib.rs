//! Memory for data keys that is never swapped, is left out of core dumps, and is wiped when no longer needed. The
//! plugin keeps keys in it for the server, and the broker for other processes.

#![allow(unsafe_code)]

use core::ffi::c_void;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};

/// Length of the longest key in bytes.
pub const MAX_KEY_BYTES: usize = 32;
/// Room for 512 keys. It is small because many services may lock no more than 64 KiB, and smaller for Miri, which
/// is slow.
const CHUNK_SIZE_BYTES: NonZeroUsize =
    NonZeroUsize::new(if cfg!(miri) { 4096 } else { 16 * 1024 }).unwrap();
const WORD_BYTES: usize = size_of::<u64>();
const SLOTS: usize = CHUNK_SIZE_BYTES.get() / MAX_KEY_BYTES;
const SLOTS_PER_WORD: usize = u64::BITS as usize;

/// Room for one key.
type KeySlot = [AtomicU64; MAX_KEY_BYTES / WORD_BYTES];

/// One memory mapping.
struct Chunk {
    memory: NonNull<c_void>,
    /// One bit for each slot, set while the slot holds a key.
    used: [AtomicU64; SLOTS / SLOTS_PER_WORD],
    /// Set before the keys are overwritten. A reader that finds it unset after reading a key has read all of the key.
    wiped: AtomicBool,
}

// SAFETY: the mapping is not tied to a thread, and only accessed as atomics.
unsafe impl Send for Chunk {}
// SAFETY: several threads may access the mapping at once, because all its accesses are atomic.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// Maps and protects memory. The second result is the first protection that failed.
    fn new() -> io::Result<(Self, Option<io::Error>)> {
        // SAFETY: the kernel chooses the address of this new mapping, so it replaces none.
        let memory = unsafe {
            mmap_anonymous(
                None,
                CHUNK_SIZE_BYTES,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )
        }?;
        let chunk = Self {
            memory,
            used: [const { AtomicU64::new(0) }; _],
            wiped: AtomicBool::new(false),
        };
        // Miri supports none of these calls.
        let failure = if cfg!(miri) { None } else { chunk.protect() };
        Ok((chunk, failure))
    }

    /// Keeps the memory out of core dumps, forked processes and swap, as far as the kernel allows. Returns the first
    /// failure. Keys are served even from unprotected memory, because the server cannot work without them.
    fn protect(&self) -> Option<io::Error> {
        // A forked process that reads a key crashes. With MADV_WIPEONFORK it would encrypt with zeros.
        let advices = [
            (MmapAdvise::MADV_DONTDUMP, "kept out of core dumps"),
            (MmapAdvise::MADV_DONTFORK, "kept out of forked processes"),
        ];
        let advised = advices.map(|(advice, what)| {
            // SAFETY: the range is this mapping, and neither advice changes its content in this process.
            let advised = unsafe { madvise(self.memory, CHUNK_SIZE_BYTES.get(), advice) };
            failure_of(advised, what)
        });
        // SAFETY: the range is this mapping, and locking does not change its content.
        let locked = unsafe { mlock(self.memory, CHUNK_SIZE_BYTES.get()) };
        advised
            .into_iter()
            .chain([failure_of(locked, "locked")])
            .flatten()
            .next()
    }

    #[inline]
    fn slots(&self) -> &[KeySlot; SLOTS] {
        // SAFETY: the mapping has this size, is page-aligned and initially zero, lives as long as the chunk, and
        // is only accessed through these atomics.
        unsafe { self.memory.cast().as_ref() }
    }

    /// Takes a free slot, if there is one. The caller holds the arena's lock, so that no two threads take the same.
    fn take_slot(&self) -> Option<usize> {
        let (index, word) = (self.used.iter().enumerate())
            .find(|(_, word)| word.load(Ordering::Acquire) != u64::MAX)?;
        let bit = word.load(Ordering::Acquire).trailing_ones() as usize;
        word.fetch_or(1 << bit, Ordering::Relaxed);
        Some(index * SLOTS_PER_WORD + bit)
    }

    /// Overwrites a slot and frees it.
    fn free_slot(&self, slot: usize) {
        let Some(words) = self.slots().get(slot) else {
            return;
        };
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        zeroize::optimization_barrier(words);
        if let Some(word) = self.used.get(slot / SLOTS_PER_WORD) {
            // Pairs with the loads in `take_slot`, so that the next key is written after the zeros.
            word.fetch_and(!(1 << (slot % SLOTS_PER_WORD)), Ordering::Release);
        }
    }

    fn wipe(&self) {
        self.wiped.store(true, Ordering::Relaxed);
        // Pairs with the fence in `copy_to`.
        fence(Ordering::Release);
        for word in self.slots().iter().flatten() {
            word.store(0, Ordering::Relaxed);
        }
        // Keeps the compiler from removing the stores because the memory is unmapped next.
        zeroize::optimization_barrier(self.slots());
    }
}

fn failure_of(result: Result<(), Errno>, what: &str) -> Option<io::Error> {
    let error = io::Error::from(result.err()?);
    Some(io::Error::new(
        error.kind(),
        format!("memory cannot be {what}: {error}"),
    ))
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.wipe();
        // munmap only fails for an invalid address.
        // SAFETY: the range is this mapping, and nothing refers to it any more.
        let _ = unsafe { munmap(self.memory, CHUNK_SIZE_BYTES.get()) };
    }
}

/// A key in locked memory, overwritten when dropped.
pub struct LockedKey {
    chunk: Arc<Chunk>,
    slot: usize,
    length_bytes: usize,
}

impl LockedKey {
    /// Length of the key in bytes.
    #[inline]
    pub fn length_bytes(&self) -> usize {
        self.length_bytes
    }

    /// Copies the key into `destination`, which is as long as the key. Returns false if the key has been wiped;
    /// `destination` is then invalid.
    #[inline]
    pub fn copy_to(&self, destination: &mut [u8]) -> bool {
        let Some(slot) = self.chunk.slots().get(self.slot) else {
            return false;
        };
        if destination.len() != self.length_bytes {
            return false;
        }
        // Whole words first, because the compiler knows their length.
        let mut slot = slot.iter();
        let (words, end) = destination.as_chunks_mut::<WORD_BYTES>();
        for (bytes, word) in words.iter_mut().zip(&mut slot) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        if let Some(word) = slot.next() {
            for (to, from) in end
                .iter_mut()
                .zip(word.load(Ordering::Relaxed).to_ne_bytes())
            {
                *to = from;
            }
        }
        // Pairs with the fence in `wipe`: if this has read an overwritten word, it also reads the flag as true.
        fence(Ordering::Acquire);
        !self.chunk.wiped.load(Ordering::Relaxed)
    }
}

impl Drop for LockedKey {
    fn drop(&mut self) {
        self.chunk.free_slot(self.slot);
    }
}

/// Provides memory for keys.
pub struct Arena {
    /// `None` once it was wiped.
    chunks: Mutex<Option<Vec<Arc<Chunk>>>>,
}

impl Default for Arena {
    fn default() -> Self {
        Self {
            chunks: Mutex::new(Some(Vec::new())),
        }
    }
}

/// A key that was stored in an [`Arena`].
pub struct Stored {
    /// The key.
    pub key: LockedKey,
    /// Why new memory could not be locked or kept out of core dumps and forks, if it could not.
    pub lock_failure: Option<io::Error>,
}

impl Arena {
    /// Copies `key` (at most [`MAX_KEY_BYTES`] bytes) into locked memory. Reuses the memory of dropped keys.
    ///
    /// Errors: the key is too long, there is no memory, or the arena was wiped.
    pub fn store(&self, key: &[u8]) -> io::Result<Stored> {
        if key.len() > MAX_KEY_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Held until the key is stored, so that a wipe either comes first or finds it.
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let wiped = || io::Error::other("all keys have been wiped already");
        let (chunk, slot, lock_failure) = take_slot(chunks.as_mut().ok_or_else(wiped)?)?;
        for (bytes, word) in key
            .chunks(WORD_BYTES)
            .zip(chunk.slots().get(slot).into_iter().flatten())
        {
            let mut value = [0; WORD_BYTES];
            value
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
        }
        let key = LockedKey {
            chunk,
            slot,
            length_bytes: key.len(),
        };
        Ok(Stored { key, lock_failure })
    }

    /// Overwrites all keys, and takes no more. A thread that is reading one at that moment gets false from
    /// [`LockedKey::copy_to`].
    pub fn wipe(&self) {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in chunks.take().into_iter().flatten() {
            chunk.wipe();
        }
    }
}

fn take_slot(chunks: &mut Vec<Arc<Chunk>>) -> io::Result<(Arc<Chunk>, usize, Option<io::Error>)> {
    // Usually the last chunk has room; others only after keys were dropped.
    for chunk in chunks.iter().rev() {
        if let Some(slot) = chunk.take_slot() {
            return Ok((Arc::clone(chunk), slot, None));
        }
    }
    let (chunk, failure) = Chunk::new()?;
    let chunk = Arc::new(chunk);
    chunks.push(Arc::clone(&chunk));
    let slot = chunk.take_slot().ok_or(io::ErrorKind::OutOfMemory)?;
    Ok((chunk, slot, failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(key: &LockedKey) -> Option<Vec<u8>> {
        let mut bytes = vec![0; key.length_bytes()];
        key.copy_to(&mut bytes).then_some(bytes)
    }

    #[test]
    fn a_wiped_key_is_zero_in_memory_and_cannot_be_copied() {
        let arena = Arena::default();
        let key = arena.store(&[7; 16]).unwrap().key;
        assert!(
            key.chunk
                .slots()
                .iter()
                .flatten()
                .any(|word| word.load(Ordering::Relaxed) != 0)
        );
        arena.wipe();
        assert_eq!(copy(&key), None);
        assert!(
            key.chunk
                .slots()
                .iter()
                .flatten()
                .all(|word| word.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn a_destination_of_the_wrong_length_is_refused() {
        let key = Arena::default().store(&[7; 16]).unwrap().key;
        for length in [0, 15, 17, 32] {
            assert!(!key.copy_to(&mut vec![0; length]), "{length}");
        }
    }

    #[test]
    fn keys_in_several_chunks_are_read_back() {
        let arena = Arena::default();
        let keys: Vec<_> = (0..2 * SLOTS + 1)
            .map(|n| [n as u8; MAX_KEY_BYTES])
            .map(|bytes| (bytes, arena.store(&bytes).unwrap().key))
            .collect();
        for (bytes, key) in &keys {
            assert_eq!(copy(key).as_deref(), Some(&bytes[..]));
        }
    }

    #[test]
    fn the_memory_of_a_dropped_key_is_zero_and_reused() {
        let arena = Arena::default();
        let _kept: Vec<_> = (0..SLOTS + 1)
            .map(|_| arena.store(&[7; 32]).unwrap().key)
            .collect();
        let key = arena.store(&[8; 32]).unwrap().key;
        let (chunk, slot) = (Arc::clone(&key.chunk), key.slot);
        drop(key);
        let words = &chunk.slots()[slot];
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        let next = arena.store(&[9; 16]).unwrap().key;
        assert!(Arc::ptr_eq(&next.chunk, &chunk) && next.slot == slot);
        assert_eq!(copy(&next), Some(vec![9; 16]));
    }

    #[test]
    fn after_the_wipe_no_key_is_stored_that_nobody_would_wipe() {
        let arena = Arena::default();
        let _before = arena.store(&[7; 16]).unwrap().key;
        arena.wipe();
        assert!(arena.store(&[8; 16]).is_err());
    }

    #[test]
    fn a_key_outlives_its_arena() {
        let key = Arena::default().store(&[7; 16]).unwrap().key;
        assert_eq!(copy(&key), Some(vec![7; 16]));
    }

    #[test]
    fn a_key_that_is_too_long_is_refused() {
        assert!(Arena::default().store(&[0; MAX_KEY_BYTES + 1]).is_err());
    }

    #[cfg(not(miri))]
    #[test]
    fn the_memory_is_locked_and_left_out_of_core_dumps_and_forks() {
        let stored = Arena::default().store(&[1; 32]).unwrap();
        let address = stored.key.chunk.memory.addr().get();
        let flags = mapping_flags(address);
        assert!(flags.contains(" dd") && flags.contains(" dc"), "{flags}");
        assert_eq!(
            stored.lock_failure.is_none(),
            flags.contains(" lo"),
            "{flags}"
        );
    }

    #[cfg(not(miri))]
    /// The VmFlags of the mapping that holds `address`.
    fn mapping_flags(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            if let Some((start, end)) = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'))
                && let (Ok(start), Ok(end)) = (
                    usize::from_str_radix(start, 16),
                    usize::from_str_radix(end, 16),
                )
            {
                inside = (start..end).contains(&address);
            }
            if inside && line.starts_with("VmFlags:") {
                return line.to_owned();
            }
        }
        panic!("no mapping holds the key");
    }
}
