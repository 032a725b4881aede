//! A key whose file is gone, or is another's: no statement gets a new key in its place, the server never ends
//! because of it, and the message names the file.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use end_to_end_tests::{Database, Process, Sandbox, Scene, dist, fence, run_client, wait_until};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

const MANIFEST: &str = "aws-kms-keys.list";
/// Pages reach the disk as soon as they have changed.
const FLUSH: &str =
    "SET GLOBAL innodb_max_dirty_pages_pct_lwm=0; SET GLOBAL innodb_max_dirty_pages_pct=0";

/// A server beside a broker, whose tables are opened by nothing but the statements of the test.
struct Server {
    scene: Scene,
    broker: Process,
    database: Database,
}

impl Server {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(options: &[&str]) -> Self {
        Self::beside(Scene::new().with_broker(), options)
    }

    fn beside(scene: Scene, options: &[&str]) -> Self {
        let broker = scene.start_broker();
        let database = Self::database(&scene, &scene.sandbox, options);
        Self {
            scene,
            broker,
            database,
        }
    }

    fn database(scene: &Scene, sandbox: &Sandbox, options: &[&str]) -> Database {
        Database::new(sandbox)
            .with_our_plugin(&scene.configuration.broker_socket)
            .options(&[
                "--aws-key-management=FORCE",
                "--innodb-encrypt-tables=ON",
                "--innodb-buffer-pool-load-at-startup=OFF",
                "--innodb-fast-shutdown=0",
                "--innodb-stats-persistent=OFF",
            ])
            .options(options)
    }

    fn without_encrypted_tables(mut self) -> Self {
        self.database = self.database.options(&["--innodb-encrypt-tables=OFF"]);
        self
    }

    /// Key 10 is refused until a restart, and writing all pages to the disk does not end the server.
    fn check_refuses_key_10(&self) {
        let database = &self.database;
        database.sql_error("INSERT INTO d.t10 VALUES (1)");
        let error =
            database.sql_error("CREATE TABLE d.new (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10");
        assert!(error.contains("only after a restart"), "{error}");
        database.sql(&format!(
            "{FLUSH}; {}; FLUSH TABLES d.t11 FOR EXPORT; UNLOCK TABLES",
            create(11)
        ));
    }

    /// Another server that uses the same broker.
    fn another(&self, sandbox: &Sandbox) -> Database {
        Self::database(&self.scene, sandbox, &[])
    }

    fn key_file(&self, id: u32, version: u32) -> PathBuf {
        self.database
            .datadir
            .join(format!("aws-kms-key.{id}.{version}"))
    }

    /// Runs statements on a server that is stopped again.
    fn run(&self, statements: &str) {
        let mut process = self.database.start();
        self.database.sql(statements);
        self.database.stop(&mut process);
    }
}

fn create(id: u32) -> String {
    format!(
        "CREATE TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}; INSERT INTO d.t{id} VALUES ({id})"
    )
}

fn contents(files: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
    files.iter().map(|file| fs::read(file).ok()).collect()
}

/// Statements each of which asks for key 10 first of all after a start.
const FIRST_TO_ASK: [&str; 9] = [
    "SELECT * FROM d.t10",
    "INSERT INTO d.t10 VALUES (1)",
    "ALTER TABLE d.t10 ADD COLUMN j INT, ALGORITHM=COPY",
    "ALTER TABLE d.other ENCRYPTED=YES ENCRYPTION_KEY_ID=10",
    "CREATE TABLE d.new SELECT * FROM d.t10",
    "CREATE TABLE d.new (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10",
    "CREATE SEQUENCE d.new ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID=10",
    "SET @n = (SELECT COUNT(*) FROM d.t10)",
    "SET GLOBAL innodb_default_encryption_key_id=10",
];

/// Whoever asks first for key 10, of which the file is gone, is refused with `reasons`.
fn assert_not_made(server: &Server, reasons: &[&str]) {
    let database = &server.database;
    let file = server.key_file(10, 1);
    let away = server.scene.sandbox.path("away");
    fs::rename(&file, &away).unwrap();
    for statement in FIRST_TO_ASK {
        let mut process = Process::start(&mut database.command());
        database.wait_until_ready(&process);
        let error = database.sql_error(statement);
        let (_, first) = error.split_once("ERROR ").unwrap();
        for reason in reasons {
            assert!(
                first.contains(reason),
                "{statement}: no {reason:?} in {error}"
            );
        }
        assert!(
            !first.contains("drop the table and"),
            "{statement}: {error}"
        );
        // Neither does anybody who asks later.
        for later in FIRST_TO_ASK {
            database.sql_error(later);
        }
        let warning = database.sql("SET GLOBAL aws_key_management_rotate_key=10");
        assert!(warning.contains("key 10 was not rotated"), "{warning}");
        assert!(
            !file.exists() && !server.key_file(10, 2).exists(),
            "{statement}"
        );
        database.sql(&format!("{}; DROP TABLE d.t99; {FLUSH}", create(99)));
        database.stop(&mut process);
    }
    fs::rename(&away, &file).unwrap();
    let mut process = database.start();
    assert_eq!(database.sql("SELECT * FROM d.t10"), "10");
    database.sql("ALTER TABLE d.other ENCRYPTED=YES ENCRYPTION_KEY_ID=10");
    database.stop(&mut process);
}

#[test]
fn a_lost_key_is_not_made_again_whoever_asks_first() {
    let server = Server::new();
    server.run(&format!(
        "CREATE DATABASE d; CREATE TABLE d.other (i INT); {}",
        create(10)
    ));
    assert_not_made(
        &server,
        &[
            "aws-kms-key.10.1 is missing",
            MANIFEST,
            "do not drop the table",
        ],
    );
}

#[test]
fn nor_where_the_manifest_is_gone_too() {
    let server = Server::new();
    server.run(&format!(
        "CREATE DATABASE d; CREATE TABLE d.other (i INT); {}",
        create(10)
    ));
    // The test below puts the file back, and the server lists it again.
    let manifest = server.database.datadir.join(MANIFEST);
    let file = server.key_file(10, 1);
    let away = server.scene.sandbox.path("away");
    fs::rename(&file, &away).unwrap();
    for statement in FIRST_TO_ASK {
        fs::remove_file(&manifest).unwrap();
        let mut process = server.database.start();
        let error = server.database.sql_error(statement);
        for reason in ["t10.ibd' is encrypted with it", "restore aws-kms-key.10.*"] {
            assert!(error.contains(reason), "{statement}: {error}");
        }
        assert!(!file.exists(), "{statement}");
        server.database.stop(&mut process);
    }
}

/// A database may be a link to another disk, and a table be in a directory of its own (`DATA DIRECTORY`).
#[test]
fn nor_while_the_disk_with_its_table_is_not_mounted() {
    let server = Server::new().without_encrypted_tables();
    let (database, disk) = (&server.database, server.scene.sandbox.directory("disk"));
    let (shop, unmounted) = (disk.join("shop"), disk.with_extension("unmounted"));
    fs::create_dir(&shop).unwrap();
    symlink(&shop, database.datadir.join("shop")).unwrap();
    server.run(&format!(
        "CREATE DATABASE d; CREATE TABLE shop.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10;
         CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=11 DATA DIRECTORY='{}'",
        disk.display()
    ));
    fs::remove_file(database.datadir.join(MANIFEST)).unwrap();
    for id in [10, 11] {
        fs::remove_file(server.key_file(id, 1)).unwrap();
    }
    fs::rename(&disk, &unmounted).unwrap();
    let mut process = database.start();
    for id in [10, 11, 12] {
        let error = database.sql_error(&create(id));
        assert!(error.contains("No such file or directory"), "{error}");
        assert!(!server.key_file(id, 1).exists(), "{error}");
    }
    fs::rename(&unmounted, &disk).unwrap();
    database.sql(&create(12));
    for id in [10, 11] {
        let error = database.sql_error(&create(id));
        assert!(error.contains("t.ibd' is encrypted with it"), "{error}");
    }
    database.stop(&mut process);
}

#[test]
fn the_servers_own_key_is_not_made_again_at_start_with_or_without_a_manifest() {
    let server = Server::with(&["--innodb-encrypt-log=OFF"]);
    server.run(&format!(
        "CREATE DATABASE d; {}; CREATE TABLE d.t (i INT)",
        create(3)
    ));
    let (datadir, key) = (&server.database.datadir, server.key_file(1, 1));
    let away = server.scene.sandbox.path("away");
    fs::rename(&key, &away).unwrap();
    for expected in ["aws-kms-key.1.1 is missing", "' is encrypted with it"] {
        let mut process = Process::start(&mut server.database.command());
        // Whether InnoDB starts without it depends on what it has to read.
        let mut has_ended = false;
        wait_until("the server to start or to end", || {
            has_ended = process.has_ended();
            has_ended || process.output().contains("ready for connections")
        });
        if !has_ended {
            run_client(
                &server.database.socket,
                "SELECT * FROM d.t; INSERT INTO d.t VALUES (1)",
            );
            server.database.stop(&mut process);
        }
        let log = process.output();
        assert!(log.contains(expected), "{expected}: {log}");
        assert!(!key.exists() && !server.key_file(1, 2).exists());
        fs::remove_file(datadir.join(MANIFEST)).unwrap();
    }
    fs::rename(&away, &key).unwrap();
    let mut process = server.database.start();
    server.database.sql("SELECT * FROM d.t; SELECT * FROM d.t3");
    server.database.stop(&mut process);
}

#[test]
fn an_empty_keyfile_dir_beside_a_restored_data_directory_keeps_the_server_down() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let keys = scene.sandbox.directory("keys");
    let option = format!("--aws-key-management-keyfile-dir={}", keys.display());
    let database = Server::database(
        &scene,
        &scene.sandbox,
        &["--innodb-encrypt-log=OFF", &option],
    );
    let mut process = database.start();
    database.sql(&format!("CREATE DATABASE d; {}", create(10)));
    database.stop(&mut process);
    let kept = scene.sandbox.path("kept");
    fs::rename(&keys, &kept).unwrap();
    fs::create_dir(&keys).unwrap();
    let mut process = Process::start(&mut database.command());
    let (status, log) = process.finish();
    assert!(!status.success());
    for expected in [
        "there is no key file in '",
        "see that it is mounted, and that aws_key_management_keyfile_dir is right",
        "no data key could be loaded",
    ] {
        assert!(log.contains(expected), "{log}");
    }
    assert!(!log.contains("is missing"), "{log}");
    let made = fs::read_dir(&keys).unwrap();
    let made: Vec<_> = made
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("aws-kms-key."))
        .collect();
    assert_eq!(made, [""; 0]);
    fs::remove_dir_all(&keys).unwrap();
    fs::rename(&kept, &keys).unwrap();
    let mut process = database.start();
    assert_eq!(database.sql("SELECT * FROM d.t10"), "10");
    database.stop(&mut process);
}

#[test]
fn an_imported_tablespace_whose_key_is_elsewhere_gets_no_new_key() {
    let server = Server::new();
    server.run(&format!("CREATE DATABASE d; {}", create(10)));
    let origin = server.database.datadir.join("d");
    let sandbox = Sandbox::new();
    let importer = server.another(&sandbox);
    let mut process = importer.start();
    importer
        .sql("CREATE DATABASE d; CREATE TABLE d.t10 (i INT); ALTER TABLE d.t10 DISCARD TABLESPACE");
    fs::copy(origin.join("t10.ibd"), importer.datadir.join("d/t10.ibd")).unwrap();
    let error = importer.sql_error("ALTER TABLE d.t10 IMPORT TABLESPACE");
    assert!(
        error.contains("t10.ibd' is encrypted with it"),
        "{error}\n{}",
        process.output()
    );
    importer.sql_error("CREATE TABLE d.new (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10");
    assert!(!importer.key_files().contains(&"aws-kms-key.10.1".into()));
    importer.sql(&create(11));
    importer.stop(&mut process);
}

#[test]
fn a_new_key_is_made_for_whoever_names_it_first() {
    let server = Server::new();
    let database = &server.database;
    let mut process = database.start();
    database.sql("CREATE DATABASE d; CREATE TABLE d.other (i INT); CREATE TABLE d.clear (i INT) ENCRYPTED=NO");
    for (id, statement) in [
        (
            20,
            "CREATE SEQUENCE d.s ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID=20",
        ),
        (
            21,
            "CREATE TABLE d.t21 (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=21",
        ),
        (22, "ALTER TABLE d.other ENCRYPTED=YES ENCRYPTION_KEY_ID=22"),
        (23, "SET GLOBAL innodb_default_encryption_key_id=23"),
        (
            24,
            "SET innodb_default_encryption_key_id=24; CREATE SEQUENCE d.s24 ENGINE=InnoDB",
        ),
        (
            25,
            "CREATE TABLE d.t25 ENCRYPTED=YES ENCRYPTION_KEY_ID=25 SELECT 1",
        ),
    ] {
        database.sql(statement);
        assert!(server.key_file(id, 1).exists(), "{statement}");
    }
    database.stop(&mut process);
}

#[test]
fn a_question_that_got_no_answer_does_not_block_a_new_key() {
    let server = Server::new();
    let database = &server.database;
    let mut process = database.start();
    database.sql("CREATE DATABASE d");
    let statements = [
        "CREATE TABLE d.t30 (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=30",
        "CREATE SEQUENCE d.s ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID=30",
        "SET GLOBAL innodb_default_encryption_key_id=30",
    ];
    database.sql("SET GLOBAL aws_key_management_master_key_id=''");
    for statement in statements {
        let error = database.sql_error(statement);
        assert!(error.contains("master_key_id is empty"), "{error}");
    }
    database.sql("SET GLOBAL aws_key_management_master_key_id='alias/mariadb'");
    for statement in statements {
        database.sql(statement);
    }
    database.sql(&format!("INSERT INTO d.t30 VALUES (1); {FLUSH}"));
    database.stop(&mut process);
}

/// InnoDB ends the server if a tablespace whose key was once refused is written all the same.
#[test]
fn a_key_that_comes_back_while_the_server_runs_ends_no_server() {
    let server = Server::new();
    let database = &server.database;
    server.run(&format!("CREATE DATABASE d; {}", create(10)));
    let (file, away) = (server.key_file(10, 1), server.scene.sandbox.path("away"));
    fs::rename(&file, &away).unwrap();
    let mut process = database.start();
    database.sql_error("SELECT * FROM d.t10");
    fs::rename(&away, &file).unwrap();
    database.sql_error("SELECT * FROM d.t10");
    server.check_refuses_key_10();
    database.stop(&mut process);
    let mut process = database.start();
    database.sql("INSERT INTO d.t10 VALUES (11)");
    assert_eq!(database.sql("SELECT SUM(i) FROM d.t10"), "21");
    database.stop(&mut process);
}

/// Nothing is known of the key when InnoDB asks for it, and it comes back before InnoDB reads the table.
#[test]
fn nor_does_one_of_which_nothing_was_known_when_its_table_was_opened() {
    let scene = Scene::new()
        .with_broker()
        .line("request_timeout_seconds = 5");
    let server = Server::beside(scene, &[]);
    let database = &server.database;
    server.run(&format!("CREATE DATABASE d; {}", create(10)));
    let (file, away) = (server.key_file(10, 1), server.scene.sandbox.path("away"));
    fs::rename(&file, &away).unwrap();
    fs::remove_file(database.datadir.join(MANIFEST)).unwrap();
    let mut process = database.start();
    let select = "SELECT * FROM d.t10";
    std::thread::scope(|scope| {
        // It is asked whether there is a key store.
        server.broker.signal(SIGSTOP);
        let first = scope.spawn(|| database.sql_error(select));
        let waits = "SELECT id FROM information_schema.processlist
            WHERE info LIKE 'SELECT * FROM d.%' AND time_ms > 1000";
        wait_until("the statement", || !database.sql(waits).is_empty());
        fs::rename(&away, &file).unwrap();
        process.wait_for("cannot look up keys: ");
        server.broker.signal(SIGCONT);
        first.join().unwrap();
    });
    process.wait_for("only after a restart");
    server.check_refuses_key_10();
    database.stop(&mut process);
    let mut process = database.start();
    assert_eq!(database.sql(select), "10");
    database.stop(&mut process);
}

#[test]
fn a_redo_log_or_binary_logs_elsewhere_keep_the_servers_own_key_from_being_made_again() {
    for (directory_of, options) in [
        (
            "--innodb-log-group-home-dir=",
            &["--innodb-encrypt-log=ON"][..],
        ),
        ("--log-bin=", &["--encrypt-binlog=ON"]),
    ] {
        let scene = Scene::new().with_broker();
        let logs = scene.sandbox.directory("logs");
        let is_redo_log = directory_of.contains("innodb");
        let place = match is_redo_log {
            true => logs.clone(),
            false => logs.join("bin"),
        };
        let place = format!("{directory_of}{}", place.display());
        let server = Server::beside(scene, &[&[place.as_str()], options].concat())
            .without_encrypted_tables();
        let datadir = &server.database.datadir;
        if is_redo_log {
            // A new server whose log is elsewhere: it tells once where.
            fs::rename(datadir.join("ib_logfile0"), logs.join("ib_logfile0")).unwrap();
            let mut process = Process::start(&mut server.database.command());
            let (status, log) = process.finish();
            assert!(!status.success(), "{log}");
            assert!(log.contains("make a symbolic link"), "{log}");
            symlink(logs.join("ib_logfile0"), datadir.join("ib_logfile0")).unwrap();
        }
        let process = server.database.start();
        server
            .database
            .sql("CREATE DATABASE d; CREATE TABLE d.clear (i INT); INSERT INTO d.clear VALUES (1)");
        process.signal(SIGKILL);
        drop(process);
        if is_redo_log {
            fs::remove_file(datadir.join("ib_logfile0")).unwrap();
        }
        let file = server.key_file(1, 1);
        let away = server.scene.sandbox.path("away");
        fs::rename(&file, &away).unwrap();
        fs::remove_file(datadir.join(MANIFEST)).unwrap();
        let mut process = Process::start(&mut server.database.command());
        let (_, log) = process.finish();
        assert!(!file.exists(), "{log}");
        assert!(log.contains("key 1"), "{log}");
        fs::rename(&away, &file).unwrap();
        let mut process = server.database.start();
        assert_eq!(server.database.sql("SELECT * FROM d.clear"), "1");
        server.database.stop(&mut process);
    }
}

/// MariaDB adds an extension to the name of a list, cuts that of a log, and keeps a list for each named connection.
#[test]
fn logs_elsewhere_prove_that_key_1_exists_whatever_their_list_is_called() {
    const CONNECT: &str = "CHANGE MASTER 'Na.me' TO MASTER_HOST='127.0.0.1', MASTER_PORT=1;
        START SLAVE 'Na.me' IO_THREAD; STOP SLAVE 'Na.me'";
    for (options, statements, list) in [
        (&["log-bin=", "bin.x.y"][..], "", "bin.index"),
        (
            &["log-bin=", "bin", "log-bin-index=", "list"],
            "",
            "list.index",
        ),
        (
            &["log-bin=", "bin", "log-bin-index=", "my.list"],
            "",
            "my.list",
        ),
        (
            &["relay-log=", "relay.x.y"],
            CONNECT,
            "relay-na@002eme.index",
        ),
        (
            &["relay-log=", "relay", "relay-log-index=", "list"],
            CONNECT,
            "list-na@002eme.index",
        ),
        (
            &["relay-log=", "relay", "relay-log-index=", "my.list.x"],
            CONNECT,
            "my.list-na@002eme.x",
        ),
        (
            &["relay-log=", "relay", "master-info-file=", "m.info"],
            CONNECT,
            "relay-na@002eme.index",
        ),
    ] {
        let scene = Scene::new().with_broker();
        let logs = scene.sandbox.directory("logs");
        let mut all = vec!["--encrypt-binlog=ON".into(), "--skip-slave-start".into()];
        for option in options.chunks(2) {
            all.push(format!("--{}{}", option[0], logs.join(option[1]).display()));
        }
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let server = Server::beside(scene, &all).without_encrypted_tables();
        server.run(statements);
        assert!(logs.join(list).exists(), "{list}");
        let file = server.key_file(1, 1);
        fs::remove_file(&file).unwrap();
        fs::remove_file(server.database.datadir.join(MANIFEST)).unwrap();
        let (status, log) = Process::start(&mut server.database.command()).finish();
        assert!(!status.success() && !file.exists(), "{list}: {log}");
        assert!(log.contains("key 1"), "{list}: {log}");
    }
}

#[test]
fn relay_logs_of_another_server_whose_names_begin_alike_prove_nothing() {
    let scene = Scene::new().with_broker();
    let logs = scene.sandbox.directory("logs");
    let relay_log = |name: &str| format!("--relay-log={}", logs.join(name).display());
    let [first, second] = ["relay-2", "relay"].map(relay_log);
    let options = |relay_log| ["--encrypt-binlog=ON", "--skip-slave-start", relay_log];
    let first = Server::beside(scene, &options(&*first));
    first.run(
        "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=1;
         START SLAVE IO_THREAD; STOP SLAVE IO_THREAD",
    );
    assert!(logs.join("relay-2.index").exists());
    let sandbox = Sandbox::new();
    let second = Server::database(&first.scene, &sandbox, &options(&second));
    let mut process = second.start();
    assert!(second.datadir.join("aws-kms-key.1.1").exists());
    second.stop(&mut process);
}

#[test]
fn a_damaged_relay_log_is_fetched_again_and_no_connection_loses_its_position() {
    let scene = Scene::new().with_broker();
    let logs = scene.sandbox.directory("logs");
    let relay_log = format!("--relay-log={}", logs.join("relay").display());
    let options = [&*relay_log, "--encrypt-binlog=ON", "--skip-slave-start"];
    let server = Server::beside(scene, &options).without_encrypted_tables();
    let database = &server.database;
    let mut process = database.start();
    database.sql(
        "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=1,
           MASTER_LOG_FILE='m.000005', MASTER_LOG_POS=1234, MASTER_USE_GTID=no;
         CHANGE MASTER 'b' TO MASTER_HOST='127.0.0.1', MASTER_PORT=2,
           MASTER_LOG_FILE='bin.000007', MASTER_LOG_POS=77, MASTER_USE_GTID=no;
         START ALL SLAVES; STOP ALL SLAVES",
    );
    // Connection_name, Master_Log_File and Read_Master_Log_Pos.
    let positions = || -> Vec<[String; 3]> {
        let status = database.sql("SHOW ALL SLAVES STATUS");
        let fields = |row: &str| row.split('\t').map(str::to_owned).collect::<Vec<_>>();
        let rows = status.lines().map(fields);
        rows.map(|row| [0, 7, 8].map(|field| row[field].clone()))
            .collect()
    };
    let before = positions();
    let expected = [["", "m.000005", "1234"], ["b", "bin.000007", "77"]];
    assert_eq!(before, expected);
    let list = fs::read_to_string(logs.join("relay-b.index")).unwrap();
    let log = list.lines().last().unwrap();
    fs::write(log, "damaged").unwrap();
    let rotate = "SET GLOBAL aws_key_management_rotate_key=1";
    let warning = database.sql(rotate);
    assert!(
        warning.contains(log)
            && warning.contains("'A damaged binary or relay log' in the documentation"),
        "{warning}"
    );
    database.sql(&fence("damaged-relay-log").commands);
    assert_eq!(positions(), before);
    let warning = database.sql(rotate);
    assert!(!warning.contains("was not rotated"), "{warning}");
    assert!(server.key_file(1, 2).exists());
    database.stop(&mut process);
}

/// The logs are on another disk than the data directory, of which a state from before a rotation is restored.
#[test]
fn a_version_that_only_a_log_still_needs_is_never_the_number_of_another_key() {
    let scene = Scene::new().with_broker();
    let logs = scene.sandbox.directory("logs");
    let (copy, replaced) = (scene.sandbox.path("copy"), scene.sandbox.path("replaced"));
    let log_bin = format!("--log-bin={}", logs.join("bin").display());
    let log_bin_index = format!("--log-bin-index={}", logs.join("list").display());
    let options = [
        &*log_bin,
        &*log_bin_index,
        "--encrypt-binlog=ON",
        "--binlog-format=STATEMENT",
    ];
    let server = Server::beside(scene, &options).without_encrypted_tables();
    let database = &server.database;
    server.run("CREATE DATABASE d; CREATE TABLE d.t (i INT)");
    let mut copying = Command::new("cp");
    copying.arg("--archive").args([&database.datadir, &copy]);
    assert!(copying.status().unwrap().success());
    server.run(
        "SET GLOBAL aws_key_management_rotate_key=1; FLUSH BINARY LOGS; INSERT INTO d.t VALUES (1)",
    );
    fs::rename(&database.datadir, &replaced).unwrap();
    fs::rename(&copy, &database.datadir).unwrap();

    let mut process = database.start();
    let warning = process.wait_for("needs version 2 of key 1, of which this server knows nothing");
    assert!(
        warning.contains("[Warning]") && warning.contains("/logs/bin.00000"),
        "{warning}"
    );
    assert!(warning.contains("restore aws-kms-key.1.2"), "{warning}");
    database.sql("SET GLOBAL aws_key_management_rotate_key=1");
    assert!(!server.key_file(1, 2).exists() && server.key_file(1, 3).exists());
    // The right file is accepted, and the log can be read.
    fs::copy(replaced.join("aws-kms-key.1.2"), server.key_file(1, 2)).unwrap();
    let lists = fs::read_to_string(logs.join("list.index")).unwrap();
    let events: String = lists
        .lines()
        .map(|log| {
            database.sql(&format!(
                "SHOW BINLOG EVENTS IN '{}'",
                log.rsplit('/').next().unwrap()
            ))
        })
        .collect();
    assert!(events.contains("INSERT INTO d.t VALUES (1)"), "{events}");

    // A log that does not tell may need any version.
    let first = logs.join("bin.000001");
    let intact = fs::read(&first).unwrap();
    fs::write(&first, &intact[..10]).unwrap();
    let warning = database.sql("SET GLOBAL aws_key_management_rotate_key=1");
    assert!(
        warning.contains("key 1 was not rotated: ") && warning.contains("/logs/bin.000001'"),
        "{warning}"
    );
    assert!(!server.key_file(1, 4).exists());
    fs::write(&first, intact).unwrap();
    database.sql("SET GLOBAL aws_key_management_rotate_key=1");
    assert!(server.key_file(1, 4).exists());
    database.stop(&mut process);
    // Everything is known again.
    let mut process = database.start();
    assert!(
        !process.output().contains("knows nothing"),
        "{}",
        process.output()
    );
    database.stop(&mut process);
}

#[test]
fn a_key_whose_newest_version_is_lost_goes_on_with_the_one_before_and_says_so() {
    let server = Server::new();
    let database = &server.database;
    server.run(&format!("CREATE DATABASE d; {}", create(10)));
    server.run(
        "SET GLOBAL aws_key_management_rotate_key=10;
         CREATE TABLE d.newer (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10; INSERT INTO d.newer VALUES (1)",
    );
    let (file, away) = (server.key_file(10, 2), server.scene.sandbox.path("away"));
    fs::rename(&file, &away).unwrap();
    let mut process = database.start();
    let log = process.output();
    assert!(
        log.contains("encrypting new data with version 1 of key 10 although version 2 exists"),
        "{log}"
    );
    let missing = "SELECT variable_value FROM information_schema.global_status
        WHERE variable_name='aws_key_management_key_versions_missing'";
    assert_eq!(database.sql(missing), "10.2");
    let error = database.sql_error("SELECT * FROM d.newer");
    assert!(error.contains("aws-kms-key.10.2 is missing"), "{error}");
    // What is written goes out, under version 1.
    database.sql(&format!(
        "INSERT INTO d.t10 VALUES (1); CREATE TABLE d.more (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10;
         INSERT INTO d.more VALUES (1); {FLUSH}; FLUSH TABLES d.t10, d.more FOR EXPORT; UNLOCK TABLES"
    ));
    let rotated = database.sql("SET GLOBAL aws_key_management_rotate_key=10");
    assert!(rotated.contains("key 10 now has version 3"), "{rotated}");
    database.sql(&format!(
        "INSERT INTO d.t10 VALUES (2); {FLUSH}; FLUSH TABLES d.t10 FOR EXPORT; UNLOCK TABLES"
    ));
    // It is found without a restart, for those who have not asked for it in vain.
    fs::rename(&away, &file).unwrap();
    process.wait_for("loaded key 10, version 2, which was missing before");
    assert_eq!(database.sql(missing), "");
    database.stop(&mut process);
    let mut process = database.start();
    assert_eq!(
        database.sql(
            "SELECT (SELECT SUM(i) FROM d.t10), (SELECT i FROM d.newer), (SELECT i FROM d.more)"
        ),
        "13\t1\t1"
    );
    database.stop(&mut process);
}

/// The key files of ids 3 and 4 exchanged, one of another server, and one that was made again.
#[test]
fn a_wrong_key_file_is_named_by_server_and_tool_and_nobody_advises_to_drop_the_table() {
    let server = Server::new();
    let database = &server.database;
    server.run(&format!(
        "CREATE DATABASE d; {}; {}; {}",
        create(3),
        create(4),
        create(5)
    ));
    let files = [3, 4, 5].map(|id| server.key_file(id, 1));
    let good = contents(&files);
    fs::write(&files[0], good[1].as_ref().unwrap()).unwrap();
    fs::write(&files[1], good[0].as_ref().unwrap()).unwrap();
    server.scene.aws.wrap_key(
        &server.scene.sandbox,
        "770a8a65da156d24ee2a093277530142",
        &files[2],
    );

    let (status, log) = Process::start(&mut database.command()).finish();
    assert!(!status.success(), "{log}");
    let verified = Command::new(dist("bin/kms-data-keys"))
        .arg("verify")
        .arg("--broker-socket")
        .arg(&server.scene.configuration.broker_socket)
        .arg(&database.datadir)
        .output()
        .unwrap();
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    let verified = String::from_utf8(verified.stderr).unwrap();
    for (id, holds) in [
        (3, "holds the key of aws-kms-key.4.1"),
        (4, "holds the key of aws-kms-key.3.1"),
        (5, "holds a key that"),
    ] {
        let expected = format!("aws-kms-key.{id}.1' {holds}");
        for output in [&log, &verified] {
            assert!(output.contains(&expected), "no {expected:?} in {output}");
        }
    }
    assert!(
        log.contains("key files that hold the wrong key: 3"),
        "{log}"
    );

    for (file, content) in files.iter().zip(good) {
        fs::write(file, content.unwrap()).unwrap();
    }
    let mut process = database.start();
    for id in [3, 4, 5] {
        assert_eq!(
            database.sql(&format!("SELECT * FROM d.t{id}")),
            id.to_string()
        );
    }
    database.stop(&mut process);
}

#[test]
fn a_damaged_manifest_keeps_the_server_down_until_it_is_moved_away() {
    let server = Server::new();
    server.run(&format!("CREATE DATABASE d; {}", create(10)));
    let manifest = server.database.datadir.join(MANIFEST);
    let good = fs::read_to_string(&manifest).unwrap();
    let entry = |id: u32| {
        good.lines()
            .any(|line| line.starts_with(&format!("{id} 1 AES_CBC 128 ")))
    };
    assert!(entry(1) && entry(10), "{good}");
    fs::write(&manifest, good.replace("10 1 AES_CBC", "10 2 AES_CBC")).unwrap();
    let (status, log) = Process::start(&mut server.database.command()).finish();
    assert!(!status.success());
    assert!(
        log.contains("its checksum does not match; restore it from a backup, or move it away"),
        "{log}"
    );
    fs::remove_file(&manifest).unwrap();
    let mut process = server.database.start();
    assert_eq!(server.database.sql("SELECT * FROM d.t10"), "10");
    server.database.stop(&mut process);
    assert!(
        fs::read_to_string(&manifest)
            .unwrap()
            .contains("\n10 1 AES_CBC 128 ")
    );
}

#[test]
fn two_servers_do_not_make_keys_in_one_directory() {
    let server = Server::new();
    let keys = server.scene.sandbox.directory("keys");
    let option = format!("--aws-key-management-keyfile-dir={}", keys.display());
    let sandboxes = [Sandbox::new(), Sandbox::new()];
    let [one, other] = sandboxes
        .each_ref()
        .map(|sandbox| Server::database(&server.scene, sandbox, &[&option]));
    let mut process = one.start();
    let (status, log) = Process::start(&mut other.command()).finish();
    assert!(!status.success());
    assert!(
        log.contains("another server uses the key file directory") && log.contains("keyfile_dir"),
        "{log}"
    );
    one.stop(&mut process);
}

#[test]
fn a_relative_keyfile_dir_is_named_in_full_with_a_warning() {
    let server = Server::with(&["--aws-key-management-keyfile-dir=keys"]);
    let keys = server.database.datadir.join("keys");
    let (status, log) = Process::start(&mut server.database.command()).finish();
    assert!(!status.success());
    assert!(
        log.contains(&format!("directory '{}'", keys.display())),
        "{log}"
    );
    fs::create_dir(&keys).unwrap();
    let mut process = server.database.start();
    let log = process.output();
    assert!(
        log.contains("aws_key_management_keyfile_dir = 'keys' is a relative path"),
        "{log}"
    );
    server.database.stop(&mut process);
    assert!(has_key(&keys, "aws-kms-key.1.1"));
    assert!(server.database.datadir.join(MANIFEST).exists());
}

fn has_key(directory: &Path, name: &str) -> bool {
    end_to_end_tests::key_files(directory).contains(&name.into())
}

/// The server looks at its own files for that, which must not cost it InnoDB's locks.
#[test]
fn making_a_key_does_not_unlock_the_servers_files() {
    let server = Server::new();
    let mut process = server.database.start();
    server
        .database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    let output = Command::new(dist("bin/kms-data-keys"))
        .arg("check")
        .arg(&server.database.datadir)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("a server is running on the data directory"),
        "{errors}"
    );
    server.database.stop(&mut process);
}

/// The inodes that a process has locked with fcntl(2). Source: proc_locks(5).
fn locked_inodes(process: &Process) -> BTreeSet<u64> {
    let pid = process.pid().to_string();
    fs::read_to_string("/proc/locks")
        .unwrap()
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[1] == "POSIX" && fields[4] == pid)
        .map(|fields| fields[5].rsplit(':').next().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn encrypting_with_aes_ctr_does_not_unlock_the_servers_files() {
    let server = Server::with(&["--aws-key-management-encryption-algorithm=AES_CTR"]);
    let mut process = server.database.start();
    let locked = locked_inodes(&process);
    let system_tablespace = server.database.datadir.join("ibdata1");
    assert!(locked.contains(&fs::metadata(system_tablespace).unwrap().ino()));
    server.database.sql(&format!(
        "CREATE DATABASE d; {}; FLUSH TABLES d.t10 FOR EXPORT; UNLOCK TABLES",
        create(10)
    ));
    assert!(has_key(&server.database.datadir, "aws-kms-key.10.2.ctr"));
    let after = locked_inodes(&process);
    assert!(after.is_superset(&locked), "{locked:?} {after:?}");
    server.database.stop(&mut process);
}
