//! Status variables that machines read: numbers of the session, and the state of each key as SQL.

use std::{fs, thread, time::SystemTime};

use end_to_end_tests::{Database, NEW_KEY, Scene, fence, wait_until};

const ROTATE: &str = "SET GLOBAL aws_key_management_rotate_key=-1";

fn database(scene: &Scene) -> Database {
    Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON", "--performance-schema=ON"])
}

fn number(database: &Database, name: &str) -> u64 {
    let value = database.status(name);
    value
        .parse()
        .unwrap_or_else(|error| panic!("{name} = {value:?}: {error}"))
}

#[test]
fn the_session_is_shown_as_numbers_and_flags() {
    let scene = Scene::with_aws(&["--session-lifetime=600"]).with_broker();
    let database = database(&scene);
    let _wrapper = scene.start_database(&database);
    let flags = |names: [&str; 3]| names.map(|name| database.status(name));
    let names = ["session_open", "code_awaited", "broker_missing"];
    assert_eq!(flags(names), ["ON", "OFF", "OFF"]);
    let left = number(&database, "session_seconds_left");
    assert!((500..=600).contains(&left), "{left}");
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let last = number(&database, "last_success_unix_seconds");
    assert!((now - 60..=now).contains(&last), "{last}");
    assert_eq!(number(&database, "last_error_unix_seconds"), 0);

    database.sql("CREATE DATABASE d");
    scene.aws.end_session();
    database.sql_error(NEW_KEY);
    wait_until("the flags", || flags(names) == ["OFF", "ON", "OFF"]);
    assert_eq!(number(&database, "session_seconds_left"), 0);
    assert!(number(&database, "last_error_unix_seconds") >= now);
    let session_over = number(&database, "kms_failures_session_over");
    assert!(session_over > 0);
    assert_eq!(number(&database, "kms_failures"), session_over);
}

#[test]
fn the_calls_of_kms_are_counted_by_duration_and_failures_by_kind() {
    let scene = Scene::new()
        .with_broker()
        .line("request_timeout_seconds = 1");
    let database = database(&scene);
    let _wrapper = scene.start_database(&database);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t1 (i INT)");
    let calls = number(&database, "kms_calls");
    assert!(calls > 0);
    let within = ["10_ms", "100_ms", "1_s", "10_s"]
        .map(|bound| number(&database, &format!("kms_calls_within_{bound}")));
    assert!(within.is_sorted(), "{within:?}");
    assert_eq!(within[3], calls);
    assert!(number(&database, "kms_latency_microseconds") >= calls);

    scene.aws.fault("--operation any --kind throttle");
    database.sql_error(NEW_KEY);
    let throttled = number(&database, "kms_failures_throttled");
    assert!(throttled > 0);
    assert_eq!(number(&database, "kms_failures"), throttled);
    assert_eq!(number(&database, "kms_failures_access_denied"), 0);
}

#[test]
fn each_key_and_its_state_can_be_read_as_sql() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let wrapper = scene.start_database(&database);
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t1 (i INT);
         CREATE TABLE d.t10 (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10",
    );
    let keys = fence("keys-in-sql").commands;
    assert_eq!(database.sql(&keys), "1\t1\t1\tok\n10\t1\t1\tok");
    database.sql("SET GLOBAL aws_key_management_rotate_key=10");
    assert_eq!(database.sql(&keys), "1\t1\t1\tok\n10\t2\t2\tok");
    let again = "SELECT variable_value FROM information_schema.global_status
                  WHERE variable_name = 'Aws_key_management_key_10_latest_version'";
    assert_eq!(database.sql(again), "2");
    assert_eq!(database.status("key\\_10\\_versions"), "2");

    fs::remove_file(database.datadir.join("aws-kms-key.10.1")).unwrap();
    wait_until("the missing file", || {
        database.sql(&keys) == "1\t1\t1\tok\n10\t2\t2\tfile missing"
    });
    assert_eq!(number(&database, "key_files_missing"), 1);
    drop(wrapper);
}

/// A server with keys 1 to `count`, which needs no broker.
fn with_offline_keys(scene: &Scene, count: u32) -> Database {
    let keys: String = (1..=count)
        .map(|id| format!("{id};{}\n", "0123456789abcdef".repeat(2)))
        .collect();
    let keys = scene.sandbox.write("offline-keys", &keys);
    database(scene).options(&[&format!(
        "--aws-key-management-offline-keys={}",
        keys.display()
    )])
}

/// performance_schema.status_by_thread asks in the name of each connection.
#[test]
fn reading_the_status_of_all_connections_takes_no_memory_of_theirs() {
    const CONNECTIONS: usize = 5;
    let scene = Scene::new();
    let database = with_offline_keys(&scene, 500);
    let server = database.start();
    let anonymous_kib = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        line.unwrap()
            .trim()
            .strip_suffix(" kB")
            .unwrap()
            .parse()
            .unwrap()
    };
    let read = || {
        let threads = "SELECT COUNT(DISTINCT thread_id) FROM performance_schema.status_by_thread";
        let shown = database.sql(threads);
        assert!(shown.parse::<usize>().unwrap() > CONNECTIONS, "{shown}");
    };
    const ASLEEP: &str =
        "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%'";
    thread::scope(|threads| {
        for _ in 0..CONNECTIONS {
            threads.spawn(|| database.sql_error("SELECT SLEEP(30)"));
        }
        let asleep = || database.sql(ASLEEP);
        wait_until("the connections", || {
            asleep().lines().count() == CONNECTIONS
        });
        read();
        let before = anonymous_kib();
        for _ in 0..40 {
            read();
        }
        let growth_kib = anonymous_kib().saturating_sub(before);
        for id in asleep().lines() {
            database.sql(&format!("KILL CONNECTION {id}"));
        }
        // 40 reads of 500 keys in each connection would be more than 20 MiB.
        assert!(growth_kib < 8 * 1024, "{growth_kib} KiB");
    });
}

/// The server asks such a function for each variable while it reads the array of those of single keys.
#[test]
fn a_stored_function_that_reads_the_status_while_it_is_shown_ends_no_server() {
    let scene = Scene::new();
    let database = with_offline_keys(&scene, 50);
    let _server = database.start();
    database.sql(
        "CREATE DATABASE d;
         CREATE FUNCTION d.f(n VARCHAR(64)) RETURNS INT READS SQL DATA
         RETURN IF(n LIKE 'AWS_KEY_MANAGEMENT_KEY_7\\_%',
                   (SELECT COUNT(*) > 0 FROM information_schema.GLOBAL_STATUS), 1)",
    );
    for _ in 0..5 {
        let shown = database.sql(
            "SELECT COUNT(*) FROM information_schema.GLOBAL_STATUS
             WHERE d.f(VARIABLE_NAME) AND VARIABLE_NAME LIKE 'AWS_KEY_MANAGEMENT_KEY\\_%\\_STATE'",
        );
        assert_eq!(shown, "50");
        let shown = database.sql("SHOW GLOBAL STATUS WHERE d.f(Variable_name)");
        assert_eq!(shown.matches("_latest_version\t").count(), 50, "{shown}");
    }
}

#[test]
fn a_list_of_missing_versions_that_is_too_long_ends_in_a_whole_name_and_says_how_many_are_left_out()
{
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let mut wrapper = scene.start_database(&database);
    database.stop(&mut wrapper.process);
    for id in 1000..1300 {
        let file = database.datadir.join(format!("aws-kms-key.{id}.12"));
        fs::write(file, "damaged").unwrap();
    }
    let _wrapper = scene.start_database(&database);
    let text = database.status("key\\_versions\\_missing");
    let (shown, more) = text.split_once(" and ").unwrap();
    let shown: Vec<_> = shown.split(", ").collect();
    let more: usize = more.strip_suffix(" more").unwrap().parse().unwrap();
    assert!(shown.iter().all(|name| name.ends_with(".12")), "{text}");
    assert_eq!(shown.len() + more, 300, "{text}");
    assert_eq!(number(&database, "key_versions_not_loaded"), 300);
}

#[test]
fn many_sessions_read_the_keys_while_new_versions_are_made() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let _wrapper = scene.start_database(&database);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t1 (i INT)");
    let show = "SHOW GLOBAL STATUS LIKE 'aws\\_key\\_management\\_key\\_%'; ".repeat(20);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let rows = database.sql(&show);
                assert!(
                    rows.contains("Aws_key_management_key_1_state\tok"),
                    "{rows}"
                );
            });
        }
        for _ in 0..5 {
            database.sql(ROTATE);
        }
    });
    assert_eq!(database.status("key\\_1\\_latest\\_version"), "6");
}
