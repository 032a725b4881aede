use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::Barrier;

use proptest::prelude::*;

use super::*;

fn key(byte: u8) -> PlaintextKey {
    PlaintextKey::new(&[byte; 16]).unwrap()
}

fn entry(id: u32, version: u32, byte: u8) -> Entry {
    let name = KeyName {
        id,
        version,
        algorithm: Algorithm::AesCbc,
    };
    let mut entry = Entry::new(name, &key(byte), "arn:aws:kms:us-east-1:111122223333:key/1");
    // The text has no fractions of a second.
    entry.recorded = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    entry
}

fn manifest(entries: &[Entry]) -> Manifest {
    let mut manifest = Manifest::default();
    for entry in entries {
        assert_eq!(manifest.add(entry), Ok(true));
    }
    manifest
}

#[test]
fn a_manifest_reads_back_as_it_was_written() {
    let mut longest = entry(u32::MAX - 1, u32::MAX - 1, 3);
    longest.name.algorithm = Algorithm::AesCtr;
    longest.bits = 256;
    longest.master_key_arn = None;
    let mut written = manifest(&[entry(1, 1, 1), entry(1, 2, 2), longest]);
    for (is_forked, page_compressed) in [(false, vec![]), (true, vec![]), (true, vec![3, 7])] {
        written.is_forked = is_forked;
        written.page_compressed = page_compressed.into_iter().collect();
        let text = written.format();
        assert_eq!(
            Manifest::parse(text.as_bytes()),
            Ok(written.clone()),
            "{text}"
        );
    }
    let versions: Vec<_> = written
        .versions(1)
        .map(|entry| entry.name.version)
        .collect();
    assert_eq!(versions, [1, 2]);
    assert_eq!(
        written.find(CheckValue::of(&key(2))).unwrap().name.version,
        2
    );
}

#[test]
fn a_line_is_what_the_documentation_says() {
    let text = manifest(&[entry(1, 1, 1)]).format();
    let line = text.lines().find(|line| line.starts_with("1 ")).unwrap();
    let check = CheckValue::of(&key(1));
    assert_eq!(
        line,
        format!(
            "1 1 AES_CBC 128 {check} arn:aws:kms:us-east-1:111122223333:key/1 2023-11-14T22:13:20Z"
        )
    );
}

#[test]
fn a_manifest_that_was_changed_or_cut_off_is_refused() {
    let text = manifest(&[entry(1, 1, 1), entry(2, 1, 2)]).format();
    for length in 0..text.len() {
        assert!(
            Manifest::parse(&text.as_bytes()[..length]).is_err(),
            "{length}"
        );
    }
    for index in 0..text.len() {
        let mut changed = text.clone().into_bytes();
        changed[index] ^= 1;
        assert!(Manifest::parse(&changed).is_err(), "{index}");
    }
    assert!(Manifest::parse(format!("{text}\n").as_bytes()).is_err());
}

#[test]
fn lines_that_are_no_entries_are_named_by_their_number() {
    let good = format!(
        "1 1 AES_CBC 128 {} - 2023-11-14T22:13:20Z",
        CheckValue::of(&key(1))
    );
    let parse = |line: &str| {
        Manifest::parse(Manifest::with_checksum(&format!("aws-kms-keys 1\n{line}\n")).as_bytes())
    };
    assert!(parse(&good).is_ok());
    for wrong in [
        good.replacen('1', "0", 1),
        good.replace("AES_CBC", "AES_ECB"),
        good.replace("128", "129"),
        good.replace(" - ", " a\u{7f}b "),
        good.replace(" - ", " "),
        good.replace('T', " "),
        format!("{good} more"),
        format!("{good}\n{good}"),
        String::new(),
    ] {
        // The first line is the magic; of two lines that say the same, the second is wrong.
        let number = 1 + wrong.split('\n').count();
        assert_eq!(parse(&wrong), Err(ManifestError::Line(number)), "{wrong}");
    }
    let later = Manifest::with_checksum("aws-kms-keys 2\nanything\n");
    assert_eq!(
        Manifest::parse(later.as_bytes()),
        Err(ManifestError::Format("2".into()))
    );
}

#[test]
fn another_key_under_a_recorded_name_is_refused_and_another_master_key_is_noted() {
    let mut written = manifest(&[entry(1, 1, 1)]);
    let different = written.add(&entry(1, 1, 2)).unwrap_err();
    assert_eq!(different.recorded, CheckValue::of(&key(1)));
    assert_eq!(different.found, CheckValue::of(&key(2)));
    let mut other_algorithm = entry(1, 1, 1);
    other_algorithm.name.algorithm = Algorithm::AesCtr;
    assert!(written.add(&other_algorithm).is_err());

    let mut rewrapped = entry(1, 1, 1);
    assert_eq!(written.add(&rewrapped), Ok(false));
    rewrapped.master_key_arn = Some("arn:other".into());
    assert_eq!(written.add(&rewrapped), Ok(true));
    assert_eq!(
        written.get(1, 1).unwrap().master_key_arn.as_deref(),
        Some("arn:other")
    );
    rewrapped.master_key_arn = None;
    assert_eq!(written.add(&rewrapped), Ok(false));
}

#[test]
fn a_master_key_that_a_line_cannot_hold_is_left_out() {
    let longest = "a".repeat(MAX_ARN_BYTES);
    for (arn, is_kept) in [
        ("arn:aws:kms:us-east-1:111122223333:key/1", true),
        (&longest, true),
        (&format!("{longest}a"), false),
        ("", false),
        ("-", false),
        ("a b", false),
        ("a\nb", false),
    ] {
        let made = Entry::new(entry(1, 1, 1).name, &key(1), arn);
        assert_eq!(made.master_key_arn.is_some(), is_kept, "{arn}");
        assert_eq!(made.bits, 128);
        let text = manifest(&[made]).format();
        assert!(Manifest::parse(text.as_bytes()).is_ok(), "{text}");
    }
}

#[test]
fn a_time_that_has_no_four_digit_year_is_recorded_as_the_nearest_that_has_one() {
    let year = Duration::from_secs(31_557_600);
    for (recorded, text) in [
        (SystemTime::UNIX_EPOCH - year, "1970-01-01T00:00:00Z"),
        (SystemTime::UNIX_EPOCH + 9000 * year, "9999-12-31T23:59:59Z"),
    ] {
        let mut entry = entry(1, 1, 1);
        entry.recorded = recorded;
        let formatted = manifest(&[entry]).format();
        assert!(formatted.contains(text), "{formatted}");
        assert!(Manifest::parse(formatted.as_bytes()).is_ok());
    }
}

#[test]
fn a_key_is_checked_against_what_is_listed_under_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory);
    assert!(file.is_empty());
    file.record(&[entry(1, 1, 1), entry(2, 1, 2)]).unwrap();
    assert!(!file.is_empty());
    assert_eq!(file.versions(2), [entry(2, 1, 2)]);

    let name = entry(1, 1, 1).name;
    assert_eq!(file.check(&name, &key(1)), Ok(()));
    assert_eq!(file.check(&entry(3, 1, 1).name, &key(9)), Ok(()));
    let holds = |name: &KeyName, byte| file.check(name, &key(byte)).unwrap_err().holds;
    assert_eq!(holds(&name, 2), Some(entry(2, 1, 2).name));
    assert_eq!(holds(&name, 9), None);
    // The right key with the other algorithm.
    assert_eq!(holds(&name.other(), 1), Some(name));
}

#[test]
fn a_new_master_key_is_on_disk_when_it_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory);
    let mut rewrapped = entry(1, 1, 1);
    file.record(&[rewrapped.clone()]).unwrap();
    rewrapped.master_key_arn = Some("arn:other".into());
    file.record(&[rewrapped.clone()]).unwrap();
    assert_eq!(open(&directory).entries(), [rewrapped.clone()]);
    // One whose master key is not known takes nothing away.
    let mut unknown = rewrapped.clone();
    unknown.master_key_arn = None;
    file.record(&[unknown]).unwrap();
    assert_eq!(open(&directory).entries(), [rewrapped]);
}

#[test]
fn what_is_recorded_already_is_not_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory);
    file.record(&[entry(1, 1, 1)]).unwrap();
    let inode = || fs::metadata(file.path()).unwrap().ino();
    let before = inode();
    file.record(&[entry(1, 1, 1)]).unwrap();
    file.set_forked(false).unwrap();
    assert_eq!(inode(), before);
}

#[test]
fn an_entry_is_recorded_only_with_the_same_key_and_master_key() {
    let recorded = manifest(&[entry(1, 1, 1)]);
    assert!(recorded.has(&entry(1, 1, 1)));
    assert!(!recorded.has(&entry(1, 1, 2)));
    assert!(!recorded.has(&entry(1, 2, 1)));
    let mut rewrapped = entry(1, 1, 1);
    rewrapped.master_key_arn = Some("arn:other".into());
    assert!(!recorded.has(&rewrapped));
    rewrapped.master_key_arn = None;
    assert!(recorded.has(&rewrapped));
    assert!(!manifest(&[rewrapped]).has(&entry(1, 1, 1)));
}

#[test]
fn what_threads_and_other_programs_record_is_all_there() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (open(&directory), open(&directory));
    let barrier = Barrier::new(16);
    std::thread::scope(|scope| {
        for number in 1..=16 {
            let file = if number % 2 == 0 { &one } else { &other };
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                for version in 1..=10 {
                    file.record(&[entry(number, version, number as u8)])
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(open(&directory).entries().len(), 160);
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 1);
}

#[test]
fn a_key_that_contradicts_what_is_recorded_fails_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (file, other) = (open(&directory), open(&directory));
    other.record(&[entry(1, 1, 1)]).unwrap();
    let error = file.record(&[entry(1, 1, 2)]).unwrap_err().to_string();
    assert!(
        error.contains("records another key under the name aws-kms-key.1.1"),
        "{error}"
    );
    file.record(&[entry(2, 1, 2)]).unwrap();
    assert_eq!(open(&directory).get(1, 1).unwrap(), entry(1, 1, 1));
}

#[test]
fn a_bad_entry_of_one_thread_does_not_cost_the_entries_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory);
    file.record(&[entry(1, 1, 1)]).unwrap();
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for number in 2..=9 {
            let (file, directory, barrier) = (&file, &directory, &barrier);
            scope.spawn(move || {
                // Once only: a thread that fails must not leave the others waiting.
                barrier.wait();
                for version in 1..=20 {
                    if number % 2 == 0 {
                        file.record(&[entry(1, 1, 2)]).unwrap_err();
                    } else {
                        let new = entry(number, version, number as u8);
                        file.record(std::slice::from_ref(&new)).unwrap();
                        assert_eq!(open(directory).get(number, version), Some(new));
                    }
                }
            });
        }
    });
}

#[test]
fn keys_that_are_recorded_together_are_on_disk_together() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory);
    file.record(&[entry(1, 1, 1)]).unwrap();
    file.record(&[entry(2, 1, 2), entry(3, 1, 3)]).unwrap();
    assert_eq!(open(&directory).entries().len(), 3);
}

#[test]
fn an_older_manifest_that_was_put_back_gets_the_missing_keys_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory);
    file.record(&[entry(1, 1, 1)]).unwrap();
    let older = fs::read(file.path()).unwrap();
    file.record(&[entry(2, 1, 2)]).unwrap();
    fs::write(file.path(), older).unwrap();
    file.record(&[entry(1, 1, 1)]).unwrap();
    assert_eq!(open(&directory).entries(), [entry(1, 1, 1), entry(2, 1, 2)]);
}

#[test]
fn a_manifest_that_was_deleted_is_written_again_with_all_its_keys() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory);
    file.record(&[entry(1, 1, 1)]).unwrap();
    fs::remove_file(file.path()).unwrap();
    file.record(&[entry(2, 1, 2)]).unwrap();
    assert_eq!(open(&directory).entries(), [entry(1, 1, 1), entry(2, 1, 2)]);
}

#[test]
fn a_damaged_manifest_is_left_alone_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(MANIFEST_NAME);
    fs::write(&path, "aws-kms-keys 1\n").unwrap();
    let error = ManifestFile::open(directory.path())
        .unwrap_err()
        .to_string();
    for expected in [
        path.to_str().unwrap(),
        "is damaged",
        "move it away if all key files are there",
    ] {
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(fs::read_to_string(path).unwrap(), "aws-kms-keys 1\n");
}

#[test]
fn a_manifest_longer_than_64_mib_is_refused_unread() {
    let directory = tempfile::tempdir().unwrap();
    let file = fs::File::create(directory.path().join(MANIFEST_NAME)).unwrap();
    let problem = |bytes| {
        file.set_len(bytes).unwrap();
        ManifestFile::open(directory.path())
            .unwrap_err()
            .to_string()
    };
    for too_long in [(64 << 20) + 1, 65 << 20] {
        let problem = problem(too_long);
        assert!(
            problem.contains("is longer than 67108864 bytes"),
            "{problem}"
        );
    }
    let longest = problem(64 << 20);
    assert!(longest.contains("does not begin with"), "{longest}");
}

#[test]
fn the_mark_of_a_copy_is_set_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory);
    file.record(&[entry(1, 1, 1)]).unwrap();
    file.set_forked(true).unwrap();
    assert!(open(&directory).is_forked());
    file.record(&[entry(2, 1, 2)]).unwrap();
    assert!(open(&directory).is_forked());
    file.set_forked(false).unwrap();
    assert!(!open(&directory).is_forked());
    assert_eq!(open(&directory).entries().len(), 2);
}

#[test]
fn a_key_of_page_compressed_pages_stays_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory);
    file.record_page_compressed(3).unwrap();
    file.record(&[entry(1, 1, 1)]).unwrap();
    assert!(open(&directory).is_page_compressed(3));
    assert!(!open(&directory).is_page_compressed(1));
    // Also if somebody has removed the file while the server runs.
    fs::remove_file(file.path()).unwrap();
    file.record(&[entry(2, 1, 2)]).unwrap();
    assert!(open(&directory).is_page_compressed(3));
}

#[test]
fn the_file_is_for_the_owner_of_the_directory_alone() {
    let directory = tempfile::tempdir().unwrap();
    let is_root = fs::metadata(directory.path()).unwrap().uid() == 0;
    chown(directory.path(), is_root.then_some(65_534), None).unwrap();
    let file = open(&directory);
    file.record(&[entry(1, 1, 1)]).unwrap();
    let metadata = fs::metadata(file.path()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert_eq!(
        metadata.uid(),
        fs::metadata(directory.path()).unwrap().uid()
    );
}

fn open(directory: &tempfile::TempDir) -> ManifestFile {
    ManifestFile::open(directory.path()).unwrap()
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_no_trouble(
        text in any::<Vec<u8>>(),
        lines in "(aws-kms-keys 1\n)?([ -~]{0,60}\n){0,4}",
    ) {
        let _ = Manifest::parse(&text);
        let _ = Manifest::parse(Manifest::with_checksum(&lines).as_bytes());
    }
}
