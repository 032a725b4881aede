//! Makes sure that no server runs on a data directory, and that none starts meanwhile.

use std::{
    fs::File,
    io, iter,
    path::{Path, PathBuf},
};

use key_files::key_directory::{FileError, KeyDirectory};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

/// The files of a stopped server, locked until dropped.
#[derive(Debug)]
pub(crate) struct Stopped {
    _locks: Vec<File>,
}

/// Why the files cannot be checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStopped {
    /// A server holds the lock.
    #[error(
        "a server is running on the data directory '{}' and changes its files: stop it, and run this again",
        .0.display()
    )]
    Running(PathBuf),
    /// The directory of the key files.
    #[error(transparent)]
    KeyFiles(FileError),
    /// The file with the lock.
    #[error("cannot lock '{}' to make sure that no server runs: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Stopped {
    /// Takes read locks on the files for which a server takes write locks (fcntl(2), the whole file), in the data directory
    /// and the `further` ones. If there are none, because a server keeps them elsewhere, looks at the lock of the plugin.
    /// That one is not kept: a server that starts does not wait for it as long as for the others.
    ///
    /// They are locks of open file descriptions, because locks of the process would be released when
    /// the file is closed after reading.
    pub(crate) fn lock(
        datadir: &Path,
        further: &[PathBuf],
        key_files: &KeyDirectory,
    ) -> Result<Self, NotStopped> {
        let running = || NotStopped::Running(datadir.to_owned());
        let mut locks = Vec::new();
        let directories = iter::once(datadir).chain(further.iter().map(PathBuf::as_path));
        let paths = directories.flat_map(|it| [it.join("ibdata1"), it.join("aria_log_control")]);
        for path in paths {
            match lock(&path) {
                Ok(file) => locks.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(running());
                }
                Err(source) => return Err(NotStopped::System { path, source }),
            }
        }
        // Where they are, the key files may be those of another server, of which this is a copy.
        if locks.is_empty() {
            key_files.expect_no_server().map_err(|error| match error {
                FileError::InUse(_) => running(),
                error => NotStopped::KeyFiles(error),
            })?;
        }
        Ok(Self { _locks: locks })
    }
}

fn lock(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    let whole = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
        // According to POSIX, either error may mean that the lock is held.
        Err(Errno::EACCES) => Err(Errno::EAGAIN.into()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(file),
    }
}
