//! The events that the programs log, read from their source, beside the table of the audit.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use service::audit_events::EVENTS;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Where programs and their libraries have their source.
const FOLDERS: [&str; 4] = ["wrapper", "broker", "crates", "tools"];

/// Events that no macro writes: `crates/service/src/logging.rs` makes this one by hand.
const BY_HAND: [(&str, &str); 1] = [("log_lost", "lost")];

/// The fields of each event, by the name of the event.
type Logged = BTreeMap<String, BTreeSet<String>>;

fn read_folder(folder: &Path, logged: &mut Logged) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_folder(&path, logged);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            read_tokens(text.parse().unwrap(), logged);
        }
    }
}

fn read_tokens(tokens: TokenStream, logged: &mut Logged) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    for (index, token) in tokens.iter().enumerate() {
        let before = |distance: usize| tokens.get(index.checked_sub(distance)?);
        let is_word = |distance, words: &[&str]| {
            before(distance).is_some_and(|token| words.contains(&token.to_string().as_str()))
        };
        // A value that a macro gets as a variable: `event: "code_refused"`.
        if is_word(2, &["event"])
            && is_word(1, &[":"])
            && let Some(name) = text_of(token)
        {
            logged.entry(name).or_default();
        }
        let TokenTree::Group(group) = token else {
            continue;
        };
        if is_word(1, &["!"]) && is_word(2, &["info", "warn", "error"]) {
            read_macro(group.stream(), logged);
        } else if !(is_word(2, &["mod"]) && is_word(1, &["tests"])) {
            read_tokens(group.stream(), logged);
        }
    }
}

/// Reads `event = "name", field = value, %field, …, "message"`.
fn read_macro(arguments: TokenStream, logged: &mut Logged) {
    let mut fields = BTreeMap::new();
    let tokens: Vec<_> = arguments.into_iter().collect();
    for argument in tokens.split(|token| token.to_string() == ",") {
        match argument {
            [TokenTree::Ident(name), TokenTree::Punct(sign), value @ ..]
                if sign.as_char() == '=' =>
            {
                fields.insert(name.to_string(), value.first().and_then(text_of));
            }
            [TokenTree::Ident(name)] => {
                fields.insert(name.to_string(), None);
            }
            [TokenTree::Punct(sign), TokenTree::Ident(name)]
                if matches!(sign.as_char(), '%' | '?') =>
            {
                fields.insert(name.to_string(), None);
            }
            _ => {}
        }
    }
    if let Some(Some(name)) = fields.remove("event") {
        logged.entry(name).or_default().extend(fields.into_keys());
    }
}

fn text_of(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Literal(literal) => {
            let text = literal.to_string();
            Some(text.strip_prefix('"')?.strip_suffix('"')?.to_owned())
        }
        // A literal that came through a macro.
        TokenTree::Group(group) if group.delimiter() == Delimiter::None => {
            group.stream().into_iter().next().as_ref().and_then(text_of)
        }
        _ => None,
    }
}

#[test]
fn the_programs_log_the_events_of_the_table_with_its_fields_and_no_others() {
    let mut logged = Logged::new();
    for folder in FOLDERS {
        read_folder(&Path::new(REPOSITORY).join(folder), &mut logged);
    }
    for (event, field) in BY_HAND {
        logged.entry(event.into()).or_default().insert(field.into());
    }
    let table: Logged = EVENTS
        .iter()
        .map(|event| {
            let fields = event.fields.iter().map(|field| (*field).to_owned());
            (event.name.to_owned(), fields.collect())
        })
        .collect();
    assert_eq!(logged, table);
}
