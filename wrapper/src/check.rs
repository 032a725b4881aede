//! The preflight, `--check`: all that can be known before a start, without spending a code and
//! without leaving a trace.

mod apparmor;
mod key_server;
mod plugin;
mod reach;
mod selinux;

use std::{
    ffi::{CString, OsString},
    fmt::Display,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::Path,
};

use nix::unistd::{Gid, User, geteuid, getgrouplist};

use tracing::error;
use visible_text::escape;

use crate::{
    broker_process::{Broker, BrokerStartError},
    command_line::CommandLine,
};
use apparmor::ServerProfile;
use aws_session::{
    aws_error::offset_text,
    config::{BrokerConfig, Config, Handoff, Mfa, SessionConfig},
    key_store_location::KeyStoreLocation,
    settings::{Reader, Service, Settings, runtime},
    source_credentials::{self, Finder},
    sts,
};
use code_channel::{self, FifoError};
use plugin::{Loading, PluginSearch, ServerUser};
pub(crate) use plugin::{
    check_loading, data_directories, group_suffixes, keyfile_dir, other_plugin,
};
use reach::{Answer, reach, reach_bucket};
use service::{command::Command, process};

/// AWS wants a request "within five minutes of the time stamp in the request".
///
/// Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-signing-elements.html>.
const MOST_CLOCK_OFFSET_SECONDS: u64 = 300;

const ELSEWHERE: &str = "sessions are opened on another machine (mfa = elsewhere)";

/// What a check has found. The texts of failures say what to do.
enum Finding {
    Fine(String),
    Failure(String),
    NotChecked(String),
    NotNeeded(String),
}

impl Finding {
    fn of<T>(result: Result<T, impl Display>, fine: impl FnOnce(T) -> String) -> Self {
        match result {
            Ok(found) => Self::Fine(fine(found)),
            Err(failure) => Self::Failure(failure.to_string()),
        }
    }
}

/// Checks everything, one line of standard output each; returns the exit code: 0, or 125 if
/// anything failed.
pub fn run(command_line: CommandLine) -> i32 {
    let mut list = List { failures: 0 };
    match list.check_all(command_line) {
        Ok(()) if list.failures == 0 => 0,
        Ok(()) => 125,
        Err(failure) => {
            error!("cannot check everything: {failure}");
            125
        }
    }
}

struct List {
    failures: usize,
}

impl List {
    fn check_all(&mut self, command_line: CommandLine) -> io::Result<()> {
        let config = Config::read(&command_line.config);
        let path = command_line.config.display().to_string();
        self.add("configuration", Finding::of(config.as_ref(), |_| path))?;
        match config {
            Ok(config) => {
                match &config.broker.upstream {
                    Some(upstream) => {
                        for (what, finding) in key_server::check_upstream(upstream) {
                            self.add(&what, finding)?;
                        }
                    }
                    None => self.check_session(&config)?,
                }
                if let Some(key_server) = &config.broker.key_server {
                    self.add("key server", key_server::check_server(key_server))?;
                }
                self.check_host(&config, &command_line.command)?;
            }
            Err(_) => {
                let why = "depends on the configuration".into();
                self.add("all else", Finding::NotChecked(why))?;
            }
        }
        self.add("command", check_command(command_line.command))
    }

    fn check_session(&mut self, config: &Config) -> io::Result<()> {
        match Settings::read(&config.session, Reader::Service) {
            Ok(aws) => {
                self.check_aws(&config.session, &aws)?;
                match &config.broker.key_store {
                    Some(location) => {
                        self.add("key store", check_key_store(location, &aws)?)?;
                        self.check_key_store_profile(config, &aws)
                    }
                    None => Ok(()),
                }
            }
            Err(why) => self.add("AWS", Finding::Failure(why.to_string())),
        }
    }

    fn check_key_store_profile(&mut self, config: &Config, aws: &Settings) -> io::Result<()> {
        let finding = match source_credentials::of_key_store(config, aws, None) {
            Ok(None) => return Ok(()),
            Ok(Some(own)) => Finding::Fine(own.access_key_id.clone()),
            Err(failure) => Finding::Failure(failure.to_string()),
        };
        self.add("credentials of the key store", finding)
    }

    fn check_aws(&mut self, config: &SessionConfig, aws: &Settings) -> io::Result<()> {
        let sts = match config.mfa {
            Mfa::Elsewhere => None,
            _ => Some(reach(aws, Service::Sts)?),
        };
        let kms = reach(aws, Service::Kms)?;
        self.add(
            "AWS credentials",
            check_credentials(config, aws, sts.as_ref())?,
        )?;
        self.add("clock", check_clock(sts.iter().chain([&kms])))?;
        let sts = sts.map_or_else(|| Finding::NotNeeded(ELSEWHERE.into()), finding_of);
        self.add("STS", sts)?;
        self.add("KMS", finding_of(kms))
    }

    fn check_host(&mut self, config: &Config, command: &[OsString]) -> io::Result<()> {
        let fine = |()| "no other user can look into it or replace it".into();
        self.add(
            "this program",
            Finding::of(process::check_own_program(), fine),
        )?;
        let fifo = &config.fifo.path;
        if config.session.mfa != Mfa::Off {
            let can_be_made = |()| format!("{} can be made", fifo.display());
            let finding = match code_channel::check_fifo(fifo) {
                Err(busy @ FifoError::Busy { .. }) => Finding::NotChecked(format!(
                    "{busy}; this is as expected if its server is waiting for a code"
                )),
                found => Finding::of(found, can_be_made),
            };
            self.add("FIFO", finding)?;
        }
        if config.handoff == Handoff::Broker {
            let safe = |broker: Broker| match process::check_program(broker.program()) {
                Ok(()) => Finding::Fine(format!(
                    "{}, and {} can be made",
                    broker.program().display(),
                    config.broker.socket.display()
                )),
                Err(exposure) => Finding::Failure(exposure.to_string()),
            };
            let broker = match Broker::find(&config.broker) {
                Err(BrokerStartError::AlreadyThere { path }) => Finding::NotChecked(format!(
                    "one listens on {}; this is as expected if its server is running",
                    path.display()
                )),
                Err(failure) => Finding::Failure(failure.to_string()),
                Ok(broker) => safe(broker),
            };
            self.add("broker", broker)?;
            if let Some(user) = plugin::server_user(command) {
                let served = |()| format!("{} may use the broker's socket", user.name);
                let finding = Finding::of(check_served(&config.broker, &user), served);
                self.add("server's user", finding)?;
            }
            self.add("plugin", check_plugin(command))?;
            if let Some(finding) = check_apparmor(&config.broker, command) {
                self.add("AppArmor", finding)?;
            }
            if let Some(finding) = selinux::check_module() {
                self.add("SELinux", finding)?;
            }
        } else if plugin::is_server(command) {
            let why = "handoff = environment, which is for the stock plugin; set handoff = broker for this project's";
            self.add("broker and plugin", Finding::NotChecked(why.into()))?;
        }
        Ok(())
    }

    fn add(&mut self, what: &str, finding: Finding) -> io::Result<()> {
        let (verdict, text) = match finding {
            Finding::Fine(text) => ("ok", text),
            Finding::Failure(text) => {
                self.failures += 1;
                ("FAILED", text)
            }
            Finding::NotChecked(text) => ("not checked", text),
            Finding::NotNeeded(text) => ("not needed", text),
        };
        writeln!(io::stdout(), "{verdict:<13}{what}: {}", escape(&text))
    }
}

fn finding_of(answer: Answer) -> Finding {
    let url = answer.url;
    match answer.clock_offset_seconds {
        Ok(_) => Finding::Fine(format!("{url} answers")),
        Err(why) => Finding::Failure(format!("cannot reach {url}: {why}")),
    }
}

/// Whether the key store is there. What the session may do in it, only the broker can tell, when it has one.
fn check_key_store(location: &KeyStoreLocation, aws: &Settings) -> io::Result<Finding> {
    let path = match location {
        KeyStoreLocation::S3 { bucket, .. } => {
            let Answer {
                url,
                clock_offset_seconds,
            } = reach_bucket(aws, bucket)?;
            let answers = |_| format!("{url} answers");
            return Ok(Finding::of(clock_offset_seconds, answers));
        }
        KeyStoreLocation::Directory(path) => path,
    };
    let cannot_examine = |path: &Path, error| format!("cannot examine {}: {error}", path.display());
    let probe = path.join(KeyStoreLocation::PROBE);
    let found = match (path.metadata(), probe.metadata()) {
        (Err(error), _) => Err(cannot_examine(path, error)),
        (Ok(metadata), _) if !metadata.is_dir() => {
            Err(format!("{} is not a directory", path.display()))
        }
        (Ok(_), Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            Err(location.without_probe())
        }
        (Ok(_), Err(error)) => Err(cannot_examine(&probe, error)),
        (Ok(_), Ok(_)) => Ok(()),
    };
    Ok(Finding::of(found, |()| format!("{location} is there")))
}

fn check_credentials(
    config: &SessionConfig,
    aws: &Settings,
    sts: Option<&Answer>,
) -> io::Result<Finding> {
    let finder = Finder {
        config,
        aws,
        interrupt: None,
    };
    let source = match finder.find_for_mfa() {
        Ok(Some(source)) => source,
        Ok(None) => return Ok(Finding::NotNeeded(ELSEWHERE.into())),
        Err(failure) => return Ok(Finding::Failure(failure.to_string())),
    };
    let key = &source.access_key_id;
    if sts.is_some_and(|answer| answer.clock_offset_seconds.is_err()) {
        let why = format!("{key} is there, but STS does not answer");
        return Ok(Finding::NotChecked(why));
    }
    let identity = runtime()?.block_on(sts::identify(aws, &source, aws.http_client()));
    Ok(match (identity, &config.mfa) {
        (Ok(arn), Mfa::Here { serial_number }) if !is_same_account(serial_number, &arn) => {
            Finding::Failure(format!(
                "{key} is of {arn}, and kms_mfa_id, {serial_number}, of another account; correct one of them"
            ))
        }
        (identity, _) => Finding::of(identity, |arn| format!("{key} of {arn}")),
    })
}

/// The serial number of a hardware token names no account.
fn is_same_account(serial_number: &str, arn: &str) -> bool {
    let account = |arn: &str| arn.split(':').nth(4).map(str::to_owned);
    account(serial_number).is_none_or(|of_device| Some(of_device) == account(arn))
}

fn check_clock<'a>(mut answers: impl Iterator<Item = &'a Answer>) -> Finding {
    let Some(offset) = answers.find_map(|answer| answer.clock_offset_seconds.as_ref().ok()) else {
        return Finding::NotChecked("AWS, whose clock it is compared with, does not answer".into());
    };
    let off = offset_text(*offset);
    if offset.unsigned_abs() <= MOST_CLOCK_OFFSET_SECONDS {
        return Finding::Fine(off);
    }
    Finding::Failure(format!(
        "{off}. AWS refuses requests if the difference is more than 5 minutes: set the clock (timedatectl)"
    ))
}

fn check_command(command: Vec<OsString>) -> Finding {
    if command.is_empty() {
        return Finding::NotChecked("no COMMAND was given".into());
    }
    Finding::of(Command::find(command), |command| {
        command.path().display().to_string()
    })
}

/// Whether the broker, which this process's user starts, serves a server that runs as `user`. The error says what to set.
fn check_served(config: &BrokerConfig, user: &ServerUser) -> Result<(), String> {
    let ServerUser { name: user, reason } = user;
    let known = User::from_name(user)
        .map_err(|error| format!("cannot look up the user {user}: {error}"))?
        .ok_or_else(|| {
            format!(
                "there is no user {user}, as whom the server is to run; correct its option user"
            )
        })?;
    if known.uid.is_root() || known.uid == geteuid() {
        return Ok(());
    }
    let name = CString::new(user.as_str()).map_err(|error| error.to_string())?;
    let groups = getgrouplist(&name, known.gid)
        .map_err(|error| format!("cannot look up the groups of {user}: {error}"))?;
    let is_member = |gid: u32| groups.contains(&Gid::from_raw(gid));
    if !config.socket_gid.is_some_and(is_member) {
        let served = match (config.socket_gid, geteuid().is_root()) {
            (Some(_), true) => "root and a group that this user is not in (broker_socket_group)",
            (Some(_), false) => {
                "root, its own user and a group that this user is not in (broker_socket_group)"
            }
            (None, true) => "root alone",
            (None, false) => "root and its own user alone",
        };
        return Err(format!(
            "the server runs as {user}, {reason}, and the broker serves {served}; set broker_socket_group = {user}, or another group of that user"
        ));
    }
    let directory = config.socket.parent().unwrap_or(Path::new("/"));
    let metadata = directory
        .metadata()
        .map_err(|error| format!("cannot examine {}: {error}", directory.display()))?;
    let bit = match metadata.uid() == known.uid.as_raw() {
        true => 0o100,
        false if is_member(metadata.gid()) => 0o010,
        false => 0o001,
    };
    if metadata.mode() & bit == 0 {
        return Err(format!(
            "the server runs as {user}, who cannot search {}, where the broker's socket is; run chmod 755 {}",
            directory.display(),
            directory.display()
        ));
    }
    Ok(())
}

fn check_plugin(command: &[OsString]) -> Finding {
    match plugin::search(command) {
        PluginSearch::Found(path) => match plugin::loading(command) {
            Loading::Certain => Finding::of(plugin::check_master_key(command), |()| {
                path.display().to_string()
            }),
            Loading::Conflict(conflict) => Finding::Failure(conflict.to_string()),
            Loading::Never(next) => Finding::Failure(format!(
                "nothing in the server's options loads {}, so it would start without encryption: {next}",
                path.display()
            )),
            Loading::Unreadable(why) => {
                Finding::Failure(format!("the server's option files cannot be read: {why}"))
            }
            Loading::Unknown(why) => Finding::NotChecked(format!("{}: {why}", path.display())),
        },
        PluginSearch::Missing(directories) => Finding::Failure(format!(
            "{directories} holds no readable {}; install it into the server's plugin_dir",
            plugin::FILE
        )),
        PluginSearch::Unknown(why) => Finding::NotChecked(why.into()),
    }
}

/// `None` where no profile confines the server.
fn check_apparmor(config: &BrokerConfig, command: &[OsString]) -> Option<Finding> {
    let profile = apparmor::server_profile(&config.socket, &plugin::key_directory(command));
    Some(match profile {
        Ok(ServerProfile::None) => return None,
        Ok(ServerProfile::Allows(profile)) => Finding::Fine(format!(
            "the profile {profile} lets the server use {} and its key files",
            config.socket.display()
        )),
        Ok(ServerProfile::Denies(what)) => Finding::Failure(what),
        Err(error) => Finding::NotChecked(format!("the kernel does not answer: {error}")),
    })
}
