//! Where the broker's socket is made.

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    unistd::{AccessFlags, access, geteuid},
};
use trusted_directory::DirectoryError;

/// Why the socket cannot be made there.
#[derive(Debug, thiserror::Error)]
pub enum SocketPathError {
    /// The socket's directory is missing or not ours to write.
    #[error(
        "cannot make the broker's socket {path}: {source}; create its directory, for the default path with RuntimeDirectory=iam-kms-wrapper in the unit",
        path = path.display()
    )]
    Directory {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could put their own socket in its place.
    #[error(
        "will not make the broker's socket {path}: {source}, and could put another in its place; use a directory of the service's own, such as /run/iam-kms-wrapper",
        path = path.display()
    )]
    NotTrusted {
        /// The socket.
        path: PathBuf,
        /// Who could.
        source: DirectoryError,
    },
    /// Something else lies at the path.
    #[error(
        "will not replace {path}: it is no socket of this user; remove it, or set broker_socket to another path",
        path = path.display()
    )]
    Occupied {
        /// The socket.
        path: PathBuf,
    },
}

/// Checks that a socket can be made at `socket`: nobody else could put another in its place, and nothing
/// lies there but a socket of our own user, if that.
pub fn check(socket: &Path) -> Result<(), SocketPathError> {
    let directory = socket.parent().unwrap_or(Path::new("/"));
    trusted_directory::check(directory, None).map_err(|error| match error {
        DirectoryError::Examine { source, .. } => SocketPathError::Directory {
            path: socket.into(),
            source,
        },
        source => SocketPathError::NotTrusted {
            path: socket.into(),
            source,
        },
    })?;
    access(directory, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| {
        SocketPathError::Directory {
            path: socket.into(),
            source: error.into(),
        }
    })?;
    match is_free_or_socket(socket) {
        true => Ok(()),
        false => Err(SocketPathError::Occupied {
            path: socket.into(),
        }),
    }
}

/// Whether nothing lies at `path`, or a socket of our own user.
fn is_free_or_socket(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type().is_socket() && metadata.uid() == geteuid().as_raw(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether somebody listens at `path`.
pub fn has_listener(path: &Path) -> bool {
    let connected = UnixAddr::new(path).and_then(|address| {
        // One that is too busy for another connection is to keep nobody waiting.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(descriptor.as_raw_fd(), &address)
    });
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}
