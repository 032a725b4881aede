//! Files with data keys that need no KMS: those of MariaDB's `file_key_management`, plain or
//! encrypted under a password, and what is exported in the same form.
//!
//! A file is read by [`file::read`] and made by [`file::create`]. [`text`] tells what is in it,
//! [`envelope`] and [`derivation`] how it is encrypted, as `openssl enc` does it.

#![forbid(unsafe_code)]

pub mod derivation;
pub mod envelope;
pub mod file;
pub mod password;
pub mod text;
