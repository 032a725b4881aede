//! Entering a code: as `iam-kms-wrapper code` does, a few times a minute at most.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use aws_session::token_code::TokenCode;
use code_channel::{
    note::Note,
    writer::{FifoWriter, Outcome, WriteError},
};
use nix::sys::eventfd::EventFd;

use crate::rate::Rate;

/// Codes that may be entered in a minute.
const MAX_CODES: usize = 5;

/// Takes codes for one FIFO.
pub(crate) struct Codes {
    fifo: PathBuf,
    /// Locked while a code is being judged.
    rate: Mutex<Rate>,
    /// Never readable: nothing interrupts a code that was written.
    never: EventFd,
}

impl Codes {
    pub fn new(fifo: &Path) -> io::Result<Self> {
        Ok(Self {
            fifo: fifo.into(),
            rate: Mutex::new(Rate::new(MAX_CODES, Duration::from_secs(60))),
            never: EventFd::new()?,
        })
    }

    /// Writes a code to the FIFO with a note, and waits until the reader says what became of it.
    pub fn enter(&self, code: &str, note: &Note) -> Outcome {
        let refused = |why: &str| Outcome::Refused(why.into());
        let Some(code) = TokenCode::new(code.trim().as_bytes()) else {
            return refused("a code has six digits; nothing was entered");
        };
        let mut rate = match self.rate.try_lock() {
            Ok(rate) => rate,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => {
                return refused("another code is being entered at this moment");
            }
        };
        if !rate.may(Instant::now()) {
            return refused("too many codes in a minute; wait a little, and enter the next one");
        }
        self.give(&code, note)
            .unwrap_or_else(|error| Outcome::Refused(error.to_string()))
    }

    fn give(&self, code: &TokenCode, note: &Note) -> Result<Outcome, WriteError> {
        let mut fifo = FifoWriter::find(&self.fifo)?;
        fifo.check_directory()?;
        fifo.give(&note.document_of_code(code), self.never.as_fd(), |_| {})
    }
}
