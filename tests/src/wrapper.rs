//! `iam-kms-wrapper` with a configuration of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Database, FifoWriter, LocalAws, Process, Sandbox, dist};

/// A configuration file in the making.
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
    pub fn of_the_manual(sandbox: &Sandbox, aws: &LocalAws) -> Self {
        let run = sandbox.directory("run");
        let fifo = run.join("mfa");
        let lines = vec![
            "[kms]".into(),
            format!("kms_mfa_id = {}", aws.serial_number()),
            format!("kms_mfa_socket = {}", fifo.display()),
        ];
        Self {
            lines,
            fifo,
            broker_socket: run.join("broker.sock"),
        }
    }

    /// The same with `handoff = broker`.
    pub fn with_broker(sandbox: &Sandbox, aws: &LocalAws) -> Self {
        let configuration = Self::of_the_manual(sandbox, aws);
        let socket = format!("broker_socket = {}", configuration.broker_socket.display());
        configuration.line("handoff = broker").line(&socket)
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
    pub(crate) fifo: PathBuf,
}

impl Wrapper {
    /// The command line `iam-kms-wrapper --config=FILE COMMAND…` with the user's long-term key in
    /// an otherwise small environment.
    pub fn command(
        sandbox: &Sandbox,
        aws: &LocalAws,
        configuration: &Configuration,
        command: &[&str],
    ) -> Command {
        let mut wrapper = Command::new(dist("bin/iam-kms-wrapper"));
        wrapper
            .arg(format!(
                "--config={}",
                configuration.write(sandbox).display()
            ))
            .args(command)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("AWS_ENDPOINT_URL", aws.endpoint())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdin(Stdio::null());
        let (access_key_id, secret_access_key) = aws.long_term_key();
        wrapper
            .env("AWS_ACCESS_KEY_ID", access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", secret_access_key);
        wrapper
    }

    /// Starts a command made by [`Wrapper::command`] and changed at will.
    pub fn spawn(command: &mut Command, configuration: &Configuration) -> Self {
        Self {
            process: Process::start(command),
            fifo: configuration.fifo.clone(),
        }
    }

    /// Starts `iam-kms-wrapper` with `command`.
    pub fn start(
        sandbox: &Sandbox,
        aws: &LocalAws,
        configuration: &Configuration,
        command: &[&str],
    ) -> Self {
        Self::spawn(
            &mut Self::command(sandbox, aws, configuration, command),
            configuration,
        )
    }

    /// Waits until a code is awaited.
    pub fn wait_for_fifo(&self) {
        self.process.wait_for("waiting for ");
        assert!(self.fifo.exists());
    }

    /// Writes to the FIFO as `echo … > FIFO` does: opens, writes, closes.
    pub fn write(&self, bytes: &[u8]) {
        write_fifo(&self.fifo, bytes);
    }

    /// Waits for the prompt and gives a good code.
    pub fn give_code(&self, aws: &LocalAws) {
        self.wait_for_fifo();
        self.write(format!("{}\n", aws.code()).as_bytes());
    }
}

/// Opens the FIFO, writes, closes; waits for it to be there.
pub fn write_fifo(fifo: &Path, bytes: &[u8]) {
    FifoWriter::open(fifo).write(bytes);
}

impl Wrapper {
    /// Starts the database's server under the wrapper with a good code, and waits until it is
    /// ready.
    pub fn start_database(
        sandbox: &Sandbox,
        aws: &LocalAws,
        configuration: &Configuration,
        database: &Database,
    ) -> Self {
        let line = database.command_line();
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        let wrapper = Self::start(sandbox, aws, configuration, &line);
        wrapper.give_code(aws);
        database.wait_until_ready(&wrapper.process);
        wrapper
    }
}
