//! Data keys as they are kept: their names ([`key_name`]), the files in which they lie wrapped
//! ([`key_directory`]), what proves which key is which ([`check_value`]), and the list of all keys that a
//! server has ever had ([`manifest`]).
//!
//! The plugin, the broker and the operator's tools share it.

#![forbid(unsafe_code)]

pub mod check_value;
mod directory;
pub mod fault_points;
mod file_error;
pub mod key_directory;
pub mod key_name;
pub mod manifest;
mod plaintext_key;
mod wrapped_key;

pub use plaintext_key::{InvalidKeyLength, PlaintextKey};
pub use wrapped_key::WrappedKey;

/// Longest wrapped key that KMS's Decrypt takes, in bytes.
///
/// Source: CiphertextBlob in <https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html>.
pub const MAX_CIPHERTEXT_BYTES: usize = 6144;
