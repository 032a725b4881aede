//! The `credential_process` of a profile: a program that prints credentials. The SDK's own support
//! neither limits time and output nor kills what the program has started.
//!
//! Source: <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>.

use std::{os::fd::BorrowedFd, process::Command, time::Duration};

use crate::{
    child_output::{Limits, OutputError, Terminal, output_of},
    credentials::{Credentials, parse_process_document},
};

/// Longest output, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 * 1024;

/// Runs `command` in a shell, for at most `timeout`. Its standard error goes to that of this process.
///
/// The error never quotes its output.
pub(super) fn run(
    command: &str,
    timeout: Duration,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Credentials, OutputError> {
    let limits = Limits {
        timeout,
        timeout_setting: Some("request_timeout_seconds"),
        max_bytes: MAX_OUTPUT_BYTES,
        interrupt,
    };
    let mut shell = Command::new("/bin/sh");
    let output = output_of(shell.args(["-c", command]), Terminal::Kept, &limits)?;
    parse_process_document(&output)
        .map_err(|what| OutputError::Failed(format!("it printed {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_quote_the_output() {
        for printed in ["secret", "{\"AccessKeyId\":\"secret\"}", "[]"] {
            let command = format!("echo '{printed}'");
            let error = run(&command, Duration::from_secs(60), None).unwrap_err();
            let why = error.to_string();
            assert!(why.starts_with("it printed "), "{why}");
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn keys_with_and_without_an_expiration_are_accepted() {
        let key = r#""Version":1,"AccessKeyId":"AKIA","SecretAccessKey":"s""#;
        let end = r#""SessionToken":"t","Expiration":"2099-01-01T00:00:00Z""#;
        for (printed, expiration) in [
            (format!("{{{key}}}"), None),
            (format!("{{{key},{end}}}"), Some(4_070_908_800)),
        ] {
            let run = run(&format!("echo '{printed}'"), Duration::from_secs(60), None);
            let session = run.unwrap();
            assert_eq!(session.access_key_id, "AKIA");
            assert_eq!(session.expiration_unix_seconds, expiration);
        }
    }
}
