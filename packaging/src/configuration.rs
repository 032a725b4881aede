//! The reference of the configuration file, from the table in `aws_session::config`: the man page
//! iam-kms-wrapper.config(5), and a Markdown table for the documentation.

use std::io;

use aws_session::config::{CLIENT_KEYS, KEYS, Key, Kind};
use clap_mangen::roff::{Inline, Roff, bold, roman};

const PAGE: &str = include_str!("../man/iam-kms-wrapper.config.5");

/// Marks in [`PAGE`] where the keys go.
const KEYS_LINE: &str = ".\\\" KEYS\n";

/// Introduces the keys of a client's section.
const CLIENT_SECTION: &str = "In the sections of a key server's clients, `[client \"NAME\"]` (or `[client.\"NAME\"]` in TOML), where NAME is a DNS name or a URI in the subject alternative names of the host's certificate:";

/// Renders the man page.
pub fn man_page() -> io::Result<Vec<u8>> {
    let (before, after) = PAGE
        .split_once(KEYS_LINE)
        .ok_or_else(|| io::Error::other("the page has no place for the keys"))?;
    let mut page = before.as_bytes().to_vec();
    write_keys(&mut page, KEYS)?;
    let mut roff = Roff::new();
    roff.control("PP", []);
    roff.text(inlines(CLIENT_SECTION));
    roff.to_writer(&mut page)?;
    write_keys(&mut page, CLIENT_KEYS)?;
    page.extend(after.bytes());
    Ok(page)
}

fn write_keys(page: &mut Vec<u8>, keys: &[Key]) -> io::Result<()> {
    for key in keys {
        let mut roff = Roff::new();
        roff.control("TP", []);
        roff.text([bold(key.name)]);
        roff.text(inlines(&format!("Value: {}.", value(key))));
        roff.control("br", []);
        if let Some(default) = default(key) {
            roff.text(inlines(&format!("Default: {default}.")));
            roff.control("br", []);
        }
        roff.text(inlines(key.meaning));
        roff.to_writer(page)?;
    }
    Ok(())
}

/// Renders a Markdown table with a row for each key, and one for the keys of a client's section.
pub fn markdown_table() -> String {
    format!(
        "{}\n{CLIENT_SECTION}\n\n{}",
        table(KEYS),
        table(CLIENT_KEYS)
    )
}

fn table(keys: &[Key]) -> String {
    let mut table = String::from("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in keys {
        let default = default(key).unwrap_or_default();
        let (name, value, meaning) = (key.name, value(key), key.meaning);
        table += &format!("| `{name}` | {value} | {default} | {meaning} |\n");
    }
    table
}

/// Describes the values of a key, with literal words in backticks.
fn value(key: &Key) -> String {
    match key.kind {
        Kind::Word(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
            words.join(", ")
        }
        kind => kind.expected(),
    }
}

fn default(key: &Key) -> Option<String> {
    (!key.default.is_empty()).then(|| format!("`{}`", key.default))
}

/// Turns Markdown's `code` into bold text.
fn inlines(markdown: &str) -> Vec<Inline> {
    let pieces = markdown.split('`').enumerate();
    pieces
        .map(|(i, text)| if i % 2 == 1 { bold(text) } else { roman(text) })
        .collect()
}
