//! The state on disk: one file, replaced whole, changed under a lock that every process takes.
//!
//! The server reads it for each call, so that what the operator's commands change counts at once.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::state::State;

const STATE_FILE: &str = "state.json";
const LOCK_FILE: &str = "lock";

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `init` where there is something already.
    #[error("'{0}' is not empty; remove it, or name another directory with --state")]
    Exists(PathBuf),
    /// A file operation failed.
    #[error("cannot {doing} '{path}': {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The state file is not what this program writes.
    #[error("'{path}' is not a state file of this version: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// A state directory.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Makes the directory, mode 0700, with `state` in it. Refuses one that has something in it.
    pub fn create(directory: &Path, state: &State) -> Result<Self, StoreError> {
        make_empty_directory(directory)?;
        let store = Self {
            directory: directory.to_owned(),
        };
        let bytes = Zeroizing::new(store.serialize(state)?);
        store.write(STATE_FILE, &bytes)?;
        Ok(store)
    }

    /// Opens a directory made by [`Store::create`].
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(STATE_FILE);
        fs::metadata(&path).map_err(|source| failed("find", &path, source))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// The path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Calls `change` with the state while no other process or thread has it, and writes it back
    /// if it changed. What `change` did is on disk when this returns without an error.
    pub fn transaction<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let lock = self.lock_file(LOCK_FILE)?;
        lock.lock()
            .map_err(|source| failed("lock", &self.path(LOCK_FILE), source))?;
        let path = self.path(STATE_FILE);
        let before = fs::read(&path).map_err(|source| failed("read", &path, source))?;
        let before = Zeroizing::new(before);
        let mut state: State = serde_json::from_slice(&before)
            .map_err(|source| StoreError::Malformed { path, source })?;
        let result = change(&mut state);
        let after = Zeroizing::new(self.serialize(&state)?);
        if after != before {
            self.write(STATE_FILE, &after)?;
        }
        Ok(result)
    }

    /// Opens a file of the directory that is there to be locked.
    pub fn lock_file(&self, name: &str) -> Result<File, StoreError> {
        let path = self.path(name);
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| failed("open", &path, source))
    }

    /// Writes a file, mode 0600, as a database would: whole and on disk, or not at all.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let path = self.path(name);
        let temporary = path.with_added_extension("new");
        replace(&path, &temporary, content).map_err(|source| failed("write", &path, source))
    }

    /// Makes a subdirectory, mode 0700, unless it is there.
    pub fn make_directory(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| failed("make the directory", &path, source))
    }

    /// Appends to a file, mode 0600, in one write.
    pub fn append(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let path = self.path(name);
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content))
            .map_err(|source| failed("append to", &path, source))
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        fs::remove_file(&path).map_err(|source| failed("remove", &path, source))
    }

    fn serialize(&self, state: &State) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec_pretty(state).map_err(|source| StoreError::Malformed {
            path: self.path(STATE_FILE),
            source,
        })
    }
}

fn make_empty_directory(directory: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => return result.map_err(|source| failed("make the directory", directory, source)),
    }
    let mut entries =
        fs::read_dir(directory).map_err(|source| failed("read", directory, source))?;
    if entries.next().is_some() {
        return Err(StoreError::Exists(directory.to_owned()));
    }
    fs::set_permissions(directory, Permissions::from_mode(0o700))
        .map_err(|source| failed("set the mode of", directory, source))
}

/// Temporary file, fsync, rename, fsync of the directory: in this order a crash leaves the old
/// content or the new one.
fn replace(path: &Path, temporary: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(temporary)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(directory: &Path) -> Store {
        let state = State::new("111122223333", "us-east-1", "mariadb").unwrap();
        Store::create(&directory.join("state"), &state).unwrap()
    }

    #[test]
    fn a_change_is_there_for_the_next_who_opens() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        store
            .transaction(|state| state.clock_offset_seconds = 60)
            .unwrap();
        let again = Store::open(&directory.path().join("state")).unwrap();
        assert_eq!(
            again
                .transaction(|state| state.clock_offset_seconds)
                .unwrap(),
            60
        );
    }

    #[test]
    fn changes_of_many_threads_are_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        store
                            .transaction(|state| state.clock_offset_seconds += 1)
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(
            store
                .transaction(|state| state.clock_offset_seconds)
                .unwrap(),
            40
        );
    }

    #[test]
    fn secrets_are_readable_by_their_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&directory.path().join("state")), 0o700);
        assert_eq!(mode(&store.path(STATE_FILE)), 0o600);
    }

    #[test]
    fn a_directory_in_use_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path());
        let state = State::new("111122223333", "us-east-1", "mariadb").unwrap();
        let error = Store::create(&directory.path().join("state"), &state).unwrap_err();
        assert!(matches!(error, StoreError::Exists(_)), "{error}");
    }
}
