//! KMS, which the plugin reaches through the broker only.

pub mod client;
pub mod counters;
#[cfg(feature = "mock")]
pub mod mock;
pub mod waiting;
