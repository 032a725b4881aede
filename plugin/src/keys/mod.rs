//! Data keys: which versions exist, which of them are in memory, and how new ones are made.

pub mod aria_recovery;
pub mod error;
pub mod failure_backoff;
pub mod keyring;
pub mod loading;
pub mod manager;
pub mod offline;
mod private_descriptors;
pub mod rotation;
mod stored;
