//! The part of the configuration that makes a broker a key server, or the client of one.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use key_files::key_name::is_valid_number;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};

use super::{CLIENT_KEYS, ClientSection, ConfigError, KEYS, Key, Values, file, keys};

/// Most servers in `upstream`. Each of them may be asked before a request fails.
const MAX_SERVERS: usize = 8;

/// Longest name of a client, in bytes. DNS names have at most 253.
const MAX_NAME_BYTES: usize = 512;

/// Longest name space, in bytes. It is a part of the names of objects.
const MAX_NAME_SPACE_BYTES: usize = 63;

/// What makes a broker a key server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyServerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its certificate, and the authorities of its clients.
    pub tls: TlsFiles,
    /// Its clients. No two have the same name.
    pub clients: Vec<ClientConfig>,
}

/// Where a client's data keys come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamConfig {
    /// The key servers, at least one, in the order in which they are tried.
    pub servers: Vec<ServerAddress>,
    /// This host's certificate, and the authorities of the servers.
    pub tls: TlsFiles,
}

/// The PEM files of one side of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// The certificate of this side, and intermediate ones.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of the other side.
    pub authorities: PathBuf,
}

/// A `[client "NAME"]` section: a host, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientConfig {
    /// A DNS name or URI that the subject alternative names of its certificate must contain. A DNS name is in lower
    /// case.
    pub name: String,
    /// The data keys that it may use.
    pub key_ids: KeyIds,
    /// Whether it may make keys.
    pub may_make: bool,
    /// Where in the key store its keys are.
    pub name_space: String,
}

/// The address of a key server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerAddress {
    /// A DNS name or an IP address, which its certificate must contain.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A set of ids of data keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyIds(Vec<RangeInclusive<u32>>);

impl KeyIds {
    /// Reads a list such as `1-99, 200`.
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.trim().parse().ok().filter(|&id| is_valid_number(id));
        let ranges = text.split(',').map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(first..=last)
        });
        ranges.collect::<Option<_>>().map(Self)
    }

    /// Whether `id` is one of them.
    pub fn contains(&self, id: u32) -> bool {
        self.0.iter().any(|range| range.contains(&id))
    }
}

impl KeyServerConfig {
    /// Reads this part of the file at `path` and nothing else; `None`: it makes no key server. Unlike
    /// [`Config::read`](super::Config::read), it asks no name service, which may hang.
    pub fn read(path: &Path) -> Result<Option<Self>, ConfigError> {
        let content = file::read(path)?;
        let values = Values {
            path,
            entries: content.entries,
        };
        values.check_names(KEYS)?;
        values.key_server(&content.clients)
    }
}

impl Values<'_> {
    pub(super) fn upstream(&self) -> Result<Option<UpstreamConfig>, ConfigError> {
        let Some(entry) = self.entry(&keys::UPSTREAM) else {
            return match self.entry(&keys::TLS_SERVER_CA) {
                Some(entry) => Err(self.bad_value(entry, "left out without upstream")),
                None => Ok(None),
            };
        };
        let servers = servers(&entry.value)
            .ok_or_else(|| self.bad_value(entry, keys::UPSTREAM.kind.expected()))?;
        for key in [
            &keys::KMS_MFA_ID,
            &keys::MFA,
            &keys::KMS_MFA_SOCKET,
            &keys::ROLE_ARN,
            &keys::PROFILE,
            &keys::REGION,
            &keys::KEY_STORE,
            &keys::KEY_STORE_PROFILE,
            &keys::TLS_LISTEN,
            &keys::TLS_CLIENT_CA,
            &keys::METRICS_LISTEN,
            &keys::OVERVIEW_SOCKET,
            &keys::OVERVIEW_GROUP,
        ] {
            if let Some(entry) = self.entry(key) {
                return Err(self.bad_value(
                    entry,
                    "left out with upstream: this host gets its keys from key servers and makes no calls to AWS",
                ));
            }
        }
        let tls = self.tls_files(&keys::UPSTREAM, &keys::TLS_SERVER_CA)?;
        Ok(Some(UpstreamConfig { servers, tls }))
    }

    pub(super) fn key_server(
        &self,
        sections: &[ClientSection],
    ) -> Result<Option<KeyServerConfig>, ConfigError> {
        let listen = self.get(&keys::TLS_LISTEN, |_, text| text.parse().ok())?;
        let Some(listen) = listen else {
            if let Some(entry) = self.entry(&keys::TLS_CLIENT_CA) {
                return Err(self.bad_value(entry, "left out without tls_listen"));
            }
            return match sections {
                [] => Ok(None),
                [section, ..] => Err(ConfigError::of_line(
                    self.path,
                    section.line,
                    "clients are for a key server only; set tls_listen, or remove the section",
                )),
            };
        };
        let tls = self.tls_files(&keys::TLS_LISTEN, &keys::TLS_CLIENT_CA)?;
        if self.entry(&keys::KEY_STORE).is_none() {
            return Err(self.missing(&keys::TLS_LISTEN, &keys::KEY_STORE));
        }
        let mut clients = BTreeMap::new();
        for section in sections {
            let client = self.client(section)?;
            if clients.insert(client.name.clone(), client).is_some() {
                let why = format!("there is another section [client {:?}]", section.name);
                return Err(ConfigError::of_line(self.path, section.line, why));
            }
        }
        let clients: Vec<_> = clients.into_values().collect();
        if clients.iter().any(|client| client.may_make)
            && self.entry(&keys::MASTER_KEY_ID).is_none()
        {
            let why = "a client may make keys, so master_key_id is needed: the master key for them";
            return Err(ConfigError::of_file(self.path, why));
        }
        Ok(Some(KeyServerConfig {
            listen,
            tls,
            clients,
        }))
    }

    fn client(&self, section: &ClientSection) -> Result<ClientConfig, ConfigError> {
        let failed = |why: &str| ConfigError::of_line(self.path, section.line, why);
        let name = client_name(&section.name).ok_or_else(|| {
            failed("the name of a client must be a DNS name without wildcards, or a URI, as in the subject alternative names of its certificate")
        })?;
        let values = Values {
            path: self.path,
            entries: section.entries.clone(),
        };
        values.check_names(CLIENT_KEYS)?;
        let key_ids = values
            .get(&keys::KEY_IDS, |_, text| KeyIds::parse(text))?
            .ok_or_else(|| failed("key_ids is missing: the data keys that the client may use"))?;
        let name_space = values
            .get(&keys::NAME_SPACE, |_, text| name_space(text))?
            .or_else(|| name_space(&name))
            .ok_or_else(|| {
                failed("the name of this client cannot be its name space; set name_space")
            })?;
        Ok(ClientConfig {
            may_make: values.word(&keys::MAY_MAKE)? == "true",
            name,
            key_ids,
            name_space,
        })
    }

    fn tls_files(&self, of: &Key, authorities: &Key) -> Result<TlsFiles, ConfigError> {
        let path = |key: &Key| match self.entry(key) {
            Some(_) => self.path(key),
            None => Err(self.missing(of, key)),
        };
        Ok(TlsFiles {
            certificate: path(&keys::TLS_CERTIFICATE)?,
            key: path(&keys::TLS_KEY)?,
            authorities: path(authorities)?,
        })
    }

    fn missing(&self, of: &Key, key: &Key) -> ConfigError {
        let why = format!("{} needs {}, which is missing", of.name, key.name);
        ConfigError::of_file(self.path, why)
    }
}

/// Certificates are matched exactly, so the name must be one that a certificate can have.
fn client_name(name: &str) -> Option<String> {
    let is_text = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'*');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !is_text {
        return None;
    }
    if name.contains(':') {
        return Some(name.into());
    }
    match ServerName::try_from(name) {
        Ok(ServerName::DnsName(_)) => Some(name.to_ascii_lowercase()),
        _ => None,
    }
}

/// Not a number: in the key store, those are ids of keys.
fn name_space(text: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_name = (1..=MAX_NAME_SPACE_BYTES).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(allowed);
    is_name.then(|| text.into())
}

fn servers(text: &str) -> Option<Vec<ServerAddress>> {
    let servers: Option<Vec<_>> = text.split(',').map(|part| server(part.trim())).collect();
    servers.filter(|servers| servers.len() <= MAX_SERVERS)
}

fn server(text: &str) -> Option<ServerAddress> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|&port: &u16| port > 0)?;
    let host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => matches!(address.parse(), Ok(IpAddr::V6(_))).then_some(address)?,
        None if host.contains(':') => return None,
        None => host,
    };
    ServerName::try_from(host).ok()?;
    Some(ServerAddress {
        host: host.into(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_and_ranges() {
        let ids = KeyIds::parse("1-99, 200").unwrap();
        for (id, expected) in [
            (1, true),
            (99, true),
            (100, false),
            (200, true),
            (201, false),
        ] {
            assert_eq!(ids.contains(id), expected, "{id}");
        }
        for wrong in ["", "0", "5-1", "1-", "1;2", "-1", "4294967295", "1,,2"] {
            assert_eq!(KeyIds::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_name_is_one_that_a_certificate_can_have_without_wildcards() {
        for (name, expected) in [
            ("db1.Example", Some("db1.example")),
            ("spiffe://example/DB1", Some("spiffe://example/DB1")),
            ("*.example", None),
            ("spiffe://example/*", None),
            ("10.0.0.1", None),
            ("db 1", None),
            ("", None),
        ] {
            assert_eq!(client_name(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_name_space_leads_nowhere_else() {
        assert!(name_space("db1.example").is_some());
        for wrong in ["", "1", "..", ".x", "a/b", "a\\b", "-a"] {
            assert_eq!(name_space(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn servers_have_a_port() {
        let shown =
            |text| servers(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            shown("keys1:7443, 10.0.0.5:1,[::1]:7443").unwrap(),
            ["keys1:7443", "10.0.0.5:1", "[::1]:7443"]
        );
        for wrong in [
            "",
            "keys1",
            "keys1:0",
            "keys1:99999",
            "::1:7443",
            "[x]:1",
            "a b:1",
            "a:1,",
        ] {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
    }
}
