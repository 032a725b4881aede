//! Which hosts get the session: from the command line, a file, or an inventory of Ansible.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use visible_text::escape;

use crate::command_line::CommandLine;
use aws_session::{
    child_output::{Limits, OutputError, Terminal, output_of},
    input_file::{self, InputFileError},
};
use service::signals::Signals;

/// Most hosts of one run.
const MAX_HOSTS: usize = 10_000;

/// Longest name of a host, in bytes: a user, a domain name and a port.
const MAX_NAME_BYTES: usize = 320;

/// Longest file of hosts, in bytes.
const MAX_FILE_BYTES: usize = 1024 * 1024;

/// Longest inventory, in bytes: all variables of all hosts are in it.
const MAX_INVENTORY_BYTES: usize = 64 * 1024 * 1024;

/// How long an inventory may take, which may be asked of a cloud.
const INVENTORY_TIMEOUT: Duration = Duration::from_secs(300);

/// Nesting of groups, of which Ansible allows no loop.
const MAX_DEPTH: usize = 64;

/// Why there is no list of hosts.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file cannot be read.
    #[error("cannot read the hosts in {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: InputFileError,
    },
    /// The inventory cannot be read.
    #[error("cannot read the inventory {} with ansible-inventory: {why}", path.display())]
    Inventory {
        /// The inventory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A signal has arrived.
    #[error("stopped by a signal; no host was called")]
    Interrupted,
    /// The inventory has no such group.
    #[error("the inventory {} has no group {group:?}", path.display())]
    NoGroup {
        /// The inventory.
        path: PathBuf,
        /// The group.
        group: String,
    },
    /// Something is not a host.
    #[error("{place}: {name:?} is not the name of a host")]
    Name {
        /// Where it stands.
        place: String,
        /// What stands there.
        name: String,
    },
    /// A variable of a host has a type that cannot be used, such as one that ansible-vault has encrypted.
    #[error(
        "{place}: {variable} is neither text nor a number, such as an encrypted value; list the hosts with --hosts instead"
    )]
    Variable {
        /// The inventory and the host.
        place: String,
        /// Its name.
        variable: &'static str,
    },
    /// A list without hosts must not mean this host.
    #[error("there is no host in the file or the inventory")]
    Empty,
    /// Too many.
    #[error("there are more than {MAX_HOSTS} hosts")]
    TooMany,
}

/// Where the session goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// What people call it.
    pub name: String,
    /// How ssh reaches it; `None`: it is this host.
    pub address: Option<Address>,
}

/// Arguments of ssh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The destination: a host, `user@host`, an alias of ssh_config(5), or a URL.
    pub destination: String,
    /// The user; `None`: ssh's own choice.
    pub user: Option<String>,
    /// The port; `None`: ssh's own choice.
    pub port: Option<u16>,
}

impl Host {
    fn this() -> Self {
        Self {
            name: "this host".into(),
            address: None,
        }
    }

    fn named(name: &str, place: &str) -> Result<Self, HostsError> {
        Ok(Self {
            name: name.into(),
            address: Some(Address {
                destination: checked(name, place)?,
                user: None,
                port: None,
            }),
        })
    }
}

/// Lists the hosts of a command line, each once, in its order.
pub fn list(command_line: &CommandLine, signals: &Signals) -> Result<Vec<Host>, HostsError> {
    let is_only_this = command_line.hosts.is_empty()
        && command_line.hosts_file.is_none()
        && command_line.inventory.is_none();
    if is_only_this {
        return Ok(vec![Host::this()]);
    }
    let mut hosts = Vec::new();
    for name in &command_line.hosts {
        hosts.push(Host::named(name, "the command line")?);
    }
    if let Some(path) = &command_line.hosts_file {
        hosts.extend(of_file(path)?);
    }
    if let Some(path) = &command_line.inventory {
        let json = run_ansible(path, signals)?;
        hosts.extend(of_inventory(path, &json, &command_line.group)?);
    }
    let mut seen = HashSet::new();
    hosts.retain(|host| seen.insert(host.name.clone()));
    match hosts.len() {
        0 => Err(HostsError::Empty),
        1..=MAX_HOSTS => Ok(hosts),
        _ => Err(HostsError::TooMany),
    }
}

/// Reads one host a line. Empty lines, and what follows a `#`, count for nothing.
fn of_file(path: &Path) -> Result<Vec<Host>, HostsError> {
    let text = input_file::read_text(path, MAX_FILE_BYTES).map_err(|source| HostsError::File {
        path: path.into(),
        source,
    })?;
    let mut hosts = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let name = line.split('#').next().unwrap_or_default().trim();
        if !name.is_empty() {
            let place = format!("{}, line {number}", path.display());
            hosts.push(Host::named(name, &place)?);
        }
    }
    Ok(hosts)
}

/// Returns `text` if ssh can take it for nothing but a host or a user, and no shell changes it.
fn checked(text: &str, place: &str) -> Result<String, HostsError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:@%+/[]~-".contains(c);
    let is_name = !text.is_empty()
        && text.len() <= MAX_NAME_BYTES
        && !text.starts_with('-')
        && text.chars().all(allowed);
    match is_name {
        true => Ok(text.into()),
        false => Err(HostsError::Name {
            place: place.into(),
            name: text.chars().take(MAX_NAME_BYTES).collect(),
        }),
    }
}

/// Ansible's own program reads every form of inventory: INI, YAML, a directory, a program, a plugin.
fn run_ansible(path: &Path, signals: &Signals) -> Result<Vec<u8>, HostsError> {
    let mut command = Command::new("ansible-inventory");
    command.arg("--list").arg("--inventory").arg(path);
    signals.give_inherited_mask(&mut command);
    let limits = Limits {
        timeout: INVENTORY_TIMEOUT,
        timeout_setting: None,
        max_bytes: MAX_INVENTORY_BYTES,
        interrupt: Some(signals.descriptor()),
    };
    match output_of(&mut command, Terminal::Lent, &limits) {
        Ok(json) => Ok(json.to_vec()),
        Err(OutputError::Interrupted) => Err(HostsError::Interrupted),
        Err(OutputError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Err(of_ansible(
            path,
            "it is not installed; list the hosts with --hosts instead",
        )),
        Err(error) => Err(of_ansible(path, error)),
    }
}

fn of_ansible(path: &Path, why: impl ToString) -> HostsError {
    HostsError::Inventory {
        path: path.into(),
        why: why.to_string(),
    }
}

/// The output of `ansible-inventory --list`.
///
/// Source: <https://docs.ansible.com/ansible/latest/dev_guide/developing_inventory.html>.
#[derive(Deserialize)]
struct Inventory {
    #[serde(rename = "_meta", default)]
    meta: Meta,
    #[serde(flatten)]
    groups: BTreeMap<String, Group>,
}

#[derive(Default, Deserialize)]
struct Meta {
    #[serde(default)]
    hostvars: HashMap<String, Variables>,
}

#[derive(Default, Deserialize)]
struct Group {
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    children: Vec<String>,
}

/// Those variables of a host that say where it is. Only those of the hosts that are called have to be good.
#[derive(Default, Deserialize)]
struct Variables {
    ansible_host: Option<Value>,
    ansible_user: Option<Value>,
    ansible_port: Option<Value>,
}

fn of_inventory(path: &Path, json: &[u8], group: &str) -> Result<Vec<Host>, HostsError> {
    let inventory: Inventory = serde_json::from_slice(json).map_err(|error| {
        of_ansible(
            path,
            format_args!("its output is not an inventory: {error}"),
        )
    })?;
    if group != "all" && !inventory.groups.contains_key(group) {
        return Err(HostsError::NoGroup {
            path: path.into(),
            group: group.into(),
        });
    }
    let mut names = Vec::new();
    inventory.add_names(group, MAX_DEPTH, &mut names);
    names
        .into_iter()
        .map(|name| inventory.host(path, name))
        .collect()
}

impl Inventory {
    fn add_names<'a>(&'a self, group: &str, depth: usize, names: &mut Vec<&'a str>) {
        // A group without hosts may have no entry.
        let Some(group) = self.groups.get(group).filter(|_| depth > 0) else {
            return;
        };
        for name in &group.hosts {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        for child in &group.children {
            self.add_names(child, depth - 1, names);
        }
    }

    fn host(&self, path: &Path, name: &str) -> Result<Host, HostsError> {
        let place = format!("{}, host {}", path.display(), escape(name));
        let none = Variables::default();
        let variables = self.meta.hostvars.get(name).unwrap_or(&none);
        let text = |variable, value| text(&place, variable, value);
        let destination = text("ansible_host", &variables.ansible_host)?;
        let user = text("ansible_user", &variables.ansible_user)?;
        let port = match text("ansible_port", &variables.ansible_port)? {
            None => None,
            Some(port) => Some(port.parse().map_err(|_| HostsError::Name {
                place: format!("{place}, ansible_port"),
                name: port.chars().take(MAX_NAME_BYTES).collect(),
            })?),
        };
        Ok(Host {
            name: checked(name, &place)?,
            address: Some(Address {
                destination: checked(destination.as_deref().unwrap_or(name), &place)?,
                user: user.map(|user| checked(&user, &place)).transpose()?,
                port,
            }),
        })
    }
}

/// The text of a variable. Inventories in INI have numbers, programs often text.
fn text(
    place: &str,
    variable: &'static str,
    value: &Option<Value>,
) -> Result<Option<String>, HostsError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(HostsError::Variable {
            place: place.into(),
            variable,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_a_host_that_ssh_or_a_shell_could_take_for_something_else() {
        for name in [
            "db1",
            "root@db1",
            "10.0.0.1",
            "fe80::1%eth0",
            "ssh://a@b:22",
        ] {
            assert_eq!(checked(name, "").unwrap(), name);
        }
        for name in [
            "",
            "-oProxyCommand=id",
            "a b",
            "a;b",
            "$(id)",
            "a\u{202e}",
            "{{ip}}",
        ] {
            assert!(checked(name, "").is_err(), "{name}");
        }
    }

    #[test]
    fn groups_of_an_inventory_contain_those_of_their_children_once() {
        let json = br#"{
            "_meta": {"hostvars": {
                "db1": {"ansible_host": "10.0.0.1", "ansible_user": "dba", "ansible_port": 2222},
                "db2": {"ansible_port": "22", "other": {"a": 1}}}},
            "all": {"children": ["ungrouped", "databases"]},
            "databases": {"children": ["primary"], "hosts": ["db1", "db2"]},
            "primary": {"hosts": ["db1"]}, "ungrouped": {"hosts": ["web"]}}"#;
        let of = |group| of_inventory(Path::new("hosts.ini"), json, group);
        let names =
            |group| -> Vec<_> { of(group).unwrap().into_iter().map(|it| it.name).collect() };
        assert_eq!(names("all"), ["web", "db1", "db2"]);
        assert_eq!(names("databases"), ["db1", "db2"]);
        let address = of("primary").unwrap().remove(0).address.unwrap();
        assert_eq!(address.destination, "10.0.0.1");
        assert_eq!(address.user.as_deref(), Some("dba"));
        assert_eq!(address.port, Some(2222));
        let error = of("cache").unwrap_err().to_string();
        assert_eq!(error, "the inventory hosts.ini has no group \"cache\"");
    }

    #[test]
    fn a_variable_of_another_type_concerns_only_hosts_that_are_called() {
        let json = br#"{"_meta": {"hostvars": {
                "db1": {"ansible_user": 1001, "ansible_port": null},
                "db2": {"ansible_user": {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256"}}}},
            "all": {"hosts": ["db1", "db2"]}, "primary": {"hosts": ["db1"]}}"#;
        let of = |group| of_inventory(Path::new("hosts.ini"), json, group);
        let address = of("primary").unwrap().remove(0).address.unwrap();
        assert_eq!(address.user.as_deref(), Some("1001"));
        let error = of("all").unwrap_err().to_string();
        let said = "hosts.ini, host db2: ansible_user is neither text nor a number";
        assert!(error.starts_with(said), "{error}");
    }

    #[test]
    fn an_address_that_is_a_template_is_refused_by_host() {
        let json = br#"{"_meta": {"hostvars": {"db1": {"ansible_host": "{{ ip }}"}}},
            "all": {"hosts": ["db1"]}}"#;
        let error = of_inventory(Path::new("hosts.ini"), json, "all").unwrap_err();
        assert_eq!(
            error.to_string(),
            "hosts.ini, host db1: \"{{ ip }}\" is not the name of a host"
        );
    }
}
