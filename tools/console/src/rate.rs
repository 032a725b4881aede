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
}

impl Rate {
    pub fn new(times: usize, window: Duration) -> Self {
        Self {
            times,
            window,
            last: VecDeque::new(),
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
}
