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
    broker::Peer,
    dist,
    key_server::{Authority, DAY, KeyServer, configure_upstream, make_key},
    write_fifo,
};
use nix::sys::signal::SIGTERM;

/// What a busy machine may need. A process that waited for the resolver would need longer.
const SOON: Duration = Duration::from_secs(20);

/// A name server that is silent, and the file that names it.
fn silent_name_server(sandbox: &Sandbox) -> (UdpSocket, PathBuf) {
    let (name_server, address) = (1..=u8::MAX)
        .map(|number| format!("127.53.{}.{number}", std::process::id() % 256))
        .find_map(|address| Some((UdpSocket::bind((address.as_str(), 53)).ok()?, address)))
        .expect("an address");
    // The C library allows no longer limit, and asks twice.
    let text = format!("nameserver {address}\noptions timeout:30\n");
    (name_server, sandbox.write("resolv.conf", &text))
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

/// More requests at once than the broker has connections to a key server.
#[test]
fn a_database_host_reaches_the_second_key_server_while_the_name_of_the_first_hangs() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start_with(&sandbox, &[]);
    let store = StoreDirectory::new(&sandbox);
    let authority = Authority::new(sandbox.directory("authority"));
    let tls = authority.issue("keys2", &["keys2.example"], DAY);
    let sections = "[client \"db1.example\"]\nkey_ids = 1-99\nmay_make = true";
    let mut second = KeyServer::new(&aws, &store, tls, sections);
    second.start(&aws);
    second.unlock(&aws);

    let (_name_server, resolv_conf) = silent_name_server(&sandbox);
    let hosts = sandbox.write("hosts", "127.0.0.1 localhost keys2.example\n");
    let tls = authority.issue("db1", &["db1.example"], DAY);
    let addresses =
        ["keys1.example", "keys2.example"].map(|name| format!("{name}:{}", second.port));
    let socket = configure_upstream(&sandbox, &addresses, &tls);
    let mut broker = Command::new(dist("bin").join("iam-kms-broker"));
    broker.arg(format!(
        "--config={}",
        sandbox.path("broker.config").display()
    ));
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
