//! Requests to a broker, as the plugin sends them.

use std::{
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    time::Duration,
};

use broker_api::{
    Decrypt, Failure, GenerateDataKey, KeyContext, Reply, Request, SessionPhase, WaitPolicy,
    read_frame, write_frame,
};
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::Pid,
};

use crate::{PATIENCE_SECONDS, Process, Scene};

/// A connection, as the plugin makes it.
pub struct Peer(
    /// The socket, for what no client of ours sends.
    pub UnixStream,
);

impl Peer {
    /// Connects to the broker that listens at `socket`.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        let patience = Some(Duration::from_secs(PATIENCE_SECONDS));
        stream.set_read_timeout(patience).unwrap();
        Self(stream)
    }

    /// Sends `request` and returns the answer, after all waiting.
    pub fn ask(&mut self, request: &Request) -> Reply {
        write_frame(&mut self.0, request).unwrap();
        loop {
            match read_frame(&mut self.0).unwrap() {
                Reply::Waiting(_) => {}
                reply => return reply,
            }
        }
    }

    /// The process that listens.
    fn broker(&self) -> Pid {
        Pid::from_raw(getsockopt(&self.0, PeerCredentials).unwrap().pid())
    }

    /// Whether the broker has closed the connection.
    pub fn is_dropped(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(length) => length == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

/// The answer to `request`, after all waiting.
pub fn ask(scene: &Scene, request: &Request) -> Reply {
    Peer::connect(&scene.configuration.broker_socket).ask(request)
}

/// The process of the broker.
pub fn broker_pid(scene: &Scene) -> Pid {
    Peer::connect(&scene.configuration.broker_socket).broker()
}

/// The phase of the broker's session.
pub fn phase(scene: &Scene) -> SessionPhase {
    match ask(scene, &Request::Session) {
        Reply::Session(state) => state.phase,
        reply => panic!("{reply:?}"),
    }
}

/// Asks for a key of this length.
pub fn generate(key_bytes: u8) -> Request {
    Request::GenerateDataKey(GenerateDataKey {
        master_key_id: "alias/mariadb".into(),
        key_bytes,
        context: KeyContext::default(),
    })
}

/// Asks for a key of 16 bytes, and says how long the answer may take.
pub fn generate_with(wait: WaitPolicy) -> Request {
    Request::GenerateDataKey(GenerateDataKey {
        master_key_id: "alias/mariadb".into(),
        key_bytes: 16,
        context: KeyContext {
            wait,
            ..KeyContext::default()
        },
    })
}

/// A new wrapped key of 16 bytes.
pub fn generated(scene: &Scene) -> Vec<u8> {
    match ask(scene, &generate(16)) {
        Reply::Generated {
            ciphertext_blob, ..
        } => ciphertext_blob,
        reply => panic!("{reply:?}"),
    }
}

/// Why the broker makes no key.
pub fn failure(scene: &Scene) -> Failure {
    match ask(scene, &generate(16)) {
        Reply::Failed(failure) => failure,
        reply => panic!("{reply:?}"),
    }
}

/// Asks for the key of a key file.
pub fn decrypt(ciphertext_blob: Vec<u8>) -> Request {
    Request::Decrypt(Decrypt {
        ciphertext_blob,
        check_value: None,
        context: KeyContext {
            key_id: 7,
            key_version: 3,
            ..KeyContext::default()
        },
    })
}

/// Has the broker decrypt a wrapped key.
pub fn unwrap(broker_socket: &Path, wrapped: &[u8]) -> Vec<u8> {
    match Peer::connect(broker_socket).ask(&decrypt(wrapped.into())) {
        Reply::Decrypted { key, .. } => key.expose().into(),
        reply => panic!("{reply:?}"),
    }
}

/// What a process of another user and group, with these further groups, gets for `request` at `socket`: "got True" if
/// there is an answer, or why there is none.
pub fn answer_to(user: u32, group: u32, groups: &[u32], socket: &Path, request: &[u8]) -> String {
    let script = format!(
        "import os, socket\nos.setgroups({groups:?}); os.setgid({group}); os.setuid({user})\n\
         s = socket.socket(socket.AF_UNIX); s.settimeout({PATIENCE_SECONDS})\n\
         try:\n s.connect({socket:?})\n s.send(bytes({request:?}))\n \
         print('got', len(s.recv(100)) > 0)\n\
         except OSError as e:\n print('got', e.strerror)"
    );
    Process::start(Command::new("/usr/bin/python3").args(["-c", &script])).wait_for("got")
}

/// The bytes of a request.
pub fn frame(request: &Request) -> Vec<u8> {
    let mut frame = Vec::new();
    write_frame(&mut frame, request).unwrap();
    frame
}
