//! What most tests of the launcher start from.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use nix::{sys::signal::Signal, unistd::geteuid};

use crate::{
    Configuration, Database, LocalAws, Process, Sandbox, Wrapper, dist, owner_of,
    process::wait_until_with, write_fifo,
};

/// A user that owns nothing.
pub const NOBODY: u32 = 65534;

/// `local-aws`, the configuration of the manual, and a directory.
pub struct Scene {
    /// AWS.
    pub aws: LocalAws,
    /// What `--config` names.
    pub configuration: Configuration,
    /// Where everything lies.
    pub sandbox: Sandbox,
}

impl Scene {
    /// The session is handed over in the environment.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self::with_aws(&[])
    }

    /// The same with further arguments of `local-aws serve`.
    pub fn with_aws(arguments: &[&str]) -> Self {
        let sandbox = Sandbox::new();
        let aws = LocalAws::start_with(&sandbox, arguments);
        let configuration = Configuration::of_the_manual(&sandbox, &aws);
        Self {
            aws,
            configuration,
            sandbox,
        }
    }

    /// Hands the session over to a broker.
    #[must_use]
    pub fn with_broker(mut self) -> Self {
        self.configuration = Configuration::with_broker(&self.sandbox, &self.aws);
        self
    }

    /// Adds a line to the configuration.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.configuration = self.configuration.line(line);
        self
    }

    /// Removes the lines of the configuration that begin with `key`.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.configuration = self.configuration.without(key);
        self
    }

    /// Where the code is written to.
    pub fn fifo(&self) -> &Path {
        &self.configuration.fifo
    }

    /// The command line, to be changed before it is started.
    pub fn command(&self, command: &[&str]) -> Command {
        Wrapper::command(&self.sandbox, &self.aws, &self.configuration, command)
    }

    /// Starts what [`Self::command`] has made.
    pub fn spawn(&self, command: &mut Command) -> Wrapper {
        Wrapper::spawn(command, &self.configuration)
    }

    /// Starts `iam-kms-wrapper` with `command`.
    pub fn start(&self, command: &[&str]) -> Wrapper {
        self.spawn(&mut self.command(command))
    }

    /// Starts it with `command`, gives a good code and waits until the command runs.
    pub fn start_with_code(&self, command: &[&str]) -> Wrapper {
        let wrapper = self.start(command);
        wrapper.give_code(&self.aws);
        wrapper.wait_for_command(command[0]);
        wrapper
    }

    /// The command line of the database's server, as the owner of its files.
    pub fn database_command(&self, database: &Database) -> Command {
        let line = database.command_line();
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        match owner_of(&database.datadir) {
            owner if owner == geteuid() => self.command(&line),
            owner => self.command_as(owner.as_raw(), &line),
        }
    }

    /// Starts the database's server with a good code, and waits until it is ready.
    pub fn start_database(&self, database: &Database) -> Wrapper {
        self.spawn_database(&mut self.database_command(database), database)
    }

    /// Starts what [`Self::database_command`] has made, with a good code, and waits until the
    /// server is ready.
    pub fn spawn_database(&self, command: &mut Command, database: &Database) -> Wrapper {
        let wrapper = self.spawn(command);
        wrapper.give_code(&self.aws);
        database.wait_until_ready(&wrapper.process);
        wrapper
    }

    /// The command line of a broker that runs alone.
    pub fn broker_command(&self) -> Command {
        let broker = dist("bin/iam-kms-broker");
        behind(&[broker.to_str().unwrap()], &self.command(&[]), false)
    }

    /// The command line of `kms-manage-key` with this configuration.
    pub fn manage_key_command(&self, arguments: &[&str]) -> Command {
        let program = dist("bin/kms-manage-key");
        behind(
            &[program.to_str().unwrap()],
            &self.command(arguments),
            false,
        )
    }

    /// Starts a broker alone, gives it a good code and waits until it has a session.
    pub fn start_broker(&self) -> Process {
        let broker = Process::start(&mut self.broker_command());
        broker.wait_for("write a new MFA code");
        write_fifo(self.fifo(), self.aws.code().as_bytes());
        broker.wait_for("is open until");
        broker
    }

    /// Makes a role in AWS that `principal` may assume, as JSON; `further` members of the statement begin with
    /// a comma.
    pub fn make_role(&self, name: &str, principal: &str, further: &str) {
        let trust = format!(
            r#"{{"Version": "2012-10-17", "Statement": [{{"Effect": "Allow",
                "Principal": {principal}, "Action": "sts:AssumeRole"{further}}}]}}"#
        );
        let trust = self.sandbox.write(&format!("trust-of-{name}.json"), &trust);
        self.aws
            .run(&["role", name, "--trust", trust.to_str().unwrap()]);
    }

    /// A directory with programs that another user can reach too; returns the path of the first.
    pub fn copy_programs(&self, names: &[&str]) -> PathBuf {
        let directory = self.sandbox.directory("bin");
        for name in names {
            // Not fs::copy: a program that is open for writing here cannot be executed, and a
            // fork of another test may keep it open.
            // Removed first: a broker of the last start may still run, and is not to be written to.
            let mut copy = Command::new("cp");
            copy.arg("--remove-destination");
            copy.arg(dist("bin").join(name)).arg(&directory);
            assert!(copy.status().unwrap().success());
        }
        directory.join(names[0])
    }

    /// The command line as user nobody, who gets the FIFO's directory.
    pub fn command_as_nobody(&self, command: &[&str]) -> Command {
        self.command_as(NOBODY, command)
    }

    /// The same as another user.
    pub fn command_as(&self, user: u32, command: &[&str]) -> Command {
        let program = self.copy_programs(&["iam-kms-wrapper", "iam-kms-broker"]);
        chown(self.fifo().parent().unwrap(), Some(user), Some(user)).unwrap();
        let wrapper = self.command(command);
        let mut prefix = set_user(user);
        prefix.push(program.to_str().unwrap().into());
        let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
        let mut prefixed = behind(&prefix, &wrapper, false);
        prefixed.current_dir("/");
        prefixed
    }
}

/// What goes in front of a command line to run it as another user.
pub fn set_user(user: u32) -> Vec<String> {
    vec![
        "setpriv".into(),
        format!("--reuid={user}"),
        format!("--regid={user}"),
        "--clear-groups".into(),
        // setpriv may still read everything while it executes the next program.
        "env".into(),
    ]
}

/// `command` started by another one, which execs it: `prefix`, then its program, then its
/// arguments; in the same environment.
pub fn after(prefix: &[&str], command: &Command) -> Command {
    behind(prefix, command, true)
}

/// `command` started by Python, which first does what `setup` says to its own process.
pub fn after_python(setup: &str, command: &Command) -> Command {
    let script = format!(
        "import os, sys, signal, resource\n{setup}\nos.execve(sys.argv[1], sys.argv[1:], os.environb)"
    );
    after(&["/usr/bin/python3", "-c", &script], command)
}

/// The variables that `command` sets, for another one.
pub fn variables_of(command: &Command) -> impl Iterator<Item = (&OsStr, &OsStr)> {
    let variables = command.get_envs();
    variables.filter_map(|(name, value)| Some((name, value?)))
}

fn behind(prefix: &[&str], command: &Command, with_program: bool) -> Command {
    let mut prefixed = Command::new(prefix[0]);
    prefixed.args(&prefix[1..]);
    if with_program {
        prefixed.arg(command.get_program());
    }
    prefixed
        .args(command.get_args())
        .env_clear()
        .envs(variables_of(command));
    prefixed.stdin(std::process::Stdio::null());
    prefixed
}

impl Wrapper {
    /// Waits until the wrapper has become `program`.
    pub fn wait_for_command(&self, program: &str) {
        self.process.wait_for_program(program);
    }

    /// Waits for the end, which must have this exit code, and returns all lines.
    ///
    /// Panics if a FIFO is left behind.
    pub fn ends_with(&mut self, code: i32) -> String {
        let (status, output) = self.process.finish();
        assert_eq!(status.code(), Some(code), "{status}\n{output}");
        self.assert_no_fifo();
        output
    }

    /// Waits for the end, which must be by this signal, and returns all lines.
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

/// Permission bits of a file.
pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

impl Process {
    /// Waits until the process has become `program`.
    pub fn wait_for_program(&self, program: &str) {
        let name = Path::new(program).file_name().unwrap();
        let entry = |name: &str| format!("/proc/{}/{name}", self.pid());
        wait_until_with(
            program,
            || self.output(),
            || {
                // A zombie has none.
                let Ok(exe) = fs::read_link(entry("exe")) else {
                    panic!("waited for {program}, got:\n{}", self.output());
                };
                // The command line is the last thing that execve(2) sets.
                exe.file_name() == Some(name) && !fs::read(entry("cmdline")).unwrap().is_empty()
            },
        );
    }
}
