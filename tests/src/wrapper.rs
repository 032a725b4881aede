//! `iam-kms-wrapper` and its configuration.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::signal::Signal;

use crate::{FifoWriter, LocalAws, Process, Sandbox};

/// A command that runs until it is ended.
pub const SLEEP: [&str; 2] = ["sleep", "1000"];

/// A command that ends at once; [`Wrapper::runs_echo`] knows its output.
pub const ECHO: [&str; 2] = ["echo", "the command runs"];

/// A configuration file that is not written yet.
#[derive(Clone)]
pub struct Configuration {
    lines: Vec<String>,
    /// The FIFO that it names.
    pub fifo: PathBuf,
    /// The broker's socket that it names.
    pub broker_socket: PathBuf,
}

impl Configuration {
    /// The two lines of the manual, with the FIFO in a directory of the sandbox.
    pub fn new(sandbox: &Sandbox, mfa_serial_number: &str) -> Self {
        let run = sandbox.directory("run");
        let fifo = run.join("mfa");
        let lines = vec![
            "[kms]".into(),
            format!("kms_mfa_id = {mfa_serial_number}"),
            format!("kms_mfa_socket = {}", fifo.display()),
        ];
        Self {
            lines,
            fifo,
            broker_socket: run.join("broker.sock"),
        }
    }

    /// Adds `handoff = broker`.
    #[must_use]
    pub fn handing_to_a_broker(self) -> Self {
        let socket = format!("broker_socket = {}", self.broker_socket.display());
        self.line("handoff = broker").line(&socket)
    }

    /// Adds a line.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Removes the lines that begin with `key`.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.lines.retain(|line| !line.starts_with(key));
        self
    }

    /// Writes the file.
    pub fn write(&self, sandbox: &Sandbox) -> PathBuf {
        sandbox.write("iam-kms-wrapper.config", &(self.lines.join("\n") + "\n"))
    }
}

/// A running `iam-kms-wrapper`, and what it has become.
pub struct Wrapper {
    /// The process.
    pub process: Process,
    fifo: PathBuf,
}

impl Wrapper {
    /// Starts a command line of `iam-kms-wrapper`, whose configuration names this FIFO.
    pub fn spawn(command: &mut Command, fifo: &Path) -> Self {
        Self {
            process: Process::start(command),
            fifo: fifo.into(),
        }
    }

    /// Waits until the wrapper waits for a code.
    pub fn wait_for_fifo(&self) {
        self.process.wait_for("waiting for ");
        assert!(self.fifo.exists());
    }

    /// Writes to the FIFO as `echo … > FIFO` does: opens, writes, closes.
    pub fn write(&self, bytes: &[u8]) {
        write_fifo(&self.fifo, bytes);
    }

    /// Waits for the prompt and enters a good code.
    pub fn give_code(&self, aws: &LocalAws) {
        self.wait_for_fifo();
        self.write(format!("{}\n", aws.code()).as_bytes());
    }

    /// Waits until the wrapper has become `program`.
    pub fn wait_for_command(&self, program: &str) {
        self.process.wait_for_program(program);
    }

    /// Waits for the end, checks the exit code, and returns all lines.
    ///
    /// Panics if a FIFO is left behind.
    pub fn ends_with(&mut self, code: i32) -> String {
        let (status, output) = self.process.finish();
        assert_eq!(status.code(), Some(code), "{status}\n{output}");
        self.assert_no_fifo();
        output
    }

    /// Waits for the end of [`ECHO`], checks that it has run, and returns all lines.
    pub fn runs_echo(&mut self) -> String {
        let output = self.ends_with(0);
        assert!(output.contains("the command runs"), "{output}");
        output
    }

    /// Waits for the end, checks that this signal caused it, and returns all lines.
    ///
    /// Panics if a FIFO or a core is left behind.
    pub fn dies_of(&mut self, signal: Signal) -> String {
        let (status, output) = self.process.finish();
        assert_eq!(status.signal(), Some(signal as i32), "{status}\n{output}");
        assert!(!status.core_dumped(), "{status}");
        self.assert_no_fifo();
        output
    }

    fn assert_no_fifo(&self) {
        assert!(
            fs::symlink_metadata(&self.fifo).is_err(),
            "{} is left behind",
            self.fifo.display()
        );
    }
}

/// Waits for the FIFO, opens it, writes and closes it.
pub fn write_fifo(fifo: &Path, bytes: &[u8]) {
    FifoWriter::open(fifo).write(bytes);
}
