//! Encryption and decryption for the server.

use core::ffi::{c_int, c_uchar, c_uint, c_void};
use core::mem::{MaybeUninit, align_of, size_of};

use super::guard;
use crate::abi::{AES_BAD_DATA, AES_BAD_KEYSIZE, AES_ERROR, AES_OK, FLAG_ENCRYPT, FLAG_NOPAD};
use crate::cipher::{Buffers, Cipher, CipherError, Task, encrypted_bytes};
use crate::key_name::Algorithm;
use crate::plugin;

/// The caller's memory, which is aligned to nothing, holds one of these somewhere.
#[repr(C)]
struct Slot {
    /// [`LIVE`] while `cipher` is one. Other calls than init find out by it that they must not
    /// look.
    state: u64,
    cipher: MaybeUninit<Cipher>,
}

const LIVE: u64 = 0x6177_735f_6b65_7921;
const NOT_LIVE: u64 = 0;

/// Bytes of a context in memory of any alignment.
pub const CONTEXT_BYTES: usize = size_of::<Slot>() + align_of::<Slot>() - 1;

/// `crypt_ctx_size`.
pub extern "C" fn crypt_ctx_size(_key_id: c_uint, _key_version: c_uint) -> c_uint {
    CONTEXT_BYTES as c_uint
}

/// Finds the slot in the caller's memory: the same place in each call.
fn slot(ctx: *mut c_void) -> *mut Slot {
    ctx.map_addr(|address| address.next_multiple_of(align_of::<Slot>()))
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
        if ctx.is_null() || key.is_null() || iv.is_null() {
            return AES_ERROR;
        }
        let slot = slot(ctx);
        // SAFETY: the slot lies inside the caller's memory, at its alignment.
        unsafe { (&raw mut (*slot).state).write(NOT_LIVE) };
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
        let task = Task {
            encrypt: flags & FLAG_ENCRYPT != 0,
            padding: flags & FLAG_NOPAD == 0,
        };
        match Cipher::new(algorithm, task, key, iv) {
            Ok(cipher) => {
                // SAFETY: as above; what was there is no Cipher, so nothing is lost.
                unsafe {
                    (&raw mut (*slot).cipher).write(MaybeUninit::new(cipher));
                    (&raw mut (*slot).state).write(LIVE);
                }
                AES_OK
            }
            Err(error) => code(error),
        }
    })
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
        Some((*slot).cipher.assume_init_mut())
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
                // SAFETY: the caller's promise, and the source has nothing in common with it.
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
        slot.cast::<u8>().write_bytes(0, size_of::<Slot>());
        zeroize::optimization_barrier(&*slot.cast::<MaybeUninit<Slot>>());
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
