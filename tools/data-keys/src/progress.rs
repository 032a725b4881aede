//! The progress bar of long work, at a terminal.

use std::{
    sync::Once,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shorter work needs no bar.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// A progress bar on standard error, after two seconds of work, if that is a terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: Once,
}

impl Progress {
    /// Creates a bar for this amount of work. `template` is a template of indicatif.
    pub(crate) fn new(total: u64, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            started: Instant::now(),
            shown: Once::new(),
        }
    }

    /// Creates a bar for this many data keys.
    pub(crate) fn of_keys(count: usize) -> Self {
        let total = u64::try_from(count).unwrap_or(u64::MAX);
        Self::new(total, "{bar:40} {pos} of {len} data keys, {eta} left")
    }

    /// Adds this amount of work.
    pub(crate) fn add(&self, amount: u64) {
        self.bar.inc(amount);
        if self.started.elapsed() >= SHOWN_AFTER {
            self.shown.call_once(|| {
                self.bar.set_draw_target(ProgressDrawTarget::stderr());
                self.bar.tick();
            });
        }
    }

    /// Shows that this much of `total` is done, and a message in place of `{msg}`.
    pub(crate) fn show(&self, done: u64, total: u64, message: String) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(message);
        self.add(0);
    }

    /// Hides the bar while `write` writes to the terminal.
    pub(crate) fn suspend(&self, write: impl FnOnce()) {
        self.bar.suspend(write);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
