//! A Debian of its own with a systemd that runs as process 1, MariaDB's package and what `make
//! install` installs.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};

use crate::{
    ChildGuard, Process, Sandbox, Terminal, after, inspection, wait_until, wait_until_with,
};

/// The directory with MariaDB's packages, as `scripts/server-root` makes it.
const ROOT: &str = "IAM_KMS_SYSTEMD_ROOT";

/// What `make install DESTDIR=…` has made.
const INSTALLED: &str = "IAM_KMS_INSTALLED";

/// A machine that has not been booted.
pub struct Image {
    changes: PathBuf,
    name: String,
    layers: &'static [&'static str],
}

impl Image {
    /// Nothing is configured yet.
    pub fn new(sandbox: &Sandbox) -> Self {
        Self::of(sandbox, &[INSTALLED, ROOT])
    }

    /// Nothing of ours is installed.
    pub fn clean(sandbox: &Sandbox) -> Self {
        Self::of(sandbox, &[ROOT])
    }

    fn of(sandbox: &Sandbox, layers: &'static [&'static str]) -> Self {
        let changes = sandbox.directory("machine");
        let name = changes.parent().and_then(Path::file_name).unwrap();
        Self {
            name: name.to_string_lossy().into(),
            changes,
            layers,
        }
    }

    /// Writes a file, for root to read alone if `mode` says so.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, text: &str) -> Self {
        let file = self
            .changes
            .join("upper")
            .join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        self
    }

    /// Copies a file or folder of the host.
    #[must_use]
    pub fn copy(self, from: &Path, to: &str) -> Self {
        let to = self.changes.join("upper").join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let mut copy = Command::new("cp");
        copy.args(["--recursive", "--no-target-directory"])
            .arg(from)
            .arg(to);
        assert!(copy.status().unwrap().success(), "{copy:?}");
        self
    }

    /// Boots it, and returns when its systemd can be asked, also by way of D-Bus. Network and clock are the host's.
    pub fn boot(self) -> Machine {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/boot-root");
        let layer = |variable| std::env::var_os(variable).expect("`make test-systemd` sets it");
        let mut command = Command::new(script);
        command
            .arg(&self.name)
            .arg(&self.changes)
            .args(self.layers.iter().map(layer))
            .stdin(Stdio::null());
        let nspawn = Process::start(&mut command);
        let mut leader = None;
        wait_until("the container's systemd", || {
            leader = systemd_below(nspawn.pid());
            leader.is_some()
        });
        let machine = Machine {
            _nspawn: nspawn,
            leader: leader.unwrap(),
            name: self.name,
        };
        wait_until("systemd's answer", || {
            let mut question = machine.command(&["systemctl", "show-environment"]);
            let answers = question.output().unwrap().status.success();
            answers && machine.path("/run/dbus/system_bus_socket").exists()
        });
        machine
    }
}

fn systemd_below(nspawn: Pid) -> Option<Pid> {
    inspection::children(nspawn)
        .split_whitespace()
        .filter(|child| {
            let name = fs::read_to_string(format!("/proc/{child}/comm"));
            name.is_ok_and(|name| name.trim() == "systemd")
        })
        .find_map(|child| child.parse().ok().map(Pid::from_raw))
}

/// A booted machine; its power is cut when dropped.
pub struct Machine {
    leader: Pid,
    /// Ends after the machine, and is ended after it.
    _nspawn: Process,
    name: String,
}

impl Machine {
    /// A command of root's in it.
    pub fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--all", "--target", &self.leader.to_string(), "--"])
            .args(line)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell script of root's in it; returns what it prints.
    ///
    /// Panics if it fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.command(&["sh", "-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().into()
    }

    /// Its processes, by the host's numbers.
    pub fn processes(&self) -> Vec<Pid> {
        let of = |pid: Pid| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let numbers = fs::read_dir("/proc").unwrap();
        numbers
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .map(Pid::from_raw)
            .filter(|pid| of(*pid).is_some() && of(*pid) == of(self.leader))
            .collect()
    }

    /// The number of a user.
    pub fn user(&self, name: &str) -> Uid {
        Uid::from_raw(self.sh(&format!("id -u {name}")).parse().unwrap())
    }

    /// A command in the foreground of a terminal.
    pub fn start_in(&self, terminal: &Terminal, line: &[&str]) -> ChildGuard {
        let mut session = after(&["setsid", "--ctty"], &self.command(line));
        session
            .env("TERM", "dumb")
            .stdin(terminal.programs())
            .stdout(terminal.programs())
            .stderr(terminal.programs());
        ChildGuard::spawn(&mut session)
    }

    /// A file of it as a path of the host.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.leader)).join(path.trim_start_matches('/'))
    }

    /// A property of a unit, as `systemctl show` has it.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl show --property={name} --value {unit}"))
    }

    /// Waits until a property of a unit has this value.
    pub fn wait_for_property(&self, unit: &str, name: &str, value: &str) {
        self.wait_until(&format!("{name}={value}"), unit, || {
            self.property(unit, name) == value
        });
    }

    /// Looks at `condition` until it holds; a failure shows the journal of `unit`.
    pub fn wait_until(&self, what: &str, unit: &str, condition: impl FnMut() -> bool) {
        wait_until_with(what, || self.journal(unit), condition);
    }

    /// The lines of a unit, and of systemd about it, so far.
    pub fn journal(&self, unit: &str) -> String {
        self.sh(&format!(
            "journalctl --sync; journalctl --unit={unit} --output=cat"
        ))
    }

    /// All that the journal holds, with all fields.
    pub fn whole_journal(&self) -> String {
        self.sh("journalctl --sync; journalctl --output=export")
    }

    /// A unit's journal as it grows.
    pub fn follow_journal(&self, unit: &str) -> Process {
        let unit = format!("--unit={unit}");
        let line = [
            "journalctl",
            "--follow",
            "--lines=all",
            "--output=cat",
            &unit,
        ];
        Process::start(&mut self.command(&line))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel kills all the others with the first process.
        let _ = kill(self.leader, Signal::SIGKILL);
        for hierarchy in ["", "unified"] {
            let group = Path::new("/sys/fs/cgroup").join(hierarchy).join(&self.name);
            wait_until("the end of the container", || remove_control_group(&group));
        }
    }
}

/// Removes a control group and those below it; false if one is not empty.
fn remove_control_group(group: &Path) -> bool {
    let Ok(entries) = fs::read_dir(group) else {
        return true;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_control_group(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok()
}
