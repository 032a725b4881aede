//! The session's end while the server runs, and its return through a new code.

use end_to_end_tests::{
    Database, NEW_KEY, Process, Sandbox, Scene, Wrapper, wait_until, write_fifo,
};

fn start(scene: &Scene) -> (Database, Wrapper) {
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON"]);
    let wrapper = scene.start_database(&database);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t1 (i INT); INSERT INTO d.t1 VALUES (1)");
    (database, wrapper)
}

#[test]
fn when_the_session_has_ended_a_new_code_brings_it_back() {
    let scene = Scene::with_aws(&["--session-lifetime=600"]).with_broker();
    let (database, wrapper) = start(&scene);
    assert!(!scene.fifo().exists());

    scene.aws.end_session();
    let error = database.sql_error(NEW_KEY);
    let instruction = format!("iam-kms-wrapper code --fifo={}", scene.fifo().display());
    assert!(error.contains("enter an MFA code"), "{error}");
    assert!(error.contains(&instruction), "{error}");
    assert_eq!(
        database.sql("INSERT INTO d.t1 VALUES (2); SELECT COUNT(*) FROM d.t1"),
        "2"
    );

    wrapper.process.wait_for("the AWS session ended");
    assert_eq!(database.status("session_state"), "awaiting code");
    wait_until("the FIFO in the status", || {
        database.status("session_fifo") == scene.fifo().display().to_string()
    });

    write_fifo(
        scene.fifo(),
        format!("{}\n", scene.aws.wrong_code()).as_bytes(),
    );
    wrapper.process.wait_for("AWS refused the code");
    scene.aws.set_clock("0");
    write_fifo(scene.fifo(), format!("{}\n", scene.aws.code()).as_bytes());
    wrapper.process.wait_for_nth("is open until", 2);
    database.sql(NEW_KEY);
    assert!(!scene.fifo().exists());
    wait_until("the status", || database.status("session_state") == "open");
}

#[test]
fn a_server_without_a_broker_says_what_to_start() {
    let sandbox = Sandbox::new();
    let socket = sandbox.path("no.sock");
    let database = Database::new(&sandbox)
        .with_our_plugin(&socket)
        .options(&["--aws-key-management=FORCE"]);
    let mut server = Process::start(&mut database.command());
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
