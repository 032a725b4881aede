//! Turns a file, TOML or INI, into a list of keys and values.

use std::{ops::Range, path::Path};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::ConfigError;
use crate::{
    ini::{self, Dialect},
    input_file,
};

const LIMIT_BYTES: usize = 64 * 1024;
const SECTION: &str = "kms";

/// One key and its value, as text.
pub(super) struct Entry {
    pub key: String,
    pub value: String,
    /// False for TOML's numbers and booleans. (A mode that is written as a number has lost its base.)
    pub is_text: bool,
    /// Line in the file, from 1.
    pub line: usize,
}

/// Reads the file at `path`: TOML if its name ends in `.toml`, INI otherwise.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, ConfigError> {
    let text =
        input_file::read_text(path, LIMIT_BYTES).map_err(|error| ConfigError::read(path, error))?;
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
    let table = DeTable::parse(text).map_err(|error| {
        let line = line_of(error.span().unwrap_or_default());
        ConfigError::of_line(path, line, error.message())
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
                let line = line_of(key.span());
                return Err(ConfigError::unknown_section(path, line, key.get_ref()));
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
            let key = key.get_ref().as_ref();
            let why = format!("{key} takes a string, a number or a boolean");
            return Err(ConfigError::of_line(path, line, why));
        }
    };
    Ok(Entry {
        key: key.get_ref().as_ref().to_owned(),
        value,
        is_text,
        line,
    })
}

/// The format of MariaDB's manual.
fn read_ini(path: &Path, text: &str) -> Result<Vec<Entry>, ConfigError> {
    let sections = ini::parse(text, Dialect::Manual)
        .map_err(|error| ConfigError::of_line(path, error.line, error.reason))?;
    let mut entries = Vec::new();
    for section in sections {
        if section.name != SECTION {
            return Err(ConfigError::unknown_section(
                path,
                section.line,
                &section.name,
            ));
        }
        entries.extend(section.properties.into_iter().map(|property| Entry {
            key: property.key,
            value: property.value.to_string(),
            is_text: true,
            line: property.line,
        }));
    }
    Ok(entries)
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}
