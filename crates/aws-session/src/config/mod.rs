//! The configuration file: TOML, or the INI of MariaDB's manual. Both have the same keys ([`KEYS`]).
//!
//! `file` turns either into a list of entries; this module checks the values.

mod error;
mod file;
mod key_server;
mod keys;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::{Gid, Group};
use serde::{Deserialize, Serialize};

pub use error::ConfigError;
use file::{ClientSection, Entry};
pub use key_server::{
    ClientConfig, KeyIds, KeyServerConfig, ServerAddress, TlsFiles, UpstreamConfig,
};
pub use keys::{CLIENT_KEYS, KEYS, Key, Kind};

use crate::{key_store_location::KeyStoreLocation, master_key_id::MasterKeyId, region::is_region};

/// The FIFO's path unless `kms_mfa_socket` says otherwise.
pub const DEFAULT_FIFO: &str = keys::KMS_MFA_SOCKET.default;

/// Longest session of a role, in seconds.
///
/// Source: DurationSeconds in
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>.
pub const MAX_ROLE_SECONDS: i32 = 43_200;

/// A checked configuration, in parts: each program uses those that it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// How a session is opened.
    pub session: SessionConfig,
    /// Where a code is written.
    pub fifo: FifoConfig,
    /// How the broker serves its clients.
    pub broker: BrokerConfig,
    /// How the command gets the session.
    pub handoff: Handoff,
    /// The master key that `kms-manage-key` manages.
    pub master_key_id: Option<MasterKeyId>,
    /// How the log is written if it does not go to the journal.
    pub log_format: LogFormat,
}

/// How a session is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionConfig {
    /// Where a code is exchanged for a session.
    pub mfa: Mfa,
    /// How long a session lasts, in seconds: 900 to 129,600.
    pub duration_seconds: i32,
    /// Time limit for one call of AWS.
    pub request_timeout: Duration,
    /// The role to assume with the code; `None`: `GetSessionToken`.
    pub role_arn: Option<String>,
    /// Profile of the source credentials.
    pub profile: Option<String>,
    /// AWS region.
    pub region: Option<String>,
    /// How much of a stored session must be left for a restart to reuse it, in seconds.
    pub reuse_min_seconds: i64,
}

/// Where a code is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FifoConfig {
    /// The FIFO.
    pub path: PathBuf,
    /// Whether the configuration names it. Otherwise a terminal is preferred.
    pub is_configured: bool,
    /// Who may write to it.
    pub access: FifoAccess,
    /// How long to wait for a code; `None`: without limit.
    pub prompt_timeout: Option<Duration>,
}

/// How the broker serves its clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerConfig {
    /// The socket that it listens on.
    pub socket: PathBuf,
    /// Group whose members it also serves; `None`: only its own user and root.
    pub socket_gid: Option<u32>,
    /// How long a request that may wait does so until there is a session.
    pub reprompt_wait: Duration,
    /// How long it keeps data keys.
    pub key_cache: KeyCache,
    /// Where the second copy of the wrapped keys is.
    pub key_store: Option<KeyStoreLocation>,
    /// The profile of its credentials; `None`: the session.
    pub key_store_profile: Option<String>,
    /// What makes it a key server.
    pub key_server: Option<KeyServerConfig>,
    /// The key servers that it asks in place of KMS.
    pub upstream: Option<UpstreamConfig>,
    /// Where it serves its metrics; `None`: nowhere.
    pub metrics_listen: Option<Listen>,
    /// The socket for its state alone; `None`: there is none.
    pub overview_socket: Option<PathBuf>,
    /// The group that may use these two.
    pub overview_gid: Option<u32>,
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listen {
    /// A Unix socket.
    Socket(PathBuf),
    /// An address of the loopback interface.
    Loopback(SocketAddr),
}

/// Where a code is exchanged for a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mfa {
    /// On this host, by STS.
    Here {
        /// Serial number or ARN of the MFA device, 9 to 256 characters.
        serial_number: String,
    },
    /// On another machine: this host accepts only session documents and needs no AWS key.
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
    /// Not at all: `iam-kms-broker` keeps it and makes the KMS calls.
    Broker,
}

/// How long the broker keeps decrypted data keys for other processes of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyCache {
    /// Until it exits: backups also work without a session.
    Lifetime,
    /// Not at all, so that nobody gets a key without a session.
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
        let content = file::read(path)?;
        Values {
            path,
            entries: content.entries,
        }
        .check(&content.clients)
    }

    /// The configuration of a tool that was given no file: the credentials that the AWS CLI would find,
    /// used as they are.
    pub fn without_file() -> Result<Self, ConfigError> {
        Values {
            path: Path::new(""),
            entries: vec![Entry {
                key: keys::MFA.name.into(),
                value: "false".into(),
                is_text: false,
                line: 0,
            }],
        }
        .check(&[])
    }
}

/// The entries of one file.
struct Values<'a> {
    path: &'a Path,
    entries: Vec<Entry>,
}

impl Values<'_> {
    fn check(&self, clients: &[ClientSection]) -> Result<Config, ConfigError> {
        self.check_names(KEYS)?;
        self.check_sockets()?;
        let upstream = self.upstream()?;
        let mfa = match upstream {
            // Nothing here calls AWS.
            Some(_) => Mfa::Off,
            None => self.mfa()?,
        };
        Ok(Config {
            session: SessionConfig {
                duration_seconds: self.session_duration_seconds()?,
                request_timeout: self.seconds(&keys::REQUEST_TIMEOUT_SECONDS)?,
                role_arn: self.role_arn(&mfa)?,
                profile: self.get(&keys::PROFILE, not_empty)?,
                region: self.get(&keys::REGION, region)?,
                reuse_min_seconds: self.number(&keys::REUSE_SESSION_MIN_SECONDS)?.into(),
                mfa,
            },
            fifo: FifoConfig {
                path: self.path(&keys::KMS_MFA_SOCKET)?,
                is_configured: self.entry(&keys::KMS_MFA_SOCKET).is_some(),
                access: FifoAccess {
                    mode: self.mode()?,
                    gid: self.get(&keys::KMS_MFA_SOCKET_GROUP, gid)?,
                },
                prompt_timeout: Some(self.seconds(&keys::PROMPT_TIMEOUT_SECONDS)?)
                    .filter(|timeout| !timeout.is_zero()),
            },
            broker: BrokerConfig {
                socket: self.path(&keys::BROKER_SOCKET)?,
                socket_gid: self.get(&keys::BROKER_SOCKET_GROUP, gid)?,
                reprompt_wait: self.seconds(&keys::REPROMPT_WAIT_SECONDS)?,
                key_cache: match self.word(&keys::KEY_CACHE)? {
                    "session" => KeyCache::Session,
                    _ => KeyCache::Lifetime,
                },
                key_store: self.get(&keys::KEY_STORE, |_, place| place.parse().ok())?,
                key_store_profile: self.get(&keys::KEY_STORE_PROFILE, not_empty)?,
                key_server: self.key_server(clients)?,
                upstream,
                metrics_listen: self.get(&keys::METRICS_LISTEN, listen)?,
                overview_socket: self.get(&keys::OVERVIEW_SOCKET, absolute_path)?,
                overview_gid: self.get(&keys::OVERVIEW_GROUP, gid)?,
            },
            handoff: match self.word(&keys::HANDOFF)? {
                "broker" => Handoff::Broker,
                _ => Handoff::Environment,
            },
            master_key_id: self.master_key_id()?,
            log_format: match self.word(&keys::LOG_FORMAT)? {
                "json" => LogFormat::Json,
                _ => LogFormat::Text,
            },
        })
    }

    /// A path is one socket, or the FIFO.
    fn check_sockets(&self) -> Result<(), ConfigError> {
        let sockets = [
            &keys::KMS_MFA_SOCKET,
            &keys::BROKER_SOCKET,
            &keys::OVERVIEW_SOCKET,
            &keys::METRICS_LISTEN,
        ];
        let path = |key: &'static Key| self.entry(key).map_or(key.default, |entry| &entry.value);
        for (index, key) in sockets.into_iter().enumerate() {
            for other in sockets.into_iter().skip(index + 1) {
                if path(key) != path(other) {
                    continue;
                }
                // Defaults differ, unless both keys may be left out.
                let entries = [(other, key), (key, other)];
                if let Some((entry, than)) = entries
                    .into_iter()
                    .find_map(|(key, than)| Some((self.entry(key)?, than)))
                {
                    return Err(self.bad_value(entry, format!("another path than {}", than.name)));
                }
            }
        }
        Ok(())
    }

    fn check_names(&self, known: &[Key]) -> Result<(), ConfigError> {
        let is_unknown = |entry: &&Entry| known.iter().all(|key| key.name != entry.key);
        match self.entries.iter().find(is_unknown) {
            Some(unknown) => Err(ConfigError::unknown_key(self.path, unknown, known)),
            None => Ok(()),
        }
    }

    fn mfa(&self) -> Result<Mfa, ConfigError> {
        let word = self.word(&keys::MFA)?;
        match (word, self.entry(&keys::KMS_MFA_ID)) {
            ("true", Some(entry)) => match serial_number(&entry.value) {
                Ok(serial_number) => Ok(Mfa::Here { serial_number }),
                Err(expected) => Err(self.bad_value(entry, expected)),
            },
            ("true", None) => Err(ConfigError::of_file(
                self.path,
                "kms_mfa_id is missing; set it to the ARN of your MFA device (or set mfa = elsewhere if sessions are opened on another machine, or mfa = false if no code is needed)",
            )),
            (_, Some(entry)) => Err(self.bad_value(entry, "left out unless mfa = true")),
            ("elsewhere", None) => Ok(Mfa::Elsewhere),
            (_, None) => Ok(Mfa::Off),
        }
    }

    fn master_key_id(&self) -> Result<Option<MasterKeyId>, ConfigError> {
        let parse = |entry: &Entry| {
            let parsed = MasterKeyId::parse(&entry.value);
            parsed.map_err(|expected| self.bad_value(entry, expected))
        };
        self.entry(&keys::MASTER_KEY_ID).map(parse).transpose()
    }

    fn role_arn(&self, mfa: &Mfa) -> Result<Option<String>, ConfigError> {
        match self.entry(&keys::ROLE_ARN) {
            Some(entry) if !matches!(mfa, Mfa::Here { .. }) => {
                Err(self.bad_value(entry, "left out unless mfa = true"))
            }
            _ => self.get(&keys::ROLE_ARN, |_, arn| {
                is_role_arn(arn).then(|| arn.into())
            }),
        }
    }

    fn session_duration_seconds(&self) -> Result<i32, ConfigError> {
        let seconds = self.number(&keys::SESSION_DURATION_SECONDS)?;
        match self.entry(&keys::SESSION_DURATION_SECONDS) {
            Some(entry) if seconds > MAX_ROLE_SECONDS && self.entry(&keys::ROLE_ARN).is_some() => {
                Err(self.bad_value(entry, "at most 43200 with role_arn"))
            }
            _ => Ok(seconds),
        }
    }

    fn mode(&self) -> Result<u32, ConfigError> {
        let key = &keys::KMS_MFA_SOCKET_MODE;
        match self.entry(key) {
            Some(entry) if !entry.is_text => Err(self.bad_value(entry, key.kind.expected())),
            _ => self.required(key, |_, text| {
                let mode = u32::from_str_radix(text, 8).ok()?;
                // Who may read could take the code.
                (mode <= 0o777 && mode & 0o444 == 0o400).then_some(mode)
            }),
        }
    }

    fn path(&self, key: &Key) -> Result<PathBuf, ConfigError> {
        self.required(key, absolute_path)
    }

    fn seconds(&self, key: &Key) -> Result<Duration, ConfigError> {
        let seconds = self.number(key)?;
        Ok(Duration::from_secs(u64::from(seconds.unsigned_abs())))
    }

    fn number(&self, key: &Key) -> Result<i32, ConfigError> {
        self.required(key, |kind, text| {
            let number = text.parse().ok()?;
            let Kind::Number(least, most) = kind else {
                return None;
            };
            (least..=most).contains(&number).then_some(number)
        })
    }

    /// One of the words of the table.
    fn word(&self, key: &Key) -> Result<&'static str, ConfigError> {
        self.required(key, |kind, text| match kind {
            Kind::Word(words) => words.iter().copied().find(|word| *word == text),
            _ => None,
        })
    }

    /// The value of a key that has a default.
    fn required<T>(
        &self,
        key: &Key,
        parse: impl Fn(Kind, &str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        match self.get(key, &parse)? {
            Some(value) => Ok(value),
            None => parse(key.kind, key.default).ok_or_else(|| ConfigError::default(key)),
        }
    }

    fn get<T>(
        &self,
        key: &Key,
        parse: impl Fn(Kind, &str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(entry) = self.entry(key) else {
            return Ok(None);
        };
        match parse(key.kind, &entry.value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.bad_value(entry, key.kind.expected())),
        }
    }

    /// The last entry counts if a key occurs twice, as in the Go program. (TOML refuses it.)
    fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries
            .iter()
            .rev()
            .find(|entry| entry.key == key.name)
    }

    fn bad_value(&self, entry: &Entry, expected: impl AsRef<str>) -> ConfigError {
        ConfigError::value(self.path, entry, expected.as_ref())
    }
}

/// Checks the serial number of an MFA device. The error completes "must be …".
///
/// Source of the pattern: SerialNumber in
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetSessionToken.html>.
pub fn serial_number(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=/:,.@-".contains(c);
    if text.contains(":u2f/") {
        return Err(
            "a device with codes: STS takes no security key or passkey (u2f); add a virtual MFA device to the user".into(),
        );
    }
    if text.contains(":user/") {
        return Err(
            "the ARN of an MFA device, such as arn:aws:iam::123456789012:mfa/NAME, not of a user (aws iam list-mfa-devices)".into(),
        );
    }
    match (9..=256).contains(&text.len()) && text.chars().all(allowed) {
        true => Ok(text.into()),
        false => Err(keys::KMS_MFA_ID.kind.expected()),
    }
}

/// Whether `text` is the ARN of a role.
pub fn is_role_arn(text: &str) -> bool {
    text.starts_with("arn:") && text.contains(":role/")
}

fn not_empty(_: Kind, text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.into())
}

fn region(_: Kind, text: &str) -> Option<String> {
    is_region(text).then(|| text.into())
}

fn absolute_path(_: Kind, text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    (path.is_absolute() && path.file_name().is_some()).then_some(path)
}

fn listen(kind: Kind, text: &str) -> Option<Listen> {
    match text.parse::<SocketAddr>() {
        Ok(address) => address
            .ip()
            .is_loopback()
            .then_some(Listen::Loopback(address)),
        Err(_) => absolute_path(kind, text).map(Listen::Socket),
    }
}

fn gid(_: Kind, name: &str) -> Option<u32> {
    let group = Group::from_name(name).ok().flatten()?;
    Some(Gid::as_raw(group.gid))
}

#[cfg(test)]
mod tests;
