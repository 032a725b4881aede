//! The configuration file: TOML, or the INI of MariaDB's manual.
//!
//! Both hold the same keys ([`KEYS`]); `file` turns either into a list of entries, this module
//! checks the values and knows the defaults.

mod error;
mod file;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::{Gid, Group};
use serde::{Deserialize, Serialize};

pub use error::ConfigError;
use file::Entry;

use crate::{master_key_id::MasterKeyId, region::is_region};

/// Where the FIFO is made unless `kms_mfa_socket` says otherwise.
pub const DEFAULT_FIFO: &str = "/run/iam-kms-wrapper/mfa";

/// Every key of the configuration file.
pub const KEYS: [&str; 19] = [
    "kms_mfa_id",
    "master_key_id",
    "kms_mfa_socket",
    "kms_mfa_socket_mode",
    "kms_mfa_socket_group",
    "session_duration_seconds",
    "request_timeout_seconds",
    "prompt_timeout_seconds",
    "role_arn",
    "profile",
    "region",
    "handoff",
    "broker_socket",
    "broker_socket_group",
    "mfa",
    "reuse_session_min_seconds",
    "reprompt_wait_seconds",
    "key_cache",
    "log_format",
];

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Where the person's code is turned into a session.
    pub mfa: Mfa,
    /// The master key that `kms-manage-key` is for.
    pub master_key_id: Option<MasterKeyId>,
    /// Where the code is written to; `None` where nothing is configured.
    pub fifo: Option<PathBuf>,
    /// Who may write a code.
    pub fifo_access: FifoAccess,
    /// How long the session is to last, in seconds: 900 to 129,600.
    pub session_duration_seconds: i32,
    /// How long one call of AWS may take.
    pub request_timeout: Duration,
    /// How long to wait for a code; `None`: for ever.
    pub prompt_timeout: Option<Duration>,
    /// The role to assume with the code, instead of `GetSessionToken`.
    pub role_arn: Option<String>,
    /// Profile of the source credentials.
    pub profile: Option<String>,
    /// AWS region.
    pub region: Option<String>,
    /// How the command gets the session.
    pub handoff: Handoff,
    /// Where the broker listens.
    pub broker_socket: PathBuf,
    /// Group whose members may use the broker; `None`: only its own user and root.
    pub broker_socket_gid: Option<u32>,
    /// How much of a session must be left for a restart to use it again, in seconds.
    pub reuse_session_min_seconds: i64,
    /// How long a KMS call that may wait does so for a person to open a session.
    pub reprompt_wait: Duration,
    /// How long the broker keeps what it has unwrapped.
    pub key_cache: KeyCache,
    /// How the log is written where it does not go to the journal.
    pub log_format: LogFormat,
}

/// Where the person's code is turned into a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mfa {
    /// Here: a code of this device is traded at STS.
    Here {
        /// Serial number (ARN) of the device, 9 to 256 characters.
        serial_number: String,
    },
    /// Elsewhere: only session documents are taken, and this host needs no AWS key.
    Elsewhere,
    /// Nowhere: the source credentials are used as they are.
    Off,
}

/// Mode and group of the FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FifoAccess {
    /// Permission bits, 0600 unless configured.
    pub mode: u32,
    /// Group id, the process's own unless configured.
    pub gid: Option<u32>,
}

/// How the command gets the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handoff {
    /// In the variables `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    Environment,
    /// Through `iam-kms-broker`, which makes the KMS calls; nothing in the environment.
    Broker,
}

/// How long the broker keeps unwrapped data keys for other processes of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyCache {
    /// As long as it lives: backups work after the session's end.
    Lifetime,
    /// Not beyond the session: without one there are no keys.
    Session,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object for each line.
    Json,
}

impl Config {
    /// Reads and checks the file at `path`: TOML if its name ends in `.toml`, INI otherwise.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Values {
            path,
            entries: file::read(path)?,
        }
        .check()
    }

    /// What holds without a file: the credentials that the AWS CLI would find, used as they are.
    pub fn without_file() -> Result<Self, ConfigError> {
        let no_code = Entry {
            key: "mfa".into(),
            value: "false".into(),
            is_text: false,
            line: 0,
        };
        Values {
            path: Path::new(""),
            entries: vec![no_code],
        }
        .check()
    }

    /// The FIFO's path, configured or not.
    pub fn fifo_or_default(&self) -> &Path {
        self.fifo.as_deref().unwrap_or(Path::new(DEFAULT_FIFO))
    }
}

/// The entries of one file, to be taken out by name.
struct Values<'a> {
    path: &'a Path,
    entries: Vec<Entry>,
}

impl Values<'_> {
    fn check(&self) -> Result<Config, ConfigError> {
        if let Some(unknown) = self
            .entries
            .iter()
            .find(|e| !KEYS.contains(&e.key.as_str()))
        {
            return Err(ConfigError::unknown_key(self.path, unknown));
        }
        Ok(Config {
            mfa: self.mfa()?,
            master_key_id: self.master_key_id()?,
            fifo: self.absolute_path("kms_mfa_socket")?,
            fifo_access: FifoAccess {
                mode: self.mode()?,
                gid: self.gid("kms_mfa_socket_group")?,
            },
            session_duration_seconds: self.session_duration_seconds()?,
            request_timeout: self.seconds("request_timeout_seconds", 10, 1)?,
            prompt_timeout: Some(self.seconds("prompt_timeout_seconds", 0, 0)?)
                .filter(|timeout| !timeout.is_zero()),
            role_arn: self.role_arn()?,
            profile: self.text("profile")?,
            region: self.region()?,
            handoff: self.choice(
                "handoff",
                Handoff::Environment,
                &[
                    ("environment", Handoff::Environment),
                    ("broker", Handoff::Broker),
                ],
            )?,
            broker_socket: self
                .absolute_path("broker_socket")?
                .unwrap_or_else(|| broker_api::DEFAULT_SOCKET.into()),
            broker_socket_gid: self.gid("broker_socket_group")?,
            reuse_session_min_seconds: self
                .number("reuse_session_min_seconds", 60, 0, 129_600)?
                .into(),
            reprompt_wait: self.seconds("reprompt_wait_seconds", 0, 0)?,
            key_cache: self.choice(
                "key_cache",
                KeyCache::Lifetime,
                &[
                    ("lifetime", KeyCache::Lifetime),
                    ("session", KeyCache::Session),
                ],
            )?,
            log_format: self.choice(
                "log_format",
                LogFormat::Text,
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )?,
        })
    }

    fn mfa(&self) -> Result<Mfa, ConfigError> {
        #[derive(Clone, Copy)]
        enum Word {
            True,
            Elsewhere,
            False,
        }
        let known = [
            ("true", Word::True),
            ("elsewhere", Word::Elsewhere),
            ("false", Word::False),
        ];
        match (
            self.choice("mfa", Word::True, &known)?,
            self.entry("kms_mfa_id"),
        ) {
            (Word::True, Some(entry)) => self.serial_number(entry),
            (Word::True, None) => Err(ConfigError::NoSerialNumber {
                path: self.path.into(),
            }),
            (_, Some(entry)) => Err(self.bad_value(entry, "left out unless mfa = true")),
            (Word::Elsewhere, None) => Ok(Mfa::Elsewhere),
            (Word::False, None) => Ok(Mfa::Off),
        }
    }

    /// Source of the pattern: SerialNumber in
    /// <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetSessionToken.html>.
    fn serial_number(&self, entry: &Entry) -> Result<Mfa, ConfigError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=/:,.@-".contains(c);
        if entry.value.contains(":u2f/") {
            return Err(self.bad_value(
                entry,
                "a device with codes: STS takes no security key or passkey (u2f); add a virtual MFA device to the user",
            ));
        }
        if entry.value.contains(":user/") {
            return Err(self.bad_value(
                entry,
                "the ARN of an MFA device, such as arn:aws:iam::123456789012:mfa/NAME, not of a user (aws iam list-mfa-devices)",
            ));
        }
        if (9..=256).contains(&entry.value.len()) && entry.value.chars().all(allowed) {
            return Ok(Mfa::Here {
                serial_number: entry.value.clone(),
            });
        }
        Err(self.bad_value(
            entry,
            "the serial number of an MFA device, such as arn:aws:iam::123456789012:mfa/NAME",
        ))
    }

    fn master_key_id(&self) -> Result<Option<MasterKeyId>, ConfigError> {
        let Some(entry) = self.entry("master_key_id") else {
            return Ok(None);
        };
        let parsed = entry.value.parse().map(Some);
        parsed.map_err(|_| self.bad_value(entry, MasterKeyId::EXPECTED))
    }

    fn role_arn(&self) -> Result<Option<String>, ConfigError> {
        let Some(entry) = self.entry("role_arn") else {
            return Ok(None);
        };
        if !matches!(self.mfa()?, Mfa::Here { .. }) {
            return Err(self.bad_value(entry, "left out unless mfa = true"));
        }
        if entry.value.starts_with("arn:") && entry.value.contains(":role/") {
            return Ok(Some(entry.value.clone()));
        }
        Err(self.bad_value(
            entry,
            "the ARN of a role, such as arn:aws:iam::123456789012:role/NAME",
        ))
    }

    /// AWS lets the session of a role last 12 hours at most.
    ///
    /// Source: DurationSeconds in
    /// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>.
    fn session_duration_seconds(&self) -> Result<i32, ConfigError> {
        let key = "session_duration_seconds";
        let seconds = self.number(key, 900, 900, 129_600)?;
        match self.entry(key) {
            Some(entry) if seconds > 43_200 && self.entry("role_arn").is_some() => {
                Err(self.bad_value(entry, "at most 43200 with role_arn"))
            }
            _ => Ok(seconds),
        }
    }

    fn region(&self) -> Result<Option<String>, ConfigError> {
        match self.entry("region") {
            Some(entry) if !is_region(&entry.value) => {
                Err(self.bad_value(entry, "an AWS region, such as us-east-1"))
            }
            entry => Ok(entry.map(|entry| entry.value.clone())),
        }
    }

    fn mode(&self) -> Result<u32, ConfigError> {
        let Some(entry) = self.entry("kms_mfa_socket_mode") else {
            return Ok(0o600);
        };
        let expected = "octal permission bits that let the owner read, in quotes in a .toml file, such as 0620";
        match u32::from_str_radix(&entry.value, 8) {
            Ok(mode) if entry.is_text && mode <= 0o777 && mode & 0o400 != 0 => Ok(mode),
            _ => Err(self.bad_value(entry, expected)),
        }
    }

    fn gid(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        let Some(entry) = self.entry(key) else {
            return Ok(None);
        };
        match Group::from_name(&entry.value) {
            Ok(Some(group)) => Ok(Some(Gid::as_raw(group.gid))),
            _ => Err(self.bad_value(entry, "the name of a group of this host")),
        }
    }

    fn absolute_path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        let Some(entry) = self.entry(key) else {
            return Ok(None);
        };
        let path = PathBuf::from(&entry.value);
        if path.is_absolute() && path.file_name().is_some() {
            return Ok(Some(path));
        }
        Err(self.bad_value(entry, "an absolute path"))
    }

    fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.entry(key) {
            Some(entry) if entry.value.is_empty() => Err(self.bad_value(entry, "not empty")),
            entry => Ok(entry.map(|e| e.value.clone())),
        }
    }

    fn seconds(&self, key: &str, default: i32, least: i32) -> Result<Duration, ConfigError> {
        let seconds = self.number(key, default, least, 86_400 * 7)?;
        Ok(Duration::from_secs(u64::from(seconds.unsigned_abs())))
    }

    fn number(&self, key: &str, default: i32, least: i32, most: i32) -> Result<i32, ConfigError> {
        let Some(entry) = self.entry(key) else {
            return Ok(default);
        };
        match entry.value.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(self.bad_value(entry, &format!("a number from {least} to {most}"))),
        }
    }

    fn choice<T: Copy>(
        &self,
        key: &str,
        default: T,
        known: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let Some(entry) = self.entry(key) else {
            return Ok(default);
        };
        if let Some((_, value)) = known.iter().find(|(name, _)| *name == entry.value) {
            return Ok(*value);
        }
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        Err(self.bad_value(entry, &names.join(" or ")))
    }

    /// The last entry counts where a key stands twice, as the Go program had it. (TOML refuses it.)
    fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.key == key)
    }

    fn bad_value(&self, entry: &Entry, expected: &str) -> ConfigError {
        ConfigError::Value {
            path: self.path.into(),
            line: entry.line,
            key: entry.key.clone(),
            value: entry.value.clone(),
            expected: expected.into(),
        }
    }
}

#[cfg(test)]
mod tests;
