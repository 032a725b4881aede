//! What the formats have in common: counting key versions, and bounded reading.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::libc::O_NONBLOCK;

/// Key id of the redo log, binary logs and Aria (`ENCRYPTION_KEY_SYSTEM_DATA` of the server).
pub const SYSTEM_KEY_ID: u32 = 1;

/// Read at once from a file that is read from end to end; every block size divides it.
const CHUNK_BYTES: usize = 1 << 20;

/// Key versions of one file: what is damaged at random must not fill the memory.
const MAX_VERSIONS: usize = 10_000;

/// Which pages or blocks need each key: by key id and version.
pub type Needs = BTreeMap<(u32, u32), Pages>;

/// How many pages or blocks need a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pages {
    /// All of them.
    pub all: u64,
    /// Those among them that InnoDB has freed.
    pub free: u64,
}

/// Why it is unknown which keys a file needs. Completes "cannot tell which keys 'FILE' needs: it …".
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A system call.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// What was read.
    #[error("{0}")]
    Malformed(&'static str),
    /// A format that this crate does not know.
    #[error("{0}, which this program does not know")]
    Unsupported(&'static str),
}

impl ScanError {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Counts one page or block. Version 0 stands for an unencrypted one.
pub fn count(needs: &mut Needs, key_id: u32, version: u32) {
    count_page(needs, key_id, version, false);
}

/// The same, of a page that may be free.
pub fn count_page(needs: &mut Needs, key_id: u32, version: u32, is_free: bool) {
    // One more than allowed, so that `check_versions` notices.
    if version != 0 && needs.len() <= MAX_VERSIONS {
        let pages = needs.entry((key_id, version)).or_default();
        pages.all += 1;
        pages.free += u64::from(is_free);
    }
}

/// Fails if a file needs more versions than an undamaged one can.
pub fn check_versions(needs: Needs) -> Result<Needs, ScanError> {
    if needs.len() > MAX_VERSIONS {
        return Err(ScanError::Malformed(
            "has more key versions than an undamaged file can have",
        ));
    }
    Ok(needs)
}

/// Opens a regular file. Never blocks: a FIFO or a device is an error.
pub fn open(path: &Path) -> Result<File, ScanError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(ScanError::Malformed("is not a regular file"));
    }
    Ok(file)
}

/// Calls `inspect` with the number and the bytes of each block of `file`, which is to begin at the
/// first.
pub fn for_each_block(
    file: &mut impl Read,
    block_bytes: usize,
    mut inspect: impl FnMut(u64, &[u8]),
) -> Result<(), ScanError> {
    let mut number = 0;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    loop {
        chunk.clear();
        file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        let blocks = chunk.chunks_exact(block_bytes);
        if !blocks.remainder().is_empty() {
            return Err(ScanError::Malformed("ends within a page"));
        }
        for block in blocks {
            inspect(number, block);
            number += 1;
        }
        if chunk.len() < CHUNK_BYTES {
            return Ok(());
        }
    }
}

/// Reads `bytes` at `offset`, fewer only at the end of the file.
pub fn read_at(file: &mut (impl Read + Seek), offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(bytes);
    file.seek(SeekFrom::Start(offset))?;
    file.take(bytes as u64).read_to_end(&mut buffer)?;
    Ok(buffer)
}

/// The `N` bytes at `offset`, if there are as many.
pub fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// A number of two bytes, the highest first.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_be_bytes)
}

/// A number of four bytes, the highest first.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_be_bytes)
}

/// A number of four bytes, the lowest first.
pub fn u32_le_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_le_bytes)
}

/// A number of eight bytes, the highest first.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_be_bytes)
}
