//! Memory for data keys: never swapped, not in core dumps, wiped when it is no longer needed. For the
//! plugin, which keeps them for the server, and the broker, which keeps them for other processes.

#![allow(unsafe_code)]

use core::ffi::c_void;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};

/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 32;
/// Small, because a service may often lock no more than 64 KiB: 512 keys a chunk. Miri is slow.
const CHUNK_SIZE_BYTES: NonZeroUsize =
    NonZeroUsize::new(if cfg!(miri) { 4096 } else { 16 * 1024 }).unwrap();
const WORD_BYTES: usize = size_of::<u64>();
const SLOTS: usize = CHUNK_SIZE_BYTES.get() / MAX_KEY_BYTES;
const SLOTS_PER_WORD: usize = u64::BITS as usize;

/// Room for one key.
type KeySlot = [AtomicU64; MAX_KEY_BYTES / WORD_BYTES];

/// One mapping.
struct Chunk {
    memory: NonNull<c_void>,
    /// A bit for each slot that holds a key.
    used: [AtomicU64; SLOTS / SLOTS_PER_WORD],
    /// Set before the keys are overwritten: who has read a key and finds it unset afterwards has
    /// read a whole one.
    wiped: AtomicBool,
}

// SAFETY: the mapping belongs to no thread, and is accessed as atomics only.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// Maps and protects memory; the second result says what of the protection failed.
    fn new() -> io::Result<(Self, Option<io::Error>)> {
        // SAFETY: a new anonymous mapping, where the kernel likes: nothing else refers to it.
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
        // Miri knows none of the calls.
        let failure = if cfg!(miri) { None } else { chunk.protect() };
        Ok((chunk, failure))
    }

    /// Keeps the memory out of core dumps, forked processes and swap, as far as the kernel allows.
    /// Returns the first failure; a key is better served from memory that is not protected than not.
    fn protect(&self) -> Option<io::Error> {
        // A fork without the mapping ends if it wants a key. One that found zeros would encrypt with
        // them.
        let advices = [
            (MmapAdvise::MADV_DONTDUMP, "kept out of core dumps"),
            (MmapAdvise::MADV_DONTFORK, "kept out of forked processes"),
        ];
        let advised = advices.map(|(advice, what)| {
            // SAFETY: the range is the mapping; neither advice changes its content here.
            let advised = unsafe { madvise(self.memory, CHUNK_SIZE_BYTES.get(), advice) };
            failure_of(advised, what)
        });
        // SAFETY: the range is the mapping.
        let locked = unsafe { mlock(self.memory, CHUNK_SIZE_BYTES.get()) };
        advised
            .into_iter()
            .chain([failure_of(locked, "locked")])
            .flatten()
            .next()
    }

    #[inline]
    fn slots(&self) -> &[KeySlot; SLOTS] {
        // SAFETY: the mapping has that size, is page-aligned, zero at first, lives as long as the
        // chunk, and is accessed through these atomics only.
        unsafe { self.memory.cast().as_ref() }
    }

    /// Takes a free slot, if there is one. Under the arena's lock: two threads would find the same.
    fn take_slot(&self) -> Option<usize> {
        let (index, word) = (self.used.iter().enumerate())
            .find(|(_, word)| word.load(Ordering::Acquire) != u64::MAX)?;
        let bit = word.load(Ordering::Acquire).trailing_ones() as usize;
        word.fetch_or(1 << bit, Ordering::Relaxed);
        Some(index * SLOTS_PER_WORD + bit)
    }

    /// Overwrites a slot and makes it free.
    fn free_slot(&self, slot: usize) {
        let Some(words) = self.slots().get(slot) else {
            return;
        };
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        zeroize::optimization_barrier(words);
        if let Some(word) = self.used.get(slot / SLOTS_PER_WORD) {
            // Pairs with the loads in `take_slot`: the next key is written after the zeros.
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
        // The compiler must not take the stores for dead because the memory is unmapped next.
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
        // munmap fails on a wrong address only, and there is nobody to tell.
        // SAFETY: the range is the mapping, and nothing refers to it any more.
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

    /// Copies the key into `destination`, which is as long as the key. False if it was wiped
    /// meanwhile; `destination` is then of no use.
    #[inline]
    pub fn copy_to(&self, destination: &mut [u8]) -> bool {
        let Some(slot) = self.chunk.slots().get(self.slot) else {
            return false;
        };
        if destination.len() != self.length_bytes {
            return false;
        }
        // All but the end in words of a length that the compiler knows.
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
        // Pairs with the fence in `wipe`: if one of the words read was an overwritten one, the flag
        // reads true.
        fence(Ordering::Acquire);
        !self.chunk.wiped.load(Ordering::Relaxed)
    }
}

impl Drop for LockedKey {
    fn drop(&mut self) {
        self.chunk.free_slot(self.slot);
    }
}

/// Hands out memory for keys.
#[derive(Default)]
pub struct Arena {
    chunks: Mutex<Vec<Arc<Chunk>>>,
}

/// A key put into an [`Arena`].
pub struct Stored {
    /// The key.
    pub key: LockedKey,
    /// The reason, when new memory could not be locked or kept out of core dumps and forks.
    pub lock_failure: Option<io::Error>,
}

impl Arena {
    /// Copies `key` (at most [`MAX_KEY_BYTES`]) into locked memory, of a key that was dropped where
    /// there is such.
    ///
    /// Errors: too long a key, or no memory.
    pub fn store(&self, key: &[u8]) -> io::Result<Stored> {
        if key.len() > MAX_KEY_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Held until the key is there: a wipe finds it or comes before it.
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, slot, lock_failure) = take_slot(&mut chunks)?;
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

    /// Overwrites all keys. Who reads one at that moment is told so.
    pub fn wipe(&self) {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in chunks.drain(..) {
            chunk.wipe();
        }
    }
}

fn take_slot(chunks: &mut Vec<Arc<Chunk>>) -> io::Result<(Arc<Chunk>, usize, Option<io::Error>)> {
    // The last is the one with room, unless keys were dropped.
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
    fn a_wiped_key_is_zero_in_memory_and_no_longer_given() {
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
    fn a_destination_of_another_length_gets_nothing() {
        let key = Arena::default().store(&[7; 16]).unwrap().key;
        for length in [0, 15, 17, 32] {
            assert!(!key.copy_to(&mut vec![0; length]), "{length}");
        }
    }

    #[test]
    fn keys_come_back_as_they_went_over_several_chunks() {
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
    fn the_memory_of_a_dropped_key_is_zero_and_used_again() {
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
    fn a_key_that_is_stored_after_the_wipe_is_given() {
        let arena = Arena::default();
        let _before = arena.store(&[7; 16]).unwrap().key;
        arena.wipe();
        let after = arena.store(&[8; 16]).unwrap().key;
        assert_eq!(copy(&after), Some(vec![8; 16]));
    }

    #[test]
    fn a_key_stays_when_the_arena_is_gone() {
        let key = Arena::default().store(&[7; 16]).unwrap().key;
        assert_eq!(copy(&key), Some(vec![7; 16]));
    }

    #[test]
    fn too_long_a_key_is_refused() {
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
