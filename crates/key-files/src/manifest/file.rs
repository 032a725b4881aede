//! The manifest on disk.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::geteuid;

use super::{DifferentKey, Entry, MANIFEST_NAME, Manifest, WrongKey};
use crate::PlaintextKey;
use crate::check_value::CheckValue;
use crate::directory::{Access, Directory, FileName};
use crate::file_error::{FileError, FileKind};
use crate::key_name::KeyName;

/// Far more than any server's: some 400,000 key versions.
const MAX_MANIFEST_BYTES: usize = 64 << 20;

const FILE: FileName<'static> = FileName {
    kind: FileKind::Manifest,
    name: MANIFEST_NAME,
};

/// The manifest of a data directory, in memory and on disk.
#[derive(Debug)]
pub struct ManifestFile {
    directory: Directory,
    manifest: Mutex<Manifest>,
    /// Entries of threads that wait for the manifest to be written.
    queue: Mutex<Vec<Entry>>,
}

impl ManifestFile {
    /// Reads the manifest of `datadir`, or of the working directory if that is empty. One that is not there
    /// is empty.
    pub fn open(datadir: &Path) -> Result<Self, FileError> {
        let directory = Directory::open(datadir)?;
        let manifest = read(&directory)?.unwrap_or_default();
        Ok(Self {
            directory,
            manifest: Mutex::new(manifest),
            queue: Mutex::default(),
        })
    }

    /// The absolute path of the file, for messages.
    pub fn path(&self) -> PathBuf {
        self.directory.path_of(FILE)
    }

    /// The absolute path of the data directory.
    pub fn datadir(&self) -> &Path {
        self.directory.path()
    }

    /// Whether it lists no key, as in a new data directory or one of a release that kept no list.
    pub fn is_empty(&self) -> bool {
        self.manifest().entries.is_empty()
    }

    /// The entry of a key version.
    pub fn get(&self, id: u32, version: u32) -> Option<Entry> {
        self.manifest().get(id, version).cloned()
    }

    /// Fails if another key is listed under this name, or the same one with another algorithm.
    pub fn check(&self, name: &KeyName, key: &PlaintextKey) -> Result<(), WrongKey> {
        let manifest = self.manifest();
        let Some(listed) = manifest.get(name.id, name.version) else {
            return Ok(());
        };
        let found = CheckValue::of(key);
        if (listed.name, listed.check_value) == (*name, found) {
            return Ok(());
        }
        Err(WrongKey {
            name: listed.name,
            holds: manifest.find(found).map(|entry| entry.name),
            manifest: self.path(),
        })
    }

    /// The versions of a key, in order.
    pub fn versions(&self, id: u32) -> Vec<Entry> {
        self.manifest().versions(id).cloned().collect()
    }

    /// All versions of all keys, in order.
    pub fn entries(&self) -> Vec<Entry> {
        self.manifest().entries().cloned().collect()
    }

    /// Whether the data directory is marked as a copy whose original still uses the same keys.
    pub fn is_forked(&self) -> bool {
        self.manifest().is_forked
    }

    /// Marks the data directory as such a copy, or removes the mark.
    pub fn set_forked(&self, is_forked: bool) -> Result<(), FileError> {
        let mut manifest = self.manifest();
        self.update(&mut manifest, |manifest| {
            let is_news = manifest.is_forked != is_forked;
            manifest.is_forked = is_forked;
            Ok(is_news)
        })
    }

    /// Whether AES_CTR has encrypted page-compressed pages with a key.
    pub fn is_page_compressed(&self, id: u32) -> bool {
        self.manifest().page_compressed.contains(&id)
    }

    /// Records that AES_CTR encrypts page-compressed pages with a key, and returns when that would survive a power
    /// failure.
    pub fn record_page_compressed(&self, id: u32) -> Result<(), FileError> {
        let mut manifest = self.manifest();
        self.update(&mut manifest, |manifest| {
            Ok(manifest.page_compressed.insert(id))
        })
    }

    /// Adds key versions, and returns when they would survive a power failure. Fails if a key version is
    /// recorded with another key.
    ///
    /// What several threads add at the same time is written once.
    pub fn record(&self, entries: &[Entry]) -> Result<(), FileError> {
        self.queue().extend_from_slice(entries);
        let mut manifest = self.manifest();
        // Nothing queued before this point is lost: its own thread checks for it, too.
        let queued = core::mem::take(&mut *self.queue());
        if entries.iter().all(|entry| manifest.has(entry)) && queued.is_empty() {
            return Ok(());
        }
        let add = |manifest: &mut Manifest, entries: &[Entry]| {
            entries
                .iter()
                .try_fold(false, |is_news, entry| Ok(manifest.add(entry)? | is_news))
        };
        // A bad entry of one thread must not keep those of others from being written.
        if self
            .update(&mut manifest, |manifest| add(manifest, &queued))
            .is_ok()
            && entries.iter().all(|entry| manifest.has(entry))
        {
            return Ok(());
        }
        self.update(&mut manifest, |manifest| add(manifest, entries))
    }

    /// Fails if the manifest cannot be written, as on a full disk.
    pub fn expect_writable(&self) -> Result<(), FileError> {
        let bytes = self.manifest().format().len();
        self.directory.expect_writable(FILE, bytes)
    }

    /// Changes what is in memory and on disk, unless `change` says that nothing has changed.
    ///
    /// Other programs write the file too, so what they have added is read first.
    fn update(
        &self,
        manifest: &mut Manifest,
        change: impl FnOnce(&mut Manifest) -> Result<bool, DifferentKey>,
    ) -> Result<(), FileError> {
        let _turn = self.directory.turn()?;
        let on_disk = read(&self.directory)?;
        let is_missing = on_disk.is_none();
        let mut updated = on_disk.unwrap_or_default();
        let add_all = || {
            let mut is_news = is_missing;
            for entry in manifest.entries() {
                is_news |= updated.add(entry)?;
            }
            for &id in &manifest.page_compressed {
                is_news |= updated.page_compressed.insert(id);
            }
            Ok(change(&mut updated)? | is_news)
        };
        let is_news = add_all().map_err(|different: DifferentKey| FileError::Unusable {
            kind: FILE.kind,
            path: self.path(),
            problem: format!(
                "{different}; do nothing else until you know which of the two the data was encrypted with"
            ),
        })?;
        if is_news {
            let text = updated.format();
            if text.len() > MAX_MANIFEST_BYTES {
                return Err(FileError::Unusable {
                    kind: FILE.kind,
                    path: self.path(),
                    problem: format!(
                        "would be longer than {MAX_MANIFEST_BYTES} bytes, and is not read then"
                    ),
                });
            }
            self.directory
                .write_temporary(FILE, text.as_bytes(), self.access()?)?
                .replace(FILE)?;
        }
        *manifest = updated;
        Ok(())
    }

    /// Who may use the file: root writes it for the server's user, who owns the directory.
    fn access(&self) -> Result<Access, FileError> {
        match geteuid().is_root() {
            true => self.directory.access_of_owner(),
            false => Ok(Access::OURS),
        }
    }

    /// Whole at every unlock.
    fn manifest(&self) -> MutexGuard<'_, Manifest> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(directory: &Directory) -> Result<Option<Manifest>, FileError> {
    if !directory.exists(FILE)? {
        return Ok(None);
    }
    let (opened, _) = directory.open_file(FILE)?;
    let text = directory.content(FILE, &opened, MAX_MANIFEST_BYTES)?;
    let unusable = |problem: String| FileError::Unusable {
        kind: FILE.kind,
        path: directory.path_of(FILE),
        problem: format!(
            "{problem}; restore it from a backup, or move it away if all key files are there: the server \
             then records them again"
        ),
    };
    if text.len() > MAX_MANIFEST_BYTES {
        return Err(unusable(format!(
            "is longer than {MAX_MANIFEST_BYTES} bytes"
        )));
    }
    Manifest::parse(&text)
        .map(Some)
        .map_err(|error| unusable(error.to_string()))
}
