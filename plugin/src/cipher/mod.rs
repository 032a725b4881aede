//! Encrypts the server's pages, logs and temporary files, byte for byte as the server's own `my_crypt` service does
//! with OpenSSL. CTR and GCM come from the crates `ctr` and `ghash`. This module adds CBC and what only the server has:
//! data that comes in pieces, a last partial block in CBC, and contexts in the caller's memory.
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
#[cfg(test)]
mod tests;

use key_files::key_name::Algorithm;

pub use buffers::Buffers;

use aes_block::{Aes, AesEncrypt};
use cbc::ExpandedKey;

/// Length of an AES block, an IV and a GCM tag in bytes.
pub const BLOCK_BYTES: usize = 16;

type Block = [u8; BLOCK_BYTES];

/// Why a cipher call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// A key that is not 16, 24 or 32 bytes long.
    #[error("the key has {0} bytes instead of 16, 24 or 32")]
    KeyLength(usize),
    /// An IV that is not 16 bytes long.
    #[error("the IV has {0} bytes instead of {BLOCK_BYTES}")]
    IvLength(usize),
    /// Ciphertext that is truncated, changed or encrypted with another key.
    #[error("the data cannot be decrypted with this key")]
    BadData,
    /// A call out of order, or buffers of the wrong length.
    #[error("invalid use of the cipher")]
    Misuse,
}

/// Whether a cipher encrypts or decrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From plaintext to ciphertext.
    Encrypt,
    /// From ciphertext to plaintext.
    Decrypt,
}

/// Whether the ciphertext is longer than the plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// It has padding or a tag.
    Padded,
    /// Both have the same length.
    Unpadded,
}

/// An encryption or decryption in progress. It owns no heap memory, so the server may forget it.
pub enum Cipher {
    /// AES_CBC.
    Cbc(cbc::Cbc),
    /// AES_CTR without padding.
    Ctr(ctr::Ctr),
    /// AES_CTR with padding.
    Gcm(gcm::Gcm),
}

/// What a cipher writes at the end: 0 to 16 bytes.
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
    /// Starts with `key` (16, 24 or 32 bytes) and `iv` (16 bytes), in the place where the cipher stays.
    #[inline(always)]
    pub fn init(
        place: &mut Option<Self>,
        algorithm: Algorithm,
        direction: Direction,
        padding: Padding,
        key: &[u8],
        iv: &[u8],
    ) -> Result<(), CipherError> {
        let iv: &Block = iv.try_into().map_err(|_| CipherError::IvLength(iv.len()))?;
        let cbc = |key| Some(Self::Cbc(cbc::Cbc::new(key, padding, iv)));
        match (algorithm, padding, direction) {
            (Algorithm::AesCbc, _, Direction::Encrypt) => {
                AesEncrypt::expand(key, |aes| *place = cbc(ExpandedKey::Encrypt(aes)))
            }
            (Algorithm::AesCbc, _, Direction::Decrypt) => {
                Aes::expand(key, |aes| *place = cbc(ExpandedKey::Decrypt(aes)))
            }
            (Algorithm::AesCtr, Padding::Unpadded, _) => {
                AesEncrypt::expand(key, |aes| *place = Some(Self::Ctr(ctr::Ctr::new(aes, iv))))
            }
            (Algorithm::AesCtr, Padding::Padded, _) => AesEncrypt::expand(key, |aes| {
                *place = Some(Self::Gcm(gcm::Gcm::new(aes, direction, iv)));
            }),
        }
    }

    /// Returns how many bytes [`Self::update`] writes for `source_bytes` bytes.
    #[inline]
    pub fn update_bytes(&self, source_bytes: usize) -> usize {
        match self {
            Self::Cbc(cbc) => cbc.update_bytes(source_bytes),
            Self::Ctr(_) => source_bytes,
            Self::Gcm(gcm) => gcm.update_bytes(source_bytes),
        }
    }

    /// Processes a piece of the data. The destination is [`Self::update_bytes`] long.
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

    /// Returns the last bytes: padding, partial block or tag.
    #[inline]
    pub fn finish(&mut self) -> Result<FinalBlock, CipherError> {
        match self {
            Self::Cbc(cbc) => cbc.finish(),
            Self::Ctr(_) => Ok(FinalBlock::EMPTY),
            Self::Gcm(gcm) => gcm.finish(),
        }
    }
}

/// Returns the length of `source_bytes` bytes once encrypted with padding; `None` beyond 32 bits.
pub fn encrypted_bytes(algorithm: Algorithm, source_bytes: u32) -> Option<u32> {
    let block = BLOCK_BYTES as u32;
    match algorithm {
        Algorithm::AesCbc => (source_bytes / block + 1).checked_mul(block),
        Algorithm::AesCtr => source_bytes.checked_add(block),
    }
}
