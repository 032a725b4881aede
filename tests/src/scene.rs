//! The starting point of most tests of the launcher.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::unistd::geteuid;

use crate::{
    Configuration, Database, LocalAws, Process, Sandbox, Wrapper, dist, owner_of, write_fifo,
};

/// A user who owns no files.
pub const NOBODY: u32 = 65534;

/// `local-aws`, a configuration as in MariaDB's manual, and a directory.
pub struct Scene {
    /// AWS.
    pub aws: LocalAws,
    /// What `--config` names.
    pub configuration: Configuration,
    /// The directory with all files of the test.
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
        let configuration = Configuration::new(&sandbox, &aws.serial_number());
        Self {
            aws,
            configuration,
            sandbox,
        }
    }

    /// Hands the session over to a broker.
    #[must_use]
    pub fn with_broker(mut self) -> Self {
        self.configuration = self.configuration.handing_to_a_broker();
        self
    }

    /// `local-aws` answers for this region alone.
    pub fn in_region(region: &str) -> Self {
        let sandbox = Sandbox::new();
        let aws = LocalAws::start_in_region(&sandbox, region);
        let configuration = Configuration::new(&sandbox, &aws.serial_number());
        Self {
            aws,
            configuration,
            sandbox,
        }
    }

    /// A host with a role, whose sessions last this long, and a broker that asks for no code.
    pub fn with_machine_role(session_lifetime_seconds: &str) -> Self {
        let arguments = [
            "--machine-role=host",
            "--session-lifetime",
            session_lifetime_seconds,
        ];
        let scene = Self::with_aws(&arguments)
            .with_broker()
            .without("kms_mfa_id")
            .line("mfa = false");
        scene.make_role("host", r#"{"Service": "ec2.amazonaws.com"}"#, "");
        scene
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

    /// The FIFO that takes the code.
    pub fn fifo(&self) -> &Path {
        &self.configuration.fifo
    }

    /// The command line `iam-kms-wrapper --config=FILE COMMAND…`, to be changed before it is started.
    pub fn command(&self, command: &[&str]) -> Command {
        self.program_with_configuration("iam-kms-wrapper", command)
    }

    fn program_with_configuration(&self, name: &str, arguments: &[&str]) -> Command {
        let file = self.configuration.write(&self.sandbox);
        let option = format!("--config={}", file.display());
        self.aws
            .program(name, &[&[option.as_str()], arguments].concat())
    }

    /// Starts what [`Self::command`] has made.
    pub fn spawn(&self, command: &mut Command) -> Wrapper {
        Wrapper::spawn(command, self.fifo())
    }

    /// Starts `iam-kms-wrapper` with `command`.
    pub fn start(&self, command: &[&str]) -> Wrapper {
        self.spawn(&mut self.command(command))
    }

    /// Starts it with `command`, enters a good code and waits until the command runs.
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
        self.program_with_configuration("iam-kms-broker", &[])
    }

    /// The command line of `kms-manage-key` with this configuration.
    pub fn manage_key_command(&self, arguments: &[&str]) -> Command {
        self.program_with_configuration("kms-manage-key", arguments)
    }

    /// Starts a broker alone, gives it a good code and waits until it has a session.
    pub fn start_broker(&self) -> Process {
        let broker = Process::start(&mut self.broker_command());
        broker.wait_for("enter an MFA code");
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

    /// Makes a certificate of 127.0.0.1 and its key, and returns the paths of the PEM files.
    pub fn make_certificate(&self) -> [String; 2] {
        let names = vec!["127.0.0.1".to_owned()];
        let certified = rcgen::generate_simple_self_signed(names).unwrap();
        let write = |name: &str, text: &str| {
            let path = self.sandbox.write(name, text);
            path.to_str().unwrap().to_owned()
        };
        [
            write("certificate.pem", &certified.cert.pem()),
            write("key.pem", &certified.signing_key.serialize_pem()),
        ]
    }

    /// Makes a home directory with `.aws`, of `owner`, that would lead to another endpoint and run a program.
    /// Returns it, and what that program would make.
    pub fn plant_home(&self, owner: u32, endpoint: &str) -> (PathBuf, PathBuf) {
        let home = self.sandbox.directory("home");
        let ran = self.sandbox.directory("ran").join("it-ran");
        chown(ran.parent().unwrap(), Some(owner), None).unwrap();
        let aws = home.join(".aws");
        fs::create_dir(&aws).unwrap();
        let config = format!(
            "[default]\nendpoint_url = {endpoint}\nec2_metadata_service_endpoint = {endpoint}\nregion = eu-west-3\ncredential_process = touch {}\n",
            ran.display()
        );
        fs::write(aws.join("config"), &config).unwrap();
        fs::write(
            aws.join("credentials"),
            "[default]\naws_access_key_id = AKIAPLANTED\naws_secret_access_key = x\n",
        )
        .unwrap();
        for path in [&home, &aws, &aws.join("config"), &aws.join("credentials")] {
            chown(path, Some(owner), None).unwrap();
        }
        (home, ran)
    }

    /// Copies programs to where another user can execute them; returns the path of the first.
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

    /// The command line as user nobody, who becomes the owner of the FIFO's directory.
    pub fn command_as_nobody(&self, command: &[&str]) -> Command {
        self.command_as(NOBODY, command)
    }

    /// The same as another user.
    pub fn command_as(&self, user: u32, command: &[&str]) -> Command {
        let program = self.copy_programs(&["iam-kms-wrapper", "iam-kms-broker"]);
        self.as_user(user, &program, &self.command(command))
    }

    /// A broker alone as another user.
    pub fn broker_command_as(&self, user: u32) -> Command {
        let program = self.copy_programs(&["iam-kms-broker"]);
        self.as_user(user, &program, &self.broker_command())
    }

    fn as_user(&self, user: u32, program: &Path, command: &Command) -> Command {
        chown(self.fifo().parent().unwrap(), Some(user), Some(user)).unwrap();
        let mut prefix = set_user(user);
        prefix.push(program.to_str().unwrap().into());
        let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
        let mut prefixed = behind(&prefix, command, false);
        prefixed.current_dir("/");
        prefixed
    }
}

/// The words in front of a command line that run it as another user.
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

/// `command` in a mount namespace of its own, in which `file` is at `place`.
pub fn after_mounting(file: &Path, place: &str, command: &Command) -> Command {
    let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
    let file = file.to_str().unwrap();
    after(
        &[
            "/usr/bin/unshare",
            "--mount",
            "/bin/sh",
            "-c",
            script,
            "sh",
            file,
            place,
        ],
        command,
    )
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
    prefixed.stdin(Stdio::null());
    prefixed
}

/// Permission bits of a file.
pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}
