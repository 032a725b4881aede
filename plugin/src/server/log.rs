//! Writes messages to the error log and to the client of the running statement.

#![forbid(unsafe_code)]

use core::ffi::c_ulong;
use std::ffi::CString;
use std::io::Write;
use std::sync::Mutex;
use std::time::SystemTime;

use visible_text::escape;

use crate::lock::lock;
use crate::server::symbols;

/// The start of every message, as in the stock plugin.
pub const PREFIX: &str = "AWS KMS plugin: ";

/// `ERRMSGSIZE` of `my_sys.h`. The server cuts longer messages, even within a character.
const MAX_MESSAGE_BYTES: usize = 511;

/// `ME_…` of `my_sys.h`.
const CLIENT_ERROR: c_ulong = 0;
const LOG_ONLY: c_ulong = 128;
const NOTE: c_ulong = 1024;
const WARNING: c_ulong = 2048;

/// The last error, for the status variables.
pub struct LastError {
    /// When it was written to the error log.
    pub time: SystemTime,
    /// The message, on one line.
    pub message: String,
}

static LAST_ERROR: Mutex<Option<LastError>> = Mutex::new(None);

/// Passes the last error to `of` and returns the result; empty or 0 if there was no error.
pub fn last_error<T: Default>(of: impl FnOnce(&LastError) -> T) -> T {
    lock(&LAST_ERROR).as_ref().map(of).unwrap_or_default()
}

/// Writes an error to the error log and remembers it for the status variables.
pub fn error(message: &str) {
    *lock(&LAST_ERROR) = Some(LastError {
        time: SystemTime::now(),
        message: escape(message),
    });
    print(message, LOG_ONLY, "ERROR");
}

/// Writes a warning to the error log.
pub fn warning(message: &str) {
    print(message, LOG_ONLY | WARNING, "Warning");
}

/// Writes a note to the error log.
pub fn note(message: &str) {
    print(message, LOG_ONLY | NOTE, "Note");
}

/// Makes the running statement fail with this reason. Does nothing if no statement is running: the reason would
/// go to the error log, where [`error`] has already written it.
pub fn client_error(message: &str) {
    if symbols::thread_has_client() {
        print(message, CLIENT_ERROR, "client error");
    }
}

/// Adds a warning to the running statement.
pub fn client_warning(message: &str) {
    print(message, WARNING, "client warning");
}

/// Adds a note to the running statement.
pub fn client_note(message: &str) {
    print(message, NOTE, "client note");
}

fn print(message: &str, flags: c_ulong, level: &str) {
    let text = one_line(message);
    if !symbols::print(&text, flags) {
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        // eprintln! would panic if standard error is closed or its disk is full.
        let _ = writeln!(
            std::io::stderr(),
            "{now} 0 [{level}] {}",
            text.to_string_lossy()
        );
    }
}

/// Adds the prefix, makes line breaks and other control characters visible, and cuts the message to the length
/// that the server prints.
fn one_line(message: &str) -> CString {
    let mut text = String::from(PREFIX);
    text.push_str(&escape(message));
    if text.len() > MAX_MESSAGE_BYTES {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES - "…".len()));
        text.push('…');
    }
    // Cannot fail: a NUL is a control character, and those are escaped.
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_prefixed_line() {
        let text = one_line("first\nsecond\r\0 \u{202e}third");
        assert_eq!(
            text.to_str().unwrap(),
            "AWS KMS plugin: first\\nsecond\\r\\u{0} \\u{202e}third"
        );
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        for length in 490..500 {
            let text = one_line(&("x".repeat(length) + &"ü".repeat(20)));
            let text = text.to_str().unwrap();
            assert!(text.len() <= MAX_MESSAGE_BYTES);
            assert!(text.ends_with('…'));
        }
        let fitting = "x".repeat(MAX_MESSAGE_BYTES - PREFIX.len());
        assert!(one_line(&fitting).to_str().unwrap().ends_with('x'));
    }
}
