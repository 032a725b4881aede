//! AES_CTR without padding: CTR with a 128-bit big-endian counter that starts at the IV.

use super::aes_block::AesEncrypt;
use super::keystream::{CounterWidth, Keystream};
use super::{Block, Buffers, CipherError};

/// A CTR encryption or decryption under way; both are the same.
pub struct Ctr(Keystream);

impl Ctr {
    /// Starts with an expanded key.
    #[inline(always)]
    pub fn new(aes: AesEncrypt, iv: &Block) -> Self {
        Self(Keystream::new(aes, iv, CounterWidth::Bits128))
    }

    /// Processes a piece.
    #[inline]
    pub fn update(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        self.0.apply(buffers.into_in_out()?);
        Ok(())
    }
}
