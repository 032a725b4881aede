//! KMS calls that wait: reports where to enter an MFA code if one is needed, and notices when nobody needs
//! the answer any more.

#![forbid(unsafe_code)]

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use broker_api::client::ClientError;
use broker_api::{WaitReason, Waiting};
use sd_notify::NotifyState;
use visible_text::escape;

use crate::lock::lock;
use crate::server::{log, symbols};

/// How often the error log repeats that a call is still waiting.
const REMINDER: Duration = Duration::from_secs(60);
/// How much more time systemd gives a starting server for each wait that the broker reports. MariaDB's units
/// allow as much for the whole start, and all of it may still lie ahead.
const EXTENSION: Duration = Duration::from_secs(15 * 60);
/// SIGTERM in the masks of proc_pid_status(5), where signal 1 is bit 0.
const SIGTERM_BIT: u64 = 1 << (15 - 1);

/// Keeps track of calls that wait for a session.
#[derive(Default)]
pub struct WaitMonitor(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    last_wait: Option<Instant>,
    wait_logged: Option<Instant>,
    absence_logged: Option<Instant>,
}

impl WaitMonitor {
    /// Records that a call is waiting. The error log says from time to time what somebody has to do; systemd
    /// shows it too while the server is starting.
    pub fn note(&self, waiting: &Waiting) {
        if waiting.reason == WaitReason::Session {
            let now = Instant::now();
            let is_news = {
                let mut seen = lock(&self.0);
                seen.last_wait = Some(now);
                seen.absence_logged = None;
                is_due(&mut seen.wait_logged, now)
            };
            if is_news {
                log::warning(&format!("waiting: {}", waiting.message));
            }
        }
        notify_systemd(&waiting.message);
    }

    /// Whether a call is waiting for a session now.
    pub fn is_waiting(&self) -> bool {
        self.last()
            .is_some_and(|last| last.elapsed() < 3 * broker_api::WAITING_INTERVAL)
    }

    /// Records that the broker has gone away while a starting server waits for a session. The error log says
    /// so once.
    pub fn note_gone(&self, error: &ClientError) {
        let is_news = lock(&self.0)
            .absence_logged
            .replace(Instant::now())
            .is_none();
        if is_news {
            log::warning(&format!(
                "the broker is gone while this server waits for a session; waiting for it to return: {error}"
            ));
        }
        notify_systemd("Waiting for iam-kms-broker to return");
    }

    /// Whether this is a starting server that has waited for a session.
    pub fn is_start_waiting(&self) -> bool {
        symbols::server_is_starting() && self.last().is_some()
    }

    /// When a call last waited for a session.
    pub fn last(&self) -> Option<Instant> {
        lock(&self.0).last_wait
    }
}

/// Whether to log a message again that was last logged at `logged`, which is then updated.
fn is_due(logged: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = logged.is_none_or(|logged| now - logged >= REMINDER);
    if is_due {
        *logged = Some(now);
    }
    is_due
}

/// Whether nobody needs the answer to a call any more, because the starting server has been told to stop or
/// the thread's statement has been killed.
pub fn is_interrupted() -> bool {
    match symbols::server_is_starting() {
        true => is_told_to_stop(),
        false => symbols::statement_is_killed(),
    }
}

/// Whether SIGTERM is pending for this process. A starting server blocks signals until it is ready, so
/// `systemctl stop` would otherwise wait as long as this call.
fn is_told_to_stop() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return false;
    };
    status
        .lines()
        .find_map(|line| line.strip_prefix("ShdPnd:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & SIGTERM_BIT != 0)
}

/// Shows `status` of a starting server in `systemctl status`, and extends its start timeout.
fn notify_systemd(status: &str) {
    if symbols::server_is_starting() {
        let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
        // On one line: a second line would be another notification. If systemd gets none, it ends the start
        // at its timeout and says so.
        let _ = sd_notify::notify(&[
            NotifyState::Status(&escape(status)),
            NotifyState::ExtendTimeoutUsec(extension),
        ]);
    }
}
