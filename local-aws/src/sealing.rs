//! AES-256-GCM under a random nonce: what session tokens and ciphertext blobs are made of.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, KeyInit, Nonce, Payload};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Bytes of a sealing key.
pub const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// Encrypts `plaintext` and binds it to `associated_data`: nonce, ciphertext, tag (28 bytes more).
///
/// `None` if `key` is not [`KEY_BYTES`] in base64 or the system has no random bytes to give: both
/// mean that nothing can be sealed at all.
pub fn seal(key: &Secret, plaintext: &[u8], associated_data: &[u8]) -> Option<Vec<u8>> {
    let cipher = cipher(key)?;
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).ok()?;
    let payload = Payload {
        msg: plaintext,
        aad: associated_data,
    };
    let ciphertext = cipher
        .encrypt(&Nonce::<Aes256Gcm>::from(nonce), payload)
        .ok()?;
    Some([nonce.as_slice(), &ciphertext].concat())
}

/// Decrypts what [`seal`] made; `None` if it was not made with this key and associated data.
pub fn open(key: &Secret, sealed: &[u8], associated_data: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    let payload = Payload {
        msg: ciphertext,
        aad: associated_data,
    };
    let plaintext = cipher(key)?
        .decrypt(&Nonce::<Aes256Gcm>::from(*nonce), payload)
        .ok()?;
    Some(Zeroizing::new(plaintext))
}

fn cipher(key: &Secret) -> Option<Aes256Gcm> {
    Aes256Gcm::new_from_slice(&key.decode()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_and_associated_data_open() {
        let key = Secret::random(KEY_BYTES).unwrap();
        let sealed = seal(&key, b"data key", b"context").unwrap();
        assert_eq!(
            open(&key, &sealed, b"context").unwrap().as_slice(),
            b"data key"
        );
        assert!(open(&key, &sealed, b"other").is_none());
        assert!(open(&Secret::random(KEY_BYTES).unwrap(), &sealed, b"context").is_none());
        for length in 0..sealed.len() {
            assert!(
                open(&key, &sealed[..length], b"context").is_none(),
                "{length}"
            );
        }
    }

    #[test]
    fn no_two_seals_are_alike() {
        let key = Secret::random(KEY_BYTES).unwrap();
        assert_ne!(
            seal(&key, b"x", b"").unwrap(),
            seal(&key, b"x", b"").unwrap()
        );
    }
}
