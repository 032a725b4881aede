//! What the files of a MariaDB data directory say about the data keys that they are encrypted with.
//!
//! [`files`] finds the files. Each other module reads one format and says which key ids and
//! versions it needs; [`usage`] says whether a key is used at all. Nothing is decrypted, nothing is written, and no file is trusted: whatever it
//! contains, reading it ends with an answer or a [`scan::ScanError`].

#![forbid(unsafe_code)]

pub mod aria;
pub mod binary_log;
pub mod files;
pub mod innodb;
pub mod log_lists;
pub mod redo_log;
pub mod scan;
pub mod server_version;
#[cfg(test)]
mod tests;
pub mod usage;
