//! Keys of a file, with neither broker nor KMS: those of file_key_management and exported ones.

use std::{
    fs::{self},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use end_to_end_tests::{
    Database, ENCRYPT_ALL, Process, Sandbox, copy, key_files,
    offline_keys::{encrypt, encrypt_file, only_for_owner},
    run_client,
    tables::{assert_rows, check_tables, insert, make_tables},
    wait_until,
};
use nix::sys::signal::SIGKILL;

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

const KEY_1: &str = "1;770A8A65DA156D24EE2A093277530142\n";
const OLD: &str = "00000000000000000000000000000001";
const NEW: &str = "f5502320f8429037b8daef761b189d12f5502320f8429037b8daef761b189d12";

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
        "serving keys: 3, versions: 3, from '{path}', which is not encrypted"
    ));

    database.sql("CREATE DATABASE d");
    let error = database.sql_error("CREATE TABLE d.new (n INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=9");
    assert!(
        error.contains("key 9 is not in") && error.contains("no keys are made without KMS"),
        "{error}"
    );
    let warnings = database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    for id in [1, 7, 8] {
        let line = format!("key {id} was not rotated: the keys come from '{path}'");
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

/// How the key of an encrypted file is derived: the server's options are ours with another prefix.
fn derivation(digest: &str, iterations: u32) -> [String; 2] {
    [
        format!("--aws-key-management-offline-digest={digest}"),
        format!("--aws-key-management-offline-use-pbkdf2={iterations}"),
    ]
}

/// A server whose plugin needs no tables: what counts is whether it loads.
fn with_derivation(
    database: &Database,
    keys: &Path,
    password: &Path,
    digest: &str,
    iterations: u32,
) -> Database {
    let options = derivation(digest, iterations);
    database
        .as_other_server()
        .with_offline_keys(keys, Some(password))
        .options(&options.each_ref().map(String::as_str))
        .options(&["--skip-innodb", "--default-storage-engine=Aria"])
        .options(&["--aws-key-management=FORCE"])
}

const LOADED: &str = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS
    WHERE VARIABLE_NAME = 'Aws_key_management_keys_loaded'";

#[test]
fn every_digest_opens_without_pbkdf2_and_with_any_number_of_iterations_as_the_variables_say() {
    let sandbox = Sandbox::new();
    let database = Database::new(&sandbox);
    for (digest, iterations) in [
        ("sha1", 0),
        ("sha224", 0),
        ("sha256", 0),
        ("sha384", 0),
        ("sha512", 0),
        ("sha1", 1),
        ("sha224", 2),
        ("sha256", 600_000),
        ("sha384", 12_345),
        ("sha512", 210_000),
    ] {
        let mut options = format!("-md {digest}");
        if iterations > 0 {
            options += &format!(" -pbkdf2 -iter {iterations}");
        }
        let (keys, password) = encrypt(&sandbox, KEYS, &options);
        let database = with_derivation(&database, &keys, &password, digest, iterations);
        let mut server = database.start();
        assert_eq!(database.sql(LOADED), "3", "{options}");
        let variables = "SELECT @@aws_key_management_offline_digest,
            @@aws_key_management_offline_use_pbkdf2";
        assert_eq!(database.sql(variables), format!("{digest}\t{iterations}"));
        database.stop(&mut server);
    }
}

#[test]
fn the_variables_have_the_defaults_and_the_range_of_the_servers_own_and_are_read_only() {
    let sandbox = Sandbox::new();
    let (keys, password) = encrypt(&sandbox, KEYS, "-md sha1");
    let database = Database::new(&sandbox)
        .with_offline_keys(&keys, Some(&password))
        .options(&["--skip-innodb", "--default-storage-engine=Aria"]);
    let mut server = database.start();
    let properties = "SELECT DEFAULT_VALUE, VARIABLE_TYPE, NUMERIC_MIN_VALUE, NUMERIC_MAX_VALUE,
            ENUM_VALUE_LIST, READ_ONLY FROM information_schema.SYSTEM_VARIABLES
        WHERE VARIABLE_NAME IN ('aws_key_management_offline_digest', 'aws_key_management_offline_use_pbkdf2')
        ORDER BY VARIABLE_NAME";
    assert_eq!(
        database.sql(properties),
        "sha1\tENUM\tNULL\tNULL\tsha1,sha224,sha256,sha384,sha512\tYES\n\
         0\tINT UNSIGNED\t0\t4294967295\tNULL\tYES"
    );
    database.stop(&mut server);
}

#[test]
fn a_wrong_password_digest_or_number_is_reported_at_once_with_the_settings_whatever_the_size() {
    // More than a server may take for a search of 200,000 iterations over a file of one megabyte.
    const LIMIT: Duration = Duration::from_secs(40);
    let sandbox = Sandbox::new();
    let largest = format!("{}{KEYS}", "# filler\n".repeat(116_000));
    let (keys, password) = encrypt(&sandbox, &largest, "-md sha256 -pbkdf2 -iter 10000");
    assert!(fs::metadata(&keys).unwrap().len() > 1_000_000);
    let wrong = sandbox.write("wrong", "another password");
    let several_lines = sandbox.write("several", "not the code\nand another line\n");
    let server = Database::new(&sandbox);
    for (password, digest, iterations, hint) in [
        (&wrong, "sha256", 10_000, false),
        (&password, "sha512", 10_000, false),
        (&password, "sha256", 9_999, false),
        (&password, "sha1", 0, false),
        (&several_lines, "sha256", 10_000, true),
    ] {
        let database = with_derivation(&server, &keys, password, digest, iterations);
        let started = Instant::now();
        let text = refusal(&database);
        assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
        let settings = format!(
            "cannot decrypt '{}' with the password of aws_key_management_offline_filekey, \
             aws_key_management_offline_digest={digest} and \
             aws_key_management_offline_use_pbkdf2={iterations}",
            keys.display()
        );
        assert!(text.contains(&settings), "{text}");
        assert_eq!(text.contains("has several lines"), hint, "{text}");
    }
}

/// Its `kms-data-keys export` printed neither digest nor iterations to set, because it searched.
#[test]
fn a_file_that_version_0_1_0_exported_opens_with_the_settings_that_the_message_names() {
    let sandbox = Sandbox::new();
    let server = Database::new(&sandbox);
    let (keys, password) = encrypt(&sandbox, KEYS, "-md sha256 -pbkdf2 -iter 200000");
    let database = server
        .as_other_server()
        .with_offline_keys(&keys, Some(&password))
        .options(&["--innodb-encrypt-tables=ON", "--aws-key-management=FORCE"]);
    let text = refusal(&database);
    for expected in [
        "a file of kms-data-keys 0.1.0 needs sha256 and 200000",
        "what kms-data-keys export writes needs sha256 and 600000",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let database = with_derivation(&server, &keys, &password, "sha256", 200_000);
    let mut server = database.start();
    assert_eq!(database.sql(LOADED), "3");
    database.stop(&mut server);
}

#[test]
fn comments_in_another_encoding_are_read_as_file_key_management_reads_them() {
    let sandbox = Sandbox::new();
    let plain = sandbox.path("latin-1");
    let comments = b"# cl\xe9s du serveur\n1;770A8A65DA156D24EE2A093277530142 \xa7 1\n";
    fs::write(&plain, comments).unwrap();
    let encrypted = sandbox.path("latin-1.enc");
    let password = sandbox.write("password", "not the code\n");
    encrypt_file(&plain, &encrypted, &password, "-md sha1");
    let database = Database::new(&sandbox);
    for (keys, password) in [(&plain, None), (&encrypted, Some(password.as_path()))] {
        let theirs = database
            .as_other_server()
            .with_file_key_management(keys, password)
            .options(&["--file-key-management=FORCE"]);
        let mut server = theirs.start();
        theirs.stop(&mut server);
        let ours = database
            .as_other_server()
            .with_offline_keys(keys, password)
            .options(&["--aws-key-management=FORCE"]);
        let mut server = ours.start();
        assert_eq!(ours.sql(LOADED), "1");
        ours.stop(&mut server);
    }
}

/// What the message about a repeated key says of `file_key_management`.
#[test]
fn file_key_management_silently_takes_the_later_of_two_keys_with_the_same_id() {
    let (first, later) = (
        "7;00000000000000000000000000000001\n",
        "7;00000000000000000000000000000002\n",
    );
    let sandbox = Sandbox::new();
    let twice = sandbox.write("twice", &format!("{KEY_1}{first}{later}"));
    let only_later = sandbox.write("later", &format!("{KEY_1}{later}"));
    only_for_owner(&only_later);
    let database = Database::new(&sandbox);
    let theirs = database
        .as_other_server()
        .with_file_key_management(&twice, None);
    let mut server = theirs.start();
    theirs.sql(
        "CREATE DATABASE d; CREATE TABLE d.seven (t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=7;
         INSERT INTO d.seven VALUES ('under the later key'); FLUSH TABLES d.seven FOR EXPORT",
    );
    theirs.stop(&mut server);
    let path = twice.display().to_string();
    let output = server.output();
    let mut about_the_file = output.lines().filter(|line| line.contains(&path));
    assert!(
        about_the_file.all(|line| line.contains("[Note]")),
        "{output}"
    );

    let ours = database
        .as_other_server()
        .with_offline_keys(&only_later, None);
    let mut server = ours.start();
    assert_eq!(ours.sql("SELECT t FROM d.seven"), "under the later key");
    ours.stop(&mut server);
    let ours = database
        .as_other_server()
        .with_offline_keys(&twice, None)
        .options(&["--innodb-encrypt-tables=ON", "--aws-key-management=FORCE"]);
    let text = refusal(&ours);
    assert!(
        text.contains("line 3 has the same key and version as line 2: delete the wrong one (file_key_management silently uses the later)"),
        "{text}"
    );
}

/// `FLUSH FILE_KEY_MANAGEMENT_KEYS` is Enterprise's; here the server restarts.
#[test]
fn versions_of_mariadb_enterprises_form_are_served_beside_lines_without_one() {
    let sandbox = Sandbox::new();
    let keys = sandbox.write("keys", &format!("{KEY_1}7;1;{OLD}\n"));
    only_for_owner(&keys);
    let database = Database::new(&sandbox)
        .with_offline_keys(&keys, None)
        .options(&ENCRYPT_ALL)
        .options(&["--innodb-encryption-threads=1"]);
    let mut server = database.start();
    server.wait_for("serving keys: 2, versions: 2");
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.seven (t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=7;
         INSERT INTO d.seven VALUES ('under version 1')",
    );
    database.stop(&mut server);

    fs::write(&keys, format!("{KEY_1}7;1;{OLD}\n7;4;{NEW}\n1;2;{NEW}\n")).unwrap();
    let mut server = database.start();
    server.wait_for("serving keys: 2, versions: 4");
    assert_eq!(database.sql("SELECT t FROM d.seven"), "under version 1");
    wait_until("InnoDB to encrypt the table under version 4", || {
        let version = "SELECT MIN_KEY_VERSION, CURRENT_KEY_VERSION
            FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE NAME = 'd/seven'";
        database.sql(version) == "4\t4"
    });
    database.sql("INSERT INTO d.seven VALUES ('under version 4')");
    database.stop(&mut server);

    fs::write(&keys, format!("1;2;{NEW}\n{KEY_1}7;4;{NEW}\n")).unwrap();
    let mut server = database.start();
    assert_eq!(
        database.sql("SELECT t FROM d.seven ORDER BY t"),
        "under version 1\nunder version 4"
    );
    let checked = database.sql("CHECK TABLE d.seven EXTENDED");
    assert!(checked.ends_with("\tOK"), "{checked}");
    database.stop(&mut server);
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
    server.wait_for("serving keys: 4, versions: 6");
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
        (&encrypted, Some(&wrong), "cannot decrypt"),
        (&encrypted, Some(&missing), "cannot read the password file"),
        (&cut_off, Some(&password), "is truncated"),
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

/// As docs/src/lost-keys.md says of encrypted tablespaces: key ids and versions belong to one server.
#[test]
fn a_tablespace_moves_to_a_server_with_other_keys_decrypted_and_not_encrypted() {
    let sandbox = Sandbox::new();
    let first = Database::new(&sandbox);
    let server_with = |name: &str, key: &str| {
        let keys = sandbox.write(&format!("keys-{name}"), &format!("{KEY_1}7;{key}\n"));
        only_for_owner(&keys);
        let datadir = sandbox.path(name);
        copy(&first.datadir, &datadir);
        first.on_datadir(&datadir).with_offline_keys(&keys, None)
    };
    let (from, to) = (server_with("from", OLD), server_with("to", NEW));
    let encrypted = "CREATE TABLE d.t (n INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=7";
    let mut to_server = to.start();
    to.sql(&format!(
        "CREATE DATABASE d; {encrypted}; ALTER TABLE d.t DISCARD TABLESPACE"
    ));
    // Files of a stopped server are as those that FLUSH TABLES … FOR EXPORT holds still.
    let take_over = |change: &str| {
        let mut from_server = from.start();
        from.sql(change);
        from.stop(&mut from_server);
        copy(&from.datadir.join("d/t.ibd"), &to.datadir.join("d/t.ibd"));
        run_client(&to.socket, "ALTER TABLE d.t IMPORT TABLESPACE")
    };

    let rows = "INSERT INTO d.t SELECT seq FROM d.seq_1_to_1000";
    let imported = take_over(&format!("CREATE DATABASE d; {encrypted}; {rows}"));
    assert!(!imported.status.success(), "{imported:?}");

    to.sql(
        "DROP TABLE d.t; CREATE TABLE d.t (n INT) ENCRYPTED=NO ENCRYPTION_KEY_ID=7;
         ALTER TABLE d.t DISCARD TABLESPACE",
    );
    let imported = take_over("ALTER TABLE d.t ENCRYPTED=NO");
    assert!(imported.status.success(), "{imported:?}");
    to.sql("ALTER TABLE d.t ENCRYPTED=YES");
    assert_eq!(to.sql("SELECT COUNT(*), MAX(n) FROM d.t"), "1000\t1000");
    to.stop(&mut to_server);
}
