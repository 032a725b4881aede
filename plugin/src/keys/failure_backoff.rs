//! Limits attempts to get a key: one at a time for each key, and a pause after a failure. A request during the
//! pause gets the same reason without another KMS call, and the error log gets the reason once.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::keys::error::KeyError;
use crate::lock::lock;
use crate::server::log;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a thread that waits for another thread's attempt checks whether its statement was killed.
const KILL_CHECK: Duration = Duration::from_millis(100);
/// From this number of entries on, failures whose pause is over are removed.
const PRUNE_AT: usize = 256;

/// The key that a thread asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyRequest {
    /// Key id.
    pub id: u32,
    /// Version; `None` for the latest.
    pub version: Option<u32>,
}

#[derive(Default)]
struct Entry {
    is_in_progress: bool,
    failure: Option<Failure>,
}

struct Failure {
    reason: String,
    /// Whether requests get this reason without another attempt until the pause is over.
    blocks_attempts: bool,
    until: Instant,
    pause: Duration,
}

impl Failure {
    fn message(&self, now: Instant) -> String {
        let seconds = (self.until - now).as_secs() + 1;
        format!(
            "{}; next attempt in {seconds} s at the earliest",
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
    entries: Mutex<HashMap<KeyRequest, Entry>>,
    /// Signals that an attempt has ended.
    ended: Condvar,
}

impl FailureBackoff {
    /// Runs `attempt` for `request`, in one thread at a time for each key, unless it failed a moment ago.
    /// Threads that want other keys do not wait. A thread that waits for the same key calls `may_wait` from
    /// time to time and stops with its error.
    ///
    /// The error is the reason. The reason of a failed attempt has been logged.
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
        let mut entries = lock(&self.entries);
        loop {
            let now = Instant::now();
            if entries.len() >= PRUNE_AT {
                entries.retain(|_, entry| entry.is_needed(now));
            }
            let entry = entries.entry(request).or_default();
            if !entry.is_in_progress {
                return match &entry.failure {
                    Some(failure) if failure.blocks_attempts && !failure.is_over(now) => {
                        Err(failure.message(now))
                    }
                    _ => {
                        entry.is_in_progress = true;
                        let backoff = self;
                        Ok(Turn { backoff, request })
                    }
                };
            }
            drop(entries);
            may_wait().map_err(|error| error.to_string())?;
            entries = lock(&self.entries);
            if entries
                .get(&request)
                .is_some_and(|entry| entry.is_in_progress)
            {
                let waited = self.ended.wait_timeout(entries, KILL_CHECK);
                entries = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
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

/// The right to make an attempt, held until it is dropped.
struct Turn<'a> {
    backoff: &'a FailureBackoff,
    request: KeyRequest,
}

impl Turn<'_> {
    fn end<T>(self, result: Result<T, KeyError>) -> Result<T, String> {
        let mut entries = lock(&self.backoff.entries);
        let entry = entries.entry(self.request).or_default();
        match result {
            Ok(result) => {
                entry.failure = None;
                Ok(result)
            }
            Err(error) => {
                let reason = error.to_string();
                let (failure, is_news) = record(entry.failure.take(), &reason, !error.is_cheap());
                entry.failure = Some(failure);
                drop(entries);
                if is_news {
                    log::error(&reason);
                }
                Err(reason)
            }
        }
    }
}

impl Drop for Turn<'_> {
    /// Runs even if the attempt panicked.
    fn drop(&mut self) {
        if let Some(entry) = lock(&self.backoff.entries).get_mut(&self.request) {
            entry.is_in_progress = false;
        }
        self.backoff.ended.notify_all();
    }
}

/// Returns the failure to remember, and whether to log it: not again within the pause, which doubles each time.
fn record(earlier: Option<Failure>, reason: &str, blocks_attempts: bool) -> (Failure, bool) {
    let now = Instant::now();
    match earlier {
        Some(earlier) if !earlier.is_over(now) && earlier.reason == reason => {
            let failure = Failure {
                blocks_attempts,
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
                blocks_attempts,
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
    fn a_costly_failure_is_repeated_without_another_attempt() {
        let backoff = FailureBackoff::default();
        let first = run(&backoff, LATEST_1, || Err::<(), _>(costly())).unwrap_err();
        let second = run(&backoff, LATEST_1, || -> Result<(), _> {
            panic!("attempted")
        });
        assert_eq!(
            second.unwrap_err(),
            format!("{first}; next attempt in 1 s at the earliest")
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
    fn a_failure_affects_neither_other_keys_nor_other_versions() {
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
    fn the_pause_doubles_up_to_a_minute() {
        let (mut failure, _) = record(None, "reason", true);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(failure.pause, Duration::from_secs(expected));
            failure.until = Instant::now();
            failure = record(Some(failure), "reason", true).0;
        }
    }

    #[test]
    fn finished_requests_do_not_accumulate() {
        let backoff = FailureBackoff::default();
        for version in 1..10 * PRUNE_AT as u32 {
            let request = KeyRequest {
                id: 1,
                version: Some(version),
            };
            run(&backoff, request, || Ok(())).unwrap();
        }
        assert!(lock(&backoff.entries).len() <= PRUNE_AT);
    }

    #[test]
    fn a_killed_statement_does_not_wait_for_the_attempt_to_end() {
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
    fn an_attempt_that_panics_does_not_block_later_ones() {
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
