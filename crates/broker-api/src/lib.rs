//! The messages between MariaDB's `aws_key_management` plugin and `iam-kms-broker`.
//!
//! The plugin connects to the broker's Unix socket and sends one [`Request`] at a time; the broker
//! answers each with one [`Reply`], before which it may say that it waits for a person. A connection carries as many exchanges as the client likes.
//! Both travel as frames ([`write_frame`], [`read_frame`]): a length and a postcard document.

#![forbid(unsafe_code)]

use core::time::Duration;

mod frame;
mod messages;

pub use frame::{FrameError, MAX_FRAME_BYTES, read_frame, write_frame};
pub use messages::{
    Decrypt, Failure, FailureKind, GenerateDataKey, KmsOptions, MayWait, Reply, Request,
    SessionPhase, SessionState,
};

/// Where the broker listens unless `broker_socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/iam-kms-wrapper/broker.sock";

/// How often the broker says that a request waits for a person.
pub const WAITING_INTERVAL: Duration = Duration::from_secs(1);
