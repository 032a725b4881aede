//! What the plugin says: in the error log, to the client, in its status variables.

use end_to_end_tests::{Database, Wrapper, wait_until};

const PREFIX: &str = "AWS KMS plugin: ";

/// Starts a server without keys, and returns its error log.
fn log_of_a_start(prepare: fn(&Database)) -> String {
    let host = end_to_end_tests::Scene::new().with_broker();
    let database = Database::new(&host.sandbox).with_our_plugin(&host.configuration.broker_socket);
    prepare(&database);
    let mut server = host.start_database(&database);
    database.stop(&mut server.process);
    server.process.output()
}

#[test]
fn a_server_whose_binary_log_is_in_the_clear_in_innodb_is_warned_about() {
    let told = "binlog-000000.ibb: the InnoDB-based binary log (binlog_storage_engine=innodb) is not encrypted";
    let log = log_of_a_start(|database| {
        std::fs::write(database.datadir.join("binlog-000000.ibb"), "").unwrap();
    });
    assert!(log.contains(&format!("{PREFIX}{told}")), "{log}");
    assert!(!log_of_a_start(|_| ()).contains(told));
}

/// Every version that is tested exports all symbols; what is said of one that does not, the C program of
/// `plugin_in_c` shows.
#[test]
fn this_server_exports_what_the_plugin_looks_up() {
    let log = log_of_a_start(|_| ());
    assert!(!log.contains("does not export"), "{log}");
}

/// A server with one table for each key id from 1 to 5.
struct Scene {
    host: end_to_end_tests::Scene,
    database: Database,
    server: Wrapper,
}

impl Scene {
    fn start(options: &[&str]) -> Self {
        let host = end_to_end_tests::Scene::with_aws(&["--session-lifetime=600"]).with_broker();
        let database = Database::new(&host.sandbox)
            .with_our_plugin(&host.configuration.broker_socket)
            .options(&["--innodb-encrypt-tables=ON"])
            .options(options);
        let server = host.start_database(&database);
        database.sql("CREATE DATABASE d");
        for id in 1..=5 {
            database.sql(&create(id));
        }
        Self {
            host,
            database,
            server,
        }
    }

    fn status(&self, name: &str) -> String {
        self.database.status(name)
    }

    fn number(&self, name: &str) -> u64 {
        self.status(name).parse().unwrap()
    }

    /// Lines of the error log that the plugin wrote and that contain `text`.
    fn logged(&self, text: &str) -> Vec<String> {
        self.server
            .process
            .output()
            .lines()
            .filter(|line| line.contains(PREFIX) && line.contains(text))
            .map(str::to_owned)
            .collect()
    }

    /// Takes all rights from the user but those to give them back.
    fn deny_use_of_the_key(&self) {
        let policy = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
            "Action": "kms:*KeyPolicy", "Resource": "*"}]}"#;
        self.host.aws.put_key_policy(&self.host.sandbox, policy);
    }
}

fn create(id: u32) -> String {
    format!("CREATE TABLE d.t{id} (i INT) ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID={id}")
}

const ROTATE_ALL: &str = "SET GLOBAL aws_key_management_rotate_key=-1";

#[test]
fn a_denied_call_is_told_with_the_request_id_that_is_in_awss_call_log() {
    let scene = Scene::start(&[]);
    scene.deny_use_of_the_key();
    let error = scene.database.sql_error(&create(6));
    let log = scene.host.aws.log();
    let denied = log
        .lines()
        .rfind(|line| line.contains("\"errorCode\":\"AccessDenied"))
        .unwrap();
    let record: serde_json::Value = serde_json::from_str(denied).unwrap();
    assert_eq!(record["eventName"], "GenerateDataKeyWithoutPlaintext");
    let request = format!("(request {})", record["requestID"].as_str().unwrap());
    let log = scene.logged(&request);
    for text in [&error, &scene.status("last_error"), &log.concat()] {
        for part in [
            &request,
            "key 6",
            "AccessDeniedException",
            "in its key policy",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
    assert!(error.contains(PREFIX), "{error}");
    let [line] = &log[..] else {
        panic!("one event, {log:?}")
    };
    assert!(line.contains("[ERROR]"), "{line}");
}

#[test]
fn a_rotation_of_all_keys_names_those_that_failed_and_rotates_the_others() {
    let scene = Scene::start(&[]);
    scene
        .host
        .aws
        .fault("--operation GenerateDataKeyWithoutPlaintext --kind no-credentials --count 2");
    let said = scene.database.sql(ROTATE_ALL);
    let ids = |kind: &str, from: &str, to: &str| -> Vec<u32> {
        let texts = said.lines().filter_map(|line| {
            let text = line.strip_prefix(kind)?.split_once(from)?.1;
            text.split_once(to)?.0.parse().ok()
        });
        texts.collect()
    };
    let failed = ids("Warning", "key ", " was not rotated: ");
    let made = ids("Note", "key ", " now has version 2");
    assert_eq!((failed.len(), made.len()), (2, 3), "{said}");
    let mut all = [failed.clone(), made].concat();
    all.sort_unstable();
    assert_eq!(all, [1, 2, 3, 4, 5]);
    for id in failed {
        let text = format!("key {id} was not rotated: ");
        assert_eq!(scene.logged(&text).len(), 1, "{text}");
        assert!(scene.logged(&text)[0].contains("(request "));
    }
    assert_eq!(scene.database.key_files().len(), 5 + 3);
}

#[test]
fn a_rotation_waits_for_nobody_when_the_session_is_over() {
    let scene = Scene::start(&[]);
    scene.host.aws.set_clock("800");
    let said = scene.database.sql(ROTATE_ALL);
    assert_eq!(scene.status("kms_retries"), "0");
    let instruction = format!(
        "iam-kms-wrapper code --fifo={}",
        scene.host.configuration.fifo.display()
    );
    for id in 1..=5 {
        let text = format!("key {id} was not rotated: ");
        let warning = said.lines().find(|line| line.contains(&text)).unwrap();
        assert!(warning.starts_with("Warning"), "{warning}");
        assert!(warning.contains(&instruction), "{warning}");
    }
    assert_eq!(scene.database.key_files().len(), 5);
    assert_eq!(scene.status("session_state"), "awaiting code");
    wait_until("the FIFO in the status", || {
        scene.status("session_fifo") == scene.host.configuration.fifo.display().to_string()
    });
}

/// The least version on disk of the pages of a table.
fn version_of_pages(database: &Database, table: &str) -> String {
    database.sql(&format!(
        "SELECT MIN_KEY_VERSION FROM information_schema.INNODB_TABLESPACES_ENCRYPTION
         WHERE NAME = 'd/{table}'"
    ))
}

#[test]
fn the_note_of_a_rotation_says_which_pages_innodb_re_encrypts() {
    let scene = Scene::start(&[]);
    let database = &scene.database;
    for table in ["t1", "t2"] {
        database.sql(&format!(
            "USE d; INSERT INTO {table} SELECT seq FROM seq_1_to_1000;
             FLUSH TABLES {table} FOR EXPORT"
        ));
        assert_eq!(version_of_pages(database, table), "1");
    }
    database.sql("SET GLOBAL innodb_encryption_threads=2");
    for id in [1, 2, 2] {
        let notes = database.sql(&format!("SET GLOBAL aws_key_management_rotate_key={id}"));
        let note = "more than innodb_encryption_rotate_key_age versions behind";
        assert!(notes.contains(note), "{notes}");
    }
    wait_until("the table that is two versions behind", || {
        version_of_pages(database, "t2") == "3"
    });
    assert_eq!(version_of_pages(database, "t1"), "1");
}

#[test]
fn status_variables_tell_of_the_session_the_keys_the_calls_and_the_last_error() {
    let scene = Scene::start(&[]);
    let (database, aws) = (&scene.database, &scene.host.aws);
    assert_eq!(scene.status("session_state"), "open");
    assert_eq!(scene.status("session_fifo"), "");
    // The wrapper has said the same in its own form.
    let expiration = scene.status("session_expiration").replace(' ', "T") + "Z";
    assert!(
        scene.server.process.output().contains(&expiration),
        "{expiration}"
    );

    // 1 is InnoDB's own too.
    let loaded = |ids: u64, versions: u64| {
        assert_eq!(scene.number("keys_loaded"), ids);
        assert_eq!(scene.number("key_versions_loaded"), versions);
        assert_eq!(database.key_files().len() as u64, versions);
    };
    loaded(5, 5);
    database.sql("SET GLOBAL aws_key_management_rotate_key=4");
    loaded(5, 6);

    let calls = || (aws.calls("Decrypt") + aws.calls("GenerateDataKeyWithoutPlaintext")) as u64;
    assert_eq!(scene.number("kms_calls"), calls());
    assert_eq!(scene.number("kms_failures"), 0);
    aws.fault("--operation any --kind throttle --count 2");
    aws.fault("--operation Decrypt --kind delay --milliseconds 500 --count 1");
    database.sql(&create(6));
    assert_eq!(scene.number("kms_calls"), calls());
    assert_eq!(scene.number("kms_failures"), 2);
    assert_eq!(scene.number("kms_retries"), 2);
    let total_microseconds = scene.number("kms_mean_latency_microseconds") * calls();
    assert!(
        (400_000..10_000_000).contains(&total_microseconds),
        "{total_microseconds}"
    );

    assert_eq!(scene.status("last_error"), "");
    assert_eq!(scene.status("last_error_time"), "");
    let now = || database.sql("SELECT UTC_TIMESTAMP()");
    let before = now();
    database.sql("SET GLOBAL aws_key_management_master_key_id='alias/missing'");
    database.sql_error(&create(7));
    let (time, after) = (scene.status("last_error_time"), now());
    assert!(before <= time && time <= after, "{before} {time} {after}");
    let error = scene.status("last_error");
    assert!(
        error.contains("key 7") && error.contains("NotFoundException"),
        "{error}"
    );
}

#[test]
fn the_log_level_decides_how_much_of_the_traffic_with_kms_is_logged() {
    let mut scene = Scene::start(&[]);
    let database = &scene.database;
    let set = |level: &str| {
        database.sql(&format!("SET GLOBAL aws_key_management_log_level={level}"));
    };
    assert_eq!(scene.logged(" took ").len(), 0);
    assert_eq!(scene.logged("[Note]").len(), 5, "one for each new key");

    set("Error");
    scene
        .host
        .aws
        .fault("--operation any --kind throttle --count 1");
    database.sql(&create(6));
    let failures = scene.logged(" took ");
    assert_eq!(failures.len(), 1);
    for part in ["[Warning]", "and failed: ", "(request "] {
        assert!(failures[0].contains(part), "{failures:?}");
    }
    assert_eq!(scene.logged("retrying ").len(), 0);

    set("Warn");
    scene
        .host
        .aws
        .fault("--operation any --kind throttle --count 1");
    database.sql(&create(7));
    assert_eq!(scene.logged(" took ").len(), 2);
    let retries = scene.logged("retrying ");
    assert_eq!(retries.len(), 1);
    assert!(retries[0].contains("[Warning]"), "{retries:?}");

    set("Info");
    database.sql(&create(8));
    let calls = &scene.logged(" took ")[2..];
    assert_eq!(calls.len(), 2, "one makes the key, one unwraps it");
    let log = scene.host.aws.log();
    for call in calls {
        let id = call.split_once("(request ").unwrap().1;
        let id = id.split_once(')').unwrap().0;
        assert!(log.contains(&format!("\"requestID\":\"{id}\"")), "{call}");
        assert!(call.contains("[Note]"), "{call}");
    }

    database.stop(&mut scene.server.process);
    let database = scene
        .database
        .options(&["--aws-key-management-log-level=Info"]);
    let server = scene.host.start_database(&database);
    let output = server.process.output();
    let calls = output.matches("AWS KMS plugin: Decrypt took ").count();
    assert_eq!(calls, database.key_files().len(), "{output}");
}
