//! The text of a key file, with one key on each line.
//!
//! ```text
//! # a comment
//! 1;770A8A65DA156D24EE2A093277530142
//! 1;2;0A63A1A2F0E5D1C9B1B0E6CBB3A0D4F7
//! 2;F5502320F8429037B8DAEF761B189D12F5502320F8429037B8DAEF761B189D12 #aws-kms-key.2.1
//! #aws-kms-key.2.2.ctr;4B1D7F6C0E0F5A3A6E0C8B5B8C9D1E2F
//! ```
//!
//! The first key has the format that every file_key_management reads: a key id, `;`, and 16, 24 or 32 bytes in
//! hexadecimal digits. It is version 1 of that key. The second has the format of MariaDB Enterprise Server 11.8,
//! with the version as the second field. file_key_management ignores the rest of a line, and lines that begin with
//! `#`. These places can therefore hold the algorithm of a key, as the name of its key file (see
//! [`key_files::key_name`]), and further versions of keys for servers that do not support versions.
//!
//! Source: MariaDB's manual, [File Key Management Encryption
//! Plugin](https://mariadb.com/docs/server/security/encryption/data-at-rest-encryption/key-management-and-encryption-plugins/file-key-management-encryption-plugin),
//! and the behaviour of the servers.

use std::collections::BTreeMap;
use std::fmt::Write;

use key_files::PlaintextKey;
use key_files::key_name::{Algorithm, KeyName, ParsedName, is_valid_number};
use zeroize::Zeroizing;

const LONGEST_KEY_BYTES: usize = 32;
/// The version of a key whose line names none.
pub const PLAIN_VERSION: u32 = 1;

/// A key version in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineKey {
    /// Id, version and algorithm.
    pub name: KeyName,
    /// The key.
    pub key: PlaintextKey,
}

/// Why a text is not a list of keys. The message never contains a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line} {problem}")]
pub struct SyntaxError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with the line.
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Any other defect.
    #[error(
        "is neither a comment nor a key, which is an id, a version if there is one, and hexadecimal digits, with semicolons between them"
    )]
    NotAKey,
    /// The key id is out of range.
    #[error("has no valid key id (1 to 4294967294)")]
    Id,
    /// The version is out of range.
    #[error("has no valid key version (1 to 4294967294)")]
    Version,
    /// The key has the wrong length or contains something other than hexadecimal digits.
    #[error("has no key of 16, 24 or 32 bytes in hexadecimal digits")]
    Key,
    /// A comment begins like the name of a key file, but is not the name of this key's file.
    #[error(
        "has a comment that must be '#aws-kms-key.ID.VERSION' with the id and version of its key"
    )]
    Name,
    /// The same key version appears twice. file_key_management silently uses the later one.
    #[error(
        "has the same key and version as line {0}: delete the wrong one (file_key_management silently uses the later)"
    )]
    Duplicate(
        /// Number of the other line.
        usize,
    ),
}

/// Returns the keys of a file, in the order of their names. `unnamed` is the algorithm of keys whose lines name
/// none. Comments may have any encoding.
///
/// Errors: the first invalid line, or a key version that appears twice.
pub fn parse(text: &[u8], unnamed: Algorithm) -> Result<Vec<OfflineKey>, SyntaxError> {
    let mut keys = BTreeMap::new();
    let mut lines = BTreeMap::new();
    for (index, content) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = index + 1;
        let failed = |problem| SyntaxError { line, problem };
        let Some(key) = parse_line(content, unnamed).map_err(failed)? else {
            continue;
        };
        if let Some(other) = lines.insert(key.name.number(), line) {
            return Err(failed(Problem::Duplicate(other)));
        }
        keys.insert(key.name, key);
    }
    Ok(keys.into_values().collect())
}

/// Returns whether any line is a key.
pub(crate) fn has_key(text: &[u8]) -> bool {
    text.split(|&byte| byte == b'\n')
        .any(|line| matches!(parse_line(line, Algorithm::AesCbc), Ok(Some(_))))
}

fn parse_line(line: &[u8], unnamed: Algorithm) -> Result<Option<OfflineKey>, Problem> {
    let line = line.trim_ascii();
    match line.first() {
        None => Ok(None),
        Some(b'#') => match parse_name(line)? {
            Some((name, rest)) => {
                let digits = rest.strip_prefix(b";").ok_or(Problem::Name)?;
                let (key, _) = parse_key(digits)?;
                Ok(Some(OfflineKey { name, key }))
            }
            None => Ok(None),
        },
        Some(byte) if byte.is_ascii_digit() => parse_plain(line, unnamed).map(Some),
        Some(_) => Err(Problem::NotAKey),
    }
}

/// Parses a line that file_key_management reads too; one with a version, since MariaDB Enterprise 11.8.
fn parse_plain(line: &[u8], unnamed: Algorithm) -> Result<OfflineKey, Problem> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (id, rest) = line.split_at(digits);
    let id = parse_number(id).ok_or(Problem::Id)?;
    let rest = rest.strip_prefix(b";").ok_or(Problem::NotAKey)?;
    let (version, rest) = parse_version(rest)?;
    let (key, rest) = parse_key(rest)?;
    let name = KeyName {
        id,
        version,
        algorithm: unnamed,
    };
    match parse_name(rest.trim_ascii_start())? {
        None => Ok(OfflineKey { name, key }),
        Some((named, b"")) if named.number() == (id, version) => {
            Ok(OfflineKey { name: named, key })
        }
        Some(_) => Err(Problem::Name),
    }
}

/// Parses a key id or version. It may have zeros in front, as for file_key_management.
fn parse_number(digits: &[u8]) -> Option<u32> {
    let number = str::from_utf8(digits).ok()?.parse().ok()?;
    is_valid_number(number).then_some(number)
}

/// Splits a version and the key that follows it. The digits of a key may all be decimal, but a version is shorter
/// than any key.
fn parse_version(text: &[u8]) -> Result<(u32, &[u8]), Problem> {
    const LONGEST_VERSION_DIGITS: usize = 10;
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match text.split_at(digits) {
        (version @ [_, ..], [b';', key @ ..]) if digits <= LONGEST_VERSION_DIGITS => {
            let version = parse_number(version).ok_or(Problem::Version)?;
            Ok((version, key))
        }
        _ => Ok((PLAIN_VERSION, text)),
    }
}

/// Splits a key and the text that follows it.
fn parse_key(text: &[u8]) -> Result<(PlaintextKey, &[u8]), Problem> {
    let digits = text
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (digits, rest) = text.split_at(digits);
    if digits.len() > 2 * LONGEST_KEY_BYTES {
        return Err(Problem::Key);
    }
    // Allocated at its maximum length: growing would leave a copy of the secret behind.
    let mut key = Zeroizing::new(Vec::with_capacity(LONGEST_KEY_BYTES));
    let (pairs, odd) = digits.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(Problem::Key);
    }
    for &[high, low] in pairs {
        let value = |digit: u8| char::from(digit).to_digit(16).ok_or(Problem::Key);
        let byte = value(high)? * 16 + value(low)?;
        key.push(u8::try_from(byte).map_err(|_| Problem::Key)?);
    }
    let key = PlaintextKey::new(&key).map_err(|_| Problem::Key)?;
    Ok((key, rest))
}

/// Splits the name in a comment `#aws-kms-key.…` and the text that follows it. `None` for other comments.
fn parse_name(comment: &[u8]) -> Result<Option<(KeyName, &[u8])>, Problem> {
    let Some(comment) = comment.strip_prefix(b"#") else {
        return Ok(None);
    };
    let end = comment.iter().position(|byte| b"; \t".contains(byte));
    let (name, rest) = comment.split_at(end.unwrap_or(comment.len()));
    match KeyName::parse(name) {
        ParsedName::Key(name) => Ok(Some((name, rest))),
        ParsedName::Malformed => Err(Problem::Name),
        ParsedName::Temporary | ParsedName::Other => Ok(None),
    }
}

/// The format of the lines of a key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `id;key` for version 1, and further versions in comments. Algorithms are preserved.
    Community,
    /// `id;version;key`, as in MariaDB Enterprise 11.8. Algorithms cannot be written.
    Enterprise,
}

/// Writes the text of a key file.
pub fn format(keys: &[OfflineKey], form: Form) -> Zeroizing<String> {
    const LONGEST_LINE_BYTES: usize = 128;
    let head = match form {
        Form::Community => {
            "# Data keys of MariaDB. file_key_management takes those that begin with their id.\n"
        }
        Form::Enterprise => "",
    };
    // Allocated at its maximum length: growing would leave a copy of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(
        head.len() + keys.len() * LONGEST_LINE_BYTES,
    ));
    text.push_str(head);
    for OfflineKey { name, key } in keys {
        let KeyName { id, version, .. } = *name;
        // Writing to a String cannot fail.
        let _ = match form {
            Form::Community if version == PLAIN_VERSION => write!(text, "{id};"),
            Form::Community => write!(text, "#{name};"),
            Form::Enterprise => write!(text, "{id};{version};"),
        };
        push_digits(&mut text, key);
        if form == Form::Community && version == PLAIN_VERSION {
            let _ = write!(text, " #{name}");
        }
        text.push('\n');
    }
    text
}

fn push_digits(text: &mut String, key: &PlaintextKey) {
    for byte in key.expose() {
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGITS: &str = "770A8A65DA156D24EE2A093277530142";

    fn key(id: u32, version: u32, algorithm: Algorithm, bytes: &[u8]) -> OfflineKey {
        OfflineKey {
            name: KeyName {
                id,
                version,
                algorithm,
            },
            key: PlaintextKey::new(bytes).unwrap(),
        }
    }

    fn problem(text: &str) -> SyntaxError {
        parse(text.as_bytes(), Algorithm::AesCbc).unwrap_err()
    }

    #[test]
    fn the_manuals_example_is_read() {
        let text = b"# this is a comment\n1;770A8A65DA156D24EE2A093277530142\n18;F5502320F8429037B8DAEF761B189D12F5502320F8429037B8DAEF761B189D12\n";
        for unnamed in [Algorithm::AesCbc, Algorithm::AesCtr] {
            let keys = parse(text, unnamed).unwrap();
            let read: Vec<_> = keys
                .iter()
                .map(|key| {
                    let length = key.key.expose().len();
                    (
                        key.name.id,
                        key.name.version,
                        key.name.algorithm,
                        length,
                        key.key.expose()[0],
                    )
                })
                .collect();
            assert_eq!(
                read,
                [(1, 1, unnamed, 16, 0x77), (18, 1, unnamed, 32, 0xf5)]
            );
        }
    }

    #[test]
    fn whatever_file_key_management_accepts_is_read() {
        for line in [
            "1;{}",
            "  \t1;{}\r",
            "01;{}",
            "1;{} of the tables",
            "1;{};2",
            "1;{}#c",
            "\n\r\n# c\n#\n1;{}",
        ] {
            let text = line.replace("{}", DIGITS);
            let keys = parse(text.as_bytes(), Algorithm::AesCtr).unwrap();
            assert_eq!(keys.len(), 1, "{line}");
            assert_eq!(keys[0].name.algorithm, Algorithm::AesCtr);
        }
    }

    #[test]
    fn the_enterprise_manuals_example_is_read_beside_plain_lines() {
        let text = format!(
            "1;1;{DIGITS}\n2;1;{DIGITS}\n\n100;2;{DIGITS}{DIGITS}\n100;{DIGITS}\n2;4294967294;{DIGITS} old\n7;3;{DIGITS} #aws-kms-key.7.3.ctr\n8;00000000000000000000000000000001;2\n"
        );
        let keys = parse(text.as_bytes(), Algorithm::AesCbc).unwrap();
        let names: Vec<_> = keys.iter().map(|key| key.name.to_string()).collect();
        let expected = [
            "1.1",
            "2.1",
            "2.4294967294",
            "7.3.ctr",
            "8.1",
            "100.1",
            "100.2",
        ];
        assert_eq!(names, expected.map(|name| format!("aws-kms-key.{name}")));
        assert_eq!(keys[6].key.expose().len(), 32);
    }

    #[test]
    fn an_invalid_line_is_reported_with_its_number_and_defect() {
        use Problem::{Duplicate, Id, Key, Name, NotAKey, Version};
        for (text, line, expected) in [
            ("garbage\n1;{}", 1, NotAKey),
            ("1;{}\n;{}", 2, NotAKey),
            ("1 ;{}", 1, NotAKey),
            ("1{}", 1, NotAKey),
            ("0;{}", 1, Id),
            ("4294967295;{}", 1, Id),
            ("99999999999999999999;{}", 1, Id),
            ("1; {}", 1, Key),
            ("1;{}0", 1, Key),
            ("1;{}00", 1, Key),
            ("1;{}{}00", 1, Key),
            ("1;", 1, Key),
            ("1;0;{}", 1, Version),
            ("1;4294967295;{}", 1, Version),
            ("1;99999999999;{}", 1, Key),
            ("1;2;", 1, Key),
            ("1;;{}", 1, Key),
            ("1;2;3;{}", 1, Key),
            ("1;2;{}0", 1, Key),
            ("1;2;{} #aws-kms-key.1.1", 1, Name),
            ("1;{}\n1;1;{}", 2, Duplicate(1)),
            ("1;2;{}\n#aws-kms-key.1.2;{}", 2, Duplicate(1)),
            ("1;{}\n\n1;{}", 3, Duplicate(1)),
            ("1;{}\n#aws-kms-key.1.1.ctr;{}", 2, Duplicate(1)),
            (
                "#aws-kms-key.1.2;{}\n#aws-kms-key.1.2.ctr;{}",
                2,
                Duplicate(1),
            ),
            ("#aws-kms-key.1;{}", 1, Name),
            ("#aws-kms-key.1.2", 1, Name),
            ("#aws-kms-key.1.2;", 1, Key),
            ("1;{} #aws-kms-key.1.2", 1, Name),
            ("1;{} #aws-kms-key.2.1", 1, Name),
            ("1;{} #aws-kms-key.1.1;", 1, Name),
        ] {
            let SyntaxError { line: at, problem } = problem(&text.replace("{}", DIGITS));
            assert_eq!((at, problem), (line, expected), "{text}");
        }
    }

    #[test]
    fn no_message_contains_the_key() {
        for text in ["1;{}0", "1;{}\n1;{}", "x{}", "#aws-kms-key.{};{}"] {
            let message = problem(&text.replace("{}", DIGITS)).to_string();
            assert!(!message.contains("770A"), "{message}");
        }
    }

    fn any_keys() -> impl Strategy<Value = Vec<OfflineKey>> {
        let number = 1..u32::MAX;
        let bytes = prop_oneof![
            prop::collection::vec(any::<u8>(), 16),
            prop::collection::vec(any::<u8>(), 24),
            prop::collection::vec(any::<u8>(), 32)
        ];
        let algorithm = prop_oneof![Just(Algorithm::AesCbc), Just(Algorithm::AesCtr)];
        let version = prop_oneof![Just(1), number.clone()];
        prop::collection::btree_map((number, version), (algorithm, bytes), 0..20).prop_map(|keys| {
            keys.into_iter()
                .map(|((id, version), (algorithm, bytes))| key(id, version, algorithm, &bytes))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_written_file_is_read_back_whatever_algorithm_unnamed_keys_have(keys in any_keys()) {
            for unnamed in [Algorithm::AesCbc, Algorithm::AesCtr] {
                let text = format(&keys, Form::Community);
                prop_assert_eq!(parse(text.as_bytes(), unnamed).unwrap(), keys.clone());
                let text = format(&keys, Form::Enterprise);
                let mut expected = keys.clone();
                expected.iter_mut().for_each(|key| key.name.algorithm = unnamed);
                expected.sort_by_key(|key| key.name);
                prop_assert_eq!(parse(text.as_bytes(), unnamed).unwrap(), expected);
            }
        }
    }
}
