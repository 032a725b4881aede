//! MariaDB's `aws_key_management` encryption plugin.
//!
//! Key files contain the data keys, encrypted by a master key in AWS KMS. Decrypted data keys are in locked memory.
//! This library never calls AWS and holds no credentials: it asks `iam-kms-broker` over a Unix socket.
//!
//! The functions that the server calls (`plugin_encryption.h`, `plugin.h`), and the code behind them:
//!
//! | C | Rust |
//! |---|---|
//! | `init`, `deinit` | `ffi::lifecycle`, then [`keys::loading`] |
//! | `get_latest_key_version` | `ffi::keys`, then [`keys::manager::KeyManager::latest_version`] |
//! | `get_key` | `ffi::keys`, then [`keys::manager::KeyManager::key`] |
//! | `crypt_ctx_size`, `_init`, `_update`, `_finish`, `encrypted_length` | `ffi::crypt`, then [`cipher::Cipher`] |
//! | system variables | `ffi::system_variables`, then [`settings`] and [`keys::rotation`] |
//! | status variables | `ffi::status_variables`, then [`status`] |
//!
//! Dependencies run one way: `ffi` → [`plugin`], [`status`] → [`keys`] → [`kms`] → [`server`]. [`cipher`] depends on
//! none of them.
//!
//! `unsafe` is confined to [`abi`], `ffi`, [`plugin`], `keys::private_descriptors` and [`server::symbols`].

#![deny(unsafe_code)]

pub mod abi;
pub mod cipher;
pub mod concurrent;
mod ffi;
pub mod keys;
pub mod kms;
mod lock;
pub mod plugin;
pub mod server;
pub mod settings;
pub mod status;
#[cfg(feature = "stream-log")]
mod stream_log;
#[cfg(test)]
mod test_broker;
