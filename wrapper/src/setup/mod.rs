//! `iam-kms-wrapper setup`: configures MariaDB and the broker, or the launcher, on a host where the package is
//! installed, and removes that again.
//!
//! `answers` asks, `files` composes, `record` writes and remembers, `host` runs the system's programs; this
//! module decides what is to be done and shows it first.

mod answers;
mod error;
mod files;
mod host;
mod record;

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::Parser;
use nix::{
    sys::stat::{Mode, umask},
    unistd::geteuid,
};
use tracing::{error, warn};

use answers::{AccessKey, AnswerArguments, Answers, HandOver, Present, confirm};
use error::SetupError;
use files::{
    CONFIG, CREDENTIAL, LAUNCHER_DROP_IN, Layout, PlannedFile, SERVICE_CREDENTIAL_DROP_IN,
    SERVICE_DROP_IN,
};
use host::{BROKER, SERVER};
use record::{Found, RECORD, Record};
use service::{process, usage::show_usage};

/// The first argument that chooses this part of the program.
pub const SUBCOMMAND: &str = "setup";

const FAILURE: i32 = 125;

/// Configure this host.
#[derive(Debug, Parser)]
#[command(
    name = SUBCOMMAND,
    bin_name = "iam-kms-wrapper setup",
    about = "Configure MariaDB and the broker on this host, or undo that",
    override_usage = "iam-kms-wrapper setup [--dry-run] [OPTIONS]\n       \
iam-kms-wrapper setup --undo [--dry-run] [--yes]",
    after_help = "\
At a terminal, it asks for what no option gives. It shows every file before it
writes any, never overwrites or removes a file that somebody else wrote or
changed, and runs the preflight check at the end. Run it again after a failure.
To see what it would do: iam-kms-wrapper setup --dry-run"
)]
pub struct SetupCommandLine {
    #[command(flatten)]
    answers: AnswerArguments,

    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,

    /// Only show what would be changed
    #[arg(long)]
    dry_run: bool,

    /// Remove what setup has written
    #[arg(long, conflicts_with_all = ["mfa_device", "master_key", "region", "hand_over", "access_key_id"])]
    undo: bool,

    /// Undo although the server has data keys
    #[arg(long, requires = "undo")]
    even_if_encrypted: bool,
}

/// Runs this part of the program with its own arguments, [`SUBCOMMAND`] first; returns the exit code.
pub fn main(arguments: impl Iterator<Item = OsString>) -> i32 {
    let command_line = match SetupCommandLine::try_parse_from(arguments) {
        Ok(command_line) => command_line,
        Err(usage) => return show_usage(&usage).into(),
    };
    let done = process::protect()
        .map_err(|error| SetupError::System("protect this process", error))
        .and_then(|()| run(command_line));
    match done {
        Ok(()) => 0,
        Err(failure) => {
            // The log has one line for an event: what failed, then what to do.
            for line in failure.to_string().lines() {
                error!("{line}");
            }
            FAILURE
        }
    }
}

fn run(command_line: SetupCommandLine) -> Result<(), SetupError> {
    let is_dry = command_line.dry_run;
    if !is_dry && !geteuid().is_root() {
        return Err(SetupError::NotRoot);
    }
    if !is_dry && !host::has_systemd() {
        return Err(SetupError::NoSystemd);
    }
    // The services' users are to read the configuration, whatever the shell of whoever calls this has.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let consent = Consent {
        is_dry,
        is_given: command_line.yes,
    };
    let _lock = match is_dry {
        true => None,
        false => Some(lock()?),
    };
    let record = Record::read()?;
    if command_line.undo {
        let Some(record) = record else {
            // An undo that was interrupted at its very end has left the directory.
            if !is_dry {
                record::remove()?;
            }
            return print(&format!(
                "There is nothing to undo: {RECORD} does not exist.\n"
            ));
        };
        return undo(record, &consent, command_line.even_if_encrypted);
    }
    let layout = host::layout()?;
    if let Some(plugin) = host::other_plugin() {
        return Err(SetupError::OtherPlugin(plugin));
    }
    let record = record.unwrap_or_default();
    set_up(
        &Answers::get(command_line.answers, present(&record, &layout)?)?,
        &layout,
        record,
        &consent,
    )
}

/// What is in place on this host.
fn present(record: &Record, layout: &Layout) -> Result<Present, SetupError> {
    let value = |path: &Path, name: &str| -> Result<Option<String>, SetupError> {
        let content = record::read(path)?;
        Ok(content.and_then(|content| files::value(&String::from_utf8_lossy(&content), name)))
    };
    let config = Path::new(CONFIG);
    let [mfa_device, region] = files::ANSWERED_KEYS;
    let has = |path: &str| record.files.contains_key(Path::new(path)) && Path::new(path).exists();
    Ok(Present {
        mfa_device: value(config, mfa_device)?,
        master_key: value(&layout.option_file(), files::MASTER_KEY_OPTION)?,
        region: value(config, region)?,
        hand_over: match (has(LAUNCHER_DROP_IN), has(SERVICE_DROP_IN)) {
            (true, _) => Some(HandOver::Launcher),
            (false, true) => Some(HandOver::Service),
            (false, false) => None,
        },
        has_credential: Path::new(CREDENTIAL).exists(),
    })
}

/// Keeps two setups apart until the file is closed.
fn lock() -> Result<File, SetupError> {
    let failed = |error| SetupError::System("lock this program", error);
    let program = File::open("/proc/self/exe").map_err(failed)?;
    match program.try_lock() {
        Ok(()) => Ok(program),
        Err(TryLockError::WouldBlock) => Err(SetupError::Busy),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Whether the changes that were shown are to be made.
struct Consent {
    is_dry: bool,
    is_given: bool,
}

impl Consent {
    /// Shows the changes; returns whether to make them.
    fn get(&self, changes: &str) -> Result<bool, SetupError> {
        print(changes)?;
        if self.is_dry {
            print("Nothing was changed (--dry-run).\n")?;
            return Ok(false);
        }
        if self.is_given || confirm("Make these changes?")? {
            return Ok(true);
        }
        Err(SetupError::Declined)
    }
}

/// What setup is to do.
struct Plan {
    /// All files as they are to be, without a credential that stays as it is.
    files: Vec<PlannedFile>,
    /// The configuration without the lines that a person has added to it.
    configuration: String,
    /// Files of an earlier setup that are needed no more.
    obsolete: Vec<PathBuf>,
    /// Whether systemd decrypts the credential.
    is_encrypted: bool,
    /// Whether the broker's service is to be enabled.
    enables_broker: bool,
    /// Whether it is to be disabled again.
    disables_broker: bool,
}

fn set_up(
    answers: &Answers,
    layout: &Layout,
    record: Record,
    consent: &Consent,
) -> Result<(), SetupError> {
    if host::has_systemd() {
        host::check_systemd(answers.hand_over)?;
    }
    if answers.hand_over == HandOver::Launcher
        && !record.has_enabled_broker
        && host::is_broker_enabled()
    {
        return Err(SetupError::BrokerEnabled(BROKER));
    }
    let mut plan = Plan::make(answers, layout, &record, host::has_encryption())?;
    let changes = plan.changes(&record, answers)?;
    let start = plan.start_command(answers.hand_over)?;
    if changes.is_empty() {
        print("All files are up to date.\n")?;
        if consent.is_dry {
            return Ok(());
        }
        // A setup that was interrupted may not have come so far.
        host::systemctl(&["daemon-reload"])?;
    } else {
        if !consent.get(&changes)? {
            return Ok(());
        }
        if let Err(failure) = plan.encrypt() {
            warn!("{failure}; the access key is stored unencrypted, for root alone");
            plan = Plan::make(answers, layout, &record, false)?;
        }
        plan.carry_out(record)?;
    }
    finish(answers.hand_over, plan.is_encrypted, layout, start)
}

impl Plan {
    fn make(
        answers: &Answers,
        layout: &Layout,
        record: &Record,
        can_encrypt: bool,
    ) -> Result<Self, SetupError> {
        let new_key = answers.access_key.as_ref();
        let kept = kept_credential(new_key)?;
        let is_encrypted = kept.unwrap_or(can_encrypt);
        let mut files = files::without_credential(answers, layout, is_encrypted);
        let mut configuration = String::new();
        if let Some(file) = files.iter_mut().find(|file| file.path == Path::new(CONFIG)) {
            configuration.clone_from(&file.content);
            if let Some((present, added)) = record.configuration()? {
                match record::added_lines(&present, &configuration) {
                    // As it is, wherever the added lines are.
                    Some(_) => *file.content = present,
                    None => file
                        .content
                        .extend(added.iter().map(|line| format!("{line}\n"))),
                }
            }
        }
        if kept.is_none() {
            files.extend(new_key.map(files::credential));
        }
        let is_needed = |path: &Path| {
            path == Path::new(CREDENTIAL) || files.iter().any(|file| file.path == path)
        };
        let known = record.files.keys();
        let obsolete = known.filter(|path| !is_needed(path)).cloned().collect();
        Ok(Self {
            files,
            configuration,
            obsolete,
            is_encrypted,
            enables_broker: answers.hand_over == HandOver::Service && !host::is_broker_enabled(),
            disables_broker: answers.hand_over == HandOver::Launcher && record.has_enabled_broker,
        })
    }

    /// The changes for a person to read, empty if there are none. The error names every file in the way.
    fn changes(&self, record: &Record, answers: &Answers) -> Result<String, SetupError> {
        let mut changes = String::new();
        let mut foreign = Vec::new();
        // The two hand-overs exclude each other, unless systemd does not read the other's drop-in.
        let excluded = Path::new(match answers.hand_over {
            HandOver::Service => LAUNCHER_DROP_IN,
            HandOver::Launcher => SERVICE_DROP_IN,
        });
        if !record::is_masked(excluded) && record.find(excluded)? == Found::Foreign {
            foreign.push(excluded);
        }
        for file in &self.files {
            let verb = match record.find(&file.path)? {
                _ if is_there(file)? => continue,
                Found::Nothing => "Create",
                Found::Ours => "Replace",
                Found::Foreign => {
                    foreign.push(&file.path);
                    continue;
                }
            };
            changes += &self.shown(verb, file);
        }
        for path in &self.obsolete {
            match record.find(path)? {
                Found::Nothing => {}
                Found::Ours => changes += &format!("Remove {}\n\n", path.display()),
                Found::Foreign if path != excluded => foreign.push(path),
                Found::Foreign => {}
            }
        }
        if !foreign.is_empty() {
            return Err(not_ours(&foreign));
        }
        if self.enables_broker {
            changes += &format!("Enable {BROKER}, so that it starts at boot.\n\n");
        }
        if self.disables_broker {
            changes += &format!("Disable {BROKER}\n\n");
        }
        Ok(changes)
    }

    /// The command that makes services use these files.
    fn start_command(&self, hand_over: HandOver) -> Result<String, SetupError> {
        let restart = "systemctl restart";
        let Some(broker_start) = host::broker_start()? else {
            return Ok(format!("{restart} mariadb"));
        };
        if hand_over == HandOver::Launcher {
            return Ok(format!("systemctl stop {BROKER} && {restart} mariadb"));
        }
        let brokers = [CONFIG, CREDENTIAL, SERVICE_CREDENTIAL_DROP_IN].map(Path::new);
        // An earlier run, or a person, may have written it since the broker started.
        let is_newer = |path: &Path| {
            let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
            modified.is_ok_and(|time| time > broker_start)
        };
        let mut has_changes = brokers
            .iter()
            .any(|path| is_newer(path) || self.obsolete.iter().any(|it| it == path));
        for file in &self.files {
            has_changes |= brokers.contains(&file.path.as_path()) && !is_there(file)?;
        }
        Ok(match has_changes {
            // The server alone would leave the broker with the configuration and the access key that it has read.
            true => format!("{restart} iam-kms-broker mariadb"),
            false => format!("{restart} mariadb"),
        })
    }

    /// The file as a person sees it, without the secret.
    fn shown(&self, verb: &str, file: &PlannedFile) -> String {
        let mut text = format!("{verb} {} (mode {:04o}", file.path.display(), file.mode);
        if file.is_secret {
            text.push_str(match self.is_encrypted {
                true => ", encrypted by systemd-creds if it can",
                false => ", not encrypted: this host has no systemd-creds (systemd 250 or later)",
            });
        }
        text.push_str("):\n");
        for line in file.content.lines() {
            match line.split_once(" = ") {
                Some((key @ "aws_secret_access_key", _)) => {
                    text += &format!("    {key} = (not shown)\n");
                }
                _ if line.is_empty() => text.push('\n'),
                _ => text += &format!("    {line}\n"),
            }
        }
        text.push('\n');
        text
    }

    /// Encrypts the credential that is to be written, if it is to be encrypted.
    fn encrypt(&mut self) -> Result<(), SetupError> {
        if self.is_encrypted {
            for file in self.files.iter_mut().filter(|file| file.is_secret) {
                file.content = host::encrypt(&file.content)?;
            }
        }
        Ok(())
    }

    fn carry_out(&self, mut record: Record) -> Result<(), SetupError> {
        // What has been changed since it was shown is not overwritten either.
        let mut written = Vec::new();
        for file in &self.files {
            match record.find(&file.path)? {
                _ if is_there(file)? => {}
                Found::Foreign => return Err(not_ours(&[&file.path])),
                _ => written.push(file),
            }
        }
        for file in &written {
            record.add(&file.path, file.content.as_bytes());
        }
        record.configurations.push(self.configuration.clone());
        record.has_enabled_broker |= self.enables_broker;
        record.write()?;
        for file in &written {
            record::write_file(&file.path, file.mode, file.content.as_bytes())?;
        }
        remove_files(&record, &self.obsolete)?;
        host::systemctl(&["daemon-reload"])?;
        if self.enables_broker {
            host::systemctl(&["enable", BROKER])?;
        }
        if self.disables_broker {
            host::systemctl(&["disable", BROKER])?;
            record.has_enabled_broker = false;
        }
        record.configurations = vec![self.configuration.clone()];
        record.files.retain(|path, _| !self.obsolete.contains(path));
        for file in &written {
            record.files.remove(&file.path);
            record.add(&file.path, file.content.as_bytes());
        }
        record.write()
    }
}

/// Whether a credential file stays as it is, and then whether it is encrypted.
fn kept_credential(new_key: Option<&AccessKey>) -> Result<Option<bool>, SetupError> {
    let Some(present) = record::read(Path::new(CREDENTIAL))? else {
        return Ok(None);
    };
    // What systemd encrypts is base64; an INI file has a section.
    let is_encrypted = !present.contains(&b'[');
    let Some(new_key) = new_key else {
        return Ok(Some(is_encrypted));
    };
    let wanted = files::credential(new_key).content;
    let is_same = is_encrypted && host::decrypt(&present).is_ok_and(|text| text == wanted);
    Ok(is_same.then_some(true))
}

/// Whether a file is as it is to be.
fn is_there(file: &PlannedFile) -> Result<bool, SetupError> {
    let present = record::read(&file.path)?;
    Ok(present.is_some_and(|present| *present == file.content.as_bytes()))
}

fn not_ours(paths: &[impl AsRef<Path>]) -> SetupError {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.as_ref().display().to_string())
        .collect();
    SetupError::NotOurs(format!(
        "setup did not write {}, or somebody has changed what it wrote, so nothing was changed\n\
         Move each of these files away if you do not need it, then run this again.",
        paths.join(" and ")
    ))
}

fn remove_files(record: &Record, paths: &[PathBuf]) -> Result<(), SetupError> {
    // An administrator's mask stays.
    for path in paths.iter().filter(|path| !record::is_masked(path)) {
        if record.find(path)? == Found::Foreign {
            return Err(SetupError::NotOurs(format!(
                "somebody has changed {} just now, so setup has stopped there; run this again",
                path.display()
            )));
        }
        record::remove_file(path)?;
    }
    Ok(())
}

/// Runs the preflight check, and says how the server is started.
fn finish(
    hand_over: HandOver,
    is_encrypted: bool,
    layout: &Layout,
    start: String,
) -> Result<(), SetupError> {
    if hand_over == HandOver::Launcher && !host::starts_launcher()? {
        return Err(SetupError::Overridden(host::last_drop_in()?));
    }
    if host::is_runtime_directory_in_use(hand_over) {
        print(&format!(
            "The preflight check was skipped, because a running service uses /run/iam-kms-wrapper.\n\
             To run it, stop {SERVER} and {BROKER}, and run this again.\n"
        ))?;
    } else {
        print("Preflight check, as the service would run:\n")?;
        if !host::check(hand_over, is_encrypted, layout.server)? {
            return Err(SetupError::Preflight);
        }
    }
    print(&format!(
        "\nStart the server; it prompts for the MFA code:\n    {start}\n"
    ))
}

fn undo(record: Record, consent: &Consent, even_if_encrypted: bool) -> Result<(), SetupError> {
    let mut changes = String::new();
    let mut foreign = Vec::new();
    let mut to_remove = Vec::new();
    let has_added = |(_, added): &(String, Vec<String>)| !added.is_empty();
    let keeps_configuration = record.configuration()?.as_ref().is_some_and(has_added);
    for path in record.files.keys() {
        match record.find(path)? {
            Found::Nothing => to_remove.push(path.clone()),
            Found::Ours if keeps_configuration && path == Path::new(CONFIG) => {
                changes += &format!("Leave {CONFIG}, to which somebody has added lines\n");
            }
            Found::Ours => {
                changes += &format!("Remove {}\n", path.display());
                to_remove.push(path.clone());
            }
            Found::Foreign => foreign.push(path),
        }
    }
    if !foreign.is_empty() {
        return Err(not_ours(&foreign));
    }
    if !even_if_encrypted && let Some(directory) = host::directory_with_data_keys()? {
        return Err(SetupError::Encrypted(directory));
    }
    let disables_broker = record.has_enabled_broker && host::is_broker_enabled();
    if disables_broker {
        changes += &format!("Disable {BROKER}\n");
    }
    if !consent.get(&changes)? {
        return Ok(());
    }
    if disables_broker {
        host::systemctl(&["disable", BROKER])?;
    }
    remove_files(&record, &to_remove)?;
    host::systemctl(&["daemon-reload"])?;
    for directory in record.directories.iter().rev() {
        record::remove_directory(directory)?;
    }
    record::remove()?;
    print(&format!(
        "Running services are not affected. To start the server without encryption:\n    \
         systemctl stop {BROKER} && systemctl restart mariadb\n"
    ))
}

fn print(text: &str) -> Result<(), SetupError> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| SetupError::System("write to standard output", error))
}
