//! Notifications to systemd: the status, a longer time-out while waiting for a code, and what to store
//! for a restart. Source: sd_notify(3).

use std::{io, os::fd::BorrowedFd, time::Duration};

use sd_notify::{NotifyState, notify, notify_with_fds};
use tracing::warn;
use visible_text::escape;

/// `TimeoutStartSec=` of MariaDB's units: after the code, the whole start of the server follows.
const EXTENSION: Duration = Duration::from_secs(15 * 60);

/// Reports that the broker's own service is up. The launcher must not call it: there, the command
/// reports.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// Shows `text` in `systemctl status`. It is escaped, because a second line would be another
/// notification.
pub fn status(text: &str) {
    send(&[NotifyState::Status(&escape(text))]);
}

/// Extends the start time-out of the unit to at least 15 minutes from now.
pub fn extend_timeout() {
    send(&[NotifyState::ExtendTimeoutUsec(
        u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX),
    )]);
}

/// Stores `descriptor` under `name` for the next start, in place of a previous one.
pub fn store_descriptor(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // First, because a full store accepts nothing.
    drop_descriptor(name);
    notify_with_fds(
        &[NotifyState::FdStore, NotifyState::FdName(name)],
        &[descriptor],
    )
}

/// Drops the descriptor that is stored under `name`.
pub fn drop_descriptor(name: &str) {
    send(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Does nothing without `$NOTIFY_SOCKET`.
fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = notify(state) {
        warn!(
            "cannot notify systemd: {error}; it may end this service at TimeoutStartSec=; check NotifyAccess= in the unit"
        );
    }
}
