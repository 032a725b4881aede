//! `mariadb-backup`, of the server that is tested.

use std::process::{Command, ExitStatus};

use crate::{Process, command, mariadb_program};

/// The command line of mariadb-backup. What prepares a backup reads its options from the backup;
/// everything else reads none.
pub fn backup_command_line(arguments: &[&str]) -> Vec<String> {
    let mut line = mariadb_program("/usr/bin/mariadb-backup");
    if !arguments.contains(&"--prepare") {
        line.push("--no-defaults".into());
    }
    line.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    line
}

/// Runs mariadb-backup as this user to its good end and returns what it says.
pub fn backup(arguments: &[&str]) -> String {
    let (status, text) = try_backup(&mut command(&backup_command_line(arguments)));
    assert!(backup_succeeded(status, &text), "{arguments:?}\n{text}");
    text
}

/// Runs a command of mariadb-backup: its status, and what it says.
pub fn try_backup(command: &mut Command) -> (ExitStatus, String) {
    Process::start(command).finish()
}

/// Whether mariadb-backup has come to a good end.
pub fn backup_succeeded(status: ExitStatus, text: &str) -> bool {
    status.success() && text.contains("completed OK!")
}
