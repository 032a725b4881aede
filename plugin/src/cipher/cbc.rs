//! AES_CBC: padded as OpenSSL does (PKCS#7), or with the server's own treatment of a last partial
//! block.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, inout::InOutBuf};

use super::aes_block::{AesBlock, AesDecrypt, AesEncrypt};
use super::chaining::{DecryptChain, EncryptChain};
use super::{BLOCK_BYTES, Block, Buffers, CipherError, FinalBlock};

const MAX_KEY_BYTES: usize = 32;

/// A CBC encryption or decryption under way.
pub struct Cbc {
    mode: Mode,
    /// The last ciphertext block, at first the IV.
    previous: AesBlock,
    padding: bool,
    /// The end of the data so far that makes no whole block. The padded decryption keeps a whole
    /// block back too: it may be the padding.
    held: Block,
    held_bytes: usize,
    iv: Block,
    key: RawKey,
}

/// A key that is not expanded, or not for what it is needed for.
#[derive(Clone, Copy)]
pub struct RawKey {
    bytes: [u8; MAX_KEY_BYTES],
    length: usize,
}

impl RawKey {
    /// Copies `key`, of 32 bytes at most.
    #[inline(always)]
    pub fn new(key: &[u8]) -> Self {
        let mut bytes = [0; MAX_KEY_BYTES];
        for (to, from) in bytes.iter_mut().zip(key) {
            *to = *from;
        }
        let length = key.len();
        Self { bytes, length }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

/// What is done, with the expanded key for it.
pub enum Mode {
    /// Encryption.
    Encrypt(AesEncrypt),
    /// Decryption.
    Decrypt(AesDecrypt),
}

impl Cbc {
    /// Starts with the same `key` that is expanded in `mode`.
    #[inline(always)]
    pub fn new(mode: Mode, padding: bool, key: RawKey, iv: &Block) -> Self {
        Self {
            mode,
            previous: (*iv).into(),
            padding,
            held: [0; BLOCK_BYTES],
            held_bytes: 0,
            iv: *iv,
            key,
        }
    }

    /// Whole blocks that can be written when `source_bytes` more bytes are there.
    #[inline]
    pub fn update_bytes(&self, source_bytes: usize) -> usize {
        let total = self.held_bytes + source_bytes;
        let kept = match self.mode {
            Mode::Decrypt(_) if self.padding && total > 0 => (total - 1) % BLOCK_BYTES + 1,
            _ => total % BLOCK_BYTES,
        };
        total - kept
    }

    /// Processes a piece.
    #[inline]
    pub fn update(&mut self, buffers: Buffers<'_>) -> Result<(), CipherError> {
        let result_bytes = buffers.destination_bytes();
        if result_bytes == 0 {
            return self.hold(buffers.source()?);
        }
        // Taken before anything is written: the destination may lie over the source.
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
            let source = buffers.separate_source();
            self.process(buffers.into_in_out()?, source)?;
        } else {
            let data = buffers.into_moved(self.held_data())?;
            self.process(data.into(), None)?;
        }
        self.held_bytes = 0;
        self.hold(rest)
    }

    /// Ends: writes the padding or the partial block, or checks the padding.
    #[inline]
    pub fn finish(&mut self) -> Result<FinalBlock, CipherError> {
        match (self.padding, &self.mode) {
            (true, Mode::Encrypt(_)) => self.pad(),
            (true, Mode::Decrypt(_)) => self.unpad(),
            (false, _) => self.partial_block(),
        }
    }

    /// Processes whole blocks. `source` is what the data begin with, where they are not processed in
    /// place.
    fn process(
        &mut self,
        data: InOutBuf<'_, '_, u8>,
        source: Option<&[u8]>,
    ) -> Result<(), CipherError> {
        let (blocks, rest) = data.into_chunks();
        if !rest.is_empty() {
            return Err(CipherError::Misuse);
        }
        let previous = &mut self.previous;
        match &self.mode {
            Mode::Encrypt(aes) => aes.encrypt_with_backend(EncryptChain { previous, blocks }),
            Mode::Decrypt(aes) => aes.decrypt_with_backend(DecryptChain {
                previous,
                blocks,
                ciphertext: source.map(|source| Array::slice_as_chunks(source).0),
            }),
        }
        Ok(())
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

    fn pad(&mut self) -> Result<FinalBlock, CipherError> {
        let padding = BLOCK_BYTES - self.held_bytes;
        let mut bytes = self.held;
        for byte in bytes.iter_mut().skip(self.held_bytes) {
            *byte = padding as u8;
        }
        self.process(bytes.as_mut_slice().into(), None)?;
        Ok(FinalBlock {
            bytes,
            length: BLOCK_BYTES,
        })
    }

    fn unpad(&mut self) -> Result<FinalBlock, CipherError> {
        if self.held_bytes != BLOCK_BYTES {
            return Err(CipherError::BadData);
        }
        let mut bytes = self.held;
        self.process(bytes.as_mut_slice().into(), None)?;
        let padding = usize::from(bytes[BLOCK_BYTES - 1]);
        let length = BLOCK_BYTES
            .checked_sub(padding)
            .filter(|_| padding > 0)
            .ok_or(CipherError::BadData)?;
        if bytes
            .iter()
            .skip(length)
            .any(|&byte| usize::from(byte) != padding)
        {
            return Err(CipherError::BadData);
        }
        Ok(FinalBlock { bytes, length })
    }

    /// XORs what is left with AES(IV), in both directions: not a mode of its own, but what the
    /// server has always written.
    fn partial_block(&self) -> Result<FinalBlock, CipherError> {
        if self.held_bytes == 0 {
            return Ok(FinalBlock::EMPTY);
        }
        let mut bytes = self.iv;
        AesEncrypt::expand(self.key.as_bytes(), |aes| bytes = aes.block(&self.iv))?;
        for (byte, data) in bytes.iter_mut().zip(self.held_data()) {
            *byte ^= data;
        }
        Ok(FinalBlock {
            bytes,
            length: self.held_bytes,
        })
    }
}
