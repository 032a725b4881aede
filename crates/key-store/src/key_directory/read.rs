//! Reading key files.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use crate::MAX_CIPHERTEXT_BYTES;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};

use super::{FileError, KeyDirectory};
use crate::key_name::{Algorithm, KeyName};

impl KeyDirectory {
    /// Reads a wrapped key: 1 to [`MAX_CIPHERTEXT_BYTES`] bytes of a regular file.
    pub fn read(&self, name: &KeyName) -> Result<Vec<u8>, FileError> {
        let (file, metadata) = self.open_file(name)?;
        self.content(name, &file, &metadata)
    }

    /// Opens a regular file.
    pub(super) fn open_file(&self, name: &KeyName) -> Result<(File, Metadata), FileError> {
        // Without O_NONBLOCK a FIFO of that name would stop the server.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = openat(
            &self.descriptor,
            name.to_string().as_str(),
            flags,
            Mode::empty(),
        )
        .map(File::from)
        .map_err(|error| self.file_error(name, "open", error))?;
        let metadata = file
            .metadata()
            .map_err(|error| self.read_error(name, error))?;
        if !metadata.is_file() {
            return Err(self.unusable(name, "is not a regular file".into()));
        }
        Ok((file, metadata))
    }

    pub(super) fn content(
        &self,
        name: &KeyName,
        file: &File,
        metadata: &Metadata,
    ) -> Result<Vec<u8>, FileError> {
        let mut blob = Vec::new();
        file.take(MAX_CIPHERTEXT_BYTES as u64 + 1)
            .read_to_end(&mut blob)
            .map_err(|error| self.read_error(name, error))?;
        match blob.len() {
            0 => Err(self.unusable(name, "is empty".into())),
            1..=MAX_CIPHERTEXT_BYTES => Ok(blob),
            _ => {
                let length = metadata.len();
                let problem = format!(
                    "is {length} bytes long, and KMS wraps no key in more than {MAX_CIPHERTEXT_BYTES}"
                );
                Err(self.unusable(name, problem))
            }
        }
    }

    fn read_error(&self, name: &KeyName, source: io::Error) -> FileError {
        FileError::File {
            action: "read",
            path: self.path_of(name),
            source,
            advice: "check the disk",
        }
    }

    /// When the file of `name` was last written.
    pub fn modified(&self, name: &KeyName) -> Result<SystemTime, FileError> {
        let status = fstatat(
            &self.descriptor,
            name.to_string().as_str(),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .map_err(|error| self.file_error(name, "look at", error))?;
        let seconds = u64::try_from(status.st_mtime).unwrap_or_default();
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// Looks for the file of one version.
    pub fn find(&self, id: u32, version: u32) -> Result<Option<KeyName>, FileError> {
        let name = |algorithm| KeyName {
            id,
            version,
            algorithm,
        };
        let (cbc, ctr) = (name(Algorithm::AesCbc), name(Algorithm::AesCtr));
        match (self.exists(&cbc)?, self.exists(&ctr)?) {
            (true, true) => Err(self.conflict(&cbc)),
            (true, false) => Ok(Some(cbc)),
            (false, true) => Ok(Some(ctr)),
            (false, false) => Ok(None),
        }
    }

    pub(super) fn exists(&self, name: &KeyName) -> Result<bool, FileError> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(
            &self.descriptor,
            name.to_string().as_str(),
            flags,
            Mode::empty(),
        ) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(self.file_error(name, "look for", error)),
        }
    }

    pub(super) fn file_error(
        &self,
        name: &KeyName,
        action: &'static str,
        error: Errno,
    ) -> FileError {
        let advice = match error {
            Errno::EACCES | Errno::EPERM => "give the file to the user of the server, mode 0600",
            Errno::ELOOP => "put the file itself there instead of a symbolic link",
            Errno::ENOSPC | Errno::EDQUOT => "make room on the disk",
            Errno::EROFS => "let the server write there, or set aws_key_management_keyfile_dir",
            Errno::ENOENT => "restore it from a backup of the key files",
            _ => "check the disk and the file",
        };
        FileError::File {
            action,
            path: self.path_of(name),
            source: error.into(),
            advice,
        }
    }

    fn unusable(&self, name: &KeyName, problem: String) -> FileError {
        FileError::Unusable {
            path: self.path_of(name),
            problem,
        }
    }
}
