//! KMS or the broker fail while the server runs.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use end_to_end_tests::{
    Database, LocalAws, Process, Scene, Wrapper, inspection::listener, try_sql, wait_until,
    write_fifo,
};
use nix::sys::signal::{
    Signal::{SIGCONT, SIGKILL, SIGSTOP},
    kill,
};

const ROTATE: &str = "SET GLOBAL aws_key_management_rotate_key=10";
/// How long a failed key is not tried again at first, as the plugin has it.
const FIRST_PAUSE_SECONDS: u64 = 1;

struct Server {
    database: Database,
    wrapper: Wrapper,
}

impl Server {
    /// Has table `d.t10` with key 10.
    fn start(scene: &Scene) -> Self {
        let database = Database::new(&scene.sandbox)
            .with_our_plugin(&scene.configuration.broker_socket)
            .options(&["--innodb-encrypt-tables=ON"]);
        let wrapper = scene.start_database(&database);
        let server = Self { database, wrapper };
        server.database.sql("CREATE DATABASE d");
        server.database.sql(&create(10));
        server
    }

    /// Reads, writes, and makes a table with a key that is in memory.
    fn check_serves(&self) {
        let count = "SELECT COUNT(*) FROM d.t10";
        let before: u32 = self.database.sql(count).parse().unwrap();
        self.database.sql(
            "INSERT INTO d.t10 VALUES (1); FLUSH TABLES;
             CREATE TABLE d.same_key (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10;
             DROP TABLE d.same_key",
        );
        let after: u32 = self.database.sql(count).parse().unwrap();
        assert_eq!(after, before + 1);
    }

    /// What needs KMS fails with these reasons.
    fn check_tells(&self, reasons: &[&str]) {
        let error = self.database.sql_error(&create(20));
        let warning = self.database.sql(ROTATE);
        assert!(warning.contains("key 10 was not rotated: "), "{warning}");
        for message in [error, warning] {
            for reason in reasons {
                assert!(message.contains(reason), "no {reason:?} in: {message}");
            }
        }
    }

    /// What needed KMS works again by itself, after the first pause.
    fn check_recovers(&self) {
        wait_until("a new key", || {
            match try_sql(&self.database.socket, &create(20)) {
                Ok(_) => true,
                Err(error) => {
                    let left = seconds_left(&error.text);
                    assert_eq!(left, Some(FIRST_PAUSE_SECONDS), "{}", error.text);
                    false
                }
            }
        });
        let note = self.database.sql(ROTATE);
        assert!(note.contains("key 10 now has version 2"), "{note}");
        self.check_serves();
    }

    fn failures(&self) -> u64 {
        self.database.status("kms_failures").parse().unwrap()
    }

    fn calls(&self) -> u64 {
        self.database.status("kms_calls").parse().unwrap()
    }
}

/// In how many seconds at most the key is tried again, where the answer is remembered.
fn seconds_left(error: &str) -> Option<u64> {
    let (_, rest) = error.split_once("next attempt in ")?;
    let (seconds, _) = rest.split_once(" s at the earliest")?;
    seconds.parse().ok()
}

fn create(id: u32) -> String {
    format!("CREATE TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}")
}

/// KMS has a second for each call.
fn scene() -> Scene {
    Scene::new()
        .with_broker()
        .line("request_timeout_seconds = 1")
}

/// An outage between `begin` and `end`.
fn outage(begin: impl FnOnce(&mut LocalAws), end: impl FnOnce(&mut LocalAws), reasons: &[&str]) {
    let mut scene = scene();
    let server = Server::start(&scene);
    begin(&mut scene.aws);
    server.check_tells(reasons);
    server.check_serves();
    end(&mut scene.aws);
    server.check_recovers();
}

fn fault(kind: &str, reasons: &[&str]) {
    outage(
        |aws| aws.fault(&format!("--operation any --kind {kind}")),
        |aws| aws.fault("--clear"),
        reasons,
    );
}

#[test]
fn keys_in_memory_serve_while_kms_throttles() {
    fault("throttle", &["ThrottlingException", "(request "]);
}

#[test]
fn keys_in_memory_serve_while_kms_fails() {
    fault("500", &["KMSInternalException", "(request "]);
}

#[test]
fn keys_in_memory_serve_while_kms_does_not_answer() {
    fault("silence", &["gave no answer within"]);
}

#[test]
fn keys_in_memory_serve_while_kms_cannot_be_reached() {
    let endpoint = std::cell::OnceCell::new();
    outage(
        |aws| {
            endpoint.set(aws.endpoint()).unwrap();
            aws.stop();
        },
        |aws| aws.start_again_at(endpoint.get().unwrap()),
        &["cannot reach it", "Connection refused"],
    );
}

#[test]
fn a_start_outlasts_a_kms_that_throttles() {
    let scene = scene();
    let mut server = Server::start(&scene);
    server.database.stop(&mut server.wrapper.process);
    scene
        .aws
        .fault("--operation Decrypt --kind throttle --count 16");
    let wrapper = scene.start_database(&server.database);
    let log = wrapper.process.output();
    assert!(!log.contains("[ERROR]"), "{log}");
    // Longer than the interval of the progress, which says what it waits for.
    assert!(log.contains("data keys; retrying: "), "{log}");
    assert!(log.contains("ThrottlingException"), "{log}");
    assert_eq!(server.database.status("kms_retries"), "16");
    server.check_serves();
}

#[test]
fn keys_in_memory_serve_while_there_is_neither_broker_nor_key_file() {
    let scene = scene();
    let server = Server::start(&scene);
    let file = server.database.datadir.join("aws-kms-key.10.1");
    let away = scene.sandbox.path("away");
    fs::rename(&file, &away).unwrap();
    kill_broker(&scene.configuration.broker_socket);
    let socket = scene.configuration.broker_socket.display().to_string();
    server.check_tells(&["no broker at", &socket, "iam-kms-broker"]);
    server.check_serves();
    assert_eq!(server.database.status("session_state"), "no broker");

    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    server.check_tells(&["enter an MFA code", "iam-kms-wrapper code --fifo="]);
    server.check_serves();
    wait_until("the status", || {
        server.database.status("session_state") == "awaiting code"
    });
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    broker.wait_for("is open until");
    // Nobody beyond this host was asked, so nothing is waited for.
    server.database.sql(&create(20));
    server.check_serves();
    let note = server.database.sql(ROTATE);
    assert!(note.contains("key 10 now has version 2"), "{note}");
    assert!(!file.exists());
}

fn kill_broker(socket: &Path) {
    kill(listener(socket), SIGKILL).unwrap();
    wait_until("the broker to die", || UnixStream::connect(socket).is_err());
}

#[test]
fn nothing_is_remembered_as_failed_for_longer_than_the_back_off() {
    let scene = scene();
    let server = Server::start(&scene);
    let database = &server.database;
    let set_master_key = |alias: &str| {
        database.sql(&format!(
            "SET GLOBAL aws_key_management_master_key_id='alias/{alias}'"
        ));
    };
    set_master_key("missing");
    let before = server.failures();
    // Each pause is twice as long as the one before: on a busy machine the first may be over before
    // anybody has asked again.
    let mut pause_told = 0;
    wait_until("an answer within the second pause, or a later one", || {
        let (calls, failures) = (server.calls(), server.failures());
        let error = database.sql_error(&create(20));
        assert!(error.contains("NotFoundException"), "{error}");
        if let Some(left) = seconds_left(&error) {
            let pause = FIRST_PAUSE_SECONDS << (failures - before - 1);
            assert!((1..=pause).contains(&left), "{pause}: {error}");
            assert_eq!(server.calls(), calls, "KMS was asked within the pause");
            pause_told = failures - before;
        }
        pause_told >= 2
    });
    set_master_key("mariadb");
    let pause = FIRST_PAUSE_SECONDS << (server.failures() - before - 1);
    wait_until("a new key", || {
        match try_sql(&database.socket, &create(20)) {
            Ok(_) => true,
            Err(error) => {
                let left = seconds_left(&error.text);
                assert!(left.is_some_and(|left| left <= pause), "{}", error.text);
                false
            }
        }
    });
    server.check_serves();
}

/// What a rotation and the loading at start are promised to be over after.
const PROMISED_SECONDS: u64 = 30;
/// One call after the other would need minutes: a busy machine is told from a broken promise.
const BUSY_MACHINE_SECONDS: u64 = 60;

/// A server with 1,000 keys that are loaded, and KMS with its ordinary ten seconds for each call.
fn start_with_a_thousand_keys(scene: &Scene) -> Server {
    let mut server = Server::start(scene);
    server.database.stop(&mut server.wrapper.process);
    let directory = &server.database.datadir;
    for id in 1000..2000 {
        let copy = directory.join(format!("aws-kms-key.{id}.1"));
        fs::copy(directory.join("aws-kms-key.10.1"), copy).unwrap();
    }
    server.wrapper = scene.start_database(&server.database);
    assert_eq!(server.database.status("keys_loaded"), "1002");
    server
}

fn assert_bounded(what: &str, start: Instant) {
    let limit = Duration::from_secs(PROMISED_SECONDS + BUSY_MACHINE_SECONDS);
    let elapsed = start.elapsed();
    assert!(elapsed < limit, "{what} took {elapsed:?}");
}

#[test]
fn a_rotation_of_a_thousand_keys_ends_in_time_even_if_kms_swallows_every_call() {
    let scene = Scene::new().with_broker();
    let server = start_with_a_thousand_keys(&scene);
    scene.aws.fault("--operation any --kind silence");
    let start = Instant::now();
    let rotate_all = "SET GLOBAL aws_key_management_rotate_key=-1";
    let warning = thread::scope(|scope| {
        let rotation = scope.spawn(|| server.database.sql(rotate_all));
        wait_until("the rotation to ask KMS", || !rotations(&server).is_empty());
        server.check_serves();
        rotation.join().unwrap()
    });
    assert_bounded("the rotation", start);
    let reason = " were not rotated: KMS or the disk takes too long; repeat the statement";
    assert!(warning.contains(reason), "{warning}");
    // The broker asks KMS for 64 at a time, in rounds of ten seconds.
    let entries = server.wrapper.process.output().matches("rotated:").count();
    assert!(entries < 300, "{entries} entries in the log");
    server.check_serves();

    // KILL ends it at once.
    let start = Instant::now();
    thread::scope(|scope| {
        let rotation = scope.spawn(|| server.database.sql(rotate_all));
        wait_until("the rotation to ask KMS", || !rotations(&server).is_empty());
        server
            .database
            .sql(&format!("KILL QUERY {}", rotations(&server)));
        let warning = rotation.join().unwrap();
        let reason = " were not rotated: the statement was killed";
        assert!(warning.contains(reason), "{warning}");
    });
    let elapsed = start.elapsed();
    assert!(elapsed.as_secs() < PROMISED_SECONDS, "{elapsed:?}");
}

/// The connection's number of the statement that rotates.
fn rotations(server: &Server) -> String {
    server
        .database
        .sql("SELECT id FROM information_schema.processlist WHERE info LIKE 'SET%rotate_key=-1'")
}

#[test]
fn a_start_with_a_thousand_keys_ends_in_time_even_if_kms_swallows_every_call() {
    let scene = Scene::new().with_broker();
    let mut server = start_with_a_thousand_keys(&scene);
    server.database.stop(&mut server.wrapper.process);
    scene.aws.fault("--operation Decrypt --kind silence");
    let mut wrapper = scene.spawn(&mut scene.database_command(&server.database));
    wrapper.give_code(&scene.aws);
    wrapper.process.wait_for("loaded 0 of 1002 data keys; ");
    let start = Instant::now();
    let (status, log) = wrapper.process.finish();
    assert_bounded("the start", start);
    assert!(!status.success());
    assert!(
        log.contains("no data key could be loaded (data keys: 1002); the reasons are above"),
        "{log}"
    );
    let errors = log.matches("[ERROR]").count();
    assert!(errors < 100, "{errors} errors in\n{log}");
}

#[test]
fn kill_ends_a_statement_that_waits_for_a_silent_broker() {
    const TIME_LIMIT: Duration = Duration::from_secs(60);
    let scene = Scene::new().with_broker().line(&format!(
        "request_timeout_seconds = {}",
        TIME_LIMIT.as_secs()
    ));
    let server = Server::start(&scene);
    let database = &server.database;
    let broker = listener(&scene.configuration.broker_socket);
    kill(broker, SIGSTOP).unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        let statement = scope.spawn(|| database.sql_error(&create(20)));
        let query = "SELECT id FROM information_schema.processlist
            WHERE info LIKE 'CREATE TABLE d.t20%' AND time_ms > 500";
        wait_until("the statement", || !database.sql(query).is_empty());
        database.sql(&format!("KILL QUERY {}", database.sql(query)));
        let error = statement.join().unwrap();
        assert!(error.contains("the statement was killed or"), "{error}");
    });
    assert!(start.elapsed() < TIME_LIMIT, "{:?}", start.elapsed());
    kill(broker, SIGCONT).unwrap();
    server.check_serves();
}

#[test]
fn kill_ends_a_statement_that_waits_for_kms_and_one_that_waits_behind_it() {
    const KMS_SECONDS: u64 = 40;
    let scene = Scene::new()
        .with_broker()
        .line("request_timeout_seconds = 60");
    let server = Server::start(&scene);
    let database = &server.database;
    scene.aws.fault(&format!(
        "--operation any --kind delay --milliseconds {KMS_SECONDS}000"
    ));
    let create =
        |table| format!("CREATE TABLE d.{table} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=20");
    let connection = |table| {
        let query =
            "SELECT id FROM information_schema.processlist WHERE info LIKE 'CREATE TABLE d.";
        wait_until("the statement", || {
            !database.sql(&format!("{query}{table} %'")).is_empty()
        });
        database.sql(&format!("{query}{table} %'"))
    };
    let start = Instant::now();
    thread::scope(|scope| {
        let first = scope.spawn(|| database.sql_error(&create("first")));
        let first_connection = connection("first");
        let second = scope.spawn(|| database.sql_error(&create("second")));
        for (connection, statement) in [(connection("second"), second), (first_connection, first)] {
            database.sql(&format!("KILL QUERY {connection}"));
            let error = statement.join().unwrap();
            // The second text is the server's, where the statement was killed before it asked for a key.
            let killed = ["the statement was killed or", "ERROR 1317"];
            assert!(killed.iter().any(|text| error.contains(text)), "{error}");
        }
    });
    let elapsed = start.elapsed();
    assert!(elapsed.as_secs() < KMS_SECONDS, "{elapsed:?}");
    server.check_serves();
}
