//! Aria's tables: an index file (`.MAI`), whose header says whether the table is encrypted, and a
//! data file (`.MAD`).
//!
//! Formats: the server's sources, `storage/maria`.

use std::{
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::scan::{
    Needs, SYSTEM_KEY_ID, ScanError, bytes_at, count, for_each_block, read_at, u16_at, u32_le_at,
    u64_at,
};

/// More than any header has.
const MAX_HEADER_BYTES: usize = 64 << 10;
const MAGIC: [u8; 3] = *b"\xfe\xfe\x09";
const OPTIONS: usize = 4;
/// Temporary tables do not outlast the server.
const OPTION_TEMPORARY: u16 = 16;
const BASE_POSITION: usize = 12;
const DATA_FILE_TYPE: usize = 22;
const ROW_FORMAT_PAGE: u8 = 3;

// In the base information.
const KEY_START: usize = 16;
const EXTRA_OPTIONS: usize = 90;
const EXTRA_OPTION_ENCRYPTED: u16 = 1;
const BLOCK_BYTES: usize = 100;
const BORN_TRANSACTIONAL: usize = 106;

const PAGE_TYPE: usize = 7;
const PAGE_TYPE_MASK: u8 = 7;
const TAIL_PAGE: u8 = 2;

/// The data file of the table with this index file.
pub fn data_file(index: &Path) -> PathBuf {
    index.with_extension("MAD")
}

/// What the header of an encrypted table's index file says. Its key is always key 1.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    block_bytes: usize,
    header_bytes: u64,
    index_key_version: usize,
}

impl Layout {
    /// Reads the header of an index file; None if nothing of the table that lasts is encrypted.
    ///
    /// Errors: `index` cannot be read, or has no header that this crate knows.
    pub fn read(index: &mut (impl Read + Seek)) -> Result<Option<Self>, ScanError> {
        Self::parse(&read_at(index, 0, MAX_HEADER_BYTES)?).ok_or(ScanError::Malformed(
            "has no header of an Aria table that this program knows",
        ))
    }

    #[allow(
        clippy::option_option,
        reason = "unreadable is something else than unencrypted"
    )]
    fn parse(header: &[u8]) -> Option<Option<Self>> {
        if bytes_at(header, 0)? != MAGIC {
            return None;
        }
        let base = header.get(usize::from(u16_at(header, BASE_POSITION)?)..)?;
        let encrypted = u16_at(base, EXTRA_OPTIONS)? & EXTRA_OPTION_ENCRYPTED != 0;
        let temporary = u16_at(header, OPTIONS)? & OPTION_TEMPORARY != 0;
        if !encrypted || temporary {
            return Some(None);
        }
        let block_bytes = usize::from(u16_at(base, BLOCK_BYTES)?);
        let header_bytes = u64_at(base, KEY_START)?;
        let known = block_bytes.is_power_of_two()
            && block_bytes >= 1024
            && header_bytes % block_bytes as u64 == 0
            && *header.get(DATA_FILE_TYPE)? == ROW_FORMAT_PAGE;
        known.then_some(Some(Self {
            block_bytes,
            header_bytes,
            // After the LSN, and a transaction id where there are transactions.
            index_key_version: if *base.get(BORN_TRANSACTIONAL)? == 0 {
                7
            } else {
                13
            },
        }))
    }

    /// Counts the pages of the index file by key.
    ///
    /// Errors: `index` cannot be read, or ends within a page.
    pub fn scan_index(&self, index: &mut (impl Read + Seek)) -> Result<Needs, ScanError> {
        index.seek(SeekFrom::Start(self.header_bytes))?;
        self.scan(index, |_, page| u32_le_at(page, self.index_key_version))
    }

    /// Counts the pages of the data file by key.
    ///
    /// Errors: `data` cannot be read, or ends within a page.
    pub fn scan_data(&self, data: &mut (impl Read + Seek)) -> Result<Needs, ScanError> {
        // A bitmap page comes before the pages that it describes, 16 in each 6 bytes.
        let bitmap_interval = (self.block_bytes as u64 - 4) / 6 * 16 + 1;
        self.scan(data, |number, page| {
            if number % bitmap_interval == 0 {
                return None;
            }
            let offset = match page.get(PAGE_TYPE)? & PAGE_TYPE_MASK {
                0..=TAIL_PAGE => 12,
                _ => 8,
            };
            u32_le_at(page, offset)
        })
    }

    fn scan(
        &self,
        file: &mut impl Read,
        key_version: impl Fn(u64, &[u8]) -> Option<u32>,
    ) -> Result<Needs, ScanError> {
        let mut needs = Needs::new();
        for_each_block(file, self.block_bytes, |number, page| {
            count(
                &mut needs,
                SYSTEM_KEY_ID,
                key_version(number, page).unwrap_or_default(),
            );
        })?;
        Ok(needs)
    }
}
