//! A client of the broker's socket that wants other keys in it, or none, and an endpoint that does.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::Command,
    thread,
    time::Duration,
};

use broker_api::{
    Decrypt, FailureKind, KeyContext, Reply, Request, SessionPhase, read_frame_of, version1,
    write_frame_of,
};
use end_to_end_tests::{
    Database, NOBODY, Process, SLEEP, Scene,
    broker::{Peer, ask, broker_pid, generated, phase},
    dist,
    inspection::status,
    run_client,
};
use key_files::{PlaintextKey, check_value::CheckValue};

fn short_sessions() -> Scene {
    Scene::with_aws(&["--session-lifetime=600"]).with_broker()
}

fn decrypt(ciphertext_blob: &[u8], of: Option<&[u8]>) -> Request {
    let check_value = of.map(|key| CheckValue::of(&PlaintextKey::new(key).unwrap()).to_bytes());
    Request::Decrypt(Decrypt {
        ciphertext_blob: ciphertext_blob.into(),
        check_value,
        context: KeyContext::default(),
    })
}

/// The key, or the kind of the failure and its message.
fn key_of(scene: &Scene, request: &Request) -> Result<Vec<u8>, (FailureKind, String)> {
    match ask(scene, request) {
        Reply::Decrypted { key, .. } => Ok(key.expose().into()),
        Reply::Failed(failure) => Err((failure.kind, failure.message)),
        reply => panic!("{reply:?}"),
    }
}

fn end_session(scene: &Scene) {
    scene.aws.set_clock("800");
    assert_eq!(
        key_of(scene, &decrypt(b"unknown", None)).unwrap_err().0,
        FailureKind::SessionOver
    );
}

fn ask_in_version_1(scene: &Scene, options: version1::KmsOptions) -> version1::Reply {
    let mut peer = Peer::connect(&scene.configuration.broker_socket);
    let request = version1::Request::GenerateDataKey {
        master_key_id: "alias/mariadb".into(),
        key_bytes: 16,
        options,
    };
    write_frame_of(version1::PROTOCOL_VERSION, &mut peer.0, &request).unwrap();
    read_frame_of(version1::PROTOCOL_VERSION, &mut peer.0).unwrap()
}

#[test]
fn no_client_can_name_the_place_where_kms_is() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    let url = format!("http://{}", stranger.local_addr().unwrap());
    let of = |region: &str, endpoint_url: &str| version1::KmsOptions {
        region: region.into(),
        endpoint_url: endpoint_url.into(),
        request_timeout_milliseconds: u32::MAX,
        ..version1::KmsOptions::default()
    };
    for (options, variable) in [
        (of("", &url), "aws_key_management_endpoint_url"),
        (of("eu-west-1", ""), "aws_key_management_region"),
        (of("x.evil.example/", ""), "aws_key_management_region"),
    ] {
        let reply = ask_in_version_1(&scene, options);
        let version1::Reply::Failed(failure) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(failure.kind, FailureKind::InvalidRequest);
        assert!(failure.message.contains(variable), "{}", failure.message);
        assert!(
            failure.message.contains("the broker calls KMS"),
            "{}",
            failure.message
        );
    }
    assert!(stranger.accept().is_err(), "the broker went there");
    // Who names the broker's own is served.
    let reply = ask_in_version_1(&scene, of("us-east-1", &scene.aws.endpoint()));
    assert!(
        matches!(reply, version1::Reply::Generated { .. }),
        "{reply:?}"
    );
    assert_eq!(phase(&scene), SessionPhase::Open);
}

#[test]
fn no_client_can_put_a_key_of_its_own_in_the_place_of_another() {
    let scene = short_sessions();
    let _broker = scene.start_broker();
    let (theirs, ours) = (generated(&scene), generated(&scene));
    let key = key_of(&scene, &decrypt(&theirs, None)).unwrap();
    // A key of the client's own that it calls by the check value of the other.
    let own = key_of(&scene, &decrypt(&ours, Some(&key))).unwrap();
    assert_ne!(own, key);
    end_session(&scene);
    assert_eq!(key_of(&scene, &decrypt(&theirs, None)), Ok(key.clone()));
    assert_eq!(key_of(&scene, &decrypt(b"x", Some(&key))), Ok(key));
    assert_eq!(key_of(&scene, &decrypt(&ours, None)), Ok(own));
}

#[test]
fn no_client_can_have_a_kept_key_forgotten_or_end_the_session() {
    let scene = short_sessions();
    let _broker = scene.start_broker();
    let blob = generated(&scene);
    let key = key_of(&scene, &decrypt(&blob, None)).unwrap();
    let mut damaged = blob.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (request, kind) in [
        // What KMS refuses, with the check value of a key that is good.
        (
            decrypt(&damaged, Some(&key)),
            FailureKind::InvalidCiphertext,
        ),
        (
            decrypt(b"rubbish", Some(&key)),
            FailureKind::InvalidCiphertext,
        ),
        (decrypt(&[], Some(&key)), FailureKind::InvalidRequest),
        (decrypt(&[0; 6145], Some(&key)), FailureKind::InvalidRequest),
    ] {
        assert_eq!(key_of(&scene, &request).unwrap_err().0, kind);
    }
    assert_eq!(phase(&scene), SessionPhase::Open);
    end_session(&scene);
    assert_eq!(key_of(&scene, &decrypt(&blob, None)), Ok(key));
}

#[test]
fn a_key_that_was_rewrapped_is_still_found_after_the_session() {
    let scene = short_sessions();
    let _broker = scene.start_broker();
    let file = scene.sandbox.path("wrapped");
    let hex = "000102030405060708090a0b0c0d0e0f";
    scene.aws.wrap_key(&scene.sandbox, hex, &file);
    let before = fs::read(&file).unwrap();
    let key = key_of(&scene, &decrypt(&before, None)).unwrap();
    scene.aws.wrap_key(&scene.sandbox, hex, &file);
    let after = fs::read(&file).unwrap();
    assert_ne!(before, after);
    end_session(&scene);
    assert_eq!(key_of(&scene, &decrypt(&after, Some(&key))), Ok(key));
    assert_eq!(
        key_of(&scene, &decrypt(&after, None)).unwrap_err().0,
        FailureKind::SessionOver
    );
}

#[test]
fn a_wrong_clock_forgets_no_key() {
    let scene = short_sessions();
    let _broker = scene.start_broker();
    let blob = generated(&scene);
    let key = key_of(&scene, &decrypt(&blob, None)).unwrap();
    // Requests come an hour too early.
    scene.aws.set_clock("-3600");
    let (kind, message) = key_of(&scene, &decrypt(&blob, None)).unwrap_err();
    assert_eq!(kind, FailureKind::NotAuthenticated, "{message}");
    assert!(message.contains("set the clock (timedatectl)"), "{message}");
    end_session(&scene);
    assert_eq!(key_of(&scene, &decrypt(&blob, None)), Ok(key));
}

/// Answers each request with as many bytes as are taken, for ever.
fn serve_without_end(listener: &TcpListener) {
    fn flood(mut stream: TcpStream) -> std::io::Result<()> {
        let mut request = [0; 16 * 1024];
        if stream.read(&mut request)? == 0 {
            return Ok(());
        }
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        let zeros = [b'0'; 0x10_0000];
        loop {
            stream.write_all(b"100000\r\n")?;
            stream.write_all(&zeros)?;
            stream.write_all(b"\r\n")?;
        }
    }
    for stream in listener.incoming().flatten() {
        // Ends when the other side has had enough.
        thread::spawn(move || flood(stream));
    }
}

#[test]
fn an_answer_of_kms_without_end_costs_little_memory() {
    let scene = Scene::new().with_broker();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || serve_without_end(&listener));
    let mut command = scene.broker_command();
    command.env("AWS_ENDPOINT_URL_KMS", url);
    let broker = Process::start(&mut command);
    broker.wait_for("enter an MFA code");
    end_to_end_tests::write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    broker.wait_for("is open until");
    for _ in 0..5 {
        let (kind, message) = key_of(&scene, &decrypt(b"blob", None)).unwrap_err();
        assert_eq!(kind, FailureKind::Unavailable, "{message}");
        assert!(
            message.contains("could not be read to its end"),
            "{message}"
        );
    }
    let peak = status(broker_pid(&scene), "VmHWM");
    let kilobytes: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 64 * 1024, "{peak}");
}

#[test]
fn an_answer_of_sts_without_end_costs_little_memory() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || serve_without_end(&listener));
    let mut command = scene.command(&SLEEP);
    command.env("AWS_ENDPOINT_URL_STS", url);
    let wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.process.wait_for("could not be read to its end");
    let peak = status(wrapper.process.pid(), "VmHWM");
    let kilobytes: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 64 * 1024, "{peak}");
}

#[test]
fn a_broker_makes_no_socket_where_others_could_replace_it() {
    let scene = Scene::new().with_broker();
    let directory = scene.configuration.broker_socket.parent().unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
    let refusal = format!(
        "every user can write to the directory {}",
        directory.display()
    );
    let mut alone = Process::start(&mut scene.broker_command());
    let mut wrapper = scene.start(&SLEEP);
    for process in [&mut alone, &mut wrapper.process] {
        let (status, output) = process.finish();
        assert_eq!(status.code(), Some(125), "{output}");
        assert!(output.contains(&refusal), "{output}");
        assert!(!output.contains("waiting for"), "{output}");
        assert!(!output.contains("enter an MFA code"), "{output}");
    }
}

#[test]
fn a_server_takes_no_keys_of_another_user_who_listens_in_the_brokers_place() {
    let scene = Scene::new().with_broker();
    let socket = scene.configuration.broker_socket.clone();
    // Of root, and too open.
    let directory = socket.parent().unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o1777)).unwrap();
    let script = format!(
        "import os, socket\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n\
         s = socket.socket(socket.AF_UNIX); s.bind({socket:?}); os.chmod({socket:?}, 0o777)\n\
         s.listen(); print('listening')\n\
         while True: print('got', s.accept()[0].recv(100))"
    );
    let impostor = Process::start(Command::new("/usr/bin/python3").args(["-u", "-c", &script]));
    impostor.wait_for("listening");
    let database = Database::new(&scene.sandbox).with_our_plugin(&socket);
    let mut server = Process::start(&mut database.command());
    let line = server.wait_for("user 65534 listens there");
    assert!(line.contains(socket.to_str().unwrap()), "{line}");
    database.wait_until_ready(&server);
    database.stop(&mut server);
    assert!(database.key_files().is_empty());
    // A client that connects more than once.
    let directory = scene.sandbox.directory("keys");
    for id in 1..=9 {
        fs::write(directory.join(format!("aws-kms-key.{id}.1")), "wrapped").unwrap();
    }
    let mut verify = Command::new(dist("bin/kms-data-keys"));
    verify
        .args(["verify", "--broker-socket"])
        .args([&socket, &directory]);
    let (_, output) = Process::start(&mut verify).finish();
    let refusals = output.matches("user 65534 listens there").count();
    assert!(refusals > 1, "{output}");
    // The impostor takes connections in turn: this is the last one.
    let mut last = UnixStream::connect(&socket).unwrap();
    last.write_all(b"the last").unwrap();
    impostor.wait_for("got b'the last'");
    let output = impostor.output();
    let connections = output.matches("got ").count() - 1;
    let silent = output.matches("got b''").count();
    assert!(connections > 1 && connections == silent, "{output}");
}

#[test]
fn a_user_who_may_not_use_the_socket_learns_of_the_group() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let socket = scene.configuration.broker_socket.display().to_string();
    let directory = scene.sandbox.directory("keys");
    fs::write(directory.join("aws-kms-key.1.1"), "wrapped").unwrap();
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
    let program = scene.copy_programs(&["kms-data-keys"]);
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program)
        .args(["verify", "--broker-socket", &socket])
        .arg(&directory);
    let (_, output) = Process::start(&mut command).finish();
    assert!(
        output.contains("user 65534 may not use the broker"),
        "{output}"
    );
    assert!(output.contains("set broker_socket_group"), "{output}");
}

#[test]
fn variables_that_have_no_effect_any_more_are_named_at_the_start() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&[
            "--aws-key-management-region=eu-west-1",
            "--aws-key-management-request-timeout=500",
        ]);
    let wrapper = scene.start_database(&database);
    for (variable, instead) in [
        ("region", "the broker calls KMS in us-east-1"),
        ("request_timeout", "the broker's time limit is 10000 ms"),
    ] {
        let text = format!("aws_key_management_{variable} has no effect: {instead}");
        let line = wrapper.process.wait_for(&text);
        assert!(line.contains("[Warning]"), "{line}");
    }
    let shown = database.sql("SELECT @@aws_key_management_region");
    assert_eq!(shown, "eu-west-1");
    assert!(run_client(&database.socket, "SELECT 1").status.success());
}

#[test]
fn a_server_waits_as_long_as_the_brokers_time_limit_says() {
    let scene = Scene::new()
        .with_broker()
        .line("request_timeout_seconds = 30");
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON"]);
    let _wrapper = scene.start_database(&database);
    database.sql("CREATE DATABASE d");
    // Longer than the 12 seconds of a server that knows of no other limit.
    let milliseconds = Duration::from_secs(14).as_millis();
    scene.aws.fault(&format!(
        "--operation Decrypt --kind delay --milliseconds {milliseconds} --count 1"
    ));
    database.sql("CREATE TABLE d.t4 (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=4");
    let key_files = database.key_files();
    assert!(
        key_files.contains(&"aws-kms-key.4.1".into()),
        "{key_files:?}"
    );
}
