use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use broker_api::{FailureKind, Reply, Request, SessionState};
use key_files::check_value::CheckValue;
use key_files::key_name::{Algorithm, KeyName};
use key_files::{PlaintextKey, WrappedKey};
use tempfile::TempDir;

use super::*;
use crate::test_broker::{
    dynamic, failure, honest, honest_answer, manager, settings, with_empty_key_server, wrapped,
};
use broker_api::test_broker::TestBroker;

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn files(directory: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("aws-kms-key."))
        .collect();
    names.sort();
    names
}

/// Returns a broker that fails with `kind` while the flag is set.
fn failing_broker(kind: FailureKind) -> (TestBroker, Arc<AtomicBool>) {
    let failing = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&failing);
    let broker = TestBroker::new(move |request| {
        if request != Request::Session && flag.load(Ordering::SeqCst) {
            failure(kind, "the reason")
        } else {
            honest_answer(request)
        }
    });
    (broker, failing)
}

#[test]
fn a_key_that_does_not_exist_is_made_and_stored_on_disk() {
    let (broker, directory, dynamic) = (honest(), directory(), dynamic());
    let manager = manager(&broker, directory.path(), dynamic);
    dynamic.set_key_spec(1);
    assert_eq!(manager.latest_version(20), Ok(1));
    let key = manager.keyring.copy(20, 1).unwrap();
    assert_eq!(key.len(), 32);
    assert_eq!(manager.keyring.algorithm(20, 1), Some(Algorithm::AesCbc));
    let blob = fs::read(directory.path().join("aws-kms-key.20.1")).unwrap();
    assert_eq!(blob, wrapped(&key));
}

#[test]
fn a_new_ctr_version_has_its_algorithm_in_its_name_and_starts_at_version_2() {
    let (broker, directory, dynamic) = (honest(), directory(), dynamic());
    let manager = manager(&broker, directory.path(), dynamic);
    dynamic.set_algorithm(1);
    assert_eq!(manager.latest_version(3), Ok(2));
    assert_eq!(manager.keyring.algorithm(3, 2).unwrap(), Algorithm::AesCtr);
    assert_eq!(files(&directory), ["aws-kms-key.3.2.ctr"]);
}

#[test]
fn new_system_keys_never_use_ctr() {
    let (broker, directory, dynamic) = (honest(), directory(), dynamic());
    let manager = manager(&broker, directory.path(), dynamic);
    dynamic.set_algorithm(1);
    for id in SYSTEM_IDS {
        assert_eq!(manager.latest_version(id), Ok(1));
        assert_eq!(manager.keyring.algorithm(id, 1), Some(Algorithm::AesCbc));
    }
}

#[test]
fn threads_that_want_the_same_new_key_make_only_one() {
    let (broker, directory) = (honest(), directory());
    let manager = manager(&broker, directory.path(), dynamic());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(manager.latest_version(5), Ok(1)));
        }
    });
    assert_eq!(
        broker.request_count(),
        2,
        "one GenerateDataKey and one Decrypt"
    );
    assert_eq!(files(&directory), ["aws-kms-key.5.1"]);
}

#[test]
fn waiting_for_one_key_does_not_delay_another() {
    let started = Arc::new(std::sync::Barrier::new(2));
    let release = Arc::new(std::sync::Barrier::new(2));
    let first = AtomicBool::new(true);
    let (in_broker, out_of_broker) = (Arc::clone(&started), Arc::clone(&release));
    let broker = TestBroker::new(move |request| {
        if first.swap(false, Ordering::SeqCst) {
            in_broker.wait();
            out_of_broker.wait();
        }
        honest_answer(request)
    });
    let directory = directory();
    let manager = manager(&broker, directory.path(), dynamic());
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| manager.latest_version(1));
        started.wait();
        assert_eq!(manager.latest_version(2), Ok(1));
        release.wait();
        assert_eq!(slow.join().unwrap(), Ok(1));
    });
}

#[test]
fn a_key_in_memory_is_served_without_a_broker() {
    let (broker, directory) = (honest(), directory());
    let manager = manager(&broker, directory.path(), dynamic());
    manager.latest_version(1).unwrap();
    fs::remove_file(broker.socket()).unwrap();
    assert_eq!(manager.latest_version(1), Ok(1));
    assert_eq!(manager.ensure_loaded(1, 1), Ok(()));
}

#[test]
fn a_key_on_disk_is_loaded_and_not_made() {
    let (broker, directory) = (honest(), directory());
    fs::write(
        directory.path().join("aws-kms-key.9.3.ctr"),
        wrapped(&[3; 16]),
    )
    .unwrap();
    fs::write(directory.path().join("aws-kms-key.9.2"), wrapped(&[2; 16])).unwrap();
    let manager = manager(&broker, directory.path(), dynamic());
    assert_eq!(manager.latest_version(9), Ok(3));
    assert_eq!(manager.keyring.algorithm(9, 3).unwrap(), Algorithm::AesCtr);
    assert!(!manager.keyring.contains(9, 2));
    assert_eq!(manager.ensure_loaded(9, 2), Ok(()));
    assert_eq!(manager.keyring.copy(9, 2).unwrap(), [2; 16]);
    assert_eq!(files(&directory).len(), 2);
}

#[test]
fn if_the_newest_version_cannot_be_decrypted_the_previous_one_is_used() {
    let (broker, directory) = (honest(), directory());
    fs::write(directory.path().join("aws-kms-key.9.3"), "rubbish").unwrap();
    fs::write(directory.path().join("aws-kms-key.9.2"), wrapped(&[2; 16])).unwrap();
    let manager = manager(&broker, directory.path(), dynamic());
    assert_eq!(manager.latest_version(9), Ok(2));
    let missing: Vec<_> = manager
        .unloaded()
        .iter()
        .map(|(name, _)| name.version)
        .collect();
    assert_eq!(missing, [3]);
    fs::write(directory.path().join("aws-kms-key.9.3"), wrapped(&[3; 16])).unwrap();
    assert_eq!(manager.ensure_loaded(9, 3), Ok(()));
    assert_eq!(manager.latest_version(9), Ok(3));
    assert!(manager.unloaded().is_empty());
}

#[test]
fn a_key_of_which_no_version_can_be_decrypted_is_refused_until_a_restart() {
    let (broker, directory) = (honest(), directory());
    fs::write(directory.path().join("aws-kms-key.9.2"), "rubbish").unwrap();
    let settings = settings(&broker, directory.path());
    let manager = manager(&broker, directory.path(), dynamic());
    manager.latest_version(9).unwrap_err();
    fs::write(directory.path().join("aws-kms-key.9.2"), wrapped(&[2; 16])).unwrap();
    for reason in [
        manager.ensure_loaded(9, 2).unwrap_err(),
        manager.latest_version(9).unwrap_err(),
    ] {
        assert!(reason.contains("only after a restart"), "{reason}");
    }
    drop(manager);
    let manager = KeyManager::new(settings, dynamic(), Program::Server).unwrap();
    assert_eq!(manager.latest_version(9), Ok(2));
}

#[test]
fn a_key_in_the_manifest_is_not_made_again() {
    let (broker, directory) = (honest(), directory());
    let first = manager(&broker, directory.path(), dynamic());
    assert_eq!(first.latest_version(9), Ok(1));
    fs::remove_file(directory.path().join("aws-kms-key.9.1")).unwrap();
    drop(first);
    let manager = manager(&broker, directory.path(), dynamic());
    let reason = manager.latest_version(9).unwrap_err();
    for expected in [
        "aws-kms-key.9.1 is missing",
        "aws-kms-keys.list' lists it",
        "do not drop",
    ] {
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!(files(&directory), [""; 0]);
}

#[test]
fn a_key_file_with_another_files_key_is_refused_and_both_are_named() {
    let (broker, directory) = (honest(), directory());
    let first = manager(&broker, directory.path(), dynamic());
    assert_eq!(
        (first.latest_version(3), first.latest_version(4)),
        (Ok(1), Ok(1))
    );
    drop(first);
    let path = |id: u32| directory.path().join(format!("aws-kms-key.{id}.1"));
    fs::rename(path(3), path(9)).unwrap();
    fs::rename(path(4), path(3)).unwrap();
    fs::rename(path(9), path(4)).unwrap();
    let manager = manager(&broker, directory.path(), dynamic());
    let reason = manager.latest_version(3).unwrap_err();
    for expected in [
        "aws-kms-key.3.1' holds the key of aws-kms-key.4.1",
        "put the right file back",
    ] {
        assert!(reason.contains(expected), "{reason}");
    }
    fs::write(path(4), wrapped(&[77; 16])).unwrap();
    let reason = manager.ensure_loaded(4, 1).unwrap_err();
    assert!(
        reason.contains("holds a key that this server has never had"),
        "{reason}"
    );
}

#[test]
fn a_key_is_not_made_if_data_uses_it_or_might_use_it() {
    let (broker, directory) = (honest(), directory());
    let manager = manager(&broker, directory.path(), dynamic());
    let log = directory.path().join("ib_logfile0");
    fs::write(&log, b"\xd0hys").unwrap();
    let reason = manager.latest_version(1).unwrap_err();
    for expected in [
        "ib_logfile0' is encrypted with it",
        "restore aws-kms-key.1.*",
    ] {
        assert!(reason.contains(expected), "{reason}");
    }
    fs::create_dir(directory.path().join("d")).unwrap();
    fs::write(directory.path().join("d/t.ibd"), "no page").unwrap();
    let reason = manager.latest_version(20).unwrap_err();
    assert!(reason.contains("t.ibd"), "{reason}");
    assert_eq!(files(&directory), [""; 0]);
    fs::remove_file(directory.path().join("d/t.ibd")).unwrap();
    assert_eq!(manager.latest_version(20), Ok(1));
}

#[test]
fn a_key_file_that_cannot_be_decrypted_is_not_replaced_by_a_new_key() {
    let (broker, directory) = (honest(), directory());
    fs::write(directory.path().join("aws-kms-key.1.1"), "rubbish").unwrap();
    let manager = manager(&broker, directory.path(), dynamic());
    let reason = manager.latest_version(1).unwrap_err();
    assert!(
        reason.contains("aws-kms-key.1.1") && reason.contains("not a wrapped key"),
        "{reason}"
    );
    assert_eq!(files(&directory), ["aws-kms-key.1.1"]);
}

#[test]
fn the_error_for_an_unknown_version_names_its_possible_files() {
    let (broker, directory) = (honest(), directory());
    let manager = manager(&broker, directory.path(), dynamic());
    let reason = manager.ensure_loaded(1, 7).unwrap_err();
    assert!(
        reason.contains("aws-kms-key.1.7 or aws-kms-key.1.7.ctr"),
        "{reason}"
    );
    fs::write(directory.path().join("aws-kms-key.1.7"), wrapped(&[7; 16])).unwrap();
    assert_eq!(
        manager.ensure_loaded(1, 7),
        Ok(()),
        "found as soon as it is there"
    );
}

#[test]
fn a_ctr_key_of_another_server_does_not_encrypt_here_if_no_version_of_its_own_can_be_made() {
    let directory = directory();
    let shared = [9; 16];
    let key = WrappedKey {
        name: KeyName {
            id: 20,
            version: 1,
            algorithm: Algorithm::AesCtr,
        },
        bits: 128,
        check_value: CheckValue::of(&PlaintextKey::new(&shared).unwrap()),
        master_key_arn: String::new(),
        ciphertext_blob: wrapped(&shared),
    };
    let broker = TestBroker::new(move |request| match request {
        Request::FindKey(_) => Reply::Stored {
            key: Some(key.clone()),
            is_new: false,
            request_id: String::new(),
        },
        Request::MakeKey(_) => failure(FailureKind::AccessDenied, "not allowed"),
        request => match honest_answer(request) {
            Reply::Session(state) => Reply::Session(SessionState {
                key_store: Some("s3://keys".into()),
                ..state
            }),
            other => other,
        },
    });
    let manager = manager(&broker, directory.path(), dynamic());
    for _ in 0..2 {
        let reason = manager.latest_version(20).unwrap_err();
        assert!(reason.contains("not allowed"), "{reason}");
    }
    // What the other server has encrypted can be read.
    assert_eq!(manager.ensure_loaded(20, 1), Ok(()));
}

#[test]
fn a_version_that_a_key_server_does_not_have_is_not_looked_for_in_a_backup_of_key_files() {
    let (broker, directory) = (with_empty_key_server(), directory());
    let manager = manager(&broker, directory.path(), dynamic());
    manager
        .key_store(&manager.limits_at_start(&|_| false))
        .unwrap();
    let reason = manager.ensure_loaded(1, 7).unwrap_err();
    assert!(
        reason.contains("the key server has no version 7 of key 1 for this host"),
        "{reason}"
    );
    assert!(!reason.contains("backup"), "{reason}");
}

#[test]
fn without_a_master_key_no_key_is_made() {
    let (broker, directory, dynamic) = (honest(), directory(), dynamic());
    let manager = manager(&broker, directory.path(), dynamic);
    dynamic.set_master_key_id("");
    let reason = manager.latest_version(1).unwrap_err();
    assert!(
        reason.contains("aws_key_management_master_key_id"),
        "{reason}"
    );
    assert_eq!(broker.request_count(), 0);
    dynamic.set_master_key_id("alias/test");
    assert_eq!(manager.latest_version(1), Ok(1));
}

#[test]
fn mariadb_backup_reads_keys_and_makes_none() {
    let (broker, directory, dynamic) = (honest(), directory(), dynamic());
    dynamic.set_master_key_id("alias/test");
    fs::write(directory.path().join("aws-kms-key.1.1"), wrapped(&[1; 16])).unwrap();
    let settings = settings(&broker, directory.path());
    let manager = KeyManager::new(settings, dynamic, Program::Backup).unwrap();
    assert_eq!(manager.latest_version(1), Ok(1));
    let reason = manager.latest_version(2).unwrap_err();
    assert!(reason.contains("mariadb-backup makes no keys"), "{reason}");
    assert_eq!(files(&directory), ["aws-kms-key.1.1"]);
}

#[test]
fn after_the_session_has_expired_the_brokers_message_is_the_reason_until_a_code_is_entered() {
    let (broker, failing) = failing_broker(FailureKind::SessionOver);
    let directory = directory();
    let manager = manager(&broker, directory.path(), dynamic());
    assert!(
        manager
            .latest_version(1)
            .unwrap_err()
            .contains("the reason")
    );
    failing.store(false, Ordering::SeqCst);
    assert_eq!(manager.latest_version(1), Ok(1), "at once, without a pause");
}

#[test]
fn after_kms_has_refused_a_key_it_is_not_asked_again_at_once() {
    let (broker, _) = failing_broker(FailureKind::AccessDenied);
    let directory = directory();
    let manager = manager(&broker, directory.path(), dynamic());
    let first = manager.latest_version(1).unwrap_err();
    for _ in 0..10 {
        assert!(manager.latest_version(1).unwrap_err().starts_with(&first));
    }
    assert_eq!(broker.request_count(), 1);
    assert!(files(&directory).is_empty());
}

#[test]
fn a_throttled_call_is_retried_and_counted() {
    let count = AtomicUsize::new(0);
    let broker = TestBroker::new(move |request| match request {
        Request::Session => honest_answer(request),
        _ if count.fetch_add(1, Ordering::SeqCst) < 2 => failure(FailureKind::Throttled, "slower"),
        _ => honest_answer(request),
    });
    let directory = directory();
    let manager = manager(&broker, directory.path(), dynamic());
    assert_eq!(manager.latest_version(1), Ok(1));
    let counters = manager.kms_counters();
    assert_eq!(counters.calls(), 4);
    assert_eq!(counters.failures(), 2);
    assert_eq!(counters.retries(), 2);
}

#[test]
fn a_new_key_of_the_wrong_length_is_refused() {
    let broker = TestBroker::new(|request| match request {
        Request::Decrypt(_) => Reply::Decrypted {
            key: PlaintextKey::new(&[1; 32]).unwrap(),
            master_key_arn: String::new(),
            request_id: String::new(),
        },
        other => honest_answer(other),
    });
    let directory = directory();
    let manager = manager(&broker, directory.path(), dynamic());
    assert!(manager.latest_version(1).is_err());
    assert!(files(&directory).is_empty());
}

#[test]
fn a_new_key_that_cannot_be_decrypted_is_not_stored() {
    let broker = TestBroker::new(|request| match request {
        Request::Decrypt(_) => failure(FailureKind::AccessDenied, "no Decrypt"),
        other => honest_answer(other),
    });
    let directory = directory();
    let manager = manager(&broker, directory.path(), dynamic());
    assert!(
        manager
            .latest_version(1)
            .unwrap_err()
            .contains("no Decrypt")
    );
    assert!(files(&directory).is_empty());
}

#[test]
fn reserved_numbers_are_not_key_ids() {
    let (broker, directory) = (honest(), directory());
    let manager = manager(&broker, directory.path(), dynamic());
    for number in [0, u32::MAX] {
        assert!(manager.latest_version(number).is_err());
        assert!(manager.ensure_loaded(number, 1).is_err());
        assert!(manager.ensure_loaded(1, number).is_err());
    }
    assert!(files(&directory).is_empty());
}
