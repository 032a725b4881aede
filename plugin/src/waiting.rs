//! A call of KMS that waits for a person: tells where to write a code, and notices when the answer is
//! no longer wanted.

#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{server_log, server_symbols};

/// How often the error log is told of a wait that goes on.
const REMINDER: Duration = Duration::from_secs(60);
/// What a starting server gets from systemd each time that the broker says it waits.
const EXTENSION: Duration = Duration::from_secs(60);
/// SIGTERM in the masks of proc_pid_status(5), where signal 1 is bit 0.
const SIGTERM_BIT: u64 = 1 << (15 - 1);

/// When waits were last seen.
#[derive(Default)]
pub struct Waits(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    last: Option<Instant>,
    said: Option<Instant>,
}

impl Waits {
    /// Takes note that a call waits. `what_to_do` goes to the error log now and then, whoever waits;
    /// of a server that starts, systemd is told too. False if nobody wants the answer any more.
    pub fn go_on(&self, what_to_do: &str) -> bool {
        let now = Instant::now();
        let is_news = {
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            seen.last = Some(now);
            let is_news = seen.said.is_none_or(|said| now - said >= REMINDER);
            if is_news {
                seen.said = Some(now);
            }
            is_news
        };
        if is_news {
            server_log::warning(&format!("waiting: {what_to_do}"));
        }
        if server_symbols::server_is_starting() {
            notify_systemd(what_to_do);
            return !is_asked_to_end();
        }
        !server_symbols::statement_is_killed()
    }

    /// Whether a call waits now.
    pub fn is_waiting(&self) -> bool {
        self.last()
            .is_some_and(|last| last.elapsed() < 3 * broker_api::WAITING_INTERVAL)
    }

    /// When a call last waited.
    pub fn last(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last
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

/// Shows `what_to_do` in `systemctl status`, and puts the start time-out off. Source: sd_notify(3).
fn notify_systemd(what_to_do: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let line: String = what_to_do.chars().filter(|c| !c.is_control()).collect();
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
