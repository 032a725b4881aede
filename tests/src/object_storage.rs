//! A key store for the tests: S3 as moto has it, with faults in front of it.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::{Process, Sandbox};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/aws-tools");
const BUCKET: &str = "keys";

/// S3 with one bucket.
pub struct ObjectStorage {
    _server: Process,
    port: u16,
    front: u16,
    front_state: Arc<Front>,
}

/// What is in front of the storage.
#[derive(Default)]
struct Front {
    faults: Mutex<VecDeque<Fault>>,
    /// Access keys that signed a request.
    access_keys: Mutex<BTreeSet<String>>,
    /// Request lines and headers of puts, in lower case.
    puts: Mutex<Vec<String>>,
    /// Held during a put: S3 looks whether there is an object and puts it in one step, moto in two.
    putting: Mutex<()>,
}

impl Front {
    fn faults(&self) -> MutexGuard<'_, VecDeque<Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn access_keys(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.access_keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that goes wrong with the next request of this method.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The method.
    pub method: &'static str,
    /// What goes wrong.
    pub what: What,
}

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub enum What {
    /// The answer is this status with this code of S3.
    Refused(u16, &'static str),
    /// The same, although the request was carried out.
    DoneAndRefused(u16, &'static str),
    /// The request is carried out, and there is no answer.
    DoneAndCutOff,
    /// There is no answer, as long as the test runs.
    Silent,
    /// The answer comes after this time.
    Slow(Duration),
    /// The answer is no answer of S3.
    Garbage,
    /// A conditional put is carried out without its condition.
    Unconditional,
}

impl ObjectStorage {
    /// Starts it with an empty bucket.
    pub fn start() -> Self {
        let (server, port) = moto(&[]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = listener.local_addr().unwrap().port();
        let front_state = Arc::new(Front::default());
        let shared = Arc::clone(&front_state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(stream, port, &state));
            }
        });
        let storage = Self {
            _server: server,
            port,
            front,
            front_state,
        };
        let (status, body) = storage.ask("PUT", "", b"");
        assert_eq!(status, 200, "{body}");
        storage
    }

    /// The value of `key_store` for a prefix.
    pub fn location(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The value of `AWS_ENDPOINT_URL_S3`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.front)
    }

    /// Lets something go wrong with the next request of its method, after what was said before.
    pub fn fault(&self, method: &'static str, what: What) {
        self.front_state.faults().push_back(Fault { method, what });
    }

    /// Nothing goes wrong any more.
    pub fn recover(&self) {
        self.front_state.faults().clear();
    }

    /// Number of faults that have not happened yet.
    pub fn faults_left(&self) -> usize {
        self.front_state.faults().len()
    }

    /// Request line and headers of each put, in lower case.
    pub fn puts(&self) -> Vec<String> {
        let puts = &self.front_state.puts;
        puts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The access keys that have signed requests since the last time.
    pub fn take_access_keys(&self) -> Vec<String> {
        std::mem::take(&mut *self.front_state.access_keys())
            .into_iter()
            .collect()
    }

    /// The content of an object.
    pub fn read(&self, name: &str) -> Option<String> {
        let (status, body) = self.ask("GET", name, b"");
        (status == 200).then_some(body)
    }

    /// Puts an object, whatever is there.
    pub fn write(&self, name: &str, content: &str) {
        let (status, body) = self.ask("PUT", name, content.as_bytes());
        assert_eq!(status, 200, "{body}");
    }

    /// Names of the objects below a prefix, sorted, without it.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let (status, body) = self.ask("GET", &format!("?list-type=2&prefix={prefix}/"), b"");
        assert_eq!(status, 200, "{body}");
        let mut names: Vec<String> = body
            .split("<Key>")
            .skip(1)
            .map(|rest| rest.split("</Key>").next().unwrap())
            .map(|name| {
                name.trim_start_matches(prefix)
                    .trim_start_matches('/')
                    .into()
            })
            .collect();
        names.sort();
        names
    }

    fn ask(&self, method: &str, name: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!(
            "{method} /{BUCKET}/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: AWS4-HMAC-SHA256 Credential=AKIATEST/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.into())
    }
}

/// The same bucket behind TLS, without faults.
pub struct TlsStorage {
    _server: Process,
    /// `HOST:PORT`.
    pub address: String,
}

impl TlsStorage {
    /// Starts it with an empty bucket, and the certificate and key in these PEM files.
    pub fn start(certificate: &str, key: &str) -> Self {
        let (server, port) = moto(&["-c", certificate, "-k", key]);
        let address = format!("127.0.0.1:{port}");
        let made = Command::new(tools().join("aws"))
            .args([
                "s3api",
                "create-bucket",
                "--bucket",
                BUCKET,
                "--no-verify-ssl",
            ])
            .arg(format!("--endpoint-url=https://{address}"))
            .env("AWS_ACCESS_KEY_ID", "AKIATEST")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_REGION", "us-east-1")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Self {
            _server: server,
            address,
        }
    }
}

fn tools() -> PathBuf {
    let tools = Command::new(SCRIPT)
        .args(["moto-tools", "moto[server]==5.2.5"])
        .output()
        .unwrap();
    assert!(tools.status.success(), "{tools:?}");
    String::from_utf8(tools.stdout).unwrap().trim().into()
}

/// moto with further arguments, and its port.
fn moto(arguments: &[&str]) -> (Process, u16) {
    let mut command = Command::new(tools().join("moto_server"));
    command.args(["-H", "127.0.0.1", "-p", "0"]).args(arguments);
    let server = Process::start(&mut command);
    let line = server.wait_for("://127.0.0.1:");
    let port = line.rsplit(':').next().unwrap().trim().parse().unwrap();
    (server, port)
}

/// Passes one request on. The client connects again for the next one.
fn serve(mut client: TcpStream, port: u16, state: &Front) {
    let Some((head, body)) = read_request(&mut client) else {
        return;
    };
    if let Some((_, credential)) = head.split_once("Credential=") {
        let access_key = credential.split('/').next().unwrap_or_default();
        state.access_keys().insert(access_key.into());
    }
    if head.starts_with("PUT") {
        let mut puts = state.puts.lock().unwrap_or_else(PoisonError::into_inner);
        puts.push(head.to_lowercase());
    }
    let what = {
        let mut faults = state.faults();
        let position = faults.iter().position(|it| head.starts_with(it.method));
        position.and_then(|position| faults.remove(position))
    };
    let mut head: Vec<&str> = head
        .lines()
        .filter(|line| !line.to_lowercase().starts_with("connection:"))
        .collect();
    let what = what.map(|fault| fault.what);
    if matches!(what, Some(What::Unconditional)) {
        head.retain(|line| !line.to_lowercase().starts_with("if-none-match:"));
    }
    let is_put = head.first().is_some_and(|line| line.starts_with("PUT"));
    let forward = || {
        let _alone = is_put.then(|| state.putting.lock().unwrap_or_else(PoisonError::into_inner));
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let head = format!("{}\r\nConnection: close\r\n\r\n", head.join("\r\n"));
        stream.write_all(&[head.as_bytes(), &body].concat()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        Some(answer)
    };
    let answer = match what {
        None | Some(What::Unconditional) => forward(),
        Some(What::Refused(status, code)) => Some(error(status, code)),
        Some(What::DoneAndRefused(status, code)) => forward().map(|_| error(status, code)),
        Some(What::DoneAndCutOff) => forward().and(None),
        Some(What::Silent) => loop {
            thread::park();
        },
        Some(What::Slow(pause)) => {
            thread::sleep(pause);
            forward()
        }
        Some(What::Garbage) => Some(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 12\r\n\r\n<html></html"
                .into(),
        ),
    };
    // The client may have left.
    let _ = client.write_all(&answer.unwrap_or_default());
}

fn error(status: u16, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>said the storage</Message><RequestId>REQ1</RequestId></Error>"
    );
    format!(
        "HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn read_request(client: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        request.extend(byte);
    }
    let head = String::from_utf8(request).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body).ok()?;
    Some((head.trim_end().into(), body))
}

/// A directory as a key store.
pub struct StoreDirectory(std::path::PathBuf, bool);

impl Drop for StoreDirectory {
    fn drop(&mut self) {
        if self.1 {
            let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        }
    }
}

impl StoreDirectory {
    /// Makes it, as `kms-data-keys push` does.
    pub fn new(sandbox: &Sandbox) -> Self {
        let path = sandbox.directory("key-store");
        fs::write(path.join("conditional-put-check"), "").unwrap();
        Self(path, false)
    }

    /// The same, with no room for a key.
    pub fn full(sandbox: &Sandbox) -> Self {
        let path = sandbox.directory("full-key-store");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "nr_inodes=3", "none"])
            .arg(&path)
            .status();
        assert!(mount.unwrap().success());
        fs::write(path.join("conditional-put-check"), "").unwrap();
        Self(path, true)
    }

    /// The value of `key_store`.
    pub fn location(&self) -> String {
        format!("file://{}", self.0.display())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether the object of a key file has its content.
    pub fn has(&self, key_file: &str, content: &[u8]) -> bool {
        let mut parts = key_file.trim_start_matches("aws-kms-key.").split('.');
        let (id, version) = (parts.next().unwrap(), parts.next().unwrap());
        let object = fs::read_to_string(self.0.join(id).join(version)).unwrap_or_default();
        let wrapped = format!("\"wrapped_key\":\"{}\"", BASE64_STANDARD.encode(content));
        object.contains(&wrapped)
    }

    /// Names of the objects, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for id in fs::read_dir(&self.0).unwrap().flatten() {
            let Ok(versions) = fs::read_dir(id.path()) else {
                continue;
            };
            for version in versions.flatten() {
                let (id, version) = (id.file_name(), version.file_name());
                names.push(format!("{}/{}", id.display(), version.display()));
            }
        }
        names.sort();
        names
    }
}
