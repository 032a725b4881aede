//! KMS, which the plugin reaches through the broker only.

pub mod client;
#[cfg(feature = "mock")]
pub mod mock;
pub mod waiting;
