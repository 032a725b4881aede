//! What the memory of broker and `kms-data-keys` holds of data keys: while they live, and when they end.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use broker_api::Reply;
use end_to_end_tests::{
    Process, Scene,
    broker::{ask, broker_pid, decrypt},
    dist, inspection,
    inspection::wait_until_disconnected,
    traces_in_memory, wait_until, write_fifo,
};
use nix::{sys::signal::Signal::SIGTERM, unistd::Pid};

/// Data keys of 32 bytes, and the same in base64, as KMS sends them.
struct Keys {
    raw: Vec<Vec<u8>>,
    base64: Vec<String>,
}

impl Keys {
    /// New ones, each of which the broker has unwrapped.
    fn unwrapped_by_broker(scene: &Scene) -> Self {
        let file = scene.sandbox.path("wrapped");
        Self::wrapped(
            scene,
            |_| file.clone(),
            |key| {
                let reply = ask(scene, &decrypt(fs::read(&file).unwrap()));
                let Reply::Decrypted { key: unwrapped, .. } = reply else {
                    panic!("{reply:?}");
                };
                assert_eq!(unwrapped.expose(), key);
            },
        )
    }

    /// New ones, each wrapped into a file and then used.
    fn wrapped(
        scene: &Scene,
        file: impl Fn(u32) -> PathBuf,
        mut use_key: impl FnMut(&[u8]),
    ) -> Self {
        let mut keys = Self {
            raw: Vec::new(),
            base64: Vec::new(),
        };
        for number in 1..=20 {
            let key: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
                .take(32)
                .collect();
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            scene.aws.wrap_key(&scene.sandbox, &hex, &file(number));
            use_key(&key);
            let mut encode = Command::new("sh");
            encode.args(["-c", &format!("printf {hex} | xxd -r -p | base64")]);
            let base64 = String::from_utf8(encode.output().unwrap().stdout).unwrap();
            keys.base64
                .push(base64.trim_end_matches(['=', '\n']).into());
            keys.raw.push(key);
        }
        keys
    }

    fn traces_of_raw(&self, pid: Pid) -> Vec<String> {
        let secrets: Vec<_> = self.raw.iter().map(|key| ("a key", &key[..])).collect();
        traces_in_memory(pid, &secrets)
    }

    fn traces_of_base64(&self, pid: Pid) -> Vec<String> {
        let texts = self.base64.iter();
        let secrets: Vec<_> = texts.map(|text| ("base64", text.as_bytes())).collect();
        traces_in_memory(pid, &secrets)
    }
}

/// A gdb that stops a program where it ends, until [`let_end`].
fn stopping_at_exit(scene: &Scene, commands: &[&str]) -> Command {
    let wait = format!(
        "shell touch {}; while [ ! -e {} ]; do sleep 0.05; done",
        stopped(scene).display(),
        scene.sandbox.path("go-on").display()
    );
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set auto-solib-add off"])
        .args(["-ex", "set startup-with-shell off"])
        .args(["-ex", "catch syscall exit_group"]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    gdb.args(["-ex", &wait]);
    gdb
}

/// What is there when the program has been stopped.
fn stopped(scene: &Scene) -> PathBuf {
    scene.sandbox.path("stopped")
}

fn let_end(scene: &Scene, gdb: &mut Process) {
    scene.sandbox.write("go-on", "");
    gdb.wait();
}

fn keys_are_wiped(scene: &Scene, broker: &Process) {
    let keys = Keys::unwrapped_by_broker(scene);
    let pid = broker_pid(scene);
    // The control: they are kept, and the search finds what is there.
    assert_eq!(keys.traces_of_raw(pid), ["a key"]);
    wait_until("no base64 of a key", || {
        keys.traces_of_base64(pid).is_empty()
    });

    let last = Keys::unwrapped_by_broker(scene);
    let mut gdb = stopping_at_exit(scene, &["echo attached\\n", "continue"]);
    let mut gdb = Process::start(gdb.args(["-p", &pid.to_string()]));
    gdb.wait_for("attached");
    broker.signal(SIGTERM);
    wait_until("the end of the broker", || stopped(scene).exists());
    for keys in [&keys, &last] {
        assert!(keys.traces_of_raw(pid).is_empty());
        assert!(keys.traces_of_base64(pid).is_empty());
    }
    let_end(scene, &mut gdb);
}

#[test]
fn kms_data_keys_leaves_none_when_it_has_exported_them() {
    let scene = Scene::new();
    let directory = scene.sandbox.directory("keys");
    let file = |id: u32| directory.join(format!("aws-kms-key.{id}.1"));
    let keys = Keys::wrapped(&scene, file, |_| {});
    let password = scene.sandbox.write("password", "of the exported file\n");
    let exported = scene.sandbox.path("exported");
    let mut gdb = stopping_at_exit(&scene, &["run"]);
    gdb.arg("--args")
        .arg(dist("bin/kms-data-keys"))
        .args(["export", "--format=sha1", "--output"])
        .args([&exported, &directory].map(|path: &PathBuf| path.as_path()))
        .arg(format!("--password-file={}", password.display()))
        .env("AWS_ENDPOINT_URL", scene.aws.endpoint())
        .env("AWS_SHARED_CREDENTIALS_FILE", scene.aws.path("credentials"));
    let mut gdb = Process::start(&mut gdb);
    wait_until("the end of kms-data-keys", || stopped(&scene).exists());
    assert!(exported.exists(), "{}", gdb.output());
    let children = inspection::children(gdb.pid());
    let program = children.split_whitespace().find(|child| {
        let exe = fs::read_link(format!("/proc/{child}/exe")).unwrap_or_default();
        exe.file_name() == Path::new("kms-data-keys").file_name()
    });
    let pid = Pid::from_raw(program.unwrap().parse().unwrap());
    // The control: the search finds what is there.
    let argument = exported.as_os_str().as_bytes();
    assert_eq!(
        traces_in_memory(pid, &[("an argument", argument)]),
        ["an argument"]
    );
    assert!(keys.traces_of_raw(pid).is_empty());
    assert!(keys.traces_of_base64(pid).is_empty());
    let_end(&scene, &mut gdb);
}

#[test]
fn neither_keys_nor_their_base64_are_left_when_the_broker_ends() {
    let scene = Scene::new().with_broker();
    let broker = scene.start_broker();
    keys_are_wiped(&scene, &broker);
}

#[test]
fn nor_where_kms_is_asked_over_tls() {
    let mut scene = Scene::new().with_broker();
    let [certificate, key] = scene.make_certificate();
    let endpoint = scene.aws.endpoint();
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    scene.aws.serve_again(&endpoint, &tls);
    scene.aws.trust(&certificate);
    let mut command = scene.broker_command();
    let broker = Process::start(command.env("SSL_CERT_FILE", &certificate));
    broker.wait_for("enter an MFA code");
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    broker.wait_for("is open until");
    keys_are_wiped(&scene, &broker);
}

#[test]
fn an_idle_broker_holds_no_connection_with_the_last_answer_in_its_buffers() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    Keys::unwrapped_by_broker(&scene);
    wait_until_disconnected(broker_pid(&scene));
}
