//! The peer: OpenSSL as the server's `my_crypt.cc` uses it, with a context that is reset before each use.

use core::ffi::c_int;
use core::ptr::null_mut;

use openssl_sys::{
    EVP_CIPHER, EVP_CIPHER_CTX, EVP_CIPHER_CTX_new, EVP_CIPHER_CTX_set_padding, EVP_CipherFinal,
    EVP_CipherInit_ex, EVP_CipherUpdate, EVP_aes_128_cbc, EVP_aes_128_ctr, EVP_aes_256_cbc,
    EVP_aes_256_ctr,
};

use crate::Algorithm;

unsafe extern "C" {
    fn EVP_CIPHER_CTX_reset(ctx: *mut EVP_CIPHER_CTX) -> c_int;
}

/// An OpenSSL context, which the server has on its stack.
pub struct OpenSsl(*mut EVP_CIPHER_CTX);

impl OpenSsl {
    /// Allocates the context.
    pub fn new() -> Self {
        // SAFETY: the function takes no arguments and returns memory or null.
        let context = unsafe { EVP_CIPHER_CTX_new() };
        assert!(!context.is_null());
        Self(context)
    }

    /// Does the same as [`crate::library::Library::crypt`].
    #[inline]
    pub fn crypt(
        &mut self,
        key: &[u8],
        iv: &[u8; 16],
        algorithm: Algorithm,
        encrypt: bool,
        (source, destination): (&[u8], &mut [u8]),
        lengths: &[usize],
    ) -> usize {
        assert!(lengths.iter().sum::<usize>() <= source.len().min(destination.len()));
        let (mut read, mut written): (usize, usize) = (0, 0);
        let mut length: c_int = 0;
        // SAFETY: the context is live and the key has the cipher's length. Without padding, no more bytes are written
        // than are read, and both buffers are long enough, as checked above.
        unsafe {
            let cipher = cipher(algorithm, key.len());
            let encrypt = c_int::from(encrypt);
            EVP_CIPHER_CTX_reset(self.0);
            let started = EVP_CipherInit_ex(
                self.0,
                cipher,
                null_mut(),
                key.as_ptr(),
                iv.as_ptr(),
                encrypt,
            );
            assert_eq!(started, 1);
            EVP_CIPHER_CTX_set_padding(self.0, 0);
            for &bytes in lengths {
                let updated = EVP_CipherUpdate(
                    self.0,
                    destination.as_mut_ptr().add(written),
                    &raw mut length,
                    source.as_ptr().add(read),
                    bytes as c_int,
                );
                assert_eq!(updated, 1);
                read += bytes;
                written += length as usize;
            }
            let end = destination.as_mut_ptr().add(written);
            // OpenSSL's CBC fails on a partial last block. The server encrypts it separately, which is left out
            // here, in OpenSSL's favour.
            EVP_CipherFinal(self.0, end, &raw mut length);
        }
        written + length as usize
    }
}

/// Returns the cipher for a key of 16 or 32 bytes.
fn cipher(algorithm: Algorithm, key_bytes: usize) -> *const EVP_CIPHER {
    // SAFETY: each returns the address of a static.
    unsafe {
        match (algorithm, key_bytes) {
            (Algorithm::Cbc, 16) => EVP_aes_128_cbc(),
            (Algorithm::Cbc, _) => EVP_aes_256_cbc(),
            (Algorithm::Ctr, 16) => EVP_aes_128_ctr(),
            (Algorithm::Ctr, _) => EVP_aes_256_ctr(),
        }
    }
}
