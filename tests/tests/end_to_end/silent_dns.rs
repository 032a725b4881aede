//! A name server that never answers: time-outs and signals hold all the same.

use std::{
    fs::File,
    net::UdpSocket,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use broker_api::Reply;
use end_to_end_tests::{
    LocalAws, PATIENCE_SECONDS, Process, Sandbox, Scene, StoreDirectory, after_mounting,
    broker::{Peer, generated},
    dist,
    key_server::{Authority, DAY, KeyServer, configure_upstream, make_key},
    wait_until, write_fifo,
};
use nix::sys::signal::SIGTERM;

/// What a busy machine may need. A process that waited for the resolver would need longer.
const SOON: Duration = Duration::from_secs(20);

/// A name server with an address of its own. It answers only what a test answers with its socket.
fn name_server() -> (UdpSocket, String) {
    (1..=u8::MAX)
        .map(|number| format!("127.53.{}.{number}", std::process::id() % 256))
        .find_map(|address| Some((UdpSocket::bind((address.as_str(), 53)).ok()?, address)))
        .expect("an address")
}

/// A name server that is silent, and the file that names it.
fn silent_name_server(sandbox: &Sandbox) -> (UdpSocket, PathBuf) {
    let (name_server, address) = name_server();
    // The C library allows no longer limit, and asks twice.
    let text = format!("nameserver {address}\noptions timeout:30\n");
    (name_server, sandbox.write("resolv.conf", &text))
}

/// Answers that each name has the address 127.0.0.1, and none of IPv6.
fn answer_all(name_server: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, from)) = name_server.recv_from(&mut question) {
        // After the header, the name ends with a zero, and type and class follow.
        let name = question[12..length].iter().position(|byte| *byte == 0);
        let end = 12 + name.unwrap() + 5;
        let is_of_ipv4 = question[end - 4..end - 2] == [0, 1];
        let counts = [0, 1, 0, u8::from(is_of_ipv4), 0, 0, 0, 0];
        let mut answer = [&question[..2], &[0x81, 0x80], &counts, &question[12..end]].concat();
        if is_of_ipv4 {
            // The name above, its type, class and lifetime, and the address.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        name_server.send_to(&answer, from).unwrap();
    }
}

/// The file that names two name servers, of which the first is silent, and the second is asked after longer than a
/// connection may take.
fn second_name_server(sandbox: &Sandbox) -> (UdpSocket, PathBuf) {
    let (silent, first) = name_server();
    let (name_server, second) = name_server();
    thread::spawn(move || answer_all(&name_server));
    let text = format!("nameserver {first}\nnameserver {second}\noptions timeout:4\n");
    (silent, sandbox.write("resolv.conf", &text))
}

/// A host whose name server is silent.
struct Host {
    scene: Scene,
    resolv_conf: PathBuf,
    name_server: UdpSocket,
}

impl Host {
    fn new(scene: Scene, seconds: u32) -> Self {
        let (name_server, resolv_conf) = silent_name_server(&scene.sandbox);
        Self {
            scene: scene.line(&format!("request_timeout_seconds = {seconds}")),
            resolv_conf,
            name_server,
        }
    }

    /// `command` where AWS's own hosts are to be looked up at the silent server.
    fn command(&self, mut command: Command) -> Command {
        command.env_remove("AWS_ENDPOINT_URL");
        after_mounting(&self.resolv_conf, "/etc/resolv.conf", &command)
    }

    /// Waits until the name server is asked.
    fn wait_for_question(&self) {
        let patience = Duration::from_secs(PATIENCE_SECONDS);
        self.name_server.set_read_timeout(Some(patience)).unwrap();
        self.name_server.recv(&mut [0; 512]).unwrap();
    }
}

/// The call that was begun when `process` said nothing yet ends in time, and so does the process.
fn call_and_process_end_soon(process: &mut Process, begun: Instant) {
    let line = process.wait_for("no connection within 1 second");
    assert!(line.contains("sts.us-east-1.amazonaws.com"), "{line}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    ends_soon(process);
}

fn ends_soon(process: &mut Process) {
    let signalled = Instant::now();
    process.signal(SIGTERM);
    process.wait();
    assert!(signalled.elapsed() < SOON, "{:?}", signalled.elapsed());
}

#[test]
fn the_launcher_keeps_its_time_limit_and_ends_at_a_signal() {
    let host = Host::new(Scene::new(), 1);
    let mut wrapper = host
        .scene
        .spawn(&mut host.command(host.scene.command(&["true"])));
    wrapper.wait_for_fifo();
    let begun = Instant::now();
    wrapper.give_code(&host.scene.aws);
    call_and_process_end_soon(&mut wrapper.process, begun);
}

#[test]
fn the_broker_keeps_its_time_limit_and_ends_at_a_signal() {
    let host = Host::new(Scene::new().with_broker(), 1);
    let mut broker = Process::start(&mut host.command(host.scene.broker_command()));
    broker.wait_for("enter an MFA code");
    let begun = Instant::now();
    write_fifo(host.scene.fifo(), host.scene.aws.code().as_bytes());
    call_and_process_end_soon(&mut broker, begun);
}

#[test]
fn the_broker_ends_at_a_signal_while_it_looks_for_credentials() {
    let scene = Scene::new()
        .with_broker()
        .without("kms_mfa_id")
        .line("mfa = false");
    let token = scene.sandbox.write("token", "token");
    let host = Host::new(scene, 600);
    let mut command = host.scene.broker_command();
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", token)
        .env("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/host");
    let mut broker = Process::start(&mut host.command(command));
    host.wait_for_question();
    ends_soon(&mut broker);
}

#[test]
fn kms_manage_key_keeps_its_time_limit_and_ends_at_a_signal() {
    let host = Host::new(Scene::new(), 1);
    let code = host.scene.sandbox.write("code", &host.scene.aws.code());
    let arguments = ["--key=alias/mariadb", "status"];
    let mut command = host.command(host.scene.manage_key_command(&arguments));
    command.stdin(File::open(code).unwrap());
    let begun = Instant::now();
    call_and_process_end_soon(&mut Process::start(&mut command), begun);
}

/// A key server with a session, whose name is `keys2.example`.
struct Site {
    server: KeyServer,
    authority: Authority,
    sandbox: Sandbox,
    _aws: LocalAws,
}

impl Site {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let aws = LocalAws::start_with(&sandbox, &[]);
        let store = StoreDirectory::new(&sandbox);
        let authority = Authority::new(sandbox.directory("authority"));
        let tls = authority.issue("keys2", &["keys2.example"], DAY);
        let sections = "[client \"db1.example\"]\nkey_ids = 1-99\nmay_make = true";
        let mut server = KeyServer::new(&aws, &store, tls, sections);
        server.start(&aws);
        server.unlock(&aws);
        Self {
            server,
            authority,
            sandbox,
            _aws: aws,
        }
    }

    /// The command line of the broker of a database host, and its socket.
    fn host(&self, servers: &[&str]) -> (Command, PathBuf) {
        let tls = self.authority.issue("db1", &["db1.example"], DAY);
        let address = |name: &&str| format!("{name}:{}", self.server.port);
        let addresses: Vec<_> = servers.iter().map(address).collect();
        let socket = configure_upstream(&self.sandbox, &addresses, &tls);
        let mut broker = Command::new(dist("bin").join("iam-kms-broker"));
        let config = self.sandbox.path("broker.config");
        broker.arg(format!("--config={}", config.display()));
        (broker, socket)
    }
}

#[test]
fn where_the_first_name_server_is_down_the_second_is_enough_for_a_key_server() {
    let site = Site::new();
    let (_silent, resolv_conf) = second_name_server(&site.sandbox);
    let (command, socket) = site.host(&["keys2.example"]);
    let mut command = after_mounting(&resolv_conf, "/etc/resolv.conf", &command);
    let broker = Process::start(&mut command);
    broker.wait_for("listening on");
    let begun = Instant::now();
    wait_until("a key", || {
        let made = Peer::connect(&socket).ask(&make_key(1, ""));
        assert!(begun.elapsed() < SOON, "{made:?}");
        matches!(made, Reply::Stored { .. })
    });
}

/// More requests at once than the broker has connections to a key server.
#[test]
fn a_database_host_reaches_the_second_key_server_while_the_name_of_the_first_hangs() {
    let site = Site::new();
    let (_name_server, resolv_conf) = silent_name_server(&site.sandbox);
    let hosts = site
        .sandbox
        .write("hosts", "127.0.0.1 localhost keys2.example\n");
    let (broker, socket) = site.host(&["keys1.example", "keys2.example"]);
    let broker = after_mounting(&hosts, "/etc/hosts", &broker);
    let mut broker = Process::start(&mut after_mounting(
        &resolv_conf,
        "/etc/resolv.conf",
        &broker,
    ));
    broker.wait_for("listening on");
    let begun = Instant::now();
    thread::scope(|scope| {
        for id in 1..=8 {
            let socket = &socket;
            scope.spawn(move || {
                let made = Peer::connect(socket).ask(&make_key(id, ""));
                assert!(matches!(made, Reply::Stored { .. }), "{made:?}");
            });
        }
    });
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let why = broker.wait_for("is asked from now on");
    assert!(
        why.contains("keys1.example") && why.contains("name service"),
        "{why}"
    );
    ends_soon(&mut broker);
}

#[test]
fn where_the_first_name_server_is_down_the_second_is_enough_for_calls_of_aws() {
    let scene = Scene::new()
        .with_broker()
        .line("request_timeout_seconds = 1");
    let (_silent, resolv_conf) = second_name_server(&scene.sandbox);
    let mut command = scene.broker_command();
    let endpoint = scene.aws.endpoint().replace("127.0.0.1", "aws.example");
    command.env("AWS_ENDPOINT_URL", endpoint);
    let mut command = after_mounting(&resolv_conf, "/etc/resolv.conf", &command);
    let broker = Process::start(&mut command);
    broker.wait_for("enter an MFA code");
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    let begun = Instant::now();
    broker.wait_for("is open until");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    generated(&scene);
}
