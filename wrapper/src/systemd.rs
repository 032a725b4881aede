//! What systemd is told while a code is awaited: a status line and more time.
//!
//! Never `READY=1`: that is the command's to say. Source: sd_notify(3).

use std::time::Duration;

use sd_notify::{NotifyState, notify};
use tracing::warn;

/// Longer than the ten seconds between two signs of life, by a margin for slow moments.
const EXTENSION: Duration = Duration::from_secs(60);

/// Shows `text` in `systemctl status`.
pub fn status(text: &str) {
    send(NotifyState::Status(text));
}

/// Puts the start time-out off.
pub fn extend_timeout() {
    send(NotifyState::ExtendTimeoutUsec(
        u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX),
    ));
}

/// Does nothing without `$NOTIFY_SOCKET`.
fn send(state: NotifyState<'_>) {
    if let Err(error) = notify(&[state]) {
        warn!("cannot notify systemd: {error}");
    }
}
