//! The list of all data keys that a server has ever had: the file `aws-kms-keys.list` in its data
//! directory.
//!
//! ```text
//! aws-kms-keys 1
//! # ID VERSION ALGORITHM BITS CHECK_VALUE MASTER_KEY RECORDED
//! 1 1 AES_CBC 128 8d1f0a3c5b7e9d2f4a6c8e0b1d3f5a7c arn:aws:kms:eu-west-1:111122223333:key/1a2b 2026-11-26T07:20:44Z
//! 20 3 AES_CTR 256 00112233445566778899aabbccddeeff - 2026-11-26T07:20:45Z
//! sha256 5d41402abc4b2a76b9719d911017c592ae0c5c2f2b1c8d8c1d8f1a3a4b5c6d7e
//! ```
//!
//! It proves that a key existed when its file is missing, and which key a file must hold. A line `forked`
//! before the checksum says that the data directory is a copy whose original still uses the same keys. A line
//! `page_compressed ID` says that AES_CTR has encrypted page-compressed pages with this key. The checksum covers all
//! bytes before its line.

mod file;

use core::fmt::Write;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

pub use file::ManifestFile;

use crate::PlaintextKey;
use crate::check_value::CheckValue;
use crate::key_name::{Algorithm, KeyName, parse_number};

/// Name of the file. mariadb-backup copies what begins with `aws-kms-key`.
pub const MANIFEST_NAME: &str = "aws-kms-keys.list";

const MAGIC: &str = "aws-kms-keys";
const FORMAT: &str = "1";
const FORKED: &str = "forked";
const PAGE_COMPRESSED: &str = "page_compressed ";
const CHECKSUM: &str = "sha256 ";
const UNKNOWN: &str = "-";
/// ARNs have at most 2048 characters.
const MAX_ARN_BYTES: usize = 2048;

/// What is known of one key version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Id, version and algorithm.
    pub name: KeyName,
    /// Length of the key in bits: 128, 192 or 256.
    pub bits: u16,
    /// Identifies the key.
    pub check_value: CheckValue,
    /// ARN of the master key that wrapped it when it was recorded, if that is known.
    pub master_key_arn: Option<String>,
    /// When it was recorded, to the second.
    pub recorded: SystemTime,
}

impl Entry {
    /// An entry for a key that is recorded now.
    pub fn new(name: KeyName, key: &PlaintextKey, master_key_arn: &str) -> Self {
        Self {
            name,
            bits: key.bits(),
            check_value: CheckValue::of(key),
            master_key_arn: is_arn(master_key_arn).then(|| master_key_arn.to_owned()),
            recorded: SystemTime::now(),
        }
    }

    fn is_same_key(&self, other: &Self) -> bool {
        (self.name, self.bits, self.check_value) == (other.name, other.bits, other.check_value)
    }
}

fn is_arn(text: &str) -> bool {
    (1..=MAX_ARN_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic())
        && text != UNKNOWN
}

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It does not begin like one.
    #[error("does not begin with '{MAGIC} {FORMAT}'")]
    NotAManifest,
    /// It was written by a later release.
    #[error("has format {0}, which is that of a later release; this release reads format {FORMAT}")]
    Format(String),
    /// It was cut off or changed.
    #[error("is damaged: its checksum does not match")]
    Checksum,
    /// A line cannot be read, although the checksum matches.
    #[error("is damaged: line {0} cannot be read")]
    Line(usize),
}

/// Two lists that disagree about a key version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("records another key under the name {name} (check value {recorded} instead of {found})")]
pub struct DifferentKey {
    /// The key version.
    pub name: KeyName,
    /// The check value that is recorded.
    pub recorded: CheckValue,
    /// The check value of the other key.
    pub found: CheckValue,
}

/// A key that differs from the one that a manifest lists under its name. Completes "key file 'FILE' …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("holds {}, not the one that '{}' lists as {name}; put the right file back", match .holds {
    Some(other) => format!("the key of {other}"),
    None => "a key that this server has never had".into(),
}, .manifest.display())]
pub struct WrongKey {
    /// The key that it should be.
    pub name: KeyName,
    /// The key that it is, if the manifest lists that.
    pub holds: Option<KeyName>,
    /// The manifest.
    pub manifest: PathBuf,
}

/// All data keys that a server has ever had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    entries: BTreeMap<(u32, u32), Entry>,
    /// Whether the data directory is a copy whose original still uses the same keys.
    pub is_forked: bool,
    /// The keys that have encrypted page-compressed pages with AES_CTR.
    pub page_compressed: BTreeSet<u32>,
}

impl Manifest {
    /// The entry of a key version.
    pub fn get(&self, id: u32, version: u32) -> Option<&Entry> {
        self.entries.get(&(id, version))
    }

    /// Whether a key version is recorded as `entry` says, with its master key if the entry names one.
    fn has(&self, entry: &Entry) -> bool {
        self.get(entry.name.id, entry.name.version)
            .is_some_and(|recorded| {
                recorded.is_same_key(entry)
                    && (entry.master_key_arn.is_none()
                        || recorded.master_key_arn == entry.master_key_arn)
            })
    }

    /// The versions of a key, in order.
    pub fn versions(&self, id: u32) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries
            .range((id, 0)..=(id, u32::MAX))
            .map(|(_, entry)| entry)
    }

    /// All versions of all keys, in order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The key version that has this check value, whatever its name.
    pub fn find(&self, check_value: CheckValue) -> Option<&Entry> {
        self.entries()
            .find(|entry| entry.check_value == check_value)
    }

    /// Adds a key version, or records the master key that wraps it now. Returns false if nothing has
    /// changed.
    pub fn add(&mut self, entry: &Entry) -> Result<bool, DifferentKey> {
        let number = entry.name.number();
        let Some(recorded) = self.entries.get_mut(&number) else {
            self.entries.insert(number, entry.clone());
            return Ok(true);
        };
        if !recorded.is_same_key(entry) {
            return Err(DifferentKey {
                name: recorded.name,
                recorded: recorded.check_value,
                found: entry.check_value,
            });
        }
        let is_news =
            entry.master_key_arn.is_some() && recorded.master_key_arn != entry.master_key_arn;
        if is_news {
            recorded.master_key_arn.clone_from(&entry.master_key_arn);
        }
        Ok(is_news)
    }

    /// Reads the text of a manifest.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        let text = str::from_utf8(text).map_err(|_| ManifestError::NotAManifest)?;
        let (first, _) = text.split_once('\n').ok_or(ManifestError::NotAManifest)?;
        match first.split_once(' ') {
            Some((MAGIC, FORMAT)) => {}
            Some((MAGIC, format)) => {
                return Err(ManifestError::Format(format.chars().take(20).collect()));
            }
            _ => return Err(ManifestError::NotAManifest),
        }
        let mut manifest = Self::default();
        let lines = checked(text).ok_or(ManifestError::Checksum)?;
        for (index, line) in lines.lines().enumerate().skip(1) {
            if line == FORKED {
                manifest.is_forked = true;
            } else if let Some(id) = line.strip_prefix(PAGE_COMPRESSED) {
                let id = parse_number(id).ok_or(ManifestError::Line(index + 1))?;
                manifest.page_compressed.insert(id);
            } else if !line.starts_with('#') {
                let entry = parse_entry(line);
                entry
                    .and_then(|entry| manifest.add(&entry).ok())
                    .filter(|&is_new| is_new)
                    .ok_or(ManifestError::Line(index + 1))?;
            }
        }
        Ok(manifest)
    }

    /// Formats the manifest as [`Self::parse`] reads it.
    pub fn format(&self) -> String {
        let mut text = format!(
            "{MAGIC} {FORMAT}\n\
             # The data keys of this server, as aws_key_management records them. Do not edit.\n\
             # ID VERSION ALGORITHM BITS CHECK_VALUE MASTER_KEY RECORDED\n"
        );
        for entry in self.entries() {
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "{} {} {} {} {} {} {}",
                entry.name.id,
                entry.name.version,
                entry.name.algorithm,
                entry.bits,
                entry.check_value,
                entry.master_key_arn.as_deref().unwrap_or(UNKNOWN),
                humantime::format_rfc3339_seconds(in_formattable_years(entry.recorded)),
            );
        }
        for id in &self.page_compressed {
            let _ = writeln!(text, "{PAGE_COMPRESSED}{id}");
        }
        if self.is_forked {
            text.push_str(FORKED);
            text.push('\n');
        }
        Self::with_checksum(&text)
    }

    /// Adds the last line to the lines of a manifest.
    pub fn with_checksum(lines: &str) -> String {
        format!("{lines}{CHECKSUM}{}\n", checksum(lines))
    }
}

/// The text without its last line, if that is the checksum of the others.
fn checked(text: &str) -> Option<&str> {
    let without_end = text.strip_suffix('\n')?;
    let (_, last) = without_end.rsplit_once('\n')?;
    let lines = &without_end[..without_end.len() - last.len()];
    (last.strip_prefix(CHECKSUM)? == checksum(lines)).then_some(lines)
}

fn checksum(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A clock may be set to any year; the text has four digits for it.
fn in_formattable_years(time: SystemTime) -> SystemTime {
    const END_SECONDS: u64 = 253_402_300_799;
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(END_SECONDS);
    time.clamp(SystemTime::UNIX_EPOCH, end)
}

fn parse_entry(line: &str) -> Option<Entry> {
    let mut fields = line.split(' ');
    let id = parse_number(fields.next()?)?;
    let version = parse_number(fields.next()?)?;
    let algorithm = Algorithm::by_name(fields.next()?)?;
    let bits = fields
        .next()?
        .parse()
        .ok()
        .filter(|bits| matches!(bits, 128 | 192 | 256))?;
    let check_value = fields.next()?.parse().ok()?;
    let master_key_arn = match fields.next()? {
        UNKNOWN => None,
        arn if is_arn(arn) => Some(arn.to_owned()),
        _ => return None,
    };
    let recorded = humantime::parse_rfc3339(fields.next()?).ok()?;
    fields.next().is_none().then_some(Entry {
        name: KeyName {
            id,
            version,
            algorithm,
        },
        bits,
        check_value,
        master_key_arn,
        recorded,
    })
}

#[cfg(test)]
mod tests;
