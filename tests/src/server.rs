//! Which MariaDB is tested: this system's own, or that of another Debian in a directory.

use std::{env, os::unix::fs::MetadataExt, path::Path, process::Command};

use nix::unistd::Uid;

/// The directory of the other Debian, as `scripts/server-root` makes it.
const SERVER_ROOT: &str = "IAM_KMS_SERVER_ROOT";

/// Options that each server of the tests needs, separated by spaces.
const SERVER_OPTIONS: &str = "IAM_KMS_SERVER_OPTIONS";

/// What the server needs here besides the test's own options.
pub(crate) fn server_options() -> Vec<String> {
    let options = env::var(SERVER_OPTIONS).unwrap_or_default();
    options.split_whitespace().map(str::to_owned).collect()
}

/// The command line of one of MariaDB's programs, without arguments.
pub fn mariadb_program(path: &str) -> Vec<String> {
    let mut line = Vec::new();
    if let Ok(root) = env::var(SERVER_ROOT) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/in-server-root");
        line.extend([script.into(), root]);
    }
    line.push(path.into());
    line
}

/// The command of a command line.
pub fn command(line: &[String]) -> Command {
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]);
    command
}

/// The owner of a file.
pub(crate) fn owner_of(path: &Path) -> Uid {
    Uid::from_raw(path.metadata().unwrap().uid())
}
