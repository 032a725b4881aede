//! Putting another wrapping of the same key in the place of a key file.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise, renameat};

use super::write::Access;
use super::{FileError, KeyDirectory};
use crate::fault_points::{self, Step};
use crate::key_name::KeyName;

impl KeyDirectory {
    /// Replaces the content of a key file, which must be `old`, by `new`, and returns when that
    /// would survive a power failure. Owner, group and mode stay.
    ///
    /// The old file stays in its place until the new one has been read back from the disk, and a
    /// crash at any moment leaves one of them there, whole.
    pub fn replace(&self, name: &KeyName, old: &[u8], new: &[u8]) -> Result<(), FileError> {
        let lock = self.lock()?;
        let (file, metadata) = self.open_file(name)?;
        if self.content(name, &file, &metadata)? != old {
            return Err(self.replacing_error(
                name,
                io::Error::other("somebody else has replaced it meanwhile"),
                "run it again",
            ));
        }
        let temporary = name.temporary_name();
        self.remove_temporary(&lock, name, &temporary)?;
        let replaced = self
            .write_temporary(name, &temporary, new, Access::of(&metadata))
            .and_then(|file| self.check_disk(name, &file, new))
            .and_then(|()| self.rename(name, &temporary));
        if replaced.is_err() {
            // The first failure is the one to tell.
            let _ = self.remove_temporary(&lock, name, &temporary);
        }
        replaced?;
        fault_points::reach(Step::Named);
        self.sync()?;
        fault_points::reach(Step::DirectorySynced);
        Ok(())
    }

    /// Reads back what was written: from the disk, because the system lets go of its copy first.
    fn check_disk(&self, name: &KeyName, file: &File, written: &[u8]) -> Result<(), FileError> {
        posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|error| self.file_error(name, "read back the new", error))?;
        let mut on_disk = vec![0; written.len()];
        let failed = |error| self.replacing_error(name, error, "check the disk");
        file.read_exact_at(&mut on_disk, 0).map_err(failed)?;
        if on_disk != written {
            return Err(failed(io::Error::other(
                "the disk gives back something else than was written",
            )));
        }
        Ok(())
    }

    fn rename(&self, name: &KeyName, temporary: &str) -> Result<(), FileError> {
        let directory = &self.descriptor;
        renameat(directory, temporary, directory, name.to_string().as_str())
            .map_err(|error: Errno| self.making_error(name, "replace", error))
    }

    fn replacing_error(
        &self,
        name: &KeyName,
        source: io::Error,
        advice: &'static str,
    ) -> FileError {
        FileError::File {
            action: "replace",
            path: self.path_of(name),
            source,
            advice,
        }
    }
}
