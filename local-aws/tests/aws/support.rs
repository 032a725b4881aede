//! AWS's own tools in a virtualenv, and a server of one's own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_local-aws");
const AWS_TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/aws-tools");

/// The folder of programs of a virtualenv with the AWS CLI and boto3, made on first use.
pub fn aws_tools() -> PathBuf {
    succeeds(&mut Command::new(AWS_TOOLS)).trim().into()
}

/// Runs a command to its end and returns its standard output; panics with all its output if it
/// fails.
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; apt-get install python3-venv oathtool")
    });
    assert!(output.status.success(), "{command:?}: {}", shown(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail; its standard error.
pub fn fails(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?}: {}", shown(&output));
    String::from_utf8(output.stderr).unwrap()
}

fn shown(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    let [out, err] = [out, err].map(|text| String::from_utf8_lossy(text));
    format!("{}\n{out}{err}", output.status)
}

/// `local-aws COMMAND --state DIR`.
pub fn local_aws(command: &str, state: &Path) -> Command {
    let mut program = Command::new(BINARY);
    program.arg(command).arg("--state").arg(state);
    program
}

/// A server that runs.
pub struct Server {
    process: Child,
    /// The URL of the line that it printed when ready.
    pub url: String,
}

impl Server {
    /// Starts a server with these arguments and waits until it is ready.
    pub fn start(state: &Path, arguments: &[&str]) -> Self {
        let mut command = local_aws("serve", state);
        let mut process = command
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line
            .strip_prefix("listening on ")
            .map(|url| url.trim_end().to_owned());
        let url = url.unwrap_or_else(|| panic!("not ready: {line:?}"));
        Self { process, url }
    }

    /// Sends `signal` and returns the exit status.
    pub fn end_by(mut self, signal: &str) -> Option<i32> {
        succeeds(Command::new("kill").args([signal, &self.process.id().to_string()]));
        self.process.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
