//! Commands that the documents show and the tests run.
//!
//! A fence that opens with "```sh test=NAME" is found by its name in `README.md`, `docs/src` and the pages of
//! `examples`, so that prose and commands can move without a change here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The page's folder, relative to the repository.
    pub folder: PathBuf,
    /// The commands, one a line, each line with its line end.
    pub commands: String,
}

/// Returns the fence with this name.
///
/// Panics if there is none, or more than one.
pub fn fence(name: &str) -> Fence {
    find(&pages(), name).unwrap_or_else(|why| panic!("{why}"))
}

/// Runs commands in a directory, in a shell that gives up at the first failure and at an unset variable.
///
/// Panics if they fail.
pub fn shell_in(directory: &Path, commands: &str) {
    let output = Command::new("sh")
        .args(["-euc", commands])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{commands}\n{output:?}");
}

struct Page {
    /// Relative to the repository.
    path: PathBuf,
    text: String,
}

fn pages() -> Vec<Page> {
    let mut paths = vec![PathBuf::from("README.md")];
    for folder in ["docs/src", "examples"] {
        markdown_below(Path::new(folder), &mut paths);
    }
    let page = |path: PathBuf| Page {
        text: fs::read_to_string(Path::new(REPOSITORY).join(&path)).unwrap(),
        path,
    };
    paths.into_iter().map(page).collect()
}

fn markdown_below(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(Path::new(REPOSITORY).join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        // A linked folder is another folder's page a second time.
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            markdown_below(&path, paths);
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path);
        }
    }
}

fn find(pages: &[Page], name: &str) -> Result<Fence, String> {
    let mut found = Vec::new();
    for page in pages {
        let folder = page.path.parent().unwrap_or(Path::new(""));
        let with_name = fences(&page.text).filter(|(info, _)| named(info) == Some(name));
        found.extend(with_name.map(|(_, commands)| Fence {
            folder: folder.into(),
            commands,
        }));
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(format!("no fence `test={name}` in the documents")),
        number => Err(format!("{number} fences `test={name}` in the documents")),
    }
}

fn named(info: &str) -> Option<&str> {
    info.split_whitespace()
        .find_map(|word| word.strip_prefix("test="))
}

/// The info string and the text of each fenced block. In a list, a fence is indented with its item.
fn fences(markdown: &str) -> impl Iterator<Item = (&str, String)> {
    let mut lines = markdown.lines();
    std::iter::from_fn(move || {
        let mut openings = lines.by_ref().filter_map(|line| line.split_once("```"));
        let (indent, info) = openings.find(|(indent, _)| indent.trim().is_empty())?;
        let block = lines
            .by_ref()
            .take_while(|line| line.trim() != "```")
            .map(|line| format!("{}\n", line.strip_prefix(indent).unwrap_or(line)));
        Some((info, block.collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages_of(text: &str) -> [Page; 1] {
        [Page {
            path: "examples/one/README.md".into(),
            text: text.into(),
        }]
    }

    #[test]
    fn a_fence_is_found_by_its_name_wherever_it_stands() {
        let text = "```sh\nno\n```\n\n1. Step:\n\n   ```sh test=step-1\n   first \\\n       more\n\n   second\n   ```\n";
        let fence = find(&pages_of(text), "step-1").unwrap();
        assert_eq!(fence.commands, "first \\\n    more\n\nsecond\n");
        assert_eq!(fence.folder, Path::new("examples/one"));
    }

    #[test]
    fn a_fence_named_in_prose_opens_no_block() {
        let text = "Write ` ```sh test=NAME `.\n\n```sh test=a\nreal\n```\n";
        assert_eq!(find(&pages_of(text), "a").unwrap().commands, "real\n");
        assert!(find(&pages_of(text), "NAME").is_err());
    }

    #[test]
    fn a_missing_name_is_an_error() {
        let error = find(&pages_of("```sh test=step-10\n```\n"), "step-1").unwrap_err();
        assert_eq!(error, "no fence `test=step-1` in the documents");
    }

    #[test]
    fn a_name_that_stands_twice_is_an_error() {
        let text = "```sh test=a\n```\n\n```sh test=a\n```\n";
        let error = find(&pages_of(text), "a").unwrap_err();
        assert_eq!(error, "2 fences `test=a` in the documents");
    }
}
