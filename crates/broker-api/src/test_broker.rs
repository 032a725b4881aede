//! A broker inside the test, on a socket of its own, whose answers the test decides.

#![allow(clippy::unwrap_used)]

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::{Reply, Request, read_frame, write_frame};

/// The broker. Its threads end with the test.
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

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Requests so far, those for the session left out.
    pub fn request_count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}
