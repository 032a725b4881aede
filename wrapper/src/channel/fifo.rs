//! The FIFO that codes are written to.
//!
//! Whoever could replace the FIFO by their own would be handed the codes of the careful, so: its
//! directory, and each on the way there, is of our own user or of root, and others cannot write it or
//! it is sticky; nothing found at its path is used unless it is a FIFO of our own user; and what was
//! opened is checked again by `fstat`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sys::stat::{
        FchmodatFlags::FollowSymlink, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat,
    },
    unistd::{AccessFlags, Gid, Uid, UnlinkatFlags, access, fchown, geteuid, mkfifoat, unlinkat},
};
use tracing::warn;
use trusted_directory::DirectoryError;

use crate::{config::FifoAccess, on_abort};

/// Why the channel cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum FifoError {
    /// The directory is not there or cannot be used.
    #[error(
        "cannot open the directory of the FIFO {path}: {source}; create it, for the default path with RuntimeDirectory=iam-kms-wrapper in the unit",
        path = path.display()
    )]
    Directory {
        /// The FIFO.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could replace the FIFO.
    #[error(
        "will not make the FIFO {path}: {source} and could read the codes; use a directory of the service's own, such as /run/iam-kms-wrapper",
        path = path.display()
    )]
    DirectoryOpen {
        /// The FIFO.
        path: PathBuf,
        /// Who could.
        source: DirectoryError,
    },
    /// Something else lies at the path.
    #[error(
        "will not use {path} as the FIFO: {what}; remove it, or set kms_mfa_socket to another path",
        path = path.display()
    )]
    Occupied {
        /// The FIFO.
        path: PathBuf,
        /// What lies there.
        what: &'static str,
    },
    /// A step of making it failed.
    #[error("cannot {step} the FIFO {path}: {source}", path = path.display())]
    Make {
        /// The FIFO.
        path: PathBuf,
        /// What failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Waiting for a code failed.
    #[error("cannot wait for a code: {0}")]
    Wait(io::Error),
    /// The terminal is gone, or standard input has ended.
    #[error("standard input was closed before a code was typed")]
    InputClosed,
}

impl FifoError {
    pub(super) fn wait(error: Errno) -> Self {
        Self::Wait(error.into())
    }
}

/// A FIFO of our own, removed when dropped.
pub(super) struct Fifo {
    path: PathBuf,
    directory: OwnedFd,
    reader: OwnedFd,
    identity: (u64, u64),
}

impl Fifo {
    /// Makes the FIFO with exactly this mode and group, or takes over one that an earlier process
    /// of our user left behind.
    pub fn make(path: &Path, access: FifoAccess) -> Result<Self, FifoError> {
        let (directory, status) = open_directory(path)?;
        check_directory(path, &status)?;
        make_or_take_over(path, &directory)?;
        on_abort::FIFO.made(path);
        let reader = open_reader(path, &directory)?;
        let status = check_ours(path, &reader)?;
        let failed = |step| move |error: Errno| make_error(path, step, error);
        if let Some(gid) = access.gid {
            fchown(&reader, None, Some(Gid::from_raw(gid))).map_err(failed("set the group of"))?;
        }
        // After the group: a wider mode must never hold for the group that the file was made with.
        fchmod(&reader, Mode::from_bits_truncate(access.mode))
            .map_err(failed("set the mode of"))?;
        Ok(Self {
            path: path.into(),
            directory,
            reader,
            identity: identity(&status),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the FIFO again after its last writer has closed, else poll(2) would report that for
    /// ever. The old descriptor lives until the new one is there, so no writer finds no reader and
    /// nothing that was written in between is lost.
    pub fn reopen(&mut self) -> Result<(), FifoError> {
        let reader = open_reader(&self.path, &self.directory)?;
        if identity(&check_ours(&self.path, &reader)?) != self.identity {
            return Err(occupied(&self.path, "another FIFO has taken its place"));
        }
        self.reader = reader;
        Ok(())
    }
}

impl AsFd for Fifo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        on_abort::FIFO.removed();
        let Some(name) = self.path.file_name() else {
            return;
        };
        let there = fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        if !there.is_ok_and(|status| identity(&status) == self.identity) {
            return;
        }
        if let Err(error) = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            warn!(
                "cannot remove the FIFO {}: {}",
                self.path.display(),
                io::Error::from(error)
            );
        }
    }
}

/// Whether a FIFO could be made at `path`; the error is the one of making it. Changes nothing.
pub fn check(path: &Path) -> Result<(), FifoError> {
    let (directory, status) = open_directory(path)?;
    check_directory(path, &status)?;
    if path.symlink_metadata().is_ok() {
        return check_left_behind(path, &directory);
    }
    access(
        path.parent().unwrap_or(Path::new("/")),
        AccessFlags::W_OK | AccessFlags::X_OK,
    )
    .map_err(|error| make_error(path, "make", error))
}

fn open_directory(path: &Path) -> Result<(OwnedFd, FileStat), FifoError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(directory, flags, Mode::empty())
        .and_then(|descriptor| Ok((fstat(&descriptor)?, descriptor)))
        .map(|(status, descriptor)| (descriptor, status))
        .map_err(|error| FifoError::Directory {
            path: path.into(),
            source: error.into(),
        })
}

fn check_directory(path: &Path, directory: &FileStat) -> Result<(), FifoError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    trusted_directory::check(parent, None).map_err(|error| match error {
        DirectoryError::Examine { source, .. } => FifoError::Directory {
            path: path.into(),
            source,
        },
        source => FifoError::DirectoryOpen {
            path: path.into(),
            source,
        },
    })?;
    let owner = Uid::from_raw(directory.st_uid);
    if directory.st_mode & Mode::S_IWOTH.bits() != 0 && owner != geteuid() {
        warn_of_protection(path);
    }
    Ok(())
}

/// In another's sticky directory fs.protected_fifos may keep even root from writing to our FIFO:
/// open(2) with O_CREAT, which the shell's `>` uses, is refused there to all but its owner.
///
/// Source: <https://docs.kernel.org/admin-guide/sysctl/fs.html>.
fn warn_of_protection(path: &Path) {
    let protected = std::fs::read_to_string("/proc/sys/fs/protected_fifos");
    if protected.is_ok_and(|level| level.trim() != "0") {
        warn!(
            "the FIFO {path} lies in a directory that everybody can write, where this kernel \
             (fs.protected_fifos) refuses `echo … > {path}` to all but user {uid}, root included; \
             set kms_mfa_socket to a path in a directory of the service's own, such as {default}",
            path = path.display(),
            uid = geteuid(),
            default = crate::config::DEFAULT_FIFO,
        );
    }
}

fn make_or_take_over(path: &Path, directory: &OwnedFd) -> Result<(), FifoError> {
    let name = path.file_name().unwrap_or_default();
    let made = mkfifoat(directory, name, Mode::S_IRUSR | Mode::S_IWUSR);
    match made {
        // The umask, which the command is to inherit, may have left not even us the right to open
        // it. By name, because it cannot be opened yet: others cannot rename in this directory.
        Ok(()) => fchmodat(
            directory,
            name,
            Mode::S_IRUSR | Mode::S_IWUSR,
            FollowSymlink,
        )
        .map_err(|error| make_error(path, "set the mode of", error)),
        Err(Errno::EEXIST) => check_left_behind(path, directory),
        Err(error) => Err(make_error(path, "make", error)),
    }
}

/// Whether what lies at the path is a FIFO that an earlier process of our user was not able to
/// remove. Writers may be waiting in it already, so it is used as it is.
fn check_left_behind(path: &Path, directory: &OwnedFd) -> Result<(), FifoError> {
    let status = fstatat(
        directory,
        path.file_name().unwrap_or_default(),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(|error| make_error(path, "look at", error))?;
    check_kind(path, &status)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(nix::fcntl::AT_FDCWD, path, how) {
        Ok(_) => Ok(()),
        Err(Errno::ELOOP) => Err(occupied(
            path,
            "there is a FIFO, reached through a symbolic link",
        )),
        Err(error) => Err(make_error(path, "look at", error)),
    }
}

fn open_reader(path: &Path, directory: &OwnedFd) -> Result<OwnedFd, FifoError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(
        directory,
        path.file_name().unwrap_or_default(),
        flags,
        Mode::empty(),
    )
    .map_err(|error| make_error(path, "open", error))
}

fn check_ours(path: &Path, reader: &OwnedFd) -> Result<FileStat, FifoError> {
    let status = fstat(reader).map_err(|error| make_error(path, "look at", error))?;
    check_kind(path, &status)?;
    Ok(status)
}

fn check_kind(path: &Path, status: &FileStat) -> Result<(), FifoError> {
    let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
    let what = match kind {
        SFlag::S_IFIFO if Uid::from_raw(status.st_uid) != geteuid() => {
            "it is a FIFO of another user"
        }
        SFlag::S_IFIFO if status.st_nlink != 1 => "it is a FIFO with a second name",
        SFlag::S_IFIFO => return Ok(()),
        SFlag::S_IFLNK => "it is a symbolic link",
        SFlag::S_IFDIR => "it is a directory",
        SFlag::S_IFSOCK => "it is a socket",
        SFlag::S_IFREG => "it is a regular file (a code that was written while no FIFO was there?)",
        _ => "it is a device",
    };
    Err(occupied(path, what))
}

fn occupied(path: &Path, what: &'static str) -> FifoError {
    FifoError::Occupied {
        path: path.into(),
        what,
    }
}

fn make_error(path: &Path, step: &'static str, error: Errno) -> FifoError {
    FifoError::Make {
        path: path.into(),
        step,
        source: error.into(),
    }
}

fn identity(status: &FileStat) -> (u64, u64) {
    (status.st_dev, status.st_ino)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    use super::*;

    const PRIVATE: FifoAccess = FifoAccess {
        mode: 0o600,
        gid: None,
    };

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mfa");
        (directory, path)
    }

    /// Why no FIFO is made at `path`, which a check beforehand tells in the same words.
    fn refusal(path: &Path) -> String {
        let text = |error: FifoError| error.to_string();
        let checked = check(path).err().map(text).unwrap_or_default();
        let made = Fifo::make(path, PRIVATE).err().map(text);
        assert_eq!(checked, made.unwrap_or_default());
        checked
    }

    #[test]
    fn a_fifo_lives_as_long_as_its_owner() {
        let (_directory, path) = directory();
        let fifo = Fifo::make(
            &path,
            FifoAccess {
                mode: 0o622,
                gid: None,
            },
        )
        .unwrap();
        let metadata = path.symlink_metadata().unwrap();
        assert!(metadata.file_type().is_fifo());
        assert_eq!(metadata.mode() & 0o7777, 0o622);
        drop(fifo);
        assert!(!path.exists());
    }

    #[test]
    fn a_fifo_left_behind_is_taken_over_with_the_configured_mode() {
        let (_directory, path) = directory();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let before = path.metadata().unwrap().ino();
        check(&path).unwrap();
        let _fifo = Fifo::make(&path, PRIVATE).unwrap();
        assert_eq!(path.metadata().unwrap().ino(), before);
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn anything_else_at_the_path_is_refused_by_name_and_left_alone() {
        let (directory, path) = directory();
        std::fs::write(&path, "111676").unwrap();
        assert!(
            refusal(&path).contains("it is a regular file"),
            "{}",
            refusal(&path)
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "111676");
        std::fs::remove_file(&path).unwrap();

        std::fs::create_dir(&path).unwrap();
        assert!(refusal(&path).contains("it is a directory"));
        std::fs::remove_dir(&path).unwrap();

        let elsewhere = directory.path().join("elsewhere");
        nix::unistd::mkfifo(&elsewhere, Mode::S_IRWXU).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(refusal(&path).contains("it is a symbolic link"));
    }

    #[test]
    fn a_fifo_left_behind_a_symbolic_link_is_refused() {
        let (directory, _) = directory();
        let real = directory.path().join("real");
        std::fs::create_dir(&real).unwrap();
        symlink(&real, directory.path().join("link")).unwrap();
        nix::unistd::mkfifo(&real.join("mfa"), Mode::S_IRWXU).unwrap();
        let error = refusal(&directory.path().join("link/mfa"));
        assert!(error.contains("through a symbolic link"), "{error}");
    }

    #[test]
    fn a_directory_open_to_all_is_refused_unless_it_is_sticky() {
        let (directory, path) = directory();
        let set_mode = |mode| {
            std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(mode)).unwrap();
        };
        set_mode(0o777);
        assert!(refusal(&path).contains("every user can write the directory"));
        set_mode(0o1777);
        assert_eq!(refusal(&path), "");
        assert!(!path.exists());
    }

    #[test]
    fn a_missing_directory_is_named_with_what_to_do() {
        let error = refusal(Path::new("/nonexistent/mfa"));
        assert!(
            error.contains("RuntimeDirectory=iam-kms-wrapper"),
            "{error}"
        );
    }

    #[test]
    fn a_fifo_that_was_replaced_is_neither_reopened_nor_removed() {
        let (_directory, path) = directory();
        let mut fifo = Fifo::make(&path, PRIVATE).unwrap();
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert!(fifo.reopen().is_err());
        drop(fifo);
        assert!(path.exists());
    }
}
