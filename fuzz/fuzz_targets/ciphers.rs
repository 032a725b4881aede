//! Compares encryption and decryption, in pieces, in place and between separate buffers, with OpenSSL used as the
//! server uses it.

#![no_main]

mod plugin;

use std::ffi::{c_int, c_uint};

use arbitrary::Arbitrary;
use aws_key_management::abi::{AES_BAD_DATA, FLAG_ENCRYPT, FLAG_NOPAD};
use libfuzzer_sys::fuzz_target;
use openssl::symm::{self, Cipher, Crypter, Mode};
use plugin::{BLOCK_BYTES, CBC, CTR, Context};

#[derive(Debug, Arbitrary)]
struct Case {
    ctr: bool,
    padding: bool,
    key_length: KeyLength,
    key: [u8; 32],
    iv: [u8; BLOCK_BYTES],
    data: Vec<u8>,
    /// Lengths of the updates. The last one takes the rest.
    pieces: Vec<u16>,
    layout: Layout,
    misalignment: u8,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum KeyLength {
    Bytes16,
    Bytes24,
    Bytes32,
}

/// How source and destination lie in memory.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Layout {
    /// In separate memory.
    Separate,
    /// The source starts this many bytes after the destination, in the same memory.
    SourceAfter(u8),
    /// The destination starts this many bytes after the source. There is only one update.
    DestinationAfter(u8),
}

impl Case {
    fn version(&self) -> c_uint {
        if self.ctr { CTR } else { CBC }
    }

    fn key(&self) -> &[u8] {
        match self.key_length {
            KeyLength::Bytes16 => &self.key[..16],
            KeyLength::Bytes24 => &self.key[..24],
            KeyLength::Bytes32 => &self.key,
        }
    }

    fn pieces(&self, bytes: usize, encrypt: bool) -> Vec<usize> {
        let whole = matches!(self.layout, Layout::DestinationAfter(_))
            || (self.ctr && self.padding && !encrypt);
        let mut left = bytes;
        let mut pieces = Vec::new();
        for &piece in self.pieces.iter().filter(|_| !whole) {
            let piece = usize::from(piece).min(left);
            pieces.push(piece);
            left -= piece;
        }
        pieces.push(left);
        pieces
    }

    /// Returns the plugin's result for `data`. OpenSSL's result has `result_bytes` bytes.
    fn plugin(&self, encrypt: bool, data: &[u8], result_bytes: usize) -> Result<Vec<u8>, c_int> {
        let (from, to, region_bytes) = match self.layout {
            Layout::Separate => (result_bytes, 0, result_bytes + data.len()),
            Layout::SourceAfter(distance) => {
                let from = usize::from(distance);
                (from, 0, result_bytes.max(from + data.len()))
            }
            Layout::DestinationAfter(distance) => {
                let to = usize::from(distance);
                (0, to, data.len().max(to + result_bytes))
            }
        };
        let mut region = vec![0xee; region_bytes].into_boxed_slice();
        region[from..from + data.len()].copy_from_slice(data);
        // Separate memory, so that reading even one byte before it is detected.
        let source = match self.layout {
            Layout::Separate => Some(Box::<[u8]>::from(data)),
            _ => None,
        };
        let start = region.as_mut_ptr();
        let source = source
            .as_ref()
            .map_or(start.wrapping_add(from).cast_const(), |own| own.as_ptr());
        let destination = start.wrapping_add(to);

        let mut flags = if self.padding { 0 } else { FLAG_NOPAD };
        if encrypt {
            flags |= FLAG_ENCRYPT;
        }
        let mut context = Context::new(self.version(), self.misalignment.into());
        assert_eq!(context.init(self.key(), &self.iv, flags, self.version()), 0);
        let (mut read, mut written) = (0, 0);
        for piece in self.pieces(data.len(), encrypt) {
            // SAFETY: the piece lies inside the source, and its result inside the region.
            written += unsafe {
                context.update(
                    source.wrapping_add(read),
                    piece,
                    destination.wrapping_add(written),
                )
            }?;
            read += piece;
        }
        // SAFETY: the region has room for all that OpenSSL writes.
        written += unsafe { context.finish(destination.wrapping_add(written)) }?;
        Ok(region[to..to + written].to_vec())
    }

    fn cipher(&self) -> Cipher {
        match (self.ctr, self.padding, self.key().len()) {
            (true, true, 16) => Cipher::aes_128_gcm(),
            (true, true, 24) => Cipher::aes_192_gcm(),
            (true, true, _) => Cipher::aes_256_gcm(),
            (true, false, 16) => Cipher::aes_128_ctr(),
            (true, false, 24) => Cipher::aes_192_ctr(),
            (true, false, _) => Cipher::aes_256_ctr(),
            (false, _, 16) => Cipher::aes_128_cbc(),
            (false, _, 24) => Cipher::aes_192_cbc(),
            (false, _, _) => Cipher::aes_256_cbc(),
        }
    }

    /// Returns OpenSSL's result; `None` if the data cannot be decrypted.
    fn openssl(&self, encrypt: bool, data: &[u8]) -> Option<Vec<u8>> {
        let (cipher, key) = (self.cipher(), self.key());
        let (nonce, authenticated) = self.iv.split_at(12);
        match (self.ctr, self.padding, encrypt) {
            (true, true, true) => {
                let mut tag = [0; BLOCK_BYTES];
                let mut result =
                    symm::encrypt_aead(cipher, key, Some(nonce), authenticated, data, &mut tag)
                        .unwrap();
                result.extend(tag);
                Some(result)
            }
            (true, true, false) => {
                let (data, tag) = data.split_last_chunk::<BLOCK_BYTES>()?;
                symm::decrypt_aead(cipher, key, Some(nonce), authenticated, data, tag).ok()
            }
            (true, false, _) => Some(symm::encrypt(cipher, key, Some(&self.iv), data).unwrap()),
            (false, true, true) => Some(symm::encrypt(cipher, key, Some(&self.iv), data).unwrap()),
            (false, true, false) => symm::decrypt(cipher, key, Some(&self.iv), data).ok(),
            (false, false, _) => Some(self.cbc_without_padding(encrypt, data)),
        }
    }

    /// Encrypts or decrypts whole blocks, and XORs the rest with the encrypted IV.
    fn cbc_without_padding(&self, encrypt: bool, data: &[u8]) -> Vec<u8> {
        let (blocks, rest) = data.split_at(data.len() / BLOCK_BYTES * BLOCK_BYTES);
        let mode = if encrypt {
            Mode::Encrypt
        } else {
            Mode::Decrypt
        };
        let mut result = vec![0; blocks.len() + BLOCK_BYTES];
        let mut crypter = Crypter::new(self.cipher(), mode, self.key(), Some(&self.iv)).unwrap();
        crypter.pad(false);
        let length = crypter.update(blocks, &mut result).unwrap();
        result.truncate(length);
        // CBC of one block with an all-zero IV is ECB.
        let zeros = [0; BLOCK_BYTES];
        let mask = symm::encrypt(self.cipher(), self.key(), Some(&zeros), &self.iv).unwrap();
        result.extend(rest.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
        result
    }
}

fuzz_target!(|case: Case| {
    let encrypted = case.openssl(true, &case.data).unwrap();
    let result = case.plugin(true, &case.data, encrypted.len());
    assert_eq!(result.as_deref(), Ok(&encrypted[..]));
    let result = case.plugin(false, &encrypted, case.data.len());
    assert_eq!(result.as_deref(), Ok(&case.data[..]));
    // For arbitrary data, the plugin must agree with OpenSSL whether it can be decrypted.
    let expected = case.openssl(false, &case.data).ok_or(AES_BAD_DATA);
    assert_eq!(case.plugin(false, &case.data, case.data.len()), expected);
});
