//! A change of the key: requested until KMS accepts it, and checked until it is in effect.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use broker_api::{Failure, FailureKind};
use tracing::{info, warn};

use super::{
    ManageError,
    master_key::{AcceptedChange, CallError, Change, Description, MasterKey},
};
use aws_session::clock::{seconds_text, utc_text};
use code_channel::note::Note;

/// The shortest pause between two calls, doubled each time up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A wait that an operator notices.
const SILENCE: Duration = Duration::from_secs(2);

/// A change to make.
pub struct Attempt<'a> {
    /// The key.
    pub key: &'a MasterKey<'a>,
    /// Its id or ARN; KMS does not accept an alias for this.
    pub id: &'a str,
    /// What to change.
    pub change: Change,
    /// Who makes the change, for the log.
    pub caller: &'a str,
    /// Who asked for the change, and why, for the log.
    pub note: &'a Note,
    /// How long to repeat the request while KMS does not answer.
    pub request_patience: Duration,
    /// How long KMS may take from its answer until the new state is visible.
    pub timeout: Duration,
}

impl Attempt<'_> {
    /// Makes the change, and returns when KMS shows it. The text of an error says what KMS has accepted so far.
    pub fn make(&self) -> Result<(), ManageError> {
        let taken = self.request()?;
        let request = self.describe_request(&taken);
        // For the audit, it is done, even if its effect cannot be confirmed.
        info!(
            event = "master_key_changed",
            operation = self.change.operation(),
            request_id = taken.request_id,
            master_key = self.id,
            caller = self.caller,
            operator = self.note.operator,
            from = self.note.from,
            reason = self.note.reason,
            "KMS accepted {request}"
        );
        let arn = self.confirm(&taken)?.arn;
        info!("{arn} is {}: {request}", self.change.state().as_str());
        Ok(())
    }

    /// Both operations may be repeated: they do nothing if the key already has the state.
    fn request(&self) -> Result<AcceptedChange, ManageError> {
        let mut pauses = Pauses::within(self.request_patience);
        loop {
            let failure = match self.key.change(self.id, self.change) {
                Ok(taken) => return Ok(taken),
                Err(CallError::Interrupted) => return Err(self.interrupted()),
                Err(CallError::Failed(failure)) => failure,
            };
            let Failure { kind, message } = failure;
            if kind == FailureKind::SessionOver {
                return Err(ManageError::SessionOver(message));
            }
            if !kind.is_retryable() {
                return Err(ManageError::Refused(message));
            }
            let Some(pause) = pauses.next() else {
                return Err(ManageError::TimedOut(format!(
                    "{message}; gave up after {}, and it is unknown whether KMS made the change",
                    seconds_text(self.request_patience.as_secs())
                )));
            };
            warn!("{message}; trying again");
            if self.key.pause(pause) {
                return Err(self.interrupted());
            }
        }
    }

    fn confirm(&self, taken: &AcceptedChange) -> Result<Description, ManageError> {
        let mut pauses = Pauses::within(self.timeout);
        let mut is_told = !io::stderr().is_terminal();
        let state = self.change.state();
        let but = |why: String| format!("KMS accepted {}, but {why}", self.describe_request(taken));
        loop {
            let seen = match self.key.describe(self.id) {
                Ok(key) if key.state == state => return Ok(key),
                Ok(key) => match key.advice() {
                    Some(advice) => format!("it is {}: {advice}", key.state.as_str()),
                    None => format!("it is still {}", key.state.as_str()),
                },
                Err(CallError::Interrupted) => {
                    return Err(ManageError::Interrupted(but(NOT_AWAITED.into())));
                }
                Err(CallError::Failed(failure)) if failure.kind.is_retryable() => failure.message,
                Err(CallError::Failed(failure)) => {
                    return Err(ManageError::Unconfirmable(but(cannot_confirm(&failure))));
                }
            };
            if !is_told && pauses.began.elapsed() >= SILENCE {
                is_told = true;
                let id = self.id;
                info!("waiting for KMS to show {id} as {}", state.as_str());
            }
            let Some(pause) = pauses.next() else {
                let waited = seconds_text(self.timeout.as_secs());
                return Err(ManageError::TimedOut(but(format!(
                    "does not show it after {waited} (--timeout-seconds): {seen}"
                ))));
            };
            if self.key.pause(pause) {
                return Err(ManageError::Interrupted(but(NOT_AWAITED.into())));
            }
        }
    }

    fn interrupted(&self) -> ManageError {
        let operation = self.change.operation();
        ManageError::Interrupted(format!(
            "KMS did not answer {operation}, but may have done it"
        ))
    }

    fn describe_request(&self, taken: &AcceptedChange) -> String {
        format!(
            "{} by {} at {} (request {})",
            self.change.operation(),
            self.caller,
            utc_text(taken.unix_seconds),
            taken.request_id
        )
    }
}

const NOT_AWAITED: &str = "the wait for its effect was interrupted";

fn cannot_confirm(failure: &Failure) -> String {
    let advice = match failure.kind {
        FailureKind::AccessDenied => "allow kms:DescribeKey in the key policy: ",
        _ => "",
    };
    format!(
        "its effect cannot be confirmed; {advice}{}",
        failure.message
    )
}

/// Growing pauses until a deadline; the last call comes at the deadline.
struct Pauses {
    began: Instant,
    limit: Duration,
    next: Duration,
}

impl Pauses {
    fn within(limit: Duration) -> Self {
        Self {
            began: Instant::now(),
            limit,
            next: SHORTEST_PAUSE,
        }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let left = self.limit.checked_sub(self.began.elapsed())?;
        let pause = self.next.min(left);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        (!pause.is_zero()).then_some(pause)
    }
}
