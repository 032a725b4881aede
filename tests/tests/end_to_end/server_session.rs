//! The session's end while the server runs, and its return through a new code.

use end_to_end_tests::{
    Configuration, Database, LocalAws, Process, Sandbox, Wrapper, wait_until, write_fifo,
};

pub const NEW_KEY: &str =
    "CREATE TABLE d.t4 (i INT) ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID=4";

/// Moves AWS's clock past the end of the session. The broker learns it from KMS.
pub fn end_session(aws: &LocalAws) {
    // Within the quarter of an hour by which AWS lets clocks differ.
    aws.set_clock("800");
}

fn start(sandbox: &Sandbox, aws: &LocalAws) -> (Configuration, Database, Wrapper) {
    let configuration = Configuration::with_broker(sandbox, aws);
    let database = Database::new(sandbox)
        .with_our_plugin(&configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON"]);
    let wrapper = Wrapper::start_database(sandbox, aws, &configuration, &database);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t1 (i INT); INSERT INTO d.t1 VALUES (1)");
    (configuration, database, wrapper)
}

#[test]
fn when_the_session_has_ended_a_new_code_brings_it_back() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start_with(&sandbox, &["--session-lifetime=600"]);
    let (configuration, database, wrapper) = start(&sandbox, &aws);
    assert!(!configuration.fifo.exists());

    end_session(&aws);
    let error = database.sql_error(NEW_KEY);
    let instruction = format!(
        "iam-kms-wrapper code --fifo={}",
        configuration.fifo.display()
    );
    assert!(error.contains("write a new MFA code"), "{error}");
    assert!(error.contains(&instruction), "{error}");
    assert_eq!(
        database.sql("INSERT INTO d.t1 VALUES (2); SELECT COUNT(*) FROM d.t1"),
        "2"
    );

    wrapper.process.wait_for("the AWS session ended");
    assert_eq!(status(&database, "session_state"), "awaiting code");
    wait_until("the FIFO in the status", || {
        status(&database, "session_fifo") == configuration.fifo.display().to_string()
    });

    write_fifo(
        &configuration.fifo,
        format!("{}\n", aws.wrong_code()).as_bytes(),
    );
    wrapper.process.wait_for("AWS refused the code");
    aws.set_clock("0");
    write_fifo(&configuration.fifo, format!("{}\n", aws.code()).as_bytes());
    wrapper.process.wait_for_nth("is open until", 2);
    database.sql(NEW_KEY);
    assert!(!configuration.fifo.exists());
    wait_until("the status", || {
        status(&database, "session_state") == "open"
    });
}

#[test]
fn a_server_without_a_broker_says_what_to_start() {
    let sandbox = Sandbox::new();
    let socket = sandbox.path("no.sock");
    let database = Database::new(&sandbox)
        .with_our_plugin(&socket)
        .options(&["--aws-key-management=FORCE"]);
    let line = database.command_line();
    let mut server = Process::start(std::process::Command::new(&line[0]).args(&line[1..]));
    let (status, output) = server.finish();
    assert!(!status.success());
    let message = output
        .lines()
        .find(|line| line.contains("AWS KMS plugin"))
        .unwrap_or(&output);
    assert!(message.contains(&socket.display().to_string()), "{message}");
    assert!(message.contains("iam-kms-broker"), "{message}");
    assert!(message.contains("handoff"), "{message}");
}

/// The value of a status variable of the plugin.
pub fn status(database: &Database, name: &str) -> String {
    let row = database.sql(&format!(
        "SHOW GLOBAL STATUS LIKE 'aws_key_management_{name}'"
    ));
    row.split('\t').nth(1).unwrap_or_default().to_owned()
}
