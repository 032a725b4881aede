//! Waits that end when a descriptor, such as a signalfd, becomes readable.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Sleeps until `until`, or until `interrupt` becomes readable. Returns true for the latter.
pub fn sleep_until(until: Instant, interrupt: BorrowedFd<'_>) -> bool {
    loop {
        let mut descriptors = [PollFd::new(interrupt, PollFlags::POLLIN)];
        match poll(&mut descriptors, poll_timeout(remaining(until))) {
            Ok(0) | Err(Errno::EINTR) if Instant::now() < until => {}
            Ok(ready) => return ready > 0,
            Err(_) => return false,
        }
    }
}

/// Waits for `call`. Returns `None` if `interrupt` became readable first.
pub async fn unless_readable<T>(
    interrupt: BorrowedFd<'_>,
    call: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        outcome = call => Some(outcome),
        () = readable(interrupt) => None,
    }
}

/// Polls: without `unsafe`, tokio cannot register a borrowed descriptor.
async fn readable(descriptor: BorrowedFd<'_>) {
    while !sleep_until(Instant::now(), descriptor) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the time left until then, or 0.
pub fn remaining(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// Converts to a time-out of poll(2). It is rounded up, so that the deadline has passed when poll
/// returns.
pub fn poll_timeout(timeout: Duration) -> PollTimeout {
    let milliseconds = timeout.as_micros().div_ceil(1000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}
