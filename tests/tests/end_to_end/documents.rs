//! What the documents name is there, and what they have to name is in them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// What stands between backticks.
fn code(markdown: &str) -> impl Iterator<Item = &str> {
    markdown.split('`').skip(1).step_by(2)
}

/// The files that a document may mean: by a path, or modules of the tests by their name.
fn named_files(name: &str) -> impl Iterator<Item = PathBuf> {
    let paths = [
        name.to_owned(),
        format!("tests/tests/{name}"),
        format!("tests/tests/end_to_end/{name}.rs"),
        format!("tests/tests/systemd/{name}.rs"),
    ];
    let paths = paths.into_iter().map(|path| Path::new(ROOT).join(path));
    paths.filter(|path| path.is_file())
}

/// Whether a name of a document stands for something: `module::test`, `make TARGET`, or a file.
fn exists(name: &str) -> bool {
    if let Some((module, test)) = name.split_once("::") {
        let start = format!("fn {test}()");
        return named_files(module).any(|file| {
            let source = fs::read_to_string(file).unwrap();
            let lines: Vec<_> = source.lines().map(str::trim_start).collect();
            let mut pairs = lines.windows(2);
            pairs.any(|pair| pair[0] == "#[test]" && pair[1].starts_with(&start))
        });
    }
    if let Some(target) = name.strip_prefix("make ") {
        return read("Makefile").contains(&format!("\n{target}:"));
    }
    named_files(name).next().is_some()
}

/// Checks each test that a document names, and all names in the last column of its tables, which says by what
/// a claim is shown; returns how many there are.
fn assert_named_tests_exist(document: &str) -> usize {
    let text = read(document);
    let rows = text.lines().filter_map(|line| line.strip_suffix(" |"));
    let shown_by = rows.filter_map(|row| row.rsplit("| ").next());
    let tests = code(&text).filter(|name| name.contains("::") && *name != "module::test");
    let names: BTreeSet<_> = shown_by.flat_map(code).chain(tests).collect();
    for name in &names {
        assert!(exists(name), "{document}: {name}");
    }
    names.len()
}

#[test]
fn each_test_that_the_threat_model_and_the_promises_name_exists() {
    assert!(assert_named_tests_exist("SECURITY.md") > 100);
    assert!(assert_named_tests_exist("docs/src/promises.md") > 40);
}

#[test]
fn each_file_that_contributing_names_exists() {
    let contributing = read("CONTRIBUTING.md");
    let (_, map) = contributing.split_once("## Map of the code\n").unwrap();
    let mut named = 0;
    for path in code(map).filter(|text| text.contains('/')) {
        named += 1;
        assert!(Path::new(ROOT).join(path).exists(), "{path}");
    }
    assert!(named > 30, "{named}");
}

#[test]
fn the_changelog_has_the_version() {
    let heading = format!("\n## [{}]", env!("CARGO_PKG_VERSION"));
    assert!(read("CHANGELOG.md").contains(&heading), "{heading}");
}

/// The exit codes of a program's source: the numbers in the body of its function `exit_code`, and the constants.
fn exit_codes(source: &str) -> BTreeSet<u8> {
    let text = read(source);
    let function = text
        .split_once("fn exit_code(")
        .map_or("", |(_, after)| after);
    let (body, _) = function.split_once("\n    }\n").unwrap_or_default();
    let words = body.split(|c: char| !c.is_ascii_alphanumeric());
    let constants = text.lines().filter_map(|line| {
        let (name, value) = line.strip_prefix("const ")?.split_once(": ")?;
        name.bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
            .then_some(())?;
        let value = value
            .strip_prefix("i32 = ")
            .or(value.strip_prefix("u8 = "))?;
        value.strip_suffix(';')
    });
    words
        .chain(constants)
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// The numbers in the first column of a table.
fn first_column(section: &str) -> BTreeSet<u8> {
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" |").next());
    let codes = cells.flat_map(|cell| cell.split(", "));
    codes.filter_map(|code| code.parse().ok()).collect()
}

/// The numbers that a manual page explains in its section on the exit status.
fn labels(manual: &str) -> BTreeSet<u8> {
    let text = read(&format!("packaging/man/{manual}"));
    let (_, section) = text.split_once(".SH \"EXIT STATUS\"\n").unwrap();
    let section = section.split("\n.SH").next().unwrap();
    let entries = section.split(".TP\n").skip(1);
    let labels = entries.filter_map(|entry| entry.lines().next());
    let codes = labels.flat_map(|label| label.split(|c: char| !c.is_ascii_digit()));
    codes.filter_map(|code| code.parse().ok()).collect()
}

#[test]
fn page_manual_and_source_have_exactly_these_exit_codes() {
    let page = read("docs/src/exit-codes.md");
    let mut sections = 0;
    for (program, source, manual, codes) in [
        (
            "iam-kms-wrapper",
            "wrapper/src/launch.rs",
            Some("iam-kms-wrapper.8"),
            &[0, 125, 126, 127][..],
        ),
        (
            "iam-kms-wrapper code",
            "wrapper/src/code.rs",
            None,
            &[0, 1, 3, 4, 125],
        ),
        (
            "iam-kms-wrapper setup",
            "wrapper/src/setup/mod.rs",
            Some("iam-kms-wrapper-setup.8"),
            &[0, 125],
        ),
        (
            "iam-kms-unlock",
            "tools/unlock/src/lib.rs",
            Some("iam-kms-unlock.1"),
            &[0, 1, 2, 3, 4, 125],
        ),
        (
            "iam-kms-wrapper audit",
            "wrapper/src/audit.rs",
            None,
            &[0, 125],
        ),
        (
            "iam-kms-broker",
            "broker/src/lib.rs",
            Some("iam-kms-broker.8"),
            &[0, 125],
        ),
        (
            "iam-kms-console",
            "tools/console/src/lib.rs",
            Some("iam-kms-console.8"),
            &[0, 125],
        ),
        (
            "kms-manage-key",
            "tools/manage-key/src/lib.rs",
            Some("kms-manage-key.8"),
            &[0, 3, 4, 121, 122, 123, 124, 125, 126, 127],
        ),
        (
            "kms-data-keys",
            "tools/data-keys/src/lib.rs",
            Some("kms-data-keys.8"),
            &[0, 1, 2, 3, 125],
        ),
    ] {
        sections += 1;
        let codes = BTreeSet::from_iter(codes.iter().copied());
        let (_, section) = page.split_once(&format!("## {program}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        assert_eq!(first_column(section), codes, "{program}");
        if let Some(manual) = manual {
            let mut explained = labels(manual);
            // Success may go without saying.
            explained.insert(0);
            assert_eq!(explained, codes, "{manual}");
        }
        // Only a part of them can be found there.
        let mut found = exit_codes(source);
        assert!(!found.is_empty(), "{source}");
        // To which the number of a signal is added.
        found.remove(&128);
        assert!(found.is_subset(&codes), "{source}: {found:?}");
    }
    assert_eq!(page.matches("\n## ").count(), sections);
}

/// The sources whose messages the page on troubleshooting explains.
const EXPLAINED: [&str; 7] = [
    "crates/broker-api/src/client.rs",
    "crates/aws-session/src/sts.rs",
    "crates/aws-session/src/aws_error.rs",
    "crates/code-channel/src/writer.rs",
    "crates/code-channel/src/fifo.rs",
    "crates/service/src/socket_path.rs",
    "wrapper/src/broker_process.rs",
];

/// All strings of a source but those of its tests and its documentation.
fn strings(source: &str) -> Vec<String> {
    let text = read(source);
    let product = text.split("#[cfg(test)]").next().unwrap();
    let mut found = Vec::new();
    collect_strings(product.parse().unwrap(), &mut found);
    found
}

fn collect_strings(tokens: TokenStream, found: &mut Vec<String>) {
    let mut is_documentation = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) => collect_strings(group.stream(), found),
            TokenTree::Literal(literal) if !is_documentation => {
                let string = syn::parse_str::<syn::LitStr>(&literal.to_string());
                found.extend(string.map(|string| string.value()));
            }
            TokenTree::Ident(name) if name == "doc" => is_documentation = true,
            _ => {}
        }
    }
}

/// Letters, digits and what AWS's names consist of, in lower-case words with one space between.
fn words(text: &str) -> String {
    let kept = text
        .to_lowercase()
        .replace(|c: char| !(c.is_alphanumeric() || "_-'’/".contains(c)), " ");
    format!(
        " {} ",
        kept.split_whitespace().collect::<Vec<_>>().join(" ")
    )
}

/// Parts of a message that are always the same: what stands between placeholders, of its first sentence, where
/// it says something by itself.
fn fixed_parts(message: &str) -> Vec<String> {
    let first = message.split(';').next().unwrap_or_default();
    let mut parts = Vec::new();
    for piece in first.split('{') {
        let text = piece.split_once('}').map_or(piece, |(_, after)| after);
        parts.push(words(text));
    }
    parts.retain(|part| part.split_whitespace().count() > 2);
    parts
}

/// An error code of AWS, such as `DisabledException`.
fn is_error_code(text: &str) -> bool {
    text.len() > 8
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

#[test]
fn each_message_about_aws_the_fifo_and_the_broker_is_explained() {
    let page = words(&read("docs/src/troubleshooting.md"));
    let mut messages = 0;
    let mut missing = Vec::new();
    for source in EXPLAINED {
        for string in strings(source) {
            let mut parts = fixed_parts(&string);
            if is_error_code(&string) {
                parts.push(words(&string));
            }
            messages += usize::from(!parts.is_empty());
            let absent = parts
                .into_iter()
                .filter(|part| !page.contains(part.as_str()));
            missing.extend(absent.map(|part| format!("{source}:{part}")));
        }
    }
    assert!(messages > 60, "{messages}");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
