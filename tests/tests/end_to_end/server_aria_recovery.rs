//! After a crash Aria's recovery needs all versions of key 1. Where it has not got one, it takes the table
//! for crashed, and the next start loses what was only in the log.

use std::fs;

use end_to_end_tests::{Database, ENCRYPT_ALL, Process, Scene};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};

const COMMITTED: &str = "SELECT COUNT(*), MIN(t = REPEAT('new ', 20)) FROM d.aria";

/// A server that was killed, with committed rows of an Aria table in the log only. Its pages are
/// encrypted with version 2 of key 1, of a master key of its own.
struct Killed {
    scene: Scene,
    broker: Process,
    database: Database,
    /// The master key of version 2.
    master_key: String,
}

impl Killed {
    fn new(options: &[&str]) -> Self {
        let scene = Scene::new().with_broker();
        let broker = scene.start_broker();
        let master_key = scene.aws.key(&["--alias=alias/other"]);
        let database = Database::new(&scene.sandbox)
            .with_our_plugin(&scene.configuration.broker_socket)
            .options(options);
        let mut server = database.start();
        database.sql(
            "CREATE DATABASE d; CREATE TABLE d.aria (i INT PRIMARY KEY, t TEXT) ENGINE=Aria;
             SET GLOBAL aws_key_management_master_key_id='alias/other';
             SET GLOBAL aws_key_management_rotate_key=1;
             INSERT INTO d.aria SELECT seq, 'old' FROM d.seq_1_to_500; ALTER TABLE d.aria FORCE;
             FLUSH TABLES; UPDATE d.aria SET t = REPEAT('new ', 20)",
        );
        assert_eq!(database.sql(COMMITTED), "500\t1");
        server.signal(SIGKILL);
        server.wait();
        Self {
            scene,
            broker,
            database,
            master_key,
        }
    }

    /// The reason follows that of the plugin, and is the last thing that the server says.
    fn fails_to_start(&self, reason: &str) {
        let (status, output) = Process::start(&mut self.database.command()).finish();
        assert_eq!(status.code(), Some(1), "{output}");
        let (_, end) = output.split_once(reason).expect(&output);
        let last = end.lines().last().unwrap();
        for expected in [
            "AWS KMS plugin: the server ends here: the Aria table '",
            "/d/aria.MAI' is encrypted with ",
        ] {
            assert!(last.contains(expected), "{output}");
        }
    }

    fn loses_nothing(&self) {
        let mut server = self.database.start();
        assert_eq!(
            self.database.sql(COMMITTED),
            "500\t1",
            "{}",
            server.output()
        );
        self.database.stop(&mut server);
    }
}

fn forced() -> Vec<&'static str> {
    [&ENCRYPT_ALL[..], &["--aws-key-management=FORCE"]].concat()
}

#[test]
fn a_start_while_kms_refuses_one_version_of_key_1_loses_no_row_of_aria() {
    let killed = Killed::new(&forced());
    let kms = |action| {
        let key_id = format!("--key-id={}", killed.master_key);
        killed.scene.aws.cli(&["kms", action, &key_id]);
    };
    kms("disable-key");
    killed.fails_to_start("DisabledException");
    kms("enable-key");
    killed.loses_nothing();
}

fn start_without_a_broker(options: &[&str]) {
    let mut killed = Killed::new(options);
    killed.broker.signal(SIGKILL);
    killed.broker.wait();
    killed.fails_to_start("no broker at '");
    killed.broker = killed.scene.start_broker();
    killed.loses_nothing();
}

#[test]
fn a_start_without_a_broker_loses_no_row_of_aria() {
    start_without_a_broker(&forced());
}

#[test]
fn a_start_that_does_not_need_the_plugin_loses_no_row_of_aria_without_a_broker() {
    start_without_a_broker(&["--aria-encrypt-tables=ON"]);
}

#[test]
fn a_start_without_a_file_of_key_1_loses_no_row_of_aria() {
    let killed = Killed::new(&forced());
    let file = killed.database.datadir.join("aws-kms-key.1.2");
    let away = killed.scene.sandbox.path("away");
    fs::rename(&file, &away).unwrap();
    killed.fails_to_start("aws-kms-key.1.2 is missing");
    fs::rename(&away, &file).unwrap();
    killed.loses_nothing();
}

/// `systemctl stop`, which a starting server that waits sees only in the plugin.
#[test]
fn a_start_that_is_stopped_while_it_waits_for_a_code_loses_no_row_of_aria() {
    let mut killed = Killed::new(&forced());
    killed.broker.signal(SIGKILL);
    killed.broker.wait();
    let broker = Process::start(&mut killed.scene.broker_command());
    broker.wait_for("enter an MFA code");
    let mut server = Process::start(&mut killed.database.command());
    server.wait_for("waiting: ");
    server.signal(SIGTERM);
    let (_, output) = server.finish();
    assert!(output.contains("the server ends here"), "{output}");
    drop(broker);
    killed.broker = killed.scene.start_broker();
    killed.loses_nothing();
}
