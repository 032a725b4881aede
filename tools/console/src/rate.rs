//! How often something may happen.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// So many times in each window of time.
pub(crate) struct Rate {
    times: usize,
    window: Duration,
    /// The last ones.
    last: VecDeque<Instant>,
    /// How often it has been refused since it last happened.
    refused: u64,
}

impl Rate {
    pub fn new(times: usize, window: Duration) -> Self {
        Self {
            times,
            window,
            last: VecDeque::new(),
            refused: 0,
        }
    }

    /// Returns whether it may happen now, and counts it if so.
    pub fn may(&mut self, now: Instant) -> bool {
        self.last
            .retain(|time| now.duration_since(*time) < self.window);
        let may = self.last.len() < self.times;
        if may {
            self.last.push_back(now);
        }
        may
    }

    /// Returns how often it was refused since it last happened, and counts it; `None`: it may not happen now.
    pub fn take(&mut self, now: Instant) -> Option<u64> {
        if self.may(now) {
            return Some(std::mem::take(&mut self.refused));
        }
        self.refused += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_window_it_may_happen_again() {
        let window = Duration::from_secs(60);
        let mut rate = Rate::new(5, window);
        let start = Instant::now();
        let may: Vec<_> = (0..7).map(|_| rate.may(start)).collect();
        assert_eq!(may, [true, true, true, true, true, false, false]);
        assert!(rate.may(start + window));
    }

    #[test]
    fn what_was_refused_meanwhile_is_counted() {
        let window = Duration::from_secs(60);
        let mut rate = Rate::new(2, window);
        let start = Instant::now();
        let taken: Vec<_> = (0..5).map(|_| rate.take(start)).collect();
        assert_eq!(taken, [Some(0), Some(0), None, None, None]);
        assert_eq!(rate.take(start + window), Some(3));
        assert_eq!(rate.take(start + window), Some(0));
    }
}
