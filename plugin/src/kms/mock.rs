//! A stand-in for broker and KMS inside the plugin, for tests of the server's encryption and never for real
//! data. A wrapped key is the key itself, as in the stock plugin's mock.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};

use broker_api::{
    Failure, FailureKind, GenerateDataKey, KmsSettings, Reply, Request, SessionPhase, SessionState,
};
use key_files::PlaintextKey;

/// Warns anyone who has left the variable on.
pub const WARNING: &str = "aws_key_management_mock is ON: NOTHING IS PROTECTED, because the key files contain the data keys in plain text. For tests only, never for data that matters";

const NAME: &str = "mock";

/// Answers `request` as broker and KMS would.
pub fn answer(request: &Request) -> Reply {
    match request {
        Request::Session => Reply::Session(SessionState {
            phase: SessionPhase::Open,
            expiration_unix_seconds: None,
            fifo: None,
            kms: KmsSettings::default(),
            key_store: None,
            has_key_server: false,
        }),
        Request::Decrypt(decrypt) => match PlaintextKey::new(&decrypt.ciphertext_blob) {
            Ok(key) => Reply::Decrypted {
                key,
                master_key_arn: NAME.into(),
                request_id: NAME.into(),
            },
            Err(error) => failed(FailureKind::InvalidCiphertext, &error.to_string()),
        },
        Request::MakeKey(_) | Request::FindKey(_) | Request::ListKeys(_) | Request::GetKey(_) => {
            failed(FailureKind::InvalidRequest, "there is no key store")
        }
        Request::Overview | Request::Events { .. } => {
            failed(FailureKind::InvalidRequest, "the plugin does not ask this")
        }
        Request::GenerateDataKey(GenerateDataKey { key_bytes, .. }) => {
            match random_bytes((*key_bytes).into()) {
                Ok(ciphertext_blob) => Reply::Generated {
                    ciphertext_blob,
                    master_key_arn: NAME.into(),
                    request_id: NAME.into(),
                },
                Err(error) => failed(FailureKind::Other, &format!("no random bytes: {error}")),
            }
        }
    }
}

fn failed(kind: FailureKind, why: &str) -> Reply {
    Reply::Failed(Failure {
        kind,
        message: format!("aws_key_management_mock is ON: {why}"),
    })
}

fn random_bytes(count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use broker_api::{Decrypt, KeyContext};

    use super::*;

    fn generate(key_bytes: u8) -> Vec<u8> {
        let reply = answer(&Request::GenerateDataKey(GenerateDataKey {
            master_key_id: "alias/any".into(),
            key_bytes,
            context: KeyContext::default(),
        }));
        match reply {
            Reply::Generated {
                ciphertext_blob, ..
            } => ciphertext_blob,
            reply => panic!("{reply:?}"),
        }
    }

    fn decrypt(ciphertext_blob: Vec<u8>) -> Reply {
        answer(&Request::Decrypt(Decrypt {
            ciphertext_blob,
            check_value: None,
            context: KeyContext::default(),
        }))
    }

    #[test]
    fn a_wrapped_key_is_the_key_itself_and_differs_each_time() {
        for key_bytes in [16, 32] {
            let blob = generate(key_bytes);
            assert_eq!(blob.len(), usize::from(key_bytes));
            assert_ne!(blob, generate(key_bytes));
            let Reply::Decrypted { key, .. } = decrypt(blob.clone()) else {
                panic!("no key");
            };
            assert_eq!(key.expose(), blob);
        }
    }

    #[test]
    fn a_key_wrapped_by_kms_is_refused() {
        let Reply::Failed(failure) = decrypt(vec![1; 184]) else {
            panic!("a key");
        };
        assert_eq!(failure.kind, FailureKind::InvalidCiphertext);
        assert!(failure.message.contains("mock"), "{}", failure.message);
    }
}
