//! Counts KMS calls for the status variables.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Why a call failed, as far as the status variables tell failures apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The session has expired.
    SessionOver,
    /// A policy does not allow the call.
    AccessDenied,
    /// The master key is disabled, pending deletion or of the wrong kind.
    KeyUnusable,
    /// The master key does not exist.
    NotFound,
    /// The wrapped key is damaged or not of this KMS.
    InvalidCiphertext,
    /// AWS does not accept the signature: a wrong clock or access key.
    NotAuthenticated,
    /// KMS asks for fewer calls.
    Throttled,
    /// KMS failed or could not be reached.
    Unavailable,
    /// No broker answered.
    NoBroker,
    /// The statement was killed, or the server was shutting down.
    Interrupted,
    /// Anything else.
    Other,
}

impl FailureClass {
    const COUNT: usize = Self::Other as usize + 1;
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// KMS has done what was asked.
    ByKms,
    /// The key store or the broker's memory has answered, so this says nothing about KMS.
    WithoutKms,
    /// It failed.
    Failed(FailureClass),
}

/// The longest durations of the calls that [`Counters::calls_within`] counts.
const BOUNDS: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
];

/// Numbers for the status variables. They begin at 0 when the plugin is loaded.
#[derive(Debug, Default)]
pub struct Counters {
    calls: AtomicU64,
    failures: [AtomicU64; FailureClass::COUNT],
    retries: AtomicU64,
    latency_microseconds: AtomicU64,
    within: [AtomicU64; BOUNDS.len()],
    last_success_unix_seconds: AtomicU64,
}

impl Counters {
    /// Counts a call that has ended.
    pub(super) fn count(&self, outcome: Outcome, duration: Duration) {
        add(&self.calls, 1);
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        add(&self.latency_microseconds, microseconds);
        for (counter, bound) in self.within.iter().zip(BOUNDS) {
            add(counter, u64::from(duration <= bound));
        }
        match outcome {
            Outcome::ByKms => self
                .last_success_unix_seconds
                .store(unix_seconds(SystemTime::now()), Ordering::Relaxed),
            Outcome::WithoutKms => {}
            Outcome::Failed(class) => {
                if let Some(counter) = self.failures.get(class as usize) {
                    add(counter, 1);
                }
            }
        }
    }

    /// Counts a call that repeats a failed one.
    pub(super) fn count_retry(&self) {
        add(&self.retries, 1);
    }

    /// Calls made, including retries.
    pub fn calls(&self) -> u64 {
        get(&self.calls)
    }

    /// Calls that failed.
    pub fn failures(&self) -> u64 {
        self.failures.iter().map(get).sum()
    }

    /// Calls that failed for this reason.
    pub fn failures_of(&self, class: FailureClass) -> u64 {
        self.failures.get(class as usize).map_or(0, get)
    }

    /// Calls that repeated a failed one.
    pub fn retries(&self) -> u64 {
        get(&self.retries)
    }

    /// Total duration of all calls in microseconds.
    pub fn latency_microseconds(&self) -> u64 {
        get(&self.latency_microseconds)
    }

    /// Mean duration of a call in microseconds, 0 before the first.
    pub fn mean_latency_microseconds(&self) -> u64 {
        self.latency_microseconds()
            .checked_div(self.calls())
            .unwrap_or(0)
    }

    /// Calls that took at most 10 ms, 100 ms, 1 s and 10 s, successful or not.
    pub fn calls_within(&self) -> [u64; BOUNDS.len()] {
        self.within.each_ref().map(get)
    }

    /// When KMS last did what was asked, in seconds since 1970-01-01 UTC; 0 before the first.
    pub fn last_success_unix_seconds(&self) -> u64 {
        get(&self.last_success_unix_seconds)
    }
}

/// Seconds since 1970-01-01 UTC; 0 for earlier times.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_duration_and_failures_by_class() {
        let counters = Counters::default();
        let unusable = Outcome::Failed(FailureClass::KeyUnusable);
        let throttled = Outcome::Failed(FailureClass::Throttled);
        counters.count(unusable, Duration::from_millis(11));
        counters.count(throttled, Duration::from_secs(11));
        counters.count(throttled, Duration::from_millis(10));
        counters.count(Outcome::WithoutKms, Duration::from_micros(1));
        assert_eq!(counters.last_success_unix_seconds(), 0);
        let before = unix_seconds(SystemTime::now());
        counters.count(Outcome::ByKms, Duration::from_millis(900));
        assert!(counters.last_success_unix_seconds() >= before);
        assert_eq!(counters.calls_within(), [2, 3, 4, 4]);
        assert_eq!((counters.calls(), counters.failures()), (5, 3));
        assert_eq!(counters.failures_of(FailureClass::Throttled), 2);
        assert_eq!(counters.failures_of(FailureClass::KeyUnusable), 1);
        assert_eq!(counters.failures_of(FailureClass::Other), 0);
        assert_eq!(counters.latency_microseconds(), 11_921_001);
        assert_eq!(counters.mean_latency_microseconds(), 2_384_200);
    }
}
