//! `mariadb-backup` of an encrypted server: beside it through its broker, elsewhere with a code.

use std::{
    fs,
    os::unix::fs::chown,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    process::ExitStatus,
    thread,
};

use end_to_end_tests::{
    Database, ENCRYPT_ALL, NEW_KEY, Process, Scene, Wrapper, backup_command_line, backup_succeeded,
    command, key_files, set_user, try_backup, wait_until,
};
use nix::unistd::User;

const ROOT: u32 = 0;
const MAKE: &str = "GenerateDataKeyWithoutPlaintext";
const TRADE: &str = "GetSessionToken";

/// Rows that are there before the writer's.
const ROWS: u64 = 100;

/// Two tables whose row `n` is always the same; the writer adds one to both at once.
const SCHEMA: &str = "CREATE DATABASE d; USE d;
    CREATE TABLE one (n INT PRIMARY KEY, t TEXT);
    CREATE TABLE two (n INT PRIMARY KEY, t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=7;
    CREATE TABLE quiet (n INT, t TEXT) ENGINE=Aria;
    INSERT INTO quiet SELECT seq, REPEAT('aria ', 20) FROM seq_1_to_500;
    INSERT INTO one SELECT seq, REPEAT('text ', seq % 100) FROM seq_1_to_100;
    INSERT INTO two SELECT * FROM one;
    CREATE TABLE stop (n INT);";
const WRITER: &str = "DELIMITER //
    CREATE PROCEDURE d.write_until_stopped() BEGIN
        DECLARE i INT DEFAULT 100;
        WHILE NOT EXISTS (SELECT * FROM d.stop) DO
            SET i = i + 1;
            START TRANSACTION;
            INSERT INTO d.one VALUES (i, REPEAT('text ', i % 100));
            INSERT INTO d.two VALUES (i, REPEAT('text ', i % 100));
            COMMIT;
        END WHILE;
    END//";

fn database(scene: &Scene) -> Database {
    Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&[
            "--innodb-encryption-threads=2",
            // The writer must not go once round the redo log before a slow mariadb-backup has read it.
            "--innodb-log-file-size=200M",
        ])
}

fn written(database: &Database) -> u64 {
    database.sql("SELECT COUNT(*) FROM d.one").parse().unwrap()
}

/// Runs `work` while a client writes without a pause.
fn under_load<T>(database: &Database, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let writer = scope.spawn(|| database.sql("CALL d.write_until_stopped()"));
        wait_until("the writer", || written(database) > ROWS + 20);
        // The writer must end even if the work has failed.
        let result = catch_unwind(AssertUnwindSafe(work));
        database.sql("INSERT INTO d.stop VALUES (1)");
        writer.join().unwrap();
        result.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Runs mariadb-backup to its good end and returns what it says.
fn backup(user: u32, arguments: &[&str]) -> String {
    let mut line = match user {
        ROOT => Vec::new(),
        user => set_user(user),
    };
    line.extend(backup_command_line(arguments));
    let (status, text) = try_backup(&mut command(&line));
    assert!(backup_succeeded(status, &text), "{text}");
    text
}

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// Backs the running server up, with no key made for it.
fn take(scene: &Scene, user: u32, database: &Database, target: &Path, further: &[&str]) {
    let target = option("target-dir", target);
    let socket = option("socket", &database.socket);
    let mut arguments = vec!["--backup", &target, &socket, "--user=root"];
    arguments.extend(further);
    let made = scene.aws.calls(MAKE);
    backup(user, &arguments);
    assert_eq!(scene.aws.calls(MAKE), made);
}

/// Prepares a backup under the wrapper, as on a host where no server runs.
fn prepare_with_code(scene: &Scene, target: &Path) -> (ExitStatus, String) {
    let line = backup_command_line(&["--prepare", &option("target-dir", target)]);
    let line: Vec<_> = line.iter().map(String::as_str).collect();
    let mut wrapper = scene.start(&line);
    wrapper.give_code(&scene.aws);
    wrapper.process.finish()
}

/// Copies a prepared backup to a new datadir.
fn copy_back(scene: &Scene, user: u32, database: &Database, target: &Path) -> Database {
    let datadir = scene.sandbox.directory("restored");
    chown(&datadir, Some(user), None).unwrap();
    let from = option("target-dir", target);
    backup(user, &["--copy-back", &from, &option("datadir", &datadir)]);
    database.on_datadir(&datadir)
}

/// Ends the server and its broker: what follows is as on another host.
fn leave(scene: &Scene, database: &Database, server: &mut Wrapper) {
    database.stop(&mut server.process);
    wait_until("the broker to leave", || {
        !scene.configuration.broker_socket.exists()
    });
    fs::remove_dir_all(&database.datadir).unwrap();
}

/// The rows are those of one moment between `at_least` and `at_most` transactions.
fn assert_restored(restored: &Database, at_least: u64, at_most: u64) {
    let rows = written(restored);
    assert!(
        (at_least..=at_most).contains(&rows),
        "{at_least} {rows} {at_most}"
    );
    for table in ["one", "two"] {
        assert_eq!(
            restored.sql(&format!(
                "SELECT COUNT(*), MAX(n), MIN(t = REPEAT('text ', n % 100)) FROM d.{table}"
            )),
            format!("{rows}\t{rows}\t1"),
            "{table}"
        );
    }
    assert_eq!(
        restored.sql("SELECT COUNT(*), MIN(t = REPEAT('aria ', 20)) FROM d.quiet"),
        "500\t1"
    );
}

#[test]
fn full_and_incremental_under_load_with_a_rotation_in_between_read_back() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let _server = scene.start_database(&database);
    database.sql(SCHEMA);
    database.sql(WRITER);

    let (full, incremental) = (
        scene.sandbox.path("full"),
        scene.sandbox.path("incremental"),
    );
    let (at_least, at_most) = under_load(&database, || {
        take(&scene, ROOT, &database, &full, &[]);
        // Twice, so that InnoDB re-encrypts pages meanwhile.
        for _ in 0..2 {
            database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
        }
        let before = written(&database);
        let basedir = option("incremental-basedir", &full);
        take(&scene, ROOT, &database, &incremental, &[&basedir]);
        (before, written(&database))
    });
    assert!(at_least < at_most, "nothing was written meanwhile");

    let made = scene.aws.calls(MAKE);
    let increment = option("incremental-dir", &incremental);
    let target = option("target-dir", &full);
    backup(ROOT, &["--prepare", &target]);
    let text = backup(ROOT, &["--prepare", &target, &increment]);
    // The log of the increment may need it, and its file comes to the backup later.
    assert!(text.contains("loaded key 1, version 3"), "{text}");
    let restored = copy_back(&scene, ROOT, &database, &full);
    assert_eq!(restored.key_files(), database.key_files());
    let _second = restored.start();
    assert_restored(&restored, at_least, at_most);
    assert_eq!(scene.aws.calls(MAKE), made);
    assert_eq!(scene.aws.calls(TRADE), 1);
}

#[test]
fn a_server_of_user_mysql_is_backed_up_by_that_user_and_by_root() {
    let scene = Scene::new().with_broker();
    let mysql = User::from_name("mysql").unwrap().unwrap().uid.as_raw();
    let database = database(&scene);
    database.give_to(mysql);
    let _server = scene.start_database(&database);
    database.sql(SCHEMA);

    for user in [mysql, ROOT] {
        let target = scene.sandbox.directory(&format!("backup-{user}"));
        chown(&target, Some(user), None).unwrap();
        take(&scene, user, &database, &target, &[]);
        backup(user, &["--prepare", &option("target-dir", &target)]);
        let restored = copy_back(&scene, user, &database, &target);
        restored.give_to(mysql);
        let mut line = set_user(mysql);
        line.extend(restored.command_line());
        let mut second = Process::start(&mut command(&line));
        restored.wait_until_ready(&second);
        assert_restored(&restored, ROWS, ROWS);
        restored.stop(&mut second);
        fs::remove_dir_all(&restored.datadir).unwrap();
    }
    assert_eq!(scene.aws.calls(TRADE), 1);
}

#[test]
fn on_another_host_a_backup_is_prepared_and_started_with_a_code() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let mut server = scene.start_database(&database);
    database.sql(SCHEMA);
    let full = scene.sandbox.path("full");
    take(&scene, ROOT, &database, &full, &[]);
    leave(&scene, &database, &mut server);

    let made = scene.aws.calls(MAKE);
    let line = backup_command_line(&["--prepare", &option("target-dir", &full)]);
    let (status, error) = try_backup(&mut command(&line));
    assert!(!status.success(), "{error}");
    let socket = scene.configuration.broker_socket.display().to_string();
    assert!(
        error.contains("AWS KMS plugin") && error.contains(&socket),
        "{error}"
    );
    let (status, text) = prepare_with_code(&scene, &full);
    assert!(status.success(), "{text}");
    let restored = copy_back(&scene, ROOT, &database, &full);
    let _second = scene.start_database(&restored);
    assert_restored(&restored, ROWS, ROWS);
    assert_eq!(scene.aws.calls(MAKE), made);
}

#[test]
fn after_the_end_of_the_session_a_backup_gets_the_keys_that_the_server_has() {
    let scene = Scene::with_aws(&["--session-lifetime=600"]).with_broker();
    let database = database(&scene);
    let server = scene.start_database(&database);
    database.sql(SCHEMA);
    scene.aws.end_session();
    database.sql_error(NEW_KEY);
    server.process.wait_for("the AWS session ended");
    let full = scene.sandbox.path("full");
    take(&scene, ROOT, &database, &full, &[]);
    backup(ROOT, &["--prepare", &option("target-dir", &full)]);
    let restored = copy_back(&scene, ROOT, &database, &full);
    let _second = restored.start();
    assert_restored(&restored, ROWS, ROWS);
    assert_eq!(scene.aws.calls(TRADE), 1);
}

#[test]
fn a_backup_whose_messages_go_to_a_full_disk_is_taken_all_the_same() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let _server = scene.start_database(&database);
    database.sql(SCHEMA);
    let full = scene.sandbox.path("full");
    let target = option("target-dir", &full);
    let socket = option("socket", &database.socket);
    let line = backup_command_line(&["--backup", &target, &socket, "--user=root"]);
    let full_disk = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = command(&line).stderr(full_disk).status().unwrap();
    assert!(status.success(), "{status}");
    assert!(key_files(&full).contains(&"aws-kms-key.7.1".into()));
}

/// mariadb-backup copies key files from the datadir only.
#[test]
fn key_files_in_a_directory_of_their_own_are_copied_by_hand() {
    let scene = Scene::new().with_broker();
    let keys = scene.sandbox.directory("keys");
    let keyfile_dir = option("aws-key-management-keyfile-dir", &keys);
    let database = database(&scene).options(&[&keyfile_dir]);
    let mut server = scene.start_database(&database);
    database.sql(SCHEMA);
    let full = scene.sandbox.path("full");
    take(&scene, ROOT, &database, &full, &[]);
    assert_eq!(key_files(&full), [""; 0]);
    let names = key_files(&keys);
    assert_eq!(names.len(), 3, "{names:?}");
    leave(&scene, &database, &mut server);

    // The other host has the directory, and nothing in it.
    let copied = scene.sandbox.path("copied");
    fs::rename(&keys, &copied).unwrap();
    scene.sandbox.directory("keys");
    let made = scene.aws.calls(MAKE);
    let (status, error) = prepare_with_code(&scene, &full);
    assert!(!status.success(), "{error}");
    assert!(error.contains(&keys.display().to_string()), "{error}");
    assert!(
        error.contains("restore the key files from a backup"),
        "{error}"
    );
    assert_eq!(key_files(&keys), [""; 0]);

    fs::remove_dir(&keys).unwrap();
    fs::rename(&copied, &keys).unwrap();
    let (status, text) = prepare_with_code(&scene, &full);
    assert!(status.success(), "{text}");
    let restored = copy_back(&scene, ROOT, &database, &full);
    let _second = scene.start_database(&restored);
    assert_restored(&restored, ROWS, ROWS);
    assert_eq!(key_files(&keys), names);
    assert_eq!(scene.aws.calls(MAKE), made);
}
