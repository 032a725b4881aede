//! Status variables.

#![forbid(unsafe_code)]

use core::ffi::CStr;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use broker_api::{SessionPhase, SessionState};
use key_files::key_name::Algorithm;
use visible_text::escape;

use crate::abi::SHOW_BUFFER_BYTES;
use crate::keys::inspection::KeySummary;
use crate::keys::manager::KeyManager;
use crate::kms::counters::{Counters, FailureClass, unix_seconds};
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

/// All status variables but those of single keys. Their names are stable: a new version may add some, and removes or
/// renames none.
pub const VARIABLES: [Variable; 41] = [
    (c"Aws_key_management_session_state", || {
        Value::Text(session_state().into())
    }),
    (c"Aws_key_management_session_open", || {
        flag(is_phase(SessionPhase::Open))
    }),
    (c"Aws_key_management_session_seconds_left", || {
        Value::Number(session_seconds_left())
    }),
    (c"Aws_key_management_session_expiration", || {
        Value::Text(session_text(|state| {
            state.expiration_unix_seconds.map(utc_of_unix_seconds)
        }))
    }),
    (c"Aws_key_management_session_fifo", || {
        Value::Text(session_text(|state| state.fifo.clone()))
    }),
    (c"Aws_key_management_code_awaited", || {
        flag(is_phase(SessionPhase::AwaitingCode))
    }),
    (c"Aws_key_management_broker_missing", || {
        flag(!has_offline_keys() && session().is_none())
    }),
    (c"Aws_key_management_keys_loaded", || {
        number(KeyManager::loaded_ids)
    }),
    (c"Aws_key_management_keys_on_older_version", || {
        number(KeyManager::keys_on_older_version)
    }),
    (c"Aws_key_management_key_versions_loaded", || {
        number(KeyManager::loaded_versions)
    }),
    (c"Aws_key_management_key_versions_aes_cbc", || {
        number(|manager| manager.loaded_versions_of(Algorithm::AesCbc))
    }),
    (c"Aws_key_management_key_versions_aes_ctr", || {
        number(|manager| manager.loaded_versions_of(Algorithm::AesCtr))
    }),
    (c"Aws_key_management_key_versions_missing", || {
        Value::Text(missing_versions())
    }),
    (c"Aws_key_management_key_versions_not_loaded", || {
        number(|manager| manager.unloaded().len() as u64)
    }),
    (c"Aws_key_management_key_files_missing", || {
        number(KeyManager::key_files_missing)
    }),
    (c"Aws_key_management_key_versions_not_in_store", || {
        number(KeyManager::versions_not_in_store)
    }),
    (
        c"Aws_key_management_key_store_compared_unix_seconds",
        || number(|manager| manager.compared_with_store().map_or(0, unix_seconds)),
    ),
    (c"Aws_key_management_kms_calls", || counter(Counters::calls)),
    (c"Aws_key_management_kms_failures", || {
        counter(Counters::failures)
    }),
    (c"Aws_key_management_kms_failures_session_over", || {
        failures(FailureClass::SessionOver)
    }),
    (c"Aws_key_management_kms_failures_access_denied", || {
        failures(FailureClass::AccessDenied)
    }),
    (c"Aws_key_management_kms_failures_key_unusable", || {
        failures(FailureClass::KeyUnusable)
    }),
    (c"Aws_key_management_kms_failures_not_found", || {
        failures(FailureClass::NotFound)
    }),
    (
        c"Aws_key_management_kms_failures_invalid_ciphertext",
        || failures(FailureClass::InvalidCiphertext),
    ),
    (c"Aws_key_management_kms_failures_not_authenticated", || {
        failures(FailureClass::NotAuthenticated)
    }),
    (c"Aws_key_management_kms_failures_throttled", || {
        failures(FailureClass::Throttled)
    }),
    (c"Aws_key_management_kms_failures_unavailable", || {
        failures(FailureClass::Unavailable)
    }),
    (c"Aws_key_management_kms_failures_no_broker", || {
        failures(FailureClass::NoBroker)
    }),
    (c"Aws_key_management_kms_failures_interrupted", || {
        failures(FailureClass::Interrupted)
    }),
    (c"Aws_key_management_kms_failures_other", || {
        failures(FailureClass::Other)
    }),
    (c"Aws_key_management_kms_retries", || {
        counter(Counters::retries)
    }),
    (c"Aws_key_management_kms_latency_microseconds", || {
        counter(Counters::latency_microseconds)
    }),
    (c"Aws_key_management_kms_mean_latency_microseconds", || {
        counter(Counters::mean_latency_microseconds)
    }),
    (c"Aws_key_management_kms_calls_within_10_ms", || within(0)),
    (c"Aws_key_management_kms_calls_within_100_ms", || within(1)),
    (c"Aws_key_management_kms_calls_within_1_s", || within(2)),
    (c"Aws_key_management_kms_calls_within_10_s", || within(3)),
    (c"Aws_key_management_last_success_unix_seconds", || {
        counter(Counters::last_success_unix_seconds)
    }),
    (c"Aws_key_management_last_error", || {
        Value::Text(log::last_error(|error| error.message.clone()))
    }),
    (c"Aws_key_management_last_error_time", || {
        Value::Text(log::last_error(|error| utc(error.time)))
    }),
    (c"Aws_key_management_last_error_unix_seconds", || {
        Value::Number(log::last_error(|error| unix_seconds(error.time)))
    }),
];

/// The start of the names of the variables of single keys; `_ID_` and one of [`of_keys`] follow.
pub const OF_KEYS: &CStr = c"Aws_key_management_key";

/// The status variables of single keys: the end of the name, and the value.
pub fn of_keys() -> Vec<(String, Value)> {
    let summaries = plugin::manager().map(KeyManager::key_summaries);
    let variables = |key: KeySummary| {
        let name = |what: &str| format!("{}_{what}", key.id);
        [
            (
                name("latest_version"),
                Value::Number(key.latest_version.into()),
            ),
            (name("versions"), Value::Number(key.versions)),
            (name("state"), Value::Text(key.status.word().into())),
        ]
    };
    summaries
        .unwrap_or_default()
        .into_iter()
        .flat_map(variables)
        .collect()
}

fn number(of: impl FnOnce(&KeyManager) -> u64) -> Value {
    Value::Number(plugin::manager().map_or(0, of))
}

fn counter(of: impl FnOnce(&Counters) -> u64) -> Value {
    number(|manager| of(manager.kms_counters()))
}

fn failures(class: FailureClass) -> Value {
    counter(|counters| counters.failures_of(class))
}

fn within(bound: usize) -> Value {
    counter(|counters| counters.calls_within().get(bound).copied().unwrap_or(0))
}

/// A truth value as the server shows it. mysqld_exporter turns it into 1 or 0.
fn flag(is_on: bool) -> Value {
    Value::Text(if is_on { "ON" } else { "OFF" }.into())
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
    as_many_as_fit(&names)
}

/// The names as a list that is not cut: of too many, the first ones, and how many there are more.
fn as_many_as_fit(names: &[String]) -> String {
    const MORE_BYTES: usize = " and 18446744073709551615 more".len();
    let all = names.join(", ");
    if all.len() < SHOW_BUFFER_BYTES {
        return all;
    }
    let begin = all.get(..SHOW_BUFFER_BYTES - 1 - MORE_BYTES);
    let (shown, _) = begin
        .unwrap_or_default()
        .rsplit_once(", ")
        .unwrap_or_default();
    let more = names.len() - shown.split(", ").count();
    format!("{shown} and {more} more")
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

fn has_offline_keys() -> bool {
    plugin::manager().is_some_and(|manager| manager.offline_keys().is_some())
}

fn session_state() -> &'static str {
    if has_offline_keys() {
        return "offline keys";
    }
    match session().map(|state| state.phase) {
        Some(SessionPhase::Open) => "open",
        Some(SessionPhase::AwaitingCode) => "awaiting code",
        Some(SessionPhase::Failed) => "failed",
        None => "no broker",
    }
}

fn is_phase(phase: SessionPhase) -> bool {
    session().is_some_and(|state| state.phase == phase)
}

/// Time until the session ends; 0 if none is open. Credentials that do not expire count as the largest number that
/// every reader takes.
fn session_seconds_left() -> u64 {
    match session() {
        Some(state) if state.phase == SessionPhase::Open => match state.expiration_unix_seconds {
            Some(end) => u64::try_from(end)
                .unwrap_or(0)
                .saturating_sub(unix_seconds(SystemTime::now())),
            None => u32::MAX.into(),
        },
        _ => 0,
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
    fn a_list_that_is_too_long_ends_in_a_whole_name_and_says_how_many_are_left_out() {
        let names = |count: u32| -> Vec<_> { (0..count).map(|id| format!("{id}.1")).collect() };
        assert_eq!(as_many_as_fit(&names(0)), "");
        assert_eq!(as_many_as_fit(&names(2)), "0.1, 1.1");
        // The longest that fits is among them.
        for count in (150..180).chain([1000, 100_000]) {
            let names = names(count);
            let text = as_many_as_fit(&names);
            assert!(text.len() < SHOW_BUFFER_BYTES, "{count}: {}", text.len());
            let (shown, more) = match text.split_once(" and ") {
                Some((shown, more)) => (shown, more.strip_suffix(" more").unwrap()),
                None => (text.as_str(), "0"),
            };
            let shown: Vec<_> = shown.split(", ").collect();
            let more: usize = more.parse().unwrap();
            assert_eq!(shown, names[..shown.len()], "{count}");
            assert_eq!(shown.len() + more, names.len(), "{count}");
            assert_eq!(more > 0, names.join(", ").len() >= SHOW_BUFFER_BYTES);
        }
    }

    #[test]
    fn times_out_of_range_are_empty() {
        assert_eq!(utc_of_unix_seconds(-1), "");
        assert_eq!(utc_of_unix_seconds(i64::MAX), "");
    }

    #[test]
    fn manual_page_and_reference_list_every_variable() {
        let page = include_str!("../../packaging/man/aws_key_management.7");
        let reference = include_str!("../../docs/src/status-variables.md");
        let named = VARIABLES.map(|(name, _)| name.to_str().unwrap().to_owned());
        let of_keys = ["latest_version", "versions", "state"]
            .map(|what| format!("{}_ID_{what}", OF_KEYS.to_str().unwrap()));
        let names = [&named[..], &of_keys].concat();
        for name in &names {
            assert!(page.contains(&format!(".TP\n.B {name}\n")), "{name}");
            let short = name.strip_prefix("Aws_key_management_").unwrap();
            assert!(reference.contains(&format!("\n| `{short}` |")), "{name}");
        }
        assert_eq!(page.matches(".B Aws_key_").count(), names.len());
        assert_eq!(reference.matches("\n| `").count(), names.len());
    }
}
