//! InnoDB's tablespaces: the system tablespace, undo tablespaces and tables.
//!
//! Page 0 has the page size, the format of the pages and the key id; each page has the key version
//! under which it was written. The formats are those of MariaDB 10.5 to 11.8 (the server's sources,
//! `storage/innobase`; the manual does not describe them).

use std::{
    collections::BTreeSet,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
};

use crate::scan::{
    self, Needs, ScanError, bytes_at, count_page, for_each_block, read_at, u16_at, u32_at, u64_at,
};

/// The smallest page, of ROW_FORMAT=COMPRESSED.
pub(crate) const MIN_PAGE_BYTES: u64 = 1 << 10;
/// The largest page.
const MAX_PAGE_BYTES: usize = 64 << 10;
const DEFAULT_PAGE_BYTES: usize = 16 << 10;

const PAGE_NUMBER: usize = 4;
const PAGE_TYPE: usize = 24;
const TYPE_ALLOCATED: u16 = 0;
const TYPE_FSP_HDR: u16 = 8;
const TYPE_XDES: u16 = 9;
const TYPE_RTREE: u16 = 17854;

/// On page 0 of the system tablespace, up to 10.7: where the log ended at a clean shutdown.
const FLUSH_LSN: usize = 26;
/// Where a page has its key version: first of all with `innodb_checksum_algorithm=full_crc32`, in
/// the place of the flush LSN before it.
const KEY_VERSION_FULL_CRC32: usize = 0;
const KEY_VERSION: usize = 26;

const SPACE_SIZE_PAGES: usize = 46;
const SPACE_FLAGS: usize = 54;
/// After the headers of page and tablespace, the extent descriptors begin; the encryption is
/// described 38 bytes after their end.
const EXTENT_DESCRIPTORS: usize = 150;
const CRYPT_AFTER_DESCRIPTORS: usize = 38;
/// In a descriptor: two bits for each page of the extent, of which the lower says that it is free.
const EXTENT_BITMAP: usize = 24;
const CRYPT_MAGIC: [u8; 6] = *b"s\x0e\x0cREt";
/// After the magic: type, length of the IV, and 16 bytes of IV.
const CRYPT_TYPE: usize = 6;
const CRYPT_MIN_KEY_VERSION: usize = 24;
const CRYPT_KEY_ID: usize = 28;
const CRYPT_TYPE_UNENCRYPTED: u8 = 0;

const PAGE_LSN: usize = 16;
const SPACE_ID: usize = 34;
const TRX_SYS_PAGE: u64 = 5;
/// 128 rollback segments: space id and page number of each.
const ROLLBACK_SEGMENTS: Range<usize> = 56..56 + 128 * ROLLBACK_SEGMENT_BYTES;
const ROLLBACK_SEGMENT_BYTES: usize = 8;
const NONE: u32 = u32::MAX;
/// Offset of the doublewrite buffer's description from the end of the page.
const DOUBLEWRITE_FROM_END: usize = 200;
const DOUBLEWRITE_MAGIC: u32 = 536_853_855;

/// The key that page 0 of a tablespace names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceKey {
    /// Id of the key. A table with `ENCRYPTED=NO` names one too.
    pub key_id: u32,
    /// Whether pages are or may be encrypted with it: the tablespace is encrypted, or InnoDB has not
    /// finished decrypting it.
    pub in_use: bool,
}

/// Reads from page 0 of the tablespace file at `path` which key it names, if any. The cost is one
/// read of 64 KiB at most.
///
/// Of a tablespace with several files, only the first has a page 0.
///
/// Errors: the file cannot be read, or does not begin with a page 0 that this crate knows. What it
/// is encrypted with is then unknown.
pub fn key_of_page_0(path: &Path) -> Result<Option<SpaceKey>, ScanError> {
    Ok(Layout::read(&mut scan::open(path)?)?.key)
}

/// What page 0 says about a tablespace.
#[derive(Debug, Clone)]
pub struct Layout {
    page_bytes: usize,
    extent_pages: usize,
    full_crc32: bool,
    /// The key that it names; None if it never had any.
    pub key: Option<SpaceKey>,
    /// Number of the tablespace, 0 for the system tablespace.
    pub space_id: u32,
    /// Length of the tablespace, in pages.
    pub size_pages: u32,
    /// Where the log ended when the server last shut down, in the system tablespace up to 10.7.
    pub flush_lsn: u64,
}

impl Layout {
    /// Reads page 0 at the beginning of `file`.
    ///
    /// Errors: `file` cannot be read or begins with something else.
    pub fn read(file: &mut (impl Read + Seek)) -> Result<Self, ScanError> {
        Self::parse(&read_at(file, 0, MAX_PAGE_BYTES)?).ok_or(ScanError::Malformed(
            "does not begin with the first page of a tablespace",
        ))
    }

    fn parse(page: &[u8]) -> Option<Self> {
        // Up to 10.5, InnoDB writes the page once without type and LSN when it makes the file (`fil_ibd_create`).
        let is_only_made = u16_at(page, PAGE_TYPE)? == TYPE_ALLOCATED
            && u64_at(page, PAGE_LSN)? == 0
            && u32_at(page, SPACE_ID)? != 0;
        let is_first = u16_at(page, PAGE_TYPE)? == TYPE_FSP_HDR || is_only_made;
        if !is_first || u32_at(page, PAGE_NUMBER)? != 0 {
            return None;
        }
        let flags = u32_at(page, SPACE_FLAGS)?;
        let full_crc32 = flags & 1 << 4 != 0;
        let (logical_bytes, page_bytes) = if full_crc32 {
            let bytes = page_size(flags & 15)?;
            (bytes, bytes)
        } else {
            let logical = match flags >> 6 & 15 {
                0 => DEFAULT_PAGE_BYTES,
                shift => page_size(shift)?,
            };
            let physical = match flags >> 1 & 15 {
                0 => logical,
                shift => 512usize
                    .checked_shl(shift)
                    .filter(|&bytes| bytes <= logical)?,
            };
            (logical, physical)
        };
        let extent_pages = if logical_bytes <= DEFAULT_PAGE_BYTES {
            (1 << 20) / logical_bytes
        } else {
            64
        };
        let crypt = EXTENT_DESCRIPTORS
            + descriptor_bytes(extent_pages) * (page_bytes / extent_pages)
            + CRYPT_AFTER_DESCRIPTORS;
        let key = match bytes_at(page, crypt)? {
            CRYPT_MAGIC => Some(SpaceKey {
                key_id: u32_at(page, crypt + CRYPT_KEY_ID)?,
                in_use: *page.get(crypt + CRYPT_TYPE)? != CRYPT_TYPE_UNENCRYPTED
                    || u32_at(page, crypt + CRYPT_MIN_KEY_VERSION)? != 0,
            }),
            _ => None,
        };
        Some(Self {
            page_bytes,
            extent_pages,
            full_crc32,
            key,
            space_id: u32_at(page, SPACE_ID)?,
            size_pages: u32_at(page, SPACE_SIZE_PAGES)?,
            flush_lsn: u64_at(page, FLUSH_LSN)?,
        })
    }

    /// Length of its pages in the file.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// The key version of a page; 0 if it is not encrypted.
    fn key_version(&self, page: &[u8]) -> u32 {
        let offset = if self.full_crc32 {
            KEY_VERSION_FULL_CRC32
        } else if u16_at(page, PAGE_TYPE) == Some(TYPE_RTREE) {
            // Never encrypted in this format, which keeps something else there.
            return 0;
        } else {
            KEY_VERSION
        };
        u32_at(page, offset).unwrap_or_default()
    }

    /// The extent descriptors of a page that has some: those of `page_bytes` pages, of which it is
    /// the first.
    fn descriptors<'a>(&self, page: &'a [u8]) -> Option<&'a [u8]> {
        match u16_at(page, PAGE_TYPE)? {
            TYPE_FSP_HDR | TYPE_XDES => page.get(EXTENT_DESCRIPTORS..),
            _ => None,
        }
    }

    /// Whether the descriptors say that a page, by its number after the first of these, is free.
    fn is_free(&self, descriptors: &[u8], number: usize) -> bool {
        let extent = number / self.extent_pages * descriptor_bytes(self.extent_pages);
        let page = number % self.extent_pages;
        descriptors
            .get(extent + EXTENT_BITMAP + page / 4)
            .is_some_and(|bits| bits >> (page % 4 * 2) & 1 != 0)
    }

    /// Counts the pages of `file` by key, without those in `skipped`.
    ///
    /// Errors: `file` cannot be read, ends within a page, or has encrypted pages though page 0 names
    /// no key.
    pub fn scan(
        &self,
        file: &mut (impl Read + Seek),
        skipped: &[Range<u64>],
    ) -> Result<Scanned, ScanError> {
        file.seek(SeekFrom::Start(0))?;
        let mut scanned = Scanned::default();
        let mut without_key = false;
        let mut descriptors = Vec::new();
        for_each_block(file, self.page_bytes, |number, page| {
            scanned.pages = number + 1;
            let among_described = (number % self.page_bytes as u64) as usize;
            if among_described == 0 {
                descriptors = self.descriptors(page).unwrap_or_default().to_vec();
            }
            if skipped.iter().any(|range| range.contains(&number)) {
                return;
            }
            let version = self.key_version(page);
            match self.key {
                Some(SpaceKey { key_id, .. }) => {
                    let is_free = self.is_free(&descriptors, among_described);
                    count_page(&mut scanned.needs, key_id, version, is_free);
                }
                None => without_key |= version != 0,
            }
        })?;
        if without_key {
            return Err(ScanError::Malformed(
                "has encrypted pages, but page 0 names no key id",
            ));
        }
        Ok(scanned)
    }

    /// Reads page 5 of the system tablespace.
    ///
    /// Errors: `file` cannot be read, or is shorter.
    pub fn read_trx_sys(&self, file: &mut (impl Read + Seek)) -> Result<TrxSys, ScanError> {
        let page = read_at(file, TRX_SYS_PAGE * self.page_bytes as u64, self.page_bytes)?;
        self.parse_trx_sys(&page)
            .ok_or(ScanError::Malformed("ends before its page 5"))
    }

    fn parse_trx_sys(&self, page: &[u8]) -> Option<TrxSys> {
        let segments = page.get(ROLLBACK_SEGMENTS)?;
        let undo_spaces = segments
            .chunks_exact(ROLLBACK_SEGMENT_BYTES)
            .filter_map(|segment| Some((u32_at(segment, 0)?, u32_at(segment, 4)?)))
            .filter(|&(space_id, page)| page != NONE && ![0, NONE].contains(&space_id))
            .map(|(space_id, _)| space_id)
            .collect();
        let description = page.get(self.page_bytes.checked_sub(DOUBLEWRITE_FROM_END)?..)?;
        let block = |offset| {
            let start = u64::from(u32_at(description, offset)?);
            Some(start..start + self.extent_pages as u64)
        };
        let doublewrite_buffer = match u32_at(description, 10)? {
            DOUBLEWRITE_MAGIC => vec![block(14)?, block(18)?],
            _ => Vec::new(),
        };
        Some(TrxSys {
            undo_spaces,
            doublewrite_buffer,
        })
    }
}

/// What page 5 of the system tablespace says about other places.
#[derive(Debug)]
pub struct TrxSys {
    /// The undo tablespaces that the server opens.
    pub undo_spaces: BTreeSet<u32>,
    /// The pages of the system tablespace in which InnoDB keeps copies of pages of any tablespace.
    /// They are read when a server has crashed, and not after that.
    pub doublewrite_buffer: Vec<Range<u64>>,
}

/// What the pages of a file need, and how many there are.
#[derive(Debug, Default)]
pub struct Scanned {
    /// How many pages need each key version.
    pub needs: Needs,
    /// All pages, encrypted or not.
    pub pages: u64,
}

/// Page 0 of each file of a tablespace of its own.
pub const PAGE_0: Range<u64> = 0..1;

fn descriptor_bytes(extent_pages: usize) -> usize {
    EXTENT_BITMAP + extent_pages / 4
}

fn page_size(shift: u32) -> Option<usize> {
    (3..=7).contains(&shift).then(|| 512 << shift)
}
