//! The socket: made for our user alone or for a group too, its peers checked.

use std::{
    fmt, fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use iam_kms_wrapper::broker::is_free_or_socket;
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::{Gid, Group, Uid, User, geteuid},
};
use tracing::warn;

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenerError {
    #[error(
        "cannot listen at {path}: {source}; create its directory, or set broker_socket to another path",
        path = path.display()
    )]
    Bind { path: PathBuf, source: io::Error },
    #[error(
        "cannot give {path} to broker_socket_group: {source}; start the broker in that group (Group= in the unit)",
        path = path.display()
    )]
    Group { path: PathBuf, source: io::Error },
    #[error("another broker listens at {path}; stop its server first", path = path.display())]
    Busy { path: PathBuf },
    #[error(
        "will not replace {path}: it is no socket of this user; remove it, or set broker_socket to another path",
        path = path.display()
    )]
    Occupied { path: PathBuf },
}

/// A bound socket, removed when dropped.
pub(crate) struct Listener {
    path: PathBuf,
    socket: UnixListener,
    identity: (u64, u64),
}

impl Listener {
    /// Binds `path` with mode 0600, which the process's umask gives it, or 0660 for the group `gid`.
    pub fn bind(path: &Path, gid: Option<u32>) -> Result<Self, ListenerError> {
        let failed = |source| ListenerError::Bind {
            path: path.into(),
            source,
        };
        remove_left_behind(path)?;
        let socket = UnixListener::bind(path).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let listener = Self {
            path: path.into(),
            socket,
            identity: (metadata.dev(), metadata.ino()),
        };
        if let Some(gid) = gid {
            listener.open_to(gid, &metadata)?;
        }
        Ok(listener)
    }

    fn open_to(&self, gid: u32, metadata: &fs::Metadata) -> Result<(), ListenerError> {
        let failed = |source| ListenerError::Group {
            path: self.path.clone(),
            source,
        };
        // The group first: nobody else is let in meanwhile. Where it is our own, systemd may have
        // forbidden the call.
        if metadata.gid() != gid {
            chown(&self.path, None, Some(gid)).map_err(failed)?;
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o660)).map_err(failed)
    }

    /// A socket to accept from in another thread.
    pub fn acceptor(&self) -> io::Result<UnixListener> {
        self.socket.try_clone()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    /// The broker of the next server may have taken the path over; its socket stays.
    fn drop(&mut self) {
        let there = fs::symlink_metadata(&self.path);
        if there.is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes the socket of a broker that was killed.
fn remove_left_behind(path: &Path) -> Result<(), ListenerError> {
    if !is_free_or_socket(path) {
        return Err(ListenerError::Occupied { path: path.into() });
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ListenerError::Busy { path: path.into() });
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ListenerError::Bind {
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Who has connected.
pub(crate) struct Peer {
    pub uid: u32,
    pub gid: u32,
    pub pid: i32,
}

impl Peer {
    /// As the kernel tells it.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = getsockopt(stream, PeerCredentials)?;
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid(),
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}, pid {}", self.uid, self.pid)
    }
}

/// Who is served: our own user, root, and the members of a group where one is configured.
pub(crate) struct Admission {
    gid: Option<u32>,
}

impl Admission {
    pub fn new(gid: Option<u32>) -> Self {
        Self { gid }
    }

    /// The error says who is served.
    pub fn check(&self, peer: &Peer) -> Result<(), String> {
        let own = geteuid();
        if peer.uid == own.as_raw() || peer.uid == 0 {
            return Ok(());
        }
        match self.gid {
            Some(gid) if peer.gid == gid || is_member(peer.uid, gid) => Ok(()),
            Some(gid) => Err(format!(
                "only uid {own}, root and members of group {gid} are served"
            )),
            None => Err(format!("only uid {own} and root are served")),
        }
    }
}

/// Whether the host's database of groups has the user in it. One that cannot be read has nobody.
fn is_member(uid: u32, gid: u32) -> bool {
    let (Ok(Some(user)), Ok(Some(group))) = (
        User::from_uid(Uid::from_raw(uid)),
        Group::from_gid(Gid::from_raw(gid)),
    ) else {
        return false;
    };
    group.mem.contains(&user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path, None).unwrap();
        assert!(matches!(
            Listener::bind(&path, None),
            Err(ListenerError::Busy { .. })
        ));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::bind(&path, None),
            Err(ListenerError::Occupied { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        let first = Listener::bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path, None).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn peers_of_our_own_user_are_served() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.uid, geteuid().as_raw());
        assert_eq!(Admission::new(None).check(&peer), Ok(()));
    }

    #[test]
    fn of_other_users_only_the_group_is_served() {
        let peer = |gid| Peer {
            uid: 65_534,
            gid,
            pid: 1,
        };
        assert!(Admission::new(None).check(&peer(0)).is_err());
        assert!(Admission::new(Some(3000)).check(&peer(3001)).is_err());
        assert_eq!(Admission::new(Some(3000)).check(&peer(3000)), Ok(()));
    }
}
