//! AWS's own tools in a virtualenv, and a server of one's own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_local-aws");
const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/requirements.txt");

/// The virtualenv with the AWS CLI and boto3 of `requirements.txt`, made on first use and kept in
/// the user's cache. It needs python3 with its venv module, and PyPI.
pub fn virtualenv() -> PathBuf {
    let cache = cache_directory().join("iam-kms-wrapper");
    fs::create_dir_all(&cache).unwrap();
    let lock = File::create(cache.join("venv.lock")).unwrap();
    lock.lock().unwrap();
    let directory = cache.join("venv");
    let installed = directory.join("installed-requirements.txt");
    let wanted = fs::read(REQUIREMENTS).unwrap();
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        install(&directory);
        fs::write(&installed, wanted).unwrap();
    }
    directory
}

fn install(directory: &Path) {
    let mut create = Command::new("python3");
    succeeds(create.args(["-m", "venv", "--clear"]).arg(directory));
    let mut pip = Command::new(directory.join("bin/pip"));
    succeeds(pip.args(["install", "--quiet", "--requirement", REQUIREMENTS]));
}

fn cache_directory() -> PathBuf {
    match std::env::var_os("XDG_CACHE_HOME") {
        Some(directory) => directory.into(),
        None => PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"),
    }
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
