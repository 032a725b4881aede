//! Data keys: which versions exist, which of them are in memory, and how new ones are made.

pub mod aria_recovery;
mod denied;
pub mod error;
pub mod failure_backoff;
pub mod inspection;
pub mod keyring;
pub mod loading;
mod making;
pub mod manager;
pub mod offline;
pub mod page_compression;
mod private_descriptors;
pub mod rotation;
mod stored;
mod unsafe_ctr;
