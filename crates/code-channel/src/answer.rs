//! What `iam-kms-wrapper code --json` prints, one object a line, for a program that enters a code or a
//! session document.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// What has become of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerState {
    /// A service waits, and standard input is read now. Another answer follows.
    Waiting,
    /// It opened a session.
    Accepted,
    /// The service refused it.
    Refused,
    /// It was written, but the service has not said what became of it.
    Unknown,
    /// Nothing waits for a code.
    NotWaiting,
    /// It could not be written.
    Failed,
}

/// A line of the output.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What has become of the input.
    pub state: AnswerState,
    /// The same in words, on one line.
    pub message: String,
}

impl Answer {
    /// Writes the line to standard output.
    pub fn print(&self) -> io::Result<()> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(line.as_bytes())?;
        stdout.flush()
    }

    /// Reads a line; `None`: it is something else.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}
