//! iam-kms-wrapper.config(5): its keys are those of the book's table.

use std::io;

use clap_mangen::roff::{Inline, Roff, bold, roman};

const NAME: &str = "iam-kms-wrapper.config.5";
const REFERENCE: &str = include_str!("../../docs/src/configuration.md");
const PAGE: &str = include_str!("../man/iam-kms-wrapper.config.5");

/// Stands in [`PAGE`] where the keys go.
const KEYS_LINE: &str = ".\\\" KEYS\n";

/// The page and its file name.
pub fn render() -> io::Result<(&'static str, Vec<u8>)> {
    let (before, after) = PAGE
        .split_once(KEYS_LINE)
        .ok_or_else(|| io::Error::other("the page has no place for the keys"))?;
    let mut page = before.as_bytes().to_vec();
    for row in rows(REFERENCE) {
        let mut roff = Roff::new();
        roff.control("TP", []);
        roff.text(inlines(row.key));
        if !row.default.is_empty() {
            let mut line = vec![roman("Default: ")];
            line.extend(inlines(row.default));
            line.push(roman("."));
            roff.text(line);
            roff.control("br", []);
        }
        roff.text(inlines(row.meaning));
        roff.to_writer(&mut page)?;
    }
    page.extend(after.bytes());
    Ok((NAME, page))
}

/// A row of the table: `| key | default | what it is |`.
struct Row<'a> {
    key: &'a str,
    default: &'a str,
    meaning: &'a str,
}

fn rows(reference: &str) -> impl Iterator<Item = Row<'_>> {
    let (_, table) = reference
        .split_once("<!-- configuration keys -->\n")
        .unwrap_or_default();
    let table = table
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    table.filter_map(|line| {
        let mut cells = line.trim_matches('|').splitn(3, '|').map(str::trim);
        Some(Row {
            key: cells.next()?,
            default: cells.next()?,
            meaning: cells.next()?,
        })
    })
}

/// Markdown's `code` in bold.
fn inlines(markdown: &str) -> Vec<Inline> {
    let pieces = markdown.split('`').enumerate();
    pieces
        .map(|(i, text)| if i % 2 == 1 { bold(text) } else { roman(text) })
        .collect()
}
