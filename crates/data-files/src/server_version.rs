//! Which servers wrote the files.
//!
//! No single file always names the last one: a server that was upgraded goes on with the redo log
//! and Aria's log of the one before it if their formats are the same. So all that name one are asked:
//! those logs, the file that mariadb-upgrade leaves behind, definitions of tables (mariadb-upgrade
//! renews them) and binary logs. The newest version among them counts.
//!
//! Sources: the server's `storage/innobase` (`LOG_HEADER_CREATOR`), `storage/maria/ma_loghandler.c`
//! (`translog_write_file_header`), `sql/table.cc` (`prepare_frm_header`) and the manual on
//! FORMAT_DESCRIPTION_EVENT; tried with 10.5, 10.11 and 11.8.

use std::{
    fmt,
    io::{Read, Seek},
    ops::Range,
};

use crate::scan::{ScanError, bytes_at, read_at, u32_le_at};

/// The releases (major and minor number) whose files the tests of this project read. Files of others
/// may have formats that this crate takes for something else.
pub const TESTED_RELEASES: [(u32, u32); 3] = [(10, 5), (10, 11), (11, 8)];

/// More than is read of any file.
const HEADER_BYTES: usize = 64;
const ARIA_LOG_MAGIC: [u8; 12] = *b"\xfe\xfe\x0b\x01MARIALOG";
const ARIA_LOG_SERVER: usize = 24;
const DEFINITION_MAGIC: [u8; 2] = *b"\xfe\x01";
const DEFINITION_SERVER: usize = 51;
/// After the header of the event and the version of the format.
const DESCRIPTION_SERVER: Range<usize> = 21..71;

/// The version of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    /// Major and minor number.
    pub release: (u32, u32),
    /// The third number.
    pub patch: u32,
}

impl ServerVersion {
    /// Whether the tests of this project read files of its release.
    pub fn is_tested(&self) -> bool {
        TESTED_RELEASES.contains(&self.release)
    }

    /// Parses a version as servers call themselves, `10.11.19-MariaDB-log`. None for anything else.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?.split('\0').next()?;
        let mut numbers = text.splitn(3, '.').map(|number| {
            let digits = number.bytes().take_while(u8::is_ascii_digit).count();
            number.get(..digits)?.parse().ok()
        });
        Some(Self {
            release: (numbers.next()??, numbers.next()??),
            patch: numbers.next()??,
        })
    }

    /// Takes a version apart that is written as one number, 101119 for 10.11.19.
    fn of_id(id: u32) -> Self {
        Self {
            release: (id / 10_000, id / 100 % 100),
            patch: id % 100,
        }
    }

    /// The program that created a redo log: `MariaDB 10.11.19`, or `Backup 10.11.19-MariaDB` for
    /// mariadb-backup.
    pub(crate) fn of_redo_log(creator: &[u8]) -> Option<Self> {
        let prefixes: [&[u8]; 2] = [b"MariaDB ", b"Backup "];
        let version = prefixes
            .iter()
            .find_map(|prefix| creator.strip_prefix(*prefix));
        Self::parse(version?)
    }

    /// The server that wrote a binary log, by the event at its beginning that describes the format.
    pub(crate) fn of_binary_log(description: &[u8]) -> Option<Self> {
        Self::parse(description.get(DESCRIPTION_SERVER)?)
    }

    /// The server that began a file of Aria's log. `None` if this crate does not know the format of `file`.
    pub fn of_aria_log(file: &mut (impl Read + Seek)) -> Result<Option<Self>, ScanError> {
        let header = read_at(file, 0, HEADER_BYTES)?;
        Ok(Self::at(&header, ARIA_LOG_MAGIC, ARIA_LOG_SERVER))
    }

    /// The server that wrote the definition of a table (`.frm`). None for a view, which has another
    /// form.
    pub fn of_table_definition(file: &mut (impl Read + Seek)) -> Result<Option<Self>, ScanError> {
        let header = read_at(file, 0, HEADER_BYTES)?;
        Ok(Self::at(&header, DEFINITION_MAGIC, DEFINITION_SERVER))
    }

    fn at<const N: usize>(header: &[u8], magic: [u8; N], offset: usize) -> Option<Self> {
        match bytes_at(header, 0) {
            Some(found) if found == magic => u32_le_at(header, offset).map(Self::of_id),
            _ => None,
        }
    }

    /// The server whose mariadb-upgrade left `mariadb_upgrade_info` behind, `mysql_upgrade_info`
    /// before 11.
    pub fn of_upgrade_info(file: &mut (impl Read + Seek)) -> Result<Option<Self>, ScanError> {
        Ok(Self::parse(&read_at(file, 0, HEADER_BYTES)?))
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.release;
        write!(formatter, "MariaDB {major}.{minor}.{}", self.patch)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn shown(version: Option<ServerVersion>) -> Option<(String, bool)> {
        version.map(|version| (version.to_string(), version.is_tested()))
    }

    #[test]
    fn names_of_servers_are_parsed_and_nothing_is_guessed() {
        let creator = |name: &[u8]| shown(ServerVersion::of_redo_log(name));
        let known = |text: &str, tested| Some((text.to_owned(), tested));
        assert_eq!(
            creator(b"MariaDB 10.11.19\0\0"),
            known("MariaDB 10.11.19", true)
        );
        assert_eq!(creator(b"MariaDB 10.5.29"), known("MariaDB 10.5.29", true));
        assert_eq!(
            creator(b"Backup 11.8.6-MariaDB\0"),
            known("MariaDB 11.8.6", true)
        );
        assert_eq!(creator(b"MariaDB 12.3.1\0"), known("MariaDB 12.3.1", false));
        assert_eq!(
            creator(b"MariaDB 10.6.21\0"),
            known("MariaDB 10.6.21", false)
        );
        assert_eq!(
            creator(b"MariaDB 110.5.1\0"),
            known("MariaDB 110.5.1", false)
        );
        for other in [
            &b""[..],
            b"\0",
            b"MySQL 8.0.36",
            b"MariaDB ",
            b"MariaDB 10.11",
            b"\xff",
        ] {
            assert_eq!(creator(other), None);
        }

        let mut description = vec![0; 80];
        description[21..45].copy_from_slice(b"11.8.9-MariaDB-ubu2404-l");
        let log = ServerVersion::of_binary_log(&description);
        assert_eq!(shown(log), known("MariaDB 11.8.9", true));
        assert_eq!(ServerVersion::of_binary_log(&description[..50]), None);

        let info = ServerVersion::of_upgrade_info(&mut Cursor::new("12.3.2-MariaDB\n"));
        assert_eq!(shown(info.unwrap()), known("MariaDB 12.3.2", false));
    }

    #[test]
    fn arias_log_and_definitions_of_tables_name_their_server() {
        let file = |magic: &[u8], offset: usize, id: u32| {
            let mut file = magic.to_vec();
            file.resize(offset, 0);
            file.extend(id.to_le_bytes());
            Cursor::new(file)
        };
        let mut log = file(&ARIA_LOG_MAGIC, ARIA_LOG_SERVER, 101_119);
        let version = ServerVersion::of_aria_log(&mut log).unwrap();
        assert_eq!(shown(version), Some(("MariaDB 10.11.19".into(), true)));
        let mut definition = file(&DEFINITION_MAGIC, DEFINITION_SERVER, 120_301);
        let version = ServerVersion::of_table_definition(&mut definition).unwrap();
        assert_eq!(shown(version), Some(("MariaDB 12.3.1".into(), false)));
        for bytes in [&ARIA_LOG_MAGIC[..], &[0; 64], b"TYPE=VIEW", b""] {
            let mut other = Cursor::new(bytes);
            assert_eq!(ServerVersion::of_aria_log(&mut other).unwrap(), None);
            assert_eq!(
                ServerVersion::of_table_definition(&mut other).unwrap(),
                None
            );
        }
    }
}
