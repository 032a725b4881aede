//! The tables, and what is in a row: nothing but a function of table, id and generation, so that a
//! committed row is known by two numbers.

use std::path::Path;

use crate::contains_bytes;

/// Begins the text of every row that is encrypted. Nothing else on the machine has it.
pub(super) const MARKER: &str = "chaos-marker-that-nobody-else-writes";
/// The same for Aria.
const ARIA_MARKER: &str = "chaos-marker-of-aria";
/// The same in tables that are not, or not always, encrypted.
pub(super) const CONTROL: &str = "chaos-text-that-is-in-the-clear";
/// The file of the table that is never encrypted.
pub(super) const CONTROL_FILE: &str = "d/control.ibd";
/// Rows of that table.
const CONTROL_ROWS: u32 = 200;

/// How a table is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Indexed,
    Redundant,
    Compressed,
    PageCompressed,
    Partitioned,
    Aria,
    /// Encrypted and decrypted by turns.
    Toggled,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Plain,
        Self::Indexed,
        Self::Redundant,
        Self::Compressed,
        Self::PageCompressed,
        Self::Partitioned,
        Self::Aria,
        Self::Toggled,
    ];

    /// Whether several statements are one transaction, and the table may have a key of its own.
    pub fn is_innodb(self) -> bool {
        self != Self::Aria
    }

    fn text_start(self) -> &'static str {
        match self {
            Self::Toggled => CONTROL,
            Self::Aria => ARIA_MARKER,
            _ => MARKER,
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Plain | Self::Indexed | Self::Partitioned | Self::Toggled => "ENGINE=InnoDB",
            Self::Redundant => "ENGINE=InnoDB ROW_FORMAT=REDUNDANT",
            Self::Compressed => "ENGINE=InnoDB ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=8",
            Self::PageCompressed => "ENGINE=InnoDB PAGE_COMPRESSED=1",
            Self::Aria => "ENGINE=Aria TRANSACTIONAL=1",
        }
    }
}

/// The statement that makes a table.
pub(super) fn create_table(number: u32, kind: Kind, key_id: u32) -> String {
    let index = match kind {
        Kind::Indexed => ", KEY by_t (t(40), generation)",
        _ => "",
    };
    let encryption = match kind {
        Kind::Aria => String::new(),
        _ => format!("ENCRYPTED=YES ENCRYPTION_KEY_ID={key_id}"),
    };
    let partitions = match kind {
        Kind::Partitioned => "PARTITION BY HASH (id) PARTITIONS 3",
        _ => "",
    };
    format!(
        "CREATE TABLE d.t{number} (id INT UNSIGNED PRIMARY KEY, generation INT UNSIGNED NOT NULL, \
         k INT UNSIGNED NOT NULL, t MEDIUMBLOB NOT NULL, KEY by_k (k){index}) \
         {} {encryption} {partitions}",
        kind.options()
    )
}

/// What the column `k` has, in SQL.
pub(super) fn k_of(number: u32, id: &str, generation: &str) -> String {
    format!("CRC32(CONCAT_WS(':', {number}, {id}, {generation}))")
}

/// What the column `t` has, in SQL: 70 to 700 bytes, sometimes 10 KB, which InnoDB keeps in pages
/// of their own.
pub(super) fn text_of(number: u32, kind: Kind, id: &str, generation: &str) -> String {
    format!(
        "CONCAT('{}', REPEAT(MD5(CONCAT_WS(':', {number}, {id}, {generation})), \
         IF({id} % 41 = 0, 300, 1 + ({id} * 7 + {generation}) % 20)))",
        kind.text_start()
    )
}

/// What a file has in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cleartext {
    None,
    /// What MariaDB leaves in the clear, whatever the plugin.
    OfMariaDb,
    /// Something that must be encrypted.
    Marker,
}

/// Looks for the markers in a file.
///
/// MariaDB does not encrypt (the last two seen with file_key_management too):
/// - Aria's log (MDEV-8587);
/// - what is behind the used part of a page of Aria's index: a rebuild leaves memory of the server
///   there, with rows of any table;
/// - the file without a name to which ALTER TABLE … ALGORITHM=COPY writes the BLOBs of InnoDB, one
///   behind the other and nothing else;
/// - the file without a name that has the output of InnoDB's monitor, with the text of statements.
pub(super) fn cleartext(name: &Path, content: &[u8]) -> Cleartext {
    let has = |marker: &str| contains_bytes(content, marker.as_bytes());
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let (has_marker, has_aria_marker) = (has(MARKER), has(ARIA_MARKER));
    // A file that was removed and is open has more behind its name.
    let is_aria_index = name.contains(".MAI");
    let has_no_name = name.starts_with('#') && name.ends_with(" (deleted)");
    let is_file_of_blobs = has_no_name && content.starts_with(MARKER.as_bytes());
    let is_monitor = has_no_name && contains_bytes(content, b"INNODB MONITOR OUTPUT");
    match (has_marker, has_aria_marker) {
        (false, false) => Cleartext::None,
        _ if is_aria_index || is_file_of_blobs || is_monitor => Cleartext::OfMariaDb,
        (false, true) if name.starts_with("aria_log.") => Cleartext::OfMariaDb,
        _ => Cleartext::Marker,
    }
}

/// Makes the table in the clear.
pub(super) fn create_control() -> String {
    format!(
        "CREATE TABLE d.control (id INT PRIMARY KEY, t BLOB) ENGINE=InnoDB ENCRYPTED=NO;
         INSERT INTO d.control SELECT seq, CONCAT('{CONTROL}', MD5(seq)) FROM d.seq_1_to_{CONTROL_ROWS};
         FLUSH TABLES d.control FOR EXPORT; UNLOCK TABLES"
    )
}

/// A query of the table in the clear, and what it must return.
pub(super) fn read_control() -> (String, String) {
    (
        format!("SELECT COUNT(*), MIN(t = CONCAT('{CONTROL}', MD5(id))) FROM d.control"),
        format!("{CONTROL_ROWS}\t1"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_in_the_clear_is_found_and_what_mariadb_does_told_apart() {
        for (name, content, expected) in [
            ("data/d/t1.ibd", "nothing", Cleartext::None),
            ("data/d/t1.ibd", MARKER, Cleartext::Marker),
            ("data/d/t7.MAD", ARIA_MARKER, Cleartext::Marker),
            ("data/d/t7.MAI", ARIA_MARKER, Cleartext::OfMariaDb),
            (
                "tmp/#sql-temptable.MAI (deleted)",
                MARKER,
                Cleartext::OfMariaDb,
            ),
            ("data/aria_log.00000001", ARIA_MARKER, Cleartext::OfMariaDb),
            ("data/aria_log.00000001", MARKER, Cleartext::Marker),
            ("data/binlog.000001", ARIA_MARKER, Cleartext::Marker),
        ] {
            let content = format!("before {content} after");
            let found = cleartext(Path::new(name), content.as_bytes());
            assert_eq!(found, expected, "{name}");
        }
        let unnamed = Path::new("tmp/#10011314 (deleted)");
        for (content, expected) in [
            (format!("{MARKER}c4ca{MARKER}c81e"), Cleartext::OfMariaDb),
            (format!("a record: {MARKER}c4ca"), Cleartext::Marker),
            (
                format!("INNODB MONITOR OUTPUT\nINSERT INTO t VALUES ('{MARKER}')"),
                Cleartext::OfMariaDb,
            ),
        ] {
            assert_eq!(cleartext(unnamed, content.as_bytes()), expected);
        }
    }
}
