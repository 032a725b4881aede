//! Key servers, their clients, and the certificates of both.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_session::config::{ServerAddress, TlsFiles};
use broker_api::{
    FrameError, GenerateDataKey, GetKey, KeyContext, MakeKey, Numbering, Reply, Request,
    read_frame, write_frame,
};
use mutual_tls::{BlockingStream, ClientTls, Content};
use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};

use crate::{
    Database, Fence, LocalAws, PATIENCE_SECONDS, Process, Sandbox, StoreDirectory, dist, shell_in,
    write_fifo,
};

/// An authority, and the directory of its files.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    /// Makes one. Its certificate is `authority.pem`.
    pub fn new(directory: PathBuf) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = directory.file_name().unwrap().to_str().unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        fs::write(directory.join("authority.pem"), pem).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            directory,
        }
    }

    /// Its certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("authority.pem")
    }

    /// Makes a certificate that is valid for this long, for DNS names, URIs and addresses. What begins with `URI=` or
    /// `DNS=` is of that kind, whatever it looks like. The files are named `file`.
    pub fn issue(&self, file: &str, names: &[&str], valid: Duration) -> TlsFiles {
        self.issue_until(file, names, SystemTime::now() + valid)
    }

    /// The same until this time.
    pub fn issue_until(&self, file: &str, names: &[&str], not_after: SystemTime) -> TlsFiles {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "nobody");
        params.subject_alt_names = names
            .iter()
            .map(|name| match (name.split_once('='), name.parse()) {
                (Some(("URI", uri)), _) => SanType::URI(uri.try_into().unwrap()),
                (Some(("DNS", name)), _) => SanType::DnsName(name.try_into().unwrap()),
                (_, Ok(address)) => SanType::IpAddress(address),
                _ if name.contains(':') => SanType::URI((*name).try_into().unwrap()),
                _ => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        let end = not_after.duration_since(UNIX_EPOCH).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(1970, 1, 1) + end;
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        self.write(file, &pem, &key.serialize_pem())
    }

    fn write(&self, file: &str, certificate: &str, key: &str) -> TlsFiles {
        let path = |end: &str| self.directory.join(format!("{file}.{end}"));
        let files = self.files(file);
        // Atomically: a broker may read them now.
        for (end, text, mode) in [("key", key, 0o640), ("pem", certificate, 0o644)] {
            fs::write(path("new"), text).unwrap();
            fs::set_permissions(path("new"), fs::Permissions::from_mode(mode)).unwrap();
            fs::rename(path("new"), path(end)).unwrap();
        }
        files
    }

    /// The files of a certificate.
    pub fn files(&self, file: &str) -> TlsFiles {
        tls_files(&self.directory, file)
    }
}

/// The files of a certificate, beside those of its authority.
pub fn tls_files(directory: &Path, file: &str) -> TlsFiles {
    TlsFiles {
        certificate: directory.join(format!("{file}.pem")),
        key: directory.join(format!("{file}.key")),
        authorities: directory.join("authority.pem"),
    }
}

/// The key of an answer.
///
/// Panics if it has none.
pub fn given(reply: Reply) -> Vec<u8> {
    match reply {
        Reply::Decrypted { key, .. } => key.expose().into(),
        reply => panic!("{reply:?}"),
    }
}

/// A day.
pub const DAY: Duration = Duration::from_secs(86_400);

/// Makes an authority and certificates of these names with the commands of the book.
pub fn certificates_of_the_book(
    directory: &Path,
    authority: &Fence,
    certificate: &Fence,
    names: &[&str],
) {
    shell_in(directory, &authority.commands);
    for name in names {
        shell_in(
            directory,
            &certificate.commands.replace("db1.example", name),
        );
    }
}

/// A free port of 127.0.0.1. Nobody else takes it soon: the kernel gives free ports in turn.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A free port that no outgoing connection gets, so that a server that was killed can have it again.
fn lasting_port() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    loop {
        let port = fastrand::u16(1024..first);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A broker that is a key server.
pub struct KeyServer {
    /// Its configuration file, and what it listens on.
    pub sandbox: Sandbox,
    /// The address that it listens on, and the port.
    pub listen: &'static str,
    /// See [`Self::listen`].
    pub port: u16,
    /// The process, while it runs.
    pub process: Option<Process>,
    tls: TlsFiles,
    store: String,
    serial_number: String,
    sections: String,
}

impl KeyServer {
    /// Configures one. `sections` are those of its clients.
    pub fn new(aws: &LocalAws, store: &StoreDirectory, tls: TlsFiles, sections: &str) -> Self {
        let server = Self {
            sandbox: Sandbox::new(),
            listen: "127.0.0.1",
            port: lasting_port(),
            process: None,
            tls,
            store: store.location(),
            serial_number: aws.serial_number(),
            sections: sections.into(),
        };
        server.write();
        server
    }

    /// Changes the sections of the clients, in the file.
    pub fn set_sections(&mut self, sections: &str) {
        self.sections = sections.into();
        self.write();
    }

    fn write(&self) -> PathBuf {
        let run = self.sandbox.directory("run");
        let text = format!(
            "[kms]\nlog_format = json\nkms_mfa_id = {}\nkms_mfa_socket = {}\nbroker_socket = {}\nmaster_key_id = alias/mariadb\nkey_store = {}\ntls_listen = {}:{}\ntls_certificate = {}\ntls_key = {}\ntls_client_ca = {}\n{}\n",
            self.serial_number,
            self.fifo().display(),
            run.join("broker.sock").display(),
            self.store,
            self.listen,
            self.port,
            self.tls.certificate.display(),
            self.tls.key.display(),
            self.tls.authorities.display(),
            self.sections
        );
        self.sandbox.write("broker.config", &text)
    }

    /// Where it takes a code.
    pub fn fifo(&self) -> PathBuf {
        self.sandbox.path("run").join("mfa")
    }

    /// For `upstream`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it, without a session.
    pub fn start(&mut self, aws: &LocalAws) {
        self.start_by(self.command(aws));
    }

    /// Writes its configuration, and returns its command line.
    pub fn command(&self, aws: &LocalAws) -> Command {
        let option = format!("--config={}", self.write().display());
        aws.program("iam-kms-broker", &[&option])
    }

    /// Starts it by this command line, without a session.
    pub fn start_by(&mut self, mut command: Command) {
        let broker = Process::start(&mut command);
        broker.wait_for("listening for database hosts");
        self.process = Some(broker);
    }

    /// Gives it a code.
    pub fn unlock(&self, aws: &LocalAws) {
        self.process().wait_for("enter an MFA code");
        write_fifo(&self.fifo(), aws.code().as_bytes());
        self.process().wait_for("is open until");
    }

    /// Gives it a session, so that one code is enough for several.
    pub fn hand(&self, document: &str) {
        self.process().wait_for("enter an MFA code");
        write_fifo(&self.fifo(), document.as_bytes());
        self.process().wait_for("is open until");
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(Signal::SIGKILL);
        process.wait();
    }
}

/// A database host whose keys are on key servers.
pub struct Host {
    /// Its broker, while it runs.
    pub broker: Option<Process>,
    /// Its database.
    pub database: Database,
    /// Its files.
    pub sandbox: Sandbox,
}

impl Host {
    /// Configures its broker and its database, and starts the broker.
    pub fn new(servers: &[&KeyServer], tls: &TlsFiles) -> Self {
        let addresses: Vec<_> = servers.iter().map(|server| server.address()).collect();
        Self::with_upstream(&addresses, tls)
    }

    /// The same with these addresses of key servers.
    pub fn with_upstream(addresses: &[String], tls: &TlsFiles) -> Self {
        let sandbox = Sandbox::new();
        let socket = configure_upstream(&sandbox, addresses, tls);
        let database = Database::new(&sandbox)
            .with_our_plugin(&socket)
            .options(&["--aws-key-management=FORCE"])
            .options(&crate::ENCRYPT_ALL);
        let broker = Some(start_with_upstream(&sandbox));
        Self {
            broker,
            database,
            sandbox,
        }
    }

    /// Where its broker listens.
    pub fn socket(&self) -> PathBuf {
        self.sandbox.path("run").join("broker.sock")
    }
}

/// Configures the broker of a database host, and returns where it listens.
pub fn configure_upstream(sandbox: &Sandbox, addresses: &[String], tls: &TlsFiles) -> PathBuf {
    let socket = sandbox.directory("run").join("broker.sock");
    let text = format!(
        "[kms]\nupstream = {}\nbroker_socket = {}\ntls_certificate = {}\ntls_key = {}\ntls_server_ca = {}\n",
        addresses.join(", "),
        socket.display(),
        tls.certificate.display(),
        tls.key.display(),
        tls.authorities.display()
    );
    sandbox.write("broker.config", &text);
    socket
}

/// Starts that broker, with nothing in its environment.
pub fn start_with_upstream(sandbox: &Sandbox) -> Process {
    let config = sandbox.path("broker.config");
    let mut command = Command::new(dist("bin").join("iam-kms-broker"));
    command
        .arg(format!("--config={}", config.display()))
        .env_clear()
        .stdin(Stdio::null());
    let broker = Process::start(&mut command);
    broker.wait_for("listening on");
    broker
}

/// Connects to a TLS listener `times` times, without a certificate and without TLS.
pub fn flood_without_tls(port: u16, times: usize) {
    for _ in 0..times {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(&[b'x'; 100]).unwrap();
        // Until it is refused.
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// A client of a key server that need not behave like ours.
pub struct TlsPeer(pub BlockingStream);

impl TlsPeer {
    /// Connects with this certificate.
    pub fn connect(server: &KeyServer, tls: &TlsFiles) -> Self {
        let content = Content::read(tls).unwrap();
        let tls = ClientTls::new(tls, &content).unwrap();
        let server = ServerAddress {
            host: "127.0.0.1".into(),
            port: server.port,
        };
        let patience = Duration::from_secs(PATIENCE_SECONDS);
        Self(tls.connect_blocking(&server, patience).unwrap())
    }

    /// Sends a request and returns the answer, after all waiting.
    pub fn try_ask(&mut self, request: &Request) -> Result<Reply, FrameError> {
        write_frame(&mut self.0, request)?;
        self.answer()
    }

    /// Returns the next answer.
    pub fn answer(&mut self) -> Result<Reply, FrameError> {
        loop {
            match self.receive()? {
                Reply::Waiting(_) => {}
                reply => return Ok(reply),
            }
        }
    }

    /// Returns what comes next, which may be that there is no answer yet.
    pub fn receive(&mut self) -> Result<Reply, FrameError> {
        read_frame(&mut self.0)
    }

    /// The same, of a connection that works.
    pub fn ask(&mut self, request: &Request) -> Reply {
        self.try_ask(request).unwrap()
    }

    /// Sends bytes that are no frame.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
        self.0.flush().unwrap();
    }
}

/// Asks for a data key.
pub fn get_key(key_id: u32, key_version: u32) -> Request {
    Request::GetKey(GetKey {
        context: KeyContext {
            key_id,
            key_version,
            ..KeyContext::default()
        },
    })
}

/// Asks for a new key.
pub fn make_key(key_id: u32, master_key_id: &str) -> Request {
    Request::MakeKey(MakeKey {
        generate: GenerateDataKey {
            master_key_id: master_key_id.into(),
            key_bytes: 16,
            context: KeyContext {
                key_id,
                ..KeyContext::default()
            },
        },
        numbering: Numbering::First,
    })
}
