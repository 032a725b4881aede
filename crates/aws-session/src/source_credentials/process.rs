//! The `credential_process` of a profile: a program that prints credentials. The SDK's own support
//! neither limits time and output nor kills what the program has started.
//!
//! Source: <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use zeroize::Zeroizing;

use crate::{
    clock::seconds_text,
    credentials::{Credentials, parse_process_document},
};

/// Longest output, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 * 1024;

/// Why the program gave no credentials.
pub(super) enum ProcessError {
    /// The interrupt descriptor became readable.
    Interrupted,
    /// The reason.
    Failed(String),
}

impl From<io::Error> for ProcessError {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("it cannot be run: {error}"))
    }
}

/// Runs `command` in a shell, for at most `timeout`. Its standard error goes to that of this process.
///
/// The error never quotes its output.
pub(super) fn run(
    command: &str,
    timeout: Duration,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Credentials, ProcessError> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let patience = Patience {
        timeout,
        until: Instant::now() + timeout,
    };
    let output = read_output(&mut child, &patience, interrupt);
    if output.is_err() {
        // Together with what the shell has started.
        let group = Pid::from_raw(child.id().cast_signed());
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = child.wait()?;
    let output = output?;
    if !status.success() {
        return Err(ProcessError::Failed(format!("it failed ({status})")));
    }
    parse_process_document(&output)
        .map_err(|what| ProcessError::Failed(format!("it printed {what}")))
}

/// How long the program may take.
struct Patience {
    timeout: Duration,
    until: Instant,
}

impl Patience {
    fn left(&self) -> Result<Duration, ProcessError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProcessError::Failed(format!(
                "it did not end within {} (request_timeout_seconds) and was killed",
                seconds_text(self.timeout.as_secs())
            )));
        }
        Ok(left)
    }
}

/// Reads everything that `child` prints until it ends.
fn read_output(
    child: &mut Child,
    patience: &Patience,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Zeroizing<Vec<u8>>, ProcessError> {
    let mut output = Zeroizing::new(Vec::with_capacity(MAX_OUTPUT_BYTES + 1));
    let Some(mut stdout) = child.stdout.take() else {
        return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
    };
    let mut buffer = Zeroizing::new([0; 4096]);
    loop {
        wait_readable(stdout.as_fd(), patience, interrupt)?;
        match stdout.read(&mut *buffer)? {
            0 => break,
            length if output.len() + length > MAX_OUTPUT_BYTES => {
                let why = format!("it printed more than {MAX_OUTPUT_BYTES} bytes");
                return Err(ProcessError::Failed(why));
            }
            length => output.extend_from_slice(&buffer[..length]),
        }
    }
    // It may have closed its output and still run.
    while child.try_wait()?.is_none() {
        patience.left()?;
        thread::sleep(Duration::from_millis(5));
    }
    Ok(output)
}

fn wait_readable(
    stdout: BorrowedFd<'_>,
    patience: &Patience,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<(), ProcessError> {
    loop {
        let left = patience.left()?;
        let mut descriptors: Vec<_> = [Some(stdout), interrupt]
            .into_iter()
            .flatten()
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut descriptors, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) if descriptors.get(1).is_some_and(|it| it.any() == Some(true)) => {
                return Err(ProcessError::Interrupted);
            }
            Ok(_) => return Ok(()),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(command: &str, timeout: Duration) -> String {
        match run(command, timeout, None) {
            Err(ProcessError::Failed(why)) => why,
            Err(ProcessError::Interrupted) => "interrupted".into(),
            Ok(session) => format!("{session:?}"),
        }
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let begun = Instant::now();
        let why = failure("sleep 1000 & sleep 1000", Duration::from_secs(1));
        assert_eq!(
            why,
            "it did not end within 1 second (request_timeout_seconds) and was killed"
        );
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn endless_output_is_refused() {
        let why = failure("cat /dev/zero", Duration::from_secs(60));
        assert_eq!(why, "it printed more than 65536 bytes");
    }

    #[test]
    fn errors_do_not_quote_the_output() {
        let timeout = Duration::from_secs(60);
        assert_eq!(failure("exit 3", timeout), "it failed (exit status: 3)");
        for printed in ["secret", "{\"AccessKeyId\":\"secret\"}", "[]"] {
            let why = failure(&format!("echo '{printed}'"), timeout);
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
            let session = run.ok().unwrap();
            assert_eq!(session.access_key_id, "AKIA");
            assert_eq!(session.expiration_unix_seconds, expiration);
        }
    }
}
