//! Failed attempts to get a key: who asks again soon is told the reason without another call of
//! KMS, and the error log gets it once. Nothing is remembered for longer than the pause.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::key_manager::KeyError;
use crate::server_log;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Above that, what is no longer needed is thrown away.
const PRUNE_AT: usize = 256;

/// A key id and version; version 0 stands for the latest.
pub type Wanted = (u32, u32);

type Slot = Arc<Mutex<Option<FailedAttempt>>>;

struct FailedAttempt {
    reason: String,
    /// Whether who asks again within the pause gets the reason at once.
    repeated: bool,
    until: Instant,
    pause: Duration,
}

impl FailedAttempt {
    fn told_again(&self, now: Instant) -> String {
        let seconds = (self.until - now).as_secs() + 1;
        format!(
            "{}; tried again in {seconds} s at the earliest",
            self.reason
        )
    }
}

/// The attempts under way and the recent failures.
#[derive(Default)]
pub struct Attempts {
    slots: Mutex<HashMap<Wanted, Slot>>,
}

impl Attempts {
    /// Runs `attempt` for `wanted`, one thread at a time for each key, unless it failed a moment
    /// ago. The error is the reason, and has been logged.
    ///
    /// Threads that want another key do not wait.
    pub fn run<T>(
        &self,
        wanted: Wanted,
        attempt: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<T, String> {
        let slot = self.slot(wanted);
        let mut failed = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(earlier) = &*failed
            && earlier.repeated
            && now < earlier.until
        {
            return Err(earlier.told_again(now));
        }
        match attempt() {
            Ok(result) => {
                *failed = None;
                Ok(result)
            }
            Err(error) => {
                let reason = error.to_string();
                let earlier = failed.take();
                *failed = Some(remember(earlier, &reason, !error.is_cheap()));
                Err(reason)
            }
        }
    }

    fn slot(&self, wanted: Wanted) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= PRUNE_AT {
            slots.retain(|_, slot| is_needed(slot));
        }
        Arc::clone(slots.entry(wanted).or_default())
    }
}

/// A slot that nobody else holds and that has nothing to tell any more can go.
fn is_needed(slot: &Slot) -> bool {
    let now = Instant::now();
    Arc::strong_count(slot) > 1
        || slot
            .try_lock()
            .is_ok_and(|failed| failed.as_ref().is_some_and(|failed| now < failed.until))
}

/// Logs the failure unless that was done within the pause, which doubles each time.
fn remember(earlier: Option<FailedAttempt>, reason: &str, repeated: bool) -> FailedAttempt {
    let now = Instant::now();
    match earlier {
        Some(earlier) if now < earlier.until && earlier.reason == reason => FailedAttempt {
            repeated,
            ..earlier
        },
        earlier => {
            server_log::error(reason);
            let pause = earlier.map_or(FIRST_PAUSE, |earlier| {
                (earlier.pause * 2).min(LONGEST_PAUSE)
            });
            FailedAttempt {
                reason: reason.to_owned(),
                repeated,
                until: now + pause,
                pause,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_manager::KeyError;

    fn costly() -> KeyError {
        KeyError::Memory(std::io::ErrorKind::OutOfMemory.into())
    }

    #[test]
    fn a_costly_failure_is_told_again_without_another_attempt() {
        let attempts = Attempts::default();
        let first = attempts.run((1, 0), || Err::<(), _>(costly())).unwrap_err();
        let second = attempts.run((1, 0), || -> Result<(), _> { panic!("attempted") });
        assert_eq!(
            second.unwrap_err(),
            format!("{first}; tried again in 1 s at the earliest")
        );
    }

    #[test]
    fn a_cheap_failure_is_attempted_again_at_once() {
        let attempts = Attempts::default();
        let failure = || Err::<(), _>(KeyError::NoMasterKey { id: 1 });
        attempts.run((1, 0), failure).unwrap_err();
        assert_eq!(attempts.run((1, 0), || Ok(5)), Ok(5));
    }

    #[test]
    fn another_key_is_not_affected_and_success_forgets_the_failure() {
        let attempts = Attempts::default();
        attempts.run((1, 0), || Err::<(), _>(costly())).unwrap_err();
        assert_eq!(attempts.run((2, 0), || Ok(())), Ok(()));
        assert_eq!(attempts.run((1, 1), || Ok(())), Ok(()));
    }

    #[test]
    fn the_pause_doubles_up_to_a_minute_and_runs_out() {
        let mut failed = remember(None, "reason", true);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(failed.pause, Duration::from_secs(expected));
            failed.until = Instant::now();
            failed = remember(Some(failed), "reason", true);
        }
    }

    #[test]
    fn old_failures_do_not_pile_up() {
        let attempts = Attempts::default();
        for version in 1..10 * PRUNE_AT as u32 {
            attempts.run((1, version), || Ok(())).unwrap();
        }
        assert!(attempts.slots.lock().unwrap().len() <= PRUNE_AT);
    }
}
