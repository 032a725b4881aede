//! Binary logs and relay logs: each has its key version at the beginning.
//!
//! Formats: <https://mariadb.com/kb/en/start_encryption_event/>.

use std::io::{Read, Seek};

use crate::{
    scan::{Needs, SYSTEM_KEY_ID, ScanError, count, read_at, u32_le_at},
    server_version::ServerVersion,
};

/// What every binary log begins with, encrypted or not.
pub const MAGIC: [u8; 4] = *b"\xfebin";
const EVENT_HEADER_BYTES: u32 = 19;
/// As much of the first event as is read.
const DESCRIPTION_BYTES: usize = 128;
const EVENT_TYPE: usize = 4;
const EVENT_LENGTH: usize = 9;
const START_ENCRYPTION_EVENT: u8 = 164;
const SCHEME: usize = 19;
const KEY_VERSION: usize = 20;

/// What a binary log says.
#[derive(Debug, Default)]
pub struct BinaryLog {
    /// The key that the server needs to read it.
    pub needs: Needs,
    /// The server that wrote it; None if it names none.
    pub server: Option<ServerVersion>,
}

/// Reads the beginning of a binary log: the event after the one that describes the format starts
/// the encryption, if there is any. Its key is always key 1.
///
/// Errors: `file` cannot be read, or is no binary log that this crate knows.
pub fn scan(file: &mut (impl Read + Seek)) -> Result<BinaryLog, ScanError> {
    let mut needs = Needs::new();
    let first = MAGIC.len() as u64;
    let description = read_at(file, first, DESCRIPTION_BYTES)?;
    if description.is_empty() {
        return Ok(BinaryLog::default());
    }
    let length =
        u32_le_at(&description, EVENT_LENGTH).filter(|&length| length >= EVENT_HEADER_BYTES);
    let Some(length) = length else {
        return Err(ScanError::Malformed("has no whole first event"));
    };
    let second = read_at(file, first + u64::from(length), 64)?;
    if second.get(EVENT_TYPE) == Some(&START_ENCRYPTION_EVENT) {
        match (second.get(SCHEME), u32_le_at(&second, KEY_VERSION)) {
            (Some(1), Some(version)) => count(&mut needs, SYSTEM_KEY_ID, version),
            _ => {
                return Err(ScanError::Malformed(
                    "is encrypted in a way that is not known",
                ));
            }
        }
    }
    Ok(BinaryLog {
        needs,
        server: ServerVersion::of_binary_log(&description),
    })
}
