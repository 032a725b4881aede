//! Memory for data keys: never swapped, not in core dumps, wiped when given back.

#![allow(unsafe_code)]

use core::ffi::c_void;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::mman::{
    MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munlock, munmap,
};
use zeroize::Zeroize;

/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 32;
/// Small, because a service may often lock no more than 64 KiB: 512 keys a chunk.
const CHUNK_SIZE_BYTES: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();
const SLOTS: usize = CHUNK_SIZE_BYTES.get() / MAX_KEY_BYTES;

/// One mapping, divided into slots of [`MAX_KEY_BYTES`].
struct Chunk {
    memory: NonNull<c_void>,
}

// SAFETY: a slot is written once, by `Arena::store` under its lock, before the only handle to it
// exists; from then on it is only read, until the last handle is gone and the chunk is dropped.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn new() -> io::Result<(Self, Result<(), Errno>)> {
        // SAFETY: a new anonymous mapping, where the kernel likes: nothing else refers to it.
        let memory = unsafe {
            mmap_anonymous(
                None,
                CHUNK_SIZE_BYTES,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )
        }?;
        let chunk = Self { memory };
        // SAFETY: the range is the mapping just made; the advice does not change its content.
        unsafe { madvise(memory, CHUNK_SIZE_BYTES.get(), MmapAdvise::MADV_DONTDUMP) }?;
        // SAFETY: the range is the mapping just made.
        let locked = unsafe { mlock(memory, CHUNK_SIZE_BYTES.get()) };
        Ok((chunk, locked))
    }

    fn slot(&self, index: usize) -> NonNull<u8> {
        assert!(index < SLOTS);
        // SAFETY: the slot lies inside the mapping, as just checked.
        unsafe { self.memory.cast::<u8>().add(index * MAX_KEY_BYTES) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let length = CHUNK_SIZE_BYTES.get();
        // SAFETY: the mapping is still there and no handle is left, so nobody else looks at it.
        unsafe {
            core::slice::from_raw_parts_mut(self.memory.cast::<u8>().as_ptr(), length).zeroize();
        }
        // The results are of no use: munmap unlocks what munlock did not, and can fail on a wrong
        // address only.
        // SAFETY: the range is the mapping, and nothing refers to it any more.
        let _ = unsafe { munlock(self.memory, length).and(munmap(self.memory, length)) };
    }
}

/// A key in locked memory. Wiped when the last key of its chunk is dropped.
pub struct LockedKey {
    chunk: Arc<Chunk>,
    slot: usize,
    length_bytes: usize,
}

impl LockedKey {
    /// The key.
    #[inline]
    pub fn expose(&self) -> &[u8] {
        let start = self.chunk.slot(self.slot).as_ptr();
        // SAFETY: `store` wrote that many bytes into this slot before it made this handle, nobody
        // writes to it afterwards, and the handle keeps the chunk alive.
        unsafe { core::slice::from_raw_parts(start, self.length_bytes) }
    }
}

#[derive(Default)]
struct Current {
    chunk: Option<Arc<Chunk>>,
    used_slots: usize,
}

/// Hands out slots.
#[derive(Default)]
pub struct Arena {
    current: Mutex<Current>,
}

/// A key put into an [`Arena`].
pub struct Stored {
    /// The key.
    pub key: LockedKey,
    /// The reason, when new memory could not be locked: it may be swapped.
    pub lock_failure: Option<io::Error>,
}

impl Arena {
    /// Copies `key` (at most [`MAX_KEY_BYTES`]) into locked memory.
    ///
    /// Errors: too long a key, or no memory.
    pub fn store(&self, key: &[u8]) -> io::Result<Stored> {
        if key.len() > MAX_KEY_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lock_failure = None;
        let chunk = match current.chunk.clone() {
            Some(chunk) if current.used_slots < SLOTS => chunk,
            _ => {
                let (chunk, locked) = Chunk::new()?;
                lock_failure = locked.err().map(io::Error::from);
                let chunk = Arc::new(chunk);
                *current = Current {
                    chunk: Some(Arc::clone(&chunk)),
                    used_slots: 0,
                };
                chunk
            }
        };
        let slot = current.used_slots;
        current.used_slots += 1;
        // SAFETY: the slot is inside the mapping, holds MAX_KEY_BYTES, and was never handed out:
        // slots are counted up only, under the lock.
        unsafe {
            core::ptr::copy_nonoverlapping(key.as_ptr(), chunk.slot(slot).as_ptr(), key.len())
        };
        let key = LockedKey {
            chunk,
            slot,
            length_bytes: key.len(),
        };
        Ok(Stored { key, lock_failure })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_as_they_went_over_several_chunks() {
        let arena = Arena::default();
        let keys: Vec<_> = (0..2 * SLOTS + 1)
            .map(|n| [n as u8; MAX_KEY_BYTES])
            .map(|bytes| (bytes, arena.store(&bytes).unwrap().key))
            .collect();
        for (bytes, key) in &keys {
            assert_eq!(key.expose(), bytes);
        }
    }

    #[test]
    fn a_key_stays_when_the_arena_is_gone() {
        let key = Arena::default().store(&[7; 16]).unwrap().key;
        assert_eq!(key.expose(), [7; 16]);
    }

    #[test]
    fn too_long_a_key_is_refused() {
        assert!(Arena::default().store(&[0; MAX_KEY_BYTES + 1]).is_err());
    }

    #[test]
    fn the_memory_is_locked_and_left_out_of_core_dumps() {
        let stored = Arena::default().store(&[1; 32]).unwrap();
        let address = stored.key.expose().as_ptr() as usize;
        let flags = mapping_flags(address);
        assert!(flags.contains(" dd"), "{flags}");
        assert_eq!(
            stored.lock_failure.is_none(),
            flags.contains(" lo"),
            "{flags}"
        );
    }

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
