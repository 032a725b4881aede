//! Files with data keys that need no KMS: those of MariaDB's `file_key_management`, plain or encrypted with a
//! password, and exports in the same format.
//!
//! [`file::KeyFile`] reads a file and [`file::create`] creates one. [`text`] defines the format of the text, and
//! [`envelope`] and [`derivation`] that of the encryption, which is the same as in `openssl enc`.

#![forbid(unsafe_code)]

pub mod derivation;
pub mod envelope;
pub mod file;
pub mod password;
mod regular_file;
pub mod text;
