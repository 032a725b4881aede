//! AES_CTR without padding: CTR with a 128-bit big-endian counter that starts at the IV.

use aes::cipher::{InnerIvInit, StreamCipher, StreamCipherCoreWrapper};
use ctr::{CtrCore, flavors};

use super::aes_block::AesEncrypt;
use super::{Block, Buffers, CipherError};

/// A CTR encryption or decryption under way; both are the same.
pub struct Ctr(StreamCipherCoreWrapper<CtrCore<AesEncrypt, flavors::Ctr128BE>>);

impl Ctr {
    /// Starts with `key` of 16, 24 or 32 bytes.
    #[inline]
    pub fn new(key: &[u8], iv: &Block) -> Result<Self, CipherError> {
        let core = CtrCore::inner_iv_init(AesEncrypt::new(key)?, iv.into());
        Ok(Self(StreamCipherCoreWrapper::from_core(core)))
    }

    /// Processes a piece.
    #[inline]
    pub fn update(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        self.0
            .try_apply_keystream_inout(buffers.into_in_out()?)
            .map_err(|_| CipherError::Misuse)
    }
}
