//! A broker inside the test, on a socket of its own, whose answers the test decides.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use broker_protocol::{
    Failure, FailureKind, PlaintextKey, Reply, Request, SessionPhase, SessionState, read_frame,
    write_frame,
};
use tempfile::TempDir;

use crate::key_manager::KeyManager;
use crate::settings::{Dynamic, Fixed};

const WRAPPED: &[u8] = b"wrapped:";

pub struct TestBroker {
    directory: TempDir,
    /// Connections so far.
    pub connections: Arc<AtomicUsize>,
    /// Requests so far, those for the session left out.
    pub requests: Arc<AtomicUsize>,
}

impl TestBroker {
    /// Serves each connection with `serve`.
    pub fn with_connections(serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, serve) = (Arc::clone(&connections), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let (stream, serve) = (stream.unwrap(), Arc::clone(&serve));
                std::thread::spawn(move || serve(stream));
            }
        });
        Self {
            directory,
            connections,
            requests: Arc::default(),
        }
    }

    /// Answers each request with `answer`.
    pub fn new(answer: impl Fn(Request) -> Reply + Send + Sync + 'static) -> Self {
        let requests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests);
        let broker = Self::with_connections(move |mut stream| {
            while let Ok(request) = read_frame::<Request>(&mut stream) {
                if request != Request::Session {
                    count.fetch_add(1, Ordering::SeqCst);
                }
                if write_frame(&mut stream, &answer(request)).is_err() {
                    return;
                }
            }
        });
        Self { requests, ..broker }
    }

    /// One that can do everything.
    pub fn honest() -> Self {
        Self::new(honest_answer)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub fn request_count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A key manager for the key files in `directory`, with `master_key_id` set.
pub fn manager(broker: &TestBroker, directory: &Path, dynamic: &'static Dynamic) -> KeyManager {
    dynamic.set_master_key_id("alias/test");
    KeyManager::new(settings(broker, directory), dynamic, false).unwrap()
}

pub fn settings(broker: &TestBroker, directory: &Path) -> Fixed {
    Fixed {
        keyfile_dir: directory.to_owned(),
        broker_socket: broker.socket(),
        request_timeout_milliseconds: 2000,
        ..Fixed::default()
    }
}

pub fn dynamic() -> &'static Dynamic {
    Box::leak(Box::default())
}

/// The key file of a key.
pub fn wrapped(key: &[u8]) -> Vec<u8> {
    [WRAPPED, key].concat()
}

/// Unwraps what it wrapped, and makes a different key each time.
pub fn honest_answer(request: Request) -> Reply {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let (master_key_arn, request_id) = ("arn".into(), "request".into());
    match request {
        Request::Session => Reply::Session(SessionState {
            phase: SessionPhase::Open,
            expiration_unix_seconds: Some(1_700_000_000),
            fifo: None,
        }),
        Request::Decrypt(decrypt) => match decrypt.ciphertext_blob.strip_prefix(WRAPPED) {
            Some(key) => Reply::Decrypted {
                key: PlaintextKey::new(key).unwrap(),
                master_key_arn,
                request_id,
            },
            None => failure(FailureKind::InvalidCiphertext, "not a wrapped key"),
        },
        Request::GenerateDataKey(generate) => {
            let number = MADE.fetch_add(1, Ordering::SeqCst).to_le_bytes();
            let key: Vec<u8> = number
                .into_iter()
                .cycle()
                .take(generate.key_bytes.into())
                .collect();
            Reply::Generated {
                ciphertext_blob: wrapped(&key),
                master_key_arn,
                request_id,
            }
        }
    }
}

pub fn failure(kind: FailureKind, message: &str) -> Reply {
    Reply::Failed(Failure {
        kind,
        message: message.into(),
    })
}
