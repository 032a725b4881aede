//! A machine as the documents set it up, and AWS.

use std::{env, path::Path};

use end_to_end_tests::{ChildGuard, Image, LocalAws, Machine, Sandbox, Terminal, fence};

pub const SERVICE: &str = "mariadb.service";
pub const BROKER: &str = "iam-kms-broker.service";
pub const FIFO: &str = "/run/iam-kms-wrapper/mfa";
const CONFIG: &str = include_str!("../../../examples/configuration/iam-kms-wrapper.config");
const CREDENTIALS: &str = include_str!("../../../examples/configuration/aws-credentials");
const ENCRYPTION: &str = include_str!("../../../examples/configuration/60-encryption.cnf");
const DROP_IN: &str = include_str!("../../../systemd/mariadb.service.d/iam-kms-wrapper.conf");
pub const BROKER_DROP_IN: &str =
    include_str!("../../../systemd/mariadb.service.d/iam-kms-broker.conf");

/// Whether the machines have the systemd of Debian 11.
pub fn has_systemd_247() -> bool {
    let root = env::var_os("IAM_KMS_SYSTEMD_ROOT").expect("`make test-systemd` sets it");
    Path::new(&root)
        .join("lib/systemd/libsystemd-shared-247.so")
        .exists()
}

/// AWS outside, the machine's files inside.
pub struct Site {
    pub aws: LocalAws,
    pub image: Image,
    sandbox: Sandbox,
}

impl Site {
    /// Nothing is configured.
    pub fn bare() -> Self {
        Self::on(LocalAws::start, Image::new)
    }

    /// The same with another AWS.
    pub fn bare_with_aws(aws: fn(&Sandbox) -> LocalAws) -> Self {
        Self::on(aws, Image::new)
    }

    /// Nothing of ours is installed.
    pub fn clean() -> Self {
        Self::on(LocalAws::start, Image::clean)
    }

    /// Machines side by side, which share the network, do not get in each other's way.
    fn on(aws: fn(&Sandbox) -> LocalAws, image: fn(&Sandbox) -> Image) -> Self {
        let sandbox = Sandbox::new();
        let aws = aws(&sandbox);
        let image = image(&sandbox)
            .file(
                "/etc/systemd/system/mariadb.socket.d/alone.conf",
                0o644,
                "[Socket]\nListenStream=\nListenStream=/run/mysqld/mysqld.sock\n",
            )
            .file(
                "/etc/mysql/mariadb.conf.d/90-alone.cnf",
                0o644,
                "[mariadb]\nskip-networking\n",
            );
        Self {
            aws,
            image,
            sandbox,
        }
    }

    /// The launcher in the server's place. Where systemd cannot load its credential, that is in its environment.
    pub fn new() -> Self {
        let site = Self::encrypted(SERVICE).configuration("").file(
            "/etc/systemd/system/mariadb.service.d/iam-kms-wrapper.conf",
            0o644,
            DROP_IN,
        );
        match has_systemd_247() {
            true => site.credential_in_environment(SERVICE),
            false => site,
        }
    }

    /// Passes the long-term key to `service` as the documents say for old versions of systemd.
    pub fn credential_in_environment(self, service: &str) -> Self {
        let variables = self.credentials("AWS_ACCESS_KEY_ID=\nAWS_SECRET_ACCESS_KEY=\n");
        let drop_in = format!("/etc/systemd/system/{service}.d/iam-kms-wrapper.credential.conf");
        let commands = fence("credential-in-environment").commands;
        self.file(
            "/etc/iam-kms-wrapper/aws-credentials.env",
            0o600,
            &variables,
        )
        .file(&drop_in, 0o644, &commands)
    }

    /// The broker as a service, with the unit where `make install` puts it.
    pub fn with_broker_service() -> Self {
        Self::encrypted(BROKER)
            .configuration("broker_socket_group = mysql")
            .file(
                "/etc/systemd/system/mariadb.service.d/iam-kms-broker.conf",
                0o644,
                BROKER_DROP_IN,
            )
    }

    /// A server that encrypts, and the long-term key for `service`.
    fn encrypted(service: &str) -> Self {
        let site = Self::bare();
        let credentials = site.credential_file();
        site.told_where_aws_is(service)
            .file("/etc/iam-kms-wrapper/aws-credentials", 0o600, &credentials)
            .file(
                "/etc/mysql/mariadb.conf.d/60-encryption.cnf",
                0o644,
                ENCRYPTION,
            )
    }

    /// Has `service` find AWS.
    pub fn told_where_aws_is(self, service: &str) -> Self {
        let endpoint = self.aws.endpoint();
        self.told_that_aws_is_at(service, &endpoint)
    }

    /// Has `service` find another AWS.
    pub fn told_that_aws_is_at(self, service: &str, endpoint: &str) -> Self {
        self.file(
            &format!("/etc/systemd/system/{service}.d/endpoint.conf"),
            0o644,
            &format!(
                "[Service]\nEnvironment=AWS_ENDPOINT_URL={endpoint} \
                 AWS_EC2_METADATA_SERVICE_ENDPOINT={endpoint}\n"
            ),
        )
    }

    /// The example's configuration file with further lines.
    pub fn configuration(self, lines: &str) -> Self {
        let (before, rest) = CONFIG.split_once("kms_mfa_id = ").unwrap();
        let (_, after) = rest.split_once('\n').unwrap();
        let serial_number = self.aws.serial_number();
        let text = format!("{before}kms_mfa_id = {serial_number}\n{after}{lines}\n");
        self.file("/etc/iam-kms-wrapper/iam-kms-wrapper.config", 0o644, &text)
    }

    /// The example's credentials file with the long-term key filled in.
    fn credential_file(&self) -> String {
        let (access_key_id, secret_access_key) = self.aws.long_term_key();
        CREDENTIALS
            .replace(
                "aws_access_key_id =",
                &format!("aws_access_key_id = {access_key_id}"),
            )
            .replace(
                "aws_secret_access_key =",
                &format!("aws_secret_access_key = {secret_access_key}"),
            )
    }

    /// Lines for `EnvironmentFile=` with the long-term key filled in, and where AWS is.
    pub fn credentials(&self, lines: &str) -> String {
        let (access_key_id, secret_access_key) = self.aws.long_term_key();
        let filled = lines
            .replace(
                "AWS_ACCESS_KEY_ID=",
                &format!("AWS_ACCESS_KEY_ID={access_key_id}"),
            )
            .replace(
                "AWS_SECRET_ACCESS_KEY=",
                &format!("AWS_SECRET_ACCESS_KEY={secret_access_key}"),
            );
        format!("{filled}AWS_ENDPOINT_URL={}\n", self.aws.endpoint())
    }

    /// Adds a file.
    pub fn file(mut self, path: &str, mode: u32, text: &str) -> Self {
        self.image = self.image.file(path, mode, text);
        self
    }

    /// Adds lines to the section `[Service]` of mariadb.service.
    pub fn service(self, lines: &str) -> Self {
        let text = format!("[Service]\n{lines}\n");
        self.file(
            "/etc/systemd/system/mariadb.service.d/zz.conf",
            0o644,
            &text,
        )
    }

    /// Boots the machine, and waits until its mariadb.service waits for a code.
    pub fn boot(self) -> Running {
        self.boot_with_fifo(FIFO)
    }

    /// The same with another FIFO.
    pub fn boot_with_fifo(self, fifo: &str) -> Running {
        let running = self.boot_as_it_is();
        running.wait_for_fifo_at(fifo);
        running
    }

    /// Boots the machine, and waits for nothing of ours.
    pub fn boot_as_it_is(self) -> Running {
        Running {
            machine: self.image.boot(),
            aws: self.aws,
            sandbox: self.sandbox,
        }
    }

    /// Boots the machine, and waits until its mariadb.service runs with a code.
    pub fn boot_with_code(self) -> Running {
        let running = self.boot();
        running.echo_code();
        running.wait_until_active();
        running
    }

    /// Boots the machine and stops what it has started of MariaDB.
    pub fn boot_and_stop(self) -> Running {
        let running = self.boot();
        running.stop_server();
        running
    }
}

/// A site whose machine runs.
pub struct Running {
    pub machine: Machine,
    pub aws: LocalAws,
    pub sandbox: Sandbox,
}

impl Running {
    /// Stops the server, and the socket that would start it again, which MariaDB 10.5 does not have.
    pub fn stop_server(&self) {
        self.machine.sh("systemctl stop 'mariadb.s*'");
    }

    pub fn wait_for_fifo(&self) {
        self.wait_for_fifo_at(FIFO);
    }

    fn wait_for_fifo_at(&self, path: &str) {
        self.machine
            .wait_until(&format!("the FIFO {path}"), SERVICE, || {
                self.machine.path(path).exists()
            });
    }

    /// Enters a code as the documents say. Returns the code.
    pub fn echo_code(&self) -> String {
        let code = self.aws.code();
        self.machine
            .sh(&format!("echo {code} | iam-kms-wrapper code"));
        code
    }

    /// What also works, but the documents advise against.
    pub fn echo(&self, code: &str) {
        self.machine.sh(&format!("echo {code} > {FIFO}"));
    }

    /// Runs a script of root's in a terminal, where it asks for a code. Returns what is shown.
    pub fn in_terminal_with_code(&self, script: &str) -> String {
        let (mut terminal, shell) = self.start_in_terminal_with_code(script);
        terminal.wait_for_success(shell).to_owned()
    }

    /// Starts it, and types the code.
    pub fn start_in_terminal_with_code(&self, script: &str) -> (Terminal, ChildGuard) {
        let mut terminal = Terminal::new();
        let shell = self.machine.start_in(&terminal, &["sh", "-exc", script]);
        terminal.wait_for_nth("MFA code: ", 1);
        terminal.type_in(&format!("{}\n", self.aws.code()));
        (terminal, shell)
    }

    pub fn main_pid(&self, unit: &str) -> String {
        self.machine.property(unit, "MainPID")
    }

    /// The user of a service, which is one of `DynamicUser=`. Source of the numbers: systemd.exec(5).
    pub fn dynamic_user(&self, unit: &str) -> u32 {
        let process = self.main_pid(unit);
        let user = self
            .machine
            .sh(&format!("stat --format=%u /proc/{process}"));
        let user = user.parse().unwrap();
        assert!((61184..=65519).contains(&user), "{user}");
        user
    }

    pub fn state(&self) -> String {
        self.machine.property(SERVICE, "ActiveState")
    }

    pub fn wait_until_active(&self) {
        self.machine
            .wait_for_property(SERVICE, "ActiveState", "active");
    }

    /// What a statement prints.
    pub fn sql(&self, statement: &str) -> String {
        self.machine.sh(&format!(
            "mariadb --batch --skip-column-names -e '{statement}'"
        ))
    }

    /// The directory in which the server has its data, which differs between releases of Debian.
    pub fn data_directory(&self) -> String {
        self.sql("SELECT TRIM(TRAILING \"/\" FROM @@datadir)")
    }

    /// Programs that run in the machine, by their names in `/proc`.
    pub fn programs(&self) -> String {
        self.machine.sh("cat /proc/[0-9]*/comm 2> /dev/null || :")
    }
}
