//! Files with data keys that need no KMS: those of MariaDB's `file_key_management`, plain or
//! encrypted under a password, and what is exported in the same form.
//!
//! [`file::KeyFile`] reads a file, [`file::create`] makes one. [`text`] has the form of what is in it,
//! [`envelope`] and [`derivation`] that of the encryption, which is `openssl enc`'s.

#![forbid(unsafe_code)]

pub mod derivation;
pub mod envelope;
pub mod file;
pub mod password;
mod regular_file;
pub mod text;
