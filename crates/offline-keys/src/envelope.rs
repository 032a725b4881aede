//! Encrypted key files, as `openssl enc -aes-256-cbc` writes them.
//!
//! They consist of `Salted__`, eight bytes of salt, and the text encrypted with AES-256-CBC and PKCS #7 padding.
//! Source: openssl-enc(1), MariaDB's manual on the File Key Management plugin.

use aes::Aes256;
use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{
    Array, BlockCipherDecrypt, BlockModeDecrypt, BlockModeEncrypt, KeyInit, KeyIvInit,
};
use zeroize::Zeroizing;

use crate::derivation::{Derivation, IV_BYTES, KEY_BYTES, SALT_BYTES, Salt};
use crate::password::Password;
use crate::text;

const MAGIC: &[u8] = b"Salted__";
const BLOCK_BYTES: usize = 16;

/// Why a file cannot be decrypted or encrypted, whatever the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// No encrypted file has this length.
    #[error(
        "is truncated or was changed: 'openssl enc -aes-256-cbc' never writes a file of {0} bytes"
    )]
    Length(
        /// Its length in bytes.
        usize,
    ),
    /// AES or CBC refused its input, which never happens.
    #[error("cannot be encrypted")]
    Cipher,
}

/// Returns whether the content of a file is encrypted.
pub fn is_encrypted(content: &[u8]) -> bool {
    content.starts_with(MAGIC)
}

/// The content of an encrypted file.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    salt: &'a Salt,
    blocks: &'a [[u8; BLOCK_BYTES]],
    last: &'a [u8; BLOCK_BYTES],
}

impl<'a> Envelope<'a> {
    /// Parses the content of an encrypted file.
    pub fn parse(content: &'a [u8]) -> Result<Self, EnvelopeError> {
        let wrong_length = EnvelopeError::Length(content.len());
        let (salt, ciphertext) = content
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.split_first_chunk::<SALT_BYTES>())
            .ok_or(wrong_length)?;
        let (blocks, partial) = ciphertext.as_chunks::<BLOCK_BYTES>();
        let (Some(last), []) = (blocks.last(), partial) else {
            return Err(wrong_length);
        };
        Ok(Self { salt, blocks, last })
    }

    /// Decrypts a list of keys. Returns `None` if password or derivation is wrong, the file is damaged, or it
    /// contains no key.
    ///
    /// A wrong password costs one derivation and, in 255 of 256 cases, the decryption of one block, whatever the
    /// length of the file. In the other cases, the end of the result looks like padding by chance, but no line
    /// of it looks like a key.
    pub fn open(&self, password: &Password, derivation: Derivation) -> Option<Zeroizing<Vec<u8>>> {
        let derived = derivation.derive(password, self.salt);
        let (key, iv) = derived.split_first_chunk::<KEY_BYTES>()?;
        let iv: &[u8; IV_BYTES] = iv.try_into().ok()?;
        if !self.may_be_padded(key, iv) {
            return None;
        }
        let mut text = Zeroizing::new(self.blocks.as_flattened().to_vec());
        let length = cbc::Decryptor::<Aes256>::new(key.into(), iv.into())
            .decrypt_padded::<Pkcs7>(&mut text)
            .ok()?
            .len();
        text.truncate(length);
        text::has_key(&text).then_some(text)
    }

    /// Returns whether the last byte of the last block may be padding.
    fn may_be_padded(&self, key: &[u8; KEY_BYTES], iv: &[u8; IV_BYTES]) -> bool {
        let before = self.blocks.iter().nth_back(1).unwrap_or(iv);
        let mut block = Array::from(*self.last);
        Aes256::new(key.into()).decrypt_block(&mut block);
        let padding = block
            .last()
            .zip(before.last())
            .map_or(0, |(decrypted, before)| decrypted ^ before);
        (1..=BLOCK_BYTES).contains(&padding.into())
    }
}

/// Encrypts `text` with a key derived from `password` and `salt`. The salt must be random and used only once.
pub fn seal(
    text: &str,
    password: &Password,
    salt: &Salt,
    derivation: Derivation,
) -> Result<Vec<u8>, EnvelopeError> {
    let derived = derivation.derive(password, salt);
    let (key, iv) = derived
        .split_first_chunk::<KEY_BYTES>()
        .ok_or(EnvelopeError::Cipher)?;
    let iv: &[u8; IV_BYTES] = iv.try_into().map_err(|_| EnvelopeError::Cipher)?;
    let mut buffer = Zeroizing::new(Vec::with_capacity(text.len() + BLOCK_BYTES));
    buffer.extend_from_slice(text.as_bytes());
    buffer.resize(text.len() + BLOCK_BYTES, 0);
    let ciphertext = cbc::Encryptor::<Aes256>::new(key.into(), iv.into())
        .encrypt_padded::<Pkcs7>(&mut buffer, text.len())
        .map_err(|_| EnvelopeError::Cipher)?;
    Ok([MAGIC, salt, ciphertext].concat())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::derivation::Digest;

    const TEXT: &[u8] = b"1;770A8A65DA156D24EE2A093277530142\n";

    fn password() -> Password {
        Password::new(Zeroizing::new(b"se cret".to_vec())).unwrap()
    }

    fn with(digest: Digest, pbkdf2_iterations: u32) -> Derivation {
        Derivation {
            digest,
            pbkdf2_iterations,
        }
    }

    fn openssl(arguments: &str, input: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut child = Command::new("openssl")
            .args(["enc", "-aes-256-cbc", "-pass", "pass:se cret"])
            .args(arguments.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments}");
        output.stdout
    }

    fn open(content: &[u8], derivation: Derivation) -> Option<Vec<u8>> {
        let envelope = Envelope::parse(content).unwrap();
        let text = envelope.open(&password(), derivation)?;
        Some(text.to_vec())
    }

    /// Returns each digest with and without PBKDF2.
    fn derivations() -> impl Iterator<Item = Derivation> {
        let counts = [0, 1, 2, 1000, 20_000];
        counts
            .into_iter()
            .flat_map(|count| Digest::ALL.map(|digest| with(digest, count)))
    }

    fn options_of(derivation: Derivation) -> String {
        let digest = derivation.digest;
        match derivation.pbkdf2_iterations {
            0 => format!("-md {digest}"),
            count => format!("-md {digest} -pbkdf2 -iter {count}"),
        }
    }

    #[test]
    fn a_file_of_openssl_opens_only_with_the_same_digest_and_iterations() {
        for derivation in derivations() {
            let options = options_of(derivation);
            let content = openssl(&options, &TEXT.repeat(100));
            assert!(is_encrypted(&content));
            let opened = open(&content, derivation);
            assert_eq!(opened, Some(TEXT.repeat(100)), "{options}");
            for other in derivations().filter(|other| *other != derivation) {
                assert_eq!(open(&content, other), None, "{options}, {other:?}");
            }
        }
    }

    #[test]
    fn openssl_opens_a_sealed_file() {
        for derivation in derivations() {
            for length in [0, 16, TEXT.len()] {
                let text = str::from_utf8(&TEXT[..length]).unwrap();
                let content = seal(text, &password(), &[3; SALT_BYTES], derivation).unwrap();
                let options = format!("-d {}", options_of(derivation));
                assert_eq!(openssl(&options, &content), text.as_bytes(), "{options}");
            }
        }
    }

    #[test]
    fn comments_in_other_encodings_and_invalid_lines_do_not_matter() {
        let latin_1 = [b"# cl\xe9 de la base\0\x01\n", TEXT].concat();
        let wrong_line = [TEXT, b"garbage\n"].concat();
        for text in [latin_1, wrong_line] {
            let content = openssl("-md sha1", &text);
            assert_eq!(open(&content, with(Digest::Sha1, 0)), Some(text));
        }
    }

    #[test]
    fn noise_that_ends_like_padding_is_not_taken_for_a_list_of_keys() {
        // About one in 256 of these ends like padding.
        let content = openssl("-md sha1", &TEXT.repeat(3));
        for number in 0..2000 {
            let wrong = Password::new(Zeroizing::new(format!("{number}").into_bytes())).unwrap();
            let envelope = Envelope::parse(&content).unwrap();
            assert!(envelope.open(&wrong, with(Digest::Sha1, 0)).is_none());
        }
    }

    #[test]
    fn a_truncated_file_is_distinguished_from_a_wrong_password() {
        let content = openssl("-md sha1", TEXT);
        for length in [8, 15, 16, 17, content.len() - 1] {
            let cut_off = Envelope::parse(&content[..length]);
            assert_eq!(cut_off.unwrap_err(), EnvelopeError::Length(length));
        }
    }
}
