//! The directory with the key files: reading them, and making new ones so that a crash at any
//! moment leaves either a whole key file or none.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::Flock;

use crate::MAX_CIPHERTEXT_BYTES;
use crate::directory::{Access, Directory, FileName};
use crate::fault_points::{self, Step};
pub use crate::file_error::{FileError, FileKind};
use crate::key_name::{Algorithm, KeyName, ParsedName, has_number, is_valid_number};

/// The file that a server locks in the directory for as long as it runs. mariadb-backup does not copy it.
const SERVER_LOCK: &str = ".aws-kms-keys.lock";

/// An open key file directory.
#[derive(Debug)]
pub struct KeyDirectory(Directory);

/// What lies in the directory.
#[derive(Debug, Default)]
pub struct Listing {
    /// The key files, sorted.
    pub keys: Vec<KeyName>,
    /// Names that begin like a key file's and are none.
    pub malformed: Vec<String>,
    temporary: Vec<String>,
}

impl Listing {
    /// The newest version of a key that has a file.
    pub fn newest(&self, id: u32) -> Option<u32> {
        let end = self.keys.partition_point(|key| key.id <= id);
        let last = self.keys.get(..end)?.last()?;
        (last.id == id).then_some(last.version)
    }

    /// Whether a version without a file is older than one that has a file. It may have been moved away because nothing needs
    /// it any more.
    pub fn is_retired(&self, name: &KeyName) -> bool {
        !self.has(name) && self.newest(name.id) > Some(name.version)
    }

    /// Whether a key version has a file, whatever algorithm its name says.
    pub fn has(&self, name: &KeyName) -> bool {
        has_number(&self.keys, name.number())
    }
}

/// Keeps other servers from making keys in the directory, until it is dropped or the process dies.
#[derive(Debug)]
pub struct ServerLock(#[expect(dead_code, reason = "held")] Option<Flock<File>>);

/// Which version a new key file becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionPolicy {
    /// The first version, unless the key exists meanwhile.
    First,
    /// One above `known` and above all that is on disk.
    Next {
        /// The highest version that is known from elsewhere.
        known: u32,
    },
    /// This version, of which there is no file yet, from a key store.
    Fetched {
        /// The version.
        version: u32,
    },
    /// This version, of which there is no file yet. It belongs to the owner of the directory, whoever
    /// makes it.
    Exactly {
        /// The version.
        version: u32,
    },
}

/// What came of storing a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Stored {
    /// The key is on disk for good, under this name.
    New(KeyName),
    /// Somebody else has made the key meanwhile; nothing was stored.
    Exists,
}

/// The version that a key begins with.
///
/// The stock plugin does not see files of AES_CTR, and makes version 1 of a key of which it sees no
/// file. If there were data of an AES_CTR version 1, it would take them for its own and decrypt them to
/// garbage; any other version it refuses as one that it does not have.
const fn first_version(algorithm: Algorithm) -> u32 {
    match algorithm {
        Algorithm::AesCbc => 1,
        Algorithm::AesCtr => 2,
    }
}

impl KeyDirectory {
    /// Opens `keyfile_dir`, or the working directory if it is empty.
    pub fn open(keyfile_dir: &Path) -> Result<Self, FileError> {
        Directory::open(keyfile_dir).map(Self)
    }

    /// The absolute path of the directory, for messages.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The absolute path of a key file, for messages.
    pub fn path_of(&self, name: &KeyName) -> PathBuf {
        self.path().join(name.to_string())
    }

    /// Makes sure that no other server makes keys here. Servers that may not write here are not locked
    /// out, and need not be.
    pub fn lock_for_server(&self) -> Result<ServerLock, FileError> {
        self.0.lock_for_life(SERVER_LOCK).map(ServerLock)
    }

    /// Fails with [`FileError::InUse`] if a server has the lock. Changes nothing.
    pub fn expect_no_server(&self) -> Result<(), FileError> {
        self.0.share_lock(SERVER_LOCK).map(drop)
    }

    /// Fails with [`FileError::Replaced`] if the path leads to another directory by now, or nowhere. The working
    /// directory, and what was opened relative to it, may move.
    pub fn expect_in_place(&self) -> Result<(), FileError> {
        self.0.expect_in_place()
    }

    /// The same, and fails if no key file can be written, as on a full disk.
    pub fn expect_writable(&self) -> Result<(), FileError> {
        self.0.expect_writable(file("aws-kms-key"), 0)
    }

    /// Lists the key files.
    pub fn list(&self) -> Result<Listing, FileError> {
        let mut listing = Listing::default();
        for name in self.0.names()? {
            let text = || name.to_string_lossy().into_owned();
            match KeyName::parse(name.to_bytes()) {
                ParsedName::Key(key) => listing.keys.push(key),
                ParsedName::Malformed => listing.malformed.push(text()),
                ParsedName::Temporary => listing.temporary.push(text()),
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

    /// Looks for the file of one version.
    pub fn find(&self, id: u32, version: u32) -> Result<Option<KeyName>, FileError> {
        let cbc = KeyName {
            id,
            version,
            algorithm: Algorithm::AesCbc,
        };
        match (self.exists(&cbc)?, self.exists(&cbc.other())?) {
            (true, true) => Err(self.conflict(&cbc)),
            (true, false) => Ok(Some(cbc)),
            (false, true) => Ok(Some(cbc.other())),
            (false, false) => Ok(None),
        }
    }

    fn exists(&self, name: &KeyName) -> Result<bool, FileError> {
        self.0.exists(file(&name.to_string()))
    }

    /// Fails if `keys`, in order, holds a version both with AES_CBC and with AES_CTR.
    pub fn check_conflict(&self, keys: &[KeyName], key: &KeyName) -> Result<(), FileError> {
        match keys.binary_search(&key.other()) {
            Ok(_) => Err(self.conflict(key)),
            Err(_) => Ok(()),
        }
    }

    fn conflict(&self, key: &KeyName) -> FileError {
        let (cbc, ctr) = match key.algorithm {
            Algorithm::AesCbc => (*key, key.other()),
            Algorithm::AesCtr => (key.other(), *key),
        };
        FileError::Conflict {
            cbc: self.path_of(&cbc),
            ctr: self.path_of(&ctr),
        }
    }

    /// When the file of `name` was last written.
    pub fn modified(&self, name: &KeyName) -> Result<SystemTime, FileError> {
        self.0.modified(file(&name.to_string()))
    }

    /// Reads a wrapped key: 1 to [`MAX_CIPHERTEXT_BYTES`] bytes of a regular file.
    pub fn read(&self, name: &KeyName) -> Result<Vec<u8>, FileError> {
        let name = name.to_string();
        let (opened, _) = self.0.open_file(file(&name))?;
        self.content(file(&name), &opened)
    }

    fn content(&self, file: FileName<'_>, opened: &File) -> Result<Vec<u8>, FileError> {
        let blob = self.0.content(file, opened, MAX_CIPHERTEXT_BYTES)?;
        match blob.len() {
            0 => Err(self.0.unusable(file, "is empty".into())),
            1..=MAX_CIPHERTEXT_BYTES => Ok(blob),
            _ => {
                let problem = format!(
                    "is longer than the {MAX_CIPHERTEXT_BYTES} bytes that a key wrapped by KMS can have"
                );
                Err(self.0.unusable(file, problem))
            }
        }
    }

    /// Makes sure that the names in the directory survive a power failure. A key file that another
    /// process made may not be there yet for good, and it must be before anything is encrypted
    /// with it.
    pub fn sync(&self) -> Result<(), FileError> {
        self.0.sync()
    }

    /// Puts a wrapped key on disk and returns when it would survive a power failure.
    ///
    /// Nothing is put into a directory to which the path no longer leads. A file that is there is never overwritten.
    /// Until the end the file has a name under which neither the server nor a backup looks for it, and which no other
    /// process has.
    pub fn store(
        &self,
        id: u32,
        algorithm: Algorithm,
        placement: VersionPolicy,
        blob: &[u8],
    ) -> Result<Stored, FileError> {
        let _turn = self.0.turn()?;
        self.expect_in_place()?;
        let Some(version) = self.free_version(id, algorithm, placement)? else {
            return Ok(Stored::Exists);
        };
        let key = KeyName {
            id,
            version,
            algorithm,
        };
        let name = key.to_string();
        fault_points::reach(Step::VersionChosen);
        let access = match placement {
            VersionPolicy::Exactly { .. } => self.0.access_of_owner()?,
            VersionPolicy::First | VersionPolicy::Next { .. } | VersionPolicy::Fetched { .. } => {
                Access::OURS
            }
        };
        let temporary = self.0.write_temporary(file(&name), blob, access)?;
        if !temporary.publish_as_new(file(&name))? {
            return Ok(Stored::Exists);
        }
        // What the server is going to use must be what lies under the name.
        if self.read(&key)? != blob {
            return Err(self.0.unusable(
                file(&name),
                "was replaced by another program while it was made".into(),
            ));
        }
        Ok(Stored::New(key))
    }

    /// Replaces the content of a key file, which must be `old`, by `new`, and returns when that
    /// would survive a power failure. Owner, group and mode stay.
    ///
    /// The old file stays in its place until the new one has been read back from the disk, and a
    /// crash at any moment leaves one of them there, whole.
    pub fn replace(&self, name: &KeyName, old: &[u8], new: &[u8]) -> Result<(), FileError> {
        let name = name.to_string();
        let _turn = self.0.turn()?;
        let (opened, metadata) = self.0.open_file(file(&name))?;
        if self.content(file(&name), &opened)? != old {
            return Err(FileError::File {
                action: "replace",
                kind: FileKind::Key,
                path: self.0.path_of(file(&name)),
                source: io::Error::other("another program has replaced it meanwhile"),
                advice: "run it again",
            });
        }
        self.0
            .write_temporary(file(&name), new, Access::of(&metadata))?
            .replace(file(&name))
    }

    /// Removes what a process left that died while it made a key file. Returns the names.
    pub fn remove_stale_temporaries(&self) -> Result<Vec<String>, FileError> {
        self.0.remove_stale(self.list()?.temporary)
    }

    fn free_version(
        &self,
        id: u32,
        algorithm: Algorithm,
        placement: VersionPolicy,
    ) -> Result<Option<u32>, FileError> {
        let highest = self.versions(id)?.last().map(|key| key.version);
        match (placement, highest) {
            (VersionPolicy::First, None) => Ok(Some(first_version(algorithm))),
            (VersionPolicy::First, Some(_)) => Ok(None),
            (VersionPolicy::Exactly { version } | VersionPolicy::Fetched { version }, _) => {
                match self.find(id, version)? {
                    None => Ok(Some(version)),
                    Some(_) => Ok(None),
                }
            }
            (VersionPolicy::Next { known }, highest) => {
                let version = known.max(highest.unwrap_or(0));
                match version.checked_add(1).filter(|&next| is_valid_number(next)) {
                    Some(next) => Ok(Some(next)),
                    None => Err(FileError::NoVersionLeft {
                        id,
                        version,
                        path: self.path().to_owned(),
                    }),
                }
            }
        }
    }
}

fn file(name: &str) -> FileName<'_> {
    FileName {
        kind: FileKind::Key,
        name,
    }
}
