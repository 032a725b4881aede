//! AES_CTR without padding: CTR with a 128-bit big-endian counter that starts at the IV.

use aes::cipher::{InnerIvInit, StreamCipher, StreamCipherCoreWrapper};
use ctr::{Ctr64BE, Ctr128BE, CtrCore};

use super::aes_block::AesEncrypt;
use super::{Block, Buffers, CipherError};

/// More blocks than any context processes: 2^60 bytes are months of work for one processor core.
const MAX_STREAM_BLOCKS: u64 = 1 << 56;

/// A CTR encryption or decryption in progress. Both are the same operation.
pub enum Ctr {
    /// For an IV whose low half cannot overflow within [`MAX_STREAM_BLOCKS`]. Counting only in that half gives the
    /// same keystream as counting in both, and is faster.
    Low64(Ctr64BE<AesEncrypt>),
    /// For any other IV: the low half may carry into the high half.
    Full128(Ctr128BE<AesEncrypt>),
}

impl Ctr {
    /// Starts with an expanded key.
    #[inline(always)]
    pub fn new(aes: AesEncrypt, iv: &Block) -> Self {
        let low_half = u128::from_be_bytes(*iv) as u64;
        match low_half.checked_add(MAX_STREAM_BLOCKS) {
            Some(_) => Self::Low64(StreamCipherCoreWrapper::from_core(CtrCore::inner_iv_init(
                aes,
                iv.into(),
            ))),
            None => Self::Full128(StreamCipherCoreWrapper::from_core(CtrCore::inner_iv_init(
                aes,
                iv.into(),
            ))),
        }
    }

    /// Processes a piece.
    #[inline]
    pub fn update(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        let data = buffers.into_in_out()?;
        match self {
            Self::Low64(ctr) => ctr.try_apply_keystream_inout(data),
            Self::Full128(ctr) => ctr.try_apply_keystream_inout(data),
        }
        .map_err(|_| CipherError::Misuse)
    }
}
