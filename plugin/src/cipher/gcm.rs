//! AES_CTR with padding: GCM. IV bytes 0–11 are the nonce, 12–15 the additional data; the 16-byte tag
//! follows the ciphertext.
//!
//! `aes-gcm` takes a whole message at once, and the server encrypts one in several updates. So this puts
//! `ctr` and `ghash` together. Source: NIST SP 800-38D, sections 7.1 and 7.2.

use aes::cipher::{Array, InnerIvInit, StreamCipher, StreamCipherCoreWrapper, consts::U16};
use block_buffer::EagerBuffer;
use ctr::{Ctr32BE, CtrCore};
use ghash::{GHash, universal_hash::UniversalHash};

use super::aes_block::{AesEncrypt, encrypt_block};
use super::{BLOCK_BYTES, Block, Buffers, CipherError, Direction, FinalBlock};

const NONCE_BYTES: usize = 12;

/// A GCM encryption or decryption in progress.
pub struct Gcm {
    keystream: Ctr32BE<AesEncrypt>,
    hash: Hash,
    /// The encrypted first counter block, which the keystream leaves out.
    tag_mask: Block,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Encrypting,
    /// The tag comes at the end of the data, all of which must come in one update.
    AwaitingCiphertext,
    Verified,
    Failed,
}

impl Gcm {
    /// Starts with an expanded key.
    #[inline(always)]
    pub fn new(aes: AesEncrypt, direction: Direction, iv: &Block) -> Self {
        let (nonce, additional_data) = iv.split_at(NONCE_BYTES);
        let mut counter = [0; BLOCK_BYTES];
        for (to, from) in counter.iter_mut().zip(nonce) {
            *to = *from;
        }
        counter[BLOCK_BYTES - 1] = 1;
        let tag_mask = encrypt_block(&aes, &counter);
        let hash = Hash::new(&encrypt_block(&aes, &[0; BLOCK_BYTES]), additional_data);
        counter[BLOCK_BYTES - 1] = 2;
        let keystream = CtrCore::inner_iv_init(aes, &counter.into());
        Self {
            keystream: StreamCipherCoreWrapper::from_core(keystream),
            hash,
            tag_mask,
            stage: match direction {
                Direction::Encrypt => Stage::Encrypting,
                Direction::Decrypt => Stage::AwaitingCiphertext,
            },
        }
    }

    /// Returns how many bytes are written for `source_bytes` bytes. A decryption does not write the tag.
    #[inline]
    pub fn update_bytes(&self, source_bytes: usize) -> usize {
        match self.stage {
            Stage::Encrypting => source_bytes,
            _ => source_bytes.saturating_sub(BLOCK_BYTES),
        }
    }

    /// Processes a piece of the data; a decryption, all of it. A decryption writes nothing unless the tag matches.
    #[inline]
    pub fn update(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        match self.stage {
            Stage::Encrypting => self.encrypt(buffers),
            Stage::AwaitingCiphertext => self.decrypt(buffers),
            Stage::Verified | Stage::Failed => Err(CipherError::Misuse),
        }
    }

    /// Returns the tag of an encryption, or whether that of a decryption matched.
    #[inline]
    pub fn finish(&mut self) -> Result<FinalBlock, CipherError> {
        match self.stage {
            Stage::Encrypting => Ok(FinalBlock {
                bytes: xor(
                    &self.hash.clone().digest().finalize().into(),
                    &self.tag_mask,
                ),
                length: BLOCK_BYTES,
            }),
            Stage::Verified => Ok(FinalBlock::EMPTY),
            Stage::AwaitingCiphertext | Stage::Failed => Err(CipherError::BadData),
        }
    }

    fn encrypt(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        let mut data = buffers.into_in_out()?;
        self.keystream
            .try_apply_keystream_inout(data.reborrow())
            .map_err(|_| CipherError::Misuse)?;
        self.hash.update(data.get_out());
        Ok(())
    }

    fn decrypt(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        self.stage = Stage::Failed;
        let (ciphertext, tag) = buffers
            .source()?
            .split_last_chunk::<BLOCK_BYTES>()
            .ok_or(CipherError::BadData)?;
        self.hash.update(ciphertext);
        // Compares in constant time.
        self.hash
            .clone()
            .digest()
            .verify(&xor(tag, &self.tag_mask).into())
            .map_err(|_| CipherError::BadData)?;
        self.keystream
            .try_apply_keystream_inout(buffers.into_in_out()?)
            .map_err(|_| CipherError::Misuse)?;
        self.stage = Stage::Verified;
        Ok(())
    }
}

fn xor(left: &Block, right: &Block) -> Block {
    (u128::from_ne_bytes(*left) ^ u128::from_ne_bytes(*right)).to_ne_bytes()
}

/// GHASH of the additional data and of a ciphertext that comes in pieces.
#[derive(Clone)]
struct Hash {
    ghash: GHash,
    additional_bytes: u64,
    data_bytes: u64,
    /// The end of the ciphertext that does not fill a block yet.
    buffer: EagerBuffer<U16>,
}

impl Hash {
    fn new(key: &Block, additional_data: &[u8]) -> Self {
        let mut ghash = GHash::new(key.into());
        ghash.update_padded(additional_data);
        Self {
            ghash,
            additional_bytes: additional_data.len() as u64,
            data_bytes: 0,
            buffer: EagerBuffer::default(),
        }
    }

    fn update(&mut self, data: &[u8]) {
        self.data_bytes += data.len() as u64;
        self.buffer
            .digest_blocks(data, |blocks| self.ghash.update(blocks));
    }

    /// Adds the end of the message. The result only needs to be finalized or verified.
    fn digest(mut self) -> GHash {
        self.ghash.update_padded(self.buffer.get_data());
        let bits = u128::from(self.additional_bytes * 8) << 64 | u128::from(self.data_bytes * 8);
        self.ghash.update(&[Array(bits.to_be_bytes())]);
        self.ghash
    }
}
