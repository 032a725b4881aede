//! Keys of a file, with neither broker nor KMS: those of file_key_management and exported ones.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use end_to_end_tests::{Database, Process, Sandbox, key_files};
use nix::sys::signal::SIGKILL;

use crate::{
    server_algorithms::{assert_rows, check_tables, insert, make_tables},
    server_main_job::ENCRYPT_ALL,
};

/// Keys of 16, 32 and 24 bytes. There is no key 2: the server then takes key 1 for temporary files.
const KEYS: &str = "# keys of a test
1;770A8A65DA156D24EE2A093277530142
7;f5502320f8429037b8daef761b189d12f5502320f8429037b8daef761b189d12
8;000102030405060708090a0b0c0d0e0f1011121314151617
";
const OTHER_KEYS: &str = "CREATE TABLE d.seven (t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=7;
    CREATE TABLE d.eight (t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=8;
    INSERT INTO d.seven VALUES ('under a key of 256 bits');
    INSERT INTO d.eight VALUES ('under a key of 192 bits');";
const READ_OTHER_KEYS: &str = "SELECT s.t, e.t FROM d.seven s, d.eight e";
const OTHER_ROWS: &str = "under a key of 256 bits\tunder a key of 192 bits";

/// Encrypts a key file as MariaDB's manual says, with further options of `openssl enc`; returns it
/// and the file of its password.
pub fn encrypt(sandbox: &Sandbox, keys: &str, options: &str) -> (PathBuf, PathBuf) {
    let (plain, password) = (
        sandbox.write("keys.txt", keys),
        sandbox.write("password", "not the code\n"),
    );
    let encrypted = sandbox.path("keys.enc");
    let mut openssl = Command::new("openssl");
    openssl
        .args(["enc", "-aes-256-cbc"])
        .args(options.split(' '));
    openssl
        .arg("-pass")
        .arg(format!("file:{}", password.display()));
    openssl.arg("-in").arg(&plain).arg("-out").arg(&encrypted);
    assert!(openssl.output().unwrap().status.success(), "{options}");
    fs::remove_file(plain).unwrap();
    only_for_owner(&encrypted);
    (encrypted, password)
}

fn only_for_owner(file: &Path) {
    fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}

fn kill(mut server: Process) {
    server.signal(SIGKILL);
    server.wait();
}

/// Starts a server whose plugin refuses to load, and returns what it says.
fn refusal(database: &Database) -> String {
    let mut server = Process::start(&mut database.command());
    let (status, text) = server.finish();
    assert!(!status.success(), "{text}");
    text
}

fn moves_there_and_back(algorithm: &str) {
    let sandbox = Sandbox::new();
    let (keys, password) = encrypt(&sandbox, KEYS, "-md sha1");
    let database = Database::new(&sandbox);
    let theirs = database
        .as_other_server()
        .with_file_key_management(&keys, Some(&password))
        .options(&[&format!(
            "--file-key-management-encryption-algorithm={algorithm}"
        )])
        .options(&ENCRYPT_ALL);
    let ours = database
        .as_other_server()
        .with_offline_keys(&keys, Some(&password))
        .options(&[&format!(
            "--aws-key-management-encryption-algorithm={algorithm}"
        )])
        .options(&ENCRYPT_ALL);

    let server = theirs.start();
    make_tables(&theirs);
    insert(&theirs, 1, 300);
    theirs.sql(OTHER_KEYS);
    // What follows reads the encrypted redo log and binary log.
    kill(server);
    let server = ours.start();
    assert_rows(&ours, 300);
    assert_eq!(ours.sql(READ_OTHER_KEYS), OTHER_ROWS);
    insert(&ours, 301, 600);
    // Sorted in encrypted temporary files.
    let sorted = "SET sort_buffer_size=16384;
        SELECT COUNT(*) FROM (SELECT i, t FROM d.plain ORDER BY t, i LIMIT 1000) s;
        SELECT VARIABLE_VALUE > 0 FROM information_schema.SESSION_STATUS
            WHERE VARIABLE_NAME = 'Sort_merge_passes'";
    assert_eq!(ours.sql(sorted), "600\n1");
    kill(server);
    let mut server = theirs.start();
    assert_rows(&theirs, 600);
    check_tables(&theirs);
    assert_eq!(theirs.sql(READ_OTHER_KEYS), OTHER_ROWS);
    theirs.stop(&mut server);
    assert_eq!(key_files(&database.datadir), [""; 0]);
}

#[test]
fn what_file_key_management_encrypted_with_cbc_is_served_and_served_back() {
    moves_there_and_back("AES_CBC");
}

#[test]
fn what_file_key_management_encrypted_with_ctr_is_served_and_served_back() {
    moves_there_and_back("AES_CTR");
}

#[test]
fn with_offline_keys_none_are_made_and_the_server_says_so() {
    let sandbox = Sandbox::new();
    let keys = sandbox.write("keys", KEYS);
    only_for_owner(&keys);
    let database = Database::new(&sandbox)
        .with_offline_keys(&keys, None)
        .options(&["--aws-key-management-master-key-id=alias/mariadb"])
        .options(&["--aws-key-management-keyfile-dir=/nonexistent"])
        .options(&ENCRYPT_ALL);
    let mut server = database.start();
    let path = keys.display();
    server.wait_for(&format!(
        "serving 3 keys, 3 versions, of '{path}', which is not encrypted"
    ));

    database.sql("CREATE DATABASE d");
    let error = database.sql_error("CREATE TABLE d.new (n INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=9");
    assert!(
        error.contains("key 9 is not in") && error.contains("no keys are made without KMS"),
        "{error}"
    );
    let warnings = database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    for id in [1, 7, 8] {
        let line = format!("key {id} was not rotated: the keys are those of '{path}'");
        assert!(warnings.contains(&line), "{warnings}");
    }
    assert!(warnings.contains("which is only read"), "{warnings}");
    let status = database.sql("SHOW GLOBAL STATUS LIKE 'aws_key_management%'");
    for line in [
        "session_state\toffline keys",
        "session_expiration\t",
        "keys_loaded\t3",
        "key_versions_loaded\t3",
        "kms_calls\t0",
        "kms_failures\t0",
    ] {
        let line = format!("Aws_key_management_{line}");
        assert!(status.lines().any(|found| found == line), "{status}");
    }
    database.stop(&mut server);
    let text = server.output();
    assert!(!text.contains("key 2"), "{text}");
    assert!(!text.contains("every user of this host"), "{text}");
    assert_eq!(key_files(&database.datadir), [""; 0]);
}

#[test]
fn any_way_of_openssl_to_encrypt_opens_without_further_settings() {
    let sandbox = Sandbox::new();
    let database = Database::new(&sandbox);
    for options in ["-md sha512", "-pbkdf2", "-pbkdf2 -md sha512 -iter 11000"] {
        let (keys, password) = encrypt(&sandbox, KEYS, options);
        let database = database
            .as_other_server()
            .with_offline_keys(&keys, Some(&password))
            .options(&["--skip-innodb", "--default-storage-engine=Aria"]);
        let mut server = database.start();
        let loaded = "SHOW GLOBAL STATUS LIKE 'aws_key_management_keys_loaded'";
        assert!(database.sql(loaded).ends_with("\t3"), "{options}");
        database.stop(&mut server);
    }
}

#[test]
fn further_versions_are_comments_to_file_key_management() {
    let exported = format!(
        "{KEYS}#aws-kms-key.1.2;00000000000000000000000000000002
#aws-kms-key.1.3.ctr;00000000000000000000000000000003
9;00000000000000000000000000000009 #aws-kms-key.9.1.ctr
"
    );
    let sandbox = Sandbox::new();
    let keys = sandbox.write("keys", &exported);
    let database = Database::new(&sandbox);
    let theirs = database
        .as_other_server()
        .with_file_key_management(&keys, None)
        .options(&ENCRYPT_ALL);
    let ours = database
        .as_other_server()
        .with_offline_keys(&keys, None)
        .options(&ENCRYPT_ALL);

    let mut server = theirs.start();
    make_tables(&theirs);
    insert(&theirs, 1, 100);
    theirs.sql("CREATE TABLE d.nine (n INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=9");
    theirs.sql("DROP TABLE d.nine");
    theirs.stop(&mut server);

    let mut server = ours.start();
    server.wait_for("serving 4 keys, 6 versions");
    server.wait_for("every user of this host can read");
    assert_rows(&ours, 100);
    ours.sql("CREATE TABLE d.new (n INT)");
    let version = "SELECT CURRENT_KEY_VERSION FROM information_schema.INNODB_TABLESPACES_ENCRYPTION
        WHERE NAME = 'd/new'";
    assert_eq!(ours.sql(version), "3");
    ours.stop(&mut server);
}

#[test]
fn a_file_that_cannot_be_used_is_refused_with_the_reason() {
    let sandbox = Sandbox::new();
    let (encrypted, password) = encrypt(&sandbox, KEYS, "-md sha1");
    let wrong = sandbox.write("wrong", "another password");
    let cut_off = sandbox.path("cut-off");
    let content = fs::read(&encrypted).unwrap();
    fs::write(&cut_off, &content[..content.len() - 1]).unwrap();
    let twice = sandbox.write("twice", &format!("{KEYS}{KEYS}"));
    let garbage = sandbox.write("garbage", "not a key\n");
    let missing = sandbox.path("missing");
    let server = Database::new(&sandbox);
    for (keys, password, expected) in [
        (
            &encrypted,
            None,
            "is encrypted; set aws_key_management_offline_filekey to FILE:",
        ),
        (&encrypted, Some(&wrong), "the password is wrong"),
        (&encrypted, Some(&missing), "cannot read the password file"),
        (&cut_off, Some(&password), "is cut off"),
        (
            &twice,
            None,
            "line 6 has the same key and version as line 2",
        ),
        (&garbage, None, "line 1 is neither a comment nor a key"),
        (&missing, None, "No such file or directory"),
    ] {
        let database = server
            .as_other_server()
            .with_offline_keys(keys, password.map(PathBuf::as_path))
            .options(&["--innodb-encrypt-tables=ON", "--aws-key-management=FORCE"]);
        let text = refusal(&database);
        assert!(text.contains(expected), "{expected}: {text}");
        let path = match expected {
            "cannot read the password file" => &missing,
            _ => keys,
        };
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(!text.contains("770A"), "{text}");
    }
}

#[test]
fn a_password_as_the_value_of_the_variable_is_refused_and_not_repeated() {
    let sandbox = Sandbox::new();
    let (keys, _) = encrypt(&sandbox, KEYS, "-md sha1");
    let database = Database::new(&sandbox)
        .with_offline_keys(&keys, None)
        .options(&["--aws-key-management-offline-filekey=not the code"])
        .options(&["--innodb-encrypt-tables=ON", "--aws-key-management=FORCE"]);
    let text = refusal(&database);
    assert!(
        text.contains("must be FILE: and the path of the file"),
        "{text}"
    );
    assert!(!text.contains("not the code"), "{text}");
}
