//! One attempt at a time for each key, and a pause after one that failed: whoever asks again soon gets the
//! reason without another call of KMS, and the error log gets it once.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::keys::error::KeyError;
use crate::server::log;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How soon a thread that waits for another one's attempt notices that its statement was killed.
const KILL_CHECK: Duration = Duration::from_millis(100);
/// Above that, failures whose pause is over are forgotten.
const PRUNE_AT: usize = 256;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyRequest {
    /// Key id.
    pub id: u32,
    /// Version; `None`: the latest.
    pub version: Option<u32>,
}

#[derive(Default)]
struct Entry {
    is_in_progress: bool,
    failure: Option<Failure>,
}

struct Failure {
    reason: String,
    /// Whether to answer with the reason alone until the pause is over.
    is_repeated: bool,
    until: Instant,
    pause: Duration,
}

impl Failure {
    fn message(&self, now: Instant) -> String {
        let seconds = (self.until - now).as_secs() + 1;
        format!(
            "{}; the next attempt is made in {seconds} s at the earliest",
            self.reason
        )
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }
}

/// The attempts in progress and the recent failures.
#[derive(Default)]
pub struct FailureBackoff {
    slots: Mutex<HashMap<KeyRequest, Entry>>,
    /// An attempt has ended.
    ended: Condvar,
}

impl FailureBackoff {
    /// Runs `attempt` for `request`, one thread at a time for each key, unless it failed a moment ago.
    /// Threads that want another key do not wait; one that waits for the same key asks `may_wait` now and
    /// then, and gives up with its error.
    ///
    /// The error is the reason. That of an attempt has been logged.
    pub fn run<T>(
        &self,
        request: KeyRequest,
        may_wait: impl Fn() -> Result<(), KeyError>,
        attempt: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<T, String> {
        let turn = self.turn(request, may_wait)?;
        let result = attempt();
        turn.end(result)
    }

    fn turn(
        &self,
        request: KeyRequest,
        may_wait: impl Fn() -> Result<(), KeyError>,
    ) -> Result<Turn<'_>, String> {
        let mut slots = self.slots();
        loop {
            let now = Instant::now();
            if slots.len() >= PRUNE_AT {
                slots.retain(|_, slot| slot.is_needed(now));
            }
            let slot = slots.entry(request).or_default();
            if !slot.is_in_progress {
                return match &slot.failure {
                    Some(failure) if failure.is_repeated && !failure.is_over(now) => {
                        Err(failure.message(now))
                    }
                    _ => {
                        slot.is_in_progress = true;
                        let backoff = self;
                        Ok(Turn { backoff, request })
                    }
                };
            }
            drop(slots);
            may_wait().map_err(|error| error.to_string())?;
            slots = self.slots();
            if slots.get(&request).is_some_and(|slot| slot.is_in_progress) {
                let waited = self.ended.wait_timeout(slots, KILL_CHECK);
                slots = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Whole at every unlock.
    fn slots(&self) -> MutexGuard<'_, HashMap<KeyRequest, Entry>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_needed(&self, now: Instant) -> bool {
        self.is_in_progress
            || self
                .failure
                .as_ref()
                .is_some_and(|failure| !failure.is_over(now))
    }
}

/// The right to make an attempt, until it is dropped.
struct Turn<'a> {
    backoff: &'a FailureBackoff,
    request: KeyRequest,
}

impl Turn<'_> {
    fn end<T>(self, result: Result<T, KeyError>) -> Result<T, String> {
        let mut slots = self.backoff.slots();
        let slot = slots.entry(self.request).or_default();
        match result {
            Ok(result) => {
                slot.failure = None;
                Ok(result)
            }
            Err(error) => {
                let reason = error.to_string();
                let (failure, is_news) = record(slot.failure.take(), &reason, !error.is_cheap());
                slot.failure = Some(failure);
                drop(slots);
                if is_news {
                    log::error(&reason);
                }
                Err(reason)
            }
        }
    }
}

impl Drop for Turn<'_> {
    /// Also when the attempt has panicked.
    fn drop(&mut self) {
        if let Some(slot) = self.backoff.slots().get_mut(&self.request) {
            slot.is_in_progress = false;
        }
        self.backoff.ended.notify_all();
    }
}

/// The failure to remember, and whether it is to be logged: not again within the pause, which doubles each
/// time.
fn record(earlier: Option<Failure>, reason: &str, is_repeated: bool) -> (Failure, bool) {
    let now = Instant::now();
    match earlier {
        Some(earlier) if !earlier.is_over(now) && earlier.reason == reason => {
            let failure = Failure {
                is_repeated,
                ..earlier
            };
            (failure, false)
        }
        earlier => {
            let pause = earlier.map_or(FIRST_PAUSE, |earlier| {
                (earlier.pause * 2).min(LONGEST_PAUSE)
            });
            let failure = Failure {
                reason: reason.to_owned(),
                is_repeated,
                until: now + pause,
                pause,
            };
            (failure, true)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    const LATEST_1: KeyRequest = KeyRequest {
        id: 1,
        version: None,
    };

    fn costly() -> KeyError {
        KeyError::Memory(std::io::ErrorKind::OutOfMemory.into())
    }

    fn run<T>(
        backoff: &FailureBackoff,
        request: KeyRequest,
        attempt: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<T, String> {
        backoff.run(request, || Ok(()), attempt)
    }

    #[test]
    fn a_costly_failure_is_answered_again_without_another_attempt() {
        let backoff = FailureBackoff::default();
        let first = run(&backoff, LATEST_1, || Err::<(), _>(costly())).unwrap_err();
        let second = run(&backoff, LATEST_1, || -> Result<(), _> {
            panic!("attempted")
        });
        assert_eq!(
            second.unwrap_err(),
            format!("{first}; the next attempt is made in 1 s at the earliest")
        );
    }

    #[test]
    fn a_cheap_failure_is_attempted_again_at_once() {
        let backoff = FailureBackoff::default();
        let failure = || Err::<(), _>(KeyError::NoMasterKey { id: 1 });
        run(&backoff, LATEST_1, failure).unwrap_err();
        assert_eq!(run(&backoff, LATEST_1, || Ok(5)), Ok(5));
    }

    #[test]
    fn another_key_is_not_affected_and_success_forgets_the_failure() {
        let backoff = FailureBackoff::default();
        run(&backoff, LATEST_1, || Err::<(), _>(costly())).unwrap_err();
        let latest_2 = KeyRequest { id: 2, ..LATEST_1 };
        let version_1 = KeyRequest {
            version: Some(1),
            ..LATEST_1
        };
        assert_eq!(run(&backoff, latest_2, || Ok(())), Ok(()));
        assert_eq!(run(&backoff, version_1, || Ok(())), Ok(()));
    }

    #[test]
    fn the_pause_doubles_up_to_a_minute_and_ends() {
        let (mut failure, _) = record(None, "reason", true);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(failure.pause, Duration::from_secs(expected));
            failure.until = Instant::now();
            failure = record(Some(failure), "reason", true).0;
        }
    }

    #[test]
    fn old_failures_do_not_pile_up() {
        let backoff = FailureBackoff::default();
        for version in 1..10 * PRUNE_AT as u32 {
            let request = KeyRequest {
                id: 1,
                version: Some(version),
            };
            run(&backoff, request, || Ok(())).unwrap();
        }
        assert!(backoff.slots().len() <= PRUNE_AT);
    }

    #[test]
    fn whoever_gives_up_waiting_does_not_wait_for_the_attempt_to_end() {
        let (backoff, started, end) = (FailureBackoff::default(), Barrier::new(2), Barrier::new(2));
        let is_killed = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                run(&backoff, LATEST_1, || {
                    started.wait();
                    end.wait();
                    Ok(())
                })
            });
            started.wait();
            let second = scope.spawn(|| {
                let may_wait = || match is_killed.load(Ordering::SeqCst) {
                    true => Err(KeyError::Killed { id: 1 }),
                    false => Ok(()),
                };
                backoff.run(LATEST_1, may_wait, || Ok(()))
            });
            is_killed.store(true, Ordering::SeqCst);
            assert!(second.join().unwrap().unwrap_err().contains("was killed"));
            end.wait();
        });
    }

    #[test]
    fn an_attempt_that_panics_leaves_the_turn_to_others() {
        let backoff = FailureBackoff::default();
        let panicking = || {
            run(&backoff, LATEST_1, || -> Result<(), _> {
                panic!("in the attempt")
            })
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).is_err());
        assert_eq!(run(&backoff, LATEST_1, || Ok(5)), Ok(5));
    }
}
