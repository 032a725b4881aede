//! The broker: what it serves, whom, for how long, and what it does when the session is over.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::Command,
};

use broker_api::{Decrypt, FailureKind, KeyContext, MAX_FRAME_BYTES, Reply, Request, SessionPhase};
use end_to_end_tests::{
    NOBODY, PATIENCE_SECONDS, Process, SLEEP, Scene, after_python,
    broker::{Peer, broker_pid, failure, generate, generated, phase},
    contains_bytes,
    inspection::{self, command_line, is_dumpable, status},
    mode, variables_of, wait_until, write_fifo,
};
use nix::{
    sys::signal::{SIGHUP, SIGINT, SIGTERM, kill},
    unistd::Pid,
};

fn scene() -> Scene {
    Scene::new().with_broker()
}

fn is_running(pid: Pid) -> bool {
    kill(pid, None).is_ok()
}

#[test]
fn the_socket_is_0600_and_there_when_the_command_starts() {
    let scene = scene();
    let socket = scene.configuration.broker_socket.to_str().unwrap();
    let command = scene.command(&["stat", "--format=<%a %F>", socket]);
    let mut wrapper = scene.spawn(&mut after_python("os.umask(0)", &command));
    wrapper.give_code(&scene.aws);
    let output = wrapper.ends_with(0);
    assert!(output.contains("<600 socket>"), "{output}");
}

#[test]
fn data_keys_are_made_and_unwrapped() {
    let scene = scene();
    let _wrapper = scene.start_with_code(&SLEEP);
    let mut peer = Peer::connect(&scene.configuration.broker_socket);
    for key_bytes in [16, 32] {
        let Reply::Generated {
            ciphertext_blob,
            master_key_arn,
            request_id,
        } = peer.ask(&generate(key_bytes))
        else {
            panic!("no key");
        };
        assert!(master_key_arn.starts_with("arn:aws:kms:us-east-1:111122223333:key/"));
        assert!(scene.aws.log().contains(&request_id));
        let decrypt = Request::Decrypt(Decrypt {
            ciphertext_blob,
            check_value: None,
            context: KeyContext::default(),
        });
        let (first, second) = (peer.ask(&decrypt), peer.ask(&decrypt));
        let (Reply::Decrypted { key, .. }, Reply::Decrypted { key: again, .. }) = (first, second)
        else {
            panic!("no key");
        };
        assert_eq!(key.expose().len(), usize::from(key_bytes));
        assert_eq!(key, again);
    }
    let calls = scene.aws.log();
    let by_session = calls.matches("\"mfaAuthenticated\":\"true\"").count();
    assert_eq!(by_session, 6, "{calls}");
}

#[test]
fn neither_environment_nor_command_line_of_command_and_broker_hold_a_secret() {
    let scene = scene();
    let wrapper = scene.start_with_code(&SLEEP);
    let broker = broker_pid(&scene);
    let (access_key_id, secret_access_key) = scene.aws.long_term_key();
    for pid in [wrapper.process.pid(), broker] {
        for (name, value) in inspection::environment(pid) {
            let is_secret = value == access_key_id || value == secret_access_key;
            assert!(!is_secret && !value.starts_with("ASIA"), "{name}");
            let is_setting = name == "AWS_ENDPOINT_URL" || name == "AWS_EC2_METADATA_DISABLED";
            assert!(!name.starts_with("AWS_") || is_setting, "{name}");
        }
        for secret in [&access_key_id, &secret_access_key] {
            assert!(!contains_bytes(&command_line(pid), secret.as_bytes()));
        }
    }
}

#[test]
fn the_broker_cannot_be_looked_into_by_its_own_user_and_gains_no_privileges() {
    let scene = scene();
    let wrapper = scene.spawn(&mut scene.command_as_nobody(&SLEEP));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    // Root is served too.
    let broker = broker_pid(&scene);
    assert_eq!(status(broker, "Uid"), "65534\t65534\t65534\t65534");
    assert!(!is_dumpable(broker));
    assert!(is_dumpable(wrapper.process.pid()));
    assert_eq!(status(broker, "NoNewPrivs"), "1");
    assert_eq!(status(wrapper.process.pid(), "NoNewPrivs"), "0");
}

#[test]
fn the_broker_is_nobodys_child_but_inits_and_holds_nothing_of_the_commands() {
    let scene = scene();
    let setup = "os.dup2(os.open('/etc/hostname', os.O_RDONLY), 77)\nos.chdir('/usr/lib')";
    let wrapper = scene.spawn(&mut after_python(setup, &scene.command(&SLEEP)));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    let broker = broker_pid(&scene);
    let parent = status(broker, "PPid");
    assert_ne!(parent, wrapper.process.pid().to_string());
    assert_ne!(parent, std::process::id().to_string());
    let link = |name: &str| fs::read_link(format!("/proc/{broker}/{name}"));
    assert_eq!(link("cwd").unwrap(), Path::new("/"));
    assert_eq!(link("fd/0").unwrap(), Path::new("/dev/null"));
    assert_eq!(link("fd/1").unwrap(), Path::new("/dev/null"));
    assert!(link("fd/77").is_err(), "{:?}", link("fd/77"));
}

#[test]
fn the_broker_leaves_with_the_command_and_takes_socket_and_fifo_along() {
    let scene = Scene::with_aws(&["--session-lifetime", "1"]).with_broker();
    let mut wrapper = scene.start_with_code(&SLEEP);
    let broker = broker_pid(&scene);
    wait_until("the FIFO", || scene.fifo().exists());
    wrapper.process.signal(SIGTERM);
    wrapper.process.wait();
    wait_until("the broker to leave", || !is_running(broker));
    assert!(!scene.configuration.broker_socket.exists());
    assert!(!scene.fifo().exists());
}

#[test]
fn signals_do_not_end_the_broker_while_the_command_lives() {
    let scene = scene();
    let _wrapper = scene.start_with_code(&SLEEP);
    let broker = broker_pid(&scene);
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        kill(broker, signal).unwrap();
        assert_eq!(phase(&scene), SessionPhase::Open);
    }
    generated(&scene);
}

#[test]
fn a_peer_of_another_user_is_dropped() {
    let scene = scene();
    let wrapper = scene.start_with_code(&SLEEP);
    let socket = &scene.configuration.broker_socket;
    // Its mode already keeps others out; this is the second lock.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
    let script = format!(
        "import os, socket\nos.setgid({NOBODY}); os.setuid({NOBODY})\n\
         s = socket.socket(socket.AF_UNIX); s.settimeout({PATIENCE_SECONDS})\n\
         s.connect({socket:?})\n\
         try:\n s.send(b'\\2\\1\\0\\0\\0\\2')\n print('got', s.recv(100))\n\
         except (BrokenPipeError, ConnectionResetError):\n print('got', b'')"
    );
    let stranger = Process::start(Command::new("/usr/bin/python3").args(["-c", &script]));
    assert_eq!(stranger.wait_for("got"), "got b''");
    let line = wrapper
        .process
        .wait_for("rejected a connection (uid 65534, pid ");
    assert!(line.contains("only uid 0 and root are served"), "{line}");
    assert_eq!(phase(&scene), SessionPhase::Open);
}

#[test]
fn a_peer_that_sends_garbage_is_disconnected_and_the_next_one_served() {
    let scene = scene();
    let wrapper = scene.start_with_code(&SLEEP);
    let too_long = u32::try_from(MAX_FRAME_BYTES + 1).unwrap().to_le_bytes();
    for (bytes, says) in [
        ([&[2], &too_long[..]].concat(), "a frame of 16385 bytes"),
        (
            b"\x02\xff\xff\xff\xff".to_vec(),
            "a frame of 4294967295 bytes",
        ),
        (b"\x02\x01\0\0\0\x77".to_vec(), "a malformed frame"),
        (b"\x02\x02\0\0\0\x02\x02".to_vec(), "a malformed frame"),
        (b"\x01\x02\0\0\0\x02\x02".to_vec(), "a malformed frame"),
        (b"\x02\0\0\0\0".to_vec(), "a malformed frame"),
    ] {
        let mut peer = Peer::connect(&scene.configuration.broker_socket);
        peer.0.write_all(&bytes).unwrap();
        assert!(peer.is_dropped(), "{says}");
        let line = wrapper.process.wait_for(says);
        assert!(line.contains("closed a connection (uid 0, pid "), "{line}");
        assert_eq!(phase(&scene), SessionPhase::Open);
    }
}

#[test]
fn a_peer_that_stops_within_a_frame_keeps_nobody_waiting() {
    let scene = scene();
    let _wrapper = scene.start_with_code(&SLEEP);
    let mut stuck = Peer::connect(&scene.configuration.broker_socket);
    stuck.0.write_all(b"\x02\x10\0").unwrap();
    generated(&scene);
    drop(stuck);
    generated(&scene);
}

#[test]
fn a_session_that_has_ended_is_reported_with_the_fifo_and_a_new_code_opens_the_next() {
    let mut scene = Scene::with_aws(&["--session-lifetime", "1"]).with_broker();
    let wrapper = scene.start_with_code(&SLEEP);
    let instruction = format!("iam-kms-wrapper code --fifo={}", scene.fifo().display());
    let line = wrapper
        .process
        .wait_for("iam-kms-broker: the AWS session ended at ");
    assert!(line.contains(&instruction), "{line}");
    assert!(line.contains(&scene.aws.serial_number()), "{line}");
    assert_eq!(mode(scene.fifo()), 0o600);
    assert_eq!(phase(&scene), SessionPhase::AwaitingCode);
    let over = failure(&scene);
    assert_eq!(over.kind, FailureKind::SessionOver);
    assert!(over.message.contains(&instruction), "{}", over.message);

    let endpoint = scene.aws.endpoint();
    scene.aws.serve_again(&endpoint, &[]);
    write_fifo(scene.fifo(), scene.aws.wrong_code().as_bytes());
    wrapper
        .process
        .wait_for("iam-kms-broker: AWS refused the code");
    assert_eq!(phase(&scene), SessionPhase::AwaitingCode);
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    wrapper.process.wait_for("iam-kms-broker: session ASIA");
    generated(&scene);
    assert_eq!(phase(&scene), SessionPhase::Open);
    assert!(!scene.fifo().exists());
}

#[test]
fn kms_is_believed_when_it_says_that_the_session_has_ended() {
    let scene = Scene::with_aws(&["--session-lifetime", "300"]).with_broker();
    let _wrapper = scene.start_with_code(&SLEEP);
    generated(&scene);
    // This host's clock says that there are minutes left.
    scene.aws.set_clock("360");
    let over = failure(&scene);
    assert_eq!(over.kind, FailureKind::SessionOver);
    assert!(
        over.message.contains("enter an MFA code"),
        "{}",
        over.message
    );
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    wait_until("a session", || phase(&scene) == SessionPhase::Open);
    generated(&scene);
}

#[test]
fn a_kms_that_fails_is_reported_by_kind_and_the_session_stays() {
    let scene = scene().line("request_timeout_seconds = 3");
    let _wrapper = scene.start_with_code(&SLEEP);
    for (fault, kind) in [
        ("throttle", FailureKind::Throttled),
        ("500", FailureKind::Unavailable),
        ("503", FailureKind::Unavailable),
        ("reset", FailureKind::Unavailable),
        ("silence", FailureKind::Unavailable),
        ("garbage", FailureKind::Unavailable),
        ("no-credentials", FailureKind::Other),
    ] {
        let operation = "--operation GenerateDataKeyWithoutPlaintext";
        scene
            .aws
            .fault(&format!("{operation} --kind {fault} --count 1"));
        let failure = failure(&scene);
        assert_eq!(failure.kind, kind, "{fault}: {}", failure.message);
        assert!(
            failure
                .message
                .starts_with("KMS GenerateDataKeyWithoutPlaintext "),
            "{fault}: {}",
            failure.message
        );
        assert_eq!(phase(&scene), SessionPhase::Open, "{fault}");
    }
    generated(&scene);
}

#[test]
fn a_second_broker_at_the_same_socket_is_refused() {
    let scene = scene();
    let _wrapper = scene.start_with_code(&SLEEP);
    let socket = scene.configuration.broker_socket.display();
    let mut alone = Process::start(&mut scene.broker_command());
    let mut wrapper = scene.start(&SLEEP);
    for process in [&mut alone, &mut wrapper.process] {
        let (status, output) = process.finish();
        assert_eq!(status.code(), Some(125), "{output}");
        assert!(
            output.contains(&format!("another broker listens on {socket}")),
            "{output}"
        );
        assert!(!output.contains("waiting for"), "{output}");
        assert!(!output.contains("enter an MFA code"), "{output}");
    }
    generated(&scene);
}

#[test]
fn a_socket_left_behind_is_replaced() {
    let scene = scene();
    drop(UnixListener::bind(&scene.configuration.broker_socket).unwrap());
    let _wrapper = scene.start_with_code(&SLEEP);
    generated(&scene);
}

#[test]
fn a_path_that_is_not_a_socket_is_left_alone() {
    let scene = scene();
    let path = &scene.configuration.broker_socket;
    fs::write(path, "precious").unwrap();
    let output = scene.start(&SLEEP).ends_with(125);
    let refusal = format!("refusing to replace {}", path.display());
    assert!(output.contains(&refusal), "{output}");
    assert!(
        !output.contains("waiting for"),
        "a code was asked for: {output}"
    );
    assert_eq!(fs::read_to_string(path).unwrap(), "precious");
}

#[test]
fn a_missing_directory_of_the_socket_exits_with_125_before_the_prompt() {
    let scene = scene()
        .without("broker_socket")
        .line("broker_socket = /nonexistent/broker.sock");
    let output = scene.start(&SLEEP).ends_with(125);
    assert!(
        output.contains("cannot create the socket /nonexistent/broker.sock"),
        "{output}"
    );
    assert!(!output.contains("waiting for"), "{output}");
}

#[test]
fn a_missing_broker_program_exits_with_125_before_the_prompt() {
    let scene = scene();
    let program = scene.copy_programs(&["iam-kms-wrapper"]);
    let template = scene.command(&SLEEP);
    let mut command = Command::new(program);
    command
        .args(template.get_args())
        .env_clear()
        .envs(variables_of(&template))
        .env("PATH", "/usr/bin");
    let output = scene.spawn(&mut command).ends_with(125);
    assert!(
        output.contains("cannot start the broker: there is no iam-kms-broker beside"),
        "{output}"
    );
    assert!(!output.contains("waiting for"), "{output}");
}

#[test]
fn a_broker_alone_asks_for_a_code_serves_and_ends_with_0_on_a_signal() {
    let scene = scene();
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let mut broker = Process::start(&mut scene.broker_command());
        broker.wait_for("iam-kms-broker: listening on ");
        broker.wait_for("there is no AWS session yet; enter an MFA code");
        let failure = failure(&scene);
        assert_eq!(failure.kind, FailureKind::SessionOver);
        write_fifo(scene.fifo(), scene.aws.code().as_bytes());
        broker.wait_for("session ASIA");
        assert_eq!(mode(&scene.configuration.broker_socket), 0o600);
        generated(&scene);
        broker.signal(signal);
        let (status, output) = broker.finish();
        assert_eq!(status.code(), Some(0), "{output}");
        assert!(output.contains(&format!("ended by {signal}")), "{output}");
        assert!(!scene.configuration.broker_socket.exists());
        assert!(!scene.fifo().exists());
    }
}

#[test]
fn a_broker_alone_exits_with_125_without_source_credentials() {
    let scene = scene();
    let mut command = scene.broker_command();
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let (status, output) = Process::start(&mut command).finish();
    assert_eq!(status.code(), Some(125), "{output}");
    assert!(output.contains("found no AWS credentials"), "{output}");
}

#[test]
fn what_keeps_the_broker_from_starting_is_said_once() {
    let scene = Scene::new()
        .with_broker()
        .line("overview_socket = /nonexistent/overview.sock");
    // Before a code is spent.
    let output = scene.start(&["true"]).ends_with(125);
    assert_eq!(
        output.matches("/nonexistent/overview.sock").count(),
        1,
        "{output}"
    );
}

#[test]
fn a_fifo_that_is_removed_while_the_broker_waits_is_made_again() {
    let scene = Scene::new().with_broker();
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code of");
    fs::remove_file(scene.fifo()).unwrap();
    broker.wait_for("it was removed or replaced while this process waited");
    wait_until("the next FIFO", || scene.fifo().exists());
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    broker.wait_for("is open until");
}
