//! What can be wrong with a configuration file.

use std::path::{Path, PathBuf};

use super::{KEYS, file::Entry};
use crate::input_file::InputFileError;

/// What can be wrong with a configuration file. Each message names the file and, where there is one, the line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: InputFileError,
    },
    /// The file is not TOML or INI.
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// A key that does not exist.
    #[error(
        "{path}, line {line}: there is no key {key}; {hint}", path = path.display()
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The unknown key.
        key: String,
        /// The nearest known key, or all of them.
        hint: String,
    },
    /// A section that does not exist.
    #[error(
        "{path}, line {line}: there is no section [{section}]; every key belongs in [kms]", path = path.display()
    )]
    UnknownSection {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The unknown section.
        section: String,
    },
    /// A value that the key does not accept.
    #[error(
        "{path}, line {line}: {key} is {value:?}, but must be {expected}", path = path.display()
    )]
    Value {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What it accepts.
        expected: String,
    },
    /// No MFA device is named, and `mfa` does not say that none is needed.
    #[error(
        "{path}: kms_mfa_id is missing; set it to the ARN of your MFA device (or set mfa = elsewhere if sessions are opened on another machine, or mfa = false if no code is needed)", path = path.display()
    )]
    NoSerialNumber {
        /// The file.
        path: PathBuf,
    },
}

impl ConfigError {
    pub(super) fn unknown_key(path: &Path, entry: &Entry) -> Self {
        let nearest = KEYS
            .iter()
            .map(|key| (strsim::jaro_winkler(key.name, &entry.key), key.name))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(likeness, _)| *likeness > 0.75);
        let hint = match nearest {
            Some((_, key)) => format!("did you mean {key}?"),
            None => {
                let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
                format!("the keys are {}", names.join(", "))
            }
        };
        Self::UnknownKey {
            path: path.into(),
            line: entry.line,
            key: entry.key.clone(),
            hint,
        }
    }
}
