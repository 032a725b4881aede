//! `kms-data-keys rotation`: how far InnoDB has re-encrypted, as the server itself tells.

use std::{path::PathBuf, process::Command};

use end_to_end_tests::{Database, Process, Sandbox, Scene, dist, wait_until};
use serde_json::Value;

const ROTATE: &str = "SET GLOBAL aws_key_management_rotate_key=-1";

struct Server {
    scene: Scene,
    database: Database,
    _broker: Process,
    _server: Process,
}

impl Server {
    /// Has a table of some hundred pages under key 10.
    fn start(options: &[&str]) -> Self {
        let scene = Scene::new().with_broker();
        let broker = scene.start_broker();
        let database = Database::new(&scene.sandbox)
            .with_our_plugin(&scene.configuration.broker_socket)
            .options(&["--innodb-encrypt-tables=ON"])
            .options(options);
        let server = database.start();
        database.sql(
            "CREATE DATABASE d;
             CREATE TABLE d.t10 (t CHAR(200)) ENCRYPTED=YES ENCRYPTION_KEY_ID=10;
             INSERT INTO d.t10 SELECT seq FROM d.seq_1_to_20000",
        );
        Self {
            scene,
            database,
            _broker: broker,
            _server: server,
        }
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        rotation(arguments, &["--user=root"], &self.database.socket)
    }

    /// What `--json` tells of key 10, and of all.
    fn state(&self) -> (Value, Value) {
        let (_, text, _) = self.run(&["--json"]);
        let all: Value = serde_json::from_str(&text).unwrap();
        let keys = all["keys"].as_array().unwrap();
        let key = keys.iter().find(|key| key["id"] == 10).unwrap().clone();
        (key, all)
    }
}

fn rotation(
    arguments: &[&str],
    client_options: &[&str],
    socket: &std::path::Path,
) -> (i32, String, String) {
    let output = Command::new(dist("bin").join("kms-data-keys"))
        .arg("rotation")
        .args(arguments)
        .args(["--", "--no-defaults"])
        .args(client_options)
        .arg(format!("--socket={}", socket.display()))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

#[test]
fn the_first_rotation_moves_nothing_and_the_second_is_watched_to_its_end() {
    let server = Server::start(&[
        "--innodb-encryption-threads=1",
        "--innodb-encryption-rotation-iops=10000",
    ]);
    let unencrypted = "SELECT COUNT(*) FROM information_schema.innodb_tablespaces_encryption
        WHERE min_key_version = 0 OR rotating_or_flushing";
    wait_until("the first encryption of all tablespaces", || {
        server.database.sql(unencrypted) == "0"
    });
    let (key, _) = server.state();
    assert_eq!(
        (&key["latest_version"], &key["oldest_version"]),
        (&1.into(), &1.into())
    );

    server.database.sql(ROTATE);
    let (code, table, errors) = server.run(&[]);
    assert_eq!((code, errors.as_str()), (0, ""), "{table}");
    assert!(table.contains("nothing to re-encrypt"), "{table}");
    assert!(
        table.contains("innodb_encryption_rotate_key_age = 1"),
        "{table}"
    );
    let (key, _) = server.state();
    assert_eq!(key["tablespaces_kept"], 1, "{key}");

    // Without threads, what is left stays to be seen.
    let threads = |number: u8| {
        let set = format!("SET GLOBAL innodb_encryption_threads = {number}");
        server.database.sql(&set);
    };
    threads(0);
    server.database.sql(ROTATE);
    let (key, all) = server.state();
    assert_eq!(key["latest_version"], 3, "{key}");
    assert!(key["pages_left"].as_u64().unwrap() > 100, "{key}");
    assert!(
        all["tablespaces_left"].to_string().contains("d/t10"),
        "{all}"
    );

    threads(1);
    let (code, table, errors) = server.run(&["--watch"]);
    assert_eq!(code, 0, "{table}{errors}");
    assert!(table.contains("nothing to re-encrypt"), "{table}");
    assert!(table.contains("kms-data-keys check"), "{table}");
    let (key, _) = server.state();
    assert_eq!(key["pages_left"], 0, "{key}");
    // Pages that were written between the two rotations have version 2, which is young enough to stay.
    let oldest = key["oldest_version"].as_u64().unwrap();
    assert!((2..=3).contains(&oldest), "{key}");
    let unused = format!("key 10: below {oldest}");
    assert!(table.contains(&unused), "{table}");
    // The server's own words for it.
    let versions = "SELECT min_key_version, current_key_version
        FROM information_schema.innodb_tablespaces_encryption WHERE name = 'd/t10'";
    assert_eq!(server.database.sql(versions), format!("{oldest}\t3"));
}

#[test]
fn what_cannot_go_on_is_named_and_not_waited_for() {
    let server = Server::start(&["--innodb-encryption-threads=0"]);
    server.database.sql(ROTATE);
    server.database.sql(ROTATE);
    let textfile: PathBuf = server.scene.sandbox.path("rotation.prom");
    let option = format!("--textfile={}", textfile.display());
    let (code, _, errors) = server.run(&["--watch", &option]);
    assert_eq!(code, 1);
    assert!(
        errors.contains("SET GLOBAL innodb_encryption_threads"),
        "{errors}"
    );
    let metrics = std::fs::read_to_string(textfile).unwrap();
    for line in [
        "iam_kms_rotation_latest_version{key_id=\"10\"} 3",
        "iam_kms_rotation_oldest_version{key_id=\"10\"} 1",
        "iam_kms_rotation_tablespaces_left{key_id=\"10\"} 1",
    ] {
        assert!(metrics.lines().any(|it| it == line), "{line}\n{metrics}");
    }
}

#[test]
fn limits_of_client_and_server_hide_no_tablespace() {
    let server = Server::start(&["--innodb-encryption-threads=0"]);
    server
        .database
        .sql("CREATE TABLE d.t11 (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=11");
    let all = server.run(&["--json"]);
    for id in [10, 11] {
        assert!(all.1.contains(&format!("\"id\":{id},")), "{}", all.1);
    }
    let limits = "SET GLOBAL sql_select_limit = 1; SET GLOBAL max_join_size = 1";
    server.database.sql(limits);
    let careful = ["--user=root", "--safe-updates", "--select-limit=1"];
    let limited = rotation(&["--json"], &careful, &server.database.socket);
    assert_eq!(limited, all);
}

#[test]
fn an_account_without_the_privilege_gets_the_servers_words_for_it() {
    let server = Server::start(&[]);
    server.database.sql("CREATE USER somebody@localhost");
    let (code, _, errors) = rotation(&[], &["--user=somebody"], &server.database.socket);
    assert_eq!(code, 125, "{errors}");
    let said = "cannot ask the server: ERROR 1227 (42000)";
    assert!(errors.contains(said), "{errors}");
    assert!(errors.contains("PROCESS"), "{errors}");
}

#[test]
fn a_server_that_does_not_answer_is_a_failure_with_the_clients_reason() {
    let sandbox = Sandbox::new();
    let (code, table, errors) = rotation(&["--watch"], &["--user=root"], &sandbox.path("no.sock"));
    assert_eq!((code, table.as_str()), (125, ""));
    assert!(
        errors.contains("cannot ask the server: ERROR 2002"),
        "{errors}"
    );
}
