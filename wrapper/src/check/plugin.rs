//! Where the server will look for the plugin, and as whom.

use std::{env, ffi::OsString, path::PathBuf, process};

use nix::unistd::{AccessFlags, access};

use service::command::find_program;

/// The plugin's file.
pub(super) const FILE: &str = "aws_key_management.so";

/// Default of `plugin_dir` in the packages of Debian and Ubuntu, of MariaDB and Red Hat, of Fedora,
/// of Arch and Alpine, and in MariaDB's tarballs.
const USUAL_DIRECTORIES: [&str; 5] = [
    "/usr/lib/mysql/plugin",
    "/usr/lib64/mysql/plugin",
    "/usr/lib64/mariadb/plugin",
    "/usr/lib/mariadb/plugin",
    "/usr/local/mysql/lib/plugin",
];

/// Of Debian's packages since 1:11.8.6-5, and of all others.
const USUAL_DATA_DIRECTORIES: [&str; 2] = ["/var/lib/mariadb", "/var/lib/mysql"];

const DATA_DIRECTORY: [&str; 2] = ["--datadir=", "--data-dir="];
const KEYFILE_DIR: [&str; 2] = [
    "--aws-key-management-keyfile-dir=",
    "--aws_key_management_keyfile_dir=",
];
const PLUGIN_DIR: [&str; 2] = ["--plugin-dir=", "--plugin_dir="];

/// Where the plugin is.
pub(super) enum PluginSearch {
    /// Here.
    Found(PathBuf),
    /// In none of these directories.
    Missing(String),
    /// Nobody can know, and why.
    Unknown(&'static str),
}

/// Looks for the plugin where `command`, if it is a MariaDB server, would: in the `plugin_dir` of its
/// arguments or its option files, else in the usual directories.
pub(super) fn search(command: &[OsString]) -> PluginSearch {
    let arguments: Vec<_> = command.iter().map(|a| a.to_string_lossy()).collect();
    let is_server = |text: &str| text.contains("mariadbd") || text.contains("mysqld");
    if !arguments.iter().any(|argument| is_server(argument)) {
        return PluginSearch::Unknown("no mariadbd or mysqld is named in COMMAND");
    }
    let directories: Vec<PathBuf> = match configured(command, PLUGIN_DIR) {
        Some(directory) => vec![directory],
        None => USUAL_DIRECTORIES.iter().map(PathBuf::from).collect(),
    };
    let files = directories.iter().map(|directory| directory.join(FILE));
    for file in files {
        if access(&file, AccessFlags::R_OK).is_ok() {
            return PluginSearch::Found(file);
        }
    }
    let names: Vec<_> = directories
        .iter()
        .filter(|directory| directories.len() == 1 || directory.is_dir())
        .map(|directory| directory.display().to_string())
        .collect();
    if names.is_empty() {
        return PluginSearch::Unknown(
            "the server's plugin directory is not known; name it with --plugin-dir in COMMAND or plugin_dir in an option file",
        );
    }
    PluginSearch::Missing(names.join(" or "))
}

/// Where the server has its key files, if not in its data directory, by `command`'s arguments and option files.
pub(crate) fn keyfile_dir(command: &[OsString]) -> Option<PathBuf> {
    configured(command, KEYFILE_DIR).filter(|directory| !directory.as_os_str().is_empty())
}

/// Where the server may have its data: the directory of `command`'s arguments and option files, else those of packages.
pub(crate) fn data_directories(command: &[OsString]) -> Vec<PathBuf> {
    match configured(command, DATA_DIRECTORY) {
        Some(directory) => vec![directory],
        None => USUAL_DATA_DIRECTORIES.map(PathBuf::from).into(),
    }
}

/// Where the server has its key files: in `keyfile_dir` if that is set, else in its data directory.
pub(super) fn key_directory(command: &[OsString]) -> PathBuf {
    keyfile_dir(command).unwrap_or_else(|| {
        let mut directories = data_directories(command);
        let existing = directories.iter().position(|directory| directory.is_dir());
        directories.swap_remove(existing.unwrap_or_default())
    })
}

/// What an option says in `command`'s arguments, else in its option files.
fn configured(command: &[OsString], spellings: [&str; 2]) -> Option<PathBuf> {
    let arguments: Vec<_> = command.iter().map(|a| a.to_string_lossy()).collect();
    last_path(arguments.iter().map(AsRef::as_ref), spellings)
        .or_else(|| last_path(option_files(command).lines(), spellings))
}

/// The user that `command`, if root starts it, has the server run as: of its option files or its arguments.
///
/// The first one counts, as for the server, whose option files come before its arguments.
pub(super) fn server_user(command: &[OsString]) -> Option<String> {
    let arguments: Vec<_> = command.iter().map(|a| a.to_string_lossy()).collect();
    let names = |name: &str| arguments.iter().any(|argument| argument.contains(name));
    if !names("mariadbd") && !names("mysqld") {
        return None;
    }
    let is_safe = ["mariadbd-safe", "mysqld_safe"]
        .iter()
        .any(|name| names(name));
    option_files(command)
        .lines()
        .chain(arguments.iter().map(AsRef::as_ref))
        .find_map(|option| option.strip_prefix("--user="))
        .or(is_safe.then_some("mysql"))
        .map(str::to_owned)
}

/// The path that `options` set by one of these spellings, each with its `--` and `=`. The last one counts, as for
/// the server.
fn last_path<'a>(options: impl Iterator<Item = &'a str>, spellings: [&str; 2]) -> Option<PathBuf> {
    let value = |option: &'a str| spellings.iter().find_map(|name| option.strip_prefix(name));
    options.filter_map(value).last().map(PathBuf::from)
}

/// The server's options of its option files, as MariaDB's own tool reads them, one a line; none
/// where there is no such tool.
pub(crate) fn option_files(command: &[OsString]) -> String {
    let Ok(tool) = find_program("my_print_defaults".as_ref()) else {
        return String::new();
    };
    let which_files = command.iter().filter(|argument| {
        let text = argument.to_string_lossy();
        text == "--no-defaults" || text.starts_with("--defaults-")
    });
    // Not our environment: it holds the AWS key.
    process::Command::new(tool)
        .args(which_files)
        .arg("--mysqld")
        .env_clear()
        .envs(env::var_os("HOME").map(|home| ("HOME", home)))
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}
