use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use broker_api::{FailureKind, Request};
use key_files::key_name::Algorithm;

use super::*;
use crate::test_broker::{dynamic, failure, honest, honest_answer, manager, wrapped};
use broker_api::test_broker::TestBroker;

#[test]
fn all_keys_get_a_new_version_that_is_the_latest() {
    let (broker, directory) = (honest(), tempfile::tempdir().unwrap());
    let manager = manager(&broker, directory.path(), dynamic());
    for id in [1, 2, 20] {
        manager.latest_version(id).unwrap();
    }
    let rotated = rotate(&manager, Target::All).unwrap();
    assert!(rotated.failed.is_empty());
    let made: Vec<_> = rotated.made.iter().map(KeyName::number).collect();
    assert_eq!(made, [(1, 2), (2, 2), (20, 2)]);
    assert_eq!(manager.latest_version(20), Ok(2));
    assert_ne!(manager.keyring.copy(1, 1), manager.keyring.copy(1, 2));
}

#[test]
fn rotating_one_key_uses_the_new_settings_and_leaves_others_alone() {
    let (broker, directory, dynamic) = (honest(), tempfile::tempdir().unwrap(), dynamic());
    let manager = manager(&broker, directory.path(), dynamic);
    manager.latest_version(1).unwrap();
    manager.latest_version(3).unwrap();
    dynamic.set_algorithm(1);
    dynamic.set_key_spec(1);
    assert_eq!(rotate(&manager, Target::Id(3)).unwrap().made.len(), 1);
    assert_eq!(manager.keyring.algorithm(3, 2), Some(Algorithm::AesCtr));
    assert_eq!(manager.keyring.copy(3, 2).unwrap().len(), 32);
    assert_eq!(manager.latest_version(1), Ok(1));
}

#[test]
fn a_key_that_is_only_on_disk_gets_a_version_above_its_files() {
    let (broker, directory) = (honest(), tempfile::tempdir().unwrap());
    fs::write(directory.path().join("aws-kms-key.7.4"), wrapped(&[4; 16])).unwrap();
    let manager = manager(&broker, directory.path(), dynamic());
    let rotated = rotate(&manager, Target::Id(7)).unwrap();
    assert_eq!(rotated.made[0].version, 5);
}

#[test]
fn a_rotation_that_cannot_load_a_key_does_not_keep_the_server_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let is_over = Arc::new(AtomicBool::new(true));
    let over = is_over.clone();
    let broker = TestBroker::new(move |request| match request {
        Request::Decrypt(_) if over.load(Ordering::Relaxed) => {
            failure(FailureKind::SessionOver, "the session is over")
        }
        request => honest_answer(request),
    });
    let manager = manager(&broker, directory.path(), dynamic());
    fs::write(directory.path().join("aws-kms-key.5.1"), wrapped(&[5; 16])).unwrap();
    assert_eq!(rotate(&manager, Target::Id(5)).unwrap().failed.len(), 1);
    is_over.store(false, Ordering::Relaxed);
    assert_eq!(manager.latest_version(5).unwrap(), 1);
}

#[test]
fn rotating_a_key_that_does_not_exist_does_not_make_it() {
    let (broker, directory) = (honest(), tempfile::tempdir().unwrap());
    let manager = manager(&broker, directory.path(), dynamic());
    let rotated = rotate(&manager, Target::Id(7)).unwrap();
    assert_eq!(rotated.failed, [(7, "there is no such key".to_owned())]);
    assert_eq!(broker.request_count(), 0);
}

#[test]
fn each_failure_names_its_key_and_the_others_are_rotated() {
    let refused = AtomicBool::new(true);
    let broker = TestBroker::new(move |request| match &request {
        Request::GenerateDataKey(generate)
            if generate.key_bytes == 32 && refused.swap(false, Ordering::SeqCst) =>
        {
            failure(FailureKind::KeyUnusable, "the master key is disabled")
        }
        _ => honest_answer(request),
    });
    let (directory, dynamic) = (tempfile::tempdir().unwrap(), dynamic());
    let manager = manager(&broker, directory.path(), dynamic);
    for id in 1..=3 {
        manager.latest_version(id).unwrap();
    }
    dynamic.set_key_spec(1);
    let rotated = rotate(&manager, Target::All).unwrap();
    let [(failed, reason)] = &rotated.failed[..] else {
        panic!("{rotated:?}")
    };
    assert!(reason.contains("is disabled"), "{reason}");
    let mut ids: Vec<_> = rotated.made.iter().map(|name| name.id).collect();
    assert_eq!(ids.len(), 2);
    ids.push(*failed);
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(manager.latest_version(*failed), Ok(1));
}

#[test]
fn a_rotation_without_kms_ends_within_a_bounded_time() {
    let broker = TestBroker::new(|request| match request {
        Request::Session => honest_answer(request),
        _ => failure(FailureKind::Unavailable, "connection refused"),
    });
    let directory = tempfile::tempdir().unwrap();
    for id in 1..=100 {
        let path = directory.path().join(format!("aws-kms-key.{id}.1"));
        fs::write(path, wrapped(&[1; 16])).unwrap();
    }
    let manager = manager(&broker, directory.path(), dynamic());
    manager.kms.check_broker().unwrap();
    let start = Instant::now();
    let rotated = rotate(&manager, Target::All).unwrap();
    assert_eq!(rotated.failed.len(), 100);
    assert!(start.elapsed() < LONGEST, "{:?}", start.elapsed());
}

#[test]
fn a_repeated_rotation_begins_with_the_keys_whose_newest_version_is_oldest() {
    let (broker, directory) = (honest(), tempfile::tempdir().unwrap());
    let manager = manager(&broker, directory.path(), dynamic());
    for id in 1..=3 {
        manager.latest_version(id).unwrap();
    }
    let mut entry = manager.manifest.get(1, 1).unwrap();
    entry.name.version = 2;
    entry.recorded += Duration::from_secs(60);
    manager.manifest.record(&[entry]).unwrap();
    let ids = manager.known_ids().unwrap();
    assert_eq!(oldest_first(&manager, ids), [2, 3, 1]);
}
