//! A data directory that was copied and goes on beside its origin.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use end_to_end_tests::{Database, NOBODY, Process, Sandbox, Scene, backup, copy, dist};

const CTR: &str = "--aws-key-management-encryption-algorithm=AES_CTR";

fn fork(database: &Database) -> (Option<i32>, String) {
    fork_directory(&database.datadir)
}

fn fork_directory(directory: &Path) -> (Option<i32>, String) {
    let output = Command::new(dist("bin/kms-data-keys"))
        .arg("fork")
        .arg(directory)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// A server with a table under a key of AES_CTR and one of AES_CBC, and a copy of its stopped data directory.
fn original_and_copy(scene: &Scene) -> (Database, Database) {
    let original = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&[
            "--innodb-encrypt-tables=ON",
            "--aws-key-management=FORCE",
            CTR,
        ]);
    let mut process = original.start();
    original.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=3; INSERT INTO d.t VALUES (1)",
    );
    let (code, output) = fork(&original);
    assert_eq!(code, Some(125), "{output}");
    assert!(
        output.contains("a server is running on the data directory"),
        "{output}"
    );
    original.stop(&mut process);
    let datadir = scene.sandbox.path("copy");
    copy(&original.datadir, &datadir);
    let copy = original.on_datadir(&datadir);
    let (code, output) = fork(&copy);
    assert_eq!(code, Some(0), "{output}");
    (original, copy)
}

#[test]
fn a_copy_gets_a_key_of_its_own_before_it_writes_and_both_go_on() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let (original, copy) = original_and_copy(&scene);
    let mut processes = [original.start(), copy.start()];
    assert_eq!(
        original.key_files(),
        ["aws-kms-key.1.1", "aws-kms-key.3.2.ctr"]
    );
    assert_eq!(
        copy.key_files(),
        [
            "aws-kms-key.1.1",
            "aws-kms-key.3.2.ctr",
            "aws-kms-key.3.3.ctr"
        ]
    );
    for (database, process) in [&original, &copy].into_iter().zip(&mut processes) {
        database.sql("INSERT INTO d.t VALUES (2)");
        assert_eq!(database.sql("SELECT SUM(i) FROM d.t"), "3");
        database.stop(process);
    }
    // Once is enough.
    let mut process = copy.start();
    assert_eq!(copy.key_files().len(), 3);
    copy.stop(&mut process);
}

#[test]
fn a_copy_without_a_session_waits_for_a_code() {
    let scene = Scene::new().with_broker();
    let broker = scene.start_broker();
    let (_, copy) = original_and_copy(&scene);
    drop(broker);
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    let mut process = Process::start(&mut copy.command());
    process.wait_for("waiting: ");
    end_to_end_tests::write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    copy.wait_until_ready(&process);
    assert!(copy.key_files().contains(&"aws-kms-key.3.3.ctr".into()));
    copy.stop(&mut process);
}

#[test]
fn a_copy_that_kms_refuses_a_new_key_does_not_go_on_with_that_of_its_origin() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let (_, copy) = original_and_copy(&scene);
    let refused = copy
        .on_datadir(&copy.datadir)
        .options(&["--aws-key-management-master-key-id=alias/missing"]);
    let mut process = refused.start();
    let log = process.output();
    assert!(
        log.contains("key 3 uses AES_CTR and this data directory is a copy"),
        "{log}"
    );
    refused.sql_error("SELECT * FROM d.t");
    refused.sql_error("CREATE TABLE d.new (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=3");
    refused.sql("CREATE TABLE d.healthy (i INT) ENCRYPTED=YES");
    refused.stop(&mut process);
    let mut process = copy.start();
    assert_eq!(copy.sql("SELECT * FROM d.t"), "1");
    copy.stop(&mut process);
}

/// Restores a backup as `name`, writes rows of one letter, and returns the table's file.
fn live(database: &Database, backup: &Path, name: &str, letter: char, is_forked: bool) -> Vec<u8> {
    let datadir = backup.with_file_name(name);
    copy(backup, &datadir);
    let life = database.on_datadir(&datadir);
    if is_forked {
        let (code, output) = fork(&life);
        assert_eq!(code, Some(0), "{output}");
    }
    let mut process = life.start();
    life.sql(&format!(
        "INSERT INTO d.t SELECT REPEAT('{letter}', 3000) FROM d.seq_1_to_40; FLUSH TABLES d.t FOR EXPORT; UNLOCK TABLES"
    ));
    life.stop(&mut process);
    let file = fs::read(datadir.join("d/t.ibd")).unwrap();
    fs::remove_dir_all(datadir).unwrap();
    file
}

/// How many pages of the first file show its text when one knows that of the second: they are encrypted with the same key
/// and IV.
fn pages_that_show_text(one: &[u8], other: &[u8]) -> usize {
    const PAGE_BYTES: usize = 16 << 10;
    let pages = one.chunks(PAGE_BYTES).zip(other.chunks(PAGE_BYTES));
    let shows_text = |(one, other): &(&[u8], &[u8])| {
        let bytes = one.iter().zip(*other);
        bytes
            .filter(|(one, other)| *one ^ *other == b'A' ^ b'B')
            .count()
            > 2000
    };
    pages.filter(shows_text).count()
}

/// Both lives begin at the same place of the redo log, so their pages have the same IVs.
#[test]
fn a_backup_that_is_restored_twice_uses_no_keystream_twice_if_it_is_marked_each_time() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&[
            CTR,
            "--innodb-default-encryption-key-id=3",
            "--innodb-encrypt-tables=ON",
            "--innodb-stats-persistent=OFF",
        ]);
    let mut process = database.start();
    database.sql("CREATE DATABASE d; CREATE TABLE d.t (t TEXT) ENCRYPTED=YES");
    let target = scene.sandbox.path("backup");
    let to_target = format!("--target-dir={}", target.display());
    let socket = format!("--socket={}", database.socket.display());
    backup(&["--backup", &to_target, &socket, "--user=root"]);
    backup(&["--prepare", &to_target]);
    database.stop(&mut process);
    let lives = |is_forked| {
        [("first", 'A'), ("second", 'B')]
            .map(|(name, letter)| live(&database, &target, name, letter, is_forked))
    };
    // What else a server does at its start moves the place in the log now and then.
    let are_alike = (0..5).any(|_| {
        let [first, second] = lives(false);
        pages_that_show_text(&first, &second) > 0
    });
    assert!(are_alike, "the test does not see what it looks for");
    let [first, second] = lives(true);
    assert_eq!(pages_that_show_text(&first, &second), 0);
}

#[test]
fn only_the_data_directory_of_a_server_is_marked() {
    let sandbox = Sandbox::new();
    let directory = sandbox.directory("mistyped");
    let (status, told) = fork_directory(&directory);
    assert_eq!(status, Some(125), "{told}");
    assert!(
        told.contains("is not the data directory of a server"),
        "{told}"
    );
    assert_eq!(directory.read_dir().unwrap().count(), 0);
    let (status, told) = fork_directory(&directory.join("none"));
    assert_eq!(status, Some(125), "{told}");
    assert!(told.contains("No such file or directory"), "{told}");
}

/// The server could not read what somebody else writes for it.
#[test]
fn nobody_but_root_and_the_owner_marks_a_data_directory() {
    let scene = Scene::new();
    let directory = scene.sandbox.directory("data");
    fs::write(directory.join("ibdata1"), "").unwrap();
    let mut fork = Command::new(scene.copy_programs(&["kms-data-keys"]));
    fork.arg("fork").arg(&directory).uid(NOBODY).gid(NOBODY);
    for (mode, reason) in [
        (0o700, "Permission denied"),
        (0o777, "belongs to another user"),
    ] {
        fs::set_permissions(&directory, PermissionsExt::from_mode(mode)).unwrap();
        let output = fork.output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{told}");
        assert!(told.contains(reason), "{told}");
    }
    assert_eq!(directory.read_dir().unwrap().count(), 1);
}
