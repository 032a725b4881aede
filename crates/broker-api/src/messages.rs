//! The messages between plugin and broker.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use key_files::check_value::{CHECK_VALUE_BYTES, CheckValue};
use key_files::key_name::KeyName;
use key_files::{PlaintextKey, WrappedKey};

/// Most keys of a [`Reply::KeyList`]: they fit into a frame.
pub const MAX_LISTED_KEYS: usize = 400;

/// Most clients of an [`Overview`], and most keys: they fit into a frame.
pub const MAX_OVERVIEW_CLIENTS: usize = 32;
/// See [`MAX_OVERVIEW_CLIENTS`].
pub const MAX_OVERVIEW_KEYS: usize = 200;

/// Most events of a [`Reply::Events`]: they fit into a frame.
pub const MAX_PAGE_EVENTS: usize = 20;
/// Longest message of an event there, in bytes.
pub const MAX_EVENT_MESSAGE_BYTES: usize = 600;

/// What the plugin asks of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Unwrap a data key; answered by [`Reply::Decrypted`].
    Decrypt(Decrypt),
    /// Make a new wrapped data key; answered by [`Reply::Generated`].
    GenerateDataKey(GenerateDataKey),
    /// Report the state of the session, without calling AWS; answered by [`Reply::Session`].
    Session,
    /// Make a new key in the key store; answered by [`Reply::Stored`].
    MakeKey(MakeKey),
    /// Look for a key in the key store; answered by [`Reply::Stored`].
    FindKey(FindKey),
    /// List the keys of the key store; answered by [`Reply::KeyList`].
    ListKeys(ListKeys),
    /// Ask a key server for a data key of its key store; answered by [`Reply::Decrypted`].
    GetKey(GetKey),
    /// Report what the broker has done; answered by [`Reply::Overview`].
    Overview,
    /// Show the events of the audit, the latest first; answered by [`Reply::Events`].
    Events {
        /// Only events with a lower number; `None`: all.
        before: Option<u64>,
    },
}

impl Request {
    /// The call of KMS or of the key store that this asks for, by its name in logs and metrics, and what it is for;
    /// `None` where there is none.
    pub fn call(&self) -> Option<(&'static str, &KeyContext)> {
        Some(match self {
            Self::Decrypt(request) => ("Decrypt", &request.context),
            Self::GenerateDataKey(request) => ("GenerateDataKeyWithoutPlaintext", &request.context),
            Self::MakeKey(request) => ("MakeKey", &request.generate.context),
            Self::FindKey(request) => ("FindKey", &request.context),
            Self::ListKeys(request) => ("ListKeys", &request.context),
            Self::GetKey(request) => ("GetKey", &request.context),
            Self::Session | Self::Overview | Self::Events { .. } => return None,
        })
    }
}

/// KMS `Decrypt` of one key file.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html>.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decrypt {
    /// The wrapped key as KMS returned it, 1 to [`key_files::MAX_CIPHERTEXT_BYTES`] bytes.
    pub ciphertext_blob: Vec<u8>,
    /// The [check value](key_files::check_value::CheckValue) of the data key, where it is known: it
    /// finds the key among those that the broker has kept, however it is wrapped now. The broker
    /// does not compare it with what KMS unwraps; that is the client's part.
    pub check_value: Option<[u8; CHECK_VALUE_BYTES]>,
    /// What the call is for.
    pub context: KeyContext,
}

/// KMS `GenerateDataKeyWithoutPlaintext`.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/APIReference/API_GenerateDataKeyWithoutPlaintext.html>.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerateDataKey {
    /// The master key: id, ARN, alias name or alias ARN, 1 to 2048 characters.
    pub master_key_id: String,
    /// Length of the data key in bytes: 16 or 32.
    pub key_bytes: u8,
    /// What the call is for.
    pub context: KeyContext,
}

/// [`GenerateDataKey`] for the key store: KMS makes a key, and the broker puts it there under a number
/// that no key has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeKey {
    /// What to ask of KMS. Its context has the key id.
    pub generate: GenerateDataKey,
    /// Which version the key becomes.
    pub numbering: Numbering,
}

/// Which version a new key becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Numbering {
    /// 1, if the key store has no version of the key; else the answer is the highest that it has.
    First,
    /// One above `known` and above all that the key store has.
    Next {
        /// The highest version that the client knows.
        known: u32,
    },
}

/// Asks for a key of the key store. The context has the key id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindKey {
    /// The version; `None`: the highest.
    pub version: Option<u32>,
    /// What the key is for.
    pub context: KeyContext,
}

/// Asks for the names of the keys of the key store, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListKeys {
    /// Id and version of the last key of the page before; `None`: the first page.
    pub after: Option<(u32, u32)>,
    /// How long to wait for a session.
    pub context: KeyContext,
}

/// Asks for a data key by its id and version, both of which are in the context. The key server reads the wrapped key in
/// its own key store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetKey {
    /// Which key, and how long to wait for a session.
    pub context: KeyContext,
}

/// The key that a call of KMS is for, and how long the call may wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyContext {
    /// The key id, for the audit; 0 where it is not known.
    pub key_id: u32,
    /// The key version, for the audit; 0 where it is not known, as before a new one is stored.
    pub key_version: u32,
    /// How long the call may wait for a session.
    pub wait: WaitPolicy,
}

/// How long a call may wait for somebody to open a session, where none is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitPolicy {
    /// Not at all: locks are held, or nobody is there.
    #[default]
    Never,
    /// As long as `reprompt_wait_seconds` says.
    Limited,
    /// Until a session is open: a server starts, and can do nothing without its keys.
    UntilOpen,
    /// Not at all, and the answer changes nothing: a monitor asks. A key that KMS refuses it stays in the key cache, for a
    /// backup or a restart after the session.
    Monitor,
}

impl WaitPolicy {
    /// How long that is, where [`Self::Limited`] is `limited`; `None`: without limit.
    pub fn limit(self, limited: Duration) -> Option<Duration> {
        match self {
            Self::Never | Self::Monitor => Some(Duration::ZERO),
            Self::Limited => Some(limited),
            Self::UntilOpen => None,
        }
    }
}

/// What the broker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The data key of a [`Request::Decrypt`].
    Decrypted {
        /// The data key in the clear.
        key: PlaintextKey,
        /// ARN of the master key that wrapped it.
        master_key_arn: String,
        /// KMS's request id; empty if KMS was not asked, because the broker had kept the key.
        request_id: String,
    },
    /// The wrapped key of a [`Request::GenerateDataKey`].
    Generated {
        /// The wrapped key, to be kept as it is; 1 to [`key_files::MAX_CIPHERTEXT_BYTES`] bytes.
        ciphertext_blob: Vec<u8>,
        /// ARN of the master key that wrapped it.
        master_key_arn: String,
        /// KMS's request id.
        request_id: String,
    },
    /// The answer to [`Request::Session`].
    Session(SessionState),
    /// The request could not be served.
    Failed(Failure),
    /// The answer to [`Request::MakeKey`] and [`Request::FindKey`].
    Stored {
        /// The key; `None`: the key store does not have it. A key server gives no wrapped key: that field is empty.
        key: Option<WrappedKey>,
        /// Whether this request has made it.
        is_new: bool,
        /// KMS's request id; empty if KMS was not asked.
        request_id: String,
    },
    /// The answer to [`Request::ListKeys`].
    KeyList {
        /// Name and check value of each key, by id and version. At most [`MAX_LISTED_KEYS`].
        keys: Vec<(KeyName, CheckValue)>,
        /// What to ask for the next page with; `None`: there is none.
        next: Option<(u32, u32)>,
    },
    /// No answer yet. Comes again after [`crate::WAITING_INTERVAL`] until there is an answer.
    Waiting(Waiting),
    /// The answer to [`Request::Overview`].
    Overview(Box<Overview>),
    /// The answer to [`Request::Events`]: [`MAX_PAGE_EVENTS`] or fewer, the latest first. Empty: there are no
    /// more.
    Events(Vec<AuditEvent>),
}

/// What the broker has done since it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// The session.
    pub session: SessionState,
    /// When the broker started. As all times here, in seconds since 1970-01-01 UTC.
    pub start_unix_seconds: i64,
    /// Calls by operation and result, in the order of both.
    pub calls: Vec<CallCount>,
    /// When a call last succeeded.
    pub last_success_unix_seconds: Option<i64>,
    /// When a call last failed, and why.
    pub last_failure: Option<(i64, String)>,
    /// How many clients are known.
    pub clients_seen: u64,
    /// Clients, the latest first; at most [`MAX_OVERVIEW_CLIENTS`].
    pub clients: Vec<ClientState>,
    /// Certificates, and when they end.
    pub certificates: Vec<CertificateEnd>,
    /// How many key versions were served.
    pub keys_served: u64,
    /// Key versions that were served, the latest first; at most [`MAX_OVERVIEW_KEYS`].
    pub keys: Vec<ServedKey>,
}

/// A certificate of a key server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateEnd {
    /// Its file.
    pub file: String,
    /// When it ends, in seconds since 1970-01-01 UTC.
    pub expiration_unix_seconds: i64,
}

/// How often an operation had a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCount {
    /// Such as `Decrypt`.
    pub operation: String,
    /// `ok`, `cached`, or the kind of failure.
    pub result: String,
    /// How often.
    pub count: u64,
}

/// A client of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientState {
    /// Such as `uid 27`.
    pub name: String,
    /// Its connections now.
    pub connections: u32,
    /// Its calls.
    pub calls: u64,
    /// When it last made a call.
    pub last_call_unix_seconds: i64,
}

/// A key version that was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedKey {
    /// The key id.
    pub key_id: u32,
    /// The key version.
    pub key_version: u32,
    /// When it was last served.
    pub last_served_unix_seconds: i64,
}

/// An event of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// Grows with each event.
    pub number: u64,
    /// When it was, in seconds since 1970-01-01 UTC.
    pub unix_seconds: i64,
    /// Its name.
    pub name: String,
    /// What happened, printable and on one line; at most [`MAX_EVENT_MESSAGE_BYTES`] bytes.
    pub message: String,
}

/// Why there is no answer yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What the request waits for, for the program.
    pub reason: WaitReason,
    /// The same for people, on one line: what to do, where something is to be done.
    pub message: String,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitReason {
    /// Somebody must open a session; the message says how.
    Session,
    /// Other requests of the same user come first; nothing is to be done.
    Turn,
    /// The key store is slow; nothing is to be done.
    KeyStore,
}

/// Why a request could not be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure it is, for the program.
    pub kind: FailureKind,
    /// What failed, in which request of KMS if there was an answer, why and what to do next, for
    /// people; one line without a secret in it.
    pub message: String,
}

/// Kinds of failure that a caller treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The session is over and somebody must enter a new MFA code; the message says where.
    SessionOver,
    /// A policy does not allow the call (`AccessDeniedException`).
    AccessDenied,
    /// The master key is disabled, pending deletion or of the wrong kind.
    KeyUnusable,
    /// The master key or its alias does not exist.
    NotFound,
    /// KMS does not know the wrapped key: the file is damaged or not of KMS.
    InvalidCiphertext,
    /// KMS asks for fewer calls; worth trying again after a pause.
    Throttled,
    /// KMS failed, did not answer in time or could not be reached; worth trying again.
    Unavailable,
    /// The request itself is wrong.
    InvalidRequest,
    /// Anything else that KMS answered.
    Other,
    /// AWS does not accept the signature of the call: a wrong clock, or an access key that it does
    /// not know. It has not looked at the key.
    NotAuthenticated,
    /// The broker does not speak the protocol version of the request.
    UnsupportedVersion,
}

impl FailureKind {
    /// Tells whether the same request may succeed a little later without anybody's doing.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable)
    }

    /// Whether KMS refuses to decrypt this wrapped key, and not only this call.
    pub fn refuses_key(self) -> bool {
        match self {
            Self::AccessDenied | Self::KeyUnusable | Self::NotFound | Self::InvalidCiphertext => {
                true
            }
            Self::SessionOver
            | Self::NotAuthenticated
            | Self::Throttled
            | Self::Unavailable
            | Self::InvalidRequest
            | Self::UnsupportedVersion
            | Self::Other => false,
        }
    }
}

/// The state of the broker's session, and its settings for KMS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// Whether KMS can be called now.
    pub phase: SessionPhase,
    /// End of the present or last session, in seconds since 1970-01-01 UTC. `None` for credentials
    /// that do not expire.
    pub expiration_unix_seconds: Option<i64>,
    /// The FIFO that takes the next code, while one is awaited.
    pub fifo: Option<String>,
    /// How the broker calls KMS.
    pub kms: KmsSettings,
    /// Where the key store is, such as `s3://BUCKET/PREFIX`; `None`: there is none.
    pub key_store: Option<String>,
    /// Whether the key store is that of a key server, which gives no wrapped keys.
    pub has_key_server: bool,
}

/// How the broker calls KMS. No client can change it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmsSettings {
    /// AWS region.
    pub region: String,
    /// Endpoint URL, where one is configured in place of AWS's own.
    pub endpoint_url: Option<String>,
    /// Time limit of a call in milliseconds. A client should wait a little longer.
    pub request_timeout_milliseconds: u64,
}

/// Whether KMS can be called now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionPhase {
    /// A session is open.
    Open,
    /// The session is over; an MFA code is awaited.
    AwaitingCode,
    /// The session is over and no new one can be opened, for a reason that the broker has logged.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_that_pass_by_themselves_are_retryable() {
        for kind in [FailureKind::Throttled, FailureKind::Unavailable] {
            assert!(kind.is_retryable(), "{kind:?}");
        }
        for kind in [
            FailureKind::SessionOver,
            FailureKind::AccessDenied,
            FailureKind::KeyUnusable,
            FailureKind::NotFound,
            FailureKind::InvalidCiphertext,
            FailureKind::InvalidRequest,
            FailureKind::Other,
            FailureKind::NotAuthenticated,
            FailureKind::UnsupportedVersion,
        ] {
            assert!(!kind.is_retryable(), "{kind:?}");
        }
    }

    #[test]
    fn a_request_that_calls_kms_says_which_key_it_is_for() {
        let context = KeyContext {
            key_id: 7,
            key_version: 3,
            ..KeyContext::default()
        };
        let decrypt = Request::Decrypt(Decrypt {
            ciphertext_blob: vec![1],
            check_value: None,
            context,
        });
        let generate = Request::GenerateDataKey(GenerateDataKey {
            master_key_id: "alias/mariadb".into(),
            key_bytes: 16,
            context,
        });
        for (request, name) in [
            (decrypt, "Decrypt"),
            (generate, "GenerateDataKeyWithoutPlaintext"),
        ] {
            assert_eq!(request.call(), Some((name, &context)), "{request:?}");
        }
        assert_eq!(Request::Session.call(), None);
    }
}
