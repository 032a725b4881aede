//! From a file to a list of keys and values, for TOML and for INI.

use std::{ops::Range, path::Path};

use ini::{Ini, ParseOption};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::ConfigError;
use crate::input_file;

const LIMIT_BYTES: usize = 64 * 1024;
const SECTION: &str = "kms";

/// One key and its value, as text.
pub(super) struct Entry {
    pub key: String,
    pub value: String,
    /// False for TOML's numbers and booleans. (A mode written as a number has lost its base.)
    pub is_text: bool,
    /// Line in the file, from 1.
    pub line: usize,
}

/// Reads the file at `path`: TOML if its name ends in `.toml`, INI otherwise.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, ConfigError> {
    let text = input_file::read_text(path, LIMIT_BYTES).map_err(|source| ConfigError::Read {
        path: path.into(),
        source,
    })?;
    if path
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        read_toml(path, &text)
    } else {
        read_ini(path, &text)
    }
}

/// The keys stand at the top or in `[kms]`.
fn read_toml(path: &Path, text: &str) -> Result<Vec<Entry>, ConfigError> {
    let line_of = |span: Range<usize>| line_at(text, span.start);
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.into(),
        line: line_of(error.span().unwrap_or_default()),
        reason: error.message().into(),
    })?;
    let mut entries = Vec::new();
    for (key, value) in table.into_inner() {
        match value.into_inner() {
            DeValue::Table(section) if key.get_ref() == SECTION => {
                for (key, value) in section {
                    entries.push(toml_entry(
                        path,
                        &key,
                        value.into_inner(),
                        line_of(key.span()),
                    )?);
                }
            }
            DeValue::Table(_) => {
                return Err(ConfigError::UnknownSection {
                    path: path.into(),
                    line: line_of(key.span()),
                    section: key.into_inner().into_owned(),
                });
            }
            value => entries.push(toml_entry(path, &key, value, line_of(key.span()))?),
        }
    }
    Ok(entries)
}

fn toml_entry(
    path: &Path,
    key: &Spanned<impl AsRef<str>>,
    value: DeValue<'_>,
    line: usize,
) -> Result<Entry, ConfigError> {
    let (value, is_text) = match value {
        DeValue::String(text) => (text.into_owned(), true),
        DeValue::Integer(number) => (number.to_string(), false),
        DeValue::Boolean(truth) => (truth.to_string(), false),
        _ => {
            return Err(ConfigError::Syntax {
                path: path.into(),
                line,
                reason: format!(
                    "{} takes a string, a number or a boolean",
                    key.get_ref().as_ref()
                ),
            });
        }
    };
    Ok(Entry {
        key: key.get_ref().as_ref().to_owned(),
        value,
        is_text,
        line,
    })
}

/// The manual's format: `key = value` or `key: value`, comments after `#` and `;`.
fn read_ini(path: &Path, text: &str) -> Result<Vec<Entry>, ConfigError> {
    let option = ParseOption {
        enabled_quote: false,
        enabled_escape: false,
        ..ParseOption::default()
    };
    let ini = Ini::load_from_str_opt(text, option).map_err(|error| ConfigError::Syntax {
        path: path.into(),
        line: error.line + 1,
        reason: error.msg.into_owned(),
    })?;
    let mut entries = Vec::new();
    for (section, properties) in &ini {
        let section = section.unwrap_or_default();
        for (key, value) in properties {
            let line = line_of_key(text, key);
            if section != SECTION {
                let section = section.to_owned();
                return Err(ConfigError::UnknownSection {
                    path: path.into(),
                    line,
                    section,
                });
            }
            entries.push(Entry {
                key: key.to_owned(),
                value: value.trim().to_owned(),
                is_text: true,
                line,
            });
        }
    }
    Ok(entries)
}

/// The INI crate keeps no positions: the last line that sets `key` is the one that counts.
fn line_of_key(text: &str, key: &str) -> usize {
    let sets_key = |line: &str| {
        line.split(['=', ':'])
            .next()
            .is_some_and(|name| name.trim() == key)
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| sets_key(line))
        .last()
        .map_or(1, |(i, _)| i + 1)
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}
