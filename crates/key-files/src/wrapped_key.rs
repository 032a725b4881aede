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
    /// The wrapped key, as KMS gave it: 1 to [`MAX_CIPHERTEXT_BYTES`] bytes. Empty where a key server keeps it to itself.
    pub ciphertext_blob: Vec<u8>,
}

impl WrappedKey {
    /// Whether numbers, lengths and characters are such as a key can have.
    pub fn is_valid(&self) -> bool {
        self.is_description() && (1..=MAX_CIPHERTEXT_BYTES).contains(&self.ciphertext_blob.len())
    }

    /// The same without the wrapped key, whose place is empty.
    #[must_use]
    pub fn without_blob(self) -> Self {
        Self {
            ciphertext_blob: Vec::new(),
            ..self
        }
    }

    /// Whether a key server keeps the wrapped key to itself, and all else is valid.
    pub fn is_on_key_server(&self) -> bool {
        self.ciphertext_blob.is_empty() && self.is_description()
    }

    fn is_description(&self) -> bool {
        is_valid_number(self.name.id)
            && is_valid_number(self.name.version)
            && matches!(self.bits, 128 | 192 | 256)
            && self.master_key_arn.len() <= MAX_ARN_BYTES
            && self.master_key_arn.bytes().all(|b| b.is_ascii_graphic())
    }
}
