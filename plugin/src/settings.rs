//! The plugin's settings, which are its system variables.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use key_files::key_name::Algorithm;
use offline_keys::derivation::{Derivation, Digest};

use crate::lock::lock;

/// Values of `key_spec`: keys of 16 and of 32 bytes.
pub const KEY_SPECS: [&core::ffi::CStr; 2] = [c"AES_128", c"AES_256"];
const KEY_BYTES: [u8; 2] = [16, 32];
/// Values of `encryption_algorithm`.
pub const ALGORITHM_NAMES: [&core::ffi::CStr; 2] = [c"AES_CBC", c"AES_CTR"];
const ALGORITHMS: [Algorithm; 2] = [Algorithm::AesCbc, Algorithm::AesCtr];
/// Values of `log_level`, in the order of [`LogLevel`].
pub const LOG_LEVELS: [&core::ffi::CStr; 7] = [
    c"Off", c"Fatal", c"Error", c"Warn", c"Info", c"Debug", c"Trace",
];

/// Values of `offline_digest`, in the order of [`Digest::NAMED`].
pub const DIGEST_NAMES: [&core::ffi::CStr; 5] =
    [c"sha1", c"sha224", c"sha256", c"sha384", c"sha512"];

/// How much of the KMS traffic goes to the error log. The plugin's own messages are always logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Off = 0,
    /// Failed calls.
    Error = 2,
    /// Calls that are retried.
    Warn = 3,
    /// Each call, with its duration and the KMS request id. Higher levels log no more than this.
    Info = 4,
}

/// Settings that do not change while the plugin is loaded.
#[derive(Debug, Clone, Default)]
pub struct StartupSettings {
    /// AWS region, for a warning if the broker uses a different one; empty if not set.
    pub region: String,
    /// Endpoint URL of KMS, for the same warning; empty if not set.
    pub endpoint_url: String,
    /// Time limit of a KMS call in milliseconds, for the same warning; 0 if not set.
    pub request_timeout_milliseconds: u32,
    /// Directory of the key files; empty for the working directory.
    pub keyfile_dir: PathBuf,
    /// The data directory, which contains the manifest; empty for the working directory.
    pub datadir: PathBuf,
    /// Socket of the broker.
    pub broker_socket: PathBuf,
    /// File whose keys replace those of key files and KMS; empty if there is none.
    pub offline_keys: PathBuf,
    /// `FILE:` and the path of the file with its password; empty if it needs none.
    pub offline_filekey: PathBuf,
    /// How the key of that file is derived from its password.
    pub offline_derivation: Derivation,
    /// Whether the plugin replaces broker and KMS by a mock.
    #[cfg(feature = "mock")]
    pub mock: bool,
}

/// Returns the digest at an index of [`DIGEST_NAMES`]. The server stores only valid indices.
pub fn digest(index: usize) -> Digest {
    Digest::NAMED
        .get(index)
        .map_or_else(Digest::default, |(_, digest)| *digest)
}

impl StartupSettings {
    /// The file whose keys replace those of key files and KMS, if there is one.
    pub fn offline_keys(&self) -> Option<&Path> {
        (!self.offline_keys.as_os_str().is_empty()).then_some(&*self.offline_keys)
    }
}

/// Settings that SET GLOBAL changes while others read them.
pub struct GlobalSettings {
    master_key_id: Mutex<String>,
    key_spec: AtomicUsize,
    algorithm: AtomicUsize,
    log_level: AtomicUsize,
}

/// The settings that the server's variables write to.
pub static GLOBAL_SETTINGS: GlobalSettings = GlobalSettings::new();

impl GlobalSettings {
    /// Returns the defaults.
    pub const fn new() -> Self {
        Self {
            master_key_id: Mutex::new(String::new()),
            key_spec: AtomicUsize::new(0),
            algorithm: AtomicUsize::new(0),
            log_level: AtomicUsize::new(0),
        }
    }

    /// The master key for new keys; empty if no keys may be made.
    pub fn master_key_id(&self) -> String {
        lock(&self.master_key_id).clone()
    }

    /// Sets `master_key_id`.
    pub fn set_master_key_id(&self, value: &str) {
        value.clone_into(&mut lock(&self.master_key_id));
    }

    /// Length of new keys in bytes.
    pub fn key_bytes(&self) -> u8 {
        chosen(&KEY_BYTES, &self.key_spec)
    }

    /// Sets `key_spec` to an index of [`KEY_SPECS`].
    pub fn set_key_spec(&self, index: usize) {
        self.key_spec.store(index, Ordering::Relaxed);
    }

    /// How new key versions encrypt.
    pub fn algorithm(&self) -> Algorithm {
        chosen(&ALGORITHMS, &self.algorithm)
    }

    /// Sets `encryption_algorithm` to an index of [`ALGORITHM_NAMES`].
    pub fn set_algorithm(&self, index: usize) {
        self.algorithm.store(index, Ordering::Relaxed);
    }

    /// Whether events of `level` are logged.
    pub fn logs(&self, level: LogLevel) -> bool {
        self.log_level.load(Ordering::Relaxed) >= level as usize
    }

    /// Sets `log_level` to an index of [`LOG_LEVELS`].
    pub fn set_log_level(&self, index: usize) {
        self.log_level.store(index, Ordering::Relaxed);
    }
}

impl Default for GlobalSettings {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the chosen value of an enumeration. The server stores only valid indices.
fn chosen<T: Copy, const N: usize>(values: &[T; N], index: &AtomicUsize) -> T {
    values[index.load(Ordering::Relaxed).min(N - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_have_the_names_of_the_servers_variable() {
        for (index, name) in DIGEST_NAMES.iter().enumerate() {
            assert_eq!(digest(index).to_string(), name.to_str().unwrap());
        }
    }
}
