//! What plugin and broker say to each other.

use serde::{Deserialize, Serialize};

use key_store::PlaintextKey;

/// What the plugin asks of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Unwrap a data key; answered by [`Reply::Decrypted`].
    Decrypt(Decrypt),
    /// Make a new wrapped data key; answered by [`Reply::Generated`].
    GenerateDataKey(GenerateDataKey),
    /// Tell how the session stands, without calling AWS; answered by [`Reply::Session`].
    Session,
}

impl Request {
    /// The options of a call of KMS; `None` where it is not called.
    pub fn options(&self) -> Option<&KmsOptions> {
        match self {
            Self::Decrypt(request) => Some(&request.options),
            Self::GenerateDataKey(request) => Some(&request.options),
            Self::Session => None,
        }
    }
}

/// KMS `Decrypt` of one key file.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html>.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decrypt {
    /// The wrapped key as KMS returned it, 1 to [`key_store::MAX_CIPHERTEXT_BYTES`] bytes.
    pub ciphertext_blob: Vec<u8>,
    /// How to call KMS.
    pub options: KmsOptions,
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
    /// How to call KMS.
    pub options: KmsOptions,
}

/// The plugin's own settings of a KMS call, and what it is for. Empty and zero leave a setting to the
/// broker's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmsOptions {
    /// AWS region (`aws_key_management_region`), or empty.
    pub region: String,
    /// Endpoint URL (`aws_key_management_endpoint_url`), or empty.
    pub endpoint_url: String,
    /// Time limit of the call in milliseconds (`aws_key_management_request_timeout`), or 0.
    pub request_timeout_milliseconds: u32,
    /// How long a person may be waited for where no session is open.
    pub may_wait: MayWait,
    /// The key that the call is for, for the audit; 0 where that is not known.
    pub key_id: u32,
    /// Its version; 0 where that is not known, as before a new one is stored.
    pub key_version: u32,
}

/// How long a request may wait for a person to open a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MayWait {
    /// Not at all: locks are held, or nobody is there.
    #[default]
    No,
    /// As long as `reprompt_wait_seconds` says.
    Statement,
    /// As long as it takes: a server starts, and can do nothing without its keys.
    Start,
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
        /// The wrapped key, to be kept as it is; 1 to [`key_store::MAX_CIPHERTEXT_BYTES`] bytes.
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
    /// No answer yet: a person is waited for, who should do what this line says. Comes again after
    /// [`crate::WAITING_INTERVAL`] until there is an answer.
    Waiting(String),
}

/// Why a request could not be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure it is, for the program.
    pub kind: FailureKind,
    /// What failed, in which request of KMS if there was an answer, why and what to do next, for
    /// the person; one line without a secret in it.
    pub message: String,
}

/// Kinds of failure that a caller treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The session is over and a person must write a new MFA code; the message says where.
    SessionOver,
    /// KMS refused the caller (`AccessDeniedException` and its like).
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
}

impl FailureKind {
    /// Tells whether the same request may succeed a little later without anybody's doing.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable)
    }
}

/// How the broker's session stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// Whether KMS can be called now.
    pub phase: SessionPhase,
    /// End of the present or last session, in seconds since 1970-01-01 UTC. `None` for credentials
    /// that do not expire.
    pub expiration_unix_seconds: Option<i64>,
    /// The FIFO that takes the next code, while one is awaited.
    pub fifo: Option<String>,
}

/// Whether KMS can be called now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionPhase {
    /// A session is open.
    Open,
    /// The session is over; an MFA code is awaited.
    AwaitingCode,
    /// The session is over and no new one can be had, for a reason that the broker has logged.
    Failed,
}
