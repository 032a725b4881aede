//! The messages between MariaDB's `aws_key_management` plugin and `iam-kms-broker`, and connections
//! to it.
//!
//! The plugin connects to the broker's Unix socket and sends one [`Request`] at a time. The broker
//! answers each with one [`Reply`], before which it may say that the request waits. A connection
//! carries as many exchanges as the client likes. Both travel as frames ([`write_frame`],
//! [`read_frame`]): a version, a length and a postcard document.
//!
//! The broker answers a frame in the version in which it was asked: the present one, or [`version1`]
//! of the plugin of release 0.1.0. It answers a version that it does not know with a
//! [`Reply::Failed`] of the present one.

#![forbid(unsafe_code)]

use core::time::Duration;

#[cfg(feature = "client")]
pub mod client;
mod frame;
mod messages;
#[cfg(any(test, feature = "test-broker"))]
pub mod test_broker;
pub mod version1;

pub use frame::{
    FrameError, HEADER_BYTES, Header, MAX_FRAME_BYTES, PROTOCOL_VERSION, decode, encode,
    read_frame, read_frame_of, write_frame, write_frame_of,
};
pub use messages::{
    AuditEvent, CallCount, CertificateEnd, ClientState, Decrypt, Failure, FailureKind, FindKey,
    GenerateDataKey, GetKey, KeyContext, KmsSettings, ListKeys, MAX_EVENT_MESSAGE_BYTES,
    MAX_LISTED_KEYS, MAX_OVERVIEW_CLIENTS, MAX_OVERVIEW_KEYS, MAX_PAGE_EVENTS, MakeKey, Numbering,
    Overview, Reply, Request, ServedKey, SessionPhase, SessionState, WaitPolicy, WaitReason,
    Waiting,
};

/// Where the broker listens unless `broker_socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/iam-kms-wrapper/broker.sock";

/// Where the broker shows its state to programs that may not use keys, if `overview_socket` says so.
pub const DEFAULT_OVERVIEW_SOCKET: &str = "/run/iam-kms-wrapper/overview.sock";

/// How often the broker says that a request waits.
pub const WAITING_INTERVAL: Duration = Duration::from_secs(1);
