//! `kms-data-keys check`: what it says of the files of real servers, and that the servers agree.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use data_files::innodb::{self, SpaceKey};
use end_to_end_tests::{
    Checked, ChildGuard, Database, ENCRYPT_ALL, Process, Sandbox, Scene, Terminal, copy, dist,
    run_client, wait_until, wait_until_with,
};
use nix::{
    sys::{signal::SIGKILL, stat::Mode},
    unistd::mkfifo,
};

/// InnoDB's tables, each with a key of its own.
const INNODB_TABLES: [(&str, u32, &str); 6] = [
    ("plain", 3, ""),
    ("redundant", 4, "ROW_FORMAT=REDUNDANT"),
    ("compressed", 5, "ROW_FORMAT=COMPRESSED"),
    ("pages", 6, "PAGE_COMPRESSED=1"),
    ("parts", 7, "PARTITION BY HASH (i) PARTITIONS 3"),
    ("rotated_once", 8, ""),
];
const ARIA_TABLES: [(&str, &str); 2] = [("aria", ""), ("aria_plain", "TRANSACTIONAL=0")];

fn check(datadir: &Path) -> Checked {
    Checked::of(&[datadir])
}

fn scene() -> Scene {
    Scene::new().with_broker()
}

fn database(scene: &Scene) -> Database {
    Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&["--aws-key-management=FORCE"])
}

/// Makes the server begin with an InnoDB of its own, which takes other options than that of the
/// template.
fn without_innodb(database: &Database) {
    let mysql = database.datadir.join("mysql");
    for file in database.files() {
        let name = file.file_name().unwrap().to_str().unwrap();
        let of_server = ["ibdata", "ib_", "undo"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if of_server {
            fs::remove_file(&file).unwrap();
        } else if name.ends_with(".ibd") {
            assert_eq!(file.parent(), Some(mysql.as_path()));
            fs::remove_file(file.with_extension("frm")).unwrap();
            fs::remove_file(&file).unwrap();
        }
    }
}

fn tables(compressed: bool) -> Vec<&'static str> {
    let innodb = INNODB_TABLES.iter().map(|(name, ..)| *name);
    let all = innodb.chain(ARIA_TABLES.iter().map(|(name, _)| *name));
    all.filter(|name| compressed || *name != "compressed")
        .collect()
}

fn make_tables(database: &Database, compressed: bool) {
    database.sql("CREATE DATABASE d");
    for (name, key_id, options) in INNODB_TABLES {
        if compressed || name != "compressed" {
            database.sql(&format!(
                "CREATE TABLE d.{name} (i INT PRIMARY KEY, t TEXT) ENGINE=InnoDB ENCRYPTION_KEY_ID={key_id} {options}"
            ));
        }
    }
    for (name, options) in ARIA_TABLES {
        database.sql(&format!(
            "CREATE TABLE d.{name} (i INT PRIMARY KEY, t TEXT) ENGINE=Aria {options}"
        ));
    }
    // What a spatial index has in its pages must not be taken for a key version.
    database.sql(
        "CREATE TABLE d.places (g GEOMETRY NOT NULL, SPATIAL INDEX (g)) ENGINE=InnoDB ENCRYPTION_KEY_ID=9;
         INSERT INTO d.places SELECT ST_GeomFromText(CONCAT('POINT(', seq, ' ', seq, ')')) FROM d.seq_1_to_2000;
         CREATE TABLE d.clear (i INT) ENGINE=InnoDB ENCRYPTED=NO; INSERT INTO d.clear VALUES (1)",
    );
}

fn insert(database: &Database, tables: &[&str], from: u32, to: u32) {
    for table in tables {
        database.sql(&format!(
            "INSERT INTO d.{table} SELECT seq, REPEAT('text ', 40) FROM d.seq_{from}_to_{to}"
        ));
    }
}

fn assert_rows(database: &Database, tables: &[&str], count: u32) {
    for table in tables {
        assert_eq!(
            database.sql(&format!(
                "SELECT COUNT(*), SUM(i), MIN(t = REPEAT('text ', 40)) FROM d.{table}"
            )),
            format!("{count}\t{}\t1", count * (count + 1) / 2),
            "{table}"
        );
        let checked = database.sql(&format!("CHECK TABLE d.{table} EXTENDED"));
        assert!(checked.ends_with("\tOK"), "{checked}");
    }
}

/// The lowest key version of each key id that InnoDB says to have, by the tables of `d`.
fn lowest_versions(database: &Database) -> BTreeMap<u32, u32> {
    let rows = database.sql(
        "SELECT CURRENT_KEY_ID, MIN(MIN_KEY_VERSION) FROM information_schema.INNODB_TABLESPACES_ENCRYPTION
         WHERE ENCRYPTION_SCHEME = 1 AND CURRENT_KEY_ID > 1 GROUP BY 1",
    );
    rows.lines()
        .map(|line| {
            let (id, version) = line.split_once('\t').unwrap();
            (id.parse().unwrap(), version.parse().unwrap())
        })
        .collect()
}

fn remove_key(database: &Database, id: u32, version: u32) {
    fs::remove_file(database.datadir.join(format!("aws-kms-key.{id}.{version}"))).unwrap();
}

/// Tables of all kinds through three versions of every key; then the server does without those
/// that are not needed, and misses one that is.
fn needs_of_a_server(innodb_options: &[&str], compressed: bool) {
    let scene = scene();
    let _broker = scene.start_broker();
    let database = database(&scene)
        .re_encrypting()
        .options(&[
            // Its tables are among those that the next line removes.
            "--innodb-stats-persistent=OFF",
        ])
        .options(innodb_options);
    without_innodb(&database);
    let mut server = database.start();
    make_tables(&database, compressed);
    let tables = tables(compressed);
    insert(&database, &tables, 1, 500);
    // On the disk before the rotations: what is written between the first and the second one is one version behind,
    // which InnoDB leaves alone. It moves everything else at the second one.
    let of_innodb = database.sql(
        "SELECT GROUP_CONCAT('d.', TABLE_NAME) FROM information_schema.TABLES
         WHERE TABLE_SCHEMA = 'd' AND ENGINE = 'InnoDB'",
    );
    database.sql(&format!(
        "FLUSH TABLES {of_innodb} FOR EXPORT; UNLOCK TABLES; SET GLOBAL aws_key_management_rotate_key=8"
    ));
    for id in [1, 2, 3, 4, 5, 6, 7, 9] {
        if compressed || id != 5 {
            let notes = database.sql(&format!(
                "SET GLOBAL aws_key_management_rotate_key={id}; SET GLOBAL aws_key_management_rotate_key={id}"
            ));
            assert!(!notes.contains("was not rotated"), "{notes}");
        }
    }
    let so_far = || format!("{:?}\n{}", lowest_versions(&database), server.output());
    wait_until_with("InnoDB to re-encrypt its tables", so_far, || {
        let lowest = lowest_versions(&database);
        lowest
            .iter()
            .all(|(id, version)| *version == if *id == 8 { 1 } else { 3 })
    });
    insert(&database, &tables, 501, 1000);
    let newest = database.sql("FLUSH BINARY LOGS; SHOW MASTER STATUS");
    let newest = newest.split('\t').next().unwrap();
    database.sql(&format!("PURGE BINARY LOGS TO '{newest}'"));
    let lowest = lowest_versions(&database);
    database.stop(&mut server);

    let checked = check(&database.datadir);
    checked.assert_exit_code(0);
    for (id, version) in &lowest {
        let needed = checked.needed(*id);
        assert_eq!(
            needed.first(),
            Some(version),
            "key {id}\n{}",
            checked.output
        );
        let latest = if *id == 8 { 2 } else { 3 };
        assert_eq!(needed.last(), Some(&latest), "key {id}\n{}", checked.output);
    }
    assert_eq!(checked.needed(8), [1, 2], "{}", checked.output);
    let mut removed = 0;
    for ((id, version), told) in &checked.keys {
        let path = database.datadir.join(format!("aws-kms-key.{id}.{version}"));
        let listed = checked.calls_not_needed(&path);
        assert_eq!(listed, told.state == "not needed", "{}", checked.output);
        if listed {
            remove_key(&database, *id, *version);
            removed += 1;
        }
    }
    assert!(removed >= 10, "{}", checked.output);
    checked.assert_tells("Move them to a directory outside the data directory");
    assert!(!checked.output.contains("remove"), "{}", checked.output);

    let mut server = database.start();
    assert_rows(&database, &tables, 1000);
    assert_eq!(
        database.sql("SELECT COUNT(*) FROM d.places WHERE ST_X(g) > 0"),
        "2000"
    );
    assert!(database.read_binary_logs().len() > 1);
    database.stop(&mut server);
    let log = server.output();
    assert!(!log.contains("[ERROR]"), "{log}");

    remove_key(&database, 8, 1);
    let checked = check(&database.datadir);
    checked
        .assert_exit_code(1)
        .assert_tells("Key 8, version 1 is MISSING: restore its file");
    assert_eq!(checked.state(8, 1), "MISSING");
    // Such as a disk that is not mounted: restored files would be below what is mounted later.
    let empty = scene.sandbox.directory("not-mounted");
    let keyfile_dir = format!("--keyfile-dir={}", empty.display());
    let checked = Checked::of(&[Path::new(&keyfile_dir), &database.datadir]);
    let said = format!("There is no key file in '{}', and ", empty.display());
    checked
        .assert_exit_code(1)
        .assert_tells(&said)
        .assert_tells(
            "name the directory of the key files with --keyfile-dir, and see that it is mounted",
        );
    assert!(
        !checked.output.contains("restore its file"),
        "{}",
        checked.output
    );
    let mut server = database.start();
    database.sql_error("SELECT COUNT(*) FROM d.rotated_once");
    assert_eq!(database.sql("SELECT COUNT(*) FROM d.plain"), "1000");
    database.stop(&mut server);
}

#[test]
fn a_server_reads_everything_without_the_keys_that_check_calls_not_needed_and_misses_another() {
    needs_of_a_server(&[], true);
}

#[test]
fn pages_of_4_kib_in_the_older_format_tell_their_keys_and_undo_tablespaces_too() {
    needs_of_a_server(
        &[
            "--innodb-page-size=4k",
            "--innodb-checksum-algorithm=crc32",
            "--innodb-undo-tablespaces=3",
        ],
        true,
    );
}

#[test]
fn pages_of_64_kib_tell_their_keys() {
    needs_of_a_server(&["--innodb-page-size=64k"], false);
}

/// InnoDB leaves the free pages of ibdata1 as they are, and reads them no more.
#[test]
fn pages_that_innodb_has_freed_are_told_apart_from_those_with_rows() {
    let scene = scene();
    let _broker = scene.start_broker();
    let database = database(&scene).re_encrypting().options(&[
        "--innodb-stats-persistent=OFF",
        "--innodb-undo-tablespaces=0",
        "--innodb-max-dirty-pages-pct-lwm=0.001",
        "--innodb-max-dirty-pages-pct=0",
        "--innodb-encrypt-log=OFF",
        "--aria-encrypt-tables=OFF",
        "--encrypt-binlog=OFF",
    ]);
    without_innodb(&database);
    let mut server = database.start();
    // Its undo log is in ibdata1, and stays there until the transaction is purged.
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT PRIMARY KEY, t TEXT) ENGINE=InnoDB; XA START 'x';
         INSERT INTO d.t SELECT seq, 'text' FROM d.seq_1_to_20000; UPDATE d.t SET t = REPEAT('more ', 30);
         XA END 'x'; XA PREPARE 'x'",
    );
    wait_until("the undo log to be on the disk", || {
        let dirty = database.sql("SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'");
        dirty.ends_with("\t0")
    });
    // Such a shutdown purges all.
    database.sql("XA COMMIT 'x'; SET GLOBAL innodb_fast_shutdown=0");
    database.stop(&mut server);
    let mut server = database.start();
    database.sql(
        "SET GLOBAL aws_key_management_rotate_key=1; SET GLOBAL aws_key_management_rotate_key=1",
    );
    wait_until("InnoDB to re-encrypt its tables", || {
        let left = "SELECT COUNT(*) FROM information_schema.INNODB_TABLESPACES_ENCRYPTION
            WHERE ENCRYPTION_SCHEME = 1 AND MIN_KEY_VERSION < 2";
        database.sql(left) == "0"
    });
    database.stop(&mut server);

    let checked = check(&database.datadir);
    checked.assert_exit_code(0);
    assert_eq!(checked.state(1, 1), "free pages", "{}", checked.output);
    assert_eq!(checked.keys[&(1, 1)].first_file, "ibdata1");
    assert_eq!(checked.state(1, 3), "needed", "{}", checked.output);
    remove_key(&database, 1, 1);
    let mut server = database.start();
    let rows = "SELECT COUNT(*), MIN(t = REPEAT('more ', 30)) FROM d.t";
    assert_eq!(database.sql(rows), "20000\t1");
    database.sql("INSERT INTO d.t SELECT seq, REPEAT('more ', 30) FROM d.seq_20001_to_60000");
    assert!(database.sql("CHECK TABLE d.t").ends_with("\tOK"));
    database.stop(&mut server);
    let log = server.output();
    assert!(!log.contains("[ERROR]"), "{log}");
}

/// What fails on a server that misses `key`, if anything.
fn failure_without(database: &Database, (id, version): (u32, u32)) -> Option<String> {
    remove_key(database, id, version);
    let mut server = Process::start(&mut database.command());
    let ready = wait_for_start(&mut server);
    if !ready {
        return Some("start".into());
    }
    let mut failures = Vec::new();
    let mut try_to = |what: &str| {
        let output = run_client(&database.socket, what);
        if !output.status.success() {
            failures.push(what.to_owned());
        }
    };
    try_to("SELECT SUM(i) FROM d.aria");
    let logs = database.sql("SHOW BINARY LOGS");
    for log in logs.lines().map(|line| line.split('\t').next().unwrap()) {
        try_to(&format!("SHOW BINLOG EVENTS IN '{log}'"));
    }
    database.stop(&mut server);
    failures.pop()
}

/// Whether the server gets ready, and does not end before that.
fn wait_for_start(server: &mut Process) -> bool {
    let mut ready = false;
    wait_until("the server to start or to end", || {
        ready = server.output().contains("ready for connections");
        ready || server.has_ended()
    });
    ready
}

#[test]
fn the_redo_log_aria_and_binary_logs_need_versions_just_when_check_says_so_and_until_recreated() {
    let scene = scene();
    let _broker = scene.start_broker();
    let database = database(&scene).options(&["--innodb-encrypt-tables=OFF"]);
    let mut server = database.start();
    let rotate = "SET GLOBAL aws_key_management_rotate_key=1";
    database.sql(&format!(
        "{rotate}; CREATE DATABASE d;
         CREATE TABLE d.aria (i INT PRIMARY KEY, t TEXT) ENGINE=Aria;
         INSERT INTO d.aria SELECT seq, REPEAT('text ', 40) FROM d.seq_1_to_500; FLUSH TABLES;
         {rotate}; FLUSH BINARY LOGS; {rotate}; FLUSH BINARY LOGS"
    ));
    let logs = database.sql("SHOW BINARY LOGS");
    let second = logs.lines().nth(1).unwrap().split('\t').next().unwrap();
    database.sql(&format!("PURGE BINARY LOGS TO '{second}'"));
    database.stop(&mut server);

    let checked = check(&database.datadir);
    checked.assert_exit_code(0);
    let first_file = |version| checked.keys[&(1, version)].first_file.clone();
    assert!(first_file(2).starts_with("d/aria.MA"), "{}", checked.output);
    assert_eq!(first_file(3), second, "{}", checked.output);
    let mut needed = 0;
    for version in 1..=3 {
        let datadir = scene.sandbox.path(&format!("without-{version}"));
        copy(&database.datadir, &datadir);
        let other = database.on_datadir(&datadir);
        let failure = failure_without(&other, (1, version));
        let is_needed = checked.state(1, version) == "needed";
        assert_eq!(
            failure.is_some(),
            is_needed,
            "version {version}: {failure:?}\n{}",
            checked.output
        );
        needed += u32::from(is_needed);
    }
    assert!(needed >= 2, "{}", checked.output);

    let database = database.options(&["--innodb-log-file-size=12M"]);
    let mut server = database.start();
    let newest = database.sql("ALTER TABLE d.aria FORCE; FLUSH BINARY LOGS; SHOW MASTER STATUS");
    let newest = newest.lines().last().unwrap().split('\t').next().unwrap();
    database.sql(&format!("PURGE BINARY LOGS TO '{newest}'"));
    database.stop(&mut server);
    let checked = check(&database.datadir);
    assert_eq!(
        checked.assert_exit_code(0).needed(1),
        [4],
        "{}",
        checked.output
    );
}

/// What page 0 of a table's file says.
fn key_of_page_0(database: &Database, table: &str) -> Option<SpaceKey> {
    innodb::key_of_page_0(&database.datadir.join(format!("d/{table}.ibd"))).unwrap()
}

/// What the plugin asks before it makes the first version of a key.
#[test]
fn page_0_names_the_key_of_every_table_that_ever_had_one_and_says_whether_it_is_in_use() {
    let scene = scene();
    let _broker = scene.start_broker();
    let database = database(&scene).options(&["--innodb-encrypt-tables=OFF"]);
    let mut server = database.start();
    database.sql(
        "CREATE DATABASE d;
         CREATE TABLE d.encrypted (i INT) ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID=3;
         CREATE TABLE d.clear (i INT) ENGINE=InnoDB ENCRYPTED=NO ENCRYPTION_KEY_ID=3;
         CREATE TABLE d.decrypted (i INT) ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID=3;
         ALTER TABLE d.decrypted ENCRYPTED=NO;
         CREATE TABLE d.compressed (i INT) ENGINE=InnoDB ROW_FORMAT=COMPRESSED ENCRYPTED=YES ENCRYPTION_KEY_ID=4;
         CREATE TABLE d.by_default (i INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=4",
    );
    database.stop(&mut server);
    let key = |key_id, in_use| Some(SpaceKey { key_id, in_use });
    for (table, expected) in [
        ("encrypted", key(3, true)),
        ("clear", key(3, false)),
        ("decrypted", key(3, false)),
        ("compressed", key(4, true)),
        // The server ignores the key id of such a table.
        ("by_default", None),
    ] {
        assert_eq!(key_of_page_0(&database, table), expected, "{table}");
    }

    // In the background, under InnoDB's own default key, and back again.
    let database = database.as_other_server();
    let database = database
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&[
            "--innodb-encrypt-tables=ON",
            "--innodb-encryption-threads=2",
        ]);
    for in_use in [true, false] {
        let mut server = database.start();
        if !in_use {
            database.sql("SET GLOBAL innodb_encrypt_tables=OFF");
        }
        wait_until("InnoDB to encrypt or decrypt the table", || {
            let version = "SELECT MIN_KEY_VERSION > 0
                FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE NAME = 'd/by_default'";
            database.sql(version) == if in_use { "1" } else { "0" }
        });
        database.stop(&mut server);
        assert_eq!(key_of_page_0(&database, "by_default"), key(1, in_use));
    }
}

#[test]
fn a_server_that_runs_is_refused_and_one_that_was_killed_is_to_be_started_and_stopped() {
    let scene = scene();
    let _broker = scene.start_broker();
    let database = database(&scene);
    let mut server = database.start();
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=3;
         SET GLOBAL aws_key_management_rotate_key=3; INSERT INTO d.t SELECT seq FROM d.seq_1_to_5000",
    );
    let refused = check(&database.datadir);
    refused
        .assert_exit_code(125)
        .assert_tells("a server is running on the data directory");
    assert!(refused.keys.is_empty(), "{}", refused.output);

    server.signal(SIGKILL);
    server.wait();
    let killed = check(&database.datadir);
    killed
        .assert_exit_code(125)
        .assert_tells("start it, stop it, and check again");
    assert!(
        killed.keys.values().all(|told| told.state != "not needed"),
        "{}",
        killed.output
    );

    let mut server = database.start();
    database.stop(&mut server);
    check(&database.datadir).assert_exit_code(0);
}

/// Does something to a copy of the datadir, of which `check` then must not be sure.
fn assert_unsure(datadir: &Path, why: &str, spoil: impl FnOnce(&Path)) {
    let copied = datadir.with_extension("copy");
    copy(datadir, &copied);
    spoil(&copied);
    let checked = check(&copied);
    checked.assert_exit_code(125).assert_tells(why);
    assert!(
        checked.keys.values().all(|told| told.state != "not needed"),
        "{}",
        checked.output
    );
    fs::remove_dir_all(&copied).unwrap();
}

#[test]
fn nothing_is_called_not_needed_while_a_file_is_missing_or_does_not_tell() {
    let scene = scene();
    let _broker = scene.start_broker();
    let database = database(&scene).options(&["--innodb-undo-tablespaces=2"]);
    without_innodb(&database);
    let mut server = database.start();
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=3;
         CREATE TABLE d.a (i INT PRIMARY KEY) ENGINE=Aria; INSERT INTO d.a VALUES (1);
         SET GLOBAL aws_key_management_rotate_key=2; FLUSH BINARY LOGS",
    );
    database.stop(&mut server);
    let datadir = &database.datadir;
    let checked = check(datadir);
    checked.assert_exit_code(0);
    assert_eq!(checked.state(2, 1), "not needed", "{}", checked.output);

    let truncate = |path: PathBuf, bytes: u64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(bytes).unwrap();
    };
    let remove = |path: PathBuf| fs::remove_file(path).unwrap();
    assert_unsure(
        datadir,
        "'d/t.ibd' needs: it ends within a page",
        |copied| {
            truncate(copied.join("d/t.ibd"), 40_000);
        },
    );
    assert_unsure(
        datadir,
        "'d/t.ibd' needs: it does not begin with",
        |copied| {
            fs::write(copied.join("d/t.ibd"), [0; 16384]).unwrap();
        },
    );
    assert_unsure(datadir, "'d/a.MAI' needs: it has no header", |copied| {
        fs::write(copied.join("d/a.MAI"), "nothing of the kind").unwrap();
    });
    assert_unsure(datadir, "'d/a.MAD' needs: it cannot be read", |copied| {
        remove(copied.join("d/a.MAD"));
    });
    assert_unsure(datadir, "'ibdata1' needs: it is shorter than", |copied| {
        truncate(copied.join("ibdata1"), 1 << 20);
    });
    assert_unsure(datadir, "'ib_logfile0' needs: it has no header", |copied| {
        fs::write(copied.join("ib_logfile0"), [1; 20480]).unwrap();
    });
    for name in ["ibdata1", "ib_logfile0", "undo002"] {
        assert_unsure(datadir, "name the directories of", |copied| {
            remove(copied.join(name));
        });
    }
    assert_unsure(
        datadir,
        "binlog.000001' needs: it cannot be read",
        |copied| {
            remove(copied.join("binlog.000001"));
        },
    );
    assert_unsure(
        datadir,
        "'d/fifo.ibd' needs: it is not a regular",
        |copied| {
            mkfifo(&copied.join("d/fifo.ibd"), Mode::S_IRWXU).unwrap();
        },
    );
    // A database on a disk that is not mounted.
    assert_unsure(
        datadir,
        "'d' needs: it cannot be read: No such file",
        |copied| {
            fs::remove_dir_all(copied.join("d")).unwrap();
            symlink("/not/mounted/d", copied.join("d")).unwrap();
        },
    );
}

#[test]
fn binary_logs_are_found_anywhere_below_the_data_directory() {
    let scene = scene();
    let _broker = scene.start_broker();
    let database = database(&scene).options(&[
        "--innodb-encrypt-tables=OFF",
        "--innodb-encrypt-log=OFF",
        "--aria-encrypt-tables=OFF",
    ]);
    let logs = database.datadir.join("logs/of/the/server");
    fs::create_dir_all(&logs).unwrap();
    let database = database.options(&[&format!("--log-bin={}", logs.join("binlog").display())]);
    let mut server = database.start();
    database.sql("SET GLOBAL aws_key_management_rotate_key=1");
    database.stop(&mut server);
    let checked = check(&database.datadir);
    checked.assert_exit_code(0);
    assert_eq!(checked.state(1, 1), "needed", "{}", checked.output);
    let first_file = &checked.keys[&(1, 1)].first_file;
    assert_eq!(first_file, "logs/of/the/server/binlog.000001");
}

/// MariaDB gives a database's directory the database's name.
#[test]
fn a_database_whose_name_is_like_that_of_a_file_of_innodb_stops_neither_check_nor_new_keys() {
    let scene = scene();
    let _broker = scene.start_broker();
    let database = database(&scene);
    let mut server = database.start();
    for (name, key_id) in [("undo2025", 3), ("ibdata2", 4), ("ib_logfile1", 5)] {
        database.sql(&format!(
            "CREATE DATABASE {name}; CREATE TABLE {name}.t (i INT) ENGINE=InnoDB ENCRYPTION_KEY_ID={key_id}"
        ));
    }
    database.sql("CREATE TABLE undo2025.u (i INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=6");
    database.stop(&mut server);
    let checked = check(&database.datadir);
    checked.assert_exit_code(0);
    for key_id in 3..=6 {
        assert_eq!(checked.state(key_id, 1), "needed", "{}", checked.output);
    }
}

/// Where clients look for the socket in the data directory, it is a link to the one that the server makes.
#[test]
fn a_link_to_the_servers_own_socket_stops_neither_the_first_key_nor_check() {
    let scene = scene();
    let _broker = scene.start_broker();
    let database = database(&scene);
    symlink(&database.socket, database.datadir.join("mysql.sock")).unwrap();
    let mut server = database.start();
    database.stop(&mut server);
    let checked = check(&database.datadir);
    checked.assert_exit_code(0);
    assert_eq!(checked.state(1, 1), "needed", "{}", checked.output);
}

/// Writes `bytes` over what a file has at `offset`.
fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// A stopped server of which one key is not needed any more.
fn stopped_with_a_key_to_spare(scene: &Scene) -> PathBuf {
    let database = database(scene);
    let mut server = database.start();
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=3;
         SET GLOBAL aws_key_management_rotate_key=2",
    );
    database.stop(&mut server);
    let checked = check(&database.datadir);
    checked.assert_exit_code(0);
    assert_eq!(checked.state(2, 1), "not needed", "{}", checked.output);
    database.datadir
}

/// No server of these versions is available here, so files of another version get their name.
#[test]
fn the_newest_server_that_any_file_names_must_be_one_whose_files_were_tried() {
    let scene = scene();
    let _broker = scene.start_broker();
    let datadir = stopped_with_a_key_to_spare(&scene);
    let id = |version: u32| version.to_le_bytes();
    let why = |file: &str, version: &str| {
        format!(
            "'{file}' was written by MariaDB {version}, but this program has been tested only with files of MariaDB 10.5, 10.11 and 11.8"
        )
    };
    assert_unsure(&datadir, &why("ib_logfile0", "12.3.1"), |copied| {
        overwrite(&copied.join("ib_logfile0"), 16, b"MariaDB 12.3.1\0\0\0");
    });
    assert_unsure(&datadir, &why("ib_logfile0", "13.0.2"), |copied| {
        overwrite(&copied.join("ib_logfile0"), 16, b"Backup 13.0.2-MariaDB\0");
    });
    assert_unsure(&datadir, &why("aria_log.00000001", "11.9.4"), |copied| {
        overwrite(&copied.join("aria_log.00000001"), 24, &id(110_904));
    });
    assert_unsure(&datadir, &why("d/t.frm", "12.3.10"), |copied| {
        overwrite(&copied.join("d/t.frm"), 51, &id(120_310));
    });
    assert_unsure(&datadir, &why("mariadb_upgrade_info", "13.1.0"), |copied| {
        fs::write(copied.join("mariadb_upgrade_info"), "13.1.0-MariaDB\n").unwrap();
    });
    assert_unsure(
        &datadir,
        "binlog.000001' was written by MariaDB 12.0.2",
        |copied| {
            overwrite(
                &copied.join("binlog.000001"),
                4 + 21,
                b"12.0.2-MariaDB-log\0\0\0\0\0\0\0\0\0",
            );
        },
    );
    assert_unsure(
        &datadir,
        "says which version of MariaDB wrote it",
        |copied| {
            overwrite(&copied.join("ib_logfile0"), 16, &[0; 32]);
            fs::remove_file(copied.join("aria_log.00000001")).unwrap();
            let mut remove = Command::new("find");
            remove.arg(copied).args(["-name", "*.frm", "-delete", "-o"]);
            remove.args(["-name", "*_upgrade_info", "-delete", "-o"]);
            remove.args(["-name", "binlog.*", "-delete"]);
            assert!(remove.status().unwrap().success());
        },
    );

    // What an older server wrote is read as the newer one reads it.
    let info = datadir.join("mysql_upgrade_info");
    fs::write(info, "10.4.30-MariaDB\n").unwrap();
    check(&datadir).assert_exit_code(0);
}

/// No server here writes them. Their names are those of MariaDB's manual.
#[test]
fn files_of_newer_kinds_of_logs_are_no_answer_and_named() {
    let scene = scene();
    let _broker = scene.start_broker();
    let datadir = stopped_with_a_key_to_spare(&scene);
    assert_unsure(
        &datadir,
        "'binlog-000001.ibb' needs: it belongs to the InnoDB-based binary log of MariaDB 12.3 and later",
        |copied| fs::write(copied.join("binlog-000001.ibb"), [0; 16384]).unwrap(),
    );
    assert_unsure(
        &datadir,
        "'ib_0000000000003000.log' needs: it is an archived redo log (innodb_log_archive)",
        |copied| {
            let archived = copied.join("ib_0000000000003000.log");
            fs::rename(copied.join("ib_logfile0"), archived).unwrap();
            let checked = check(copied);
            assert!(
                !checked.output.contains("name the directories"),
                "{}",
                checked.output
            );
        },
    );
}

#[test]
fn files_outside_the_data_directory_are_found_or_asked_for() {
    let scene = scene();
    let _broker = scene.start_broker();
    let directory = |name: &str| scene.sandbox.directory(name);
    let (logs, undo, tables, keys) = (
        directory("logs"),
        directory("undo"),
        directory("tables"),
        directory("keys"),
    );
    let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let database = database(&scene).options(&[
        "--innodb-undo-tablespaces=2",
        &option("log-bin", &logs.join("binlog")),
        &option("innodb-log-group-home-dir", &logs),
        &option("innodb-undo-directory", &undo),
        &option("aws-key-management-keyfile-dir", &keys),
    ]);
    without_innodb(&database);
    let mut server = database.start();
    database.sql(&format!(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=3 DATA DIRECTORY='{}';
         INSERT INTO d.t VALUES (1); FLUSH BINARY LOGS",
        tables.display()
    ));
    database.stop(&mut server);

    let datadir = database.datadir.as_path();
    let keyfile_dir = option("keyfile-dir", &keys);
    let keyfile_dir = Path::new(&keyfile_dir);
    Checked::of(&[datadir, keyfile_dir])
        .assert_exit_code(125)
        .assert_tells("name the directories of");
    let checked = Checked::of(&[datadir, &logs, &undo, keyfile_dir]);
    checked.assert_exit_code(0);
    assert_eq!(checked.state(3, 1), "needed", "{}", checked.output);
    let first_file = &checked.keys[&(3, 1)].first_file;
    assert!(Path::new(first_file).starts_with(&tables), "{first_file}");
    // Once more under another name, and the keys forgotten.
    Checked::of(&[datadir, &logs, &undo, &logs.join("../undo"), keyfile_dir]).assert_exit_code(0);
    Checked::of(&[datadir, &logs, &undo])
        .assert_exit_code(1)
        .assert_tells("name their directory with --keyfile-dir");
}

/// The files that the server locks are not in the data directory.
#[test]
fn a_server_is_noticed_whose_locked_files_are_elsewhere() {
    let scene = scene();
    let _broker = scene.start_broker();
    let directory = |name: &str| scene.sandbox.directory(name);
    let (innodb, aria, keys) = (directory("innodb"), directory("aria"), directory("keys"));
    let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let elsewhere = [
        option("innodb-data-home-dir", &innodb),
        option("aria-log-dir-path", &aria),
    ];
    let keyfile_dir = option("aws-key-management-keyfile-dir", &keys);
    let [home, log_dir] = elsewhere.each_ref().map(String::as_str);
    let database = database(&scene).options(&[home, log_dir]);
    without_innodb(&database);
    let datadir = &*database.datadir.clone();
    for entry in fs::read_dir(datadir).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("aria_log") {
            fs::rename(entry.path(), aria.join(entry.file_name())).unwrap();
        }
    }
    let fork = || {
        let mut fork = Command::new(dist("bin/kms-data-keys"));
        let output = fork.arg("fork").arg(datadir).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let is_running = "a server is running on the data directory";
    // The lock of the plugin is in the data directory.
    let mut server = database.start();
    let checked = Checked::of(&[datadir]);
    checked.assert_exit_code(125).assert_tells(is_running);
    let (code, errors) = fork();
    assert_eq!(code, Some(125), "{errors}");
    assert!(errors.contains(is_running), "{errors}");
    database.stop(&mut server);
    let checked = Checked::of(&[datadir, &innodb, &aria]);
    checked.assert_exit_code(0);
    assert_eq!(fork().0, Some(0));

    // It is not, but each of the directories has one that the server has.
    for name in fs::read_dir(datadir)
        .unwrap()
        .flatten()
        .map(|it| it.file_name())
    {
        if name.to_string_lossy().starts_with("aws-kms-key.") {
            fs::rename(datadir.join(&name), keys.join(&name)).unwrap();
        }
    }
    let copy = scene.sandbox.path("copy");
    for files in [datadir, &innodb, &aria] {
        let files = files.join(".");
        let copied = Command::new("cp").arg("-a").args([&files, &copy]).status();
        assert!(copied.unwrap().success());
    }
    let database = database.options(&[&keyfile_dir]);
    let mut server = database.start();
    let keyfile_dir = option("keyfile-dir", &keys);
    let keyfile_dir = Path::new(&keyfile_dir);
    for named in [&innodb, &aria, keyfile_dir] {
        let checked = Checked::of(&[datadir, named]);
        checked.assert_exit_code(125).assert_tells(is_running);
    }
    // No server runs on a copy that is read with the keys of the original.
    Checked::of(&[&copy, keyfile_dir]).assert_exit_code(0);
    database.stop(&mut server);
}

#[test]
fn who_waits_for_long_at_a_terminal_sees_how_far_the_reading_has_come() {
    let sandbox = Sandbox::new();
    let datadir = Database::new(&sandbox).datadir;
    let table = datadir.join("mysql/gtid_slave_pos.ibd");
    // Of holes, so it is only the reading that takes its time.
    let file = fs::File::options().write(true).open(table).unwrap();
    file.set_len(64 << 30).unwrap();
    let mut terminal = Terminal::new();
    let mut check = Command::new(dist("bin/kms-data-keys"));
    let _checking = ChildGuard::spawn(check.arg("check").arg(&datadir).stderr(terminal.programs()));
    terminal.wait_for_nth("of 64.", 2);
}
