//! The output of a program that prints credentials or another short text, with limits of time and
//! length.

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
    poll::{PollFd, PollFlags, poll},
    sys::signal::{SigSet, Signal, kill, killpg},
    unistd::Pid,
};
use zeroize::Zeroizing;

use crate::{clock::seconds_text, interrupt::poll_timeout};

/// How long an interactive program may take to restore the terminal.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The interrupt descriptor became readable.
    #[error("it was interrupted")]
    Interrupted,
    /// It cannot be started, or its output cannot be read.
    #[error("it cannot be run: {0}")]
    Io(#[from] io::Error),
    /// It took too long, printed too much, or failed.
    #[error("{0}")]
    Failed(String),
}

/// What a program may take.
pub struct Limits<'a> {
    /// Time until its end.
    pub timeout: Duration,
    /// The setting that changes the time, for the error.
    pub timeout_setting: Option<&'static str>,
    /// Longest output, in bytes.
    pub max_bytes: usize,
    /// Ends it when it becomes readable.
    pub interrupt: Option<BorrowedFd<'a>>,
}

/// Whether a program may ask something in the terminal of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// No: it gets its own process group, which is killed as a whole, and blocks no signal.
    Kept,
    /// Yes: it stays in the foreground, and its own children are its own affair. The caller sets its signal mask.
    Lent,
}

/// Runs `command` and returns what it prints to standard output. Its standard error goes to that of this
/// process.
///
/// Errors never quote its output.
pub fn output_of(
    command: &mut Command,
    terminal: Terminal,
    limits: &Limits<'_>,
) -> Result<Zeroizing<Vec<u8>>, OutputError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    if terminal == Terminal::Kept {
        command.process_group(0);
        // It would keep the mask of this process, which may read its signals from a descriptor: no timeout(1) in a script
        // could end what it starts.
        set_signal_mask(command, SigSet::empty());
    }
    let mut child = command.spawn()?;
    let patience = Patience {
        limits,
        until: Instant::now() + limits.timeout,
    };
    let output = read_output(&mut child, &patience);
    if output.is_err() {
        end(&mut child, terminal);
    }
    let status = child.wait()?;
    let output = output?;
    match status.success() {
        true => Ok(output),
        false => Err(OutputError::Failed(format!("it failed ({status})"))),
    }
}

/// Sets the signal mask of the child that `command` starts, which would else keep that of this thread.
#[allow(unsafe_code)]
pub fn set_signal_mask(command: &mut Command, mask: SigSet) {
    // SAFETY: between fork and exec, the closure makes one call, which is async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(move || Ok(mask.thread_set_mask()?)) };
}

/// Errors are ignored: it has ended already.
fn end(child: &mut Child, terminal: Terminal) {
    let pid = Pid::from_raw(child.id().cast_signed());
    if terminal == Terminal::Kept {
        let _ = killpg(pid, Signal::SIGKILL);
        return;
    }
    // As Ctrl-C does, so that it turns the echo on again.
    let _ = kill(pid, Signal::SIGINT);
    let until = Instant::now() + FAREWELL;
    while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
        thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
}

/// How long the program may take.
struct Patience<'a> {
    limits: &'a Limits<'a>,
    until: Instant,
}

impl Patience<'_> {
    fn left(&self) -> Result<Duration, OutputError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let setting = self.limits.timeout_setting;
            return Err(OutputError::Failed(format!(
                "it did not end within {}{} and was killed",
                seconds_text(self.limits.timeout.as_secs()),
                setting.map_or_else(String::new, |setting| format!(" ({setting})"))
            )));
        }
        Ok(left)
    }
}

/// Reads everything that `child` prints until it ends.
fn read_output(
    child: &mut Child,
    patience: &Patience<'_>,
) -> Result<Zeroizing<Vec<u8>>, OutputError> {
    let max_bytes = patience.limits.max_bytes;
    // A buffer that grows would leave copies of secrets in memory.
    let mut output = Zeroizing::new(Vec::with_capacity(max_bytes + 1));
    let Some(mut stdout) = child.stdout.take() else {
        return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
    };
    let mut buffer = Zeroizing::new([0; 4096]);
    loop {
        wait_readable(stdout.as_fd(), patience)?;
        match stdout.read(&mut *buffer)? {
            0 => break,
            length if output.len() + length > max_bytes => {
                let why = format!("it printed more than {max_bytes} bytes");
                return Err(OutputError::Failed(why));
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

fn wait_readable(stdout: BorrowedFd<'_>, patience: &Patience<'_>) -> Result<(), OutputError> {
    loop {
        let left = patience.left()?;
        let mut descriptors: Vec<_> = [Some(stdout), patience.limits.interrupt]
            .into_iter()
            .flatten()
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        match poll(&mut descriptors, poll_timeout(left)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) if descriptors.get(1).is_some_and(|it| it.any() == Some(true)) => {
                return Err(OutputError::Interrupted);
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
        failure_of(Command::new("/bin/sh").args(["-c", command]), timeout)
    }

    fn failure_of(command: &mut Command, timeout: Duration) -> String {
        let limits = Limits {
            timeout,
            timeout_setting: Some("request_timeout_seconds"),
            max_bytes: 1000,
            interrupt: None,
        };
        match output_of(command, Terminal::Kept, &limits) {
            Err(error) => error.to_string(),
            Ok(output) => String::from_utf8_lossy(&output).into_owned(),
        }
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let begun = Instant::now();
        let (mut held_by_children, writer) = io::pipe().unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "sleep 100 & sleep 100"]).stderr(writer);
        let why = failure_of(&mut shell, Duration::from_secs(1));
        assert_eq!(
            why,
            "it did not end within 1 second (request_timeout_seconds) and was killed"
        );
        // The command, too, holds the writing end.
        drop(shell);
        assert_eq!(held_by_children.read(&mut [0]).unwrap(), 0);
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    /// A shell may keep the mask that it starts with, as bash does, or clear it, as dash does.
    #[test]
    fn a_program_blocks_no_signal_where_this_thread_blocks_them() {
        let ours: SigSet = [Signal::SIGTERM, Signal::SIGPIPE].into_iter().collect();
        ours.thread_block().unwrap();
        let limits = Limits {
            timeout: Duration::from_secs(60),
            timeout_setting: None,
            max_bytes: 1000,
            interrupt: None,
        };
        let mut grep = Command::new("grep");
        let blocked = grep.args(["SigBlk", "/proc/self/status"]);
        let printed = output_of(blocked, Terminal::Kept, &limits).unwrap();
        assert_eq!(*printed, b"SigBlk:\t0000000000000000\n");
    }

    #[test]
    fn endless_output_is_refused() {
        let why = failure("cat /dev/zero", Duration::from_secs(60));
        assert_eq!(why, "it printed more than 1000 bytes");
    }

    #[test]
    fn the_status_of_a_program_that_fails_is_told_and_not_its_output() {
        let why = failure("echo secret; exit 3", Duration::from_secs(60));
        assert_eq!(why, "it failed (exit status: 3)");
    }
}
