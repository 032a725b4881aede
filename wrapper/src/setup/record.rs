//! What setup has written, so that it can tell its files from those of a person.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::setup::{
    error::SetupError,
    files::{self, ANSWERED_KEYS, CONFIG},
};

/// Where the record is.
pub const RECORD: &str = "/var/lib/iam-kms-wrapper/setup.json";

/// End of the name of a file that is not complete yet.
const TEMPORARY: &str = ".iam-kms-wrapper-setup";

/// What setup has written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// SHA-256 of each file, in hexadecimal. While files are being written: of what was there and of what is to be,
    /// so that an interrupted setup knows both for its own.
    pub files: BTreeMap<PathBuf, Vec<String>>,
    /// What setup has written into the configuration, to which a person may add lines. While files are being written:
    /// of what was there and of what is to be. Earlier builds of this release noted none.
    #[serde(default)]
    pub configurations: Vec<String>,
    /// Directories that were not there, outermost first.
    pub directories: Vec<PathBuf>,
    /// Whether the broker's service was enabled.
    pub has_enabled_broker: bool,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// What setup has written.
    Ours,
    /// What a person has written or changed.
    Foreign,
}

impl Record {
    /// Reads the record; `None` if there is none.
    pub fn read() -> Result<Option<Self>, SetupError> {
        let path = Path::new(RECORD);
        let Some(bytes) = read(path)? else {
            return Ok(None);
        };
        let record = serde_json::from_slice(&bytes).map_err(io::Error::from);
        record.map(Some).map_err(SetupError::file("read", path))
    }

    /// Makes it durable.
    pub fn write(&self) -> Result<(), SetupError> {
        let path = Path::new(RECORD);
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        text.and_then(|text| {
            let directory = path.parent().unwrap_or(path);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
            write(path, 0o600, &text)
        })
        .map_err(SetupError::file("write", path))
    }

    /// The configuration and the lines that a person has added to it; `None` if something else is there.
    pub fn configuration(&self) -> Result<Option<(String, Vec<String>)>, SetupError> {
        let content = read(Path::new(CONFIG))?;
        let Some(text) = content.and_then(|content| String::from_utf8(content.to_vec()).ok())
        else {
            return Ok(None);
        };
        let mut written = self.configurations.iter();
        let added = written.find_map(|written| added_lines(&text, written));
        // A second value for what setup asks for would count in place of the first.
        let is_answer = |line: &String| ANSWERED_KEYS.contains(&files::key(line));
        let added = added.filter(|added| !added.iter().any(is_answer));
        Ok(added.map(|added| (text, added)))
    }

    /// Looks at what is at `path`.
    pub fn find(&self, path: &Path) -> Result<Found, SetupError> {
        if is_masked(path) {
            return Ok(Found::Foreign);
        }
        let Some(content) = read(path)? else {
            return Ok(Found::Nothing);
        };
        let known = self.files.get(path);
        let is_ours = known.is_some_and(|sums| sums.contains(&checksum(&content)))
            || path == Path::new(CONFIG) && self.configuration()?.is_some();
        Ok(match is_ours {
            true => Found::Ours,
            false => Found::Foreign,
        })
    }

    /// Notes that a file with this content is to be setup's own, beside what is noted of it already.
    pub fn add(&mut self, path: &Path, content: &[u8]) {
        let sums = self.files.entry(path.to_owned()).or_default();
        let sum = checksum(content);
        if !sums.contains(&sum) {
            sums.push(sum);
        }
        for ancestor in path.ancestors().skip(1).take_while(|a| !a.exists()) {
            if !self.directories.iter().any(|known| known == ancestor) {
                self.directories.push(ancestor.to_owned());
            }
        }
        self.directories.sort();
    }
}

/// The lines of `text` beside those of `written`; `None` if those are not all there, in their order.
pub fn added_lines(text: &str, written: &str) -> Option<Vec<String>> {
    let mut expected = written.lines().peekable();
    let added = text
        .lines()
        .filter(|line| expected.next_if_eq(line).is_none());
    let added = added.map(str::to_owned).collect();
    expected.next().is_none().then_some(added)
}

/// Removes the record, as the last trace.
pub fn remove() -> Result<(), SetupError> {
    let path = Path::new(RECORD);
    remove_file(path)?;
    remove_directory(path.parent().unwrap_or(path))
}

/// Whether `path` is a link to /dev/null, which to systemd is a file that is not there.
pub fn is_masked(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target == Path::new("/dev/null"))
}

/// Reads a regular file; `None` if there is nothing.
pub fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, SetupError> {
    let content = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if !metadata.is_file() => Err(io::Error::other("it is not a regular file")),
        found => found.and_then(|_| fs::read(path)),
    };
    let content = content.map(|bytes| Some(Zeroizing::new(bytes)));
    content.map_err(SetupError::file("read", path))
}

/// Writes a file, and its directory if there is none.
pub fn write_file(path: &Path, mode: u32, content: &[u8]) -> Result<(), SetupError> {
    let directory = path.parent().unwrap_or(path);
    fs::create_dir_all(directory)
        .and_then(|()| write(path, mode, content))
        .map_err(SetupError::file("write", path))
}

/// Removes a file, if it is there, and what is left of one that was not written to its end.
pub fn remove_file(path: &Path) -> Result<(), SetupError> {
    for path in [path, &temporary(path)] {
        remove_if_there(path).map_err(SetupError::file("remove", path))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory, unless it is not empty or not there, or somebody has put a link or a mount in its place.
pub fn remove_directory(path: &Path) -> Result<(), SetupError> {
    match fs::remove_dir(path) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::ResourceBusy
            ) =>
        {
            Err(SetupError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Writes the whole file or nothing of it.
fn write(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    remove_if_there(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// Neither MariaDB nor systemd reads a file of such a name.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    name.into()
}

fn checksum(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_does_not_note_the_configuration_is_read() {
        let text = r#"{"files": {}, "directories": ["/etc/x"], "has_enabled_broker": true}"#;
        let expected = Record {
            directories: vec!["/etc/x".into()],
            has_enabled_broker: true,
            ..Record::default()
        };
        assert_eq!(serde_json::from_str::<Record>(text).unwrap(), expected);
    }
}
