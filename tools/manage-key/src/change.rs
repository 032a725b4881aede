//! A change of the key: asked for until KMS has taken it, and looked at until it shows.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use broker_api::{Failure, FailureKind};
use tracing::{info, warn};

use super::master_key::{AcceptedChange, CallError, Change, Description, MasterKey};
use aws_session::clock::utc_text;

/// The shortest pause between two calls, doubled each time up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A wait that a person notices.
const SILENCE: Duration = Duration::from_secs(2);

/// Why a change is not known to be in effect. The texts say what KMS has taken until then.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The interrupt descriptor became readable.
    #[error("{0}")]
    Interrupted(String),
    /// KMS does not make the change: the key is as it was.
    #[error("{0}")]
    Refused(String),
    /// The session is over before KMS has taken the change.
    #[error("{0}")]
    SessionOver(String),
    /// KMS has taken the change, but does not say what has become of it.
    #[error("{0}")]
    Unconfirmable(String),
    /// This process has run out of something.
    #[error("cannot call KMS: {0}")]
    Runtime(#[from] io::Error),
    /// It did not come in time.
    #[error("{0}")]
    TimedOut(String),
}

/// A change to be made.
pub struct Attempt<'a> {
    /// The key as the session reaches it.
    pub key: &'a MasterKey<'a>,
    /// Its id or ARN; KMS takes no alias for this.
    pub id: &'a str,
    /// What is to become of it.
    pub change: Change,
    /// Who asks, for the log.
    pub caller: &'a str,
    /// How long to go on asking while KMS does not answer.
    pub request_patience: Duration,
    /// How long KMS may take from its answer until it shows the new state.
    pub timeout: Duration,
}

impl Attempt<'_> {
    /// Makes the change; returns when KMS shows it.
    pub fn make(&self) -> Result<(), ChangeError> {
        let taken = self.request()?;
        let arn = self.confirm(&taken)?.arn;
        info!(
            event = "master_key_changed",
            operation = self.change.operation(),
            request_id = taken.request_id,
            master_key = arn,
            caller = self.caller,
            "{arn} is {}: {}",
            self.change.state().as_str(),
            self.describe_request(&taken)
        );
        Ok(())
    }

    /// Both operations may be repeated: they do nothing to a key that is so already.
    fn request(&self) -> Result<AcceptedChange, ChangeError> {
        let mut pauses = Pauses::within(self.request_patience);
        loop {
            let failure = match self.key.change(self.id, self.change) {
                Ok(taken) => return Ok(taken),
                Err(CallError::Interrupted) => return Err(self.interrupted()),
                Err(CallError::Failed(failure)) => failure,
            };
            let Failure { kind, message } = failure;
            if kind == FailureKind::SessionOver {
                return Err(ChangeError::SessionOver(message));
            }
            if !kind.is_retryable() {
                return Err(ChangeError::Refused(message));
            }
            let Some(pause) = pauses.next() else {
                return Err(ChangeError::TimedOut(format!(
                    "{message}; gave up after {} seconds, and KMS may have made the change or not",
                    self.request_patience.as_secs()
                )));
            };
            warn!("{message}; trying again");
            if self.key.pause(pause) {
                return Err(self.interrupted());
            }
        }
    }

    fn confirm(&self, taken: &AcceptedChange) -> Result<Description, ChangeError> {
        let mut pauses = Pauses::within(self.timeout);
        let mut is_told = !io::stderr().is_terminal();
        let state = self.change.state();
        let but =
            |why: String| format!("KMS has taken {}, but {why}", self.describe_request(taken));
        loop {
            let seen = match self.key.describe(self.id) {
                Ok(key) if key.state == state => return Ok(key),
                Ok(key) => match key.advice() {
                    Some(advice) => format!("it is {}: {advice}", key.state.as_str()),
                    None => format!("it is still {}", key.state.as_str()),
                },
                Err(CallError::Interrupted) => {
                    return Err(ChangeError::Interrupted(but(NOT_AWAITED.into())));
                }
                Err(CallError::Failed(failure)) if failure.kind.is_retryable() => failure.message,
                Err(CallError::Failed(failure)) => {
                    return Err(ChangeError::Unconfirmable(but(cannot_confirm(&failure))));
                }
            };
            if !is_told && pauses.began.elapsed() >= SILENCE {
                is_told = true;
                let id = self.id;
                info!("waiting for KMS to show {id} as {}", state.as_str());
            }
            let Some(pause) = pauses.next() else {
                let seconds = self.timeout.as_secs();
                return Err(ChangeError::TimedOut(but(format!(
                    "does not show it after {seconds} seconds (--timeout-seconds): {seen}"
                ))));
            };
            if self.key.pause(pause) {
                return Err(ChangeError::Interrupted(but(NOT_AWAITED.into())));
            }
        }
    }

    fn interrupted(&self) -> ChangeError {
        let operation = self.change.operation();
        ChangeError::Interrupted(format!(
            "KMS has not answered {operation}, and may have done it"
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

const NOT_AWAITED: &str = "its effect was not awaited";

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

/// Growing pauses until a time has passed; the last call comes at its end.
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
