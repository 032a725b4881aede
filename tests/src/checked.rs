//! What `kms-data-keys check` says of the files of a server.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output},
};

use crate::dist;

/// What the table of `check` says of a key version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The column STATE.
    pub state: String,
    /// The first file that needs the version, or `-`.
    pub first_file: String,
}

/// What `check` has said.
#[derive(Debug)]
pub struct Checked {
    /// Its exit status; `None` after a signal.
    pub exit_code: Option<i32>,
    /// Its table, by key id and version.
    pub keys: BTreeMap<(u32, u32), Told>,
    /// Standard output, then standard error.
    pub output: String,
}

impl Checked {
    /// Runs `kms-data-keys check` with these arguments, the data directory among them.
    pub fn of(arguments: &[&Path]) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new(dist("bin/kms-data-keys"))
            .arg("check")
            .args(arguments)
            .output()
            .unwrap();
        let table = String::from_utf8(stdout).unwrap();
        let mut keys = BTreeMap::new();
        for line in table.lines().skip(1).take_while(|line| !line.is_empty()) {
            let cells: Vec<_> = line.split("  ").filter(|cell| !cell.is_empty()).collect();
            let cell = |number: usize| cells[number].trim().to_owned();
            let told = Told {
                state: cell(3),
                first_file: cell(6),
            };
            keys.insert((cell(0).parse().unwrap(), cell(1).parse().unwrap()), told);
        }
        Self {
            exit_code: status.code(),
            keys,
            output: table + &String::from_utf8(stderr).unwrap(),
        }
    }

    /// The state of a key version, empty if the table does not have it.
    pub fn state(&self, id: u32, version: u32) -> &str {
        self.keys
            .get(&(id, version))
            .map_or("", |told| told.state.as_str())
    }

    /// Versions of a key that files need, in order.
    pub fn needed(&self, id: u32) -> Vec<u32> {
        let of_key = self.keys.range((id, 0)..=(id, u32::MAX));
        of_key
            .filter(|(_, told)| told.state == "needed")
            .map(|((_, version), _)| *version)
            .collect()
    }

    /// Whether this key file is among those that may be moved away.
    pub fn calls_not_needed(&self, key_file: &Path) -> bool {
        let line = format!("  {}\n", key_file.display());
        self.output.contains(&line)
    }

    /// Panics unless the exit status is `code`.
    pub fn assert_exit_code(&self, code: i32) -> &Self {
        assert_eq!(self.exit_code, Some(code), "{}", self.output);
        self
    }

    /// Panics unless the output contains `text`.
    pub fn assert_tells(&self, text: &str) -> &Self {
        assert!(self.output.contains(text), "{text}\n{}", self.output);
        self
    }
}
