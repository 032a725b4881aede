//! Making key files.

use std::fs::{File, Metadata};
use std::os::unix::fs::{MetadataExt, fchown};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::lock::DirectoryLock;
use super::{FileError, KeyDirectory};
use crate::fault_points::{self, Step};
use crate::key_name::{Algorithm, KeyName, ParsedName, is_valid_number};

/// Which version a new key file becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The first version, unless the key exists meanwhile.
    First,
    /// One above `known` and above all that is on disk.
    Next {
        /// The highest version in memory.
        known: u32,
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
    /// The key was made by somebody else meanwhile; nothing was stored.
    Exists,
}

/// The version that a key begins with.
///
/// The stock plugin does not see files of AES_CTR, and makes version 1 of a key of which it sees no
/// file. Were there data of an AES_CTR version 1, it would take them for its own and make garbage of
/// them; any other version it refuses as one that it does not have.
const fn first_version(algorithm: Algorithm) -> u32 {
    match algorithm {
        Algorithm::AesCbc => 1,
        Algorithm::AesCtr => 2,
    }
}

/// Who may use a file.
#[derive(Clone, Copy)]
pub(super) struct Access {
    mode: Mode,
    /// User and group; `None`: those of the process.
    owner: Option<(u32, u32)>,
}

impl Access {
    /// Only the user who makes it.
    const OURS: Self = Self {
        mode: Mode::S_IRUSR.union(Mode::S_IWUSR),
        owner: None,
    };

    /// The same as another file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            mode: Mode::from_bits_truncate(metadata.mode()),
            owner: Some((metadata.uid(), metadata.gid())),
        }
    }
}

impl KeyDirectory {
    /// Puts a wrapped key on disk and returns when it would survive a power failure.
    ///
    /// A file that is there is never overwritten. Until the end the file has a name under which
    /// neither the server nor a backup looks for it.
    pub fn store(
        &self,
        id: u32,
        algorithm: Algorithm,
        placement: Placement,
        blob: &[u8],
    ) -> Result<Stored, FileError> {
        let lock = self.lock()?;
        let Some(version) = self.free_version(id, algorithm, placement)? else {
            return Ok(Stored::Exists);
        };
        let name = KeyName {
            id,
            version,
            algorithm,
        };
        fault_points::reach(Step::VersionChosen);
        let access = match placement {
            Placement::Exactly { .. } => self.access_of_owner()?,
            Placement::First | Placement::Next { .. } => Access::OURS,
        };
        let temporary = name.temporary_name();
        self.remove_temporary(&lock, &name, &temporary)?;
        let written = self
            .write_temporary(&name, &temporary, blob, access)
            .and_then(|_| self.publish(&name, &temporary));
        if written.is_err() {
            // The first failure is the one to tell; what stays is removed at the next start.
            let _ = self.remove_temporary(&lock, &name, &temporary);
        }
        if !written? {
            return Ok(Stored::Exists);
        }
        fault_points::reach(Step::Named);
        self.sync()?;
        fault_points::reach(Step::DirectorySynced);
        Ok(Stored::New(name))
    }

    /// Removes what a process left that died while it made a key file. Returns the names.
    ///
    /// Whoever makes one holds the lock, so with the lock in hand nobody is at it.
    pub fn remove_stale_temporaries(&self) -> Result<Vec<String>, FileError> {
        let Some(_lock) = self.try_lock()? else {
            return Ok(Vec::new());
        };
        let stale = self.list()?.temporary;
        for name in &stale {
            unlinkat(&self.descriptor, name.as_str(), UnlinkatFlags::NoRemoveDir)
                .map_err(|error| self.directory_error("remove a left-over file from", error))?;
        }
        Ok(stale)
    }

    /// For the owner of the directory alone.
    fn access_of_owner(&self) -> Result<Access, FileError> {
        let directory =
            fstat(&self.descriptor).map_err(|error| self.directory_error("look at", error))?;
        Ok(Access {
            owner: Some((directory.st_uid, directory.st_gid)),
            ..Access::OURS
        })
    }

    fn free_version(
        &self,
        id: u32,
        algorithm: Algorithm,
        placement: Placement,
    ) -> Result<Option<u32>, FileError> {
        let highest = self.versions(id)?.last().map(|key| key.version);
        match (placement, highest) {
            (Placement::First, None) => Ok(Some(first_version(algorithm))),
            (Placement::First, Some(_)) => Ok(None),
            (Placement::Exactly { version }, _) => match self.find(id, version)? {
                None => Ok(Some(version)),
                Some(_) => Ok(None),
            },
            (Placement::Next { known }, highest) => {
                let version = known.max(highest.unwrap_or(0));
                match version.checked_add(1).filter(|&next| is_valid_number(next)) {
                    Some(next) => Ok(Some(next)),
                    None => Err(FileError::NoVersionLeft {
                        id,
                        version,
                        path: self.path.clone(),
                    }),
                }
            }
        }
    }

    /// Makes the temporary file with its content, on disk.
    pub(super) fn write_temporary(
        &self,
        name: &KeyName,
        temporary: &str,
        blob: &[u8],
        access: Access,
    ) -> Result<File, FileError> {
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = openat(&self.descriptor, temporary, flags, Access::OURS.mode)
            .map(File::from)
            .map_err(|error| self.making_error(name, "make", error))?;
        fault_points::reach(Step::TemporaryMade);
        // Before there is something to be read.
        if let Some((uid, gid)) = access.owner {
            fchown(&file, Some(uid), Some(gid)).map_err(|source| FileError::File {
                action: "give to its owner the new",
                path: self.path_of(name),
                source,
                advice: "run this as root, or as the owner of the file",
            })?;
        }
        // A umask of 0277 or the like takes bits away.
        fchmod(&file, access.mode)
            .map_err(|error| self.making_error(name, "set the mode of", error))?;
        fault_points::write_all(&mut file, blob)
            .inspect(|()| fault_points::reach(Step::Written))
            .and_then(|()| file.sync_all())
            .inspect(|()| fault_points::reach(Step::FileSynced))
            .map_err(|error| match error.raw_os_error() {
                Some(number) => self.making_error(name, "write", Errno::from_raw(number)),
                None => FileError::File {
                    action: "write",
                    path: self.path_of(name),
                    source: error,
                    advice: "check the disk",
                },
            })?;
        Ok(file)
    }

    /// Gives the file its name; false if the name is taken.
    fn publish(&self, name: &KeyName, temporary: &str) -> Result<bool, FileError> {
        let final_name = name.to_string();
        let renamed = renameat2(
            &self.descriptor,
            temporary,
            &self.descriptor,
            final_name.as_str(),
            RenameFlags::RENAME_NOREPLACE,
        );
        let published = match renamed {
            // File systems that cannot rename without replacing; a link never replaces.
            Err(Errno::EINVAL | Errno::ENOSYS) => self.link(&final_name, temporary),
            renamed => renamed,
        };
        match published {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => {
                unlinkat(&self.descriptor, temporary, UnlinkatFlags::NoRemoveDir)
                    .map_err(|error| self.making_error(name, "remove the new", error))?;
                Ok(false)
            }
            Err(error) => Err(self.making_error(name, "name", error)),
        }
    }

    fn link(&self, final_name: &str, temporary: &str) -> nix::Result<()> {
        let directory = &self.descriptor;
        linkat(
            directory,
            temporary,
            directory,
            final_name,
            AtFlags::empty(),
        )?;
        unlinkat(directory, temporary, UnlinkatFlags::NoRemoveDir)
    }

    /// What is missing then is the right to write to the directory.
    pub(super) fn making_error(
        &self,
        name: &KeyName,
        action: &'static str,
        error: Errno,
    ) -> FileError {
        match error {
            Errno::EACCES | Errno::EPERM => FileError::File {
                action,
                path: self.path_of(name),
                source: error.into(),
                advice: "let the user of the server write to that directory",
            },
            other => self.file_error(name, action, other),
        }
    }

    pub(super) fn remove_temporary(
        &self,
        _lock: &DirectoryLock,
        name: &KeyName,
        temporary: &str,
    ) -> Result<(), FileError> {
        debug_assert_eq!(KeyName::parse(temporary.as_bytes()), ParsedName::Temporary);
        match unlinkat(&self.descriptor, temporary, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(self.making_error(name, "make room for", error)),
        }
    }
}
