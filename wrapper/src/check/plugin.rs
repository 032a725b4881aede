//! Where the server will look for the plugin, whether it loads it, and as whom.

use std::{collections::BTreeSet, env, ffi::OsString, fs, path::PathBuf, process};

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

/// The plugin's name.
const NAME: &str = "aws_key_management";

/// Option files of the packages of Debian and MariaDB, of Red Hat, and of an administrator.
const OPTION_FILES: [&str; 3] = ["/etc/my.cnf", "/etc/mysql/my.cnf", "/etc/mysql/mariadb.cnf"];

/// Directories that these usually include.
const OPTION_DIRECTORIES: [&str; 3] = [
    "/etc/mysql/mariadb.conf.d",
    "/etc/mysql/conf.d",
    "/etc/my.cnf.d",
];

/// Groups that each server reads. An instance of `mariadb@.service` or mariadbd-multi also reads those with its suffix.
const GROUPS: [&str; 4] = ["mariadbd", "mariadb", "mysqld", "server"];

/// The file of options for the plugin, as the documents and setup name it.
const OUR_OPTION_FILE: &str = "60-encryption.cnf";

/// Where the plugin is.
pub(super) enum PluginSearch {
    /// Here.
    Found(PathBuf),
    /// In none of these directories.
    Missing(String),
    /// Nobody can know, and why.
    Unknown(&'static str),
}

/// Whether the server loads the plugin.
pub(super) enum Loading {
    /// Its options say so.
    Certain,
    /// It does not, and what to do.
    Never(String),
    /// Nobody can know, and why.
    Unknown(String),
}

/// Looks for the plugin where `command`, if it is a MariaDB server, would: in the `plugin_dir` of its
/// arguments or its option files, else in the usual directories.
pub(super) fn search(command: &[OsString]) -> PluginSearch {
    let arguments: Vec<_> = command.iter().map(|a| a.to_string_lossy()).collect();
    let is_server = |text: &str| text.contains("mariadbd") || text.contains("mysqld");
    if !arguments.iter().any(|argument| is_server(argument)) {
        return PluginSearch::Unknown("no mariadbd or mysqld is named in COMMAND");
    }
    let directories: Vec<PathBuf> = match configured(command, "plugin-dir") {
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
    configured(command, "aws-key-management-keyfile-dir")
        .filter(|directory| !directory.as_os_str().is_empty())
}

/// Where the server may have its data: the directory of `command`'s arguments and option files, else those of packages.
pub(crate) fn data_directories(command: &[OsString]) -> Vec<PathBuf> {
    match configured(command, "datadir") {
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

/// What an option says in `command`'s arguments, else in its option files. The last one counts, as for the server.
fn configured(command: &[OsString], name: &str) -> Option<PathBuf> {
    let value = |lines: &[String]| {
        let mut options = lines.iter().rev().filter_map(|line| parse(line));
        options.find_map(|(known, value)| (known == name).then(|| PathBuf::from(value)))
    };
    value(&arguments(command)).or_else(|| value(&option_files(command).unwrap_or_default()))
}

/// Splits an option into its name, as the server's manual spells it, and its value. The server takes `_` for `-`, and
/// `loose-` only lets it ignore an option that it does not know.
fn parse(option: &str) -> Option<(String, &str)> {
    let (name, value) = option.strip_prefix("--")?.split_once('=')?;
    let name = name.replace('_', "-");
    Some((name.trim_start_matches("loose-").to_owned(), value))
}

/// The arguments, each option together with a value that stands behind it.
fn arguments(command: &[OsString]) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    for argument in command {
        let argument = argument.to_string_lossy();
        match arguments.last_mut() {
            Some(option)
                if option.starts_with("--")
                    && !option.contains('=')
                    && !argument.starts_with('-') =>
            {
                *option += &format!("={argument}");
            }
            _ => arguments.push(argument.into_owned()),
        }
    }
    arguments
}

/// Whether `command`'s arguments or option files load a plugin.
pub(crate) fn loads(command: &[OsString], plugin: &str) -> bool {
    let files = option_files(command).unwrap_or_default();
    arguments(command)
        .iter()
        .chain(&files)
        .filter_map(|option| parse(option))
        .any(|(name, value)| {
            matches!(&*name, "plugin-load" | "plugin-load-add") && value.contains(plugin)
        })
}

/// Whether the server loads our plugin.
pub(super) fn loading(command: &[OsString]) -> Loading {
    if loads(command, NAME) {
        return Loading::Certain;
    }
    let Some(files) = option_files(command) else {
        return Loading::Unknown(
            "my_print_defaults, which reads the option files, is not installed".into(),
        );
    };
    let unreadable = usual_option_files()
        .into_iter()
        .find(|path| path.exists() && access(path, AccessFlags::R_OK).is_err());
    if let Some(path) = unreadable {
        return Loading::Unknown(format!(
            "this user cannot read the option file {}",
            path.display()
        ));
    }
    let is_ours =
        |line: &String| parse(line).is_some_and(|(name, _)| name.starts_with("aws-key-management"));
    if arguments(command).iter().chain(&files).any(is_ours) {
        return Loading::Unknown(
            "the server's options have no plugin-load-add = aws_key_management, and whether INSTALL SONAME has loaded it, only the server knows".into(),
        );
    }
    let ours = usual_option_files()
        .into_iter()
        .find(|path| path.ends_with(OUR_OPTION_FILE));
    Loading::Never(match ours {
        Some(path) => format!(
            "the server does not read {}; include its directory in the server's option file (!includedir), or move the file",
            path.display()
        ),
        None => {
            "put plugin-load-add = aws_key_management into an option file that the server reads"
                .into()
        }
    })
}

/// The option files that are in the usual places, whether the server reads them or not.
fn usual_option_files() -> Vec<PathBuf> {
    let entries = OPTION_DIRECTORIES
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|it| it == "cnf"));
    OPTION_FILES
        .iter()
        .map(PathBuf::from)
        .chain(entries)
        .collect()
}

/// What the instances of the server, if there are any, append to the names of option groups: `.NAME` for
/// `mariadb@NAME.service`.
pub(crate) fn group_suffixes() -> BTreeSet<String> {
    let suffix = |line: &str| {
        let group = line.trim().strip_prefix('[')?.split(']').next()?.to_owned();
        let suffix = GROUPS.iter().find_map(|name| group.strip_prefix(name))?;
        (!suffix.is_empty()).then(|| suffix.to_owned())
    };
    let texts = usual_option_files()
        .into_iter()
        .filter_map(|path| fs::read(path).ok());
    texts
        .flat_map(|text| {
            let text = String::from_utf8_lossy(&text);
            text.lines().filter_map(suffix).collect::<Vec<_>>()
        })
        .collect()
}

/// The user that `command`, if root starts it, has the server run as: of its option files or its arguments.
///
/// The first one counts, as for the server, whose option files come before its arguments.
pub(super) fn server_user(command: &[OsString]) -> Option<String> {
    let arguments = arguments(command);
    let names = |name: &str| arguments.iter().any(|argument| argument.contains(name));
    if !names("mariadbd") && !names("mysqld") {
        return None;
    }
    let is_safe = ["mariadbd-safe", "mysqld_safe"]
        .iter()
        .any(|name| names(name));
    option_files(command)
        .unwrap_or_default()
        .iter()
        .chain(&arguments)
        .filter_map(|option| parse(option))
        .find_map(|(name, value)| (name == "user").then_some(value))
        .or(is_safe.then_some("mysql"))
        .map(str::to_owned)
}

/// The server's options of its option files, as MariaDB's own tool reads them; `None` if there is no such tool.
fn option_files(command: &[OsString]) -> Option<Vec<String>> {
    let tool = find_program("my_print_defaults".as_ref()).ok()?;
    let which_files = command.iter().filter(|argument| {
        let text = argument.to_string_lossy();
        text == "--no-defaults" || text.starts_with("--defaults-")
    });
    // Not our environment: it holds the AWS key.
    let output = process::Command::new(tool)
        .args(which_files)
        .arg("--mysqld")
        .env_clear()
        .envs(env::var_os("HOME").map(|home| ("HOME", home)))
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().map(str::to_owned).collect())
}
