//! The directory with the key files: reading them, and making new ones so that a crash at any
//! moment leaves either a whole key file or none.

mod lock;
mod read;
mod replace;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::key_name::{Algorithm, KeyName, ParsedName};
pub use write::{Placement, Stored};

/// Why a key file could not be read or made. Each message names the file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The directory itself.
    #[error("cannot {action} the key file directory '{}': {source}; check aws_key_management_keyfile_dir and the permissions of the server's user", path.display())]
    Directory {
        /// What was tried.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call on a key file.
    #[error("cannot {action} key file '{}': {source}; {advice}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Something that is no key file lies there.
    #[error("key file '{}' {problem}; restore it from a backup of the key files", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The same version for two algorithms.
    #[error("key files '{}' and '{}' are the same version of the same key; move the one away with which no data was encrypted", cbc.display(), ctr.display())]
    Conflict {
        /// The file of AES_CBC.
        cbc: PathBuf,
        /// The file of AES_CTR.
        ctr: PathBuf,
    },
    /// The last version number is taken.
    #[error("key {id} has version {version} in '{}', and no higher version number is left", path.display())]
    NoVersionLeft {
        /// Key id.
        id: u32,
        /// Its highest version.
        version: u32,
        /// The directory.
        path: PathBuf,
    },
}

/// An open key file directory.
pub struct KeyDirectory {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// What lies in the directory.
#[derive(Debug, Default)]
pub struct Listing {
    /// The key files, sorted.
    pub keys: Vec<KeyName>,
    /// Names that begin like a key file's and are none.
    pub malformed: Vec<String>,
    temporary: Vec<String>,
}

impl KeyDirectory {
    /// Opens `keyfile_dir`, or the working directory if it is empty.
    pub fn open(keyfile_dir: &Path) -> Result<Self, FileError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let (to_open, path) = if keyfile_dir.as_os_str().is_empty() {
            let here = Path::new(".");
            (
                here,
                std::env::current_dir().unwrap_or_else(|_| here.to_owned()),
            )
        } else {
            (keyfile_dir, keyfile_dir.to_owned())
        };
        match open(to_open, flags, Mode::empty()) {
            Ok(descriptor) => Ok(Self { descriptor, path }),
            Err(error) => Err(FileError::Directory {
                action: "open",
                path,
                source: error.into(),
            }),
        }
    }

    /// The path of the directory, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a key file, for messages.
    pub fn path_of(&self, name: &KeyName) -> PathBuf {
        self.path.join(name.to_string())
    }

    /// Lists the key files.
    pub fn list(&self) -> Result<Listing, FileError> {
        let failed = |error: nix::Error| self.directory_error("read", error);
        let mut listing = Listing::default();
        let mut directory = Dir::from_fd(self.reopen().map_err(failed)?).map_err(failed)?;
        for entry in directory.iter() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            match KeyName::parse(name.to_bytes()) {
                ParsedName::Key(key) => listing.keys.push(key),
                ParsedName::Malformed => {
                    listing.malformed.push(name.to_string_lossy().into_owned());
                }
                ParsedName::Temporary => {
                    listing.temporary.push(name.to_string_lossy().into_owned());
                }
                ParsedName::Other => {}
            }
        }
        listing.keys.sort_unstable();
        listing.malformed.sort_unstable();
        Ok(listing)
    }

    /// Returns the versions of `id` on disk, in order.
    pub fn versions(&self, id: u32) -> Result<Vec<KeyName>, FileError> {
        let mut keys = self.list()?.keys;
        keys.retain(|key| key.id == id);
        Ok(keys)
    }

    /// Fails if `keys`, in order, holds a version both with AES_CBC and with AES_CTR.
    pub fn check_conflict(&self, keys: &[KeyName], key: &KeyName) -> Result<(), FileError> {
        let twin = twin(key);
        if keys.binary_search(&twin).is_err() {
            return Ok(());
        }
        Err(self.conflict(key))
    }

    fn conflict(&self, key: &KeyName) -> FileError {
        let (cbc, ctr) = match key.algorithm {
            Algorithm::AesCbc => (*key, twin(key)),
            Algorithm::AesCtr => (twin(key), *key),
        };
        FileError::Conflict {
            cbc: self.path_of(&cbc),
            ctr: self.path_of(&ctr),
        }
    }

    /// Makes sure that the names in the directory survive a power failure. A key file that another
    /// process made may not be there yet for good, and it must be before anything is encrypted
    /// with it.
    pub fn sync(&self) -> Result<(), FileError> {
        nix::unistd::fsync(&self.descriptor).map_err(|error| self.directory_error("sync", error))
    }

    fn reopen(&self) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(&self.descriptor, ".", flags, Mode::empty())
    }

    fn directory_error(&self, action: &'static str, error: nix::Error) -> FileError {
        FileError::Directory {
            action,
            path: self.path.clone(),
            source: error.into(),
        }
    }
}

fn twin(key: &KeyName) -> KeyName {
    let algorithm = match key.algorithm {
        Algorithm::AesCbc => Algorithm::AesCtr,
        Algorithm::AesCtr => Algorithm::AesCbc,
    };
    KeyName { algorithm, ..*key }
}
