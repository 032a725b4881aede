//! Encrypts and decrypts for the server.

use core::ffi::{c_int, c_uchar, c_uint, c_void};
use core::mem::{MaybeUninit, align_of, size_of};

use key_files::key_name::Algorithm;

use super::guard;
use crate::abi::{AES_BAD_DATA, AES_BAD_KEYSIZE, AES_ERROR, AES_OK, FLAG_ENCRYPT, FLAG_NOPAD};
use crate::cipher::{Buffers, Cipher, CipherError, Direction, Padding, encrypted_bytes};
use crate::plugin;
#[cfg(feature = "stream-log")]
use crate::stream_log::Stream;

/// What the plugin keeps in the caller's memory. That memory has no particular alignment, so this lies at the
/// first aligned address in it.
#[repr(C)]
struct ContextCell {
    /// [`LIVE`] while `cipher` is initialised. Otherwise update and finish must not read `cipher`.
    state: u64,
    cipher: MaybeUninit<Option<Cipher>>,
    /// The key id if AES_CTR encrypts without padding, as InnoDB's pages are; otherwise 0. Valid while LIVE.
    ctr_key_id: MaybeUninit<u32>,
    #[cfg(feature = "stream-log")]
    stream: MaybeUninit<Stream>,
}

const LIVE: u64 = 0x6177_735f_6b65_7921;
const NOT_LIVE: u64 = 0;

/// Size of a context in memory of any alignment.
pub const CONTEXT_BYTES: usize = size_of::<ContextCell>() + align_of::<ContextCell>() - 1;

/// `crypt_ctx_size`.
pub extern "C" fn crypt_ctx_size(_key_id: c_uint, _key_version: c_uint) -> c_uint {
    CONTEXT_BYTES as c_uint
}

/// Returns the place of the cell in the caller's memory, which is the same in each call.
fn cell(ctx: *mut c_void) -> *mut ContextCell {
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

/// Returns how a key version encrypts, after loading the version if it is not in memory.
fn algorithm(key_id: c_uint, key_version: c_uint) -> Option<Algorithm> {
    let key = plugin::manager()?.key(key_id, key_version).ok()?;
    Some(key.algorithm)
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
        // After it has unloaded the plugin, the server reserves no memory for contexts.
        if ctx.is_null() || plugin::manager().is_none() {
            return AES_ERROR;
        }
        // First of all, because the server may call finish even after a failure.
        // SAFETY: the server reserved CONTEXT_BYTES at `ctx`, in which `cell` finds an aligned place.
        unsafe { (&raw mut (*cell(ctx)).state).write(NOT_LIVE) };
        if key.is_null() || iv.is_null() {
            return AES_ERROR;
        }
        let Some(algorithm) = algorithm(key_id, key_version) else {
            return AES_ERROR;
        };
        // SAFETY: neither is null, and the server passes their lengths.
        let (key, iv) = unsafe {
            (
                core::slice::from_raw_parts(key, klen as usize),
                core::slice::from_raw_parts(iv, ivlen as usize),
            )
        };
        #[cfg(feature = "stream-log")]
        // SAFETY: `cell` finds an aligned place in the memory that the server reserved.
        unsafe {
            let stream = Stream::new(
                algorithm,
                flags & FLAG_ENCRYPT != 0,
                key,
                iv,
                key_id,
                key_version,
            );
            (*cell(ctx)).stream.write(stream);
        }
        // SAFETY: the server reserved CONTEXT_BYTES at `ctx`.
        unsafe { init_cipher(ctx, algorithm, key, iv, flags, key_id) }
    })
}

/// Initialises the cipher in the caller's memory.
///
/// # Safety
/// `ctx` points to [`CONTEXT_BYTES`] writable bytes, which contain no live cipher.
unsafe fn init_cipher(
    ctx: *mut c_void,
    algorithm: Algorithm,
    key: &[u8],
    iv: &[u8],
    flags: c_int,
    key_id: c_uint,
) -> c_int {
    let cell = cell(ctx);
    let direction = match flags & FLAG_ENCRYPT {
        0 => Direction::Decrypt,
        _ => Direction::Encrypt,
    };
    let padding = match flags & FLAG_NOPAD {
        0 => Padding::Padded,
        _ => Padding::Unpadded,
    };
    let ctr_key_id = match (algorithm, direction, padding) {
        (Algorithm::AesCtr, Direction::Encrypt, Padding::Unpadded) => key_id,
        _ => 0,
    };
    // SAFETY: `cell` finds an aligned place in the caller's memory, and no cipher there is overwritten.
    let place = unsafe {
        (*cell).ctr_key_id.write(ctr_key_id);
        (*cell).cipher.write(None)
    };
    match Cipher::init(place, algorithm, direction, padding, key, iv) {
        Ok(()) => {
            // SAFETY: `cell` finds an aligned place in the caller's memory.
            unsafe { (&raw mut (*cell).state).write(LIVE) };
            AES_OK
        }
        Err(error) => code(error),
    }
}

/// Returns the cipher in the caller's memory, if there is one.
///
/// # Safety
/// `ctx` is null or was passed to [`crypt_ctx_init`], and nobody else uses it during the lifetime of the result.
unsafe fn live_cipher<'a>(ctx: *mut c_void) -> Option<&'a mut Cipher> {
    if ctx.is_null() {
        return None;
    }
    let cell = cell(ctx);
    // SAFETY: init always writes the state, and makes it LIVE only after it has written the cipher.
    unsafe {
        if (&raw const (*cell).state).read() != LIVE {
            return None;
        }
        (*cell).cipher.assume_init_mut().as_mut()
    }
}

/// `crypt_ctx_update`.
///
/// # Safety
/// `ctx` was passed to [`crypt_ctx_init`]; `src` points to `slen` readable bytes; `dst` has room for as many and,
/// unless padding is off, for one block more; `dlen` is null or writable. `src` and `dst` may overlap.
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
        // SAFETY: not null, and only written to, because it may be uninitialised.
        unsafe { dlen.write(0) };
        // SAFETY: the server passes a context of `crypt_ctx_init`, which belongs to the calling thread.
        let Some(cipher) = (unsafe { live_cipher(ctx) }) else {
            return AES_ERROR;
        };
        let source_bytes = slen as usize;
        let result_bytes = cipher.update_bytes(source_bytes);
        if (src.is_null() && source_bytes > 0) || (dst.is_null() && result_bytes > 0) {
            return AES_ERROR;
        }
        // SAFETY: neither is null unless its length is 0. The server passes `slen` readable bytes and room for
        // one block more, and update_bytes asks for no more than that.
        let buffers = unsafe { buffers(src, source_bytes, dst, result_bytes) };
        // SAFETY: init writes it before it makes a cipher live.
        let ctr_key_id = unsafe { (*cell(ctx)).ctr_key_id.assume_init() };
        if ctr_key_id != 0
            && let Some(manager) = plugin::manager()
        {
            manager.notice_ctr(ctr_key_id, source_bytes);
        }
        #[cfg(feature = "stream-log")]
        if source_bytes > 0 {
            // SAFETY: init writes the stream before it makes a cipher live, and `src` has `slen` bytes.
            unsafe {
                let source = core::slice::from_raw_parts(src, source_bytes);
                (*cell(ctx)).stream.assume_init_mut().add(source);
            }
        }
        match cipher.update(buffers) {
            Ok(()) => {
                // SAFETY: not null, and reserved for the length of the result.
                unsafe { dlen.write(result_bytes as c_uint) };
                AES_OK
            }
            Err(error) => code(error),
        }
    })
}

/// Forms slices of the caller's memory: two if source and result do not overlap, otherwise one that covers both.
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
            // SAFETY: two overlapping ranges form one range. It is all writable, because the server has put the
            // source into the buffer for the result, and nobody else has a reference to it.
            region: unsafe { core::slice::from_raw_parts_mut(region, end - start) },
            source: source..source + source_bytes,
            destination: destination..destination + result_bytes,
        }
    } else {
        Buffers::Separate {
            source: match source_bytes {
                0 => &[],
                // SAFETY: the caller passes so many readable bytes, which do not overlap the destination.
                length => unsafe { core::slice::from_raw_parts(src, length) },
            },
            destination: match result_bytes {
                0 => &mut [],
                // SAFETY: the caller passes so many writable bytes, which do not overlap the source. They may be
                // uninitialised, but are only written to, and any byte is a valid u8.
                length => unsafe { core::slice::from_raw_parts_mut(dst, length) },
            },
        }
    }
}

/// `crypt_ctx_finish`.
///
/// # Safety
/// `ctx` was passed to [`crypt_ctx_init`]; `dst` has room for the rest of the data's encrypted length; `dlen` is
/// null or writable.
pub unsafe extern "C" fn crypt_ctx_finish(
    ctx: *mut c_void,
    dst: *mut c_uchar,
    dlen: *mut c_uint,
) -> c_int {
    guard(AES_ERROR, || {
        if dlen.is_null() {
            return AES_ERROR;
        }
        // SAFETY: not null, and only written to, because it may be uninitialised.
        unsafe { dlen.write(0) };
        // SAFETY: the server passes a context of `crypt_ctx_init`, which belongs to the calling thread.
        let Some(cipher) = (unsafe { live_cipher(ctx) }) else {
            return AES_ERROR;
        };
        let finished = cipher.finish();
        #[cfg(feature = "stream-log")]
        // SAFETY: init writes the stream before it makes a cipher live.
        unsafe { (*cell(ctx)).stream.assume_init_ref() }.log();
        // SAFETY: the cipher is live, and `finished` does not borrow it.
        unsafe { wipe(ctx) };
        let last = match finished {
            Ok(last) => last,
            Err(error) => return code(error),
        };
        let bytes = last.as_bytes();
        if !bytes.is_empty() {
            if dst.is_null() {
                return AES_ERROR;
            }
            // SAFETY: not null, with room for the rest of the result; `bytes` lie on this function's stack.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), dst, bytes.len()) };
        }
        // SAFETY: not null, and reserved for the length of the result.
        unsafe { dlen.write(bytes.len() as c_uint) };
        AES_OK
    })
}

/// Drops the cipher and overwrites the cell with zeros, which also makes it not live.
///
/// # Safety
/// The context is live and not borrowed.
unsafe fn wipe(ctx: *mut c_void) {
    let cell = cell(ctx);
    // SAFETY: the cipher of a live cell is initialised. It is dropped once, because the cell is not live
    // afterwards. All zeros is a valid cell: the state is NOT_LIVE, and the rest may be uninitialised.
    unsafe {
        (*cell).cipher.assume_init_drop();
        cell.cast::<u8>().write_bytes(0, size_of::<ContextCell>());
        zeroize::optimization_barrier(&*cell.cast::<MaybeUninit<ContextCell>>());
    }
}

/// `encrypted_length`: the length with padding, because the call does not say whether there is padding.
pub extern "C" fn encrypted_length(slen: c_uint, key_id: c_uint, key_version: c_uint) -> c_uint {
    guard(0, || {
        // If the version cannot be loaded, encryption fails anyway.
        let algorithm = algorithm(key_id, key_version).unwrap_or(Algorithm::AesCbc);
        encrypted_bytes(algorithm, slen).unwrap_or(0)
    })
}

/// Tests that need no started plugin. They are small because Miri runs them.
#[cfg(test)]
mod tests {
    use super::*;

    /// The caller's memory, at any alignment and not a byte longer than required.
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
            // SAFETY: the memory is long enough and new.
            let code =
                unsafe { init_cipher(context.address(), algorithm, &[1; 16], &[2; 16], flags, 3) };
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
            // SAFETY: the context was initialised, and the caller passes valid buffers.
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
            // SAFETY: the context was initialised, and the caller passes enough room.
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

    /// Encrypts or decrypts `pieces`, each to where the previous result ended.
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
        // SAFETY: every piece lies in the data, and the result is as long as the test expects.
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
    fn pieces_give_the_same_result_as_the_whole_at_any_alignment() {
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
    fn source_and_destination_may_overlap() {
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
    fn a_finished_context_cannot_be_finished_again() {
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
