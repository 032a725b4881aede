//! The dialogue with one host: `iam-kms-wrapper code --json` there says that it waits, gets the session on
//! its standard input, and says what became of it. The session is sent to nobody else.

use std::{
    cell::Cell,
    convert::Infallible,
    future::pending,
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    time::timeout,
};
use visible_text::escape;

use crate::{hosts::Host, outcome::Outcome};
use aws_session::clock::seconds_text;
use code_channel::answer::{Answer, AnswerState};
use service::signals::Signals;

/// Most that a host may print before its answer, in bytes.
const MAX_OUTPUT_BYTES: u64 = 64 * 1024;

/// Most of a host's complaint that is shown, in bytes.
const MAX_COMPLAINT_BYTES: usize = 4096;

/// How long a program may take to end that has said all.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long to read what a program has written before its end.
const DRAIN: Duration = Duration::from_millis(100);

/// Longest wait for a connection, in seconds.
const MAX_CONNECT_SECONDS: u64 = 10;

/// The exit code of ssh for its own errors.
const SSH_FAILED: i32 = 255;

/// What every host gets, and how.
pub struct Delivery<'a> {
    /// The session document; `None`: only look.
    pub document: Option<&'a [u8]>,
    /// The FIFO; `None`: the default.
    pub fifo: Option<&'a str>,
    /// Whether to become root with sudo.
    pub sudo: bool,
    /// The time for one host.
    pub timeout: Duration,
    /// The signals of this process.
    pub signals: &'a Signals,
}

impl Delivery<'_> {
    /// Delivers the session to `host`. `is_sent` becomes true before the first byte of it leaves.
    ///
    /// A future that is dropped kills what it has started.
    pub async fn deliver(&self, host: &Host, is_sent: &Cell<bool>) -> Outcome {
        let mut command = self.command(host);
        self.signals.give_inherited_mask(&mut command);
        let mut program = match Program::start(command) {
            Ok(program) => program,
            Err(why) => return Outcome::Unreachable(why),
        };
        let answered = timeout(self.timeout, self.talk(&mut program, is_sent)).await;
        answered.unwrap_or_else(|_| {
            let why = format!("no answer within {}", seconds_text(self.timeout.as_secs()));
            Outcome::of_no_answer(&why, is_sent.get())
        })
    }

    fn command(&self, host: &Host) -> Command {
        let mut line = Vec::new();
        if self.sudo {
            line.extend(["sudo", "-n"].map(str::to_owned));
        }
        line.extend(["iam-kms-wrapper", "code", "--json"].map(str::to_owned));
        line.extend(self.fifo.map(|path| format!("--fifo={path}")));
        let Some(address) = &host.address else {
            let mut command = Command::new(&line[0]);
            command.args(&line[1..]);
            return command;
        };
        let mut ssh = Command::new("ssh");
        let connect_seconds = self.timeout.as_secs().clamp(1, MAX_CONNECT_SECONDS);
        // No terminal and no questions, no forwarding of anything to a host that may be stolen. A command that the
        // operator's configuration runs on each login to the host would take the place of ours.
        ssh.args([
            "-T",
            "-a",
            "-x",
            "-o",
            "BatchMode=yes",
            "-o",
            "ClearAllForwardings=yes",
            "-o",
            "RemoteCommand=none",
        ])
        .args(["-o", "LogLevel=ERROR", "-o"])
        .arg(format!("ConnectTimeout={connect_seconds}"));
        if let Some(user) = &address.user {
            ssh.args(["-l", user]);
        }
        if let Some(port) = address.port {
            ssh.args(["-p", &port.to_string()]);
        }
        ssh.args(["--", &address.destination, &line.join(" ")]);
        ssh
    }

    async fn talk(&self, program: &mut Program, is_sent: &Cell<bool>) -> Outcome {
        let Some((stdin, stdout, mut stderr)) = program.take_streams() else {
            return Outcome::Unreachable("its streams are closed".into());
        };
        let mut complaint = Vec::new();
        let talk = async {
            let answer = self.read_answers(stdin, stdout, is_sent).await;
            let ended = program.0.wait();
            match answer {
                Some(answer) => {
                    // It has nothing more to say, and is killed otherwise.
                    let _ = timeout(FAREWELL, ended).await;
                    Ok(answer)
                }
                None => Err(ended.await.ok()),
            }
        };
        let answer = tokio::select! {
            answer = talk => answer,
            never = collect(&mut stderr, &mut complaint) => match never {},
        };
        match answer {
            Ok(answer) => outcome_of(answer),
            Err(status) => {
                // What it wrote last is still in the pipe.
                let _ = timeout(DRAIN, collect(&mut stderr, &mut complaint)).await;
                let why = last_line(&complaint).unwrap_or_else(|| match status {
                    Some(status) => format!("it ended without an answer ({status})"),
                    None => "it ended without an answer".into(),
                });
                outcome_without_answer(status, why, is_sent)
            }
        }
    }

    /// Returns the last answer, or `None` if the program ended before that.
    async fn read_answers(
        &self,
        stdin: ChildStdin,
        stdout: ChildStdout,
        is_sent: &Cell<bool>,
    ) -> Option<Answer> {
        let mut stdin = Some(stdin);
        let mut lines = BufReader::new(stdout.take(MAX_OUTPUT_BYTES)).lines();
        // A shell's start-up files may print lines of their own. An error is the end.
        while let Some(line) = lines.next_line().await.ok()? {
            let Some(answer) = Answer::parse(&line) else {
                continue;
            };
            if answer.state != AnswerState::Waiting {
                return Some(answer);
            }
            let Some(document) = self.document else {
                return Some(answer);
            };
            // Closed afterwards, which ends the input.
            if let Some(mut stdin) = stdin.take() {
                is_sent.set(true);
                // If the program has ended, its last answer says why.
                let _ = stdin.write_all(document).await;
            }
        }
        None
    }
}

fn outcome_of(answer: Answer) -> Outcome {
    let message = escape(&answer.message);
    match answer.state {
        AnswerState::Waiting => Outcome::Waiting,
        AnswerState::Accepted => Outcome::Unlocked,
        AnswerState::NotWaiting => Outcome::NotWaiting,
        AnswerState::Unknown => Outcome::Unknown(message),
        AnswerState::Refused | AnswerState::Failed => Outcome::Refused(message),
    }
}

fn outcome_without_answer(
    status: Option<ExitStatus>,
    why: String,
    is_sent: &Cell<bool>,
) -> Outcome {
    let is_of_ssh = status.and_then(|status| status.code()) == Some(SSH_FAILED);
    match is_of_ssh || is_sent.get() {
        true => Outcome::of_no_answer(&why, is_sent.get()),
        // The host's shell, sudo, or an older release, which has no such option.
        false => Outcome::Refused(why),
    }
}

/// Collects the end of what is printed, for ever: a connection that ssh shares may keep it open.
async fn collect(stderr: &mut ChildStderr, complaint: &mut Vec<u8>) -> Infallible {
    let mut chunk = [0; 1024];
    loop {
        // An error is the end.
        match stderr.read(&mut chunk).await.unwrap_or(0) {
            0 => pending().await,
            length => complaint.extend_from_slice(chunk.get(..length).unwrap_or_default()),
        }
        let excess = complaint.len().saturating_sub(MAX_COMPLAINT_BYTES);
        complaint.drain(..excess);
    }
}

fn last_line(complaint: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(complaint);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(escape(line))
}

/// A running ssh, in a process group of its own, so that keys of the terminal do not reach it. Killed
/// when dropped, with what it has started.
struct Program(Child);

impl Program {
    fn start(mut command: Command) -> Result<Self, String> {
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let name = command.get_program().to_string_lossy().into_owned();
        let child = tokio::process::Command::from(command).spawn();
        child
            .map(Self)
            .map_err(|error| format!("cannot run {name}: {error}"))
    }

    fn take_streams(&mut self) -> Option<(ChildStdin, ChildStdout, ChildStderr)> {
        let child = &mut self.0;
        Some((
            child.stdin.take()?,
            child.stdout.take()?,
            child.stderr.take()?,
        ))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // `None`: it has ended, and its number may be another's.
        let Some(pid) = self.0.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        // Errors are ignored: it has ended meanwhile.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        let until = Instant::now() + FAREWELL;
        while Instant::now() < until && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_complaint_is_shown_without_what_acts_on_a_terminal() {
        assert_eq!(
            last_line(b"one\ntwo\x1b[2J\r\n\n").unwrap(),
            "two\\u{1b}[2J"
        );
        assert_eq!(last_line(b" \n"), None);
    }

    #[test]
    fn only_ssh_itself_makes_a_host_unreachable() {
        use std::os::unix::process::ExitStatusExt;
        let exited = |code: i32| Some(ExitStatus::from_raw(code << 8));
        let outcome =
            |status, is_sent| outcome_without_answer(status, "why".into(), &Cell::new(is_sent));
        assert_eq!(
            outcome(exited(255), false),
            Outcome::Unreachable("why".into())
        );
        assert_eq!(outcome(exited(1), false), Outcome::Refused("why".into()));
        for code in [255, 1] {
            assert!(matches!(outcome(exited(code), true), Outcome::Unknown(_)));
        }
    }
}
