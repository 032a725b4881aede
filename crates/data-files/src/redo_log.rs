//! InnoDB's redo log, and whether the server was shut down in an orderly way.
//!
//! Up to 10.7 each block of the log has its key version, from 10.8 on the header has one for
//! all. Formats: the server's sources, `storage/innobase`.

use std::{
    io::{Read, Seek, SeekFrom},
    ops::Range,
};

use crate::{
    scan::{Needs, SYSTEM_KEY_ID, ScanError, bytes_at, count, read_at, u32_at, u64_at},
    server_version::ServerVersion,
};

const BLOCK_BYTES: u64 = 512;
/// Where the records begin.
const RECORDS_10_5: u64 = 2048;
const RECORDS_10_8: u64 = 12288;

const FORMAT_10_5: [u8; 4] = *b"PHYS";
const FORMAT_10_5_ENCRYPTED: [u8; 4] = *b"\xd0HYS";
const FORMAT_10_8: [u8; 4] = *b"Phys";
const FORMAT_10_8_ENCRYPTED: [u8; 4] = *b"\xd0hys";
/// As 10.11.19 and 11.8.6 write it.
const FORMAT_10_8_ENCRYPTED_2: [u8; 4] = *b"\xf0\x9f\x97\x9d";

const FIRST_LSN: usize = 8;
const CREATOR: Range<usize> = 16..48;
const KEY_ID: usize = 48;
const KEY_VERSION: usize = 52;

/// What the redo log says.
#[derive(Debug)]
pub struct RedoLog {
    /// The keys that the server needs to read it.
    pub needs: Needs,
    /// Whether there is nothing to recover.
    pub end: LogEnd,
    /// The server that created it; None if the log is empty or names none.
    pub creator: Option<ServerVersion>,
}

/// Whether the server, when it starts, has to recover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEnd {
    /// It has nothing to recover.
    Clean,
    /// It has nothing to recover if the system tablespace names the same end of the log.
    CleanIfFlushedTo(u64),
    /// It has to recover.
    Unclean,
}

/// Reads the log from the last checkpoint on.
///
/// Errors: `file` cannot be read, or has no header that this crate knows.
pub fn scan(file: &mut (impl Read + Seek)) -> Result<RedoLog, ScanError> {
    let length = file.seek(SeekFrom::End(0))?;
    if length == 0 {
        // As mariadb-backup leaves it behind when it has prepared a backup.
        return Ok(RedoLog {
            needs: Needs::new(),
            end: LogEnd::Clean,
            creator: None,
        });
    }
    let header = read_at(file, 0, RECORDS_10_8 as usize)?;
    let log = match bytes_at(&header, 0) {
        Some(FORMAT_10_5) => scan_10_5(file, &header, length, false)?,
        Some(FORMAT_10_5_ENCRYPTED) => scan_10_5(file, &header, length, true)?,
        Some(FORMAT_10_8) => scan_10_8(file, &header, length, false)?,
        Some(FORMAT_10_8_ENCRYPTED | FORMAT_10_8_ENCRYPTED_2) => {
            scan_10_8(file, &header, length, true)?
        }
        _ => None,
    };
    log.ok_or(ScanError::Malformed(
        "has no header of a redo log that this program knows",
    ))
}

fn creator(header: &[u8]) -> Option<ServerVersion> {
    ServerVersion::of_redo_log(header.get(CREATOR)?)
}

fn scan_10_8(
    file: &mut (impl Read + Seek),
    header: &[u8],
    length: u64,
    encrypted: bool,
) -> Result<Option<RedoLog>, ScanError> {
    let mut needs = Needs::new();
    if encrypted {
        match (u32_at(header, KEY_ID), u32_at(header, KEY_VERSION)) {
            (Some(SYSTEM_KEY_ID), Some(version)) => count(&mut needs, SYSTEM_KEY_ID, version),
            _ => return Ok(None),
        }
    }
    let checkpoint = |offset| Some((u64_at(header, offset)?, u64_at(header, offset + 8)?));
    let (Some(first_lsn), Some(one), Some(other)) = (
        u64_at(header, FIRST_LSN),
        checkpoint(4096),
        checkpoint(8192),
    ) else {
        return Ok(None);
    };
    let (checkpoint_lsn, end_lsn) = one.max(other);
    let (Some(capacity), Some(used)) = (
        length.checked_sub(RECORDS_10_8).filter(|&bytes| bytes > 0),
        end_lsn.checked_sub(first_lsn),
    ) else {
        return Ok(None);
    };
    // An orderly shutdown ends the log with a mini-transaction of one record, which says that
    // everything up to itself is in the tablespaces.
    const FILE_CHECKPOINT: u8 = 0xfa;
    let mini_transaction_bytes = if encrypted { 24 } else { 16 };
    let mut byte_after = |bytes: u64| -> Result<Option<u8>, ScanError> {
        let offset = RECORDS_10_8 + (used % capacity + bytes) % capacity;
        Ok(read_at(file, offset, 1)?.first().copied())
    };
    let clean = checkpoint_lsn == end_lsn
        && byte_after(0)? == Some(FILE_CHECKPOINT)
        && byte_after(mini_transaction_bytes)? == Some(0);
    let end = if clean {
        LogEnd::Clean
    } else {
        LogEnd::Unclean
    };
    Ok(Some(RedoLog {
        needs,
        end,
        creator: creator(header),
    }))
}

fn scan_10_5(
    file: &mut (impl Read + Seek),
    header: &[u8],
    length: u64,
    encrypted: bool,
) -> Result<Option<RedoLog>, ScanError> {
    let checkpoint = |offset: usize| {
        // Number, LSN, offset and LSN of the end.
        let field = |at| u64_at(header, offset + at);
        Some((field(0)?, field(8)?, field(16)?, field(496)?))
    };
    let (Some(one), Some(other)) = (checkpoint(512), checkpoint(1536)) else {
        return Ok(None);
    };
    let (_, lsn, offset, end_lsn) = one.max(other);
    if offset < RECORDS_10_5 || offset >= length {
        return Ok(None);
    }
    let mut needs = Needs::new();
    let mut blocks = 0;
    let mut number = block_number(lsn);
    let mut offset = offset - offset % BLOCK_BYTES;
    // Each block has the number that follows; another one is left from before.
    while blocks < length / BLOCK_BYTES {
        let block = read_at(file, offset, BLOCK_BYTES as usize)?;
        if u32_at(&block, 0).map(|first| first & !FLUSH_BIT) != Some(number) {
            break;
        }
        if encrypted {
            let version = u32_at(&block, BLOCK_KEY_VERSION).unwrap_or_default();
            count(&mut needs, SYSTEM_KEY_ID, version);
        }
        blocks += 1;
        number = number % MAX_BLOCK_NUMBER + 1;
        offset += BLOCK_BYTES;
        if offset + BLOCK_BYTES > length {
            offset = RECORDS_10_5;
        }
    }
    let end = if lsn == end_lsn && blocks <= 1 {
        LogEnd::CleanIfFlushedTo(lsn)
    } else {
        LogEnd::Unclean
    };
    Ok(Some(RedoLog {
        needs,
        end,
        creator: creator(header),
    }))
}

const FLUSH_BIT: u32 = 1 << 31;
const MAX_BLOCK_NUMBER: u32 = 1 << 30;
const BLOCK_KEY_VERSION: usize = 504;

/// The number of the block with this LSN, from 1 to 2^30.
fn block_number(lsn: u64) -> u32 {
    (lsn / BLOCK_BYTES) as u32 % MAX_BLOCK_NUMBER + 1
}
