//! Ciphertext blobs: which key they are of, and the plaintext sealed under it.
//!
//! A blob is `local-kms`, a version byte, the key's id (16 bytes), nonce, ciphertext and tag. The
//! whole head and the encryption context are bound to it.

use std::collections::BTreeMap;

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::error::ApiError;
use crate::sealing;
use crate::state::Key;

/// The pairs that must be given again on decryption, in order.
pub type EncryptionContext = BTreeMap<String, String>;

const MAGIC: &[u8; 10] = b"local-kms\x01";

/// Encrypts `plaintext` under `key`.
pub fn encrypt(
    key_id: Uuid,
    key: &Key,
    plaintext: &[u8],
    context: &EncryptionContext,
) -> Result<Vec<u8>, ApiError> {
    let head = head(key_id);
    let sealed = sealing::seal(&key.material, plaintext, &associated_data(&head, context)?)
        .ok_or_else(|| ApiError::internal("a key cannot encrypt"))?;
    Ok([head, sealed].concat())
}

/// The id of the key that `blob` names, whether that key exists or not. Errors:
/// InvalidCiphertextException.
pub fn key_id(blob: &[u8]) -> Result<Uuid, ApiError> {
    let id = blob
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.first_chunk::<16>());
    id.map(|id| Uuid::from_bytes(*id))
        .ok_or_else(invalid_ciphertext)
}

/// Decrypts a blob of this key. Errors: InvalidCiphertextException.
pub fn decrypt(
    key_id: Uuid,
    key: &Key,
    blob: &[u8],
    context: &EncryptionContext,
) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let head = head(key_id);
    let sealed = blob
        .strip_prefix(head.as_slice())
        .ok_or_else(invalid_ciphertext)?;
    sealing::open(&key.material, sealed, &associated_data(&head, context)?)
        .ok_or_else(invalid_ciphertext)
}

fn head(key_id: Uuid) -> Vec<u8> {
    [MAGIC.as_slice(), key_id.as_bytes()].concat()
}

/// JSON keeps pairs apart whatever their characters are.
fn associated_data(head: &[u8], context: &EncryptionContext) -> Result<Vec<u8>, ApiError> {
    let context = serde_json::to_vec(context).map_err(ApiError::internal)?;
    Ok([head, &context].concat())
}

/// KMS gives this error without a message.
fn invalid_ciphertext() -> ApiError {
    ApiError::kms("InvalidCiphertextException", "")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::state::Place;

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    fn key() -> Key {
        let place = Place {
            region: String::new(),
            account: String::new(),
        };
        Key::new(place, Timestamp::UNIX_EPOCH, String::new(), String::new()).unwrap()
    }

    #[test]
    fn a_blob_opens_under_its_context_only() {
        let (id, key) = (Uuid::new_v4(), key());
        let given = context(&[("purpose", "test")]);
        let blob = encrypt(id, &key, b"data key", &given).unwrap();
        assert_eq!(key_id(&blob).unwrap(), id);
        assert_eq!(
            decrypt(id, &key, &blob, &given).unwrap().as_slice(),
            b"data key"
        );
        for other in [
            &[][..],
            &[("purpose", "Test")],
            &[("purpose", "test"), ("a", "b")],
        ] {
            assert!(
                decrypt(id, &key, &blob, &context(other)).is_err(),
                "{other:?}"
            );
        }
    }

    #[test]
    fn a_blob_with_one_bit_changed_opens_no_more() {
        let (id, key) = (Uuid::new_v4(), key());
        let mut blob = encrypt(id, &key, b"data key", &context(&[])).unwrap();
        for position in 0..blob.len() {
            blob[position] ^= 1;
            assert!(
                decrypt(id, &key, &blob, &context(&[])).is_err(),
                "{position}"
            );
            blob[position] ^= 1;
        }
    }

    #[test]
    fn what_is_no_blob_is_refused() {
        for blob in [
            &b""[..],
            b"local-kms\x01",
            b"\x01\x02\x02\x00rest of a blob of AWS",
        ] {
            assert_eq!(key_id(blob).unwrap_err(), invalid_ciphertext());
        }
    }
}
