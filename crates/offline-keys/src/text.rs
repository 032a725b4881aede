//! What a key file says, a key in each line.
//!
//! ```text
//! # a comment
//! 1;770A8A65DA156D24EE2A093277530142
//! 2;F5502320F8429037B8DAEF761B189D12F5502320F8429037B8DAEF761B189D12 #aws-kms-key.2.1
//! #aws-kms-key.2.2.ctr;4B1D7F6C0E0F5A3A6E0C8B5B8C9D1E2F
//! ```
//!
//! The first two are what file_key_management has: a key id, `;`, and 16, 24 or 32 bytes in
//! hexadecimal digits, version 1 of that key. It ignores what follows in the line, and lines that
//! begin with `#`. So the rest can stand there: the algorithm of a version 1, as the name of its
//! key file in [`key_store::key_name`], and further versions.
//!
//! Source: MariaDB's manual, "File Key Management Encryption Plugin", and what the servers do.

use std::collections::BTreeMap;
use std::fmt::Write;

use key_store::PlaintextKey;
use key_store::key_name::{Algorithm, KeyName, ParsedName, is_valid_number};
use zeroize::Zeroizing;

const LONGEST_KEY_BYTES: usize = 32;
/// Version of the keys that file_key_management knows.
pub const PLAIN_VERSION: u32 = 1;

/// A key version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineKey {
    /// What it is.
    pub name: KeyName,
    /// The key itself.
    pub key: PlaintextKey,
}

/// Why a text is no key file. It never tells what is in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line} {problem}")]
pub struct SyntaxError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Anything else.
    #[error("is neither a comment nor a key, which is an id, a semicolon and hexadecimal digits")]
    NotAKey,
    /// 0, or beyond 32 bits.
    #[error("has no valid key id, which is 1 to 4294967294")]
    Id,
    /// Another length, or something that is no hexadecimal digit.
    #[error("has no key of 16, 24 or 32 bytes in hexadecimal digits")]
    Key,
    /// A comment that begins as a further version and is none.
    #[error("names no key version after 'aws-kms-key', or not the one that it is")]
    Name,
    /// The same key version twice.
    #[error("has the same key and version as line {0}")]
    Duplicate(
        /// Number of the other line.
        usize,
    ),
}

/// Reads the keys of a file, in the order of their names. `unnamed` is how the keys encrypt of which
/// the file does not say it.
///
/// Errors: the first line that is wrong, or a key version that is there twice.
pub fn parse(text: &[u8], unnamed: Algorithm) -> Result<Vec<OfflineKey>, SyntaxError> {
    let mut keys = BTreeMap::new();
    let mut lines = BTreeMap::new();
    for (index, content) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = index + 1;
        let failed = |problem| SyntaxError { line, problem };
        let Some(key) = parse_line(content, unnamed).map_err(failed)? else {
            continue;
        };
        if let Some(other) = lines.insert((key.name.id, key.name.version), line) {
            return Err(failed(Problem::Duplicate(other)));
        }
        keys.insert(key.name, key);
    }
    Ok(keys.into_values().collect())
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

/// A line that file_key_management reads too.
fn parse_plain(line: &[u8], unnamed: Algorithm) -> Result<OfflineKey, Problem> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (id, rest) = line.split_at(digits);
    let id = str::from_utf8(id)
        .ok()
        .and_then(|id| id.parse().ok())
        .filter(|&id| is_valid_number(id))
        .ok_or(Problem::Id)?;
    let (key, rest) = parse_key(rest.strip_prefix(b";").ok_or(Problem::NotAKey)?)?;
    let name = KeyName {
        id,
        version: PLAIN_VERSION,
        algorithm: unnamed,
    };
    match parse_name(rest.trim_ascii_start())? {
        None => Ok(OfflineKey { name, key }),
        Some((named, b"")) if (named.id, named.version) == (id, PLAIN_VERSION) => {
            Ok(OfflineKey { name: named, key })
        }
        Some(_) => Err(Problem::Name),
    }
}

/// The key at the beginning, and what follows it.
fn parse_key(text: &[u8]) -> Result<(PlaintextKey, &[u8]), Problem> {
    let digits = text
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (digits, rest) = text.split_at(digits);
    if digits.len() > 2 * LONGEST_KEY_BYTES {
        return Err(Problem::Key);
    }
    // As long as it may get, so that it never leaves a copy behind by growing.
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

/// The name in a comment `#aws-kms-key.…`, and what follows it; `None` for another comment.
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

/// Writes the text of a key file, in which each key says how it encrypts.
pub fn format(keys: &[OfflineKey]) -> Zeroizing<String> {
    const LONGEST_LINE_BYTES: usize = 128;
    let head =
        "# Data keys of MariaDB. file_key_management takes those that begin with their id.\n";
    // As long as it may get, so that it never leaves a copy behind by growing.
    let mut text = Zeroizing::new(String::with_capacity(
        head.len() + keys.len() * LONGEST_LINE_BYTES,
    ));
    text.push_str(head);
    for OfflineKey { name, key } in keys {
        if name.version == PLAIN_VERSION {
            // A String takes everything.
            let _ = write!(text, "{};", name.id);
            push_digits(&mut text, key);
            let _ = writeln!(text, " #{name}");
        } else {
            let _ = write!(text, "#{name};");
            push_digits(&mut text, key);
            text.push('\n');
        }
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
    fn the_example_of_the_manual_is_read() {
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
    fn what_file_key_management_lets_pass_is_read() {
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
    fn a_wrong_line_is_named_with_what_is_wrong() {
        use Problem::{Duplicate, Id, Key, Name, NotAKey};
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
            ("1;2;{}", 1, Key),
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
    fn no_message_tells_the_key() {
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
        fn what_is_written_is_read_back_whatever_unnamed_keys_are(keys in any_keys()) {
            for unnamed in [Algorithm::AesCbc, Algorithm::AesCtr] {
                prop_assert_eq!(parse(format(&keys).as_bytes(), unnamed).unwrap(), keys.clone());
            }
        }
    }
}
