//! AES_CBC: padded as OpenSSL does (PKCS#7), or with the server's own treatment of a last partial block.

use aes::cipher::{BlockCipherEncrypt, consts::U16, inout::InOutBuf};
use block_padding::{Padding as _, Pkcs7};

use super::aes_block::{Aes, AesBlock, AesEncrypt, encrypt_block};
use super::chaining::{decrypt, encrypt};
use super::{BLOCK_BYTES, Block, Buffers, CipherError, FinalBlock, Padding};

/// A CBC encryption or decryption in progress.
pub struct Cbc {
    key: ExpandedKey,
    /// The last ciphertext block; initially the IV.
    previous: AesBlock,
    padding: Padding,
    /// The end of the data so far that does not fill a block. A padded decryption also holds back a whole block,
    /// which may be the padding.
    held: Block,
    held_bytes: usize,
    iv: Block,
}

/// The expanded key, which also determines the direction.
#[expect(clippy::large_enum_variant, reason = "a context owns no heap memory")]
pub enum ExpandedKey {
    /// For encryption.
    Encrypt(AesEncrypt),
    /// For decryption, where a partial block is decrypted by encrypting the IV.
    Decrypt(Aes),
}

impl Cbc {
    /// Starts with an expanded key.
    #[inline(always)]
    pub fn new(key: ExpandedKey, padding: Padding, iv: &Block) -> Self {
        Self {
            key,
            previous: (*iv).into(),
            padding,
            held: [0; BLOCK_BYTES],
            held_bytes: 0,
            iv: *iv,
        }
    }

    /// Returns how many bytes, in whole blocks, can be written for `source_bytes` more bytes.
    #[inline]
    pub fn update_bytes(&self, source_bytes: usize) -> usize {
        let total = self.held_bytes + source_bytes;
        let kept = match (&self.key, self.padding) {
            (ExpandedKey::Decrypt(_), Padding::Padded) if total > 0 => {
                (total - 1) % BLOCK_BYTES + 1
            }
            _ => total % BLOCK_BYTES,
        };
        total - kept
    }

    /// Processes a piece of the data.
    #[inline]
    pub fn update(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        let result_bytes = buffers.destination_bytes();
        if result_bytes == 0 {
            return self.hold(buffers.source()?);
        }
        // Copied before anything is written: the destination may overlap the source.
        let used = result_bytes
            .checked_sub(self.held_bytes)
            .ok_or(CipherError::Misuse)?;
        let mut rest = [0; BLOCK_BYTES];
        let rest_source = buffers.source()?.get(used..).ok_or(CipherError::Misuse)?;
        let rest = rest
            .get_mut(..rest_source.len())
            .ok_or(CipherError::Misuse)?;
        rest.copy_from_slice(rest_source);

        if self.held_bytes == 0 {
            self.process(buffers.into_in_out()?);
        } else {
            let data = buffers.into_moved(self.held_data())?;
            self.process(data.into());
        }
        self.held_bytes = 0;
        self.hold(rest)
    }

    /// Returns the padding or the partial block, or checks the padding.
    #[inline]
    pub fn finish(&mut self) -> Result<FinalBlock, CipherError> {
        match (self.padding, &self.key) {
            (Padding::Padded, ExpandedKey::Encrypt(_)) => Ok(self.pad()),
            (Padding::Padded, ExpandedKey::Decrypt(_)) => self.unpad(),
            (Padding::Unpadded, _) if self.held_bytes == 0 => Ok(FinalBlock::EMPTY),
            (Padding::Unpadded, ExpandedKey::Encrypt(aes)) => Ok(self.partial_block(aes)),
            (Padding::Unpadded, ExpandedKey::Decrypt(aes)) => Ok(self.partial_block(aes)),
        }
    }

    /// Processes whole blocks.
    fn process(&mut self, data: InOutBuf<'_, '_, u8>) {
        let (blocks, _) = data.into_chunks();
        match &self.key {
            ExpandedKey::Encrypt(aes) => encrypt(aes, &mut self.previous, blocks),
            ExpandedKey::Decrypt(aes) => decrypt(aes, &mut self.previous, blocks),
        }
    }

    fn held_data(&self) -> &[u8] {
        self.held.get(..self.held_bytes).unwrap_or(&self.held)
    }

    fn hold(&mut self, data: &[u8]) -> Result<(), CipherError> {
        let end = self.held_bytes + data.len();
        self.held
            .get_mut(self.held_bytes..end)
            .ok_or(CipherError::Misuse)?
            .copy_from_slice(data);
        self.held_bytes = end;
        Ok(())
    }

    fn pad(&mut self) -> FinalBlock {
        let mut bytes = self.held;
        Pkcs7::raw_pad(&mut bytes, self.held_bytes);
        self.process(bytes.as_mut_slice().into());
        FinalBlock {
            bytes,
            length: BLOCK_BYTES,
        }
    }

    fn unpad(&mut self) -> Result<FinalBlock, CipherError> {
        if self.held_bytes != BLOCK_BYTES {
            return Err(CipherError::BadData);
        }
        let mut bytes = self.held;
        self.process(bytes.as_mut_slice().into());
        let length = Pkcs7::raw_unpad(&bytes)
            .map_err(|_| CipherError::BadData)?
            .len();
        Ok(FinalBlock { bytes, length })
    }

    /// XORs what is held with the encrypted IV, in both directions. No standard mode does this; the server
    /// has always done it.
    fn partial_block(&self, aes: &impl BlockCipherEncrypt<BlockSize = U16>) -> FinalBlock {
        let mut bytes = encrypt_block(aes, &self.iv);
        for (byte, data) in bytes.iter_mut().zip(self.held_data()) {
            *byte ^= data;
        }
        FinalBlock {
            bytes,
            length: self.held_bytes,
        }
    }
}
