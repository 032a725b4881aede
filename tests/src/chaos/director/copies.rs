//! Copies of the data: backups under load, and a copy without the key files that are called not
//! needed. Each is started and compared.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal::SIGTERM;

use super::Director;
use crate::{
    Checked, Database, Process, backup_command_line, backup_succeeded,
    chaos::{
        messages,
        reading::read_table,
        shadow::{Snapshot, compare},
    },
    command, key_files,
};

/// A program that reads or writes all of the data.
const TOOL_BOUND: Duration = Duration::from_secs(240);

impl Director<'_> {
    /// Runs a program to its end.
    fn run_tool(
        &mut self,
        what: &str,
        command: &mut Command,
    ) -> (std::process::ExitStatus, String) {
        self.world.note(what);
        let _under_way = self.world.watch.begin(what, TOOL_BOUND);
        let mut process = Process::start(command);
        self.world.watch.follow("tool", process.pid());
        let result = process.finish();
        self.world.watch.forget("tool");
        result
    }

    /// `kms-data-keys verify` or `rewrap` of the running server's keys.
    pub(in crate::chaos) fn run_data_keys(&mut self, subcommand: &str) {
        let (mut arguments, what) = match subcommand {
            "verify" => (vec!["verify".to_owned()], "verify"),
            _ => {
                let to = self.master_keys[self.random.usize(0..self.master_keys.len())].clone();
                (vec!["rewrap".into(), format!("--to={to}")], "rewrap")
            }
        };
        if subcommand == "verify" && self.random.bool() {
            let socket = self.scene.configuration.broker_socket.display();
            arguments.push(format!("--broker-socket={socket}"));
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let datadir = self.world.datadir();
        let mut command = self
            .scene
            .aws
            .data_keys_command("bin", &arguments, &datadir);
        let (status, output) = self.run_tool(&format!("kms-data-keys {arguments:?}"), &mut command);
        assert!(
            status.success(),
            "kms-data-keys {arguments:?}: {status}\n{output}"
        );
        self.world.tally.count("checks", what);
    }

    /// Backs the running server up, prepares and starts the backup, and compares it with what was
    /// committed while it was taken.
    pub(in crate::chaos) fn back_up(&mut self, with_increment: bool) {
        self.backups += 1;
        let target = self.scene.sandbox.path(&format!("backup-{}", self.backups));
        let increment = target.with_extension("increment");
        let mut before = self.world.shadow.snapshot();
        let mut began = SystemTime::now();
        self.take_backup(&target, None);
        if with_increment {
            let pause = self.random.u64(100..1500);
            self.world.pause(Duration::from_millis(pause));
            before = self.world.shadow.snapshot();
            began = SystemTime::now();
            self.take_backup(&increment, Some(&target));
        }
        let after = self.world.shadow.snapshot();
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let of_target = option("target-dir", &target);
        let (status, output) = self.backup_program(&["--prepare", &of_target]);
        assert!(backup_succeeded(status, &output), "{status}\n{output}");
        if with_increment {
            let of_increment = option("incremental-dir", &increment);
            let (status, output) = self.backup_program(&["--prepare", &of_target, &of_increment]);
            if messages::is_failure_of_increment(status.signal().is_some(), &output) {
                self.keep_log("failure-of-mariadb-backup", &output);
                self.world.tally.count(
                    "copies",
                    "increments at which mariadb-backup failed by itself",
                );
                self.remove(&target);
                self.remove(&increment);
                return;
            }
            assert!(backup_succeeded(status, &output), "{status}\n{output}");
        }
        self.scan(&target);
        let restored = self.database.on_datadir(&target);
        let log = self.start_and_compare(&restored, &before, &after);
        self.check_log_of_restored(&target, began, &log);
        self.world.tally.count(
            "copies",
            if with_increment {
                "incremental backups"
            } else {
                "full backups"
            },
        );
        self.remove(&target);
        if with_increment {
            self.remove(&increment);
        }
    }

    /// mariadb-backup lists the key files before it copies them and the manifest. A version that is made
    /// meanwhile is then in the manifest without its file: no page in the backup needs it, and the server
    /// says that it is missing.
    fn check_log_of_restored(&self, target: &Path, began: SystemTime, log: &str) {
        let made_meanwhile: Vec<_> = key_files(&self.database.datadir)
            .into_iter()
            .filter(|name| {
                let metadata = fs::metadata(self.database.datadir.join(name)).unwrap();
                !target.join(name).exists() && metadata.modified().unwrap() >= began
            })
            .map(|name| format!("{name} is missing in"))
            .collect();
        let rest: Vec<_> = log
            .lines()
            .filter(|line| !made_meanwhile.iter().any(|text| line.contains(text)))
            .collect();
        self.check_log("the log of a restored backup", &rest.join("\n"), false);
    }

    /// Backs the running server up, and tries again where mariadb-backup meets a DROP TABLE.
    fn take_backup(&mut self, target: &Path, base: Option<&Path>) {
        let mut arguments = vec![
            "--backup".to_owned(),
            "--user=root".into(),
            format!("--target-dir={}", target.display()),
            format!("--socket={}", self.database.socket.display()),
        ];
        if let Some(base) = base {
            arguments.push(format!("--incremental-basedir={}", base.display()));
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        loop {
            let (status, output) = self.backup_program(&arguments);
            if backup_succeeded(status, &output) {
                return;
            }
            assert!(messages::is_race_with_drop(&output), "{status}\n{output}");
            self.world
                .tally
                .count("copies", "begun again, because a table was dropped");
            // It may not have been made yet.
            if target.exists() {
                fs::remove_dir_all(target).unwrap();
            }
        }
    }

    fn backup_program(&mut self, arguments: &[&str]) -> (std::process::ExitStatus, String) {
        let line = backup_command_line(arguments);
        let what = format!("mariadb-backup {}", arguments.join(" "));
        self.run_tool(&what, &mut command(&line))
    }

    /// Starts a server on a copy, compares, and stops it. Returns its log.
    fn start_and_compare(
        &mut self,
        copy: &Database,
        before: &Snapshot,
        after: &Snapshot,
    ) -> String {
        self.world.note(format!("start {}", copy.datadir.display()));
        let _under_way = self.world.watch.begin("a server on a copy", TOOL_BOUND);
        let mut server = Process::start(&mut copy.command());
        self.world.watch.follow("server-on-copy", server.pid());
        copy.wait_until_ready(&server);
        let result = compare(before, after, |number, kind| {
            let found = read_table(&copy.socket, number, kind);
            found.unwrap_or_else(|error| panic!("t{number}: {}\n{}", error.text, server.output()))
        });
        match result {
            Ok(rows) => self.world.tally.add("copies", "rows verified", rows),
            Err(differences) => panic!(
                "{}: {}\n{}",
                copy.datadir.display(),
                differences.join("\n"),
                server.output()
            ),
        }
        copy.read_binary_logs();
        self.world.watch.forget("server-on-copy");
        server.signal(SIGTERM);
        let (status, output) = server.finish();
        assert!(status.success(), "{status}\n{output}");
        self.keep_log("copy", &output);
        output
    }

    /// The stopped server's files: what `check` calls not needed is left out of a copy, or all key files
    /// if there is a key store, which has each of them. The copy is started and compared.
    pub(in crate::chaos) fn check_and_copy(&mut self) {
        let datadir = self.database.datadir.clone();
        self.world.note("kms-data-keys check");
        let checked = Checked::of(&[&datadir]);
        checked.assert_exit_code(0);
        self.world.tally.count("checks", "check");
        let copied = self.scene.sandbox.path("copy");
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(&datadir).arg(&copied);
        let (status, output) = self.run_tool("copy the data directory", &mut copy);
        assert!(status.success(), "{output}");
        let files = key_files(&datadir);
        if let Some(store) = self.store {
            let stored = store.names();
            for name in &files {
                let object = name
                    .trim_start_matches("aws-kms-key.")
                    .replacen('.', "/", 1);
                assert!(stored.contains(&object), "{name} is not in the key store");
            }
            self.world
                .tally
                .add("checks", "keys in the key store", files.len() as u64);
        }
        let not_needed: Vec<_> = files
            .iter()
            .filter(|name| self.store.is_some() || checked.calls_not_needed(&datadir.join(name)))
            .collect();
        for name in &not_needed {
            fs::remove_file(copied.join(name)).unwrap();
        }
        let tally = &self.world.tally;
        tally.add("copies", "key files left out", not_needed.len() as u64);
        self.ensure_service();
        let snapshot = self.world.shadow.snapshot();
        let other = self.database.on_datadir(&copied);
        let log = self.start_and_compare(&other, &snapshot, &snapshot);
        // It may say which of them it misses, as long as it reads everything.
        let wrong: Vec<_> = messages::wrong_lines(&log, false)
            .into_iter()
            .filter(|line| !not_needed.iter().any(|name| line.contains(*name)))
            .collect();
        assert_eq!(
            wrong, [""; 0],
            "a server without what check calls not needed"
        );
        self.world
            .tally
            .count("copies", "without what is not needed");
        self.remove(&copied);
    }

    fn remove(&self, directory: &PathBuf) {
        fs::remove_dir_all(directory).unwrap();
        let tmpdir = directory.with_extension("tmp");
        if tmpdir.exists() {
            fs::remove_dir_all(tmpdir).unwrap();
        }
    }
}
