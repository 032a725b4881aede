//! Times in seconds and as texts, and the time by which sessions end: AWS's, which goes on evenly when somebody sets this host's clock.
//!
//! It is AWS's (or, where AWS has not said it, the host's) time at the receipt of a session, and what
//! CLOCK_BOOTTIME has counted since. So a host whose clock jumps drops no session that AWS honours. A
//! host that was paused from outside counts too little: there KMS says that the session is over.

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

/// Seconds from CLOCK_BOOTTIME to AWS's time since 1970-01-01 UTC.
static OFFSET_SECONDS: AtomicI64 = AtomicI64::new(UNKNOWN);

/// A reading of both clocks, for another process on this host. It means nothing after a reboot.
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

/// Takes over this host's clock as it is now. For credentials whose source does not say AWS's time.
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

/// Goes on from what another process on this host has read.
pub fn restore(reading: Reading) {
    set(reading.aws_unix_seconds, reading.boot_seconds);
}

/// AWS's time by the Date header of an answer.
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

/// "1 second", "2 seconds".
pub fn seconds_text(seconds: u64) -> String {
    match seconds {
        1 => "1 second".into(),
        _ => format!("{seconds} seconds"),
    }
}

/// The time of an RFC 3339 text, such as an Expiration, in seconds since 1970-01-01 UTC.
pub fn parse_utc(text: &str) -> Option<i64> {
    let time = DateTime::from_str(text, Format::DateTimeWithOffset).ok()?;
    Some(time.secs())
}

/// Seconds since 1970-01-01 UTC by this host's clock.
pub fn unix_seconds_now() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

/// `unix_seconds` as RFC 3339 in UTC, such as `2026-11-21T23:00:00Z`.
pub fn utc_text(unix_seconds: i64) -> String {
    DateTime::from_secs(unix_seconds)
        .fmt(Format::DateTime)
        .unwrap_or_else(|_| format!("{unix_seconds} seconds after 1970"))
}

/// Sets the clock by each answer of the client that has it.
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
