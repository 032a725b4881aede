use std::fs;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar};

use broker_api::{FailureKind, Request};
use key_files::manifest::ManifestFile;
use tempfile::TempDir;

use super::*;
use crate::concurrent::WORKERS;
use crate::settings::StartupSettings;
use crate::test_broker::{dynamic, failure, honest, honest_answer, manager, settings, wrapped};
use broker_api::test_broker::TestBroker;

fn key_files(names: &[&str]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (number, name) in names.iter().enumerate() {
        let path = directory.path().join(format!("aws-kms-key.{name}"));
        fs::write(path, wrapped(&[number as u8; 16])).unwrap();
    }
    directory
}

fn load(broker: &TestBroker, directory: &TempDir) -> (KeyManager, Result<(), StartError>) {
    let manager = manager(broker, directory.path(), dynamic());
    let result = load_all(&manager, Program::Server);
    (manager, result)
}

#[test]
fn all_key_files_are_loaded() {
    let directory = key_files(&["3.1", "3.2.ctr", "4294967294.4294967294"]);
    let (manager, result) = load(&honest(), &directory);
    result.unwrap();
    assert_eq!(manager.keyring.latest_version(3), Some(2));
    assert_eq!(
        manager.keyring.copy(u32::MAX - 1, u32::MAX - 1),
        Some(vec![2; 16])
    );
    assert_eq!(
        (manager.keyring.id_count(), manager.keyring.version_count()),
        (2, 3)
    );
}

#[test]
fn without_key_files_the_plugin_needs_only_the_broker() {
    let directory = key_files(&[]);
    load(&honest(), &directory).1.unwrap();
    let gone = honest();
    fs::remove_file(gone.socket()).unwrap();
    let text = load(&gone, &directory).1.unwrap_err().to_string();
    assert!(text.contains(gone.socket().to_str().unwrap()), "{text}");
}

#[test]
fn key_files_are_decrypted_concurrently() {
    let names: Vec<_> = (1..=WORKERS).map(|id| format!("{id}.1")).collect();
    let directory = key_files(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let waiting = Arc::new((Mutex::new(0), Condvar::new()));
    let broker = TestBroker::new(move |request| {
        if request != Request::Session {
            // No worker gets an answer before all workers have asked.
            let (count, all_there) = &*waiting;
            let mut count = count.lock().unwrap();
            *count += 1;
            all_there.notify_all();
            let together = all_there
                .wait_timeout_while(count, Duration::from_secs(30), |count| *count < WORKERS)
                .unwrap();
            if together.1.timed_out() {
                return failure(FailureKind::Other, "one after another");
            }
        }
        honest_answer(request)
    });
    let (manager, result) = load(&broker, &directory);
    result.unwrap();
    assert_eq!(manager.keyring.version_count(), WORKERS as u64);
}

#[test]
fn system_keys_with_ctr_get_a_cbc_version() {
    let directory = key_files(&["1.1", "1.2.ctr", "2.2.ctr", "3.2.ctr"]);
    let (manager, result) = load(&honest(), &directory);
    result.unwrap();
    for (id, version, algorithm) in [
        (1, 3, Algorithm::AesCbc),
        (2, 3, Algorithm::AesCbc),
        (3, 2, Algorithm::AesCtr),
    ] {
        assert_eq!(manager.keyring.latest_version(id), Some(version));
        assert_eq!(manager.keyring.algorithm(id, version), Some(algorithm));
    }
    assert!(manager.keyring.contains(1, 2));
}

#[test]
fn a_version_whose_file_is_lost_is_not_made_anew_under_its_number() {
    let directory = key_files(&["1.1.ctr"]);
    load(&honest(), &directory).1.unwrap();
    let lost = directory.path().join("aws-kms-key.1.2");
    let away = directory.path().join("away");
    fs::rename(&lost, &away).unwrap();
    let (manager, result) = load(&honest(), &directory);
    result.unwrap();
    assert!(!lost.exists());
    assert_eq!(manager.keyring.latest_version(1), Some(3));
    drop(manager);
    fs::rename(&away, &lost).unwrap();
    let (manager, result) = load(&honest(), &directory);
    result.unwrap();
    assert!(manager.keyring.contains(1, 2));
}

#[test]
fn keys_that_a_stopped_start_has_not_tried_are_known_and_loaded_later() {
    let names: Vec<_> = (1..=10 * WORKERS).map(|id| format!("{id}.1")).collect();
    let directory = key_files(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let answers = Arc::new(AtomicUsize::new(0));
    let counted = answers.clone();
    // The session ends after the first key, and is open again for the second start of loading.
    let broker = TestBroker::new(move |request| match request {
        Request::Decrypt(_)
            if (1..5 * WORKERS).contains(&counted.fetch_add(1, Ordering::SeqCst)) =>
        {
            failure(FailureKind::SessionOver, "the session is over")
        }
        request => honest_answer(request),
    });
    let (manager, result) = load(&broker, &directory);
    result.unwrap();
    let loaded = manager.keyring.version_count() as usize;
    assert_eq!(manager.unloaded().len(), names.len() - loaded);
    assert!(manager.unloaded().len() > WORKERS, "{loaded}");
    answers.store(5 * WORKERS, Ordering::SeqCst);
    load_the_rest(&manager, |_| true);
    assert_eq!(manager.keyring.version_count() as usize, names.len());
}

/// KMS refuses the wrapped key of `unavailable` until the counter is no longer 0.
fn without(unavailable: &'static [u8], counter: &Arc<AtomicUsize>) -> TestBroker {
    let counter = Arc::clone(counter);
    TestBroker::new(move |request| match &request {
        Request::Decrypt(decrypt)
            if decrypt.ciphertext_blob == wrapped(unavailable)
                && counter.load(Ordering::SeqCst) == 0 =>
        {
            failure(FailureKind::AccessDenied, "not yet")
        }
        _ => honest_answer(request),
    })
}

#[test]
fn a_key_with_ctr_that_is_not_safe_and_is_loaded_late_gets_a_cbc_version_all_the_same() {
    // Nothing else of key 2 is there, so the server asks for it again.
    let counter = Arc::default();
    let directory = key_files(&["1.1", "2.2.ctr"]);
    let (manager, result) = load(&without(&[1; 16], &counter), &directory);
    result.unwrap();
    assert_eq!(manager.keyring.latest_version(2), None);
    counter.store(1, Ordering::SeqCst);
    assert_eq!(manager.latest_version(2), Ok(3));
    assert_eq!(manager.keyring.algorithm(2, 3), Some(Algorithm::AesCbc));
    assert!(manager.keyring.contains(2, 2));

    // An older version is, so it comes in the background.
    let counter = Arc::default();
    let directory = key_files(&["1.1", "1.2.ctr"]);
    let (manager, result) = load(&without(&[1; 16], &counter), &directory);
    result.unwrap();
    assert_eq!(manager.latest_version(1), Ok(1));
    counter.store(1, Ordering::SeqCst);
    load_the_rest(&manager, |_| true);
    assert_eq!(manager.latest_version(1), Ok(3));
    assert_eq!(manager.keyring.algorithm(1, 3), Some(Algorithm::AesCbc));
    assert!(manager.keyring.contains(1, 2));
}

#[test]
fn of_the_versions_of_a_disabled_master_key_one_is_asked_for_in_each_round() {
    const ROUNDS: usize = 3;
    let directory = key_files(&["1.1", "3.1", "3.2", "3.3"]);
    load(&honest(), &directory).1.unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    // The file of 3.2 has been rewrapped.
    let is_rewrapped = Arc::new(AtomicBool::new(false));
    let rewrapped = Arc::clone(&is_rewrapped);
    let broker = TestBroker::new(move |request| match &request {
        Request::Decrypt(decrypt)
            if decrypt.ciphertext_blob != wrapped(&[0; 16])
                && !(rewrapped.load(Ordering::SeqCst)
                    && decrypt.ciphertext_blob == wrapped(&[2; 16])) =>
        {
            counter.fetch_add(1, Ordering::SeqCst);
            failure(FailureKind::KeyUnusable, "disabled")
        }
        _ => honest_answer(request),
    });
    let (manager, result) = load(&broker, &directory);
    result.unwrap();
    assert_eq!(calls.swap(0, Ordering::SeqCst), 3);
    let load_again = || {
        let rounds = AtomicUsize::new(0);
        load_the_rest(&manager, |pause| {
            pause.is_zero() || rounds.fetch_add(1, Ordering::SeqCst) < ROUNDS
        });
    };
    load_again();
    assert_eq!(calls.load(Ordering::SeqCst), ROUNDS);
    assert_eq!(manager.unloaded().len(), 3);
    is_rewrapped.store(true, Ordering::SeqCst);
    load_again();
    assert_eq!(manager.unloaded().len(), 2);
}

#[test]
fn every_loaded_key_is_in_the_manifest() {
    let directory = key_files(&["1.1", "3.2.ctr"]);
    load(&honest(), &directory).1.unwrap();
    let manifest = ManifestFile::open(directory.path()).unwrap();
    let names: Vec<_> = manifest
        .entries()
        .iter()
        .map(|entry| entry.name.to_string())
        .collect();
    assert_eq!(names, ["aws-kms-key.1.1", "aws-kms-key.3.2.ctr"]);
}

#[test]
fn the_plugin_does_not_start_if_all_key_files_of_the_manifest_are_missing() {
    let directory = key_files(&["1.1", "3.1"]);
    load(&honest(), &directory).1.unwrap();
    for name in ["aws-kms-key.1.1", "aws-kms-key.3.1"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    let (manager, result) = load(&honest(), &directory);
    assert!(matches!(result, Err(StartError::NoKeyLoaded(2))));
    assert!(
        manager.unloaded()[0]
            .1
            .contains("aws-kms-key.1.1 is missing")
    );
}

#[test]
fn a_copied_data_directory_gets_new_versions_of_its_ctr_keys_at_start() {
    let directory = key_files(&["1.1", "3.2.ctr", "4.2.ctr", "4.3"]);
    ManifestFile::open(directory.path())
        .unwrap()
        .set_forked(true)
        .unwrap();
    let (manager, result) = load(&honest(), &directory);
    result.unwrap();
    for (id, version) in [(1, 1), (3, 3), (4, 3)] {
        assert_eq!(manager.keyring.latest_version(id), Some(version));
    }
    assert!(!manager.manifest.is_forked());
}

#[test]
fn a_copied_data_directory_without_new_versions_does_not_use_the_originals_ctr_keys() {
    let directory = key_files(&["1.1", "3.2.ctr"]);
    ManifestFile::open(directory.path())
        .unwrap()
        .set_forked(true)
        .unwrap();
    let broker = TestBroker::new(|request| match request {
        Request::GenerateDataKey(_) => failure(FailureKind::AccessDenied, "denied"),
        _ => honest_answer(request),
    });
    let (manager, result) = load(&broker, &directory);
    result.unwrap();
    assert_eq!(manager.latest_version(1), Ok(1));
    for reason in [
        manager.latest_version(3).unwrap_err(),
        manager.ensure_loaded(3, 2).unwrap_err(),
    ] {
        assert!(reason.contains("this data directory is a copy"), "{reason}");
    }
    assert!(manager.manifest.is_forked());
}

#[test]
fn a_key_that_fails_does_not_affect_the_others() {
    let directory = key_files(&["1.1", "2.1", "3.1"]);
    fs::write(directory.path().join("aws-kms-key.2.1"), "rubbish").unwrap();
    fs::write(directory.path().join("aws-kms-key.4.1"), "").unwrap();
    let (manager, result) = load(&honest(), &directory);
    result.unwrap();
    assert_eq!(manager.keyring.ids().len(), 2);
}

#[test]
fn a_version_with_two_algorithms_is_not_loaded() {
    let directory = key_files(&["1.1", "1.1.ctr", "1.2"]);
    let (manager, result) = load(&honest(), &directory);
    result.unwrap();
    assert!(!manager.keyring.contains(1, 1));
    assert_eq!(manager.keyring.latest_version(1), Some(2));
}

#[test]
fn if_no_key_file_can_be_loaded_the_plugin_does_not_start() {
    let directory = key_files(&[]);
    fs::write(directory.path().join("aws-kms-key.1.1"), "rubbish").unwrap();
    let result = load(&honest(), &directory).1;
    assert!(matches!(result, Err(StartError::NoKeyLoaded(1))));
}

#[test]
fn throttled_calls_are_retried_until_all_keys_are_loaded() {
    let names: Vec<_> = (1..=20).map(|id| format!("{id}.1")).collect();
    let directory = key_files(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let count = AtomicUsize::new(0);
    let broker = TestBroker::new(move |request| {
        if request != Request::Session && count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            failure(FailureKind::Throttled, "slower")
        } else {
            honest_answer(request)
        }
    });
    let (manager, result) = load(&broker, &directory);
    result.unwrap();
    assert_eq!(manager.keyring.version_count(), 20);
    assert!(manager.kms_counters().retries() >= 20);
}

#[test]
fn loading_stops_when_the_session_has_expired() {
    let names: Vec<_> = (1..=500).map(|id| format!("{id}.1")).collect();
    let directory = key_files(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let broker = TestBroker::new(|request| match request {
        Request::Session => honest_answer(request),
        _ => failure(FailureKind::SessionOver, "enter a new code"),
    });
    let result = load(&broker, &directory).1;
    assert!(matches!(result, Err(StartError::NoKeyLoaded(500))));
    assert!(
        broker.request_count() <= WORKERS,
        "{}",
        broker.request_count()
    );
}

#[test]
fn a_server_removes_temporary_files_and_a_backup_does_not() {
    let directory = key_files(&["1.1"]);
    let left = directory.path().join(".aws-kms-key.1.2.4711.new");
    fs::write(&left, "part").unwrap();
    let broker = honest();
    let manager = manager(&broker, directory.path(), dynamic());
    load_all(&manager, Program::Backup).unwrap();
    assert!(left.exists());
    load_all(&manager, Program::Server).unwrap();
    assert!(!left.exists());
}

#[test]
fn temporary_files_of_the_manifest_are_removed_from_a_data_directory_of_its_own() {
    let (keys, datadir) = (key_files(&["1.1"]), tempfile::tempdir().unwrap());
    let left = datadir.path().join(".aws-kms-keys.list.4711.new");
    fs::write(&left, "part").unwrap();
    let broker = honest();
    let settings = StartupSettings {
        datadir: datadir.path().to_owned(),
        ..settings(&broker, keys.path())
    };
    let manager = KeyManager::new(settings, dynamic(), Program::Server).unwrap();
    load_all(&manager, Program::Server).unwrap();
    assert!(!left.exists());
}

#[test]
fn keys_that_only_the_increment_has_are_loaded_too() {
    let (full, increment) = (key_files(&["1.1"]), key_files(&["1.1", "1.2", "9.1"]));
    let broker = honest();
    let (manager, result) = load(&broker, &full);
    result.unwrap();
    load_increment(&manager, increment.path()).unwrap();
    assert_eq!(manager.keyring.version_count(), 3);
    assert_eq!(manager.keyring.latest_version(1), Some(2));
    assert_eq!(manager.keyring.copy(9, 1).unwrap(), [2; 16]);
    assert_eq!(broker.request_count(), 3);
}
