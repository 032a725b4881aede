//! Data keys: made, rotated, refused, and exchanged with MariaDB's own plugin.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
    thread,
};

use end_to_end_tests::{
    Database, ENCRYPT_ALL, Process, SLEEP, Sandbox, Scene, Wrapper,
    broker::unwrap,
    tables::{assert_rows, check_tables, insert, make_tables},
};
use nix::sys::signal::Signal::{SIGINT, SIGKILL};

fn start(scene: &Scene) -> (Database, Wrapper) {
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&[
            "--innodb-encryption-threads=2",
            "--innodb-encryption-rotate-key-age=0",
        ]);
    let wrapper = scene.start_database(&database);
    (database, wrapper)
}

#[test]
fn a_rotation_makes_a_new_version_and_old_rows_stay_readable() {
    let scene = Scene::new().with_broker();
    let (database, mut wrapper) = start(&scene);
    database.sql(
        "CREATE DATABASE d; USE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=5;
         INSERT INTO d.t SELECT seq FROM seq_1_to_1000",
    );
    let notes = database.sql("SET GLOBAL aws_key_management_rotate_key=5");
    assert!(
        database.key_files().contains(&"aws-kms-key.5.2".into()),
        "{notes}"
    );
    assert!(!database.key_files().contains(&"aws-kms-key.1.2".into()));
    assert_eq!(
        database.sql("SELECT @@global.aws_key_management_rotate_key"),
        "0"
    );
    assert!(
        notes.contains("innodb_encryption_rotate_key_age"),
        "{notes}"
    );

    database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    for file in ["aws-kms-key.1.2", "aws-kms-key.2.2", "aws-kms-key.5.3"] {
        assert!(database.key_files().contains(&file.into()), "{file}");
    }
    let highest = u32::MAX - 1;
    database.sql(&format!(
        "CREATE TABLE d.highest (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={highest};
         SET GLOBAL aws_key_management_rotate_key={highest}"
    ));
    let file = format!("aws-kms-key.{highest}.2");
    assert!(database.key_files().contains(&file));
    let warning = database.sql("SET GLOBAL aws_key_management_rotate_key=77");
    assert!(warning.contains("77"), "{warning}");

    database.sql("USE d; INSERT INTO d.t SELECT seq FROM seq_1001_to_2000");
    database.stop(&mut wrapper.process);
    let mut wrapper = scene.start_database(&database);
    assert_eq!(
        database.sql("SELECT COUNT(*), SUM(i) FROM d.t"),
        "2000\t2001000"
    );
    database.stop(&mut wrapper.process);
}

/// A loss of power must not leave a page without its key, nor a key without its line in the manifest.
#[test]
fn a_new_key_is_on_the_disk_before_anything_is_encrypted_with_it() {
    let scene = Scene::new().with_broker();
    let (database, wrapper) = start(&scene);
    database.sql("CREATE DATABASE d");
    let trace = scene.sandbox.path("trace");
    let mut tracer = Process::start(
        Command::new("strace")
            .args([
                "-f",
                "-y",
                "-z",
                "-e",
                "trace=openat,/rename,fsync,fdatasync",
            ])
            .arg("-o")
            .arg(&trace)
            .args(["-p", &wrapper.process.pid().to_string()]),
    );
    tracer.wait_for("attached");
    database.sql("CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=5");
    tracer.signal(SIGINT);
    tracer.wait();
    let trace = fs::read_to_string(trace).unwrap();
    // A server in another root directory has a longer path.
    let directory = format!("{}>", database.datadir.display());
    let mut lines = trace.lines();
    for (call, of) in [
        ("fsync", "/.aws-kms-key.5.1."),
        ("rename", "\"aws-kms-key.5.1\""),
        ("fsync", &directory),
        ("fsync", "/.aws-kms-keys.list."),
        ("rename", "\"aws-kms-keys.list\""),
        ("fsync", &directory),
        ("openat", "d/t.ibd"),
    ] {
        let is_it = |line: &str| line.contains(call) && line.contains(of);
        assert!(lines.any(is_it), "no {call} of {of} in its place:\n{trace}");
    }
}

#[test]
fn every_way_to_make_a_table_makes_its_key() {
    let scene = Scene::new().with_broker();
    let (database, _wrapper) = start(&scene);
    let table = |id: u32| format!("TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}");
    database.sql("CREATE DATABASE d; CREATE TABLE d.unencrypted (i INT) ENCRYPTED=NO");
    for (id, statement) in [
        (10, format!("CREATE {}", table(10))),
        (
            11,
            format!(
                "CREATE OR REPLACE {} PARTITION BY HASH (i) PARTITIONS 2",
                table(11)
            ),
        ),
        (12, format!("CREATE {} SELECT 1", table(12))),
        (13, format!("EXECUTE IMMEDIATE 'CREATE {}'", table(13))),
        (
            14,
            format!("CREATE PROCEDURE d.p() CREATE {}; CALL d.p()", table(14)),
        ),
        (
            15,
            "ALTER TABLE d.unencrypted ENCRYPTED=YES ENCRYPTION_KEY_ID=15".into(),
        ),
        (
            16,
            "SET innodb_default_encryption_key_id=16; CREATE SEQUENCE d.s".into(),
        ),
    ] {
        database.sql(&statement);
        let file = format!("aws-kms-key.{id}.1");
        assert!(database.key_files().contains(&file), "{statement}");
    }
}

/// InnoDB renames a tablespace that is elsewhere before it writes the link to it.
#[test]
fn tables_elsewhere_that_others_truncate_stop_no_new_key() {
    let scene = Scene::new().with_broker();
    let (database, mut wrapper) = start(&scene);
    let elsewhere = scene.sandbox.directory("elsewhere");
    database.sql("CREATE DATABASE d");
    thread::scope(|threads| {
        for number in 0..4 {
            let (database, elsewhere) = (&database, elsewhere.display());
            let statements = format!(
                "CREATE TABLE d.t{number} (i INT) ENGINE=InnoDB DATA DIRECTORY='{elsewhere}'; {}",
                format!("TRUNCATE d.t{number}; ALTER TABLE d.t{number} FORCE;").repeat(150)
            );
            threads.spawn(move || database.sql(&statements));
        }
        for key_id in 100..200 {
            database.sql(&format!(
                "CREATE TABLE d.k{key_id} (i INT) ENCRYPTION_KEY_ID={key_id}"
            ));
        }
    });
    database.stop(&mut wrapper.process);
}

#[test]
fn a_key_of_which_the_data_could_not_be_looked_for_comes_once_it_can_be() {
    let scene = Scene::new().with_broker();
    let (database, mut wrapper) = start(&scene);
    let create = "CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=77";
    database.sql("CREATE DATABASE d; SET GLOBAL aws_key_management_master_key_id=''");
    let error = database.sql_error(create);
    assert!(
        error.contains("aws_key_management_master_key_id"),
        "{error}"
    );
    let file = |name: &str| database.datadir.join(name);
    fs::copy(file("aws-kms-key.1.1"), file("aws-kms-key.77.1")).unwrap();
    let link = file("unmounted");
    symlink("/gone", &link).unwrap();
    let error = database.sql_error(create);
    assert!(error.contains("/unmounted' needs"), "{error}");
    fs::remove_file(&link).unwrap();
    database.sql(create);
    database.stop(&mut wrapper.process);
}

#[test]
fn key_files_are_private_and_hold_what_kms_wrapped() {
    let scene = Scene::new().with_broker();
    let (database, _wrapper) = start(&scene);
    let file = database.datadir.join("aws-kms-key.1.1");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(
        unwrap(
            &scene.configuration.broker_socket,
            &fs::read(&file).unwrap()
        )
        .len(),
        16
    );
    assert_eq!(
        scene.aws.calls("GenerateDataKeyWithoutPlaintext"),
        database.key_files().len()
    );
}

#[test]
fn key_spec_decides_the_length_of_new_keys() {
    let scene = Scene::new().with_broker();
    let (database, _wrapper) = start(&scene);
    database.sql(
        "SET GLOBAL aws_key_management_key_spec=AES_256;
         CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=6",
    );
    let wrapped = fs::read(database.datadir.join("aws-kms-key.6.1")).unwrap();
    assert_eq!(
        unwrap(&scene.configuration.broker_socket, &wrapped).len(),
        32
    );
}

#[test]
fn a_key_that_kms_refuses_fails_the_statement_with_the_reason() {
    let scene = Scene::new().with_broker();
    let (database, _wrapper) = start(&scene);
    database.sql("CREATE DATABASE d");
    let create =
        |id: u32| format!("CREATE TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}");

    database.sql("SET GLOBAL aws_key_management_master_key_id='alias/missing'");
    let error = database.sql_error(&create(10));
    assert!(
        error.contains("NotFoundException") && error.contains("master_key_id"),
        "{error}"
    );

    database.sql("SET GLOBAL aws_key_management_master_key_id=''");
    let error = database.sql_error(&create(11));
    assert!(
        error.contains("aws_key_management_master_key_id"),
        "{error}"
    );

    database.sql("SET GLOBAL aws_key_management_master_key_id='alias/mariadb'");
    database.sql(&create(12));
}

/// The datadir of the stock plugin: AES_CBC pages of the server's own code under a key that is
/// wrapped in `aws-kms-key.1.1`.
#[test]
fn a_datadir_written_with_the_servers_own_aes_cbc_opens_unchanged_and_goes_back() {
    opens_unchanged_and_goes_back("AES_CBC", "770a8a65da156d24ee2a093277530142", "1.1");
}

/// MariaDB's own use of AES_CTR for key 1 is not safe, so the new plugin goes on with AES_CBC.
#[test]
fn one_written_with_the_servers_own_aes_ctr_and_256_bits_opens_and_moves_to_aes_cbc() {
    let key = "770a8a65da156d24ee2a093277530142770a8a65da156d24ee2a093277530143";
    let scene = Scene::new().with_broker();
    let (_, ours, mut wrapper) = opens_unchanged(&scene, "AES_CTR", key, "1.1.ctr");
    let log = wrapper.process.output();
    assert!(
        log.contains("key 1 now has version 2, which uses AES_CBC")
            && log.contains(
                "keeps using version 1 until the server starts with another innodb_log_file_size"
            ),
        "{log}"
    );
    ours.stop(&mut wrapper.process);
    // Key 2 is the newer server's, from the start on.
    let files = ours.key_files();
    assert_eq!(files[..2], ["aws-kms-key.1.1.ctr", "aws-kms-key.1.2"]);
}

#[test]
fn one_written_with_the_servers_own_aes_cbc_and_192_bits_does_too() {
    let key = "770a8a65da156d24ee2a093277530142770a8a65da156d24";
    opens_unchanged_and_goes_back("AES_CBC", key, "1.1");
}

/// A server with `file_key_management` and a server with our plugin take turns at the same datadir,
/// each killed, so that the other has the first's redo log to read.
fn opens_unchanged_and_goes_back(algorithm: &str, key: &str, version: &str) {
    let scene = Scene::new().with_broker();
    let (theirs, _, mut wrapper) = opens_unchanged(&scene, algorithm, key, version);
    wrapper.process.signal(SIGKILL);
    wrapper.process.wait();

    let mut server = theirs.start();
    assert_rows(&theirs, 1000);
    theirs.stop(&mut server);
}

/// A server with our plugin opens what one with `file_key_management` has written until it was killed, and
/// writes more. Returns the database for either, and the server that runs.
fn opens_unchanged(
    scene: &Scene,
    algorithm: &str,
    key: &str,
    version: &str,
) -> (Database, Database, Wrapper) {
    let temporary = "--innodb-encrypt-temporary-tables=ON";
    let theirs = file_key_management(
        &scene.sandbox,
        Database::new(&scene.sandbox),
        algorithm,
        key,
    )
    .options(&[temporary]);
    let mut server = theirs.start();
    make_tables(&theirs);
    insert(&theirs, 1, 500);
    server.signal(SIGKILL);
    server.wait();

    let key_file = theirs.datadir.join(format!("aws-kms-key.{version}"));
    scene.aws.wrap_key(&scene.sandbox, key, &key_file);
    let ours = theirs
        .as_other_server()
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&[temporary]);
    let wrapper = scene.start_database(&ours);
    assert_rows(&ours, 500);
    insert(&ours, 501, 1000);
    sort_with_temporary_files(&ours);
    ours.sql("PURGE BINARY LOGS TO 'binlog.000002'");
    check_tables(&ours);
    (theirs, ours, wrapper)
}

/// Writes temporary files and a temporary table of InnoDB, and checks what is read back.
fn sort_with_temporary_files(database: &Database) {
    let sorted = database.sql(
        "USE d; SET sort_buffer_size=65536;
         CREATE TEMPORARY TABLE d.sorted ENGINE=InnoDB
             SELECT seq, REPEAT('text ', 20) AS t FROM seq_1_to_5000 ORDER BY MD5(seq);
         SELECT COUNT(*), SUM(seq), MIN(t = REPEAT('text ', 20))
             FROM (SELECT * FROM d.sorted ORDER BY MD5(seq) LIMIT 5000) AS again",
    );
    assert_eq!(sorted, "5000\t12502500\t1");
}

/// What a server says that has never heard of AES_CTR versions, as it is with the stock plugin: there
/// too, the server asks for a key version that the plugin does not have.
#[test]
fn a_plugin_without_ctr_versions_is_told_so_and_reads_no_garbage() {
    let scene = Scene::new().with_broker();
    let ours = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--aws-key-management-encryption-algorithm=AES_CTR"]);
    let mut wrapper = scene.start_database(&ours);
    ours.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=3; INSERT INTO d.t VALUES (1)",
    );
    // 10.5 makes no key 1 at start.
    let made = ours.key_files();
    assert_eq!(made.last().map(String::as_str), Some("aws-kms-key.3.2.ctr"));
    ours.stop(&mut wrapper.process);

    let wrapped = fs::read(ours.datadir.join("aws-kms-key.3.2.ctr")).unwrap();
    let _sleeper = scene.start_with_code(&SLEEP);
    let key = unwrap(&scene.configuration.broker_socket, &wrapped);
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let other = file_key_management(&scene.sandbox, ours.as_other_server(), "AES_CBC", &hex);
    let mut server = other.start();
    other.sql_error("SELECT * FROM d.t");
    other.stop(&mut server);
    let log = server.output();
    assert!(log.contains("key_version=2"), "{log}");
}

/// The server's own key management, with this key as number 1 and 3.
fn file_key_management(
    sandbox: &Sandbox,
    database: Database,
    algorithm: &str,
    key: &str,
) -> Database {
    let key_file = sandbox.write("keys.txt", &format!("1;{key}\n3;{key}\n"));
    database.options(&ENCRYPT_ALL).options(&[
        "--plugin-load-add=file_key_management",
        &format!("--file-key-management-filename={}", key_file.display()),
        &format!("--file-key-management-encryption-algorithm={algorithm}"),
    ])
}
