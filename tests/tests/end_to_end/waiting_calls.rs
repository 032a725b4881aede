//! KMS calls that wait for a person to open a session, and those that must not.

use std::{
    fs,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use broker_api::{Reply, WaitPolicy, read_frame, write_frame};
use end_to_end_tests::{
    Database, Manager, NEW_KEY, Process, Scene, Wrapper,
    broker::{ask, generate_with},
    wait_until, write_fifo,
};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};

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
    scene.aws.end_session();
    (scene, database, wrapper)
}

fn give_code(scene: &Scene) {
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
}

/// Statements that need KMS on a table that exists, and one that makes another.
const NEED_KMS: [&str; 5] = [
    "ALTER TABLE d.t1 ENCRYPTED=YES ENCRYPTION_KEY_ID=4",
    "ALTER TABLE d.t1 ENCRYPTED=YES ENCRYPTION_KEY_ID=4, ALGORITHM=COPY",
    NEW_KEY,
    "CREATE TABLE d.t5 ENCRYPTED=YES ENCRYPTION_KEY_ID=4 SELECT * FROM d.t1",
    "SET GLOBAL innodb_default_encryption_key_id=4",
];

#[test]
fn a_statement_that_needs_a_code_fails_at_once_with_where_to_enter_it_and_works_after_that() {
    let (scene, database, wrapper) = server_without_session("reprompt_wait_seconds = 600");
    for statement in NEED_KMS {
        let error = database.sql_error(statement);
        assert!(error.contains("enter an MFA code"), "{statement}: {error}");
        assert!(
            error.contains("iam-kms-wrapper code --fifo="),
            "{statement}: {error}"
        );
    }
    let warning = database.sql(ROTATE);
    assert!(warning.contains("key 1 was not rotated: "), "{warning}");
    assert!(warning.contains("enter an MFA code"), "{warning}");
    assert!(!wrapper.process.output().contains(WAITS));
    scene.aws.set_clock("0");
    give_code(&scene);
    wrapper.process.wait_for_nth("is open until", 2);
    for statement in NEED_KMS {
        database.sql(statement);
    }
}

/// While many sessions ask for a key that needs a code, the others continue, and a global read lock is granted.
#[test]
fn statements_that_need_a_code_hold_up_nobody_else() {
    let (_scene, database, _wrapper) = server_without_session("reprompt_wait_seconds = 600");
    database.sql("CREATE TABLE d.other (i INT)");
    let is_over = AtomicBool::new(false);
    let (asked, locked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for statement in NEED_KMS {
            let (database, is_over, asked) = (&database, &is_over, &asked);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    // Or with the read lock that another session has.
                    database.sql_error(statement);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                database.sql("FLUSH TABLES WITH READ LOCK; UNLOCK TABLES");
                locked.fetch_add(1, Ordering::Relaxed);
            }
        });
        for number in 1..=50 {
            database.sql(&format!(
                "INSERT INTO d.t1 VALUES ({number}); INSERT INTO d.other SELECT i FROM d.t1 WHERE i = {number}"
            ));
        }
        wait_until("the others to have had their turns", || {
            asked.load(Ordering::Relaxed) >= 50 && locked.load(Ordering::Relaxed) >= 10
        });
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(database.sql("SELECT COUNT(*) FROM d.other"), "50");
}

#[test]
fn a_call_that_may_not_wait_is_answered_at_once_beside_one_that_does() {
    let scene = Scene::new()
        .with_broker()
        .line("reprompt_wait_seconds = 600");
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    let mut waiting = UnixStream::connect(&scene.configuration.broker_socket).unwrap();
    write_frame(&mut waiting, &generate_with(WaitPolicy::Limited)).unwrap();
    let first: Reply = read_frame(&mut waiting).unwrap();
    assert!(matches!(first, Reply::Waiting(_)), "{first:?}");
    let at_once = ask(&scene, &generate_with(WaitPolicy::Never));
    assert!(
        format!("{at_once:?}").contains("SessionOver"),
        "{at_once:?}"
    );
    give_code(&scene);
    let answer = answer(&mut waiting);
    assert!(matches!(answer, Reply::Generated { .. }), "{answer:?}");
}

#[test]
fn however_many_calls_wait_one_more_may_and_those_that_must_not_are_answered_at_once() {
    let scene = Scene::new()
        .with_broker()
        .line("reprompt_wait_seconds = 600");
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    let mut waiting: Vec<UnixStream> = (0..500)
        .map(|_| {
            let mut peer = UnixStream::connect(&scene.configuration.broker_socket).unwrap();
            write_frame(&mut peer, &generate_with(WaitPolicy::Limited)).unwrap();
            let first: Reply = read_frame(&mut peer).unwrap();
            assert!(matches!(first, Reply::Waiting(_)), "{first:?}");
            peer
        })
        .collect();
    let at_once = ask(&scene, &generate_with(WaitPolicy::Never));
    assert!(
        format!("{at_once:?}").contains("SessionOver"),
        "{at_once:?}"
    );
    give_code(&scene);
    for peer in &mut waiting {
        let answer = answer(peer);
        assert!(matches!(answer, Reply::Generated { .. }), "{answer:?}");
    }
}

/// The answer after all waiting.
fn answer(peer: &mut UnixStream) -> Reply {
    loop {
        match read_frame(peer).unwrap() {
            Reply::Waiting(_) => {}
            answer => return answer,
        }
    }
}

#[test]
fn reading_a_page_does_not_wait() {
    let scene = Scene::with_aws(&["--session-lifetime=600"])
        .with_broker()
        .line("reprompt_wait_seconds = 20")
        .line("key_cache = session");
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&[
            "--innodb-encrypt-tables=ON",
            // Nothing but the statement below opens the table.
            "--innodb-buffer-pool-load-at-startup=OFF",
            "--innodb-fast-shutdown=0",
            "--innodb-stats-persistent=OFF",
        ]);
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
    scene.aws.end_session();
    fs::rename(&away, &file).unwrap();
    database.sql_error("SELECT * FROM d.t4");
    wrapper
        .process
        .wait_for("aws-kms-key.4.1': the AWS session ended at ");
    assert!(!wrapper.process.output().contains(WAITS));
}

/// A server as the distribution starts it, beside a broker that runs alone and has no session yet.
fn beside_a_broker(scene: &Scene) -> (Process, Database) {
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
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
    let told = manager.wait_for("EXTEND_TIMEOUT_USEC=900000000");
    assert!(told.contains("iam-kms-wrapper code --fifo="), "{told}");
    // Nobody reads what the server tells from now on, and it would wait for that.
    drop(manager);
    give_code(&scene);
    database.wait_until_ready(&server);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t1 (i INT)");
    database.stop(&mut server);
    drop(broker);

    // The same where there are key files.
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    let mut server = Process::start(&mut database.command());
    server.wait_for(WAITS);
    give_code(&scene);
    database.wait_until_ready(&server);
    assert!(!server.output().contains("[ERROR]"), "{}", server.output());
    assert_eq!(database.status("session_state"), "open");
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

#[test]
fn a_server_that_waits_keeps_waiting_when_the_broker_is_killed_and_started_again() {
    let scene = Scene::new().with_broker();
    let (broker, database) = beside_a_broker(&scene);
    let mut server = Process::start(&mut database.command());
    server.wait_for(WAITS);
    broker.signal(SIGKILL);
    let line = server.wait_for("the broker is gone while this server waits");
    assert!(line.contains("broker.sock"), "{line}");
    // No broker listens for longer than a look at it takes.
    drop(broker);
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    give_code(&scene);
    database.wait_until_ready(&server);
    let output = server.output();
    assert_eq!(output.matches("the broker is gone").count(), 1, "{output}");
    assert!(!output.contains("[ERROR]"), "{output}");
    database.stop(&mut server);
}

#[test]
fn a_server_that_waits_for_a_broker_to_come_back_can_be_stopped() {
    let scene = Scene::new().with_broker();
    let (broker, database) = beside_a_broker(&scene);
    let mut server = Process::start(&mut database.command());
    server.wait_for(WAITS);
    drop(broker);
    server.wait_for("the broker is gone while this server waits");
    server.signal(SIGTERM);
    server.wait();
}
