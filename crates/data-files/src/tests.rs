//! Files that no server has written: the sizes and formats that exist, and bytes of any kind.
//! What servers write is read in `tests/tests/end_to_end/server_check_datadir.rs`.

use std::io::Cursor;

use proptest::{collection::vec, prelude::*};

use crate::{
    aria, binary_log,
    innodb::{self, SpaceKey},
    redo_log::{self, LogEnd},
    scan::{Needs, Pages, check_versions},
};

fn write(file: &mut [u8], offset: usize, bytes: &[u8]) {
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A tablespace whose pages have these key versions, and 0 on page 0.
pub(crate) fn tablespace(flags: u32, page_bytes: usize, crypt: usize, versions: &[u32]) -> Vec<u8> {
    let key_version = if flags & 16 == 0 { 26 } else { 0 };
    let mut file = vec![0; page_bytes * (versions.len() + 1)];
    write(&mut file, 24, &8u16.to_be_bytes());
    write(&mut file, 54, &flags.to_be_bytes());
    write(&mut file, crypt, b"s\x0e\x0cREt\x01\x10");
    write(&mut file, crypt + 28, &77u32.to_be_bytes());
    for (page, version) in versions.iter().enumerate() {
        let offset = (page + 1) * page_bytes + key_version;
        write(&mut file, offset, &version.to_be_bytes());
    }
    file
}

/// Key id and version, and how many pages.
fn needs<const N: usize>(pages: [((u32, u32), u64); N]) -> Needs {
    let pages = pages.map(|(key, all)| (key, Pages { all, free: 0 }));
    Needs::from(pages)
}

fn needs_of_tablespace(file: Vec<u8>) -> Option<Needs> {
    let mut file = Cursor::new(file);
    let layout = innodb::Layout::read(&mut file).ok()?;
    let _ = layout.read_trx_sys(&mut file);
    check_versions(layout.scan(&mut file, &[innodb::PAGE_0]).ok()?.needs).ok()
}

#[test]
fn tablespaces_of_every_page_size_and_format_tell_key_and_versions() {
    let expected = Some(needs([((77, 1), 2), ((77, 4_000_000_000), 1)]));
    // Flags, bytes of a page, and where the encryption is described there.
    for (flags, page_bytes, crypt) in [
        // full_crc32, 4 to 64 KiB
        (0x13, 4 << 10, 188 + 88 * 16),
        (0x14, 8 << 10, 188 + 56 * 64),
        (0x15, 16 << 10, 188 + 40 * 256),
        (0x16, 32 << 10, 188 + 40 * 512),
        (0x17, 64 << 10, 188 + 40 * 1024),
        // crc32, 4 to 64 KiB
        (3 << 6, 4 << 10, 188 + 88 * 16),
        (4 << 6, 8 << 10, 188 + 56 * 64),
        (0, 16 << 10, 188 + 40 * 256),
        (6 << 6, 32 << 10, 188 + 40 * 512),
        (7 << 6, 64 << 10, 188 + 40 * 1024),
        // ROW_FORMAT=COMPRESSED: KEY_BLOCK_SIZE 1 to 8 of 16 KiB, 2 of 4 KiB
        (1 << 1, 1 << 10, 188 + 40 * 16),
        (2 << 1, 2 << 10, 188 + 40 * 32),
        (3 << 1, 4 << 10, 188 + 40 * 64),
        (4 << 1, 8 << 10, 188 + 40 * 128),
        (3 << 6 | 2 << 1, 2 << 10, 188 + 88 * 8),
    ] {
        let file = tablespace(flags, page_bytes, crypt, &[1, 0, 4_000_000_000, 1]);
        assert_eq!(needs_of_tablespace(file), expected, "{flags:#x}");
    }
}

#[test]
fn page_0_names_the_key_and_says_whether_it_is_in_use() {
    let key_of = |kind: u8, min_key_version: u32, magic: &[u8]| {
        let crypt = 188 + 40 * 256;
        let mut bytes = tablespace(0x15, 16 << 10, crypt, &[]);
        write(&mut bytes, crypt, magic);
        write(&mut bytes, crypt + 6, &[kind]);
        write(&mut bytes, crypt + 24, &min_key_version.to_be_bytes());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        innodb::key_of_page_0(file.path()).unwrap()
    };
    let magic = b"s\x0e\x0cREt";
    let key = |in_use| Some(SpaceKey { key_id: 77, in_use });
    assert_eq!(key_of(1, 1, magic), key(true));
    assert_eq!(key_of(1, 0, magic), key(true));
    assert_eq!(key_of(0, 3, magic), key(true));
    assert_eq!(key_of(0, 0, magic), key(false));
    assert_eq!(key_of(1, 1, b"none.."), None);
}

#[test]
fn no_file_and_a_file_of_something_else_are_errors_in_place_of_no_key() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for bytes in [&b""[..], &[0; 20_000], b"\xfebin"] {
        std::fs::write(file.path(), bytes).unwrap();
        assert!(innodb::key_of_page_0(file.path()).is_err());
    }
    assert!(innodb::key_of_page_0(std::path::Path::new("/nonexistent")).is_err());
    assert!(innodb::key_of_page_0(std::path::Path::new("/dev/zero")).is_err());
}

/// What a descriptor has of four pages: the third is free, or the second, or none.
const THIRD_FREE: u8 = 0b10_11_10_10;
const SECOND_FREE: u8 = 0b10_10_11_10;
const NONE_FREE: u8 = 0b10_10_10_10;

#[test]
fn free_pages_are_told_by_the_descriptors_before_them() {
    for (flags, page_bytes, descriptor_bytes) in [
        (0x13, 4 << 10, 88),
        (0x15, 16 << 10, 40),
        (0x17, 64 << 10, 40),
        (1 << 1, 1 << 10, 40),
    ] {
        let crypt = innodb_crypt(page_bytes, descriptor_bytes);
        let mut file = tablespace(flags, page_bytes, crypt, &[1; 300]);
        write(&mut file, 150 + 24, &[THIRD_FREE]);
        write(&mut file, 150 + descriptor_bytes + 24, &[SECOND_FREE]);
        let pages = needs_of_tablespace(file).unwrap()[&(77, 1)];
        assert_eq!(pages, Pages { all: 300, free: 2 }, "{flags:#x}");
    }
}

#[test]
fn each_page_of_descriptors_is_for_as_many_pages_as_a_page_has_bytes() {
    let page_bytes = 1 << 10;
    let mut file = tablespace(1 << 1, page_bytes, 188 + 40 * 16, &[1; 1100]);
    write(&mut file, 150 + 24, &[THIRD_FREE]);
    let page_1024 = page_bytes * 1024;
    let free = |file: &[u8]| needs_of_tablespace(file.to_vec()).unwrap()[&(77, 1)].free;
    // A page that is none of descriptors tells nothing.
    write(&mut file, page_1024 + 150 + 24, &[SECOND_FREE]);
    assert_eq!(free(&file), 1);
    write(&mut file, page_1024 + 24, &9u16.to_be_bytes());
    assert_eq!(free(&file), 2);
    write(&mut file, page_1024 + 150 + 24, &[NONE_FREE]);
    assert_eq!(free(&file), 1);
}

/// Where page 0 describes the encryption.
fn innodb_crypt(page_bytes: usize, descriptor_bytes: usize) -> usize {
    let extent_pages = (descriptor_bytes - 24) * 4;
    188 + descriptor_bytes * (page_bytes / extent_pages)
}

#[test]
fn encrypted_pages_of_which_nobody_tells_the_key_are_no_answer() {
    let mut file = tablespace(0x15, 16 << 10, 188 + 40 * 256, &[1]);
    write(&mut file, 188 + 40 * 256, b"S");
    assert_eq!(needs_of_tablespace(file), None);
}

#[test]
fn a_file_of_pages_without_sense_is_no_answer_and_fills_no_memory() {
    let versions: Vec<u32> = (1..=20_000).collect();
    let file = tablespace(1 << 1, 1 << 10, 188 + 40 * 16, &versions);
    assert_eq!(needs_of_tablespace(file), None);
}

/// A log as 10.8 writes it, with a checkpoint at its first byte.
pub(crate) fn redo_log_10_8(format: &[u8], records: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 20480];
    write(&mut file, 0, format);
    write(&mut file, 8, &12288u64.to_be_bytes());
    write(&mut file, 48, &[0, 0, 0, 1, 0, 0, 0, 5]);
    for checkpoint in [4096, 4104] {
        write(&mut file, checkpoint, &12288u64.to_be_bytes());
    }
    write(&mut file, 12288, records);
    file
}

/// A log as 10.5 writes it: the checkpoint in the first block, and so many blocks in all.
pub(crate) fn redo_log_10_5(blocks: u32) -> Vec<u8> {
    let mut file = vec![0; 20480];
    write(&mut file, 0, b"\xd0HYS");
    for (offset, value) in [(0, 1u64), (8, 10_000), (16, 2064), (496, 10_000)] {
        write(&mut file, 512 + offset, &value.to_be_bytes());
    }
    for block in 0..blocks {
        let offset = 2048 + 512 * block as usize;
        write(&mut file, offset, &(20 + block).to_be_bytes());
        write(&mut file, offset + 504, &(3 + block).to_be_bytes());
    }
    file
}

fn redo_log(file: Vec<u8>) -> (Needs, LogEnd) {
    let log = redo_log::scan(&mut Cursor::new(file)).unwrap();
    (log.needs, log.end)
}

#[test]
fn redo_logs_tell_their_versions_and_whether_there_is_something_to_recover() {
    let checkpoint_only = |bytes| {
        let mut records = vec![1; bytes];
        records[0] = 0xfa;
        [records, vec![0]].concat()
    };
    let version_5 = needs([((1, 5), 1)]);
    for format in [b"\xd0hys", b"\xf0\x9f\x97\x9d"] {
        let clean = redo_log_10_8(format, &checkpoint_only(24));
        assert_eq!(redo_log(clean), (version_5.clone(), LogEnd::Clean));
    }
    assert!(redo_log::scan(&mut Cursor::new(redo_log_10_8(b"what", &[]))).is_err());
    let clear = redo_log_10_8(b"Phys", &checkpoint_only(16));
    assert_eq!(redo_log(clear), (Needs::new(), LogEnd::Clean));
    for records in [checkpoint_only(30), vec![0x35; 40]] {
        let unclean = redo_log_10_8(b"\xd0hys", &records);
        assert_eq!(redo_log(unclean), (version_5.clone(), LogEnd::Unclean));
    }

    let one = needs([((1, 3), 1)]);
    assert_eq!(
        redo_log(redo_log_10_5(1)),
        (one, LogEnd::CleanIfFlushedTo(10_000))
    );
    let two = needs([((1, 3), 1), ((1, 4), 1)]);
    assert_eq!(redo_log(redo_log_10_5(2)), (two, LogEnd::Unclean));
    assert_eq!(redo_log(Vec::new()), (Needs::new(), LogEnd::Clean));
}

/// An index file of a transactional table with blocks of 1 KiB, one of them after the header.
pub(crate) fn aria_index() -> Vec<u8> {
    let mut file = vec![0; 2048];
    write(&mut file, 0, b"\xfe\xfe\x09\x03");
    write(&mut file, 12, &200u16.to_be_bytes());
    file[22] = 3;
    write(&mut file, 200 + 16, &1024u64.to_be_bytes());
    write(&mut file, 200 + 90, &1u16.to_be_bytes());
    write(&mut file, 200 + 100, &1024u16.to_be_bytes());
    file[200 + 106] = 1;
    write(&mut file, 1024 + 13, &6u32.to_le_bytes());
    file
}

fn needs_of_aria(file: &[u8]) -> Option<Needs> {
    let mut index = Cursor::new(file);
    let layout = aria::Layout::read(&mut index).ok()??;
    let _ = layout.scan_data(&mut Cursor::new(file));
    layout.scan_index(&mut index).ok()
}

pub(crate) fn binary_log_file(version: u32) -> Vec<u8> {
    let mut file = vec![0; 100];
    write(&mut file, 0, &binary_log::MAGIC);
    write(&mut file, 4 + 9, &30u32.to_le_bytes());
    write(&mut file, 34 + 4, &[164]);
    write(&mut file, 34 + 19, &[1]);
    write(&mut file, 34 + 20, &version.to_le_bytes());
    file
}

#[test]
fn an_index_of_aria_and_a_binary_log_tell_their_versions() {
    assert_eq!(needs_of_aria(&aria_index()), Some(needs([((1, 6), 1)])));
    let log = binary_log::scan(&mut Cursor::new(binary_log_file(9))).unwrap();
    assert_eq!(log.needs, needs([((1, 9), 1)]));
}

fn scan_as_everything(file: &[u8]) {
    needs_of_tablespace(file.to_vec());
    let _ = redo_log::scan(&mut Cursor::new(file));
    let _ = binary_log::scan(&mut Cursor::new(file));
    needs_of_aria(file);
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_no_trouble(
        file in prop_oneof![
            Just(tablespace(0x13, 4 << 10, 188 + 88 * 16, &[1, 2, 0, 0, 0, 3])),
            Just(redo_log_10_8(b"\xd0hys", b"\xfa")),
            Just(redo_log_10_5(3)),
            Just(aria_index()),
            Just(binary_log_file(1)),
            vec(any::<u8>(), 0..600),
        ],
        // Where formats have numbers, mostly.
        damage in vec((prop_oneof![0usize..600, 0usize..25_000], any::<u8>()), 0..12),
        length in 0usize..25_000,
    ) {
        let mut file = file;
        for (offset, byte) in damage {
            if let Some(place) = file.get_mut(offset) {
                *place = byte;
            }
        }
        scan_as_everything(&file);
        file.truncate(length);
        scan_as_everything(&file);
    }
}
