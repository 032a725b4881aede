//! Why a file with data keys could not be read or written.

use core::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// What a file is for. Displays as messages name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A wrapped data key.
    Key,
    /// The list of all data keys.
    Manifest,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "key file",
            Self::Manifest => "key manifest",
        })
    }
}

/// Why a file could not be read or written. Each message names the file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The directory itself.
    #[error("cannot {action} the key file directory '{}': {source}; {}", path.display(), directory_advice(action, source))]
    Directory {
        /// What was tried.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call on a file.
    #[error("cannot {action} {kind} '{}': {source}; {advice}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// What the file is for.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The content of a file, or something that is not a file at all.
    #[error("{kind} '{}' {problem}", path.display())]
    Unusable {
        /// What the file is for.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Two files of one version, with different algorithms.
    #[error("key files '{}' and '{}' are the same version of the same key; move away the one that no data was encrypted with", cbc.display(), ctr.display())]
    Conflict {
        /// The file of AES_CBC.
        cbc: PathBuf,
        /// The file of AES_CTR.
        ctr: PathBuf,
    },
    /// There is no higher version number.
    #[error("key {id} already has version {version}, the highest possible, in '{}'", path.display())]
    NoVersionLeft {
        /// Key id.
        id: u32,
        /// Its highest version.
        version: u32,
        /// The directory.
        path: PathBuf,
    },
    /// The path of the directory leads to another one than when it was opened, or nowhere.
    #[error("the key file directory '{}' was moved, replaced or mounted over since it was opened, so a new key file would be missing at the next start; put that directory back, or make sure that the new one holds all key files and restart the server", .0.display())]
    Replaced(PathBuf),
    /// Another server makes keys in the same directory.
    #[error("another server uses the key file directory '{}'; give each server its own directory (aws_key_management_keyfile_dir)", .0.display())]
    InUse(PathBuf),
}

impl FileError {
    /// A system call on a file of `path` failed.
    pub(crate) fn file(kind: FileKind, path: PathBuf, action: &'static str, error: Errno) -> Self {
        Self::File {
            action,
            kind,
            path,
            source: error.into(),
            advice: advice(kind, error),
        }
    }

    /// A system call that writes a file of `path` failed: permission is then missing on the directory.
    pub(crate) fn writing(
        kind: FileKind,
        path: PathBuf,
        action: &'static str,
        error: io::Error,
    ) -> Self {
        let errno = error
            .raw_os_error()
            .map_or(Errno::UnknownErrno, Errno::from_raw);
        let advice = match errno {
            Errno::EACCES | Errno::EPERM => "let the user of the server write to that directory",
            other => advice(kind, other),
        };
        Self::File {
            action,
            kind,
            path,
            source: error,
            advice,
        }
    }

    pub(crate) fn directory(action: &'static str, path: &Path, error: Errno) -> Self {
        Self::Directory {
            action,
            path: path.to_owned(),
            source: error.into(),
        }
    }

    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether this user may not use the file.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether the file or directory could not be written because its file system is read-only.
    pub fn is_read_only(&self) -> bool {
        let (Self::File { source, .. } | Self::Directory { source, .. }) = self else {
            return false;
        };
        source.kind() == io::ErrorKind::ReadOnlyFilesystem
    }
}

fn advice(kind: FileKind, error: Errno) -> &'static str {
    match (error, kind) {
        (Errno::EACCES | Errno::EPERM, _) => {
            "give the file to the user of the server, mode 0600; a tool must run as that user, or as root"
        }
        (Errno::ELOOP, _) => "replace the symbolic link by the file itself",
        (Errno::ENOSPC | Errno::EDQUOT, _) => "make room on the disk",
        (Errno::EROFS, FileKind::Key) => {
            "let the server write there, or move all key files to where it can, and set aws_key_management_keyfile_dir"
        }
        (Errno::EROFS, FileKind::Manifest) => "let the server write to its data directory",
        (Errno::ENOENT, FileKind::Key) => "restore it from a backup of the key files",
        _ => "check the disk and the file",
    }
}

fn directory_advice(action: &str, error: &io::Error) -> &'static str {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::WouldBlock => {
            "another process has kept its lock for ten seconds: wait for it to end, and try again"
        }
        ErrorKind::PermissionDenied if action == "lock" => {
            "let the user of the server write there; where AppArmor or SELinux confines the server, see iam-kms-wrapper --check"
        }
        ErrorKind::PermissionDenied => "give this user access to it",
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            "check the path (aws_key_management_keyfile_dir, or the data directory)"
        }
        ErrorKind::ReadOnlyFilesystem => "let this user write there",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on the disk",
        _ => "check the disk",
    }
}
