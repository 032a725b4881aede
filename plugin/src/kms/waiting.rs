//! A call of KMS that waits: says where to write a code, if one is needed, and notices when the answer
//! is no longer wanted.

#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use broker_api::client::ClientError;
use broker_api::{WaitReason, Waiting};
use visible_text::escape;

use crate::server::{log, symbols};

/// How often the error log is told of a wait that goes on.
const REMINDER: Duration = Duration::from_secs(60);
/// What a starting server gets from systemd each time that the broker says it waits: as much as MariaDB's
/// units give it for the whole start, all of which may be to come.
const EXTENSION: Duration = Duration::from_secs(15 * 60);
/// SIGTERM in the masks of proc_pid_status(5), where signal 1 is bit 0.
const SIGTERM_BIT: u64 = 1 << (15 - 1);

/// When calls last waited for a session.
#[derive(Default)]
pub struct WaitMonitor(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    last: Option<Instant>,
    said: Option<Instant>,
    said_gone: Option<Instant>,
}

impl WaitMonitor {
    /// Takes note that a call waits. What somebody has to do goes to the error log now and then,
    /// whoever waits; for a server that starts, systemd gets to know it too.
    pub fn note(&self, waiting: &Waiting) {
        if waiting.reason == WaitReason::Session {
            let now = Instant::now();
            let is_news = {
                let mut seen = self.lock();
                seen.last = Some(now);
                seen.said_gone = None;
                is_due(&mut seen.said, now)
            };
            if is_news {
                log::warning(&format!("waiting: {}", waiting.message));
            }
        }
        notify_systemd(&waiting.message);
    }

    /// Whether a call waits for a session now.
    pub fn is_waiting(&self) -> bool {
        self.last()
            .is_some_and(|last| last.elapsed() < 3 * broker_api::WAITING_INTERVAL)
    }

    /// Takes note that the broker is gone while a server that starts waits for a session; that goes to
    /// the error log once.
    pub fn note_gone(&self, error: &ClientError) {
        let is_news = self.lock().said_gone.replace(Instant::now()).is_none();
        if is_news {
            log::warning(&format!(
                "the broker is gone while this server waits for a session; waiting for it to come back: {error}"
            ));
        }
        notify_systemd("Waiting for iam-kms-broker to come back");
    }

    /// Whether this is a server that starts and has waited for a session.
    pub fn is_start_waiting(&self) -> bool {
        symbols::server_is_starting() && self.last().is_some()
    }

    /// When a call last waited for a session.
    pub fn last(&self) -> Option<Instant> {
        self.lock().last
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a message is to be repeated, which was said last at that time.
fn is_due(said: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = said.is_none_or(|said| now - said >= REMINDER);
    if is_due {
        *said = Some(now);
    }
    is_due
}

/// Whether nobody wants the answer of a call any more: the server that starts is told to end, or the
/// thread's statement was killed.
pub fn is_unwanted() -> bool {
    match symbols::server_is_starting() {
        true => is_asked_to_end(),
        false => symbols::statement_is_killed(),
    }
}

/// Whether SIGTERM waits for this process. A starting server holds signals until it is ready, and
/// `systemctl stop` would wait as long as we do.
fn is_asked_to_end() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return false;
    };
    status
        .lines()
        .find_map(|line| line.strip_prefix("ShdPnd:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & SIGTERM_BIT != 0)
}

/// Shows `status` of a server that starts in `systemctl status`, and extends its start time-out. Source:
/// sd_notify(3).
fn notify_systemd(status: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|_| symbols::server_is_starting())
    else {
        return;
    };
    let line = escape(status);
    let message = format!(
        "STATUS={line}\nEXTEND_TIMEOUT_USEC={}\n",
        EXTENSION.as_micros()
    );
    // A systemd that cannot be told ends the start at its time-out, and says so.
    let _ = address(&socket)
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address));
}

fn address(socket: &OsStr) -> std::io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(socket),
    }
}
