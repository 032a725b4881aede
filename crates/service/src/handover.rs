//! What `iam-kms-wrapper` hands to the broker that it starts.

use std::io;

use aws_session::{clock::Reading, config::Config, credentials::Credentials};
use broker_api::{FrameError, read_frame_of, write_frame_of};
use serde::{Deserialize, Serialize};

/// Version of the format of [`Handover`] and [`Started`].
const HANDOVER_FORMAT: u8 = 4;

/// The data for the broker, as one frame on its standard input. It answers with a [`Started`] on its
/// standard output.
#[derive(Serialize, Deserialize)]
pub struct Handover {
    /// The configuration, as the launcher read it.
    pub config: Config,
    /// The open session.
    pub session: Credentials,
    /// AWS's time, by which the session expires.
    pub clock: Reading,
    /// The source credentials; `None` if sessions are opened on another machine.
    pub source: Option<Credentials>,
    /// Those of `key_store_profile`; `None`: the key store is used with the session.
    pub key_store_credentials: Option<Credentials>,
    /// The process that becomes the server. The broker exits when it ends.
    pub server_pid: i32,
}

impl Handover {
    /// Reads it, in the broker.
    pub fn read(stream: &mut impl io::Read) -> Result<Self, FrameError> {
        read_frame_of(HANDOVER_FORMAT, stream)
    }

    /// Writes it, in the launcher.
    pub fn write(&self, stream: &mut impl io::Write) -> Result<(), FrameError> {
        write_frame_of(HANDOVER_FORMAT, stream, self)
    }
}

/// Whether the broker listens; the error is a message for the operator.
pub type Started = Result<(), String>;

/// Answers a [`Handover`].
pub fn answer(stream: &mut impl io::Write, started: &Started) -> Result<(), FrameError> {
    write_frame_of(HANDOVER_FORMAT, stream, started)
}

/// Reads the answer, in the launcher.
pub fn read_answer(stream: &mut impl io::Read) -> Result<Started, FrameError> {
    read_frame_of(HANDOVER_FORMAT, stream)
}
