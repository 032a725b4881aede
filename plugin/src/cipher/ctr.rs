//! AES_CTR without padding: CTR with a 128-bit big-endian counter that starts at the IV.

use aes::cipher::{InnerIvInit, StreamCipher, StreamCipherCoreWrapper};
use ctr::{Ctr64BE, Ctr128BE, CtrCore};

use super::aes_block::AesEncrypt;
use super::chaining::xor;
use super::{Block, Buffers, CipherError};

/// More blocks than any context processes: 2^60 bytes are months of work for one processor core.
const MAX_STREAM_BLOCKS: u64 = 1 << 56;

/// A CTR encryption or decryption in progress. Both are the same operation.
pub enum Ctr {
    /// For an IV whose low half cannot overflow within [`MAX_STREAM_BLOCKS`]. Counting only in that half gives the
    /// same keystream as counting in both, and is 1.5 times as fast.
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
        match self {
            Self::Low64(ctr) => apply_keystream(ctr, buffers),
            Self::Full128(ctr) => apply_keystream(ctr, buffers),
        }
        .map(|_| ())
    }
}

/// XORs the source with the next piece of `stream`, and returns the destination.
#[inline]
pub fn apply_keystream<'a>(
    stream: &mut impl StreamCipher,
    buffers: Buffers<'a>,
) -> Result<&'a [u8], CipherError> {
    let misuse = |_| CipherError::Misuse;
    match buffers {
        // Two passes over a page take two thirds of the time of `try_apply_keystream_b2b`.
        Buffers::Separate {
            source,
            destination,
        } => {
            let source = source.get(..destination.len()).ok_or(CipherError::Misuse)?;
            stream.try_write_keystream(destination).map_err(misuse)?;
            xor(destination, source);
            Ok(destination)
        }
        Buffers::Overlapping { .. } => {
            let data = buffers.into_moved(&[])?;
            stream.try_apply_keystream(data).map_err(misuse)?;
            Ok(data)
        }
    }
}
