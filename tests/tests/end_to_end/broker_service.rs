//! The broker as a service: which users it serves, what it remembers, what it leaves for an audit.

use std::{fs, os::unix::fs::PermissionsExt};

use broker_api::{Reply, Request, WaitPolicy};
use end_to_end_tests::{
    Manager, NOBODY, Process, Scene,
    broker::{answer_to, ask, decrypt, frame, generate_with, generated},
    mode, write_fifo,
};
use nix::unistd::{Gid, Group, Uid};
use serde_json::Value;

/// The key, the request id of KMS, or the failure's message.
fn decrypted(scene: &Scene, ciphertext_blob: &[u8]) -> Result<(Vec<u8>, String), String> {
    match ask(scene, &decrypt(ciphertext_blob.into())) {
        Reply::Decrypted {
            key, request_id, ..
        } => Ok((key.expose().into(), request_id)),
        Reply::Failed(failure) => Err(failure.message),
        reply => panic!("{reply:?}"),
    }
}

/// A broker whose session has ended, after it has unwrapped the first of two keys.
fn after_the_session(scene: &Scene) -> (Process, [Vec<u8>; 2], Vec<u8>) {
    let broker = scene.start_broker();
    let blobs = [generated(scene), generated(scene)];
    let (key, _) = decrypted(scene, &blobs[0]).unwrap();
    scene.aws.set_clock("800");
    assert!(format!("{:?}", ask(scene, &generate_with(WaitPolicy::Never))).contains("SessionOver"));
    (broker, blobs, key)
}

fn short_sessions() -> Scene {
    Scene::with_aws(&["--session-lifetime=600"]).with_broker()
}

#[test]
fn a_key_that_was_unwrapped_is_given_after_the_session_and_no_other() {
    let scene = short_sessions();
    let (_broker, [known, unknown], key) = after_the_session(&scene);
    let calls = scene.aws.calls("Decrypt");
    assert_eq!(decrypted(&scene, &known), Ok((key, String::new())));
    assert_eq!(scene.aws.calls("Decrypt"), calls);
    let error = decrypted(&scene, &unknown).unwrap_err();
    assert!(error.contains("enter an MFA code"), "{error}");
}

#[test]
fn with_key_cache_session_no_key_outlives_it() {
    let scene = short_sessions().line("key_cache = session");
    let (_broker, [known, _], _) = after_the_session(&scene);
    let error = decrypted(&scene, &known).unwrap_err();
    assert!(error.contains("enter an MFA code"), "{error}");
}

#[test]
fn kms_is_asked_while_there_is_a_session_and_what_it_refuses_is_forgotten() {
    let scene = short_sessions();
    let _broker = scene.start_broker();
    let blob = generated(&scene);
    for _ in 0..2 {
        let (_, request_id) = decrypted(&scene, &blob).unwrap();
        assert!(scene.aws.log().contains(&request_id));
    }
    let key = "--key-id=alias/mariadb";
    let describe = ["kms", "describe-key", key, "--query=KeyMetadata.KeyId"];
    let key_id = scene.aws.cli(&[&describe[..], &["--output=text"]].concat());
    scene.aws.cli(&["kms", "disable-key", "--key-id", &key_id]);
    let error = decrypted(&scene, &blob).unwrap_err();
    assert!(error.contains("DisabledException"), "{error}");
    scene.aws.set_clock("800");
    let error = decrypted(&scene, &blob).unwrap_err();
    assert!(error.contains("enter an MFA code"), "{error}");
}

#[test]
fn members_of_the_group_are_served_and_no_other_user() {
    let group = Group::from_gid(Gid::from_raw(NOBODY)).unwrap().unwrap();
    let scene = Scene::new()
        .with_broker()
        .line(&format!("broker_socket_group = {}", group.name));
    let broker = scene.start_broker();
    let socket = &scene.configuration.broker_socket;
    fs::set_permissions(scene.sandbox.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(mode(socket), 0o660);
    let session = frame(&Request::Session);
    let answer_to = |group, groups: &[u32]| answer_to(3000, group, groups, socket, &session);
    assert_eq!(answer_to(NOBODY, &[]), "got True");
    assert_eq!(answer_to(3000, &[3001, NOBODY]), "got True");
    assert_eq!(answer_to(3000, &[]), "got Permission denied");
    // Its mode already keeps others out; this is the second lock.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
    assert_ne!(answer_to(3000, &[]), "got True");
    let line = broker.wait_for("rejected a connection (uid 3000, pid ");
    assert!(
        line.contains("only uid 0, root and processes of group 65534 are served"),
        "{line}"
    );
}

#[test]
fn systemd_learns_that_the_service_is_ready_and_where_to_enter_a_code() {
    let scene = Scene::new().with_broker();
    let mut manager = Manager::start(&scene.sandbox);
    let mut command = scene.broker_command();
    command.env("NOTIFY_SOCKET", manager.address());
    let broker = Process::start(&mut command);
    manager.wait_for("READY=1");
    let status = manager.wait_for("STATUS=");
    assert!(status.contains("iam-kms-wrapper code --fifo="), "{status}");
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    manager.wait_for("is open until");
    drop(broker);
}

#[test]
fn each_step_is_an_event_for_an_audit_and_no_event_has_a_code() {
    let scene = short_sessions().line("log_format = json");
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("\"prompt\"");
    let wrong = scene.aws.wrong_code();
    write_fifo(scene.fifo(), wrong.as_bytes());
    broker.wait_for("code_refused");
    let code = scene.aws.code();
    write_fifo(scene.fifo(), code.as_bytes());
    broker.wait_for("session_open");
    let blob = generated(&scene);
    let (_, request_id) = decrypted(&scene, &blob).unwrap();
    scene.aws.set_clock("800");
    ask(&scene, &generate_with(WaitPolicy::Never));
    decrypted(&scene, &blob).unwrap();
    broker.wait_for("from the key cache");
    broker.wait_for_nth("\"prompt\"", 2);

    let output = broker.output();
    assert!(
        !output.contains(&wrong) && !output.contains(&code),
        "{output}"
    );
    let events: Vec<Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let all = |name: &'static str| events.iter().filter(move |event| event["event"] == name);
    for (name, count) in [
        ("prompt", 2),
        ("code_refused", 1),
        ("code_taken", 1),
        ("session_open", 1),
        ("session_end", 1),
        ("kms_call", 3),
        ("kms_call_failed", 1),
    ] {
        assert_eq!(all(name).count(), count, "{name}: {output}");
    }
    let decrypts: Vec<_> = all("kms_call")
        .filter(|e| e["operation"] == "Decrypt")
        .collect();
    let [from_kms, from_cache] = decrypts[..] else {
        panic!("{output}");
    };
    assert_eq!(from_kms["request_id"], request_id);
    assert_eq!(from_cache["request_id"], Value::Null);
    for event in decrypts {
        assert_eq!(
            (&event["key_id"], &event["key_version"]),
            (&7.into(), &3.into())
        );
        assert_eq!(event["peer_uid"], Uid::current().as_raw());
        assert_eq!(event["peer_pid"], std::process::id());
        let master_key = event["master_key"].as_str().unwrap();
        assert!(master_key.starts_with("arn:aws:kms:"), "{master_key}");
    }
}

#[test]
fn the_log_in_text_is_without_the_calls() {
    let scene = short_sessions();
    let (broker, ..) = after_the_session(&scene);
    // Said after the calls.
    broker.wait_for("the AWS session ended");
    let output = broker.output();
    assert!(!output.contains("GenerateDataKey"), "{output}");
    assert!(!output.contains("Decrypt"), "{output}");
}
