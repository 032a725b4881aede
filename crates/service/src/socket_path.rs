//! The path of a socket that a service listens on.

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
use tracing::warn;
use trusted_directory::DirectoryError;

use crate::on_abort::{self, Leftover};

/// Why the socket cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum SocketPathError {
    /// The directory of the socket is missing or not writable.
    #[error(
        "cannot create the socket {path}: {source}; create its directory, and let this user write to it (RuntimeDirectory= in the unit does both)",
        path = path.display()
    )]
    Directory {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could replace the socket.
    #[error(
        "refusing to create the socket {path}: {source}, and could replace it; use a directory that only the service can write to, such as one of RuntimeDirectory= in the unit",
        path = path.display()
    )]
    NotTrusted {
        /// The socket.
        path: PathBuf,
        /// Who could.
        source: DirectoryError,
    },
    /// Something else is at the path.
    #[error(
        "refusing to replace {path}: it is not a socket owned by this user; remove it, or configure another path",
        path = path.display()
    )]
    Occupied {
        /// The socket.
        path: PathBuf,
    },
}

/// Checks that the socket can be created: nobody else could replace it, and the path is free or a
/// socket of this user.
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

/// Whether `path` is free or a socket of this user.
fn is_free_or_socket(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type().is_socket() && metadata.uid() == geteuid().as_raw(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether a process listens at `path`.
pub fn has_listener(path: &Path) -> bool {
    let connected = UnixAddr::new(path).and_then(|address| {
        // Non-blocking, because the queue of a busy listener may be full.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(descriptor.as_raw_fd(), &address)
    });
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}

/// The file of a socket that this process has bound. Removed when dropped, unless another process has put its own there
/// since.
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    on_abort: Option<&'static Leftover>,
}

impl SocketFile {
    /// The file at `path`, of a socket that has just been bound there.
    pub fn of_bound(path: &Path) -> io::Result<Self> {
        let on_abort = on_abort::socket_made(path);
        Ok(Self {
            path: path.into(),
            identity: identity(&fs::symlink_metadata(path)?),
            on_abort,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is still there.
    pub fn is_there(&self) -> bool {
        is_at(&self.path, self.identity)
    }

    /// Records that the socket has been bound again at its path, after the file was removed.
    pub fn was_bound_again(&mut self) -> io::Result<()> {
        self.identity = identity(&fs::symlink_metadata(&self.path)?);
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(leftover) = self.on_abort {
            leftover.removed();
        }
        if self.is_there()
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// What tells a file from another one that has taken its name: device and inode.
pub fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether the file with this [`identity`] is at `path`.
pub fn is_at(path: &Path, file: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| identity(&there) == file)
}
