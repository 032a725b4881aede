//! What the documents name is there, and what they have to name is in them.

use std::{fs, path::Path};

use proc_macro2::{TokenStream, TokenTree};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// What stands between backticks.
fn code(markdown: &str) -> impl Iterator<Item = &str> {
    markdown.split('`').skip(1).step_by(2)
}

/// Each test that a document names, as `module::test`; returns how many there are.
fn assert_named_tests_exist(document: &str) -> usize {
    let text = read(document);
    let names = code(&text).filter_map(|text| text.split_once("::"));
    let mut named = 0;
    for (module, test) in names.filter(|(module, _)| *module != "module") {
        named += 1;
        let is_there = ["end_to_end", "systemd"].iter().any(|suite| {
            let file = Path::new(ROOT).join(format!("tests/tests/{suite}/{module}.rs"));
            let source = fs::read_to_string(file).unwrap_or_default();
            source.contains(&format!("#[test]\nfn {test}()"))
        });
        assert!(is_there, "{document}: {module}::{test}");
    }
    named
}

#[test]
fn each_test_that_the_threat_model_and_the_promises_name_exists() {
    assert!(assert_named_tests_exist("SECURITY.md") > 30);
    assert!(assert_named_tests_exist("docs/src/promises.md") > 20);
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
fn exit_codes(source: &str) -> Vec<String> {
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
        .filter(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn each_exit_code_is_in_the_page_and_the_manual() {
    let page = read("docs/src/exit-codes.md");
    for (program, source, manual) in [
        (
            "iam-kms-wrapper",
            "wrapper/src/launch.rs",
            Some("iam-kms-wrapper.8"),
        ),
        ("iam-kms-wrapper code", "wrapper/src/code.rs", None),
        ("iam-kms-wrapper audit", "wrapper/src/audit.rs", None),
        (
            "iam-kms-console",
            "tools/console/src/lib.rs",
            Some("iam-kms-console.8"),
        ),
        (
            "iam-kms-broker",
            "broker/src/lib.rs",
            Some("iam-kms-broker.8"),
        ),
        (
            "kms-manage-key",
            "tools/manage-key/src/lib.rs",
            Some("kms-manage-key.8"),
        ),
        (
            "kms-data-keys",
            "tools/data-keys/src/lib.rs",
            Some("kms-data-keys.8"),
        ),
    ] {
        let (_, section) = page.split_once(&format!("## {program}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let manual = manual.map(|name| {
            let manual = read(&format!("packaging/man/{name}"));
            manual.split_once("EXIT STATUS").unwrap().1.to_owned()
        });
        let codes = exit_codes(source);
        assert!(!codes.is_empty(), "{source}");
        for code in codes {
            for text in [Some(section), manual.as_deref()].into_iter().flatten() {
                let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
                assert!(words.any(|word| word == code), "{program}: {code}");
            }
        }
    }
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
