//! What systemd is told: a status line and more time while a code is awaited, what to keep for a
//! restart. Source: sd_notify(3).

use std::{io, os::fd::BorrowedFd, time::Duration};

use sd_notify::{NotifyState, notify, notify_with_fds};
use tracing::warn;
use visible_text::escape;

/// `TimeoutStartSec=` of MariaDB's units: when the code has come, all of the start is still to come.
const EXTENSION: Duration = Duration::from_secs(15 * 60);

/// Says that the broker's own service is up. Never of the launcher: there it is the command's to say.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// Shows `text` in `systemctl status`, on one line: another would be another notification.
pub fn status(text: &str) {
    send(&[NotifyState::Status(&escape(text))]);
}

/// Has systemd wait for the end of the start for 15 minutes from now, or longer if it would anyway.
pub fn extend_timeout() {
    send(&[NotifyState::ExtendTimeoutUsec(
        u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX),
    )]);
}

/// Has systemd keep `descriptor` under `name` for the next start, in place of the one that it may
/// have of that name.
pub fn store_descriptor(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // First, since a full store takes nothing.
    drop_descriptor(name);
    notify_with_fds(
        &[NotifyState::FdStore, NotifyState::FdName(name)],
        &[descriptor],
    )
}

/// Has systemd drop what it keeps under `name`.
pub fn drop_descriptor(name: &str) {
    send(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Does nothing without `$NOTIFY_SOCKET`.
fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = notify(state) {
        warn!("cannot notify systemd: {error}");
    }
}
