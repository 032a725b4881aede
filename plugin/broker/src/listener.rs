//! The socket: made for our user alone, its peers checked.

use std::{
    fs, io,
    os::unix::{
        fs::MetadataExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use iam_kms_wrapper::broker::is_free_or_socket;
use nix::{
    sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
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
    /// Binds `path` with mode 0600, which the process's umask gives it.
    pub fn bind(path: &Path) -> Result<Self, ListenerError> {
        let failed = |source| ListenerError::Bind {
            path: path.into(),
            source,
        };
        remove_left_behind(path)?;
        let socket = UnixListener::bind(path).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self {
            path: path.into(),
            socket,
            identity: (metadata.dev(), metadata.ino()),
        })
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

/// A peer that may be served: one of our own user, or of root.
pub(crate) fn check_peer(stream: &UnixStream) -> Result<UnixCredentials, String> {
    let peer = getsockopt(stream, PeerCredentials).map_err(|error| format!("unknown: {error}"))?;
    if peer.uid() == geteuid().as_raw() || peer.uid() == 0 {
        return Ok(peer);
    }
    Err(format!(
        "uid {}, pid {}: only uid {} and root are served",
        peer.uid(),
        peer.pid(),
        geteuid()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(
            Listener::bind(&path),
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
            Listener::bind(&path),
            Err(ListenerError::Occupied { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn peers_of_our_own_user_are_served() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(check_peer(&one).unwrap().uid(), geteuid().as_raw());
    }
}
