//! What `/proc` and sockets tell of a process.

use std::{
    fs,
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::Path,
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::Pid,
};

use crate::wait_until;

/// The process that made the socket at `path`, and listens there.
pub fn listener(path: &Path) -> Pid {
    let peer = UnixStream::connect(path).unwrap();
    Pid::from_raw(getsockopt(&peer, PeerCredentials).unwrap().pid())
}

/// A field of `/proc/PID/status`.
pub fn status(pid: Pid, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap().trim().into()
}

/// The environment, as the process got it.
pub fn environment(pid: Pid) -> Vec<(String, String)> {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    String::from_utf8(environ)
        .unwrap()
        .split_terminator('\0')
        .map(|assignment| assignment.split_once('=').unwrap())
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// The value of a variable that is there once.
pub fn variable(pid: Pid, name: &str) -> String {
    let all = environment(pid);
    let mut values = all.iter().filter(|(known, _)| known == name);
    let value = values.next().unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(values.next(), None, "{name} is there twice");
    value.1.clone()
}

/// The arguments, each with its NUL.
pub fn command_line(pid: Pid) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap()
}

/// Whether others of its user may look into the process, and whether it may leave a core: the
/// owner of its files in `/proc` is root if not.
///
/// Tells something of processes of other users than root only.
pub fn is_dumpable(pid: Pid) -> bool {
    let user: u32 = status(pid, "Uid")
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert_ne!(user, 0, "root owns the files either way");
    fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid() == user
}

/// Process ids of the children.
pub fn children(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
}

/// Waits until a process has no connection to KMS any more.
pub fn wait_until_disconnected(pid: Pid) {
    wait_until("no connection to KMS", || {
        let connections = ["tcp", "tcp6"]
            .map(|kind| fs::read_to_string(format!("/proc/{pid}/net/{kind}")).unwrap_or_default())
            .concat();
        let is_connection = |link: String| {
            let inode = link
                .strip_prefix("socket:[")
                .and_then(|it| it.strip_suffix(']'));
            inode.is_some_and(|inode| connections.contains(&format!(" {inode} ")))
        };
        !fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .any(|link| is_connection(link.display().to_string()))
    });
}
