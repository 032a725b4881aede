//! A name server that never answers: time-outs and signals hold all the same.

use std::{
    fs::File,
    net::UdpSocket,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use end_to_end_tests::{PATIENCE_SECONDS, Process, Scene, after_mounting, write_fifo};
use nix::sys::signal::SIGTERM;

/// What a busy machine may need. A process that waited for the resolver would need longer.
const SOON: Duration = Duration::from_secs(20);

/// A host whose name server is silent.
struct Host {
    scene: Scene,
    resolv_conf: PathBuf,
    name_server: UdpSocket,
}

impl Host {
    fn new(scene: Scene, seconds: u32) -> Self {
        let (name_server, address) = (1..=u8::MAX)
            .map(|number| format!("127.53.{}.{number}", std::process::id() % 256))
            .find_map(|address| Some((UdpSocket::bind((address.as_str(), 53)).ok()?, address)))
            .expect("an address");
        // The C library allows no longer limit, and asks twice.
        let text = format!("nameserver {address}\noptions timeout:30\n");
        let resolv_conf = scene.sandbox.write("resolv.conf", &text);
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
