//! Times in seconds and as text, and AWS's time, by which sessions expire. It does not jump when
//! somebody sets this host's clock.
//!
//! It is the time of the answer that brought the session, by AWS's clock (or the host's, if AWS did not
//! send it), plus what CLOCK_BOOTTIME has counted since. So a clock that jumps does not end a session
//! that AWS still accepts. On a host that was paused from outside, CLOCK_BOOTTIME counts too little;
//! there KMS reports the end of the session.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{
            Intercept, context::BeforeDeserializationInterceptorContextRef, dyn_dispatch_hint,
        },
        orchestrator::HttpResponse,
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{
    config_bag::ConfigBag,
    date_time::{DateTime, Format},
};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

const UNKNOWN: i64 = i64::MIN;

/// AWS's time since 1970-01-01 UTC minus CLOCK_BOOTTIME, in seconds.
static OFFSET_SECONDS: AtomicI64 = AtomicI64::new(UNKNOWN);

/// A reading of both clocks, for another process on this host. It is meaningless after a reboot.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Reading {
    aws_unix_seconds: i64,
    boot_seconds: i64,
}

/// AWS's time in seconds since 1970-01-01 UTC.
pub fn aws_unix_seconds() -> i64 {
    if OFFSET_SECONDS.load(Ordering::Relaxed) == UNKNOWN {
        follow_host();
    }
    boot_seconds().saturating_add(OFFSET_SECONDS.load(Ordering::Relaxed))
}

/// Sets AWS's time from this host's clock, for credentials whose source does not tell AWS's time.
pub fn follow_host() {
    set(unix_seconds_now(), boot_seconds());
}

/// Reads both clocks.
pub fn read() -> Reading {
    Reading {
        aws_unix_seconds: aws_unix_seconds(),
        boot_seconds: boot_seconds(),
    }
}

/// Continues from a reading of another process on this host.
pub fn restore(reading: Reading) {
    set(reading.aws_unix_seconds, reading.boot_seconds);
}

/// Returns AWS's time from the Date header of an answer.
pub fn date_of(answer: &HttpResponse) -> Option<i64> {
    let date = DateTime::from_str(answer.headers().get("date")?, Format::HttpDate).ok()?;
    Some(date.secs())
}

fn set(aws_unix_seconds: i64, boot_seconds: i64) {
    let offset = aws_unix_seconds.saturating_sub(boot_seconds);
    OFFSET_SECONDS.store(offset, Ordering::Relaxed);
}

fn boot_seconds() -> i64 {
    clock_gettime(ClockId::Boottime).tv_sec
}

/// Formats seconds: "1 second", "2 seconds".
pub fn seconds_text(seconds: u64) -> String {
    match seconds {
        1 => "1 second".into(),
        _ => format!("{seconds} seconds"),
    }
}

/// Parses an RFC 3339 time, such as an Expiration, into seconds since 1970-01-01 UTC.
pub fn parse_utc(text: &str) -> Option<i64> {
    let time = DateTime::from_str(text, Format::DateTimeWithOffset).ok()?;
    Some(time.secs())
}

/// Returns the seconds since 1970-01-01 UTC by this host's clock.
pub fn unix_seconds_now() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

/// Formats `unix_seconds` as RFC 3339 in UTC, such as `2026-11-21T23:00:00Z`.
pub fn utc_text(unix_seconds: i64) -> String {
    DateTime::from_secs(unix_seconds)
        .fmt(Format::DateTime)
        .unwrap_or_else(|_| format!("{unix_seconds} seconds after 1970"))
}

/// An interceptor that sets AWS's time from each answer of its client.
#[derive(Debug)]
pub struct FollowAws;

#[dyn_dispatch_hint]
impl Intercept for FollowAws {
    fn name(&self) -> &'static str {
        "FollowAws"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = date_of(context.response()) {
            set(date, boot_seconds());
        }
        Ok(())
    }
}
