//! What `iam-kms-wrapper` gives to the broker that it starts.

use std::io;

use aws_session::{clock::Reading, config::Config, credentials::Credentials};
use broker_api::{FrameError, read_frame_of, write_frame_of};
use serde::{Deserialize, Serialize};

/// Version of the form of [`Handover`] and [`Started`].
const HANDOVER_FORMAT: u8 = 2;

/// What the broker is given, as one frame on its standard input. It answers on its standard output
/// with a [`Started`].
#[derive(Serialize, Deserialize)]
pub struct Handover {
    /// The configuration, as the launcher read it.
    pub config: Config,
    /// The open session.
    pub session: Credentials,
    /// The time by which it ends.
    pub clock: Reading,
    /// The source credentials; `None` where sessions are opened elsewhere.
    pub source: Option<Credentials>,
    /// The process that becomes the server; the broker leaves when it ends.
    pub server_pid: i32,
}

impl Handover {
    /// Reads it on the broker's side.
    pub fn read(stream: &mut impl io::Read) -> Result<Self, FrameError> {
        read_frame_of(HANDOVER_FORMAT, stream)
    }

    /// Writes it, on the launcher's side.
    pub fn write(&self, stream: &mut impl io::Write) -> Result<(), FrameError> {
        write_frame_of(HANDOVER_FORMAT, stream, self)
    }
}

/// Whether the broker listens; the error is a line for the operator.
pub type Started = Result<(), String>;

/// Answers a [`Handover`].
pub fn answer(stream: &mut impl io::Write, started: &Started) -> Result<(), FrameError> {
    write_frame_of(HANDOVER_FORMAT, stream, started)
}

/// Reads the answer on the launcher's side.
pub fn read_answer(stream: &mut impl io::Read) -> Result<Started, FrameError> {
    read_frame_of(HANDOVER_FORMAT, stream)
}
