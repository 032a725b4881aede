//! Status variables.

#![forbid(unsafe_code)]

use core::ffi::CStr;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use broker_api::{SessionPhase, SessionState};
use visible_text::escape;

use crate::keys::manager::KeyManager;
use crate::lock::lock;
use crate::plugin;
use crate::server::log;

/// How long an answer of the broker is used: one SHOW STATUS asks for several variables of the session.
const SESSION_AGE: Duration = Duration::from_secs(1);

/// The value of a status variable.
#[derive(Debug, PartialEq, Eq)]
pub enum Value {
    /// Text, possibly empty.
    Text(String),
    /// A number.
    Number(u64),
}

/// Name of a status variable, and the function that returns its value.
pub type Variable = (&'static CStr, fn() -> Value);

/// All status variables.
pub const VARIABLES: [Variable; 12] = [
    (c"Aws_key_management_session_state", || {
        Value::Text(session_state().into())
    }),
    (c"Aws_key_management_session_expiration", || {
        Value::Text(session_text(|state| {
            state.expiration_unix_seconds.map(utc_of_unix_seconds)
        }))
    }),
    (c"Aws_key_management_session_fifo", || {
        Value::Text(session_text(|state| state.fifo.clone()))
    }),
    (c"Aws_key_management_keys_loaded", || {
        number(|manager| manager.loaded_ids())
    }),
    (c"Aws_key_management_key_versions_loaded", || {
        number(|manager| manager.loaded_versions())
    }),
    (c"Aws_key_management_key_versions_missing", || {
        Value::Text(missing_versions())
    }),
    (c"Aws_key_management_kms_calls", || {
        number(|manager| manager.kms_counters().calls())
    }),
    (c"Aws_key_management_kms_failures", || {
        number(|manager| manager.kms_counters().failures())
    }),
    (c"Aws_key_management_kms_retries", || {
        number(|manager| manager.kms_counters().retries())
    }),
    (c"Aws_key_management_kms_mean_latency_microseconds", || {
        number(|manager| manager.kms_counters().mean_latency_microseconds())
    }),
    (c"Aws_key_management_last_error", || {
        Value::Text(log::last_error(|error| error.message.clone()))
    }),
    (c"Aws_key_management_last_error_time", || {
        Value::Text(log::last_error(|error| utc(error.time)))
    }),
];

fn number(of: impl FnOnce(&KeyManager) -> u64) -> Value {
    Value::Number(plugin::manager().map_or(0, of))
}

/// Returns `ID.VERSION` of each version that exists but is not in memory.
fn missing_versions() -> String {
    let unloaded = plugin::manager()
        .map(KeyManager::unloaded)
        .unwrap_or_default();
    let names: Vec<_> = unloaded
        .iter()
        .map(|(name, _)| format!("{}.{}", name.id, name.version))
        .collect();
    names.join(", ")
}

type Asked = Option<(Instant, Option<SessionState>)>;

/// When the broker was last asked, and its answer if it gave one.
static SESSION: Mutex<Asked> = Mutex::new(None);

fn session() -> Option<SessionState> {
    let mut asked = lock(&SESSION);
    if let Some((when, state)) = &*asked
        && when.elapsed() < SESSION_AGE
    {
        return state.clone();
    }
    let state = plugin::manager().and_then(KeyManager::session);
    *asked = Some((Instant::now(), state.clone()));
    state
}

fn session_state() -> &'static str {
    if plugin::manager().is_some_and(|manager| manager.offline_keys().is_some()) {
        return "offline keys";
    }
    match session().map(|state| state.phase) {
        Some(SessionPhase::Open) => "open",
        Some(SessionPhase::AwaitingCode) => "awaiting code",
        Some(SessionPhase::Failed) => "failed",
        None => "no broker",
    }
}

fn session_text(of: impl FnOnce(&SessionState) -> Option<String>) -> String {
    escape(&session().as_ref().and_then(of).unwrap_or_default())
}

fn utc_of_unix_seconds(seconds: i64) -> String {
    u64::try_from(seconds)
        .ok()
        .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .map(utc)
        .unwrap_or_default()
}

/// Formats a time in UTC as the server does: `2026-01-31 12:00:00`. Empty beyond the year 9999.
fn utc(time: SystemTime) -> String {
    use core::fmt::Write;
    let mut text = String::new();
    match write!(text, "{}", humantime::format_rfc3339_seconds(time)) {
        Ok(()) => text.replace('T', " ").replace('Z', ""),
        Err(core::fmt::Error) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_utc_and_in_the_servers_format() {
        assert_eq!(utc_of_unix_seconds(1_700_000_000), "2023-11-14 22:13:20");
        assert_eq!(utc_of_unix_seconds(0), "1970-01-01 00:00:00");
    }

    #[test]
    fn times_out_of_range_are_empty() {
        assert_eq!(utc_of_unix_seconds(-1), "");
        assert_eq!(utc_of_unix_seconds(i64::MAX), "");
    }

    #[test]
    fn the_manual_page_lists_every_variable() {
        let page = include_str!("../../packaging/man/aws_key_management.7");
        for (name, _) in VARIABLES {
            let heading = format!(".TP\n.B {}\n", name.to_str().unwrap());
            assert!(page.contains(&heading), "{name:?}");
        }
        assert_eq!(page.matches(".B Aws_key_").count(), VARIABLES.len());
    }
}
