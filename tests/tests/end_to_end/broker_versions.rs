//! Broker and plugin of different releases.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use broker_api::{
    FailureKind, PROTOCOL_VERSION, Reply, Request, SessionPhase, read_frame, write_frame,
    write_frame_of,
};
use end_to_end_tests::{
    Database, NEW_KEY, Process, Scene, Wrapper,
    broker::{Peer, phase},
    dist, variables_of, wait_until, write_fifo,
};

/// Release 0.1.0 as it was before the protocol had a second version.
const OLD_COMMIT: &str = "e2c614d";

/// A file that cargo builds of the old release, once for all runs.
fn old(package: &str, file: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _guard = BUILDING.lock().unwrap();
    let directory = dist("")
        .parent()
        .unwrap()
        .join(format!("release-{OLD_COMMIT}"));
    let sources = directory.join("sources");
    if !sources.exists() {
        check_out(&directory, &sources);
    }
    let built = directory.join("target");
    let cargo = env::var("CARGO").unwrap_or("cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--locked", "--package", package])
        .current_dir(&sources)
        .env("CARGO_TARGET_DIR", &built);
    let output = build.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    built.join("debug").join(file)
}

fn check_out(directory: &Path, sources: &Path) {
    fs::create_dir_all(directory).unwrap();
    let unfinished = tempfile::tempdir_in(directory).unwrap();
    let archive = unfinished.path().join("sources.tar");
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut git = Command::new("git");
    git.args(["-C", repository, "archive", "--output"])
        .arg(&archive)
        .arg(OLD_COMMIT);
    assert!(git.status().unwrap().success(), "{git:?}");
    let unpacked = unfinished.path().join("sources");
    fs::create_dir(&unpacked).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&unpacked).arg("-xf").arg(&archive);
    assert!(tar.status().unwrap().success(), "{tar:?}");
    fs::rename(unpacked, sources).unwrap();
}

fn old_plugin() -> PathBuf {
    old("aws-key-management-plugin", "libaws_key_management.so")
}

/// A database whose server has the old plugin.
fn database_with_old_plugin(scene: &Scene) -> Database {
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON", "--innodb-encrypt-log=ON"]);
    database.replace_plugin(&old_plugin());
    database
}

fn give_code(scene: &Scene) {
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
}

#[test]
fn a_server_with_the_plugin_of_0_1_0_works_with_this_broker() {
    let scene = Scene::with_aws(&["--session-lifetime=600"])
        .with_broker()
        .line("reprompt_wait_seconds = 60");
    let database = database_with_old_plugin(&scene);
    let mut wrapper: Wrapper = scene.start_database(&database);
    let noted = wrapper
        .process
        .wait_for("still has the plugin of release 0.1.0 loaded");
    assert!(noted.contains("next restart"), "{noted}");
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t1 (i INT);
         CREATE TABLE d.t3 (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=3; INSERT INTO d.t3 VALUES (3)",
    );
    let rotated = database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    assert!(rotated.contains("key 3 now has version 2"), "{rotated}");
    assert_eq!(database.status("session_state"), "open");

    scene.aws.end_session();
    std::thread::scope(|scope| {
        let statement = scope.spawn(|| database.sql(NEW_KEY));
        let line = wrapper.process.wait_for("waiting: ");
        assert!(line.contains("iam-kms-wrapper code --fifo="), "{line}");
        assert_eq!(database.sql("SELECT i FROM d.t3"), "3");
        wait_until("the status", || {
            database.status("session_state") == "awaiting code"
        });
        scene.aws.set_clock("0");
        give_code(&scene);
        statement.join().unwrap();
    });
    database.stop(&mut wrapper.process);
    let output = wrapper.process.output();
    assert_eq!(output.matches("release 0.1.0").count(), 1, "{output}");
    assert!(!output.contains("[ERROR]"), "{output}");
}

#[test]
fn a_server_with_the_plugin_of_0_1_0_starts_beside_this_broker_and_waits_for_its_code() {
    let scene = Scene::new().with_broker();
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    let database = database_with_old_plugin(&scene);
    let mut server = Process::start(&mut database.command());
    server.wait_for("waiting: ");
    give_code(&scene);
    database.wait_until_ready(&server);
    database.stop(&mut server);
}

#[test]
fn a_server_with_the_plugin_of_0_1_0_that_names_another_region_says_what_to_do() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let database =
        database_with_old_plugin(&scene).options(&["--aws-key-management-region=eu-west-1"]);
    let mut server = Process::start(&mut database.command());
    let line = server.wait_for("aws_key_management_region is not us-east-1");
    assert!(
        line.contains("remove the variable, or set region"),
        "{line}"
    );
    server.wait();
}

#[test]
fn a_server_with_this_plugin_says_that_a_broker_of_0_1_0_must_be_restarted() {
    let scene = Scene::new().with_broker();
    let mut command = Command::new(old("iam-kms-broker", "iam-kms-broker"));
    let template = scene.broker_command();
    command
        .args(template.get_args())
        .env_clear()
        .envs(variables_of(&template));
    let broker = Process::start(&mut command);
    broker.wait_for("write a new MFA code");
    let database =
        Database::new(&scene.sandbox).with_our_plugin(&scene.configuration.broker_socket);
    let server = Process::start(&mut database.command());
    let line = server.wait_for("is of an older release than this program");
    assert!(line.contains("restart it"), "{line}");
    database.wait_until_ready(&server);
    let told = server.output().matches("older release").count();
    assert_eq!(told, 1, "{}", server.output());
}

#[test]
fn a_version_that_the_broker_does_not_know_is_answered_with_the_reason() {
    let scene = Scene::new().with_broker();
    let broker = scene.start_broker();
    for version in [0, PROTOCOL_VERSION + 1, b'G'] {
        let mut peer = Peer::connect(&scene.configuration.broker_socket);
        for _ in 0..2 {
            write_frame_of(version, &mut peer.0, &Request::Session).unwrap();
            let Reply::Failed(failure) = read_frame(&mut peer.0).unwrap() else {
                panic!("no refusal");
            };
            assert_eq!(failure.kind, FailureKind::UnsupportedVersion);
            let says = format!("not {version}, because it is another release; restart it");
            assert!(failure.message.contains(&says), "{}", failure.message);
        }
        // The connection is as good as before.
        write_frame(&mut peer.0, &Request::Session).unwrap();
        let reply = read_frame(&mut peer.0).unwrap();
        assert!(matches!(reply, Reply::Session(_)), "{reply:?}");
        let says = format!("uses protocol version {version}, but this broker supports 1 to 2");
        broker.wait_for(&says);
        assert_eq!(broker.output().matches(&says).count(), 1);
    }
    wait_until("the session", || phase(&scene) == SessionPhase::Open);
}
