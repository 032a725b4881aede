//! A real mariadbd with its own data directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Mutex,
};

use memchr::memmem;
use nix::{sys::signal::Signal, unistd::geteuid};

use crate::{Process, Sandbox, command, dist, mariadb_program, owner_of, server_options};

const PLUGIN: &str = "aws_key_management.so";

/// A statement that makes a table, and a data key for it.
pub const NEW_KEY: &str =
    "CREATE TABLE d.t4 (i INT) ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID=4";

/// Options that make the server encrypt everything that it keeps.
pub const ENCRYPT_ALL: [&str; 6] = [
    "--innodb-encrypt-tables=ON",
    "--innodb-encrypt-log=ON",
    "--encrypt-binlog",
    "--log-bin=binlog",
    "--aria-encrypt-tables=ON",
    "--encrypt-tmp-files=ON",
];

/// Files of one server.
pub struct Database {
    /// Its data directory.
    pub datadir: PathBuf,
    /// Its client socket.
    pub socket: PathBuf,
    plugin_dir: PathBuf,
    defaults: String,
    options: Vec<String>,
}

impl Database {
    /// The value of the plugin's status variable `aws_key_management_NAME`.
    pub fn status(&self, name: &str) -> String {
        let row = self.sql(&format!(
            "SHOW GLOBAL STATUS LIKE 'aws_key_management_{name}'"
        ));
        row.split('\t').nth(1).unwrap_or_default().to_owned()
    }

    /// Makes a datadir, without starting anything.
    pub fn new(sandbox: &Sandbox) -> Self {
        let datadir = sandbox.path("data");
        copy(&template(), &datadir);
        let plugin_dir = sandbox.directory("plugin");
        // A copy: a server of another user, or in another root directory, cannot read the original.
        copy(&dist("plugin").join(PLUGIN), &plugin_dir);
        std::os::unix::fs::symlink(
            "/usr/lib/mysql/plugin/file_key_management.so",
            plugin_dir.join("file_key_management.so"),
        )
        .unwrap();
        Self {
            datadir,
            socket: sandbox.path("mariadb.sock"),
            plugin_dir,
            defaults: "--no-defaults".into(),
            options: server_options(),
        }
    }

    /// Takes the plugin of the test build, with its fault points.
    #[must_use]
    pub fn with_fault_points(self) -> Self {
        copy(&dist("test-plugin").join(PLUGIN), &self.plugin_dir);
        self
    }

    /// Takes another plugin file.
    pub fn replace_plugin(&self, file: &Path) {
        copy(file, &self.plugin_dir.join(PLUGIN));
    }

    /// The same datadir for a server with other options.
    pub fn as_other_server(&self) -> Self {
        Self {
            datadir: self.datadir.clone(),
            socket: self.socket.clone(),
            plugin_dir: self.plugin_dir.clone(),
            defaults: self.defaults.clone(),
            options: server_options(),
        }
    }

    /// A server with the same options on another datadir, beside this one.
    pub fn on_datadir(&self, datadir: &Path) -> Self {
        Self {
            datadir: datadir.into(),
            socket: datadir.with_extension("sock"),
            plugin_dir: self.plugin_dir.clone(),
            defaults: self.defaults.clone(),
            options: self.options.clone(),
        }
    }

    /// Gives the files of the server to another user, who is to run it.
    pub fn give_to(&self, user: u32) {
        let mut chown = Command::new("chown");
        chown
            .arg("-R")
            .arg(user.to_string())
            .arg(&self.datadir)
            .arg(own_tmpdir(&self.datadir));
        assert!(chown.status().unwrap().success());
        std::os::unix::fs::chown(self.socket.parent().unwrap(), Some(user), None).unwrap();
    }

    /// Has the server read this option file, and no other.
    #[must_use]
    pub fn defaults_file(mut self, file: &Path) -> Self {
        self.defaults = format!("--defaults-file={}", file.display());
        self
    }

    /// Adds options for `mariadbd`.
    #[must_use]
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options
            .extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// Has InnoDB re-encrypt its tables in the background, as fast as it can.
    #[must_use]
    pub fn re_encrypting(self) -> Self {
        self.options(&[
            "--innodb-encryption-threads=2",
            // The default is 100 pages a second.
            "--innodb-encryption-rotation-iops=10000",
        ])
    }

    /// Adds the options that load our plugin with a broker's socket, and encrypt everything.
    #[must_use]
    pub fn with_our_plugin(self, broker_socket: &Path) -> Self {
        self.options(&[
            "--plugin-load-add=aws_key_management",
            "--aws-key-management-master-key-id=alias/mariadb",
            &format!(
                "--aws-key-management-broker-socket={}",
                broker_socket.display()
            ),
        ])
    }

    /// Adds the options that load our plugin with the keys of a file, and the file of its password.
    #[must_use]
    pub fn with_offline_keys(self, keys: &Path, password: Option<&Path>) -> Self {
        let database = self.options(&[
            "--plugin-load-add=aws_key_management",
            &format!("--aws-key-management-offline-keys={}", keys.display()),
        ]);
        match password {
            None => database,
            Some(file) => database.options(&[&format!(
                "--aws-key-management-offline-filekey=FILE:{}",
                file.display()
            )]),
        }
    }

    /// Adds the options that load `file_key_management`, as [`Self::with_offline_keys`] does ours.
    #[must_use]
    pub fn with_file_key_management(self, keys: &Path, password: Option<&Path>) -> Self {
        let database = self.options(&[
            "--plugin-load-add=file_key_management",
            &format!("--file-key-management-filename={}", keys.display()),
        ]);
        match password {
            None => database,
            Some(file) => database.options(&[&format!(
                "--file-key-management-filekey=FILE:{}",
                file.display()
            )]),
        }
    }

    /// The command line of the server, in the foreground, for `iam-kms-wrapper` or by itself.
    pub fn command_line(&self) -> Vec<String> {
        let mut line = mariadb_program("/usr/sbin/mariadbd");
        line.extend([
            self.defaults.clone(),
            format!("--datadir={}", self.datadir.display()),
            format!("--socket={}", self.socket.display()),
            format!("--pid-file={}.pid", self.socket.display()),
            format!("--plugin-dir={}", self.plugin_dir.display()),
            format!("--tmpdir={}", own_tmpdir(&self.datadir).display()),
            "--skip-networking".into(),
            "--innodb-buffer-pool-size=32M".into(),
            "--innodb-log-file-size=10M".into(),
        ]);
        if owner_of(&self.datadir).is_root() {
            line.push("--user=root".into());
        }
        line.extend(self.options.iter().cloned());
        line
    }

    /// The command that starts the server by itself.
    pub fn command(&self) -> Command {
        command(&self.command_line())
    }

    /// Starts the server by itself and waits until it is ready.
    pub fn start(&self) -> Process {
        let server = Process::start(&mut self.command());
        self.wait_until_ready(&server);
        server
    }

    /// Waits until the server that `process` is, or has become, takes connections.
    pub fn wait_until_ready(&self, process: &Process) {
        process.wait_for("ready for connections");
    }

    /// Runs statements and returns what they print, tab-separated, without column names.
    ///
    /// Panics if one of them fails.
    pub fn sql(&self, statements: &str) -> String {
        let output = run_client(&self.socket, statements);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statements}\n{errors}");
        String::from_utf8(output.stdout).unwrap().trim_end().into()
    }

    /// Reads every binary log to its end, and returns their names.
    pub fn read_binary_logs(&self) -> Vec<String> {
        let logs = self.sql("SHOW BINARY LOGS");
        let names: Vec<String> = logs
            .lines()
            .map(|line| line.split('\t').next().unwrap().to_owned())
            .collect();
        for name in &names {
            self.sql(&format!("SHOW BINLOG EVENTS IN '{name}'"));
        }
        names
    }

    /// Runs statements one of which must fail, and returns the error that the client shows.
    pub fn sql_error(&self, statements: &str) -> String {
        let output = run_client(&self.socket, statements);
        assert!(
            !output.status.success(),
            "{statements} succeeded: {output:?}"
        );
        String::from_utf8_lossy(&output.stderr).trim_end().into()
    }

    /// Stops the server in an orderly way and waits for it to end.
    pub fn stop(&self, server: &mut Process) {
        server.signal(Signal::SIGTERM);
        let status = server.wait();
        assert!(status.success(), "{status}\n{}", server.output());
    }

    /// The files of the datadir, as paths, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = files_below(&self.datadir);
        files.sort();
        files
    }

    /// The same, and those of the directory for temporary files.
    pub fn all_files(&self) -> Vec<PathBuf> {
        let mut files = self.files();
        files.extend(files_below(&own_tmpdir(&self.datadir)));
        files
    }

    /// The files of the datadir that contain `bytes`, as names.
    pub fn files_with(&self, bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for file in self.files() {
            if contains_bytes(&fs::read(&file).unwrap_or_default(), bytes) {
                found.push(
                    file.strip_prefix(&self.datadir)
                        .unwrap()
                        .display()
                        .to_string(),
                );
            }
        }
        found
    }

    /// Names of the key files, sorted.
    pub fn key_files(&self) -> Vec<String> {
        key_files(&self.datadir)
    }
}

/// Names of the key files in a directory, sorted.
pub fn key_files(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("aws-kms-key."))
        .collect();
    names.sort();
    names
}

/// Runs statements with the `mariadb` client and prints warnings and notes too.
pub fn run_client(socket: &Path, statements: &str) -> Output {
    Command::new("mariadb")
        .arg("--no-defaults")
        .arg(format!("--socket={}", socket.display()))
        .args([
            "--user=root",
            "--batch",
            "--skip-column-names",
            "--show-warnings",
            "-e",
            statements,
        ])
        .output()
        .expect("the mariadb client")
}

/// What the client shows of a statement that failed.
#[derive(Debug, Clone)]
pub struct SqlError {
    /// Everything on its standard error.
    pub text: String,
}

impl SqlError {
    /// Whether the client found no server or lost it. Nobody then knows whether the server has
    /// committed the statement: errors 2000 to 2099 are the client's own.
    pub fn has_lost_server(&self) -> bool {
        self.text.contains("ERROR 20")
    }
}

/// Runs statements until one fails, and returns what they print, as [`Database::sql`] does.
pub fn try_sql(socket: &Path, statements: &str) -> Result<String, SqlError> {
    let output = run_client(socket, statements);
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().into());
    }
    Err(SqlError {
        text: String::from_utf8_lossy(&output.stderr).trim_end().into(),
    })
}

/// Whether `bytes` occur in `content`.
pub fn contains_bytes(content: &[u8], bytes: &[u8]) -> bool {
    memmem::find(content, bytes).is_some()
}

/// A fresh datadir, made once for all tests of a run and copied by each.
fn template() -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _guard = MAKING.lock().unwrap();
    let program = mariadb_program("/usr/sbin/mariadbd");
    let version = command(&program).arg("--version").output().unwrap().stdout;
    let version: String = String::from_utf8_lossy(&version)
        .chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .collect();
    let template = dist("").join(format!("datadir-{version}-{}", geteuid()));
    let has_tables = |datadir: &Path| datadir.join("mysql").exists();
    if has_tables(&template) {
        return template;
    }
    // Made in a directory that a server in a root of its own can see.
    let making = tempfile::Builder::new()
        .prefix("ikw-datadir-")
        .tempdir()
        .unwrap();
    let program = mariadb_program("/usr/bin/mariadb-install-db");
    let output = command(&program)
        .args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ])
        .arg(format!("--datadir={}", making.path().display()))
        .args(geteuid().is_root().then_some("--user=root"))
        .arg("--innodb-log-file-size=10M")
        .args(server_options())
        .env("TMPDIR", making.path())
        .output()
        .expect("mariadb-install-db");
    assert!(output.status.success(), "{output:?}");
    assert!(has_tables(making.path()), "{output:?}");
    // Copied, as /tmp may be another file system, and renamed when it is complete: other test programs look for it at the
    // same time.
    let copied = tempfile::Builder::new()
        .prefix("ikw-datadir-")
        .tempdir_in(dist(""))
        .unwrap();
    copy(&making.path().join("."), copied.path());
    match fs::rename(copied.path(), &template) {
        Ok(()) => drop(copied.keep()),
        Err(error) if has_tables(&template) => drop(error),
        Err(error) => panic!("{error}"),
    }
    template
}

/// A directory for temporary files beside the datadir: a server that starts removes those of others.
fn own_tmpdir(datadir: &Path) -> PathBuf {
    let tmpdir = datadir.with_extension("tmp");
    fs::create_dir_all(&tmpdir).unwrap();
    tmpdir
}

fn copy(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--dereference"]).arg(from).arg(to);
    assert!(copy.status().unwrap().success());
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries: io::Result<Vec<_>> = fs::read_dir(directory).and_then(Iterator::collect);
    for entry in entries.unwrap() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&path));
        } else if entry.file_type().unwrap().is_file() {
            files.push(path);
        }
    }
    files
}
