//! What can be wrong with a configuration file.

use std::{io, path::Path};

use super::{Key, file::Entry, keys::KEYS};
use crate::input_file::InputFileError;

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

    pub(super) fn read(path: &Path, why: &InputFileError) -> Self {
        let path = path.display();
        let advice = match why {
            InputFileError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                "; name it with --config=FILE, or begin with an example from /usr/share/iam-kms-wrapper/examples/configuration"
            }
            InputFileError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "; let this user read it and search its directory: it holds no secret"
            }
            _ => "",
        };
        Self(format!(
            "cannot read the configuration file {path}: {why}{advice}"
        ))
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
        // Such as one that somebody has appended below the section of a client.
        let is_of_main_section = KEYS.iter().any(|key| key.name == entry.key);
        let hint = match nearest {
            _ if is_of_main_section => "it belongs in [kms], above the [client] sections".into(),
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
        // As TOML has it, and a shell.
        let is_quoted =
            |quote| value.len() > 1 && value.starts_with(quote) && value.ends_with(quote);
        let hint = match is_quoted('"') || is_quoted('\'') {
            true => "; write it without quotes",
            false => "",
        };
        Self::of_line(
            path,
            *line,
            format!("{key} is {value:?}, but must be {expected}{hint}"),
        )
    }

    /// A default that its own key does not accept: a bug in the table of keys.
    pub(super) fn default(key: &Key) -> Self {
        let Key { name, default, .. } = key;
        Self(format!("the default of {name}, {default:?}, is invalid"))
    }
}
