//! What another process of the server's user sees of launcher and broker while they start.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    process::Command,
};

use end_to_end_tests::{NOBODY, Process, Scene, after, set_user, wait_until};
use nix::sys::signal::SIGKILL;

/// The programs with `mode`, started again and again beside an onlooker of their user with the same
/// ambient capability, which mariadb.service gives to all processes of the server.
struct Starts {
    scene: Scene,
    program: PathBuf,
    onlooker: Process,
}

impl Starts {
    fn of(name: &str, mode: u32) -> Self {
        let scene = Scene::new().with_broker();
        let program = scene.copy_programs(&[name, "iam-kms-broker"]);
        for copy in [&program, &program.with_file_name("iam-kms-broker")] {
            fs::set_permissions(copy, PermissionsExt::from_mode(mode)).unwrap();
        }
        let onlooker = scene.sandbox.directory("onlooker").join("onlooker");
        let mut copy = Command::new("install");
        copy.args(["-m", "755", env!("CARGO_BIN_EXE_onlooker")])
            .arg(&onlooker);
        assert!(copy.status().unwrap().success());
        let mut look = as_the_servers_user(&Command::new(&onlooker));
        look.arg(program.parent().unwrap());
        let onlooker = Process::start(&mut look);
        onlooker.wait_for("looking");
        chown(scene.fifo().parent().unwrap(), Some(NOBODY), Some(NOBODY)).unwrap();
        Self {
            scene,
            program,
            onlooker,
        }
    }

    /// Starts the program, with the long-term key in its environment, up to where it waits for a code.
    fn start(&self) {
        let line = self.scene.command(&["true"]);
        let mut command = Command::new(&self.program);
        let arguments = line.get_args().take(1);
        command.args(arguments);
        if self.program.ends_with("iam-kms-wrapper") {
            command.arg("true");
        }
        command.env_clear();
        for (name, value) in line.get_envs() {
            command.env(name, value.unwrap());
        }
        let mut process = Process::start(&mut as_the_servers_user(&command));
        process.wait_for("MFA code");
        process.signal(SIGKILL);
        process.wait();
    }
}

fn as_the_servers_user(command: &Command) -> Command {
    let mut prefix = set_user(NOBODY);
    let capability = ["--inh-caps=+ipc_lock", "--ambient-caps=+ipc_lock"];
    prefix.splice(1..1, capability.map(String::from));
    let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
    let mut command = after(&prefix, command);
    command.current_dir("/");
    command
}

#[test]
fn no_process_of_the_same_user_can_look_into_launcher_or_broker_at_any_moment() {
    for name in ["iam-kms-wrapper", "iam-kms-broker"] {
        let starts = Starts::of(name, 0o711);
        for _ in 0..50 {
            starts.start();
        }
        assert_eq!(starts.onlooker.output(), "looking", "{name}");
    }
}

#[test]
fn if_their_user_could_read_the_programs_such_a_process_would_find_what_they_hold() {
    let starts = Starts::of("iam-kms-wrapper", 0o755);
    wait_until("a look into the launcher", || {
        starts.start();
        starts.onlooker.output().contains("could read environ")
    });
}
