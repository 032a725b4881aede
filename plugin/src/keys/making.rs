//! Makes new versions of keys.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use data_files::scan::SYSTEM_KEY_ID;
use data_files::usage::{self, LogVersions};
use key_files::PlaintextKey;
use key_files::fault_points::{self, Step};
use key_files::key_directory::{Stored, VersionPolicy};
use key_files::key_name::{Algorithm, KeyName};
use key_files::manifest::Entry;

use crate::keys::error::KeyError;
use crate::keys::manager::{KeyManager, Program, STATEMENT_PATIENCE, SYSTEM_IDS, retry_for};
use crate::keys::private_descriptors;
use crate::kms::client::{KmsError, Limits};
use crate::server::log;
use crate::server::symbols::{is_cluster_node, log_lists};

/// How far above all known versions one of a log may be. One that is further up is damage, and would use up the numbers.
const MAX_LOG_JUMP: u32 = 1_000_000;
/// How long the data is looked at again if a file does not tell which key it needs.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
const LOOK_PAUSE: Duration = Duration::from_millis(100);

impl KeyManager {
    /// Makes the first version of a key that neither key files nor manifest nor key store list, unless data is encrypted with
    /// it.
    pub(super) fn make_first(&self, id: u32) -> Result<u32, KeyError> {
        if self.program == Program::Backup {
            let path = self.directory.path().to_owned();
            return Err(KeyError::NotInBackup { id, path });
        }
        if let Some(proof) = self.find_data(id)? {
            let error = match self.kms.has_key_server() {
                true => KeyError::NotServed {
                    what: format!("key {id}"),
                    proof: Some(proof),
                },
                false => KeyError::AllFilesMissing {
                    id,
                    path: self.directory.path().to_owned(),
                    proof,
                },
            };
            return self
                .denied
                .refuse(id, &error.to_string(), &self.keyring)
                .ok_or_else(|| error.for_reading(id));
        }
        let may_retry = retry_for(STATEMENT_PATIENCE);
        let limits = self.limits(&may_retry);
        match self.make(id, VersionPolicy::First, &limits)? {
            Some(name) => Ok(name.version),
            // Another process made it after we had looked for it.
            None => self
                .latest_for_server(id, &limits)?
                .ok_or_else(|| self.no_such_version(id, 1)),
        }
    }

    /// Makes a version above all that are known: the number of one whose file is lost is never given away again.
    pub(super) fn make_next(&self, id: u32, limits: &Limits<'_>) -> Result<KeyName, KeyError> {
        let known = self.highest_known(id)?;
        self.make(id, VersionPolicy::Next { known }, limits)?
            .ok_or(KeyError::MadeElsewhere { id })
    }

    /// Makes a new version. Returns `None` if [`VersionPolicy::First`] found one that another process made.
    ///
    /// The key is used only after KMS has decrypted it and after its file and the manifest are safely on disk:
    /// losing it later would lose the data.
    fn make(
        &self,
        id: u32,
        version_policy: VersionPolicy,
        limits: &Limits<'_>,
    ) -> Result<Option<KeyName>, KeyError> {
        if self.program == Program::Backup {
            let path = self.directory.path().to_owned();
            return Err(KeyError::NotInBackup { id, path });
        }
        if let Some(path) = self.offline_keys() {
            let path = path.to_owned();
            return Err(KeyError::OnlyRead { path });
        }
        // Before the key is in the key store, where nobody can delete it.
        if !self.kms.has_key_server() {
            self.directory.expect_writable()?;
        }
        self.manifest.expect_writable()?;
        let key_store = self.key_store(limits)?;
        let master_key_id = self.dynamic.master_key_id();
        // A key server chooses the master key.
        if master_key_id.is_empty() && !self.kms.has_key_server() {
            return Err(KeyError::NoMasterKey { id });
        }
        let failed = |source| KeyError::Generate {
            id,
            master_key_id: master_key_id.clone(),
            source,
        };
        let key_bytes = self.dynamic.key_bytes();
        if let Some(key_store) = key_store {
            return self
                .make_in_key_store(&key_store, &master_key_id, id, version_policy, limits)
                .map(Some);
        }
        let wrapped = self
            .kms
            .generate(master_key_id.clone(), key_bytes, id, limits)
            .map_err(failed)?;
        fault_points::reach(Step::Generated);
        let decrypted = self
            .kms
            .decrypt(wrapped.ciphertext_blob.clone(), None, (id, 0), limits)
            .map_err(failed)?;
        let key = decrypted.key;
        if key.expose().len() != usize::from(key_bytes) {
            return Err(failed(KmsError::WrongReply));
        }
        fault_points::reach(Step::Unwrapped);
        let (algorithm, why) = self.algorithm_of_new_version(id);
        let stored =
            self.directory
                .store(id, algorithm, version_policy, &wrapped.ciphertext_blob)?;
        let Stored::New(name) = stored else {
            return Ok(None);
        };
        let entry = Entry::new(name, &key, &wrapped.master_key_arn);
        self.publish_new(entry, &key, why)?;
        Ok(Some(name))
    }

    /// Gives a new key, whose file is on disk, to the server.
    pub(super) fn publish_new(
        &self,
        entry: Entry,
        key: &PlaintextKey,
        why: &str,
    ) -> Result<(), KeyError> {
        let (name, bits) = (entry.name, entry.bits);
        let master_key = entry.master_key_arn.clone().unwrap_or_default();
        self.manifest.record(&[entry])?;
        self.publish(&name, key)?;
        fault_points::reach(Step::Published);
        log::note(&format!(
            "made key {}, version {}, key length {bits} bit, {}{why}, with master key {master_key}",
            name.id, name.version, name.algorithm
        ));
        Ok(())
    }

    /// Returns how a new version of a key encrypts, and the reason if that is not what the setting asks for.
    ///
    /// MariaDB encrypts different data with the same key and IV in the redo log, in temporary tables and in
    /// Aria, which all use the system keys, and in page-compressed tables after a crash. The nodes of a cluster encrypt
    /// different pages with the same key. With AES_CTR, all of that would reveal the data.
    pub(super) fn algorithm_of_new_version(&self, id: u32) -> (Algorithm, &'static str) {
        match self.dynamic.algorithm() {
            Algorithm::AesCtr if SYSTEM_IDS.contains(&id) => (
                Algorithm::AesCbc,
                " (AES_CTR is only for key ids 3 and above)",
            ),
            Algorithm::AesCtr if is_cluster_node() => {
                (Algorithm::AesCbc, " (AES_CTR is not for cluster nodes)")
            }
            Algorithm::AesCtr if self.is_page_compressed(id) => (
                Algorithm::AesCbc,
                " (AES_CTR is not for page-compressed tables)",
            ),
            requested => (requested, ""),
        }
    }

    /// Returns the highest version of a key in memory, on disk, in the manifest or, of key 1, in the server's logs; 0 if
    /// there is none.
    pub(super) fn highest_known(&self, id: u32) -> Result<u32, KeyError> {
        let on_disk = self.known_versions(id)?.last().map(|name| name.version);
        let known = on_disk.max(self.keyring.latest_version(id)).unwrap_or(0);
        match id {
            SYSTEM_KEY_ID => self.highest_in_logs(known),
            _ => Ok(known),
        }
    }

    /// Returns the highest version of key 1 that a binary or relay log needs, if it is above `known`. Logs on another disk
    /// outlive the data directory and its manifest, such as when an older backup is restored.
    fn highest_in_logs(&self, known: u32) -> Result<u32, KeyError> {
        let LogVersions { versions, unclear } = self.log_versions();
        if let Some(unclear) = unclear.into_iter().next() {
            return Err(KeyError::UnclearLog(unclear));
        }
        match versions.last_key_value() {
            Some((&version, log)) if version > known.saturating_add(MAX_LOG_JUMP) => {
                Err(KeyError::UnlikelyLog {
                    log: log.clone(),
                    version,
                    known,
                })
            }
            Some((&version, _)) => Ok(version.max(known)),
            None => Ok(known),
        }
    }

    /// Returns which versions of key 1 the server's binary and relay logs need.
    pub(super) fn log_versions(&self) -> LogVersions {
        usage::find_log_versions(self.manifest.datadir(), &log_lists())
    }

    /// Returns a file of the server that is encrypted with a key, if there is one.
    ///
    /// What does not tell is looked at again: other statements rename a tablespace before they write the link to it.
    pub(super) fn find_data(&self, id: u32) -> Result<Option<PathBuf>, KeyError> {
        let datadir = self.manifest.datadir();
        let end = Instant::now() + LOOK_PATIENCE;
        let look = || loop {
            let found = usage::find(datadir, &log_lists(), id);
            if found.is_ok() || Instant::now() >= end {
                return found;
            }
            thread::sleep(LOOK_PAUSE);
        };
        private_descriptors::run(look)
            .map_err(|source| KeyError::CannotLook { id, source })?
            .map_err(|source| KeyError::Unclear { id, source })
    }
}
