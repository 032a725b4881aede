//! What setup asks of the host: where MariaDB is, and systemd's programs.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, Seek, Write},
    iter,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime},
};

use key_files::key_name::{KeyName, ParsedName};
use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime};
use zeroize::Zeroizing;

use crate::{
    check,
    setup::{
        answers::HandOver,
        error::SetupError,
        files::{CONFIG, CREDENTIAL, CREDENTIAL_NAME, Layout},
    },
};
use service::command::find_program;

/// The broker's unit.
pub const BROKER: &str = "iam-kms-broker.service";

/// The server's unit.
pub const SERVER: &str = "mariadb.service";

/// What both units have as their runtime directory.
const RUNTIME_DIRECTORY: &str = "/run/iam-kms-wrapper";

/// Of Debian's package; of Red Hat's and of MariaDB's own for it.
const OPTION_DIRECTORIES: [&str; 2] = ["/etc/mysql/mariadb.conf.d", "/etc/my.cnf.d"];

/// Of Debian's and MariaDB's packages; of Red Hat's.
const SERVERS: [&str; 2] = ["/usr/sbin/mariadbd", "/usr/libexec/mariadbd"];

/// Finds MariaDB and our own programs.
pub fn layout() -> Result<Layout, SetupError> {
    let first = |paths: [&'static str; 2], what| {
        let found = paths.into_iter().map(Path::new).find(|path| path.exists());
        found.ok_or(SetupError::NoServer(what))
    };
    let own = env::current_exe().map_err(|error| SetupError::System("find this program", error))?;
    Ok(Layout {
        option_directory: first(
            OPTION_DIRECTORIES,
            "a directory for MariaDB's option files, /etc/mysql/mariadb.conf.d or /etc/my.cnf.d",
        )?,
        server: first(
            SERVERS,
            "MariaDB's server, /usr/sbin/mariadbd or /usr/libexec/mariadbd",
        )?,
        prefix: own.ancestors().nth(2).unwrap_or(Path::new("/usr")).into(),
    })
}

/// Whether systemd is process 1. Source: sd_booted(3).
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Fails if this host's systemd is known to be too old to load the credential of the service that needs it.
///
/// Before 248, it does not start a service with `LoadCredential=` and `ExecStartPre=`, as `mariadb.service` has:
/// <https://github.com/systemd/systemd/issues/18116>.
pub fn check_systemd(hand_over: HandOver) -> Result<(), SetupError> {
    let (service, needed) = match hand_over {
        HandOver::Service => (BROKER, 247),
        HandOver::Launcher => (SERVER, 248),
    };
    let version = systemctl(&["--version"])?;
    let version = version.split_whitespace().nth(1);
    match version.and_then(|version| version.parse().ok()) {
        Some(version) if version < needed => Err(SetupError::OldSystemd {
            version,
            service,
            needed,
        }),
        _ => Ok(()),
    }
}

/// What stands for the servers of this host where their options are looked for: the words of the unit, and for each
/// instance the suffix of its option groups.
fn server_commands() -> Vec<Vec<OsString>> {
    // A dry run works without systemd, too.
    let unit = systemctl(&[
        "show",
        "--property=ExecStart,Environment",
        "--value",
        SERVER,
    ]);
    let unit = unit.unwrap_or_default();
    let words = unit.split([' ', '\n', '"']);
    // Without the name of the variable in front, such as MYSQLD_OPTS=.
    let words = words.map(|word| word.find("--").map_or(word, |at| &word[at..]));
    let instances = check::group_suffixes().into_iter();
    let instances =
        instances.map(|suffix| vec![format!("--defaults-group-suffix={suffix}").into()]);
    iter::once(words.map(OsString::from).collect())
        .chain(instances)
        .collect()
}

/// The encryption plugin other than ours that the server loads.
pub fn other_plugin() -> Option<&'static str> {
    server_commands()
        .iter()
        .find_map(|command| check::other_plugin(command))
}

/// The directory in which the server has data keys, if it has any.
pub fn directory_with_data_keys() -> Result<Option<PathBuf>, SetupError> {
    let directories = |command: Vec<OsString>| {
        let data = check::data_directories(&command);
        data.into_iter().chain(check::keyfile_dir(&command))
    };
    for directory in server_commands().into_iter().flat_map(directories) {
        let entries = match directory.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(SetupError::file("read", &directory))?,
        };
        for entry in entries {
            let entry = entry.map_err(SetupError::file("read", &directory))?;
            let name = KeyName::parse(entry.file_name().as_bytes());
            if matches!(name, ParsedName::Key(_) | ParsedName::Malformed) {
                return Ok(Some(directory));
            }
        }
    }
    Ok(None)
}

/// Whether systemd can be asked to encrypt credentials: from version 250 on.
pub fn has_encryption() -> bool {
    find_program("systemd-creds".as_ref()).is_ok()
}

/// Encrypts a credential for this host.
pub fn encrypt(text: &str) -> Result<Zeroizing<String>, SetupError> {
    let name = format!("--name={CREDENTIAL_NAME}");
    pipe(
        "systemd-creds",
        &["encrypt", &name, "-", "-"],
        text.as_bytes(),
    )
}

/// Decrypts a credential of this host.
pub fn decrypt(encrypted: &[u8]) -> Result<Zeroizing<String>, SetupError> {
    let name = format!("--name={CREDENTIAL_NAME}");
    pipe("systemd-creds", &["decrypt", &name, "-", "-"], encrypted)
}

/// Runs systemctl; returns what it prints.
pub fn systemctl(arguments: &[&str]) -> Result<String, SetupError> {
    pipe("systemctl", arguments, &[]).map(|text| text.trim().to_owned())
}

/// Whether systemd starts the server through the launcher, all drop-ins together.
pub fn starts_launcher() -> Result<bool, SetupError> {
    let command = systemctl(&["show", "--property=ExecStart", "--value", SERVER])?;
    Ok(command.contains("/iam-kms-wrapper "))
}

/// Of the drop-ins that change the server's command, the one that systemd reads last.
pub fn last_drop_in() -> Result<String, SetupError> {
    let paths = systemctl(&["show", "--property=DropInPaths", "--value", SERVER])?;
    let has_command = |path: &&str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .any(|line| line.trim().starts_with("ExecStart="))
    };
    let last = paths.split_whitespace().rev().find(has_command);
    Ok(last.unwrap_or("another drop-in").to_owned())
}

/// Whether the broker's service starts at boot.
pub fn is_broker_enabled() -> bool {
    systemctl(&["is-enabled", BROKER]).is_ok_and(|state| state == "enabled")
}

/// Whether the broker's service runs.
pub fn is_broker_active() -> bool {
    systemctl(&["is-active", BROKER]).is_ok()
}

/// When the broker that runs was started; `None` if it does not run.
pub fn broker_start() -> Result<Option<SystemTime>, SetupError> {
    if !is_broker_active() {
        return Ok(None);
    }
    let property = "--property=ExecMainStartTimestampMonotonic";
    let arguments = ["show", property, "--value", BROKER];
    let microseconds = systemctl(&arguments)?;
    let after_boot = microseconds.parse().map(Duration::from_micros);
    let after_boot =
        after_boot.map_err(|error| failed("systemctl", &arguments, error.to_string()))?;
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
    Ok(SystemTime::now().checked_sub(now.saturating_sub(after_boot)))
}

/// Whether a check would take the runtime directory from a process that uses it.
pub fn is_runtime_directory_in_use(hand_over: HandOver) -> bool {
    Path::new(RUNTIME_DIRECTORY).exists() && (hand_over == HandOver::Service || is_broker_active())
}

/// Runs the preflight check as the service would run, with its output on ours; whether all is well.
pub fn check(hand_over: HandOver, is_encrypted: bool, server: &Path) -> Result<bool, SetupError> {
    let (unit, user) = match hand_over {
        HandOver::Service => (
            BROKER,
            &["DynamicUser=yes", "User=iam-kms-broker", "Group=mysql"][..],
        ),
        HandOver::Launcher => (SERVER, &["User=mysql"][..]),
    };
    let load = match is_encrypted {
        true => "LoadCredentialEncrypted",
        false => "LoadCredential",
    };
    let mut properties: Vec<String> = user.iter().map(|&property| property.into()).collect();
    properties.push(format!("{load}={CREDENTIAL_NAME}:{CREDENTIAL}"));
    properties.push("RuntimeDirectory=iam-kms-wrapper".into());
    if Path::new(RUNTIME_DIRECTORY).exists() {
        // A server that runs has its FIFO and its broker's socket there.
        properties.push("RuntimeDirectoryPreserve=yes".into());
    }
    // Endpoints and proxies, which an administrator sets in the unit.
    let environment = systemctl(&["show", "--property=Environment", "--value", unit])?;
    if !environment.is_empty() {
        properties.push(format!("Environment={environment}"));
    }
    let own = env::current_exe().map_err(|error| SetupError::System("find this program", error))?;
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--pipe", "--wait", "--collect"]);
    for property in &properties {
        command.arg(format!("--property={property}"));
    }
    command
        .arg(own)
        .args(["--check", &format!("--config={CONFIG}")])
        .arg(server)
        .stdin(Stdio::null());
    let status = command.status();
    status
        .map(|status| status.success())
        .map_err(|error| failed("systemd-run", &[], error.to_string()))
}

/// Runs a program with this standard input; returns its standard output.
fn pipe(program: &str, arguments: &[&str], input: &[u8]) -> Result<Zeroizing<String>, SetupError> {
    let run = || -> io::Result<Output> {
        // Not a pipe, whose reader may end early: SIGPIPE would end this process.
        let mut stdin = File::from(memfd_create("input", MFdFlags::MFD_CLOEXEC)?);
        stdin.write_all(input)?;
        stdin.rewind()?;
        Command::new(program).args(arguments).stdin(stdin).output()
    };
    let output = run().map_err(|error| failed(program, arguments, error.to_string()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let why = match text.trim() {
            "" => output.status.to_string(),
            said => said.to_owned(),
        };
        return Err(failed(program, arguments, why));
    }
    String::from_utf8(output.stdout)
        .map(Zeroizing::new)
        .map_err(|_| failed(program, arguments, "its output is not UTF-8 text".into()))
}

fn failed(program: &str, arguments: &[&str], why: String) -> SetupError {
    SetupError::Program {
        program: [&[program], arguments].concat().join(" "),
        why,
    }
}
