//! Encryption and decryption for the server.

use core::ffi::{c_int, c_uchar, c_uint, c_void};
use core::mem::{MaybeUninit, align_of, size_of};

use key_store::key_name::Algorithm;

use super::guard;
use crate::abi::{AES_BAD_DATA, AES_BAD_KEYSIZE, AES_ERROR, AES_OK, FLAG_ENCRYPT, FLAG_NOPAD};
use crate::cipher::{Buffers, Cipher, CipherError, Task, encrypted_bytes};
use crate::plugin;
#[cfg(feature = "stream-log")]
use crate::stream_log::Stream;

/// The caller's memory, which is aligned to nothing, holds one of these somewhere.
#[repr(C)]
struct ContextCell {
    /// [`LIVE`] while `cipher` is one. Other calls than init find out by it that they must not
    /// look.
    state: u64,
    cipher: MaybeUninit<Option<Cipher>>,
    #[cfg(feature = "stream-log")]
    stream: MaybeUninit<Stream>,
}

const LIVE: u64 = 0x6177_735f_6b65_7921;
const NOT_LIVE: u64 = 0;

/// Bytes of a context in memory of any alignment.
pub const CONTEXT_BYTES: usize = size_of::<ContextCell>() + align_of::<ContextCell>() - 1;

/// `crypt_ctx_size`.
pub extern "C" fn crypt_ctx_size(_key_id: c_uint, _key_version: c_uint) -> c_uint {
    CONTEXT_BYTES as c_uint
}

/// Finds the slot in the caller's memory: the same place in each call.
fn slot(ctx: *mut c_void) -> *mut ContextCell {
    ctx.map_addr(|address| address.next_multiple_of(align_of::<ContextCell>()))
        .cast()
}

fn code(error: CipherError) -> c_int {
    match error {
        CipherError::KeyLength(_) => AES_BAD_KEYSIZE,
        CipherError::BadData => AES_BAD_DATA,
        CipherError::IvLength(_) | CipherError::Misuse => AES_ERROR,
    }
}

/// Tells how a key version encrypts; loads it if it is not in memory.
fn algorithm(key_id: c_uint, key_version: c_uint) -> Option<Algorithm> {
    let manager = plugin::manager()?;
    let of_key = || {
        manager
            .keyring
            .key(key_id, key_version)
            .map(|key| key.algorithm())
    };
    of_key().or_else(|| {
        manager.ensure_loaded(key_id, key_version).ok()?;
        of_key()
    })
}

/// `crypt_ctx_init`.
///
/// # Safety
/// `ctx` points to [`CONTEXT_BYTES`] bytes, `key` to `klen` and `iv` to `ivlen` readable ones.
pub unsafe extern "C" fn crypt_ctx_init(
    ctx: *mut c_void,
    key: *const c_uchar,
    klen: c_uint,
    iv: *const c_uchar,
    ivlen: c_uint,
    flags: c_int,
    key_id: c_uint,
    key_version: c_uint,
) -> c_int {
    guard(AES_ERROR, || {
        // Once the plugin is unloaded, the server gives contexts of no length.
        if ctx.is_null() || plugin::manager().is_none() {
            return AES_ERROR;
        }
        // Before anything can fail: the server may call finish all the same.
        // SAFETY: the slot lies inside the caller's memory, at its alignment.
        unsafe { (&raw mut (*slot(ctx)).state).write(NOT_LIVE) };
        if key.is_null() || iv.is_null() {
            return AES_ERROR;
        }
        let Some(algorithm) = algorithm(key_id, key_version) else {
            return AES_ERROR;
        };
        // SAFETY: not null, and the caller says that so many bytes are there.
        let (key, iv) = unsafe {
            (
                core::slice::from_raw_parts(key, klen as usize),
                core::slice::from_raw_parts(iv, ivlen as usize),
            )
        };
        #[cfg(feature = "stream-log")]
        // SAFETY: as above.
        unsafe {
            let stream = Stream::new(
                algorithm,
                flags & FLAG_ENCRYPT != 0,
                key,
                iv,
                key_id,
                key_version,
            );
            (*slot(ctx)).stream.write(stream);
        }
        // SAFETY: as above.
        unsafe { start(ctx, algorithm, key, iv, flags) }
    })
}

/// Puts a cipher into the caller's memory.
///
/// # Safety
/// `ctx` points to [`CONTEXT_BYTES`] bytes.
unsafe fn start(
    ctx: *mut c_void,
    algorithm: Algorithm,
    key: &[u8],
    iv: &[u8],
    flags: c_int,
) -> c_int {
    let slot = slot(ctx);
    let task = Task {
        encrypt: flags & FLAG_ENCRYPT != 0,
        padding: flags & FLAG_NOPAD == 0,
    };
    // SAFETY: the slot lies inside the caller's memory, at its alignment; what was there is no
    // cipher, so nothing is lost.
    let place = unsafe { (*slot).cipher.write(None) };
    match Cipher::start(place, algorithm, task, key, iv) {
        Ok(()) => {
            // SAFETY: as above.
            unsafe { (&raw mut (*slot).state).write(LIVE) };
            AES_OK
        }
        Err(error) => code(error),
    }
}

/// Returns the cipher in the caller's memory, if there is one.
///
/// # Safety
/// `ctx` is null or was given to [`crypt_ctx_init`], and nobody else uses it now.
unsafe fn live_cipher<'a>(ctx: *mut c_void) -> Option<&'a mut Cipher> {
    if ctx.is_null() {
        return None;
    }
    let slot = slot(ctx);
    // SAFETY: init wrote the state, and the cipher before it made the state LIVE.
    unsafe {
        if (&raw const (*slot).state).read() != LIVE {
            return None;
        }
        (*slot).cipher.assume_init_mut().as_mut()
    }
}

/// `crypt_ctx_update`.
///
/// # Safety
/// `ctx` was given to [`crypt_ctx_init`]; `src` points to `slen` readable bytes; `dst` has room for
/// them and, without padding off, one block more; `dlen` is writable. `src` and `dst` may be the
/// same memory or overlap.
pub unsafe extern "C" fn crypt_ctx_update(
    ctx: *mut c_void,
    src: *const c_uchar,
    slen: c_uint,
    dst: *mut c_uchar,
    dlen: *mut c_uint,
) -> c_int {
    guard(AES_ERROR, || {
        if dlen.is_null() {
            return AES_ERROR;
        }
        // SAFETY: not null; written only, since it may be uninitialised.
        unsafe { dlen.write(0) };
        // SAFETY: the caller's promise.
        let Some(cipher) = (unsafe { live_cipher(ctx) }) else {
            return AES_ERROR;
        };
        let source_bytes = slen as usize;
        let result_bytes = cipher.update_bytes(source_bytes);
        if (src.is_null() && source_bytes > 0) || (dst.is_null() && result_bytes > 0) {
            return AES_ERROR;
        }
        // SAFETY: neither is null where its length is not 0, and the caller vouches for both.
        let buffers = unsafe { buffers(src, source_bytes, dst, result_bytes) };
        #[cfg(feature = "stream-log")]
        if source_bytes > 0 {
            // SAFETY: init wrote the stream of a live cipher, and `src` has so many bytes.
            unsafe {
                let source = core::slice::from_raw_parts(src, source_bytes);
                (*slot(ctx)).stream.assume_init_mut().add(source);
            }
        }
        match cipher.update(buffers) {
            Ok(()) => {
                // SAFETY: not null. The result is no longer than a block more than `slen`, and
                // that the caller has room for.
                unsafe { dlen.write(result_bytes as c_uint) };
                AES_OK
            }
            Err(error) => code(error),
        }
    })
}

/// Forms slices of the caller's memory: two where they have nothing in common, else one of both.
///
/// # Safety
/// `src` points to `source_bytes` readable and `dst` to `result_bytes` writable bytes, where that
/// is not 0.
unsafe fn buffers<'a>(
    src: *const u8,
    source_bytes: usize,
    dst: *mut u8,
    result_bytes: usize,
) -> Buffers<'a> {
    let (source_start, result_start) = (src.addr(), dst.addr());
    let overlapping = source_bytes > 0
        && result_bytes > 0
        && source_start < result_start + result_bytes
        && result_start < source_start + source_bytes;
    if overlapping {
        let start = source_start.min(result_start);
        let end = (source_start + source_bytes).max(result_start + result_bytes);
        let region = dst.wrapping_sub(result_start - start);
        let (source, destination) = (source_start - start, result_start - start);
        Buffers::Overlapping {
            // SAFETY: two ranges with something in common make one; a source that shares memory
            // with the destination is writable in C's eyes, and nobody else has a reference.
            region: unsafe { core::slice::from_raw_parts_mut(region, end - start) },
            source: source..source + source_bytes,
            destination: destination..destination + result_bytes,
        }
    } else {
        Buffers::Separate {
            source: match source_bytes {
                0 => &[],
                // SAFETY: the caller's promise.
                length => unsafe { core::slice::from_raw_parts(src, length) },
            },
            destination: match result_bytes {
                0 => &mut [],
                // SAFETY: the caller's promise, and the source has nothing in common with it. The memory may
                // be uninitialised; it is only written to, and any byte is a valid u8.
                length => unsafe { core::slice::from_raw_parts_mut(dst, length) },
            },
        }
    }
}

/// `crypt_ctx_finish`.
///
/// # Safety
/// `ctx` was given to [`crypt_ctx_init`]; `dst` has room for one block, or what is left of the
/// data's encrypted length; `dlen` is writable.
pub unsafe extern "C" fn crypt_ctx_finish(
    ctx: *mut c_void,
    dst: *mut c_uchar,
    dlen: *mut c_uint,
) -> c_int {
    guard(AES_ERROR, || {
        if dlen.is_null() {
            return AES_ERROR;
        }
        // SAFETY: not null; written only.
        unsafe { dlen.write(0) };
        // SAFETY: the caller's promise.
        let Some(cipher) = (unsafe { live_cipher(ctx) }) else {
            return AES_ERROR;
        };
        let finished = cipher.finish();
        #[cfg(feature = "stream-log")]
        // SAFETY: init wrote the stream of a live cipher.
        unsafe { (*slot(ctx)).stream.assume_init_ref() }.log();
        // SAFETY: the cipher is live, and nothing refers to it any more.
        unsafe { wipe(ctx) };
        let tail = match finished {
            Ok(tail) => tail,
            Err(error) => return code(error),
        };
        let bytes = tail.as_bytes();
        if !bytes.is_empty() {
            if dst.is_null() {
                return AES_ERROR;
            }
            // SAFETY: not null, with room for what is left; `bytes` are our own.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), dst, bytes.len()) };
        }
        // SAFETY: not null.
        unsafe { dlen.write(bytes.len() as c_uint) };
        AES_OK
    })
}

/// Overwrites the context with zeros, which also makes it not live.
///
/// # Safety
/// The context is live and not borrowed.
unsafe fn wipe(ctx: *mut c_void) {
    let slot = slot(ctx);
    // SAFETY: a live slot, which is dropped once, since it is not live afterwards; zero is a valid
    // state, and the rest is not looked at then.
    unsafe {
        (*slot).cipher.assume_init_drop();
        slot.cast::<u8>().write_bytes(0, size_of::<ContextCell>());
        zeroize::optimization_barrier(&*slot.cast::<MaybeUninit<ContextCell>>());
    }
}

/// `encrypted_length`: the length with padding, since nobody tells whether there is any.
pub extern "C" fn encrypted_length(slen: c_uint, key_id: c_uint, key_version: c_uint) -> c_uint {
    guard(0, || {
        // Where the version cannot be had, encrypting fails anyway.
        let algorithm = algorithm(key_id, key_version).unwrap_or(Algorithm::AesCbc);
        encrypted_bytes(algorithm, slen).unwrap_or(0)
    })
}

/// What needs no started plugin. Small, because Miri runs it.
#[cfg(test)]
mod tests {
    use super::*;

    /// Memory of the caller, at any alignment and not a byte longer than asked for.
    struct Context {
        memory: Box<[MaybeUninit<u8>]>,
        misalignment: usize,
    }

    impl Context {
        fn start(algorithm: Algorithm, flags: c_int, misalignment: usize) -> Self {
            let mut context = Self {
                memory: Box::new_uninit_slice(CONTEXT_BYTES + misalignment),
                misalignment,
            };
            // SAFETY: the memory is long enough.
            let code = unsafe { start(context.address(), algorithm, &[1; 16], &[2; 16], flags) };
            assert_eq!(code, AES_OK);
            context
        }

        fn address(&mut self) -> *mut c_void {
            self.memory[self.misalignment..].as_mut_ptr().cast()
        }

        /// # Safety
        /// As for [`crypt_ctx_update`].
        unsafe fn update(
            &mut self,
            source: *const u8,
            bytes: usize,
            destination: *mut u8,
        ) -> usize {
            let mut written = MaybeUninit::uninit();
            // SAFETY: the caller's promise.
            unsafe {
                let code = crypt_ctx_update(
                    self.address(),
                    source,
                    bytes as c_uint,
                    destination,
                    written.as_mut_ptr(),
                );
                assert_eq!(code, AES_OK);
                written.assume_init() as usize
            }
        }

        /// # Safety
        /// As for [`crypt_ctx_finish`].
        unsafe fn finish(&mut self, destination: *mut u8) -> usize {
            let mut written = MaybeUninit::uninit();
            // SAFETY: the caller's promise.
            unsafe {
                let code = crypt_ctx_finish(self.address(), destination, written.as_mut_ptr());
                assert_eq!(code, AES_OK);
                written.assume_init() as usize
            }
        }
    }

    const KINDS: [(Algorithm, c_int); 4] = [
        (Algorithm::AesCbc, 0),
        (Algorithm::AesCbc, FLAG_NOPAD),
        (Algorithm::AesCtr, 0),
        (Algorithm::AesCtr, FLAG_NOPAD),
    ];

    /// Encrypts or decrypts with destinations that begin where the result before ended.
    fn crypt(
        (algorithm, flags): (Algorithm, c_int),
        data: &[u8],
        pieces: &[usize],
        misalignment: usize,
        result_bytes: usize,
    ) -> Vec<u8> {
        let mut context = Context::start(algorithm, flags, misalignment);
        let mut result = vec![0; result_bytes].into_boxed_slice();
        let (mut read, mut written) = (0, 0);
        // SAFETY: inside the data; the result is as long as OpenSSL's.
        unsafe {
            for &piece in pieces {
                let source = data[read..read + piece].as_ptr();
                written += context.update(source, piece, result[written..].as_mut_ptr());
                read += piece;
            }
            written += context.finish(result[written..].as_mut_ptr());
        }
        assert_eq!((read, written), (data.len(), result_bytes));
        result.into()
    }

    #[test]
    fn pieces_join_to_the_whole_in_memory_of_any_alignment() {
        let data: Vec<u8> = (0..69).collect();
        for (algorithm, flags) in KINDS {
            let bytes = match flags {
                FLAG_NOPAD => data.len(),
                _ => encrypted_bytes(algorithm, 69).unwrap() as usize,
            };
            let encrypting = (algorithm, flags | FLAG_ENCRYPT);
            let whole = crypt(encrypting, &data, &[69], 0, bytes);
            for misalignment in [1, 8, 15] {
                let pieces = crypt(encrypting, &data, &[1, 0, 33, 35], misalignment, bytes);
                assert_eq!(pieces, whole, "{algorithm:?} {flags}");
            }
            let decrypted = crypt((algorithm, flags), &whole, &[bytes], 3, data.len());
            assert_eq!(decrypted, data, "{algorithm:?} {flags}");
        }
    }

    #[test]
    fn source_and_destination_may_have_memory_in_common() {
        let data: Vec<u8> = (0..69).collect();
        for kind in [KINDS[1], KINDS[3]] {
            let (algorithm, flags) = (kind.0, kind.1 | FLAG_ENCRYPT);
            let expected = crypt((algorithm, flags), &data, &[69], 0, 69);
            for (from, to) in [(0, 0), (0, 5), (5, 0), (0, 48), (0, 69)] {
                let mut region = vec![0; 69 + from.max(to)];
                region[from..from + 69].copy_from_slice(&data);
                let mut context = Context::start(algorithm, flags, 1);
                let start = region.as_mut_ptr();
                // SAFETY: both lie in the region.
                unsafe {
                    let written = context.update(start.add(from), 69, start.add(to));
                    context.finish(start.add(to + written));
                }
                assert_eq!(region[to..to + 69], expected, "{kind:?} {from} {to}");
            }
        }
    }

    #[test]
    fn a_context_that_was_not_started_or_is_finished_is_not_looked_at() {
        let mut context = Context::start(Algorithm::AesCbc, FLAG_ENCRYPT, 7);
        let mut block = [0; 16];
        // SAFETY: room for a block; a context in its place.
        unsafe {
            assert_eq!(context.finish(block.as_mut_ptr()), 16);
            let mut written = 99;
            let again = crypt_ctx_finish(context.address(), block.as_mut_ptr(), &mut written);
            assert_eq!((again, written), (AES_ERROR, 0));
        }
    }
}
