//! Calls of KMS that wait for a person to open a session, and those that must not.

use std::{fs, os::unix::net::UnixStream, thread};

use broker_api::{MayWait, Reply, read_frame, write_frame};
use end_to_end_tests::{Database, Manager, Process, Scene, Wrapper, wait_until, write_fifo};
use nix::sys::signal::Signal::SIGTERM;

use crate::{
    broker::{ask, generate_with},
    server_session::{NEW_KEY, end_session, status},
};

const WAITS: &str = "waiting: ";
const ROTATE: &str = "SET GLOBAL aws_key_management_rotate_key=-1";

/// A server whose session has ended, and a wait that outlasts the test.
fn server_without_session(wait: &str) -> (Scene, Database, Wrapper) {
    let scene = Scene::with_aws(&["--session-lifetime=600"])
        .with_broker()
        .line(wait);
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON"]);
    let wrapper = scene.start_database(&database);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t1 (i INT)");
    end_session(&scene.aws);
    (scene, database, wrapper)
}

fn give_code(scene: &Scene) {
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
}

#[test]
fn a_statement_with_a_new_key_waits_for_a_code_and_then_succeeds() {
    let (scene, database, wrapper) = server_without_session("reprompt_wait_seconds = 600");
    thread::scope(|scope| {
        let statement = scope.spawn(|| database.sql(NEW_KEY));
        let line = wrapper.process.wait_for(WAITS);
        assert!(line.contains("AWS KMS plugin"), "{line}");
        assert!(line.contains("echo 123456 > "), "{line}");
        assert_eq!(database.sql("INSERT INTO d.t1 VALUES (1); SELECT 2"), "2");
        scene.aws.set_clock("0");
        give_code(&scene);
        statement.join().unwrap();
    });
    database.sql("INSERT INTO d.t4 VALUES (1)");
}

#[test]
fn a_statement_fails_with_the_reason_once_it_has_waited_long_enough() {
    let (_scene, database, wrapper) = server_without_session("reprompt_wait_seconds = 1");
    let error = database.sql_error(NEW_KEY);
    assert!(error.contains("write a new MFA code"), "{error}");
    wrapper.process.wait_for(WAITS);
}

#[test]
fn a_rotation_does_not_wait() {
    let (_scene, database, wrapper) = server_without_session("reprompt_wait_seconds = 20");
    let warning = database.sql(ROTATE);
    assert!(warning.contains("key 1 was not rotated: "), "{warning}");
    assert!(warning.contains("write a new MFA code"), "{warning}");
    assert!(!wrapper.process.output().contains(WAITS));
}

#[test]
fn a_statement_that_is_killed_waits_no_longer_and_neither_does_a_shutdown() {
    let (_scene, database, mut wrapper) = server_without_session("reprompt_wait_seconds = 600");
    thread::scope(|scope| {
        let statement = scope.spawn(|| database.sql_error(NEW_KEY));
        wrapper.process.wait_for(WAITS);
        let id = database.sql(
            "SELECT id FROM information_schema.processlist WHERE info LIKE 'CREATE TABLE d.t4%'",
        );
        database.sql(&format!("KILL QUERY {id}"));
        statement.join().unwrap();
        let statement = scope.spawn(|| database.sql_error(NEW_KEY));
        wait_until("the statement", || {
            database
                .sql("SELECT info FROM information_schema.processlist")
                .contains(NEW_KEY)
        });
        database.stop(&mut wrapper.process);
        statement.join().unwrap();
    });
}

#[test]
fn a_call_that_may_not_wait_is_answered_at_once_beside_one_that_does() {
    let scene = Scene::new()
        .with_broker()
        .line("reprompt_wait_seconds = 600");
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("write a new MFA code");
    let mut waiting = UnixStream::connect(&scene.configuration.broker_socket).unwrap();
    write_frame(&mut waiting, &generate_with(MayWait::Statement)).unwrap();
    let first: Reply = read_frame(&mut waiting).unwrap();
    assert!(matches!(first, Reply::Waiting(_)), "{first:?}");
    let at_once = ask(&scene, &generate_with(MayWait::No));
    assert!(
        format!("{at_once:?}").contains("SessionOver"),
        "{at_once:?}"
    );
    give_code(&scene);
    let answer = loop {
        match read_frame(&mut waiting).unwrap() {
            Reply::Waiting(_) => {}
            answer => break answer,
        }
    };
    assert!(matches!(answer, Reply::Generated { .. }), "{answer:?}");
}

#[test]
fn so_many_calls_wait_that_others_are_still_served() {
    let scene = Scene::new()
        .with_broker()
        .line("reprompt_wait_seconds = 600");
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("write a new MFA code");
    let _waiting: Vec<UnixStream> = (0..64)
        .map(|_| {
            let mut peer = UnixStream::connect(&scene.configuration.broker_socket).unwrap();
            write_frame(&mut peer, &generate_with(MayWait::Statement)).unwrap();
            let first: Reply = read_frame(&mut peer).unwrap();
            assert!(matches!(first, Reply::Waiting(_)), "{first:?}");
            peer
        })
        .collect();
    let one_more = ask(&scene, &generate_with(MayWait::Statement));
    assert!(
        format!("{one_more:?}").contains("SessionOver"),
        "{one_more:?}"
    );
}

#[test]
fn reading_a_page_does_not_wait() {
    let scene = Scene::with_aws(&["--session-lifetime=600"])
        .with_broker()
        .line("reprompt_wait_seconds = 20")
        .line("key_cache = session");
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON"]);
    let mut wrapper = scene.start_database(&database);
    database.sql("CREATE DATABASE d");
    database.sql(NEW_KEY);
    database.stop(&mut wrapper.process);
    let file = database.datadir.join("aws-kms-key.4.1");
    let away = scene.sandbox.path("away");
    fs::rename(&file, &away).unwrap();
    wait_until("the broker to leave", || {
        !scene.configuration.broker_socket.exists()
    });

    let wrapper = scene.start_database(&database);
    fs::rename(&away, &file).unwrap();
    end_session(&scene.aws);
    database.sql_error("SELECT * FROM d.t4");
    wrapper
        .process
        .wait_for("aws-kms-key.4.1': the AWS session ended at ");
    assert!(!wrapper.process.output().contains(WAITS));
}

/// A server as the distribution starts it, beside a broker that runs alone and has no session yet.
fn beside_a_broker(scene: &Scene) -> (Process, Database) {
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("write a new MFA code");
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON", "--innodb-encrypt-log=ON"]);
    (broker, database)
}

#[test]
fn a_server_beside_a_broker_waits_for_the_code_and_systemd_gives_it_the_time() {
    let scene = Scene::new().with_broker();
    let (broker, database) = beside_a_broker(&scene);
    let mut manager = Manager::start(&scene.sandbox);
    let mut command = database.command();
    command.env("NOTIFY_SOCKET", manager.address());
    let mut server = Process::start(&mut command);
    server.wait_for(WAITS);
    let told = manager.wait_for("EXTEND_TIMEOUT_USEC=60000000");
    assert!(told.contains("echo 123456 > "), "{told}");
    // Nobody reads what the server tells from now on, and it would wait for that.
    drop(manager);
    give_code(&scene);
    database.wait_until_ready(&server);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t1 (i INT)");
    database.stop(&mut server);
    drop(broker);

    // The same where there are key files.
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("write a new MFA code");
    let mut server = Process::start(&mut database.command());
    server.wait_for(WAITS);
    give_code(&scene);
    database.wait_until_ready(&server);
    assert!(!server.output().contains("[ERROR]"), "{}", server.output());
    assert_eq!(status(&database, "session_state"), "open");
    database.stop(&mut server);
}

#[test]
fn a_server_that_waits_for_its_keys_can_be_stopped() {
    let scene = Scene::new().with_broker();
    let (_broker, database) = beside_a_broker(&scene);
    let mut server = Process::start(&mut database.command());
    server.wait_for(WAITS);
    server.signal(SIGTERM);
    server.wait();
}
