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
const CLIENT: &str = "client";

/// One key and its value, as text.
#[derive(Clone)]
pub(super) struct Entry {
    pub key: String,
    pub value: String,
    /// False for TOML's numbers and booleans. (A mode that is written as a number has lost its base.)
    pub is_text: bool,
    /// Line in the file, from 1.
    pub line: usize,
}

/// A `[client "NAME"]` section.
pub(super) struct ClientSection {
    pub name: String,
    pub line: usize,
    pub entries: Vec<Entry>,
}

/// What a file contains.
#[derive(Default)]
pub(super) struct Content {
    pub entries: Vec<Entry>,
    pub clients: Vec<ClientSection>,
}

/// Reads the file at `path`: TOML if its name ends in `.toml`, INI otherwise.
pub(super) fn read(path: &Path) -> Result<Content, ConfigError> {
    let text = input_file::read_text(path, LIMIT_BYTES)
        .map_err(|error| ConfigError::read(path, &error))?;
    if path
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        read_toml(path, &text)
    } else {
        read_ini(path, &text)
    }
}

/// The keys stand at the top or in `[kms]`, those of clients in `[client."NAME"]`.
fn read_toml(path: &Path, text: &str) -> Result<Content, ConfigError> {
    let line_of = |span: Range<usize>| line_at(text, span.start);
    let table = DeTable::parse(text).map_err(|error| {
        let line = line_of(error.span().unwrap_or_default());
        ConfigError::of_line(path, line, error.message())
    })?;
    let entries_of = |section: DeTable<'_>| {
        let entries = section
            .into_iter()
            .map(|(key, value)| toml_entry(path, &key, value.into_inner(), line_of(key.span())));
        entries.collect::<Result<Vec<_>, _>>()
    };
    let mut content = Content::default();
    let entries = &mut content.entries;
    for (key, value) in table.into_inner() {
        match value.into_inner() {
            DeValue::Table(section) if key.get_ref() == SECTION => {
                entries.extend(entries_of(section)?);
            }
            DeValue::Table(clients) if key.get_ref() == CLIENT => {
                for (name, section) in clients {
                    let line = line_of(name.span());
                    let name = name.get_ref().to_string();
                    let DeValue::Table(section) = section.into_inner() else {
                        return Err(ConfigError::of_line(path, line, CLIENT_FORM));
                    };
                    content.clients.push(ClientSection {
                        name,
                        line,
                        entries: entries_of(section)?,
                    });
                }
            }
            DeValue::Table(_) => {
                let line = line_of(key.span());
                return Err(ConfigError::unknown_section(path, line, key.get_ref()));
            }
            value => entries.push(toml_entry(path, &key, value, line_of(key.span()))?),
        }
    }
    Ok(content)
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
        DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_str()) => {
            let items: Vec<_> = items
                .iter()
                .filter_map(|it| it.get_ref().as_str())
                .collect();
            (items.join(", "), true)
        }
        _ => {
            let key = key.get_ref().as_ref();
            let why = format!("{key} takes a string, a number, a boolean or a list of strings");
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
fn read_ini(path: &Path, text: &str) -> Result<Content, ConfigError> {
    let sections = ini::parse(text, Dialect::Manual)
        .map_err(|error| ConfigError::of_line(path, error.line, error.reason))?;
    let mut content = Content::default();
    for section in sections {
        let (name, line) = (section.name, section.line);
        let entries = section.properties.into_iter().map(|property| Entry {
            key: property.key,
            value: property.value.to_string(),
            is_text: true,
            line: property.line,
        });
        if name == SECTION {
            content.entries.extend(entries);
        } else if let Some(client) = client_name(&name) {
            content.clients.push(ClientSection {
                name: client.into(),
                line,
                entries: entries.collect(),
            });
        } else if name.starts_with(CLIENT) {
            return Err(ConfigError::of_line(path, line, CLIENT_FORM));
        } else {
            return Err(ConfigError::unknown_section(path, line, &name));
        }
    }
    Ok(content)
}

const CLIENT_FORM: &str =
    r#"a client's section is [client "NAME"], or [client."NAME"] in a .toml file"#;

/// The name in `client "NAME"`.
fn client_name(section: &str) -> Option<&str> {
    let rest = section.strip_prefix(CLIENT)?;
    rest.trim().strip_prefix('"')?.strip_suffix('"')
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}
