//! Logs a line for each encrypted stream, for tests that look for reused keystreams. Exists only in test builds
//! (feature `stream-log`). `AWS_KEY_MANAGEMENT_STREAM_LOG` names the file.

#![forbid(unsafe_code)]

use core::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Mutex, OnceLock};

use key_files::PlaintextKey;
use key_files::check_value::CheckValue;
use key_files::key_name::Algorithm;

use crate::lock::lock;

const IV_BYTES: usize = 16;
/// FNV-1a, 64 bits. Source: RFC 9923.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The data that one context encrypts.
pub struct Stream {
    is_logged: bool,
    algorithm: Algorithm,
    /// Check value of the key, which InnoDB may have derived from the data key.
    key: Option<CheckValue>,
    iv: [u8; IV_BYTES],
    key_id: u32,
    key_version: u32,
    bytes: usize,
    checksum: u64,
}

impl Stream {
    /// Starts a stream. Only encryption is logged.
    pub fn new(
        algorithm: Algorithm,
        encrypts: bool,
        key: &[u8],
        iv: &[u8],
        key_id: u32,
        key_version: u32,
    ) -> Self {
        let is_logged = encrypts && log().is_some();
        let key = PlaintextKey::new(key).ok().filter(|_| is_logged);
        Self {
            is_logged,
            algorithm,
            key: key.as_ref().map(CheckValue::of),
            iv: iv.try_into().unwrap_or_default(),
            key_id,
            key_version,
            bytes: 0,
            checksum: FNV_OFFSET,
        }
    }

    /// Adds plaintext.
    pub fn add(&mut self, plaintext: &[u8]) {
        if self.is_logged {
            self.bytes += plaintext.len();
            for byte in plaintext {
                self.checksum = (self.checksum ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
            }
        }
    }

    /// Writes algorithm, check value of the key, IV, length in bytes, key id, key version and a checksum of
    /// the plaintext.
    pub fn log(&self) {
        let (true, Some(file), Some(key)) = (self.is_logged, log(), &self.key) else {
            return;
        };
        let mut line = format!("{} {key} ", self.algorithm);
        for byte in self.iv {
            let _ = write!(line, "{byte:02x}");
        }
        let (id, version) = (self.key_id, self.key_version);
        let _ = writeln!(
            line,
            " {} {id} {version} {:016x}",
            self.bytes, self.checksum
        );
        let _ = lock(file).write_all(line.as_bytes());
    }
}

fn log() -> Option<&'static Mutex<File>> {
    static LOG: OnceLock<Option<Mutex<File>>> = OnceLock::new();
    LOG.get_or_init(|| {
        let path = std::env::var_os("AWS_KEY_MANAGEMENT_STREAM_LOG")?;
        let file = File::options().append(true).create(true).open(path).ok()?;
        Some(Mutex::new(file))
    })
    .as_ref()
}
