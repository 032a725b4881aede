//! A wrapped key with all that is known of it, as it travels.

use serde::{Deserialize, Serialize};

use crate::MAX_CIPHERTEXT_BYTES;
use crate::check_value::CheckValue;
use crate::key_name::{KeyName, is_valid_number};

/// ARNs have at most 2048 characters.
const MAX_ARN_BYTES: usize = 2048;

/// A key version of a key store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Id, version and algorithm.
    pub name: KeyName,
    /// Length of the data key in bits: 128, 192 or 256.
    pub bits: u16,
    /// Identifies the data key.
    pub check_value: CheckValue,
    /// ARN of the master key that wrapped it; empty if it is not known.
    pub master_key_arn: String,
    /// The wrapped key, as KMS gave it: 1 to [`MAX_CIPHERTEXT_BYTES`] bytes.
    pub ciphertext_blob: Vec<u8>,
}

impl WrappedKey {
    /// Whether numbers, lengths and characters are such as a key can have.
    pub fn is_valid(&self) -> bool {
        is_valid_number(self.name.id)
            && is_valid_number(self.name.version)
            && matches!(self.bits, 128 | 192 | 256)
            && (1..=MAX_CIPHERTEXT_BYTES).contains(&self.ciphertext_blob.len())
            && self.master_key_arn.len() <= MAX_ARN_BYTES
            && self.master_key_arn.bytes().all(|b| b.is_ascii_graphic())
    }
}
