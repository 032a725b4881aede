//! Encrypted key files: what `openssl enc -aes-256-cbc` writes.
//!
//! `Salted__`, eight bytes of salt, and the text under AES-256-CBC with the padding of PKCS #7.
//! Source: openssl-enc(1), MariaDB's manual on the File Key Management plugin.

use aes::Aes256;
use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{
    Array, BlockCipherDecrypt, BlockModeDecrypt, BlockModeEncrypt, KeyInit, KeyIvInit,
};
use zeroize::Zeroizing;

use crate::derivation::{self, Derivation, IV_BYTES, KEY_BYTES, KeyAndIv, SALT_BYTES, Salt};
use crate::password::Password;

const MAGIC: &[u8] = b"Salted__";
const BLOCK_BYTES: usize = 16;

/// Why an encrypted file does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Its length cannot be.
    #[error(
        "is cut off, or was changed: no file that 'openssl enc -aes-256-cbc' writes is {0} bytes long"
    )]
    Length(
        /// Its length in bytes.
        usize,
    ),
    /// No key opens it.
    #[error(
        "does not open: the password is wrong, the file is damaged, or it was not made by 'openssl enc -aes-256-cbc' with SHA-1, SHA-2 or PBKDF2 of at most {0} iterations"
    )]
    WrongPassword(
        /// How many were tried.
        u32,
    ),
    /// HMAC, AES or CBC refused what it was given. That never happens.
    #[error("cannot be encrypted")]
    Cipher,
}

/// Tells whether the content of a file is encrypted.
pub fn is_encrypted(content: &[u8]) -> bool {
    content.starts_with(MAGIC)
}

/// Decrypts a file. How its key was derived is found out, with at most `max_iterations` of PBKDF2.
pub fn open(
    content: &[u8],
    password: &Password,
    max_iterations: u32,
) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
    let wrong_length = EnvelopeError::Length(content.len());
    let (salt, ciphertext) = content
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.split_first_chunk::<SALT_BYTES>())
        .ok_or(wrong_length)?;
    let (blocks, partial) = ciphertext.as_chunks::<BLOCK_BYTES>();
    let (Some(last), []) = (blocks.last(), partial) else {
        return Err(wrong_length);
    };
    let before = blocks.iter().nth_back(1);
    derivation::search(password, salt, max_iterations, |key| {
        if may_be_padded(key, before, last) {
            decrypt(key, ciphertext)
        } else {
            None
        }
    })
    .ok_or(EnvelopeError::WrongPassword(max_iterations))
}

/// Looks at the last block alone, because most keys are wrong and there are many.
fn may_be_padded(
    key: &KeyAndIv,
    before: Option<&[u8; BLOCK_BYTES]>,
    last: &[u8; BLOCK_BYTES],
) -> bool {
    let (key, iv) = key.split_at(KEY_BYTES);
    let Ok(aes) = Aes256::new_from_slice(key) else {
        return false;
    };
    let mut block = Array::from(*last);
    aes.decrypt_block(&mut block);
    let before = before.map_or(iv, |before| before.as_slice());
    let padding = match (block.last(), before.last()) {
        (Some(decrypted), Some(before)) => decrypted ^ before,
        _ => return false,
    };
    (1..=BLOCK_BYTES).contains(&padding.into())
}

/// The text, if it is one: under a wrong key it is noise whose end may look like padding.
fn decrypt(key: &KeyAndIv, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (key, iv) = key.split_first_chunk::<KEY_BYTES>()?;
    let iv: &[u8; IV_BYTES] = iv.try_into().ok()?;
    let mut text = Zeroizing::new(ciphertext.to_vec());
    let length = cbc::Decryptor::<Aes256>::new(key.into(), iv.into())
        .decrypt_padded::<Pkcs7>(&mut text)
        .ok()?
        .len();
    text.truncate(length);
    let is_text = str::from_utf8(&text).is_ok_and(|text| {
        text.chars()
            .all(|c| !c.is_control() || c.is_ascii_whitespace())
    });
    is_text.then_some(text)
}

/// Encrypts `text` under a key derived from `password` and `salt`, which is random and used once.
pub fn seal(
    text: &str,
    password: &Password,
    salt: &Salt,
    derivation: Derivation,
) -> Result<Vec<u8>, EnvelopeError> {
    let derived = derivation::derive(derivation, password, salt).ok_or(EnvelopeError::Cipher)?;
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

    const TEXT: &str = "1;770A8A65DA156D24EE2A093277530142\n";
    const FEW: u32 = 20_000;

    fn password() -> Password {
        Password::new(Zeroizing::new(b"se cret".to_vec())).unwrap()
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

    #[test]
    fn what_openssl_encrypts_opens_whatever_its_options_were() {
        let long = TEXT.repeat(100);
        for text in ["", "1", TEXT, &long] {
            for options in [
                "-md sha1",
                "-md sha256",
                "-md sha512",
                "-pbkdf2",
                "-pbkdf2 -md sha1 -iter 1000",
                "-pbkdf2 -md sha224 -iter 1",
                "-pbkdf2 -md sha384 -iter 11001",
                "-pbkdf2 -md sha512 -iter 2",
            ] {
                let content = openssl(options, text.as_bytes());
                assert!(is_encrypted(&content));
                let opened = open(&content, &password(), FEW).unwrap();
                // A short text may by chance be one under a wrong key too.
                if text.len() > 1 {
                    assert_eq!(*opened, text.as_bytes(), "{options}");
                }
            }
        }
    }

    #[test]
    fn openssl_opens_what_is_sealed() {
        for (derivation, options) in [
            (Derivation::Sha1, "-d -md sha1"),
            (
                Derivation::Pbkdf2 { iterations: 12_345 },
                "-d -pbkdf2 -iter 12345",
            ),
        ] {
            for text in [TEXT, &TEXT[..16], ""] {
                let content = seal(text, &password(), &[3; SALT_BYTES], derivation).unwrap();
                assert_eq!(openssl(options, &content), text.as_bytes(), "{options}");
            }
        }
    }

    #[test]
    fn a_wrong_password_and_too_many_iterations_open_nothing() {
        let content = openssl("-pbkdf2 -iter 101", TEXT.as_bytes());
        let wrong = Password::new(Zeroizing::new(b"secret".to_vec())).unwrap();
        for (password, iterations) in [(wrong, 200), (password(), 100)] {
            assert_eq!(
                open(&content, &password, iterations),
                Err(EnvelopeError::WrongPassword(iterations))
            );
        }
        assert!(open(&content, &password(), 101).is_ok());
    }

    #[test]
    fn a_file_that_is_cut_off_is_told_from_a_wrong_password() {
        let content = openssl("-md sha1", TEXT.as_bytes());
        for length in [8, 15, 16, 17, content.len() - 1] {
            assert_eq!(
                open(&content[..length], &password(), 10),
                Err(EnvelopeError::Length(length))
            );
        }
        let whole_blocks = &content[..content.len() - BLOCK_BYTES];
        assert_eq!(
            open(whole_blocks, &password(), 10),
            Err(EnvelopeError::WrongPassword(10))
        );
    }
}
