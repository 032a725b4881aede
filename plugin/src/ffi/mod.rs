//! The functions that the server calls. Each one checks and converts its arguments, catches panics, calls safe
//! code and maps the result.

#![allow(unsafe_code)]

pub mod crypt;
mod exports;
pub mod keys;
pub mod lifecycle;
pub mod status_variables;
mod storage;
pub mod system_variables;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::server::log;

/// Runs `work`. If it panics, returns `on_panic` instead of ending the server.
#[inline]
fn guard<T>(on_panic: T, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        // The payload's destructor might panic again.
        core::mem::forget(payload);
        // Reporting might panic for the same reason.
        if let Err(payload) = catch_unwind(report_panic) {
            core::mem::forget(payload);
        }
        on_panic
    })
}

#[cold]
fn report_panic() {
    log::error(
        "internal error in the plugin (panic caught). Please report it with the preceding log lines",
    );
}
