//! The plugin built with its `mock` feature: no broker, no AWS.

use std::fs;

use end_to_end_tests::{Database, Process, Sandbox, dist};

const VARIABLE: &str = "SHOW GLOBAL VARIABLES LIKE 'aws_key_management_mock'";

fn database(sandbox: &Sandbox) -> Database {
    let plugin_dir = format!("--plugin-dir={}", dist("test-plugin").display());
    Database::new(sandbox)
        .with_our_plugin(&sandbox.path("no.sock"))
        .options(&[&plugin_dir, "--innodb-encrypt-tables=ON"])
}

#[test]
fn a_mock_build_with_the_mock_on_needs_neither_broker_nor_aws_and_warns() {
    let sandbox = Sandbox::new();
    let database = database(&sandbox).options(&["--aws-key-management-mock"]);
    let mut server = database.start();
    let warning = server.wait_for("aws_key_management_mock is ON: NOTHING IS PROTECTED");
    assert!(warning.contains("[Warning]"), "{warning}");
    assert_eq!(database.sql(VARIABLE), "aws_key_management_mock\tON");
    let error = database.sql_error("SET GLOBAL aws_key_management_mock=OFF");
    assert!(error.contains("read only"), "{error}");

    database.sql(
        "CREATE DATABASE d; USE d; CREATE TABLE d.t (t TEXT) ENGINE=InnoDB ENCRYPTION_KEY_ID=3;
         INSERT INTO d.t SELECT CONCAT('a-marker-', seq) FROM seq_1_to_500;
         SET GLOBAL aws_key_management_rotate_key=3;
         INSERT INTO d.t SELECT CONCAT('a-marker-', seq) FROM seq_1_to_500",
    );
    database.stop(&mut server);
    assert!(
        database
            .files_with(b"a-marker-")
            .iter()
            .all(|file| !file.ends_with(".ibd"))
    );
    let key = fs::read(database.datadir.join("aws-kms-key.3.2")).unwrap();
    assert_eq!(key.len(), 16, "the key as it is");

    let mut server = database.start();
    assert_eq!(database.sql("SELECT COUNT(*) FROM d.t"), "1000");
    database.stop(&mut server);
}

#[test]
fn a_mock_build_with_the_mock_off_wants_a_broker() {
    let sandbox = Sandbox::new();
    let database = database(&sandbox).options(&["--aws-key-management=FORCE"]);
    let mut server = Process::start(&mut database.command());
    let (status, output) = server.finish();
    assert!(!status.success());
    assert!(output.contains("AWS KMS plugin: no broker at "), "{output}");
    assert!(!output.contains("NOTHING IS PROTECTED"), "{output}");
}

#[test]
fn the_installed_plugin_has_no_such_variable() {
    let sandbox = Sandbox::new();
    let database = Database::new(&sandbox)
        .with_our_plugin(&sandbox.path("no.sock"))
        .options(&["--aws-key-management-mock"]);
    let mut server = Process::start(&mut database.command());
    let (status, output) = server.finish();
    assert!(!status.success());
    assert!(
        output.contains("unknown option '--aws-key-management-mock'"),
        "{output}"
    );
}
