//! A thousand database hosts start at once: with one key server, and each with KMS itself.
//!
//! `make bench-key-server` runs it. Hosts, key server and `local-aws` share the machine.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fmt::Write,
    fs,
    ops::Range,
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    sync::{
        Barrier, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aws_session::config::{ServerAddress, TlsFiles};
use broker_api::{KeyContext, ListKeys, Reply, Request};
use end_to_end_tests::{
    LocalAws, Process, Sandbox, StoreDirectory,
    broker::{Peer, decrypt, generate},
    inspection::status,
    key_server::{Authority, DAY, KeyServer, TlsPeer, get_key, make_key},
    write_fifo,
};
use mutual_tls::{BlockingStream, ClientTls, Content};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};

const HOSTS: usize = 1000;
const KEYS: u32 = 20;
/// As many connections as the broker of a host opens when its server loads its keys (`upstream.rs`).
const CONNECTIONS: usize = 4;
/// How far away KMS is.
const LATENCY_MILLISECONDS: u32 = 20;
/// Hosts whose brokers run at the same time, where each asks KMS itself: a thousand need more memory than this machine
/// may have.
const BROKERS_AT_ONCE: usize = 50;
/// Makers of keys, before anything is measured.
const MAKERS: usize = 16;
const STACK_BYTES: usize = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

/// What the issue of the key server asks for.
const MOST_SECONDS: f64 = 10.0;
const MOST_MIB: f64 = 100.0;
const MOST_WARM_MILLISECONDS: f64 = 5.0;

fn main() {
    // `cargo bench` passes it.
    assert!(
        std::env::args()
            .skip(1)
            .all(|argument| argument == "--bench")
    );
    let sandbox = Sandbox::new();
    let aws = LocalAws::start_with(&sandbox, &[]);
    println!(
        "{HOSTS} hosts with {KEYS} keys each start at once; KMS is {LATENCY_MILLISECONDS} ms away"
    );
    with_key_server(&sandbox, &aws);
    without_key_server(&sandbox, &aws);
}

fn host_name(host: usize) -> String {
    format!("db{host}.example")
}

fn with_key_server(sandbox: &Sandbox, aws: &LocalAws) {
    let store = StoreDirectory::new(sandbox);
    let authority = Authority::new(sandbox.directory("authority"));
    let tls = authority.issue("keys1", &["keys1.example", "127.0.0.1"], 100 * DAY);
    let mut sections = String::new();
    for host in 0..HOSTS {
        let name = host_name(host);
        writeln!(
            sections,
            "[client \"{name}\"]\nkey_ids = 1-{KEYS}\nmay_make = true"
        )
        .unwrap();
    }
    let mut server = KeyServer::new(aws, &store, tls, &sections);
    let identities: Vec<_> = (0..HOSTS)
        .map(|host| {
            let name = host_name(host);
            authority.issue(&name, &[&name], 100 * DAY)
        })
        .collect();
    server.start(aws);
    server.unlock(aws);
    make_keys(&server, &identities);
    // It knows nothing but its key store when the hosts start.
    server.kill();
    server.start(aws);
    server.unlock(aws);
    aws.fault(&format!(
        "--operation Decrypt --kind delay --milliseconds {LATENCY_MILLISECONDS}"
    ));
    let address = ServerAddress {
        host: "127.0.0.1".into(),
        port: server.port,
    };
    let hosts: Vec<_> = identities
        .iter()
        .map(|files| ClientTls::new(files, &Content::read(files).unwrap()).unwrap())
        .collect();
    let before = aws.calls("Decrypt");
    let pid = server.process().pid();
    let idle = cpu_seconds(pid);
    let cold = start_all(&hosts, &address);
    let cold_cpu = cpu_seconds(pid) - idle;
    let decrypts = aws.calls("Decrypt") - before;
    let again = start_all(&hosts, &address);
    let again_cpu = cpu_seconds(pid) - idle - cold_cpu;
    let warm = warm_keys(&hosts, &address);
    let peak_mib = kib(&status(pid, "VmHWM")) / 1024.0;
    println!("\nWith a key server");
    cold.print("all served, with its key cache empty", cold_cpu);
    print!("  that is");
    target(cold.seconds, MOST_SECONDS, "s");
    again.print("all served, with all keys in its cache", again_cpu);
    println!(
        "  {decrypts} calls of Decrypt for {} wrapped keys",
        HOSTS * KEYS as usize
    );
    print!("  a warm key: median {:.2} ms, p99", percentile(&warm, 50));
    target(percentile(&warm, 99), MOST_WARM_MILLISECONDS, "ms");
    print!("  the key server's peak memory:");
    target(peak_mib, MOST_MIB, "MiB");
    server.kill();
}

fn make_keys(server: &KeyServer, identities: &[TlsFiles]) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..MAKERS {
            scope.spawn(|| {
                while let Some(files) = identities.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut peer = TlsPeer::connect(server, files);
                    for id in 1..=KEYS {
                        let made = peer.ask(&make_key(id, ""));
                        assert!(
                            matches!(made, Reply::Stored { key: Some(_), .. }),
                            "{made:?}"
                        );
                    }
                }
            });
        }
    });
}

/// What it took until all hosts had all of their keys.
struct Start {
    seconds: f64,
    /// Of each host, from its first try to connect to its last key, in milliseconds.
    hosts: Vec<f64>,
    /// Connections that the key server took only at a further try.
    retries: u32,
}

impl Start {
    fn print(&self, what: &str, cpu_seconds: f64) {
        println!(
            "  {what}: {:.1} s, {cpu_seconds:.1} s of the key server's CPU time; half of the hosts after {:.1} s; {} connections tried again",
            self.seconds,
            percentile(&self.hosts, 50) / 1000.0,
            self.retries
        );
    }
}

/// Each host lists its keys over one connection, and loads them over a few, as its broker does.
fn start_all(hosts: &[ClientTls], address: &ServerAddress) -> Start {
    let barrier = Barrier::new(hosts.len() * CONNECTIONS + 1);
    let retries = AtomicU32::new(0);
    let times = Mutex::new(vec![0.0_f64; hosts.len()]);
    let seconds = thread::scope(|scope| {
        for (number, host) in hosts.iter().enumerate() {
            for connection in 0..CONNECTIONS {
                let (barrier, retries, times) = (&barrier, &retries, &times);
                let run = move || {
                    barrier.wait();
                    let began = Instant::now();
                    let mut peer = connect(number, host, address, retries);
                    if connection == 0 {
                        let list = Request::ListKeys(ListKeys {
                            after: None,
                            context: KeyContext::default(),
                        });
                        let listed = peer.ask(&list);
                        assert!(matches!(listed, Reply::KeyList { .. }), "{listed:?}");
                    }
                    for id in ids(connection) {
                        let given = peer.ask(&get_key(id, 1));
                        assert!(matches!(given, Reply::Decrypted { .. }), "{given:?}");
                    }
                    let took = began.elapsed().as_secs_f64() * 1000.0;
                    let mut times = times.lock().unwrap();
                    times[number] = times[number].max(took);
                };
                thread::Builder::new()
                    .stack_size(STACK_BYTES)
                    .spawn_scoped(scope, run)
                    .unwrap();
            }
        }
        barrier.wait();
        Instant::now()
    })
    .elapsed()
    .as_secs_f64();
    Start {
        seconds,
        hosts: times.into_inner().unwrap(),
        retries: retries.into_inner(),
    }
}

/// The key ids that one of a host's connections loads.
fn ids(connection: usize) -> Range<u32> {
    let first = |connection| u32::try_from(connection * KEYS as usize / CONNECTIONS).unwrap() + 1;
    first(connection)..first(connection + 1)
}

/// Connects from an address of the host's own, because a key server allows each address only so many handshakes at a
/// time. Tries until it takes the connection, as a host's broker does.
fn connect(host: usize, tls: &ClientTls, address: &ServerAddress, retries: &AtomicU32) -> TlsPeer {
    let to = SockaddrIn::new(127, 0, 0, 1, address.port);
    let part = |value: usize| u8::try_from(value + 1).unwrap();
    let from = SockaddrIn::new(127, 1, part(host / 250), part(host % 250), 0);
    loop {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        bind(fd.as_raw_fd(), &from).unwrap();
        let connected = socket::connect(fd.as_raw_fd(), &to)
            .map_err(|error| error.to_string())
            .and_then(|()| tls.greet_blocking(fd.into(), address, PATIENCE));
        match connected {
            Ok(stream) => return TlsPeer(stream),
            Err(_) => {
                retries.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(fastrand::u64(100..400)));
            }
        }
    }
}

/// How long a request for a key takes that the key server has in its cache, in milliseconds. One host asks, as after a
/// restart of its server.
fn warm_keys(hosts: &[ClientTls], address: &ServerAddress) -> Vec<f64> {
    let stream: BlockingStream = hosts[0].connect_blocking(address, PATIENCE).unwrap();
    let mut peer = TlsPeer(stream);
    (0..2000)
        .map(|turn| {
            let began = Instant::now();
            let given = peer.ask(&get_key(turn % KEYS + 1, 1));
            let took = began.elapsed().as_secs_f64() * 1000.0;
            assert!(matches!(given, Reply::Decrypted { .. }), "{given:?}");
            took
        })
        .collect()
}

/// Starts as many hosts without a key server: each has its own session and calls KMS itself.
fn without_key_server(sandbox: &Sandbox, aws: &LocalAws) {
    let document = aws.session_document();
    let (_maker, mut peer) = OwnBroker::new(sandbox, aws, "maker").start(&document);
    let wrapped: Vec<_> = (0..KEYS)
        .map(|_| match peer.ask(&generate(16)) {
            Reply::Generated {
                ciphertext_blob, ..
            } => ciphertext_blob,
            reply => panic!("{reply:?}"),
        })
        .collect();
    let hosts = (0..HOSTS).map(|host| OwnBroker::new(sandbox, aws, &format!("host{host}")));
    let hosts = Mutex::new(hosts.collect::<Vec<_>>());
    let peak_kib = Mutex::new(0.0_f64);
    let before = aws.calls("Decrypt");
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..BROKERS_AT_ONCE {
            scope.spawn(|| {
                loop {
                    let host = hosts.lock().unwrap().pop();
                    let Some(host) = host else { return };
                    let (broker, mut peer) = host.start(&document);
                    for blob in &wrapped {
                        let given = peer.ask(&decrypt(blob.clone()));
                        assert!(matches!(given, Reply::Decrypted { .. }), "{given:?}");
                    }
                    let mut peak_kib = peak_kib.lock().unwrap();
                    *peak_kib = peak_kib.max(kib(&status(broker.pid(), "VmHWM")));
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "\nEach host with KMS itself, {BROKERS_AT_ONCE} hosts at a time, with the start of its broker"
    );
    println!("  all served: {seconds:.1} s");
    println!("  {} calls of Decrypt", aws.calls("Decrypt") - before);
    println!(
        "  peak memory of a host's broker: {:.1} MiB",
        peak_kib.into_inner().unwrap() / 1024.0
    );
}

/// The broker of a host that calls KMS itself.
struct OwnBroker {
    fifo: PathBuf,
    socket: PathBuf,
    command: Command,
}

impl OwnBroker {
    fn new(sandbox: &Sandbox, aws: &LocalAws, name: &str) -> Self {
        let directory = sandbox.directory(name);
        let (fifo, socket) = (directory.join("mfa"), directory.join("broker.sock"));
        let text = format!(
            "[kms]\nmfa = elsewhere\nkms_mfa_socket = {}\nbroker_socket = {}\nmaster_key_id = alias/mariadb\n",
            fifo.display(),
            socket.display()
        );
        let config = sandbox.write(&format!("{name}/broker.config"), &text);
        let option = format!("--config={}", config.display());
        Self {
            fifo,
            socket,
            command: aws.program("iam-kms-broker", &[&option]),
        }
    }

    /// Starts it, and hands it a session.
    fn start(mut self, document: &str) -> (Process, Peer) {
        let broker = Process::start(&mut self.command);
        broker.wait_for("listening on");
        write_fifo(&self.fifo, document.as_bytes());
        broker.wait_for("is open until");
        (broker, Peer::connect(&self.socket))
    }
}

fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// A field of /proc/PID/status in KiB.
fn kib(field: &str) -> f64 {
    field.trim_end_matches(" kB").trim().parse().unwrap()
}

/// User and system time of a process so far.
fn cpu_seconds(pid: nix::unistd::Pid) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum();
    // USER_HZ of Linux.
    ticks / 100.0
}

fn target(value: f64, most: f64, unit: &str) {
    let verdict = if value <= most { "met" } else { "MISSED" };
    println!(" {value:.2} {unit} (target {most} {unit}) {verdict}");
}
