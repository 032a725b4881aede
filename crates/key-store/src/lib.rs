//! Data keys as they are kept: their names ([`key_name`]), the files in which they lie wrapped
//! ([`key_directory`]), and what proves which key is which ([`check_value`]).
//!
//! The plugin, the broker and the operator's tools share it.

#![forbid(unsafe_code)]

pub mod check_value;
pub mod fault_points;
pub mod key_directory;
pub mod key_name;
mod plaintext_key;

pub use plaintext_key::{InvalidKeyLength, PlaintextKey};

/// Longest wrapped key that KMS's Decrypt takes, in bytes.
///
/// Source: CiphertextBlob in <https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html>.
pub const MAX_CIPHERTEXT_BYTES: usize = 6144;
