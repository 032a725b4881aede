//! MariaDB's `aws_key_management` encryption plugin.
//!
//! Data keys lie in key files, wrapped by a master key in AWS KMS, and in locked memory once they
//! are unwrapped. This library never talks to AWS and holds no credentials: it asks
//! `iam-kms-broker` over a Unix socket.
//!
//! What the server calls (`plugin_encryption.h`, `plugin.h`), and what serves it:
//!
//! | C | Rust |
//! |---|---|
//! | `init`, `deinit` | `entry::lifecycle`, then [`key_loading`] |
//! | `get_latest_key_version` | `entry::keys`, then [`key_manager::KeyManager::latest_version`] |
//! | `get_key` | `entry::keys`, then [`key_manager::KeyManager::ensure_loaded`] |
//! | `crypt_ctx_size`, `_init`, `_update`, `_finish`, `encrypted_length` | `entry::crypt`, then [`cipher::Cipher`] |
//! | system variables | `entry::variables`, then [`settings`] and [`rotation`] |
//! | status variables | `entry::status`, then [`status`] |
//!
//! `unsafe` is confined to [`abi`], `entry`, `exports`, [`plugin`], `private_descriptors` and
//! [`server_symbols`].

#![deny(unsafe_code)]

pub mod abi;
mod aria_recovery;
pub mod cipher;
pub mod concurrent;
mod entry;
mod exports;
pub mod failure_backoff;
pub mod key_error;
pub mod key_loading;
pub mod key_manager;
pub mod keyring;
pub mod kms;
#[cfg(feature = "mock")]
mod mock;
pub mod offline;
pub mod plugin;
mod private_descriptors;
pub mod rotation;
pub mod server_log;
pub mod server_symbols;
pub mod settings;
pub mod status;
#[cfg(feature = "stream-log")]
mod stream_log;
#[cfg(test)]
mod test_broker;
pub mod waiting;
