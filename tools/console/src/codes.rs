//! Entering a code: as `iam-kms-wrapper code` does, a few times a minute at most.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use aws_session::{clock::unix_seconds_now, token_code::TokenCode};
use code_channel::{
    note::{Note, check_reason},
    writer::{FifoWriter, Outcome, WriteError},
};
use nix::sys::eventfd::EventFd;

use crate::{rate::Rate, view::Broker};

/// Codes that may be entered in a minute.
const MAX_CODES: usize = 5;

/// When the last code was entered, and what became of it; `None` while AWS has not judged it yet.
pub(crate) type LastCode = Option<(i64, Option<Outcome>)>;

/// Takes codes for one FIFO.
pub(crate) struct Codes {
    fifo: PathBuf,
    broker: Broker,
    /// Locked while a code is being judged.
    rate: Mutex<Rate>,
    last: Mutex<LastCode>,
    /// Never readable: nothing interrupts a code that was written.
    never: EventFd,
}

impl Codes {
    pub fn new(fifo: &Path, broker: Broker) -> io::Result<Self> {
        Ok(Self {
            fifo: fifo.into(),
            broker,
            rate: Mutex::new(Rate::new(MAX_CODES, Duration::from_secs(60))),
            last: Mutex::default(),
            never: EventFd::new()?,
        })
    }

    /// Writes a code to the FIFO with a note, and keeps what became of it as the last code, when the reader says so.
    /// A code that is entered meanwhile changes nothing: the page says that another one is being judged.
    pub fn enter(&self, code: &str, reason: &str, note: Note) {
        let mut rate = match self.rate.try_lock() {
            Ok(rate) => rate,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return,
        };
        *self.lock_last() = Some((unix_seconds_now(), None));
        let judged = self.judge(&mut rate, code, reason, note);
        *self.lock_last() = Some((unix_seconds_now(), Some(judged)));
    }

    /// Returns the last code.
    pub fn last(&self) -> LastCode {
        self.lock_last().clone()
    }

    fn lock_last(&self) -> MutexGuard<'_, LastCode> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, rate: &mut Rate, code: &str, reason: &str, mut note: Note) -> Outcome {
        let refused = |why: &str| Outcome::Refused(why.into());
        note.reason = match reason.trim() {
            "" => None,
            text => match check_reason(text) {
                Ok(reason) => Some(reason),
                Err(why) => return refused(&format!("{why}; nothing was entered")),
            },
        };
        let Some(code) = TokenCode::new(code.trim().as_bytes()) else {
            return refused("a code has six digits; nothing was entered");
        };
        if !rate.may(Instant::now()) {
            return refused("too many codes in a minute; wait a little, and enter the next one");
        }
        self.give(&code, &note)
            .unwrap_or_else(|error| Outcome::Refused(self.reason(&error)))
    }

    /// Says why a code was not written. What the error itself advises is for `iam-kms-wrapper code`.
    fn reason(&self, error: &WriteError) -> String {
        match error {
            WriteError::NotAwaited(_) if self.broker.has_session() => {
                "no code is awaited, because the session is open; the code was not used".into()
            }
            WriteError::NotAwaited(fifo) => format!(
                "nothing waits for a code at {}; start iam-kms-broker, or give iam-kms-console the broker's FIFO with --fifo",
                fifo.display()
            ),
            error => error.to_string(),
        }
    }

    fn give(&self, code: &TokenCode, note: &Note) -> Result<Outcome, WriteError> {
        let mut fifo = FifoWriter::find(&self.fifo)?;
        fifo.check_directory()?;
        fifo.give(&note.document_of_code(code), self.never.as_fd(), |_| {})
    }
}
