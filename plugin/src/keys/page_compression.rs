//! Notices page-compressed tables that AES_CTR encrypts.
//!
//! When InnoDB recovers a page-compressed page after a crash, it can write the page again under the same LSN and so with
//! the same IV, while some of the compressed bytes differ. Two different texts under one keystream would reveal where
//! they differ. So the manifest records a key that encrypts such pages, and the key gets an AES_CBC version at the next
//! start, before InnoDB recovers anything.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock};

use data_files::innodb::Layout;
use key_files::manifest::ManifestFile;

use crate::keys::private_descriptors;
use crate::lock::lock;
use crate::server::log;

/// What InnoDB leaves in the clear of a page: the header up to the key version, and the checksum. Source:
/// `fil_encrypt_buf_for_full_crc32` of `fil0crypt.cc`.
const CLEAR_BYTES_FULL_CRC32: usize = 26 + 4;
/// The same without `innodb_checksum_algorithm=full_crc32`: header and trailer. Source:
/// `fil_encrypt_buf_for_non_full_crc32`.
const CLEAR_BYTES: usize = 38 + 8;
/// `innodb_page_size` unless somebody has set it.
const DEFAULT_PAGE_BYTES: usize = 16 << 10;

/// The keys that have been noticed.
#[derive(Debug, Default)]
pub struct PageCompression {
    noticed: Mutex<BTreeSet<u32>>,
    page_bytes: OnceLock<usize>,
}

impl PageCompression {
    /// Takes note of a piece of data that AES_CTR is about to encrypt without padding with a key from 3 on, as it only
    /// does for pages of InnoDB. Other pages than page-compressed ones have a fixed length.
    pub fn notice(&self, id: u32, encrypted_bytes: usize, manifest: &ManifestFile) {
        if is_whole_page(encrypted_bytes, || self.innodb_page_bytes(manifest))
            || !lock(&self.noticed).insert(id)
            || manifest.is_page_compressed(id)
        {
            return;
        }
        match manifest.record_page_compressed(id) {
            Ok(()) => log::warning(&format!(
                "key {id} encrypts page-compressed tables with AES_CTR, which is not safe for them after a crash; the next start of the server makes an AES_CBC version of the key, and so does aws_key_management_rotate_key={id}"
            )),
            Err(error) => log::error(&format!(
                "{error}; key {id} encrypts page-compressed tables with AES_CTR, which is not safe for them after a crash, and the next start will not know that: SET GLOBAL aws_key_management_rotate_key={id} to make an AES_CBC version now"
            )),
        }
    }

    /// Whether AES_CTR has encrypted page-compressed pages with a key, in this run of the server or before.
    pub fn is_noticed(&self, id: u32, manifest: &ManifestFile) -> bool {
        lock(&self.noticed).contains(&id) || manifest.is_page_compressed(id)
    }

    /// `innodb_page_size`, which the server does not tell. A wrong value makes a key switch to AES_CBC that need not.
    fn innodb_page_bytes(&self, manifest: &ManifestFile) -> usize {
        *self.page_bytes.get_or_init(|| {
            let path = manifest.datadir().join("ibdata1");
            let layout = private_descriptors::run(|| {
                let mut system_tablespace = data_files::scan::open(&path)?;
                Layout::read(&mut system_tablespace)
            });
            match layout {
                Ok(Ok(layout)) => layout.page_bytes(),
                _ => DEFAULT_PAGE_BYTES,
            }
        })
    }
}

/// Whether a piece of a page has the length that it has of a page that is not page-compressed, which may be of a table
/// with ROW_FORMAT=COMPRESSED.
fn is_whole_page(encrypted_bytes: usize, page_bytes: impl FnOnce() -> usize) -> bool {
    (encrypted_bytes + CLEAR_BYTES).is_power_of_two()
        || encrypted_bytes + CLEAR_BYTES_FULL_CRC32 == page_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pages_are_told_from_page_compressed_ones() {
        let is_whole = |bytes| is_whole_page(bytes, || 16384);
        assert!(is_whole(16384 - 30));
        for page in [1024, 2048, 4096, 8192, 16384] {
            assert!(is_whole(page - 46), "{page}");
        }
        for compressed in (1..64).map(|units| units * 256 - 30) {
            assert!(!is_whole(compressed), "{compressed}");
        }
        assert!(!is_whole(5000));
    }
}
