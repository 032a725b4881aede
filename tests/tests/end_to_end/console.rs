//! `iam-kms-console`: what its page shows, and whom it takes a code from.

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use broker_api::Request;
use end_to_end_tests::{
    NOBODY, Process, Sandbox, Scene,
    broker::{answer_to, ask, decrypt, frame, generate, generated},
    console::{Console, token_of},
    dist, fence,
    key_server::{
        Authority, DAY, certificates_of_the_book, flood_without_tls, free_port, tls_files,
    },
    mode, shell_in, wait_until,
};
use nix::{
    sys::signal::{SIGINT, SIGTERM},
    unistd::gethostname,
};

#[test]
fn a_code_that_is_entered_on_the_page_opens_the_session_and_each_outcome_is_shown() {
    let console = Console::new();
    let page = console.page.get("/");
    assert_eq!(page.status, 200);
    assert!(page.body.contains("A code is awaited."), "{}", page.body);
    // Over ssh -L, every host has the same address.
    let host = gethostname().unwrap().into_string().unwrap();
    for part in [
        format!("<title>Code awaited – {host} – "),
        format!("<h1>IAM KMS console on {host}</h1>"),
    ] {
        assert!(page.body.contains(&part), "{part}: {}", page.body);
    }

    let page = console.page.enter("12345", "");
    assert!(
        page.contains("a code has six digits; nothing was entered"),
        "{page}"
    );
    assert_eq!(console.scene.aws.calls("GetSessionToken"), 0);
    let wrong = console.scene.aws.wrong_code();
    let page = console.page.enter(&wrong, "");
    assert!(
        page.contains("not accepted</strong>: AWS refused the code"),
        "{page}"
    );
    let good = console.scene.aws.code();
    let page = console.page.enter(&good, "ticket+4713");
    assert!(
        page.contains("accepted</strong>: the session is open until"),
        "{page}"
    );
    assert!(page.contains("<strong>Open</strong> until 20"), "{page}");
    assert!(
        page.contains("entered by iam-kms-console: ticket 4713"),
        "{page}"
    );

    let page = console.page.enter(&console.scene.aws.wrong_code(), "");
    assert!(
        page.contains("not accepted</strong>: no code is awaited, because the session is open"),
        "{page}"
    );

    let wrapped = generated(&console.scene);
    ask(&console.scene, &decrypt(wrapped));
    let page = console.page.get("/").body;
    for part in ["kms_call", "GenerateDataKeyWithoutPlaintext", "uid "] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for code in [wrong, good] {
        assert!(!console.process.output().contains(&code));
        assert!(!page.contains(&format!(">{code}<")) && !console.broker.output().contains(&code));
    }
}

#[test]
fn a_form_that_is_sent_twice_and_a_lost_connection_hide_no_outcome_of_a_code() {
    let console = Console::new();
    let slow = "--operation GetSessionToken --kind delay --milliseconds 3000 --count 1";
    console.scene.aws.fault(slow);
    let code = console.scene.aws.code();
    let form = format!("token={}&code={code}&reason=", console.page.token());
    // A browser closes the connection of the first request when the form is sent again.
    let first = console.page.begin_post("", &form);
    wait_until("the page to show the code as pending", || {
        let page = console.page.get("/").body;
        page.contains("is being exchanged for a session; reload")
    });
    drop(first);
    assert_eq!(console.page.post("", &form).status, 303);
    let page = console.page.get("/").body;
    assert!(!page.contains("not accepted"), "{page}");
    console.broker.wait_for("is open until");
    wait_until("the outcome on the page", || {
        let page = console.page.get("/").body;
        page.contains("accepted</strong>: the session is open until")
    });
    assert_eq!(console.scene.aws.calls("GetSessionToken"), 1);
}

#[test]
fn a_new_key_that_has_no_number_yet_is_not_said_to_have_been_served_never() {
    let console = Console::new();
    console.page.enter(&console.scene.aws.code(), "");
    let Request::Decrypt(mut decrypt) = decrypt(generated(&console.scene)) else {
        unreachable!();
    };
    decrypt.context.key_version = 0;
    ask(&console.scene, &Request::Decrypt(decrypt));
    let page = console.page.get("/").body;
    let says = "New keys that are in no key store are not counted before a server reads them";
    assert!(page.contains(says), "{page}");
}

#[test]
fn of_more_clients_than_fit_the_page_shows_the_last_ones_and_names_their_number() {
    let console = Console::of(Scene::new().line("broker_socket_group = nogroup"));
    let socket = &console.scene.configuration.broker_socket;
    let request = frame(&generate(16));
    let clients = 40;
    for uid in 3000..3000 + clients {
        assert_eq!(answer_to(uid, NOBODY, &[], socket, &request), "got True");
    }
    let page = console.page.get("/").body;
    let says = format!("Of {clients} clients, the last 32 are shown");
    assert!(page.contains(&says), "{page}");
    assert_eq!(page.matches("<th scope=\"row\">uid ").count(), 32);
}

#[test]
fn without_a_session_the_page_does_not_say_that_the_key_store_has_failed() {
    let console = Console::of(Scene::new().line("key_store = s3://keys/db1"));
    for _ in 0..2 {
        let page = console.page.get("/").body;
        let says = "What the key store has is not known without a session.";
        assert!(page.contains(says), "{page}");
        assert!(page.contains("None since the broker started."), "{page}");
        assert!(!page.contains("ListKeys"), "{page}");
    }
    assert!(!console.broker.output().contains("ListKeys"));
}

#[test]
fn a_code_is_taken_only_from_the_page_itself_and_only_a_few_times_a_minute() {
    let console = Console::new();
    let token = console.page.token();
    let code = console.scene.aws.code();
    let form = format!("token={token}&code={code}&reason=");
    for (headers, form, status) in [
        ("Origin: https://evil.example\r\n", form.as_str(), 403),
        ("Origin: null\r\n", &form, 403),
        ("Sec-Fetch-Site: cross-site\r\n", &form, 403),
        ("", &format!("code={code}"), 403),
        ("", &format!("token={}&code={code}", "0".repeat(64)), 403),
        ("", &format!("{form}{}", "x".repeat(3000)), 413),
    ] {
        let answer = console.page.post(headers, form);
        assert_eq!(answer.status, status, "{headers}{form}: {}", answer.head);
    }
    let rebound = console
        .page
        .send("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!(rebound.status, 421);
    assert!(!rebound.body.contains(&token));
    assert_eq!(console.page.get("/other").status, 404);
    assert_eq!(console.page.get("/code").status, 405);
    assert_eq!(console.scene.aws.calls("GetSessionToken"), 0);

    let wrong = console.scene.aws.wrong_code();
    for _ in 0..5 {
        let page = console.page.enter(&wrong, "");
        assert!(page.contains("not accepted"), "{page}");
    }
    let page = console.page.enter(&code, "");
    assert!(page.contains("too many codes in a minute"), "{page}");
    // The same wrong code is not sent to AWS again.
    assert_eq!(console.scene.aws.calls("GetSessionToken"), 1);
}

#[test]
fn the_page_needs_no_script_and_lets_nothing_foreign_in() {
    let console = Console::new();
    for path in ["/", "/style.css", "/other"] {
        let answer = console.page.get(path);
        let head = answer.head.to_lowercase();
        for header in [
            "content-security-policy: default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            "cache-control: no-store",
            "referrer-policy: same-origin",
            "x-content-type-options: nosniff",
        ] {
            assert!(head.contains(header), "{path}: {head}");
        }
        assert!(!answer.body.contains("<script"), "{path}");
        assert!(!answer.body.contains("://"), "{path}: {}", answer.body);
    }
    assert_eq!(mode(&console.page.socket), 0o660);
}

#[test]
fn without_a_broker_the_page_says_so_and_with_the_next_one_it_works_again() {
    let mut console = Console::new();
    console.broker.signal(SIGTERM);
    console.broker.wait();
    let page = console.page.get("/").body;
    assert!(
        page.contains("Unknown. </strong>no broker shows its state at"),
        "{page}"
    );
    let page = console.page.enter("123456", "");
    assert!(page.contains("nothing waits for a code at"), "{page}");
    assert!(page.contains("start iam-kms-broker, or give"), "{page}");
    console.broker = end_to_end_tests::Process::start(&mut console.scene.broker_command());
    console.broker.wait_for("enter an MFA code");
    assert!(console.page.get("/").body.contains("A code is awaited."));
}

#[test]
fn the_console_ends_at_a_signal_and_takes_its_socket_away() {
    for signal in [SIGINT, SIGTERM] {
        let mut console = Console::new();
        console.process.signal(signal);
        let (status, output) = console.process.finish();
        assert_eq!(status.code(), Some(0), "{signal}: {output}");
        assert!(fs::symlink_metadata(&console.page.socket).is_err());
    }
}

#[test]
fn a_console_that_may_not_listen_leaves_what_is_there() {
    let console = Console::new();
    let precious = console.scene.sandbox.path("precious");
    fs::write(&precious, "precious").unwrap();
    for (place, reason) in [
        (&precious, "it is not a socket owned by this user"),
        (&console.page.socket, "another process listens on"),
    ] {
        let listen = format!("--listen={}", place.display());
        let output = Command::new(dist("bin/iam-kms-console"))
            .arg(listen)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(125));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(reason), "{told}");
    }
    assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
    assert_eq!(console.page.get("/").status, 200);
}

/// Starts a console over TLS whose operators are Alice and Bob.
fn over_tls(certificates: &Path, port: u16) -> Console {
    let files = tls_files(certificates, "localhost");
    let arguments = [
        format!("--tls-certificate={}", files.certificate.display()),
        format!("--tls-key={}", files.key.display()),
        format!("--tls-client-ca={}", files.authorities.display()),
        "--operator=bob@example.com".into(),
        "--operator=alice@example.com".into(),
        "--operator=alice.example".into(),
    ];
    Console::listening_on(&format!("127.0.0.1:{port}"), Scene::new(), &arguments)
}

/// A browser with the files of one certificate, or without any.
struct Browser<'a> {
    certificates: &'a Path,
    name: Option<&'a str>,
    url: String,
}

impl Browser<'_> {
    fn send(&self, path: &str, arguments: &[&str]) -> Output {
        let mut curl = Command::new("curl");
        let files = |name: &str| tls_files(self.certificates, name);
        curl.args(["--silent", "--show-error", "--include", "--noproxy", "*"])
            .arg("--cacert")
            .arg(files("localhost").authorities);
        if let Some(name) = self.name {
            let files = files(name);
            curl.arg("--cert").arg(files.certificate);
            curl.arg("--key").arg(files.key);
        }
        let url = format!("{}{path}", self.url);
        curl.args(arguments).arg(url).output().unwrap()
    }

    fn get(&self, path: &str) -> String {
        let output = self.send(path, &[]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn enter(&self, code: &str, origin: &str) -> String {
        let form = format!(
            "token={}&code={code}&reason=ticket",
            token_of(&self.get("/"))
        );
        let origin = format!("Origin: {origin}");
        let output = self.send("/code", &["--data", &form, "--header", &origin]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// What the page has an operator type, with the password that openssl prompts for.
fn certificate_of_alice(directory: &Path) {
    let typed = fence("console-certificate").commands;
    let exported = "-out alice.p12";
    assert!(typed.contains(exported), "{typed}");
    let answered = typed.replace(exported, "-out alice.p12 -passout pass:of-the-test");
    shell_in(directory, &answered);
}

#[test]
fn a_person_whose_certificate_names_an_operator_enters_codes_over_tls_and_nobody_else() {
    let sandbox = Sandbox::new();
    let certificates = sandbox.directory("certificates");
    certificates_of_the_book(
        &certificates,
        &fence("key-server-authority"),
        &fence("key-server-certificate"),
        &["localhost", "mallory.example"],
    );
    certificate_of_alice(&certificates);
    let port = free_port();
    let console = over_tls(&certificates, port);
    let browser = |name| Browser {
        certificates: &certificates,
        name,
        url: format!("https://localhost:{port}"),
    };

    let stranger = browser(None).send("/", &[]);
    assert!(!stranger.status.success() && stranger.stdout.is_empty());
    console.process.wait_for("it shows no certificate");
    let refused = browser(Some("mallory.example")).get("/");
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let why = "the certificate names no --operator; its names are mallory.example";
    assert!(refused.contains(why), "{refused}");
    console.process.wait_for(why);
    let old = browser(Some("alice")).send("/", &["--tls-max", "1.2"]);
    assert!(!old.status.success(), "{old:?}");

    let alice = browser(Some("alice"));
    let code = console.scene.aws.code();
    for origin in ["https://evil.example", &format!("http://localhost:{port}")] {
        let answer = alice.enter(&code, origin);
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    let answer = alice.enter(&code, &alice.url);
    assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
    let page = alice.get("/");
    let entered = "entered by alice@example.com from 127.0.0.1: ticket";
    assert!(page.contains(entered), "{page}");
    assert!(!console.process.output().contains(&code));
}

#[test]
fn a_name_of_another_kind_that_looks_like_an_operators_address_is_refused() {
    let sandbox = Sandbox::new();
    let certificates = sandbox.directory("certificates");
    let authority = Authority::new(certificates.clone());
    authority.issue("localhost", &["localhost"], DAY);
    let port = free_port();
    let _console = over_tls(&certificates, port);
    for name in ["URI=alice@example.com", "DNS=alice@example.com"] {
        authority.issue("mallory", &[name], DAY);
        let browser = Browser {
            certificates: &certificates,
            name: Some("mallory"),
            url: format!("https://localhost:{port}"),
        };
        let refused = browser.get("/");
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
        let why = "the certificate has no name among its subject alternative names";
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn connections_that_ask_for_nothing_keep_no_operator_waiting() {
    let sandbox = Sandbox::new();
    let certificates = sandbox.directory("certificates");
    let authority = Authority::new(certificates.clone());
    authority.issue("localhost", &["localhost"], DAY);
    authority.issue("mallory", &["mallory.example"], DAY);
    authority.issue("alice", &["alice.example"], DAY);
    let port = free_port();
    let _console = over_tls(&certificates, port);
    let alice = Browser {
        certificates: &certificates,
        name: Some("alice"),
        url: format!("https://localhost:{port}"),
    };
    // As many as there are places for requests, first of somebody else, then of a browser of hers.
    for name in ["mallory", "alice"] {
        let script = format!(
            "import socket, ssl, time\n\
             context = ssl.create_default_context(cafile='authority.pem')\n\
             context.load_cert_chain('{name}.pem', '{name}.key')\n\
             context.set_alpn_protocols(['http/1.1'])\n\
             kept = [context.wrap_socket(socket.create_connection(('127.0.0.1', {port})), \
             server_hostname='localhost') for _ in range(16)]\n\
             print('connected', flush=True); time.sleep(1000)"
        );
        let mut python = Command::new("/usr/bin/python3");
        let idle = Process::start(python.args(["-c", &script]).current_dir(&certificates));
        idle.wait_for("connected");
        let answer = alice.send("/", &["--max-time", "5"]);
        assert!(answer.status.success(), "{name}: {answer:?}");
        let answer = String::from_utf8(answer.stdout).unwrap();
        assert!(answer.contains("A code is awaited."), "{answer}");
    }
}

#[test]
fn a_flood_without_certificates_hides_no_refused_visitor_from_the_audit() {
    let sandbox = Sandbox::new();
    let certificates = sandbox.directory("certificates");
    let authority = Authority::new(certificates.clone());
    authority.issue("localhost", &["localhost"], DAY);
    authority.issue("stolen", &["stolen.example"], DAY);
    let port = free_port();
    let console = over_tls(&certificates, port);
    flood_without_tls(port, 100);
    let browser = Browser {
        certificates: &certificates,
        name: Some("stolen"),
        url: format!("https://localhost:{port}"),
    };
    assert!(browser.get("/").starts_with("HTTP/1.1 403"));
    console.process.wait_for("stolen.example");
    let lines = console.process.output();
    assert!(lines.matches("is not TLS").count() < 50, "{lines}");
}

#[test]
fn a_visitor_who_is_slow_to_send_a_request_loses_the_connection_soon() {
    let console = Console::new();
    let head = "POST /code HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\n";
    for begun in ["", head] {
        let start = Instant::now();
        let mut slow: Vec<_> = (0..16)
            .map(|_| UnixStream::connect(&console.page.socket).unwrap())
            .collect();
        for stream in &mut slow {
            stream.write_all(begun.as_bytes()).unwrap();
        }
        assert_eq!(console.page.get("/").status, 200);
        let waited = start.elapsed();
        assert!(waited < Duration::from_secs(60), "{begun:?}: {waited:?}");
    }
}

#[test]
fn new_certificates_of_the_console_are_used_without_a_restart() {
    let sandbox = Sandbox::new();
    let (old, new) = (sandbox.directory("old"), sandbox.directory("new"));
    for certificates in [&old, &new] {
        certificates_of_the_book(
            certificates,
            &fence("key-server-authority"),
            &fence("key-server-certificate"),
            &["localhost"],
        );
        certificate_of_alice(certificates);
    }
    let port = free_port();
    let console = over_tls(&old, port);
    let of = |certificates| Browser {
        certificates,
        name: Some("alice"),
        url: format!("https://localhost:{port}"),
    };
    assert!(of(&old).get("/").contains("A code is awaited."));
    shell_in(
        &new,
        &format!(
            "cp localhost.pem localhost.key authority.pem {}",
            old.display()
        ),
    );
    console.process.wait_for("was read again");
    assert!(of(&new).get("/").contains("A code is awaited."));
    // The directory still has Alice's certificate of the authority that was replaced.
    assert!(!of(&old).send("/", &[]).status.success());
}
