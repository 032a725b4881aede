//! The encryption of the server's pages, logs and temporary files, byte for byte as the server's
//! own `my_crypt` service does it with OpenSSL.
//!
//! | algorithm | with padding | without padding |
//! |---|---|---|
//! | AES_CBC | CBC, PKCS#7 | CBC; the last partial block XORed with AES(IV) |
//! | AES_CTR | GCM, tag appended | CTR |

#![forbid(unsafe_code)]

mod aes_block;
mod buffers;
mod cbc;
mod chaining;
mod ctr;
mod gcm;
mod keystream;
#[cfg(test)]
mod tests;

use key_store::key_name::Algorithm;

pub use buffers::Buffers;

use aes_block::{AesDecrypt, AesEncrypt};

/// Length of an AES block, an IV and a GCM tag in bytes.
pub const BLOCK_BYTES: usize = 16;

type Block = [u8; BLOCK_BYTES];

/// Why a cipher call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// A key that is not 16, 24 or 32 bytes long.
    #[error("a key of {0} bytes: AES takes 16, 24 or 32")]
    KeyLength(usize),
    /// An IV that is not 16 bytes long.
    #[error("an IV of {0} bytes instead of {BLOCK_BYTES}")]
    IvLength(usize),
    /// Ciphertext that is truncated, changed or of another key.
    #[error("the data cannot be decrypted with this key")]
    BadData,
    /// A call out of order, or buffers whose lengths do not fit.
    #[error("the cipher was used out of order")]
    Misuse,
}

/// What the caller wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Encrypt, or decrypt.
    pub encrypt: bool,
    /// May the result be longer than the data?
    pub padding: bool,
}

/// An encryption or decryption under way. Holds no heap memory, so that it may be forgotten.
pub enum Cipher {
    /// AES_CBC.
    Cbc(cbc::Cbc),
    /// AES_CTR without padding.
    Ctr(ctr::Ctr),
    /// AES_CTR with padding.
    Gcm(gcm::Gcm),
}

/// What is written at the end: 0 to 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinalBlock {
    bytes: Block,
    length: usize,
}

impl FinalBlock {
    const EMPTY: Self = Self {
        bytes: [0; BLOCK_BYTES],
        length: 0,
    };

    /// The bytes to write.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

impl Cipher {
    /// Starts `task` with `key` (16, 24 or 32 bytes) and `iv` (16 bytes), in the place where it
    /// stays.
    #[inline(always)]
    pub fn start(
        place: &mut Option<Self>,
        algorithm: Algorithm,
        task: Task,
        key: &[u8],
        iv: &[u8],
    ) -> Result<(), CipherError> {
        let iv: &Block = iv.try_into().map_err(|_| CipherError::IvLength(iv.len()))?;
        // Called before the key is expanded, so that the expanded key goes straight to its place.
        let cbc = || {
            let key = cbc::RawKey::new(key);
            move |mode| Some(Self::Cbc(cbc::Cbc::new(mode, task.padding, key, iv)))
        };
        match (algorithm, task.padding, task.encrypt) {
            (Algorithm::AesCbc, _, true) => {
                let cbc = cbc();
                AesEncrypt::expand(key, |aes| *place = cbc(cbc::Mode::Encrypt(aes)))
            }
            (Algorithm::AesCbc, _, false) => {
                let cbc = cbc();
                AesDecrypt::expand(key, |aes| *place = cbc(cbc::Mode::Decrypt(aes)))
            }
            (Algorithm::AesCtr, false, _) => {
                AesEncrypt::expand(key, |aes| *place = Some(Self::Ctr(ctr::Ctr::new(aes, iv))))
            }
            (Algorithm::AesCtr, true, _) => AesEncrypt::expand(key, |aes| {
                *place = Some(Self::Gcm(gcm::Gcm::new(aes, task, iv)));
            }),
        }
    }

    /// Bytes that [`Self::update`] writes when it is given `source_bytes`.
    #[inline]
    pub fn update_bytes(&self, source_bytes: usize) -> usize {
        match self {
            Self::Cbc(cbc) => cbc.update_bytes(source_bytes),
            Self::Ctr(_) => source_bytes,
            Self::Gcm(gcm) => gcm.update_bytes(source_bytes),
        }
    }

    /// Processes a piece; the destination is [`Self::update_bytes`] long.
    #[inline]
    pub fn update(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        if buffers.destination_bytes() != self.update_bytes(buffers.source_bytes()) {
            return Err(CipherError::Misuse);
        }
        match self {
            Self::Cbc(cbc) => cbc.update(buffers),
            Self::Ctr(ctr) => ctr.update(buffers),
            Self::Gcm(gcm) => gcm.update(buffers),
        }
    }

    /// Ends the work and returns the last bytes: padding, partial block or tag.
    #[inline]
    pub fn finish(&mut self) -> Result<FinalBlock, CipherError> {
        match self {
            Self::Cbc(cbc) => cbc.finish(),
            Self::Ctr(_) => Ok(FinalBlock::EMPTY),
            Self::Gcm(gcm) => gcm.finish(),
        }
    }
}

/// Length of the padded ciphertext of `source_bytes` bytes, or `None` beyond 32 bits.
pub fn encrypted_bytes(algorithm: Algorithm, source_bytes: u32) -> Option<u32> {
    let block = BLOCK_BYTES as u32;
    match algorithm {
        Algorithm::AesCbc => (source_bytes / block + 1).checked_mul(block),
        Algorithm::AesCtr => source_bytes.checked_add(block),
    }
}
