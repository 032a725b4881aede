//! `local-aws` with one user, one MFA device and one KMS key.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use aws_session::clock::unix_seconds_now;
use nix::sys::signal::Signal;

use crate::{Process, Sandbox, dist};

/// Time step of a virtual MFA device (RFC 6238).
const STEP_SECONDS: u64 = 30;

/// A policy of `alias/mariadb` that lets the account use it with MFA only.
pub const ONLY_WITH_MFA: &str = r#"{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
     "Action": ["kms:GenerateDataKey*", "kms:Decrypt"], "Resource": "*",
     "Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"}}},
    {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
     "Action": "kms:*KeyPolicy", "Resource": "*"}]}"#;

/// A running `local-aws`.
pub struct LocalAws {
    state: PathBuf,
    serve_arguments: Vec<String>,
    server: Process,
    last_step: Cell<u64>,
    clock_offset_seconds: Cell<i64>,
    certificate: Option<PathBuf>,
}

impl LocalAws {
    /// Starts it with a new account.
    pub fn start(sandbox: &Sandbox) -> Self {
        Self::start_with(sandbox, &[])
    }

    /// Starts it with further arguments of `local-aws serve`.
    pub fn start_with(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        Self::init_and_serve(sandbox, &["init"], arguments)
    }

    /// Starts it for another region than us-east-1.
    pub fn start_in_region(sandbox: &Sandbox, region: &str) -> Self {
        Self::init_and_serve(sandbox, &["init", "--region", region], &[])
    }

    /// Starts it for another account than 111122223333.
    pub fn start_with_account(sandbox: &Sandbox, account: &str) -> Self {
        Self::init_and_serve(sandbox, &["init", "--account", account], &[])
    }

    fn init_and_serve(sandbox: &Sandbox, init: &[&str], arguments: &[&str]) -> Self {
        let state = sandbox.path("aws");
        run(&state, init);
        let serve_arguments = arguments
            .iter()
            .map(|argument| (*argument).into())
            .collect();
        let server = serve(&state, &serve_arguments);
        Self {
            state,
            serve_arguments,
            server,
            last_step: Cell::new(0),
            clock_offset_seconds: Cell::new(0),
            certificate: None,
        }
    }

    /// Makes AWS's own CLI trust this certificate.
    pub fn trust(&mut self, certificate: &str) {
        self.certificate = Some(certificate.into());
    }

    /// A file of the state directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// Text of a file of the state directory, trimmed.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap().trim().into()
    }

    /// URL of STS and KMS.
    pub fn endpoint(&self) -> String {
        self.read("endpoint")
    }

    /// ARN of the user's MFA device.
    pub fn serial_number(&self) -> String {
        self.read("mfa-serial")
    }

    /// The user's long-term key: access key id and secret access key.
    pub fn long_term_key(&self) -> (String, String) {
        let env = self.read("env");
        let value = |name: &str| {
            env.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .unwrap()
                .into()
        };
        (value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY"))
    }

    /// Gives the user another long-term key, with which the one before ends.
    pub fn replace_long_term_key(&self) {
        let (access_key_id, secret_access_key) = self.long_term_key();
        for name in ["state.json", "env", "credentials"] {
            let text = self.read(name);
            let other = text
                .replace(&access_key_id, "AKIAIOSFODNN7EXAMPLE")
                .replace(&secret_access_key, &secret_access_key.to_uppercase());
            assert_ne!(other, text);
            fs::write(self.path(name), other).unwrap();
        }
    }

    /// A code that has not been used, from oathtool.
    ///
    /// AWS accepts the codes of the present time step, the one before and the one after, each once
    /// and in order. A test that needs more codes sets AWS's clock forward instead of waiting. It leaves
    /// out the code before the present one, which may be too old by the time it is used.
    pub fn code(&self) -> String {
        let now = unix_seconds_now().cast_unsigned();
        let offset = self.clock_offset_seconds.get();
        let present = now.saturating_add_signed(offset) / STEP_SECONDS;
        let step = (self.last_step.get() + 1).max(present);
        if step > present + 1 {
            let ahead = ((step - present - 1) * STEP_SECONDS).cast_signed();
            self.set_clock(&(offset + ahead).to_string());
        }
        self.last_step.set(step);
        self.code_at(step * STEP_SECONDS)
    }

    /// By how many seconds [`Self::code`] would have to set AWS's clock ahead of this host's. AWS
    /// refuses signatures from 900 on, so codes cannot be taken from the future without end.
    pub fn next_code_ahead_seconds(&self) -> u64 {
        let now = unix_seconds_now().cast_unsigned();
        let accepted = now / STEP_SECONDS + 1;
        (self.last_step.get() + 1).saturating_sub(accepted) * STEP_SECONDS
    }

    /// The code of this moment, by this host's clock.
    pub fn present_code(&self) -> String {
        self.code_at(unix_seconds_now().cast_unsigned())
    }

    /// The code of any time, in seconds since 1970.
    pub fn code_at(&self, unix_seconds: u64) -> String {
        let output = Command::new("oathtool")
            .args(["--totp", "--base32", "--now", &format!("@{unix_seconds}")])
            .arg(self.read("mfa-seed"))
            .output()
            .expect("oathtool");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().into()
    }

    /// A code that AWS refuses.
    pub fn wrong_code(&self) -> String {
        self.code_at(1_000_000_000)
    }

    /// Shifts AWS's clock by this many seconds.
    pub fn set_clock(&self, offset_seconds: &str) {
        self.clock_offset_seconds
            .set(offset_seconds.parse().unwrap());
        run(
            &self.state,
            &["clock", &format!("--offset-seconds={offset_seconds}")],
        );
    }

    /// Moves AWS's clock past the end of a session of 600 seconds. The broker learns it from KMS.
    pub fn end_session(&self) {
        // Within the quarter of an hour by which AWS lets clocks differ.
        self.set_clock("800");
    }

    /// Makes calls fail, with the arguments of `local-aws fault`.
    pub fn fault(&self, arguments: &str) {
        let mut all = vec!["fault"];
        all.extend(arguments.split_whitespace());
        run(&self.state, &all);
    }

    /// AWS's own CLI as the user with the long-term key; returns what it prints.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = aws_cli()
            .args(arguments)
            .env("AWS_ENDPOINT_URL", self.endpoint())
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_SHARED_CREDENTIALS_FILE", self.path("credentials"))
            .envs(self.certificate.iter().map(|it| ("AWS_CA_BUNDLE", it)))
            .output()
            .unwrap();
        assert!(output.status.success(), "aws {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().into()
    }

    /// What the operator's `aws sts get-session-token` prints for a code.
    pub fn session_document(&self) -> String {
        self.cli(&[
            "sts",
            "get-session-token",
            "--output=json",
            "--serial-number",
            &self.serial_number(),
            "--token-code",
            &self.code(),
        ])
    }

    /// The same where no code is given; its session has no MFA.
    pub fn session_document_without_code(&self) -> String {
        self.cli(&["sts", "get-session-token", "--output=json"])
    }

    /// A command line of one of our programs, with the user's long-term key in an otherwise small
    /// environment.
    pub fn program(&self, name: &str, arguments: &[&str]) -> Command {
        let (access_key_id, secret_access_key) = self.long_term_key();
        let mut command = Command::new(dist("bin").join(name));
        command
            .args(arguments)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("AWS_ENDPOINT_URL", self.endpoint())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", secret_access_key)
            .stdin(Stdio::null());
        command
    }

    /// `kms-data-keys` of this folder of `make dist`, with the credentials that the AWS CLI would
    /// find, for the key files of a directory.
    pub fn data_keys_command(&self, folder: &str, arguments: &[&str], directory: &Path) -> Command {
        let mut command = Command::new(dist(folder).join("kms-data-keys"));
        command
            .args(arguments)
            .arg(directory)
            .env_clear()
            .env("AWS_ENDPOINT_URL", self.endpoint())
            .env("AWS_SHARED_CREDENTIALS_FILE", self.path("credentials"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdin(Stdio::null());
        command
    }

    /// Makes another master key, with the arguments of `local-aws key`; returns its ARN.
    pub fn key(&self, arguments: &[&str]) -> String {
        run(&self.state, &[&["key"], arguments].concat())
            .trim()
            .into()
    }

    /// Puts a key policy on `alias/mariadb`.
    pub fn put_key_policy(&self, sandbox: &Sandbox, policy: &str) {
        let describe = ["kms", "describe-key", "--key-id=alias/mariadb"];
        let text = ["--query=KeyMetadata.KeyId", "--output=text"];
        let key_id = format!("--key-id={}", self.cli(&[&describe[..], &text].concat()));
        let policy = sandbox.write("policy.json", policy);
        let policy = format!("--policy=file://{}", policy.display());
        self.cli(&["kms", "put-key-policy", &key_id, &policy]);
    }

    /// Wraps a data key, in hexadecimal digits, into a key file.
    pub fn wrap_key(&self, sandbox: &Sandbox, key_hex: &str, file: &Path) {
        self.wrap_key_under("alias/mariadb", sandbox, key_hex, file);
    }

    /// The same under another master key.
    pub fn wrap_key_under(&self, master_key: &str, sandbox: &Sandbox, key_hex: &str, file: &Path) {
        let hex = sandbox.write("hex", key_hex);
        let plaintext = sandbox.path("plaintext");
        convert("xxd", &["-r", "-p"], &hex, &plaintext);
        let plaintext = format!("--plaintext=fileb://{}", plaintext.display());
        let wrapped = self.cli(&[
            "kms",
            "encrypt",
            &format!("--key-id={master_key}"),
            "--query=CiphertextBlob",
            "--output=text",
            &plaintext,
        ]);
        convert(
            "base64",
            &["--decode"],
            &sandbox.write("wrapped", &wrapped),
            file,
        );
    }

    /// Any other subcommand of `local-aws`.
    pub fn run(&self, arguments: &[&str]) {
        run(&self.state, arguments);
    }

    /// The call log: one JSON record a line.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("cloudtrail.jsonl")).unwrap_or_default()
    }

    /// How many calls of `operation` the log holds.
    pub fn calls(&self, operation: &str) -> usize {
        let name = format!("\"eventName\":\"{operation}\"");
        self.log()
            .lines()
            .filter(|line| line.replace(": ", ":").contains(&name))
            .count()
    }

    /// Stops the server and frees its port.
    pub fn stop(&mut self) {
        self.server.signal(Signal::SIGTERM);
        self.server.wait();
    }

    /// Starts it again on the same port, with other arguments of `local-aws serve`.
    pub fn serve_again(&mut self, endpoint: &str, arguments: &[&str]) {
        self.stop();
        self.serve_arguments = arguments
            .iter()
            .map(|argument| (*argument).into())
            .collect();
        self.start_again_at(endpoint);
    }

    /// Starts it again on the same port.
    pub fn start_again_at(&mut self, endpoint: &str) {
        let address = endpoint.rsplit('/').next().unwrap();
        let mut arguments = self.serve_arguments.clone();
        arguments.extend(["--listen".into(), address.into()]);
        self.server = serve(&self.state, &arguments);
    }
}

/// AWS's own CLI, from the project's virtualenv.
pub fn aws_cli() -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/aws-tools");
    let output = Command::new(script).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let programs = String::from_utf8(output.stdout).unwrap();
    Command::new(Path::new(programs.trim()).join("aws"))
}

fn serve(state: &Path, arguments: &Vec<String>) -> Process {
    let mut command = Command::new(dist("bin/local-aws"));
    let server = Process::start(
        command
            .arg("serve")
            .arg("--state")
            .arg(state)
            .args(arguments),
    );
    server.wait_for("listening on ");
    server
}

fn run(state: &Path, arguments: &[&str]) -> String {
    let output = Command::new(dist("bin/local-aws"))
        .args(arguments)
        .arg("--state")
        .arg(state)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "local-aws {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn convert(program: &str, arguments: &[&str], from: &Path, to: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .arg(from)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::write(to, output.stdout).unwrap();
}
