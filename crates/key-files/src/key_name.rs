//! Names of key files: `aws-kms-key.<id>.<version>`, with `.ctr` for a version of AES_CTR.

use core::fmt;

use serde::{Deserialize, Serialize};

const PREFIX: &str = "aws-kms-key.";
const CTR_SUFFIX: &str = "ctr";
/// mariadb-backup copies what begins with `aws-kms-key`: a file in the making must not.
const TEMPORARY_PREFIX: &str = ".aws-kms-key";
pub(crate) const TEMPORARY_SUFFIX: &str = ".new";

/// How a key version encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    /// AES-CBC throughout, as the stock plugin has it.
    AesCbc,
    /// AES-CTR, and AES-GCM where the result may be longer than the data.
    AesCtr,
}

impl Algorithm {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::AesCbc => Self::AesCtr,
            Self::AesCtr => Self::AesCbc,
        }
    }

    /// All algorithms, with their names.
    pub const NAMED: [(&str, Self); 2] = [("AES_CBC", Self::AesCbc), ("AES_CTR", Self::AesCtr)];

    /// The algorithm of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        let mut named = Self::NAMED.into_iter();
        named.find_map(|(it, algorithm)| (it == name).then_some(algorithm))
    }
}

impl fmt::Display for Algorithm {
    /// As a value of `aws_key_management_encryption_algorithm`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AesCbc => "AES_CBC",
            Self::AesCtr => "AES_CTR",
        })
    }
}

/// A key version, as its file's name tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyName {
    /// Key id, 1 to `u32::MAX - 1`.
    pub id: u32,
    /// Version, 1 to `u32::MAX - 1`.
    pub version: u32,
    /// How it encrypts.
    pub algorithm: Algorithm,
}

/// What a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParsedName {
    /// A key file.
    Key(KeyName),
    /// Like a key file's name, but not one.
    Malformed,
    /// A key file or manifest that is being made, or was when the process died.
    Temporary,
    /// Another file.
    Other,
}

/// Tells whether `number` can be a key id or version: 0 and `u32::MAX` mean something else to the
/// server.
pub fn is_valid_number(number: u32) -> bool {
    number != 0 && number != u32::MAX
}

impl KeyName {
    /// Id and version, by which the server knows it. No two keys of a server share both, whatever their algorithms.
    #[must_use]
    pub const fn number(&self) -> (u32, u32) {
        (self.id, self.version)
    }

    /// The same version with the other algorithm.
    #[must_use]
    pub const fn other(self) -> Self {
        Self {
            algorithm: self.algorithm.other(),
            ..self
        }
    }

    /// Reads a file name.
    pub fn parse(name: &[u8]) -> ParsedName {
        let Ok(name) = core::str::from_utf8(name) else {
            return if name.starts_with(PREFIX.as_bytes()) {
                ParsedName::Malformed
            } else {
                ParsedName::Other
            };
        };
        if name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX) {
            return ParsedName::Temporary;
        }
        match name.strip_prefix(PREFIX) {
            None => ParsedName::Other,
            Some(rest) => Self::parse_numbers(rest).map_or(ParsedName::Malformed, ParsedName::Key),
        }
    }

    fn parse_numbers(rest: &str) -> Option<Self> {
        let mut parts = rest.split('.');
        let id = parse_number(parts.next()?)?;
        let version = parse_number(parts.next()?)?;
        let algorithm = match parts.next() {
            None => Algorithm::AesCbc,
            Some(CTR_SUFFIX) => Algorithm::AesCtr,
            Some(_) => return None,
        };
        parts.next().is_none().then_some(Self {
            id,
            version,
            algorithm,
        })
    }
}

/// Whether a key version is among `names`, which are in order, whatever algorithm they say.
#[must_use]
pub fn has_number(names: &[KeyName], number: (u32, u32)) -> bool {
    names.binary_search_by_key(&number, KeyName::number).is_ok()
}

/// Reads a number of a name, such as a key id: decimal, without sign, leading zero or anything else around it.
pub fn parse_number(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    digits
        .parse()
        .ok()
        .filter(|&number| plain && is_valid_number(number))
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}.{}", self.id, self.version)?;
        match self.algorithm {
            Algorithm::AesCbc => Ok(()),
            Algorithm::AesCtr => write!(f, ".{CTR_SUFFIX}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u32, version: u32, algorithm: Algorithm) -> ParsedName {
        ParsedName::Key(KeyName {
            id,
            version,
            algorithm,
        })
    }

    #[test]
    fn ids_and_versions_are_full_32_bit_numbers() {
        use Algorithm::{AesCbc, AesCtr};
        for (name, expected) in [
            ("aws-kms-key.1.1", key(1, 1, AesCbc)),
            ("aws-kms-key.20.3.ctr", key(20, 3, AesCtr)),
            (
                "aws-kms-key.4294967294.4294967294",
                key(u32::MAX - 1, u32::MAX - 1, AesCbc),
            ),
        ] {
            assert_eq!(KeyName::parse(name.as_bytes()), expected, "{name}");
            let ParsedName::Key(parsed) = expected else {
                unreachable!()
            };
            assert_eq!(parsed.to_string(), name);
        }
    }

    #[test]
    fn names_that_are_almost_right_are_malformed() {
        for rest in [
            "",
            "1",
            "1.",
            ".1",
            "0.1",
            "1.0",
            "01.1",
            "1.01",
            "+1.1",
            "1.+1",
            "-1.1",
            "1.-1",
            " 1.1",
            "1.1 ",
            "1.1.",
            "1.1.cbc",
            "1.1.CTR",
            "1.1.ctr.",
            "1.1.ctr.bak",
            "1.1.bak",
            "4294967295.1",
            "1.4294967295",
            "4294967296.1",
            "1.99999999999999999999",
            "1.1\n",
            "1.1~",
            "0x1.1",
            "1..1",
            "١.1",
        ] {
            let name = format!("{PREFIX}{rest}");
            assert_eq!(
                KeyName::parse(name.as_bytes()),
                ParsedName::Malformed,
                "{name}"
            );
        }
        assert_eq!(KeyName::parse(b"aws-kms-key.\xff"), ParsedName::Malformed);
    }

    #[test]
    fn a_file_in_the_making_has_both_the_prefix_and_the_suffix() {
        for name in [
            ".aws-kms-key.1.1.0123456789abcdef.new",
            ".aws-kms-keys.list.0.new",
        ] {
            assert_eq!(
                KeyName::parse(name.as_bytes()),
                ParsedName::Temporary,
                "{name}"
            );
        }
        for name in [
            ".aws-kms-key.1.1",
            ".aws-kms-keys.lock",
            "ibdata1.new",
            ".new",
        ] {
            assert_eq!(KeyName::parse(name.as_bytes()), ParsedName::Other, "{name}");
        }
    }

    #[test]
    fn the_other_name_of_a_version_differs_in_the_algorithm_alone() {
        let cbc = KeyName {
            id: 20,
            version: 3,
            algorithm: Algorithm::AesCbc,
        };
        assert_eq!(cbc.other().to_string(), "aws-kms-key.20.3.ctr");
        assert_eq!(cbc.other().other(), cbc);
    }

    #[test]
    fn other_files_are_not_looked_at() {
        for name in [
            "ibdata1",
            "aws-kms-key",
            "aws-kms-keys.1.1",
            "AWS-KMS-KEY.1.1",
            "",
            ".",
        ] {
            assert_eq!(KeyName::parse(name.as_bytes()), ParsedName::Other, "{name}");
        }
        assert_eq!(KeyName::parse(b"\xff"), ParsedName::Other);
    }
}
