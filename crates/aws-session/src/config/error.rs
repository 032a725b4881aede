//! What can be wrong with a configuration file.

use std::path::Path;

use super::{Key, file::Entry};

/// What is wrong with a configuration file: the message names the file and, if there is one, the line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(super) fn of_file(path: &Path, why: impl std::fmt::Display) -> Self {
        Self(format!("{}: {why}", path.display()))
    }

    pub(super) fn of_line(path: &Path, line: usize, why: impl std::fmt::Display) -> Self {
        Self(format!("{}, line {line}: {why}", path.display()))
    }

    pub(super) fn read(path: &Path, why: impl std::fmt::Display) -> Self {
        let path = path.display();
        Self(format!("cannot read the configuration file {path}: {why}"))
    }

    pub(super) fn unknown_section(path: &Path, line: usize, section: &str) -> Self {
        let why = format!(
            "unknown section [{section}]; every key belongs in [kms], or in a [client \"NAME\"] section"
        );
        Self::of_line(path, line, why)
    }

    pub(super) fn unknown_key(path: &Path, entry: &Entry, known: &[Key]) -> Self {
        let nearest = known
            .iter()
            .map(|key| (strsim::jaro_winkler(key.name, &entry.key), key.name))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(likeness, _)| *likeness > 0.75);
        let hint = match nearest {
            Some((_, key)) => format!("did you mean {key}?"),
            None => {
                let names: Vec<_> = known.iter().map(|key| key.name).collect();
                format!("the keys are {}", names.join(", "))
            }
        };
        let why = format!("unknown key {}; {hint}", entry.key);
        Self::of_line(path, entry.line, why)
    }

    pub(super) fn value(path: &Path, entry: &Entry, expected: &str) -> Self {
        let Entry {
            key, value, line, ..
        } = entry;
        Self::of_line(
            path,
            *line,
            format!("{key} is {value:?}, but must be {expected}"),
        )
    }

    /// A default that its own key does not accept: a bug in the table of keys.
    pub(super) fn default(key: &Key) -> Self {
        let Key { name, default, .. } = key;
        Self(format!("the default of {name}, {default:?}, is invalid"))
    }
}
