//! Watching a broker: its metrics, its overview, and the audit with its reasons.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aws_session::clock::unix_seconds_now;
use broker_api::{
    AuditEvent, FailureKind, KeyContext, ListKeys, Overview, Reply, Request, SessionPhase,
    WaitPolicy,
};
use end_to_end_tests::{
    LocalAws, NOBODY, Process, Sandbox, Scene, StoreDirectory,
    broker::{Peer, answer_to, ask, decrypt, frame, generate, generate_with, generated},
    dist, fence,
    key_server::{Authority, DAY, KeyServer, TlsPeer, free_port, make_key},
    run_with_input, set_user, wait_until,
};
use nix::unistd::{Gid, Group};
use serde_json::Value;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A broker that shows itself on two sockets, besides the one for keys.
struct Watched {
    scene: Scene,
    metrics: PathBuf,
    overview: PathBuf,
    broker: Process,
}

/// Starts it without a session.
fn watched() -> Watched {
    watched_with("")
}

/// Starts it with these lines in its configuration.
fn watched_with(lines: &str) -> Watched {
    let scene = Scene::with_aws(&["--session-lifetime=600"]).with_broker();
    let run = scene.fifo().parent().unwrap().to_owned();
    let (metrics, overview) = (run.join("metrics.sock"), run.join("overview.sock"));
    let scene = scene
        .line(lines)
        .line("log_format = json")
        .line(&format!("metrics_listen = {}", metrics.display()))
        .line(&format!("overview_socket = {}", overview.display()));
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    Watched {
        scene,
        metrics,
        overview,
        broker,
    }
}

impl Watched {
    /// Enters a good code with `iam-kms-wrapper code`, as an operator who came with ssh.
    fn enter_code(&self, reason: &str) -> String {
        let mut command = Command::new(dist("bin/iam-kms-wrapper"));
        command
            .args(["code", &format!("--fifo={}", self.scene.fifo().display())])
            .args(["--reason", reason])
            .env_clear()
            .env("SSH_CONNECTION", "192.0.2.7 50000 192.0.2.1 22");
        let code = format!("{}\n", self.scene.aws.code());
        let output = run_with_input(&mut command, &code);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        code.trim().into()
    }

    fn overview(&self) -> Overview {
        match Peer::connect(&self.overview).ask(&Request::Overview) {
            Reply::Overview(overview) => *overview,
            reply => panic!("{reply:?}"),
        }
    }

    fn metric(&self, line: &str) -> bool {
        let (status, text) = get(UnixStream::connect(&self.metrics).unwrap(), "localhost");
        assert!(status.contains("200 OK"), "{status}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        text.lines().any(|known| known == line)
    }

    /// All events, the latest first, page by page.
    fn events(&self) -> Vec<AuditEvent> {
        let mut all: Vec<AuditEvent> = Vec::new();
        loop {
            let before = all.last().map(|event| event.number);
            match Peer::connect(&self.overview).ask(&Request::Events { before }) {
                Reply::Events(page) if page.is_empty() => return all,
                Reply::Events(page) => all.extend(page),
                reply => panic!("{reply:?}"),
            }
        }
    }
}

/// Requests `/metrics`; returns the status line and the body.
fn get(mut stream: impl Read + Write, host: &str) -> (String, String) {
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().into(), body.into())
}

#[test]
fn metrics_follow_the_session_and_count_calls_by_result() {
    let watched = watched();
    assert!(watched.metric("iam_kms_broker_session_open 0"));
    assert!(watched.metric("iam_kms_broker_code_awaited 1"));
    let Reply::Failed(failure) = ask(&watched.scene, &generate(16)) else {
        panic!("a key without a session");
    };
    assert_eq!(failure.kind, FailureKind::SessionOver);
    watched.enter_code("first");
    watched.broker.wait_for("is open until");
    let wrapped = generated(&watched.scene);
    for _ in 0..3 {
        let reply = ask(&watched.scene, &decrypt(wrapped.clone()));
        assert!(matches!(reply, Reply::Decrypted { .. }), "{reply:?}");
    }
    for line in [
        "iam_kms_broker_session_open 1",
        "iam_kms_broker_code_awaited 0",
        "iam_kms_broker_keys_served 1",
        r#"iam_kms_broker_calls_total{operation="Decrypt",result="ok"} 3"#,
        r#"iam_kms_broker_calls_total{operation="GenerateDataKeyWithoutPlaintext",result="ok"} 1"#,
        r#"iam_kms_broker_calls_total{operation="GenerateDataKeyWithoutPlaintext",result="session_over"} 1"#,
        r#"iam_kms_broker_call_duration_seconds_count{operation="Decrypt"} 3"#,
        r#"iam_kms_broker_call_duration_seconds_bucket{le="+Inf",operation="Decrypt"} 3"#,
    ] {
        let (_, text) = get(UnixStream::connect(&watched.metrics).unwrap(), "localhost");
        assert!(watched.metric(line), "{line}\n{text}");
    }
    watched.scene.aws.end_session();
    let reply = ask(&watched.scene, &generate(16));
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    assert!(watched.metric("iam_kms_broker_session_open 0"));
}

#[test]
fn a_request_that_waits_for_a_session_is_seen_in_the_metrics_until_it_has_one_or_leaves() {
    let watched = watched();
    let waits = |count: u32| {
        let line = format!("iam_kms_broker_requests_waiting {count}");
        wait_until(&line, || watched.metric(&line));
    };
    // One that does not wait.
    ask(&watched.scene, &generate(16));
    waits(0);
    let request = frame(&generate_with(WaitPolicy::UntilOpen));
    let wait = || {
        let mut stream = UnixStream::connect(&watched.scene.configuration.broker_socket).unwrap();
        stream.write_all(&request).unwrap();
        stream
    };
    let leaves = wait();
    waits(1);
    let _stays = wait();
    waits(2);
    drop(leaves);
    waits(1);
    watched.enter_code("for one");
    waits(0);
}

#[test]
fn the_overview_tells_the_state_and_who_opened_the_session_and_serves_no_key() {
    let watched = watched();
    assert_eq!(watched.overview().session.phase, SessionPhase::AwaitingCode);
    let code = watched.enter_code("ticket 4711");
    watched.broker.wait_for("is open until");
    let wrapped = generated(&watched.scene);
    ask(&watched.scene, &decrypt(wrapped.clone()));
    let overview = watched.overview();
    assert_eq!(overview.session.phase, SessionPhase::Open);
    assert!(overview.session.expiration_unix_seconds.is_some());
    let key = overview.keys.first().unwrap();
    assert_eq!((key.key_id, key.key_version), (7, 3));
    assert_eq!(overview.clients.len(), 1, "{overview:?}");
    assert!(overview.clients[0].name.starts_with("uid "));
    assert_eq!(overview.clients[0].calls, 2);
    let events = watched.events();
    let taken = events.iter().find(|event| event.name == "code_taken");
    let message = &taken.unwrap().message;
    assert!(
        message.contains(" from 192.0.2.7: ticket 4711"),
        "{message}"
    );
    assert!(events.iter().all(|event| !event.message.contains(&code)));
    for request in [decrypt(wrapped), generate(16)] {
        let Reply::Failed(failure) = Peer::connect(&watched.overview).ask(&request) else {
            panic!("the socket serves keys");
        };
        assert_eq!(failure.kind, FailureKind::InvalidRequest);
        assert!(failure.message.contains("serves no keys"), "{failure:?}");
    }
}

#[test]
fn to_look_at_the_keys_of_the_key_store_changes_nothing_of_what_is_shown() {
    let watched = watched_with("key_store = s3://keys/db1");
    let failed = ask(&watched.scene, &generate(16));
    assert!(matches!(failed, Reply::Failed(_)), "{failed:?}");
    let shown = || {
        let Overview {
            calls,
            clients,
            last_failure,
            ..
        } = watched.overview();
        let clients: Vec<_> = clients.into_iter().map(|it| (it.name, it.calls)).collect();
        (calls, clients, last_failure, watched.events())
    };
    let before = shown();
    assert!(before.2.is_some() && !before.3.is_empty(), "{before:?}");
    let list = Request::ListKeys(ListKeys {
        after: None,
        context: KeyContext::default(),
    });
    for _ in 0..2 {
        let Reply::Failed(failure) = Peer::connect(&watched.overview).ask(&list) else {
            panic!("a list without a session");
        };
        assert_eq!(failure.kind, FailureKind::SessionOver);
    }
    assert_eq!(shown(), before);
    // Asked where keys are served, it is a call, and a request for a key is recorded wherever it comes.
    ask(&watched.scene, &list);
    let after = shown();
    assert!(after.0.len() > before.0.len(), "{after:?}");
    let refused = Peer::connect(&watched.overview).ask(&generate(16));
    assert!(matches!(refused, Reply::Failed(_)), "{refused:?}");
    assert_eq!(shown().3.len(), after.3.len() + 1);
}

#[test]
fn the_last_200_events_are_kept_and_no_more() {
    let watched = watched();
    watched.enter_code("many");
    watched.broker.wait_for("is open until");
    let wrapped = generated(&watched.scene);
    for _ in 0..250 {
        ask(&watched.scene, &decrypt(wrapped.clone()));
    }
    let events = watched.events();
    assert_eq!(events.len(), 200);
    assert!(events.is_sorted_by(|later, earlier| later.number == earlier.number + 1));
}

#[test]
fn other_users_read_neither_metrics_nor_overview() {
    let watched = watched();
    for socket in [&watched.metrics, &watched.overview] {
        let script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        let mut words = set_user(NOBODY);
        words.extend(["/usr/bin/python3".into(), "-c".into(), script.into()]);
        let output = Command::new(&words[0])
            .args(&words[1..])
            .arg(socket)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("PermissionError"), "{said}");
    }
}

#[test]
fn members_of_the_overview_group_alone_see_overview_and_metrics() {
    let name = |gid| Group::from_gid(Gid::from_raw(gid)).unwrap().unwrap().name;
    let (theirs, of_keys) = (NOBODY, 1);
    let watched = watched_with(&format!(
        "overview_group = {}\nbroker_socket_group = {}",
        name(theirs),
        name(of_keys)
    ));
    let answer = |group, socket, request: &[u8]| answer_to(3000, 3000, &[group], socket, request);
    let overview = frame(&Request::Overview);
    let metrics = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (socket, request) in [
        (&watched.overview, &overview[..]),
        (&watched.metrics, metrics),
    ] {
        assert_eq!(answer(theirs, socket, request), "got True");
        assert_eq!(answer(of_keys, socket, request), "got Permission denied");
    }
    // The control: that group has a socket of its own.
    let keys = &watched.scene.configuration.broker_socket;
    let session = frame(&Request::Session);
    assert_eq!(answer(of_keys, keys, &session), "got True");
    // The overview has a second lock, besides its mode.
    fs::set_permissions(&watched.overview, fs::Permissions::from_mode(0o666)).unwrap();
    assert_ne!(answer(of_keys, &watched.overview, &overview), "got True");
    let refusal = format!("only uid 0, root and processes of group {theirs} are served");
    watched.broker.wait_for(&refusal);
}

#[test]
fn a_key_server_counts_its_clients_by_name_and_tells_when_its_certificate_ends() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start(&sandbox);
    let store = StoreDirectory::new(&sandbox);
    let authority = Authority::new(sandbox.directory("authority"));
    let tls = authority.issue("keys1", &["keys1.example", "127.0.0.1"], 100 * DAY);
    let certificate = tls.certificate.display().to_string();
    let metrics = sandbox.path("metrics.sock");
    let sections = format!(
        "metrics_listen = {}\n[client \"db1.example\"]\nkey_ids = 1-9\nmay_make = true",
        metrics.display()
    );
    let mut server = KeyServer::new(&aws, &store, tls, &sections);
    server.start(&aws);
    server.unlock(&aws);
    let tls = authority.issue("db1", &["db1.example"], 100 * DAY);
    let mut client = TlsPeer::connect(&server, &tls);
    let made = client.ask(&make_key(1, ""));
    assert!(matches!(made, Reply::Stored { .. }), "{made:?}");
    let refused = client.ask(&make_key(10, ""));
    assert!(matches!(refused, Reply::Failed(_)), "{refused:?}");
    let refused = client.ask(&Request::Overview);
    assert!(matches!(refused, Reply::Failed(_)), "{refused:?}");

    let (_, text) = get(UnixStream::connect(&metrics).unwrap(), "localhost");
    for line in [
        r#"iam_kms_broker_client_connections{client="client db1.example"} 1"#,
        r#"iam_kms_broker_calls_total{operation="MakeKey",result="ok"} 1"#,
        r#"iam_kms_broker_calls_total{operation="MakeKey",result="access_denied"} 1"#,
        // For an alert, which sees no increase without a value before.
        r#"iam_kms_broker_calls_total{operation="GetKey",result="session_over"} 0"#,
    ] {
        assert!(text.lines().any(|known| known == line), "{line}\n{text}");
    }
    let prefix = format!(
        "iam_kms_broker_certificate_expiration_timestamp_seconds{{file=\"{certificate}\"}} "
    );
    let end = text.lines().find_map(|line| line.strip_prefix(&prefix));
    let end: i64 = end
        .unwrap_or_else(|| panic!("{prefix}\n{text}"))
        .parse()
        .unwrap();
    let left = end - unix_seconds_now();
    assert!((99 * 86_400..=101 * 86_400).contains(&left), "{end}");
}

#[test]
fn sockets_for_watching_that_somebody_removes_are_there_again() {
    let watched = watched();
    fs::remove_file(&watched.metrics).unwrap();
    watched.broker.wait_for("metrics.sock; it is there again");
    assert!(watched.metric("iam_kms_broker_session_open 0"));
    fs::remove_file(&watched.overview).unwrap();
    watched.broker.wait_for("overview.sock; it is there again");
    assert_eq!(watched.overview().session.phase, SessionPhase::AwaitingCode);
}

#[test]
fn metrics_on_a_port_refuse_the_names_of_other_hosts_and_slow_clients_block_nobody() {
    let port = free_port();
    let scene = Scene::new()
        .with_broker()
        .line(&format!("metrics_listen = 127.0.0.1:{port}"));
    let _broker = scene.start_broker();
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (status, _) = get(connect(), &format!("evil.example:{port}"));
    assert!(status.contains("421"), "{status}");
    // More than it serves at a time, and silent.
    let start = Instant::now();
    let _silent: Vec<_> = (0..16).map(|_| connect()).collect();
    generated(&scene);
    let (status, text) = get(connect(), &format!("localhost:{port}"));
    assert!(status.contains("200 OK"), "{status}");
    assert!(text.contains("iam_kms_broker_session_open 1"), "{text}");
    // Some 10 seconds, and what a busy machine needs.
    let waited = start.elapsed();
    assert!(waited < Duration::from_secs(60), "{waited:?}");
}

/// Runs `iam-kms-wrapper audit` on a log.
fn audit(arguments: &[&str], log: &str) -> String {
    let mut child = Command::new(dist("bin/iam-kms-wrapper"))
        .arg("audit")
        .args(arguments)
        .arg("--input=-")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let log = log.to_owned();
    let writer = std::thread::spawn(move || input.write_all(log.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the query of the example in `folder`.
fn join(folder: &Path) -> String {
    let query = Path::new(REPOSITORY).join("examples/audit/join.sql");
    let output = Command::new("sqlite3")
        .current_dir(folder)
        .stdin(fs::File::open(query).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_audit_and_cloudtrail_together_show_a_use_of_the_key_that_no_host_has_recorded() {
    let watched = watched();
    watched.enter_code("ticket 4711");
    watched.broker.wait_for("is open until");
    let wrapped = generated(&watched.scene);
    ask(&watched.scene, &decrypt(wrapped));
    // A thief of a session, who is not at a host.
    let session = watched.scene.aws.session_document();
    let session: Value = serde_json::from_str(&session).unwrap();
    let stolen = &session["Credentials"];
    let output = end_to_end_tests::aws_cli()
        .args(["kms", "generate-data-key-without-plaintext"])
        .args(["--key-id", "alias/mariadb", "--key-spec", "AES_128"])
        .args(["--region", "us-east-1"])
        .args(["--endpoint-url", &watched.scene.aws.endpoint()])
        .env("AWS_ACCESS_KEY_ID", stolen["AccessKeyId"].as_str().unwrap())
        .env(
            "AWS_SECRET_ACCESS_KEY",
            stolen["SecretAccessKey"].as_str().unwrap(),
        )
        .env(
            "AWS_SESSION_TOKEN",
            stolen["SessionToken"].as_str().unwrap(),
        )
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");

    let log = watched.broker.output();
    let exported = audit(&["--json"], &log);
    for line in exported.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["event"].is_string(), "{line}");
    }
    let sessions = audit(&[], &log);
    assert_eq!(sessions.lines().count(), 1, "{sessions}");
    for part in [
        " from 192.0.2.7, for ",
        "1 Decrypt",
        "1 GenerateDataKeyWithoutPlaintext",
        ": ticket 4711",
    ] {
        assert!(sessions.contains(part), "{sessions}");
    }
    let folder = watched.scene.sandbox.directory("joined");
    fs::write(folder.join("audit.jsonl"), exported).unwrap();
    fs::write(folder.join("cloudtrail.jsonl"), watched.scene.aws.log()).unwrap();
    let joined = join(&folder);
    let rows: Vec<_> = joined.lines().skip(1).collect();
    assert_eq!(rows.len(), 3, "{joined}");
    assert!(rows[0].contains("NOT RECORDED BY A HOST"), "{joined}");
    for row in &rows[1..] {
        assert!(row.ends_with(" | 192.0.2.7 | ticket 4711"), "{joined}");
    }
}

#[test]
fn a_session_of_which_only_the_end_is_read_is_not_open() {
    let end = r#"{"event":"session_end","host":"db1","time":"2026-11-26T00:01:00Z","access_key_id":"ASIAX"}"#;
    assert_eq!(
        audit(&[], end),
        "2026-11-26T00:01:00Z  db1  ASIAX  ended; opened before the first event shown\n"
    );
}

/// The line says who used the keys. So it must not accuse somebody else.
#[test]
fn calls_are_counted_under_the_session_of_the_service_that_made_them() {
    let event = |name: &str, service: &str, minute: u32, more: &str| {
        format!(
            r#"{{"event":"{name}","host":"db1",{service},"time":"2026-11-26T10:{minute:02}:00Z"{more}}}"#
        ) + "\n"
    };
    let opened = |service: &str, id: &str, who: &str, minute: u32| {
        let more = format!(
            r#","access_key_id":"{id}","operator":"{who}","expiration":"2026-11-26T10:30:00Z""#
        );
        event("code_taken", service, minute, &more)
    };
    let call = |service: &str, minute: u32| {
        let more = r#","operation":"Decrypt","request_id":"r-1""#;
        event("kms_call", service, minute, more)
    };
    let lines = |log: &str, expected: [&str; 2]| {
        let sessions = audit(&[], log);
        let lines: Vec<_> = sessions.lines().collect();
        assert_eq!(lines.len(), 2, "{sessions}");
        for (line, end) in lines.iter().zip(expected) {
            assert!(line.ends_with(end), "{end}: {sessions}");
        }
    };
    // Two instances of the broker on one host.
    let [a, b] = ["a", "b"].map(|name| format!(r#""unit":"iam-kms-broker@{name}.service""#));
    let log = opened(&a, "ASIAA", "alice", 0) + &opened(&b, "ASIAB", "bob", 1) + &call(&a, 2);
    lines(
        &log,
        [
            "ASIAA  opened by alice, for 1800 seconds, 1 Decrypt",
            "ASIAB  opened by bob, for 1740 seconds",
        ],
    );
    // A tool that was used meanwhile, and a failure after the end of the session. No units, as without a journal.
    let [launcher, broker, tool] = ["iam-kms-wrapper", "iam-kms-broker", "kms-data-keys"]
        .map(|name| format!(r#""program":"{name}""#));
    let log = opened(&launcher, "ASIAA", "alice", 0)
        + &opened(&tool, "ASIAB", "bob", 1)
        + &call(&broker, 2)
        + &event("kms_call_failed", &broker, 31, "");
    lines(
        &log,
        [
            "ASIAA  opened by alice, for 1800 seconds, 1 Decrypt",
            "ASIAB  opened by bob, for 1740 seconds",
        ],
    );
}

#[test]
fn an_audit_that_cannot_be_read_is_an_error_that_names_it() {
    let run = |path: &Path, arguments: &[&str]| {
        let output = Command::new(dist("bin/iam-kms-wrapper"))
            .arg("audit")
            .args(arguments)
            .env_clear()
            .env("PATH", path)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{said}");
        said
    };
    let sandbox = Sandbox::new();
    let path = sandbox.directory("bin");
    // What the journal shows by itself, not --output=json.
    let text = sandbox.write(
        "text",
        "Nov 28 10:00:00 db1 iam-kms-broker[1]: session ASIA is open\n",
    );
    let said = run(&path, &[&format!("--input={}", text.display())]);
    let expected = format!(
        "there is no JSON in {}: make it with journalctl --output=json",
        text.display()
    );
    assert!(said.contains(&expected), "{said}");
    let said = run(&path, &["--input=/nonexistent"]);
    assert!(said.contains("cannot read /nonexistent: "), "{said}");
    let said = run(&path, &[]);
    assert!(said.contains("cannot run journalctl: "), "{said}");
    let journalctl = sandbox.write("bin/journalctl", "#!/bin/sh\nexit 1\n");
    fs::set_permissions(journalctl, fs::Permissions::from_mode(0o755)).unwrap();
    let said = run(&path, &[]);
    assert!(said.contains("journalctl failed"), "{said}");
    let empty = sandbox.write("empty", "-- No entries --\n\n");
    let output = Command::new(dist("bin/iam-kms-wrapper"))
        .args(["audit", &format!("--input={}", empty.display())])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("found no event of the audit"), "{said}");
}

#[test]
fn the_query_gives_for_the_sample_what_the_example_shows() {
    let sample = Path::new(REPOSITORY).join("examples/audit/sample");
    assert_eq!(join(&sample), fence("audit-join").commands);
}

#[test]
fn the_reason_of_a_change_of_the_master_key_is_in_the_audit() {
    let scene = end_to_end_tests::manage_key::scene(&[]).line("log_format = json");
    let arn = end_to_end_tests::manage_key::describe(&scene, "Arn");
    let by_arn = format!("--key={arn}");
    let change = |change: &str, code| {
        let arguments = ["--reason=ticket 4712", &by_arn, change];
        let mut process = Process::start(scene.manage_key_command(&arguments).stdin({
            let file = scene
                .sandbox
                .write("code", &format!("{}\n", scene.aws.code()));
            fs::File::open(file).unwrap()
        }));
        let (status, output) = process.finish();
        assert_eq!(status.code(), Some(code), "{output}");
        let events = audit(&["--json"], &output);
        for name in ["code_taken", "master_key_changed"] {
            let events: Vec<Value> = events
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .filter(|event: &Value| event["event"] == name)
                .collect();
            assert_eq!(events.len(), 1, "{name}: {output}");
            assert_eq!(events[0]["reason"], "ticket 4712", "{events:?}");
            assert!(events[0]["operator"].is_string(), "{events:?}");
        }
        assert!(events.contains(&format!("\"master_key\":\"{arn}\"")));
    };
    change("disable", 0);
    // The change is made, although its effect cannot be seen.
    let mfa = end_to_end_tests::manage_key::MFA;
    end_to_end_tests::manage_key::deny(&scene, r#""kms:DescribeKey""#, mfa);
    change("enable", 122);
}
