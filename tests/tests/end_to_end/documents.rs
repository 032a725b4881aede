//! What the documents name is there.

use std::{fs, path::Path};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

/// What stands between backticks.
fn code(markdown: &str) -> impl Iterator<Item = &str> {
    markdown.split('`').skip(1).step_by(2)
}

#[test]
fn each_test_that_the_threat_model_names_exists() {
    let security = read("SECURITY.md");
    let mut named = 0;
    for (module, test) in code(&security).filter_map(|text| text.split_once("::")) {
        if module == "module" {
            continue;
        }
        named += 1;
        let is_there = ["end_to_end", "systemd"].iter().any(|suite| {
            let file = Path::new(ROOT).join(format!("tests/tests/{suite}/{module}.rs"));
            let source = fs::read_to_string(file).unwrap_or_default();
            source.contains(&format!("#[test]\nfn {test}()"))
        });
        assert!(is_there, "{module}::{test}");
    }
    assert!(named > 30, "{named}");
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

#[test]
fn each_exit_code_of_kms_manage_key_is_in_its_page_and_the_readme() {
    let page = read("packaging/man/kms-manage-key.8");
    let (_, page) = page.split_once("EXIT STATUS").unwrap();
    let readme = read("README.md");
    let (_, table) = readme.split_once("| exit status | |").unwrap();
    for code in [0, 3, 4, 121, 122, 123, 124, 125, 126, 127] {
        for text in [page, table] {
            let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
            assert!(words.any(|word| word == code.to_string()), "{code}");
        }
    }
}
