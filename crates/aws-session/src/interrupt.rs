//! Waits that end when a descriptor becomes readable: a signalfd, say.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Sleeps until `until` or until `interrupt` becomes readable; true for the latter.
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

/// The outcome of `call`; `None` if `interrupt` became readable first.
pub async fn unless_readable<T>(
    interrupt: BorrowedFd<'_>,
    call: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        outcome = call => Some(outcome),
        () = readable(interrupt) => None,
    }
}

/// Looks every so often: tokio registers a borrowed descriptor with `unsafe` only.
async fn readable(descriptor: BorrowedFd<'_>) {
    while !sleep_until(Instant::now(), descriptor) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How long it is until then; 0 where that has passed.
pub fn remaining(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// Rounded up, so that a deadline has passed when its poll returns.
pub fn poll_timeout(timeout: Duration) -> PollTimeout {
    let milliseconds = timeout.as_micros().div_ceil(1000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}
