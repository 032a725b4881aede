//! Looks after the keys while the server runs, for the status variables: whether each still has its key file, and
//! whether the key store has them. A key file that is lost while the server runs is otherwise noticed at the next
//! start.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use key_files::key_name::{Algorithm, KeyName};

use crate::keys::manager::{Inspected, KeyManager};
use crate::lock::lock;
use crate::server::log;

/// Time between two looks at the directory of the key files.
const INTERVAL: Duration = Duration::from_secs(30);
/// The key store is compared once in this many looks, because each list of it costs a request.
const LOOKS_PER_COMPARISON: u32 = 20;

/// The state of one key, as a status variable shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStatus {
    /// The server uses the highest version that exists.
    Ok,
    /// The server uses the highest version, but a version has no key file.
    FileMissing,
    /// The server encrypts with an older version, because the highest one could not be loaded.
    OlderVersion,
    /// No version of the key is in memory.
    NotLoaded,
}

impl KeyStatus {
    /// The value of the status variable.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::FileMissing => "file missing",
            Self::OlderVersion => "older version",
            Self::NotLoaded => "not loaded",
        }
    }
}

/// What is known of one key.
#[derive(Debug, PartialEq, Eq)]
pub struct KeySummary {
    /// Its id.
    pub id: u32,
    /// The version that new data is encrypted with; 0 if none is in memory.
    pub latest_version: u32,
    /// How many of its versions are in memory.
    pub versions: u64,
    /// Its state.
    pub status: KeyStatus,
}

impl KeyManager {
    /// What is known of each key, by id, without any input or output.
    pub fn key_summaries(&self) -> Vec<KeySummary> {
        let unloaded: Vec<KeyName> = self.unloaded().into_iter().map(|(name, _)| name).collect();
        let files_missing = lock(&self.inspected).files_missing.clone();
        let mut loaded: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for name in self.keyring.names() {
            loaded.entry(name.id).or_default().push(name.version);
        }
        let mut ids: BTreeSet<u32> = loaded.keys().copied().collect();
        ids.extend(unloaded.iter().map(|name| name.id));
        ids.extend(self.denied.refused_ids());
        ids.into_iter()
            .map(|id| {
                let versions = loaded.get(&id).map_or(&[][..], Vec::as_slice);
                let latest_version = versions.iter().copied().max().unwrap_or(0);
                let is_older = |name: &KeyName| name.id == id && name.version > latest_version;
                let status = if versions.is_empty() {
                    KeyStatus::NotLoaded
                } else if unloaded.iter().any(is_older) {
                    KeyStatus::OlderVersion
                } else if files_missing.iter().any(|name| name.id == id) {
                    KeyStatus::FileMissing
                } else {
                    KeyStatus::Ok
                };
                KeySummary {
                    id,
                    latest_version,
                    versions: versions.len() as u64,
                    status,
                }
            })
            .collect()
    }

    /// Number of keys whose new data is encrypted with another version than the highest that exists.
    pub fn keys_on_older_version(&self) -> u64 {
        let summaries = self.key_summaries();
        let is_older = |it: &&KeySummary| it.status == KeyStatus::OlderVersion;
        summaries.iter().filter(is_older).count() as u64
    }

    /// Number of versions in memory that use this algorithm.
    pub fn loaded_versions_of(&self, algorithm: Algorithm) -> u64 {
        let names = self.keyring.names();
        names
            .iter()
            .filter(|name| name.algorithm == algorithm)
            .count() as u64
    }

    /// Number of versions that the last inspection found without a key file.
    pub fn key_files_missing(&self) -> u64 {
        lock(&self.inspected).files_missing.len() as u64
    }

    /// Number of versions here that the key store did not have, or had as another key, when it was last compared.
    pub fn versions_not_in_store(&self) -> u64 {
        lock(&self.inspected).not_in_store
    }

    /// When the keys were last compared with the key store.
    pub fn compared_with_store(&self) -> Option<SystemTime> {
        lock(&self.inspected).compared
    }

    /// Looks whether each version that the server uses, and the newest of each key, has its key file. If the
    /// directory cannot be read, or the next start will not find it, all of them are missing.
    fn inspect_key_files(&self) {
        // It keeps the wrapped keys: there are no key files here.
        if self.kms.has_key_server() {
            return;
        }
        // Taken before the directory is listed: a new version is there before it is in memory.
        let mut expected: BTreeSet<KeyName> = self.keyring.names().into_iter().collect();
        let mut newest: BTreeMap<u32, KeyName> = BTreeMap::new();
        for entry in self.manifest.entries() {
            newest.insert(entry.name.id, entry.name);
        }
        let in_place = self.directory.expect_in_place();
        let listed = in_place.and_then(|()| self.directory.list());
        let problem = listed.as_ref().err().map(ToString::to_string);
        self.report_once(problem, |inspected| &mut inspected.problem);
        let here = listed.unwrap_or_default();
        let is_newest = |name: &KeyName| here.newest(name.id) <= Some(name.version);
        expected.extend(newest.into_values().filter(is_newest));
        expected.retain(|name| here.keys.binary_search(name).is_err());
        lock(&self.inspected).files_missing = expected;
    }

    /// Logs a problem, unless the last inspection had the same one there.
    pub(super) fn report_once(
        &self,
        problem: Option<String>,
        there: impl FnOnce(&mut Inspected) -> &mut Option<String>,
    ) {
        let before = std::mem::replace(there(&mut lock(&self.inspected)), problem.clone());
        match problem {
            Some(problem) if before.as_ref() != Some(&problem) => log::error(&problem),
            _ => {}
        }
    }
}

/// Inspects the key files, and now and then the key store, until `wait` returns false because the plugin stops.
///
/// `wait` sleeps for the given time.
pub fn inspect_repeatedly(manager: &KeyManager, wait: impl Fn(Duration) -> bool) {
    let mut looks = 0;
    loop {
        manager.inspect_key_files();
        if !wait(INTERVAL) {
            return;
        }
        looks += 1;
        if looks % LOOKS_PER_COMPARISON == 0 {
            manager.compare_again(&|| !wait(Duration::ZERO));
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicBool, Ordering};
    use std::fs;

    use broker_api::test_broker::TestBroker;
    use broker_api::{Reply, Request, SessionState};
    use key_files::PlaintextKey;
    use key_files::check_value::CheckValue;
    use tempfile::TempDir;

    use super::*;
    use crate::keys::loading::load_all;
    use crate::keys::manager::Program;
    use crate::test_broker::{
        dynamic, honest, honest_answer, manager, with_empty_key_server, wrapped,
    };

    fn file(directory: &TempDir, name: &str) -> std::path::PathBuf {
        directory.path().join(format!("aws-kms-key.{name}"))
    }

    /// A manager that has loaded these key files, and states of its keys as text.
    fn loaded(names: &[&str]) -> (KeyManager, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        for (number, name) in names.iter().enumerate() {
            fs::write(file(&directory, name), wrapped(&[number as u8; 16])).unwrap();
        }
        let broker = honest();
        let manager = manager(&broker, directory.path(), dynamic());
        load_all(&manager, Program::Server).unwrap();
        manager.inspect_key_files();
        (manager, directory)
    }

    fn states(manager: &KeyManager) -> Vec<(u32, u32, u64, &'static str)> {
        let summaries = manager.key_summaries();
        let tuple = |it: &KeySummary| (it.id, it.latest_version, it.versions, it.status.word());
        summaries.iter().map(tuple).collect()
    }

    #[test]
    fn keys_with_their_files_are_in_order() {
        let (manager, _directory) = loaded(&["1.1", "1.2", "3.7.ctr"]);
        assert_eq!(states(&manager), [(1, 2, 2, "ok"), (3, 7, 1, "ok")]);
        assert_eq!(manager.key_files_missing(), 0);
        assert_eq!(manager.loaded_versions_of(Algorithm::AesCtr), 1);
    }

    #[test]
    fn a_key_file_that_is_removed_while_the_server_runs_is_noticed() {
        let (manager, directory) = loaded(&["1.1", "1.2", "3.1"]);
        fs::remove_file(file(&directory, "1.1")).unwrap();
        let once = AtomicBool::new(true);
        inspect_repeatedly(&manager, |_| once.swap(false, Ordering::Relaxed));
        assert_eq!(
            states(&manager),
            [(1, 2, 2, "file missing"), (3, 1, 1, "ok")]
        );
        assert_eq!(manager.key_files_missing(), 1);
    }

    #[test]
    fn all_key_files_are_missing_from_a_directory_that_was_moved_until_it_is_back() {
        let (manager, directory) = loaded(&["1.1", "3.1"]);
        let away = directory.path().with_extension("away");
        fs::rename(directory.path(), &away).unwrap();
        manager.inspect_key_files();
        assert_eq!(manager.key_files_missing(), 2);
        let problem = lock(&manager.inspected).problem.clone().unwrap();
        assert!(problem.contains("was moved, replaced"), "{problem}");
        fs::rename(&away, directory.path()).unwrap();
        manager.inspect_key_files();
        assert_eq!(manager.key_files_missing(), 0);
    }

    #[test]
    fn with_a_key_server_no_key_file_is_missing() {
        let broker = with_empty_key_server();
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(&broker, directory.path(), dynamic());
        manager
            .key_store(&manager.limits_at_start(&|_| false))
            .unwrap();
        let name = KeyName {
            id: 1,
            version: 1,
            algorithm: Algorithm::AesCbc,
        };
        manager.keyring.add(name, &[1; 16]).unwrap();
        manager.inspect_key_files();
        assert_eq!(states(&manager), [(1, 1, 1, "ok")]);
        assert_eq!(manager.key_files_missing(), 0);
    }

    #[test]
    fn a_version_that_is_not_in_the_key_store_or_another_key_there_counts() {
        let (_, directory) = loaded(&["1.1", "1.2", "3.1"]);
        // It may be lost.
        fs::remove_file(file(&directory, "1.1")).unwrap();
        let key_list = |check_value: CheckValue| {
            let name = |id, version| KeyName {
                id,
                version,
                algorithm: Algorithm::AesCbc,
            };
            TestBroker::new(move |request| match request {
                Request::ListKeys(_) => Reply::KeyList {
                    keys: vec![(name(1, 2), of_key(1)), (name(3, 1), check_value)],
                    next: None,
                },
                request => match honest_answer(request) {
                    Reply::Session(state) => Reply::Session(SessionState {
                        key_store: Some("s3://keys/db1".into()),
                        ..state
                    }),
                    other => other,
                },
            })
        };
        for (check_value, count) in [(of_key(2), 1), (of_key(9), 2)] {
            let broker = key_list(check_value);
            let manager = manager(&broker, directory.path(), dynamic());
            manager.compare_again(&|| false);
            assert_eq!(manager.versions_not_in_store(), count);
            let problem = lock(&manager.inspected).store_problem.clone();
            assert_eq!(problem.is_some(), count > 1, "{problem:?}");
        }
    }

    /// The check value of the key of which all bytes are `byte`.
    fn of_key(byte: u8) -> CheckValue {
        CheckValue::of(&PlaintextKey::new(&[byte; 16]).unwrap())
    }

    #[test]
    fn an_old_version_that_was_moved_away_before_the_start_is_not_missed_but_the_newest_is() {
        let (_, directory) = loaded(&["1.1", "1.2", "3.1", "3.2"]);
        fs::remove_file(file(&directory, "1.1")).unwrap();
        fs::remove_file(file(&directory, "3.2")).unwrap();
        let broker = honest();
        let manager = manager(&broker, directory.path(), dynamic());
        load_all(&manager, Program::Server).unwrap();
        manager.inspect_key_files();
        assert_eq!(
            states(&manager),
            [(1, 2, 1, "ok"), (3, 1, 1, "older version")]
        );
        assert_eq!(manager.key_files_missing(), 1);
        assert_eq!(manager.keys_on_older_version(), 1);
    }
}
