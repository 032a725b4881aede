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

    /// What `openssl enc -aes-256-cbc -pass 'pass:se cret'` of OpenSSL 3.0 has made of [`TEXT`] with these
    /// further options, and of a list with a comment in another encoding.
    const OF_OPENSSL: &str = include_str!("envelope/openssl.txt");

    fn of_openssl(label: &str) -> Vec<u8> {
        let hex = OF_OPENSSL
            .lines()
            .find_map(|line| line.strip_prefix(label)?.strip_prefix(": "))
            .unwrap();
        let digits = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
        digits
            .map(|digits| u8::from_str_radix(digits, 16).unwrap())
            .collect()
    }

    fn sealed(text: &str, derivation: Derivation) -> Vec<u8> {
        seal(text, &password(), &[3; SALT_BYTES], derivation).unwrap()
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
            .flat_map(|count| Digest::NAMED.map(|(_, digest)| with(digest, count)))
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
            let content = of_openssl(&options_of(derivation));
            assert!(is_encrypted(&content));
            assert_eq!(open(&content, derivation).as_deref(), Some(TEXT));
            for other in derivations().filter(|other| *other != derivation) {
                assert_eq!(open(&content, other), None, "{derivation:?}, {other:?}");
            }
        }
    }

    #[test]
    fn sealing_with_the_salt_of_openssl_gives_the_file_of_openssl() {
        for derivation in derivations() {
            let content = of_openssl(&options_of(derivation));
            let salt = content[MAGIC.len()..][..SALT_BYTES].try_into().unwrap();
            let text = str::from_utf8(TEXT).unwrap();
            let sealed = seal(text, &password(), &salt, derivation).unwrap();
            assert_eq!(sealed, content, "{derivation:?}");
        }
    }

    #[test]
    fn sealed_files_of_every_length_open() {
        let derivation = with(Digest::Sha256, 2);
        let list = str::from_utf8(TEXT).unwrap();
        for comment_bytes in 0..40 {
            let text = format!("{}\n{list}", "#".repeat(comment_bytes));
            let opened = open(&sealed(&text, derivation), derivation);
            assert_eq!(opened, Some(text.into_bytes()), "{comment_bytes}");
        }
    }

    #[test]
    fn comments_in_other_encodings_and_invalid_lines_do_not_matter() {
        let derivation = with(Digest::Sha1, 0);
        let latin_1 = [b"# cl\xe9 de la base\0\x01\n", TEXT].concat();
        let opened = open(&of_openssl("comment in Latin-1"), derivation);
        assert_eq!(opened, Some(latin_1));
        let wrong_line = format!("{}garbage\n", str::from_utf8(TEXT).unwrap());
        let opened = open(&sealed(&wrong_line, derivation), derivation);
        assert_eq!(opened, Some(wrong_line.into_bytes()));
    }

    #[test]
    fn noise_that_ends_like_padding_is_not_taken_for_a_list_of_keys() {
        // One in 256 of these looks padded.
        let content = sealed(
            str::from_utf8(&TEXT.repeat(3)).unwrap(),
            with(Digest::Sha1, 0),
        );
        for number in 0..2000 {
            let wrong = Password::new(Zeroizing::new(format!("{number}").into_bytes())).unwrap();
            let envelope = Envelope::parse(&content).unwrap();
            assert!(envelope.open(&wrong, with(Digest::Sha1, 0)).is_none());
        }
    }

    #[test]
    fn a_truncated_file_is_distinguished_from_a_wrong_password() {
        let content = of_openssl("-md sha1");
        for length in [8, 15, 16, 17, content.len() - 1] {
            let cut_off = Envelope::parse(&content[..length]);
            assert_eq!(cut_off.unwrap_err(), EnvelopeError::Length(length));
        }
    }
}
