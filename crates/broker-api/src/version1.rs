//! Version 1 of the messages, which the plugin of release 0.1.0 speaks: a server that runs goes on
//! with it after an upgrade. Region, endpoint and time limit of KMS were the client's to choose.

use serde::{Deserialize, Serialize};

use key_files::PlaintextKey;

use crate::{Failure, FailureKind, KeyContext, SessionPhase, WaitPolicy};

/// The version in the header of a frame.
pub const PROTOCOL_VERSION: u8 = 1;

/// [`crate::Request`] of version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Unwrap a data key.
    Decrypt {
        /// The wrapped key.
        ciphertext_blob: Vec<u8>,
        /// How to call KMS.
        options: KmsOptions,
    },
    /// Make a new wrapped data key.
    GenerateDataKey {
        /// The master key.
        master_key_id: String,
        /// Length of the data key in bytes.
        key_bytes: u8,
        /// How to call KMS.
        options: KmsOptions,
    },
    /// Report the state of the session.
    Session,
}

impl Request {
    /// The options of a call of KMS; `None` where KMS is not called.
    pub fn options(&self) -> Option<&KmsOptions> {
        match self {
            Self::Decrypt { options, .. } | Self::GenerateDataKey { options, .. } => Some(options),
            Self::Session => None,
        }
    }
}

/// Without the options that the broker decides now.
impl From<Request> for crate::Request {
    fn from(request: Request) -> Self {
        match request {
            Request::Decrypt {
                ciphertext_blob,
                options,
            } => Self::Decrypt(crate::Decrypt {
                ciphertext_blob,
                check_value: None,
                context: options.context(),
            }),
            Request::GenerateDataKey {
                master_key_id,
                key_bytes,
                options,
            } => Self::GenerateDataKey(crate::GenerateDataKey {
                master_key_id,
                key_bytes,
                context: options.context(),
            }),
            Request::Session => Self::Session,
        }
    }
}

/// The client's settings of a KMS call, and what it is for. Empty and zero leave a setting to the
/// broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmsOptions {
    /// AWS region (`aws_key_management_region`), or empty.
    pub region: String,
    /// Endpoint URL (`aws_key_management_endpoint_url`), or empty.
    pub endpoint_url: String,
    /// Time limit of the call in milliseconds (`aws_key_management_request_timeout`), or 0.
    pub request_timeout_milliseconds: u32,
    /// How long the call may wait for a session.
    pub may_wait: WaitPolicy,
    /// The key id; 0 where it is not known.
    pub key_id: u32,
    /// The key version; 0 where it is not known.
    pub key_version: u32,
}

impl KmsOptions {
    fn context(&self) -> KeyContext {
        KeyContext {
            key_id: self.key_id,
            key_version: self.key_version,
            wait: self.may_wait,
        }
    }
}

/// [`crate::Reply`] of version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// A data key.
    Decrypted {
        /// The data key in the clear.
        key: PlaintextKey,
        /// ARN of the master key that wrapped it.
        master_key_arn: String,
        /// KMS's request id, or empty.
        request_id: String,
    },
    /// A wrapped key.
    Generated {
        /// The wrapped key.
        ciphertext_blob: Vec<u8>,
        /// ARN of the master key that wrapped it.
        master_key_arn: String,
        /// KMS's request id.
        request_id: String,
    },
    /// The state of the session.
    Session(SessionState),
    /// The request could not be served.
    Failed(Failure),
    /// No answer yet, and why.
    Waiting(String),
}

impl From<crate::Reply> for Reply {
    fn from(reply: crate::Reply) -> Self {
        match reply {
            crate::Reply::Decrypted {
                key,
                master_key_arn,
                request_id,
            } => Self::Decrypted {
                key,
                master_key_arn,
                request_id,
            },
            crate::Reply::Generated {
                ciphertext_blob,
                master_key_arn,
                request_id,
            } => Self::Generated {
                ciphertext_blob,
                master_key_arn,
                request_id,
            },
            crate::Reply::Session(state) => Self::Session(SessionState {
                phase: state.phase,
                expiration_unix_seconds: state.expiration_unix_seconds,
                fifo: state.fifo,
            }),
            crate::Reply::Failed(failure) => Self::Failed(Failure {
                kind: kind(failure.kind),
                message: failure.message,
            }),
            crate::Reply::Waiting(waiting) => Self::Waiting(waiting.message),
            // Not an answer to any request of version 1.
            crate::Reply::Stored { .. }
            | crate::Reply::KeyList { .. }
            | crate::Reply::Overview(_)
            | crate::Reply::Events(_) => Self::Failed(Failure {
                kind: FailureKind::Other,
                message: "this answer does not exist in version 1 of the protocol".into(),
            }),
        }
    }
}

/// The kinds that version 1 does not know are those that it had in their place.
fn kind(kind: FailureKind) -> FailureKind {
    match kind {
        FailureKind::NotAuthenticated => FailureKind::AccessDenied,
        FailureKind::UnsupportedVersion => FailureKind::Other,
        known => known,
    }
}

/// [`crate::SessionState`] of version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// Whether KMS can be called now.
    pub phase: SessionPhase,
    /// End of the present or last session, in seconds since 1970-01-01 UTC.
    pub expiration_unix_seconds: Option<i64>,
    /// The FIFO that takes the next code.
    pub fifo: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the plugin of release 0.1.0 sends and understands, byte for byte.
    #[test]
    fn the_bytes_are_those_of_release_0_1_0() {
        let request = Request::Decrypt {
            ciphertext_blob: vec![0xaa, 0xbb],
            options: KmsOptions {
                region: "r".into(),
                endpoint_url: "u".into(),
                request_timeout_milliseconds: 300,
                may_wait: WaitPolicy::UntilOpen,
                key_id: 1,
                key_version: 2,
            },
        };
        let wire = postcard::to_allocvec(&request).unwrap();
        let expected = [0, 2, 0xaa, 0xbb, 1, b'r', 1, b'u', 0xac, 0x02, 2, 1, 2];
        assert_eq!(wire, expected);
        let reply = Reply::from(crate::Reply::Failed(Failure {
            kind: FailureKind::NotAuthenticated,
            message: "m".into(),
        }));
        assert_eq!(postcard::to_allocvec(&reply).unwrap(), [3, 1, 1, b'm']);
        let waiting = Reply::Waiting("w".into());
        assert_eq!(postcard::to_allocvec(&waiting).unwrap(), [4, 1, b'w']);
    }

    #[test]
    fn a_request_keeps_its_key_and_loses_only_what_the_broker_decides() {
        let options = KmsOptions {
            region: "r".into(),
            may_wait: WaitPolicy::UntilOpen,
            key_id: 7,
            key_version: 3,
            ..KmsOptions::default()
        };
        let request = Request::Decrypt {
            ciphertext_blob: vec![0xaa],
            options: options.clone(),
        };
        assert_eq!(request.options(), Some(&options));
        assert_eq!(Request::Session.options(), None);
        let context = KeyContext {
            key_id: 7,
            key_version: 3,
            wait: WaitPolicy::UntilOpen,
        };
        let expected = crate::Decrypt {
            ciphertext_blob: vec![0xaa],
            check_value: None,
            context,
        };
        assert_eq!(
            crate::Request::from(request),
            crate::Request::Decrypt(expected)
        );
        let session = crate::Request::from(Request::Session);
        assert_eq!(session, crate::Request::Session);
    }
}
