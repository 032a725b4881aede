//! A broker inside a test, and key managers that use it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use broker_api::test_broker::TestBroker;
use broker_api::{Failure, FailureKind, KmsSettings, Reply, Request, SessionPhase, SessionState};
use key_files::PlaintextKey;

use crate::keys::manager::{KeyManager, Program};
use crate::settings::{GlobalSettings, StartupSettings};

const WRAPPED: &[u8] = b"wrapped:";

/// A broker that answers every request as the real one does.
pub fn honest() -> TestBroker {
    TestBroker::new(honest_answer)
}

/// The broker of a host that gets its keys from a key server, which has none.
pub fn with_empty_key_server() -> TestBroker {
    TestBroker::new(|request| match request {
        Request::FindKey(_) => Reply::Stored {
            key: None,
            is_new: false,
            request_id: String::new(),
        },
        request => match honest_answer(request) {
            Reply::Session(state) => Reply::Session(SessionState {
                key_store: Some("of the key server a:1".into()),
                has_key_server: true,
                ..state
            }),
            other => other,
        },
    })
}

/// A key manager for the key files in `directory`, with `master_key_id` set.
pub fn manager(
    broker: &TestBroker,
    directory: &Path,
    dynamic: &'static GlobalSettings,
) -> KeyManager {
    dynamic.set_master_key_id("alias/test");
    KeyManager::new(settings(broker, directory), dynamic, Program::Server).unwrap()
}

pub fn settings(broker: &TestBroker, directory: &Path) -> StartupSettings {
    StartupSettings {
        keyfile_dir: directory.to_owned(),
        datadir: directory.to_owned(),
        broker_socket: broker.socket(),
        ..StartupSettings::default()
    }
}

pub fn dynamic() -> &'static GlobalSettings {
    Box::leak(Box::default())
}

/// The content of the key file of a key.
pub fn wrapped(key: &[u8]) -> Vec<u8> {
    [WRAPPED, key].concat()
}

/// Decrypts the keys that it wrapped, and makes a different key each time.
pub fn honest_answer(request: Request) -> Reply {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let (master_key_arn, request_id) = ("arn".into(), "request".into());
    match request {
        Request::Session => Reply::Session(SessionState {
            phase: SessionPhase::Open,
            expiration_unix_seconds: Some(1_700_000_000),
            fifo: None,
            kms: KmsSettings {
                request_timeout_milliseconds: 500,
                ..KmsSettings::default()
            },
            key_store: None,
            has_key_server: false,
        }),
        Request::Decrypt(decrypt) => match decrypt.ciphertext_blob.strip_prefix(WRAPPED) {
            Some(key) => Reply::Decrypted {
                key: PlaintextKey::new(key).unwrap(),
                master_key_arn,
                request_id,
            },
            None => failure(FailureKind::InvalidCiphertext, "not a wrapped key"),
        },
        Request::MakeKey(_) | Request::FindKey(_) | Request::ListKeys(_) | Request::GetKey(_) => {
            failure(FailureKind::InvalidRequest, "there is no key store")
        }
        Request::Overview | Request::Events { .. } => {
            failure(FailureKind::InvalidRequest, "the plugin does not ask this")
        }
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
