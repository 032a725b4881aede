//! Where the server will look for the plugin, whether it loads it, and as whom.

use std::{
    collections::BTreeSet, env, ffi::OsString, fs, os::unix::fs::MetadataExt, path::PathBuf,
    process,
};

use nix::unistd::{AccessFlags, Uid, User, access, geteuid};

use aws_session::master_key_id::MasterKeyId;
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

/// MariaDB's other encryption plugins.
const OTHER_PLUGINS: [&str; 4] = [
    "file_key_management",
    "hashicorp_key_management",
    "example_key_management",
    "debug_key_management",
];

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

/// What in the server's options keeps it from encrypting with our plugin, although they load it. A server that starts
/// so after a crash loses committed rows of Aria tables, and no plugin of ours is there to stop it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadConflict {
    /// The plugin that is loaded last encrypts.
    #[error(
        "the server's options load {0} after aws_key_management, and a server uses the encryption plugin that it loads last: remove its plugin-load-add, and its own options, before you start the server"
    )]
    OtherPlugin(&'static str),
    /// `plugin-load` empties the list of plugins before it adds its own.
    #[error(
        "plugin-load = {0} in the server's options takes aws_key_management off the list of plugins that plugin-load-add before it has filled: write plugin-load-add in place of plugin-load before you start the server"
    )]
    TakenOff(String),
    /// The option that is named after the plugin.
    #[error(
        "{0} in the server's options keeps the server from using aws_key_management: remove it before you start the server"
    )]
    SwitchedOff(String),
}

/// Whether the server loads the plugin.
pub(super) enum Loading {
    /// Its options say so.
    Certain,
    /// Its options say so, and more that is in the way.
    Conflict(LoadConflict),
    /// It does not, and what to do.
    Never(String),
    /// It cannot read its option files, and why.
    Unreadable(String),
    /// Nobody can know, and why.
    Unknown(String),
}

/// Looks for the plugin where `command`, if it is a MariaDB server, would: in the `plugin_dir` of its
/// arguments or its option files, else in the usual directories.
pub(super) fn search(command: &[OsString]) -> PluginSearch {
    if !is_server(command) {
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
    keyfile_dir(command).unwrap_or_else(|| data_directory(command))
}

/// Where the server has its data: of the places where it may, the first that exists.
fn data_directory(command: &[OsString]) -> PathBuf {
    let mut directories = data_directories(command);
    let existing = directories.iter().position(|directory| directory.is_dir());
    directories.swap_remove(existing.unwrap_or_default())
}

/// Fails if what the server's options call the master key cannot be one. Without one, the server makes no key.
pub(super) fn check_master_key(command: &[OsString]) -> Result<(), String> {
    let Some(value) = configured(command, "aws-key-management-master-key-id") else {
        return Ok(());
    };
    let value = value.to_string_lossy();
    match MasterKeyId::parse(&value) {
        Err(expected) if !value.is_empty() => Err(format!(
            "aws-key-management-master-key-id = {value} in the server's options must be {expected}"
        )),
        _ => Ok(()),
    }
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
    option.contains('=').then(|| parse_switch(option))?
}

/// The same, where the option may also have no value.
fn parse_switch(option: &str) -> Option<(String, &str)> {
    let option = option.strip_prefix("--")?;
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
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

/// The server's options in the order in which it reads them: those of its option files, then its arguments.
fn options(command: &[OsString]) -> Vec<String> {
    let mut options = option_files(command).unwrap_or_default();
    options.extend(arguments(command));
    options
}

/// What the server's options say about one plugin.
enum Mention {
    /// Nothing loads it.
    None,
    /// This option, by its position, is the last one that loads it.
    Loaded(usize),
    /// Something loads it, and something after that keeps it from being loaded.
    Undone(LoadConflict),
}

/// Reads the options as the server does: `plugin-load` empties the list that `plugin-load-add` fills, and a plugin in the
/// list is not used if the option of its own name says so.
fn mention(options: &[String], plugin: &str) -> Mention {
    let own_option = plugin.replace('_', "-");
    let mut listed = Mention::None;
    let mut switched_off = None;
    let is_off = |value: &str| {
        let words = ["OFF", "FALSE", "0"];
        words.iter().any(|off| value.eq_ignore_ascii_case(off))
    };
    for (position, option) in options.iter().enumerate() {
        let Some((name, value)) = parse_switch(option) else {
            continue;
        };
        if matches!(&*name, "plugin-load" | "plugin-load-add") {
            if is_listed(value, plugin) {
                listed = Mention::Loaded(position);
            } else if name == "plugin-load" && matches!(listed, Mention::Loaded(_)) {
                listed = Mention::Undone(LoadConflict::TakenOff(value.to_owned()));
            }
        } else if name == own_option {
            switched_off = is_off(value).then_some(option);
        } else if let Some((prefix, switched)) = name.split_once('-')
            && switched == own_option
        {
            match prefix {
                "skip" | "disable" => switched_off = (!is_off(value)).then_some(option),
                "enable" => switched_off = is_off(value).then_some(option),
                _ => {}
            }
        }
    }
    match (listed, switched_off) {
        (Mention::Loaded(_), Some(option)) => Mention::Undone(LoadConflict::SwitchedOff(
            option.trim_start_matches("--").to_owned(),
        )),
        (listed, _) => listed,
    }
}

/// Whether a value of `plugin-load`, such as `ed25519=auth_ed25519;server_audit.so`, names a plugin or its file.
fn is_listed(value: &str, plugin: &str) -> bool {
    let words = value.split([';', ':', '=']).map(str::trim);
    words
        .map(|word| word.strip_suffix(".so").unwrap_or(word))
        .any(|word| word == plugin)
}

/// The encryption plugin other than ours that `command`'s arguments and option files load.
pub(crate) fn other_plugin(command: &[OsString]) -> Option<&'static str> {
    other_plugin_from(&options(command), 0)
}

/// The same, if an option from this position on loads it.
fn other_plugin_from(options: &[String], first: usize) -> Option<&'static str> {
    OTHER_PLUGINS.into_iter().find(
        |plugin| matches!(mention(options, plugin), Mention::Loaded(position) if position >= first),
    )
}

/// Fails if `command` is a server that is to load our plugin, and something else in its arguments and option files
/// prevents that.
pub(crate) fn check_loading(command: &[OsString]) -> Result<(), LoadConflict> {
    if !is_server(command) {
        return Ok(());
    }
    match loading(command) {
        Loading::Conflict(conflict) => Err(conflict),
        _ => Ok(()),
    }
}

/// Whether the command names a MariaDB server.
pub(super) fn is_server(command: &[OsString]) -> bool {
    command.iter().any(|argument| {
        let text = argument.to_string_lossy();
        text.contains("mariadbd") || text.contains("mysqld")
    })
}

/// Whether the server loads our plugin.
pub(super) fn loading(command: &[OsString]) -> Loading {
    let (mut options, problem) = match option_files(command) {
        Ok(options) => (options, None),
        Err(problem) => (Vec::new(), Some(problem)),
    };
    options.extend(arguments(command));
    match mention(&options, NAME) {
        Mention::Loaded(position) => {
            return match other_plugin_from(&options, position) {
                Some(other) => Loading::Conflict(LoadConflict::OtherPlugin(other)),
                None => Loading::Certain,
            };
        }
        Mention::Undone(conflict) => return Loading::Conflict(conflict),
        Mention::None => {}
    }
    match problem {
        None => {}
        Some(OptionFilesError::NoTool) => {
            return Loading::Unknown(
                "my_print_defaults, which reads the option files, is not installed".into(),
            );
        }
        Some(OptionFilesError::Unreadable(why)) if geteuid().is_root() => {
            return Loading::Unreadable(why);
        }
        // Perhaps the server's user can.
        Some(OptionFilesError::Unreadable(why)) => return Loading::Unknown(why),
    }
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
    if options.iter().any(is_ours) {
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

/// As whom a server runs.
pub(super) struct ServerUser {
    /// The user's name.
    pub(super) name: String,
    /// How this is known, for messages.
    pub(super) reason: &'static str,
}

/// The user that the server of `command` runs as: of its option files or its arguments. The first one counts, as for the
/// server, whose option files come before its arguments.
///
/// If this process is not root, it may be the server's own user, who is not to be named, or that of a broker beside a server
/// that something else starts; its user is known by its data, too, if this process may not write there.
pub(super) fn server_user(command: &[OsString]) -> Option<ServerUser> {
    if !is_server(command) {
        return None;
    }
    let data = data_directory(command);
    let owner = match geteuid().is_root() {
        true => None,
        false if access(&data, AccessFlags::W_OK).is_ok() => return None,
        false => data.metadata().ok().map(|it| it.uid()),
    };
    let is_safe = command.iter().any(|argument| {
        let text = argument.to_string_lossy();
        text.contains("mariadbd-safe") || text.contains("mysqld_safe")
    });
    let named = options(command)
        .iter()
        .filter_map(|option| parse(option))
        .find_map(|(name, value)| (name == "user").then(|| value.to_owned()))
        .or(is_safe.then(|| "mysql".to_owned()));
    if let Some(name) = named {
        let reason = "as its options say";
        return Some(ServerUser { name, reason });
    }
    let user = User::from_uid(Uid::from_raw(owner?)).ok()??;
    Some(ServerUser {
        name: user.name,
        reason: "the owner of its data directory",
    })
}

/// Why the server's option files are not known.
enum OptionFilesError {
    /// MariaDB's own tool, which reads them, is missing.
    NoTool,
    /// It says why.
    Unreadable(String),
}

/// The server's options of its option files, as MariaDB's own tool reads them.
fn option_files(command: &[OsString]) -> Result<Vec<String>, OptionFilesError> {
    let no_tool = |_| OptionFilesError::NoTool;
    let tool = find_program("my_print_defaults".as_ref()).map_err(|_| OptionFilesError::NoTool)?;
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
        // Ours may be where the code comes from.
        .stdin(process::Stdio::null())
        .output()
        .map_err(no_tool)?;
    if !output.status.success() {
        // Further lines only say that it was fatal.
        let said = String::from_utf8_lossy(&output.stderr);
        let first = said.lines().next().unwrap_or("it failed");
        return Err(OptionFilesError::Unreadable(first.to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}
