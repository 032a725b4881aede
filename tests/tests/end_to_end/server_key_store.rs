//! The key store: what is lost on a host comes back from it, and several servers share one.

use std::{fs, path::PathBuf};

use broker_api::{KeyContext, ListKeys, Reply, Request};
use end_to_end_tests::{
    Database, ENCRYPT_ALL, Process, Sandbox, Scene, StoreDirectory, backup, broker::ask, key_files,
    write_fifo,
};

const MANIFEST: &str = "aws-kms-keys.list";
const NOT_MOUNTED: &str = "is not mounted, or was never made one";
const ROTATE: &str = "SET GLOBAL aws_key_management_rotate_key=-1";

/// A broker with a directory as its key store, and a server with its keys in a directory of their own.
struct Host {
    scene: Scene,
    store: StoreDirectory,
    broker: Option<Process>,
    database: Database,
}

impl Host {
    fn new() -> Self {
        let scene = Scene::new().with_broker();
        let store = StoreDirectory::new(&scene.sandbox);
        let scene = scene.line(&format!("key_store = {}", store.location()));
        let broker = Some(scene.start_broker());
        let database = database(&scene, &scene.sandbox);
        Self {
            scene,
            store,
            broker,
            database,
        }
    }

    fn keyfile(&self, name: &str) -> PathBuf {
        self.database.datadir.join(name)
    }

    /// Another server that uses the same broker, with nothing of its own.
    fn another(&self, sandbox: &Sandbox) -> Database {
        database(&self.scene, sandbox)
    }
}

fn database(scene: &Scene, sandbox: &Sandbox) -> Database {
    Database::new(sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--aws-key-management=FORCE"])
        .options(&ENCRYPT_ALL)
}

fn create(id: u32) -> String {
    format!(
        "CREATE TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}; INSERT INTO d.t{id} VALUES ({id})"
    )
}

#[test]
fn a_new_key_is_in_the_key_store_with_the_same_content_and_check_value() {
    let host = Host::new();
    let mut process = host.database.start();
    host.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    host.database.sql(ROTATE);
    host.database.stop(&mut process);
    let expected = ["1/1", "1/2", "10/1", "10/2", "2/1", "2/2"];
    assert_eq!(host.store.names(), expected);
    let manifest = fs::read_to_string(host.keyfile(MANIFEST)).unwrap();
    for name in expected {
        let (id, version) = name.split_once('/').unwrap();
        let object = fs::read_to_string(host.store.path().join(name)).unwrap();
        let object: serde_json::Value = serde_json::from_str(&object).unwrap();
        let line = manifest
            .lines()
            .find(|line| line.starts_with(&format!("{id} {version} ")))
            .unwrap();
        let fields: Vec<_> = line.split(' ').collect();
        assert_eq!(object["check_value"], fields[4], "{name}");
        assert_eq!(object["algorithm"], fields[2], "{name}");
        assert_eq!(object["master_key"], fields[5], "{name}");
        let file = format!("aws-kms-key.{id}.{version}");
        let content = fs::read(host.keyfile(&file)).unwrap();
        assert!(host.store.has(&file, &content), "{name}");
    }
}

#[test]
fn a_lost_key_file_comes_back_at_the_start_and_while_the_server_runs() {
    let host = Host::new();
    let mut process = host.database.start();
    host.database.sql(&format!(
        "CREATE DATABASE d; {}; {}",
        create(10),
        create(11)
    ));
    host.database.stop(&mut process);
    let all = host.database.key_files();
    for lost in [
        &["aws-kms-key.10.1"][..],
        &["aws-kms-key.1.1", "aws-kms-key.2.1"],
    ] {
        for name in lost {
            fs::remove_file(host.keyfile(name)).unwrap();
        }
        let mut process = host.database.start();
        assert_eq!(host.database.sql("SELECT * FROM d.t10"), "10");
        for name in lost {
            let note = process.wait_for(&format!("restored {name} from the key store file://"));
            assert!(note.contains("[Note]"), "{note}");
        }
        let log = process.output();
        assert!(!log.contains("is missing"), "{log}");
        host.database.stop(&mut process);
        assert_eq!(host.database.key_files(), all);
    }
    // All of them, and the list of them.
    for name in all.iter().map(String::as_str).chain([MANIFEST]) {
        fs::remove_file(host.keyfile(name)).unwrap();
    }
    let mut process = host.database.start();
    assert_eq!(host.database.sql("SELECT * FROM d.t11"), "11");
    host.database.stop(&mut process);
    assert_eq!(host.database.key_files(), all);
}

#[test]
fn a_backup_without_key_files_is_restored_on_a_host_that_has_nothing_but_the_key_store() {
    let host = Host::new();
    let keys = host.scene.sandbox.directory("keys");
    let keyfile_dir = format!("--aws-key-management-keyfile-dir={}", keys.display());
    let sandbox = Sandbox::new();
    let database = host.another(&sandbox).options(&[&keyfile_dir]);
    let mut process = database.start();
    database.sql(&format!("CREATE DATABASE d; {}", create(10)));
    let target = host.scene.sandbox.path("backup");
    let away = host.scene.sandbox.path("keys-of-the-old-host");
    let target_dir = format!("--target-dir={}", target.display());
    let socket = format!("--socket={}", database.socket.display());
    backup(&["--backup", &target_dir, &socket, "--user=root"]);
    database.sql(&format!("{}; {ROTATE}", create(11)));
    database.stop(&mut process);
    assert_eq!(key_files(&target), [""; 0]);
    fs::rename(&keys, &away).unwrap();
    fs::create_dir(&keys).unwrap();
    backup(&["--prepare", &target_dir]);
    assert_eq!(
        key_files(&keys),
        [""; 0],
        "mariadb-backup writes no key files"
    );
    let restored = database.on_datadir(&target);
    let mut process = restored.start();
    assert_eq!(restored.sql("SELECT * FROM d.t10"), "10");
    restored.sql(&create(12));
    restored.stop(&mut process);
}

#[test]
fn two_servers_share_a_key_store_and_neither_makes_what_the_other_has() {
    let host = Host::new();
    let (one, sandbox) = (&host.database, Sandbox::new());
    let two = host.another(&sandbox);
    let mut first = one.start();
    one.sql(&format!("CREATE DATABASE d; {}", create(10)));
    let mut second = two.start();
    two.sql(&format!("CREATE DATABASE d; {}", create(10)));
    assert_eq!(one.key_files(), two.key_files());
    for name in one.key_files() {
        assert_eq!(
            fs::read(one.datadir.join(&name)).unwrap(),
            fs::read(two.datadir.join(&name)).unwrap(),
            "{name}"
        );
    }
    // The numbers interleave.
    one.sql("SET GLOBAL aws_key_management_rotate_key=10");
    two.sql("SET GLOBAL aws_key_management_rotate_key=10");
    assert!(one.key_files().contains(&"aws-kms-key.10.2".into()));
    assert!(!two.key_files().contains(&"aws-kms-key.10.2".into()));
    assert!(two.key_files().contains(&"aws-kms-key.10.3".into()));
    two.stop(&mut second);
    let mut second = two.start();
    assert!(two.key_files().contains(&"aws-kms-key.10.2".into()));
    assert_eq!(two.sql("SELECT * FROM d.t10"), "10");
    two.stop(&mut second);
    one.stop(&mut first);
}

#[test]
fn a_server_with_keys_of_its_own_does_not_start_with_the_key_store_of_others() {
    let host = Host::new();
    let mut process = host.database.start();
    host.database.stop(&mut process);
    let Host {
        scene,
        store,
        broker,
        ..
    } = host;
    drop(broker);
    // It has lived without a key store, under the same master key.
    let scene = scene.without("key_store");
    let broker = scene.start_broker();
    let sandbox = Sandbox::new();
    let other = database(&scene, &sandbox);
    let mut process = other.start();
    other.sql(&format!("CREATE DATABASE d; {}", create(10)));
    other.stop(&mut process);
    drop(broker);
    let scene = scene.line(&format!("key_store = {}", store.location()));
    let _broker = scene.start_broker();
    let (status, log) = Process::start(&mut other.command()).finish();
    assert!(!status.success(), "{log}");
    for name in ["aws-kms-key.1.1", "aws-kms-key.2.1"] {
        let error = format!("{name} is another key here (check value ");
        let line = log.lines().find(|line| line.contains(&error));
        assert!(line.is_some_and(|line| line.contains("[ERROR]")), "{log}");
    }
    assert!(!log.contains("drop the table"), "{log}");
    assert_eq!(store.names(), ["1/1", "2/1"]);
}

#[test]
fn what_somebody_has_put_into_the_key_store_is_not_used_unless_it_is_what_it_says() {
    let host = Host::new();
    let mut process = host.database.start();
    host.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    host.database.stop(&mut process);
    let object = fs::read_to_string(host.store.path().join("10/1")).unwrap();
    let next = object.replace("\"version\":1,", "\"version\":2,");
    let (before, check_value) = next.split_once("\"check_value\":\"").unwrap();
    let other = match check_value.starts_with('0') {
        true => "1",
        false => "0",
    };
    let planted = format!("{before}\"check_value\":\"{other}{}", &check_value[1..]);
    fs::write(host.store.path().join("10/2"), planted).unwrap();
    fs::write(host.store.path().join("10/1.1"), "garbage").unwrap();
    fs::remove_file(host.keyfile("aws-kms-key.10.1")).unwrap();
    for _ in 0..2 {
        let mut process = host.database.start();
        process
            .wait_for("aws-kms-key.10.2 of the key store is another key than its check value says");
        assert_eq!(host.database.sql("SELECT * FROM d.t10"), "10");
        host.database
            .sql("INSERT INTO d.t10 VALUES (1); DELETE FROM d.t10 WHERE i = 1; FLUSH TABLES");
        host.database.stop(&mut process);
        assert!(host.keyfile("aws-kms-key.10.1").exists());
        assert!(!host.keyfile("aws-kms-key.10.2").exists());
    }
}

/// Such as the other hosts of a cluster, and backups.
#[test]
fn a_key_file_under_a_master_key_that_is_disabled_is_replaced_if_the_key_store_has_it_under_another()
 {
    let mut host = Host::new();
    let mut process = host.database.start();
    host.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    host.database.stop(&mut process);
    let all = host.database.key_files();
    let contents = || {
        let read = |name: &String| fs::read(host.database.datadir.join(name)).unwrap();
        all.iter().map(read).collect::<Vec<_>>()
    };
    let old = contents();
    // On another host.
    let other = host.scene.sandbox.directory("other");
    for name in &all {
        fs::copy(host.keyfile(name), other.join(name)).unwrap();
    }
    let aws = &host.scene.aws;
    let new = aws.key(&["--alias", "alias/new"]);
    let store = format!("--store={}", host.store.location());
    let rewrap = ["rewrap", "--to", "alias/new", &store];
    let mut rewrap = aws.data_keys_command("bin", &rewrap, &other);
    assert!(rewrap.status().unwrap().success());
    let describe = ["kms", "describe-key", "--key-id=alias/mariadb"];
    let id = ["--query=KeyMetadata.KeyId", "--output=text"];
    let key_id = aws.cli(&[&describe[..], &id].concat());
    aws.cli(&["kms", "disable-key", "--key-id", &key_id]);
    drop(host.broker.take());
    let broker = host.scene.start_broker();

    // Of one, the key store says that it is another key; another has no newer form.
    let (claimed, forms) = (
        host.store.path().join("2/1"),
        host.store.path().join("2/1.1"),
    );
    let (first, form) = (fs::read(&claimed).unwrap(), fs::read(&forms).unwrap());
    let other_key = fs::read_to_string(host.store.path().join("1/1")).unwrap();
    fs::write(&claimed, other_key.replace("\"id\":1,", "\"id\":2,")).unwrap();
    fs::remove_file(&forms).unwrap();
    let log = Process::start(&mut host.database.command()).finish().1;
    assert!(log.contains("aws-kms-key.2.1 is another key here"), "{log}");
    assert!(
        log.contains("aws-kms-key.2.1': ") && log.contains("DisabledException"),
        "{log}"
    );
    let position = all
        .iter()
        .position(|name| name == "aws-kms-key.2.1")
        .unwrap();
    assert_eq!(contents()[position], old[position], "it may be another key");
    fs::write(&claimed, first).unwrap();
    fs::write(&forms, form).unwrap();
    // It remembers what first forms are: they never change.
    drop(broker);
    let _broker = host.scene.start_broker();

    let mut process = host.database.start();
    assert_eq!(host.database.sql("SELECT * FROM d.t10"), "10");
    host.database
        .sql("INSERT INTO d.t10 VALUES (1); FLUSH TABLES");
    let note =
        process.wait_for("aws-kms-key.2.1', so it was replaced by what the key store file://");
    assert!(note.contains("[Note]") && note.contains(&new), "{note}");
    host.database.stop(&mut process);
    for (name, old) in all.iter().zip(old) {
        let content = fs::read(host.keyfile(name)).unwrap();
        assert_ne!(content, old, "{name}");
        assert_eq!(content, fs::read(other.join(name)).unwrap(), "{name}");
    }
    // Now without the key store.
    fs::rename(host.store.path(), host.store.path().with_extension("away")).unwrap();
    let mut process = host.database.start();
    assert_eq!(host.database.sql("SELECT SUM(i) FROM d.t10"), "11");
    host.database.stop(&mut process);
}

#[test]
fn a_list_of_many_objects_that_cannot_be_used_is_one_line_of_the_log() {
    let host = Host::new();
    fs::create_dir(host.store.path().join("9")).unwrap();
    for version in 1..=300 {
        fs::write(host.store.path().join(format!("9/{version}")), "garbage").unwrap();
    }
    for _ in 0..3 {
        let list = Request::ListKeys(ListKeys {
            after: None,
            context: KeyContext::default(),
        });
        let reply = ask(&host.scene, &list);
        assert!(
            matches!(&reply, Reply::KeyList { keys, .. } if keys.is_empty()),
            "{reply:?}"
        );
    }
    let broker = host.broker.as_ref().unwrap();
    let line = broker.wait_for_nth("the same list has 299 more objects that cannot be used", 3);
    assert!(line.contains("9/1 in the key store"), "{line}");
    let lines = broker.output();
    assert_eq!(lines.matches(" in the key store ").count(), 3, "{lines}");
}

#[test]
fn without_the_key_store_no_key_is_made_and_what_exists_is_served() {
    let mut host = Host::new();
    let mut process = host.database.start();
    host.database
        .sql(&format!("CREATE DATABASE d; {}", create(10)));
    let away = host.store.path().with_extension("away");
    fs::rename(host.store.path(), &away).unwrap();
    let error = host.database.sql_error(&create(11));
    assert!(error.contains(NOT_MOUNTED), "{error}");
    let warning = host.database.sql(ROTATE);
    assert!(warning.contains("key 10 was not rotated: "), "{warning}");
    assert!(warning.contains(NOT_MOUNTED), "{warning}");
    host.database
        .sql("INSERT INTO d.t10 VALUES (1); FLUSH TABLES");
    host.database.stop(&mut process);
    // A start, and with a broker that has never seen it.
    for _ in 0..2 {
        let mut process = host.database.start();
        assert_eq!(host.database.sql("SELECT COUNT(*) FROM d.t10"), "2");
        process.wait_for("were not compared with the key store");
        host.database.stop(&mut process);
        let mut broker = host.broker.take().unwrap();
        broker.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(broker.wait().success());
        let broker = Process::start(&mut host.scene.broker_command());
        broker.wait_for("enter an MFA code");
        write_fifo(host.scene.fifo(), host.scene.aws.code().as_bytes());
        let line = broker.wait_for("until this is corrected, no data key can be made");
        assert!(line.contains(NOT_MOUNTED), "{line}");
        host.broker = Some(broker);
    }
    fs::rename(&away, host.store.path()).unwrap();
    let mut process = host.database.start();
    host.database.sql(&create(11));
    assert!(host.store.names().contains(&"11/1".into()));
    host.database.stop(&mut process);
}
