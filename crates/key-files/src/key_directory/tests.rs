use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Instant;

use crate::MAX_CIPHERTEXT_BYTES;
use crate::directory::LOCK_PATIENCE;
use nix::errno::Errno;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::*;
use nix::sys::stat::Mode;

fn open() -> (TempDir, KeyDirectory) {
    let directory = tempfile::tempdir().unwrap();
    let keys = KeyDirectory::open(directory.path()).unwrap();
    (directory, keys)
}

fn cbc(id: u32, version: u32) -> KeyName {
    KeyName {
        id,
        version,
        algorithm: Algorithm::AesCbc,
    }
}

fn store(keys: &KeyDirectory, id: u32, placement: VersionPolicy) -> Stored {
    keys.store(id, Algorithm::AesCbc, placement, b"wrapped")
        .unwrap()
}

#[test]
fn a_stored_key_is_read_back_and_nothing_else_is_left() {
    let (directory, keys) = open();
    let name = cbc(3, 1);
    assert_eq!(store(&keys, 3, VersionPolicy::First), Stored::New(name));
    assert_eq!(keys.read(&name).unwrap(), b"wrapped");
    let names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["aws-kms-key.3.1"]);
}

/// So that MariaDB's own plugin, which does not know AES_CTR, refuses the data.
#[test]
fn an_aes_ctr_key_begins_with_version_2() {
    let (_directory, keys) = open();
    let stored = keys.store(3, Algorithm::AesCtr, VersionPolicy::First, b"wrapped");
    let name = KeyName {
        id: 3,
        version: 2,
        algorithm: Algorithm::AesCtr,
    };
    assert_eq!(stored.unwrap(), Stored::New(name));
}

#[test]
fn the_mode_is_0600_whatever_the_umask() {
    let (directory, keys) = open();
    // Zero only takes nothing away, which does not disturb tests at the same time.
    let before = nix::sys::stat::umask(Mode::empty());
    store(&keys, 1, VersionPolicy::First);
    nix::sys::stat::umask(before);
    let metadata = fs::metadata(directory.path().join("aws-kms-key.1.1")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert_eq!(metadata.nlink(), 1);
}

#[test]
fn the_newest_version_of_a_key_is_found_among_those_of_other_keys() {
    let listing = Listing {
        keys: vec![cbc(2, 1), cbc(2, 9), cbc(2, 10), cbc(4, 3)],
        ..Listing::default()
    };
    let newest: Vec<_> = (1..=5).map(|id| listing.newest(id)).collect();
    assert_eq!(newest, [None, Some(10), None, Some(3), None]);
    assert!(listing.has(&cbc(2, 9)));
    assert!(!listing.has(&cbc(2, 2)) && !listing.has(&cbc(3, 1)));
}

#[test]
fn a_key_that_exists_is_not_made_again() {
    let (directory, keys) = open();
    for existing in ["aws-kms-key.1.1", "aws-kms-key.2.7.ctr"] {
        fs::write(directory.path().join(existing), "old").unwrap();
    }
    assert_eq!(store(&keys, 1, VersionPolicy::First), Stored::Exists);
    assert_eq!(store(&keys, 2, VersionPolicy::First), Stored::Exists);
    assert_eq!(keys.read(&cbc(1, 1)).unwrap(), b"old");
}

#[test]
fn a_version_that_is_asked_for_is_made_unless_it_exists_and_belongs_to_the_directory() {
    let (directory, keys) = open();
    let is_root = fs::metadata(directory.path()).unwrap().uid() == 0;
    let owner = is_root.then_some(65534);
    std::os::unix::fs::chown(directory.path(), owner, owner).unwrap();
    for existing in ["aws-kms-key.1.5", "aws-kms-key.1.6.ctr"] {
        fs::write(directory.path().join(existing), "old").unwrap();
    }
    let exactly = |version| store(&keys, 1, VersionPolicy::Exactly { version });
    assert_eq!(exactly(5), Stored::Exists);
    assert_eq!(exactly(6), Stored::Exists);
    assert_eq!(exactly(4), Stored::New(cbc(1, 4)));
    let made = fs::metadata(directory.path().join("aws-kms-key.1.4")).unwrap();
    let of_directory = fs::metadata(directory.path()).unwrap();
    assert_eq!(
        (made.uid(), made.gid()),
        (of_directory.uid(), of_directory.gid())
    );
    assert_eq!(made.permissions().mode() & 0o7777, 0o600);
}

#[test]
fn the_next_version_is_above_memory_and_disk() {
    let (directory, keys) = open();
    fs::write(directory.path().join("aws-kms-key.1.5.ctr"), "old").unwrap();
    let next = |known| store(&keys, 1, VersionPolicy::Next { known });
    assert_eq!(next(2), Stored::New(cbc(1, 6)));
    assert_eq!(next(9), Stored::New(cbc(1, 10)));
    assert_eq!(next(0), Stored::New(cbc(1, 11)));
}

#[test]
fn the_version_numbers_end() {
    let (_directory, keys) = open();
    let last = u32::MAX - 1;
    let placement = VersionPolicy::Next { known: last - 1 };
    assert_eq!(store(&keys, 1, placement), Stored::New(cbc(1, last)));
    let result = keys.store(1, Algorithm::AesCbc, placement, b"wrapped");
    assert!(matches!(result, Err(FileError::NoVersionLeft { version, .. }) if version == last));
}

#[test]
fn threads_that_store_at_once_get_a_version_each() {
    let (directory, keys) = open();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Each opens it for itself, as another process would.
                let keys = KeyDirectory::open(directory.path()).unwrap();
                for _ in 0..5 {
                    store(&keys, 1, VersionPolicy::Next { known: 0 });
                }
            });
        }
    });
    let versions: BTreeSet<_> = keys
        .versions(1)
        .unwrap()
        .iter()
        .map(|key| key.version)
        .collect();
    assert_eq!(versions, (1..=40).collect());
}

#[test]
fn threads_that_want_the_first_version_make_one() {
    let (_directory, keys) = open();
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| store(&keys, 1, VersionPolicy::First)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let new = made
        .iter()
        .filter(|stored| **stored != Stored::Exists)
        .count();
    assert_eq!(new, 1, "{made:?}");
}

#[test]
fn what_a_dead_process_left_is_removed_unless_somebody_is_making_a_key() {
    let (directory, keys) = open();
    let left = directory.path().join(".aws-kms-key.1.1.4711.new");
    let similar = directory.path().join(".aws-kms-key.backup");
    fs::write(&left, "part").unwrap();
    fs::write(&similar, "somebody's").unwrap();

    let turn = keys.0.turn().unwrap();
    assert!(keys.remove_stale_temporaries().unwrap().is_empty());
    assert!(left.exists());
    drop(turn);
    assert_eq!(
        keys.remove_stale_temporaries().unwrap(),
        [".aws-kms-key.1.1.4711.new"]
    );
    assert!(!left.exists());
    assert!(similar.exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let (directory, keys) = open();
    fs::remove_dir(directory.path()).unwrap();
    let error = keys
        .store(1, Algorithm::AesCbc, VersionPolicy::First, b"wrapped")
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(directory.path().to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn listings_are_sorted_and_leave_other_files_alone() {
    let (directory, keys) = open();
    for name in [
        "aws-kms-key.10.1",
        "aws-kms-key.2.10",
        "aws-kms-key.2.9.ctr",
        "aws-kms-key.2.x",
        "aws-kms-key.1.1.bak",
        "ibdata1",
    ] {
        fs::write(directory.path().join(name), "x").unwrap();
    }
    let listing = keys.list().unwrap();
    let names: Vec<_> = listing.keys.iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        [
            "aws-kms-key.2.9.ctr",
            "aws-kms-key.2.10",
            "aws-kms-key.10.1"
        ]
    );
    assert_eq!(
        listing.malformed,
        ["aws-kms-key.1.1.bak", "aws-kms-key.2.x"]
    );
}

#[test]
fn one_version_in_two_algorithms_names_both_files() {
    let (directory, keys) = open();
    for name in ["aws-kms-key.2.9", "aws-kms-key.2.9.ctr"] {
        fs::write(directory.path().join(name), "x").unwrap();
    }
    let listed = keys.list().unwrap().keys;
    for error in [
        keys.find(2, 9).unwrap_err(),
        keys.check_conflict(&listed, &listed[0]).unwrap_err(),
        keys.check_conflict(&listed, &listed[1]).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(
            text.contains("aws-kms-key.2.9'") && text.contains("aws-kms-key.2.9.ctr'"),
            "{text}"
        );
    }
}

#[test]
fn a_version_is_found_in_either_algorithm() {
    let (directory, keys) = open();
    fs::write(directory.path().join("aws-kms-key.1.1"), "x").unwrap();
    fs::write(directory.path().join("aws-kms-key.1.2.ctr"), "x").unwrap();
    assert_eq!(keys.find(1, 1).unwrap(), Some(cbc(1, 1)));
    assert_eq!(
        keys.find(1, 2).unwrap().unwrap().algorithm,
        Algorithm::AesCtr
    );
    assert_eq!(keys.find(1, 3).unwrap(), None);
}

#[test]
fn files_that_are_no_wrapped_keys_are_refused_by_name() {
    let (directory, keys) = open();
    let path = |version| directory.path().join(cbc(1, version).to_string());
    fs::write(path(1), "").unwrap();
    fs::write(path(2), vec![0; MAX_CIPHERTEXT_BYTES + 1]).unwrap();
    fs::create_dir(path(3)).unwrap();
    symlink("/etc/hostname", path(4)).unwrap();
    mkfifo(&path(5), Mode::S_IRWXU).unwrap();
    for (version, problem) in [
        (1, "is empty"),
        (2, "is longer than the 6144 bytes"),
        (3, "is not a regular file"),
        (4, "symbolic link"),
        (5, "is not a regular file"),
        (6, "restore it from a backup"),
    ] {
        let text = keys.read(&cbc(1, version)).unwrap_err().to_string();
        assert!(text.contains(problem), "{text}");
        assert!(text.contains(path(version).to_str().unwrap()), "{text}");
    }
    fs::write(path(7), vec![7; MAX_CIPHERTEXT_BYTES]).unwrap();
    assert_eq!(keys.read(&cbc(1, 7)).unwrap().len(), MAX_CIPHERTEXT_BYTES);
}

#[test]
fn advice_fits_the_failure() {
    let (_directory, keys) = open();
    for (errno, advice) in [
        (Errno::EACCES, "mode 0600"),
        (Errno::ENOSPC, "make room"),
        (Errno::EROFS, "keyfile_dir"),
    ] {
        let text = keys
            .0
            .file_error(file("aws-kms-key.1.1"), "write", errno)
            .to_string();
        assert!(text.contains(advice), "{text}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_named_with_the_variable() {
    let Err(error) = KeyDirectory::open(Path::new("/nonexistent/keys")) else {
        panic!("opened");
    };
    let text = error.to_string();
    assert!(
        text.contains("/nonexistent/keys") && text.contains("keyfile_dir"),
        "{text}"
    );
}

/// Content, mode and owner of a file, and how many files there are.
fn state(directory: &TempDir, name: &KeyName) -> (Vec<u8>, u32, u32, usize) {
    let path = directory.path().join(name.to_string());
    let metadata = fs::metadata(&path).unwrap();
    let files = fs::read_dir(directory.path()).unwrap().count();
    (
        fs::read(path).unwrap(),
        metadata.permissions().mode() & 0o7777,
        metadata.uid(),
        files,
    )
}

#[test]
fn a_replaced_file_has_its_owner_and_mode_and_leaves_nothing_else() {
    let (directory, keys) = open();
    let name = cbc(3, 1);
    store(&keys, 3, VersionPolicy::First);
    let path = keys.path_of(&name);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    // Only root can give files away.
    let uid = match fs::metadata(&path).unwrap().uid() {
        0 => 65_534,
        own => own,
    };
    std::os::unix::fs::chown(&path, Some(uid), None).unwrap();
    keys.replace(&name, b"wrapped", b"wrapped anew").unwrap();
    assert_eq!(
        state(&directory, &name),
        (b"wrapped anew".to_vec(), 0o640, uid, 1)
    );
}

#[test]
fn a_file_that_was_replaced_meanwhile_is_left_alone() {
    let (directory, keys) = open();
    let name = cbc(3, 1);
    store(&keys, 3, VersionPolicy::First);
    let error = keys
        .replace(&name, b"before", b"new")
        .unwrap_err()
        .to_string();
    assert!(error.contains("another program has replaced it"), "{error}");
    assert_eq!(state(&directory, &name).0, b"wrapped");
}

#[test]
fn what_lies_behind_a_symbolic_link_is_not_replaced() {
    let (directory, keys) = open();
    let name = cbc(3, 1);
    let target = directory.path().join("target");
    fs::write(&target, b"wrapped").unwrap();
    symlink(&target, keys.path_of(&name)).unwrap();
    assert!(keys.replace(&name, b"wrapped", b"new").is_err());
    assert_eq!(fs::read(target).unwrap(), b"wrapped");
}

#[test]
fn temporary_names_differ_between_processes_and_are_not_copied_by_backups() {
    let names: BTreeSet<_> = (0..1000)
        .map(|_| crate::directory::temporary_name("aws-kms-key.7.2.ctr"))
        .collect();
    assert_eq!(names.len(), 1000);
    for name in names {
        assert!(!name.starts_with("aws-kms-key"), "{name}");
        assert_eq!(KeyName::parse(name.as_bytes()), ParsedName::Temporary);
    }
}

#[test]
fn a_second_server_is_kept_out_of_the_directory_and_one_that_may_not_write_is_not() {
    let (directory, keys) = open();
    let lock = keys.lock_for_server().unwrap();
    let other = KeyDirectory::open(directory.path()).unwrap();
    let start = Instant::now();
    let refused = other.lock_for_server().unwrap_err().to_string();
    assert!(start.elapsed() >= LOCK_PATIENCE);
    assert!(
        refused.contains("another server uses the key file directory"),
        "{refused}"
    );
    drop(lock);
    drop(other.lock_for_server().unwrap());
    assert!(keys.list().unwrap().malformed.is_empty());
}

/// The next process would not find a new file there.
#[test]
fn nothing_is_put_into_a_directory_to_which_its_path_no_longer_leads() {
    let parent = tempfile::tempdir().unwrap();
    let [path, away] = ["keys", "away"].map(|name| parent.path().join(name));
    fs::create_dir(&path).unwrap();
    let keys = KeyDirectory::open(&path).unwrap();
    assert_eq!(
        store(&keys, 3, VersionPolicy::First),
        Stored::New(cbc(3, 1))
    );
    let assert_refused = || {
        let next = VersionPolicy::Next { known: 0 };
        let error = keys.store(3, Algorithm::AesCbc, next, b"wrapped");
        let error = error.unwrap_err();
        assert!(matches!(error, FileError::Replaced(_)), "{error}");
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        assert_eq!(keys.list().unwrap().keys, [cbc(3, 1)]);
    };
    fs::rename(&path, &away).unwrap();
    assert_refused();
    fs::create_dir(&path).unwrap();
    assert_refused();
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "no directory").unwrap();
    assert_refused();
    // Another path to the same directory is as good.
    fs::remove_file(&path).unwrap();
    symlink(&away, &path).unwrap();
    let next = VersionPolicy::Next { known: 0 };
    assert_eq!(store(&keys, 3, next), Stored::New(cbc(3, 2)));
}
