//! AES_CTR with padding: GCM. IV bytes 0–11 are the nonce, 12–15 the additional data; the 16-byte
//! tag follows the ciphertext.
//!
//! Source: NIST SP 800-38D, sections 6.4 (GHASH), 7.1 and 7.2.

use aes::cipher::Array;
use ghash::{GHash, universal_hash::UniversalHash};

use super::aes_block::AesEncrypt;
use super::keystream::{CounterWidth, Keystream};
use super::{BLOCK_BYTES, Block, Buffers, CipherError, FinalBlock, Task};

const NONCE_BYTES: usize = 12;

/// A GCM encryption or decryption under way.
pub struct Gcm {
    keystream: Keystream,
    hash: Hash,
    /// AES of the counter block that the keystream leaves out.
    tag_mask: Block,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Encrypting,
    /// The tag comes with the data, so all of it must come at once.
    AwaitingCiphertext,
    Verified,
    Failed,
}

impl Gcm {
    /// Starts with an expanded key.
    #[inline(always)]
    pub fn new(aes: AesEncrypt, task: Task, iv: &Block) -> Self {
        let (nonce, additional_data) = iv.split_at(NONCE_BYTES);
        let mut counter = [0; BLOCK_BYTES];
        counter
            .iter_mut()
            .zip(nonce)
            .for_each(|(to, from)| *to = *from);
        counter[BLOCK_BYTES - 1] = 1;
        let tag_mask = aes.block(&counter);
        let hash = Hash::new(&aes.block(&[0; BLOCK_BYTES]), additional_data);
        counter[BLOCK_BYTES - 1] = 2;
        Self {
            keystream: Keystream::new(aes, &counter, CounterWidth::Bits32),
            hash,
            tag_mask,
            stage: if task.encrypt {
                Stage::Encrypting
            } else {
                Stage::AwaitingCiphertext
            },
        }
    }

    /// Bytes written for `source_bytes`; decryption leaves the tag out.
    #[inline]
    pub fn update_bytes(&self, source_bytes: usize) -> usize {
        match self.stage {
            Stage::Encrypting => source_bytes,
            _ => source_bytes.saturating_sub(BLOCK_BYTES),
        }
    }

    /// Processes a piece; a decryption all of it. Nothing is written unless the tag fits.
    #[inline]
    pub fn update(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        match self.stage {
            Stage::Encrypting => self.encrypt(buffers),
            Stage::AwaitingCiphertext => self.decrypt(buffers),
            Stage::Verified | Stage::Failed => Err(CipherError::Misuse),
        }
    }

    /// Ends: returns the tag, or tells whether it did fit.
    #[inline]
    pub fn finish(&mut self) -> Result<FinalBlock, CipherError> {
        match self.stage {
            Stage::Encrypting => Ok(FinalBlock {
                bytes: self.tag(),
                length: BLOCK_BYTES,
            }),
            Stage::Verified => Ok(FinalBlock::EMPTY),
            Stage::AwaitingCiphertext | Stage::Failed => Err(CipherError::BadData),
        }
    }

    fn encrypt(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        let mut data = buffers.into_in_out()?;
        self.keystream.apply(data.reborrow());
        self.hash.absorb(data.get_out());
        Ok(())
    }

    fn decrypt(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        self.stage = Stage::Failed;
        let (ciphertext, tag) = buffers
            .source()?
            .split_last_chunk::<BLOCK_BYTES>()
            .ok_or(CipherError::BadData)?;
        self.hash.absorb(ciphertext);
        if !equal_in_constant_time(&self.tag(), tag) {
            return Err(CipherError::BadData);
        }
        self.keystream.apply(buffers.into_in_out()?);
        self.stage = Stage::Verified;
        Ok(())
    }

    fn tag(&mut self) -> Block {
        let mut tag = self.hash.digest();
        for (byte, mask) in tag.iter_mut().zip(&self.tag_mask) {
            *byte ^= mask;
        }
        tag
    }
}

fn equal_in_constant_time(left: &Block, right: &Block) -> bool {
    let difference = left.iter().zip(right).fold(0, |all, (l, r)| all | (l ^ r));
    core::hint::black_box(difference) == 0
}

/// GHASH of the additional data and a ciphertext that comes in pieces.
struct Hash {
    ghash: GHash,
    additional_bytes: u64,
    data_bytes: u64,
    partial: Block,
    partial_bytes: usize,
}

impl Hash {
    fn new(key: &Block, additional_data: &[u8]) -> Self {
        let mut ghash = GHash::new(key.into());
        ghash.update_padded(additional_data);
        Self {
            ghash,
            additional_bytes: additional_data.len() as u64,
            data_bytes: 0,
            partial: [0; BLOCK_BYTES],
            partial_bytes: 0,
        }
    }

    fn absorb(&mut self, data: &[u8]) {
        self.data_bytes += data.len() as u64;
        let (head, data) = match self.partial_bytes {
            0 => (&[][..], data),
            held => data.split_at(data.len().min(BLOCK_BYTES - held)),
        };
        self.fill_partial(head);
        if self.partial_bytes == BLOCK_BYTES {
            self.ghash.update(&[self.partial.into()]);
            self.partial_bytes = 0;
        }
        let (blocks, rest) = Array::slice_as_chunks(data);
        self.ghash.update(blocks);
        self.fill_partial(rest);
    }

    fn fill_partial(&mut self, data: &[u8]) {
        for (to, from) in self.partial.iter_mut().skip(self.partial_bytes).zip(data) {
            *to = *from;
        }
        self.partial_bytes += data.len();
    }

    fn digest(&mut self) -> Block {
        if let Some(rest) = self.partial.get(..self.partial_bytes) {
            self.ghash.update_padded(rest);
            self.partial_bytes = 0;
        }
        let mut lengths = [0; BLOCK_BYTES];
        let bits = u128::from(self.additional_bytes * 8) << 64 | u128::from(self.data_bytes * 8);
        lengths.copy_from_slice(&bits.to_be_bytes());
        self.ghash.update(&[lengths.into()]);
        self.ghash.clone().finalize().into()
    }
}
