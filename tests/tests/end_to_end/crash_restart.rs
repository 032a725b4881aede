//! A restart without a person: the session in systemd's descriptor store, and what becomes of the
//! sockets that systemd passes beside it.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use broker_api::SessionPhase;
use end_to_end_tests::{
    Database, Manager, Process, SLEEP, Scene, Wrapper,
    broker::{failure, phase},
    inspection::{environment, status, variable},
    pass, wait_until, write_fifo,
};
use nix::{
    sys::signal::Signal::{SIGKILL, SIGSEGV},
    unistd::Pid,
};

/// The command line of `scene`, as a service of `manager`.
fn service(scene: &Scene, manager: &Manager, command: &[&str]) -> Command {
    let mut command = scene.command(command);
    command.env("NOTIFY_SOCKET", manager.address());
    command
}

/// A service that has been started with a code and then killed, its session in the store.
fn crashed(scene: &Scene) -> Manager {
    let mut manager = Manager::start(&scene.sandbox);
    let mut wrapper = scene.spawn(&mut service(scene, &manager, &SLEEP));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    assert!(manager.stored().is_some());
    wrapper.process.signal(SIGKILL);
    wrapper.process.wait();
    manager
}

/// Starts `command` and returns when it runs, without a code.
fn starts_without_a_code(scene: &Scene, command: &mut Command) -> Wrapper {
    let wrapper = scene.spawn(command);
    wrapper.wait_for_command("sleep");
    wrapper.process.wait_for("kept by systemd");
    let output = wrapper.process.output();
    assert!(!output.contains("waiting for"), "{output}");
    wrapper
}

/// What lies behind each descriptor of `pid`.
fn descriptors(pid: Pid) -> Vec<(i32, PathBuf)> {
    // Until then it loads its libraries, through descriptors of its own.
    wait_until("the command to sleep", || {
        status(pid, "State").starts_with('S')
    });
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut all: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let number = path.file_name()?.to_str()?.parse().ok()?;
            // A server closes some meanwhile.
            Some((number, fs::read_link(&path).ok()?))
        })
        .collect();
    all.sort();
    all
}

fn assert_no_trace_of_the_store(pid: Pid) {
    for (number, target) in descriptors(pid) {
        let target = target.display().to_string();
        assert!(!target.contains("memfd"), "{number}: {target}");
    }
    for (name, value) in environment(pid) {
        assert!(!value.contains("iam-kms-session"), "{name}={value}");
    }
}

#[test]
fn a_crash_within_the_session_needs_no_second_code() {
    let scene = Scene::new();
    let mut manager = Manager::start(&scene.sandbox);
    let mut command = service(&scene, &manager, &SLEEP);
    let mut wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    let session = variable(wrapper.process.pid(), "AWS_ACCESS_KEY_ID");
    assert_no_trace_of_the_store(wrapper.process.pid());
    for _ in 0..2 {
        wrapper.process.signal(SIGKILL);
        wrapper.process.wait();
        assert!(manager.stored().is_some());
        wrapper = starts_without_a_code(&scene, &mut manager.restart(&command));
        manager.wait_for("STATUS=Session open until ");
        let pid = wrapper.process.pid();
        assert_eq!(variable(pid, "AWS_ACCESS_KEY_ID"), session);
        assert_no_trace_of_the_store(pid);
        assert!(
            environment(pid)
                .iter()
                .all(|(name, _)| !name.starts_with("LISTEN_"))
        );
    }
    manager.wait_for("kept by systemd");
    assert_eq!(scene.aws.calls("GetSessionToken"), 1);
}

#[test]
fn what_is_stored_cannot_be_changed() {
    let scene = Scene::new();
    let mut manager = crashed(&scene);
    let stored = manager.stored().unwrap();
    let length = stored.metadata().unwrap().len();
    let refusals = [
        (&*stored).write(b"other").unwrap_err(),
        stored.set_len(0).unwrap_err(),
        stored.set_len(length + 1).unwrap_err(),
    ];
    for refusal in refusals {
        assert_eq!(refusal.kind(), ErrorKind::PermissionDenied);
    }
}

#[test]
fn a_restart_needs_neither_fifo_nor_sts() {
    let mut scene = Scene::new();
    let manager = crashed(&scene);
    let mut command = manager.restart(&scene.command(&SLEEP));
    scene.aws.stop();
    fs::remove_dir(scene.fifo().parent().unwrap()).unwrap();
    starts_without_a_code(&scene, &mut command);
}

/// The service asks for a code for this reason, and has the stored session replaced.
fn asks(scene: &Scene, manager: &mut Manager, command: &mut Command, why: &str) {
    let mut wrapper = scene.spawn(command);
    let line = wrapper.process.wait_for("the stored session is not used: ");
    assert!(line.contains(why), "{line}");
    wrapper.wait_for_fifo();
    assert!(manager.stored().is_none(), "{why}");
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    assert!(manager.stored().is_some(), "{why}");
    assert_no_trace_of_the_store(wrapper.process.pid());
    wrapper.process.signal(SIGKILL);
    wrapper.process.wait();
}

#[test]
fn a_session_with_too_little_left_is_removed_and_a_code_is_requested() {
    let scene = Scene::new().line("reuse_session_min_seconds = 129600");
    let mut manager = crashed(&scene);
    let mut command = manager.restart(&scene.command(&SLEEP));
    let why = "seconds, and reuse_session_min_seconds is 129600";
    asks(&scene, &mut manager, &mut command, why);
}

#[test]
fn a_session_that_has_ended_is_removed_and_a_code_is_requested() {
    let scene = Scene::with_aws(&["--session-lifetime", "1"]).line("reuse_session_min_seconds = 0");
    let mut manager = crashed(&scene);
    let ended = Instant::now() + Duration::from_secs(2);
    wait_until("the session to end", || Instant::now() > ended);
    let mut command = manager.restart(&scene.command(&SLEEP));
    asks(&scene, &mut manager, &mut command, "it ended at ");
}

#[test]
fn a_session_for_another_configuration_is_removed_and_a_code_asked_for() {
    for line in [
        "role_arn = arn:aws:iam::111122223333:role/mariadb",
        "region = eu-west-1",
    ] {
        let scene = Scene::new();
        let mut manager = crashed(&scene);
        let scene = scene.line(line);
        let wrapper = scene.spawn(&mut manager.restart(&scene.command(&SLEEP)));
        wrapper
            .process
            .wait_for("it was opened for another configuration");
        wrapper.wait_for_fifo();
        assert!(manager.stored().is_none());
    }
}

/// Python: F_ADD_SEALS, all four.
const SEALED: &str = "fcntl.fcntl(fd, 1033, 15)";

const NOT_OURS: &str = "it is not authenticated by the secret of the long-term key";

/// Whoever takes over the server's user can have a memory file sealed as ours is: by our own launcher, with
/// a key and an account of theirs.
#[test]
fn a_forged_session_is_refused_with_a_warning_and_a_code_asked_for() {
    let scene = Scene::new();
    let mut manager = crashed(&scene);
    let theirs = Scene::new();
    let mut forged = String::new();
    let mut stored = crashed(&theirs);
    let link = format!("/proc/self/fd/{}", stored.stored().unwrap().as_raw_fd());
    for byte in fs::read(link).unwrap() {
        forged.push_str(&format!("{byte:02x}"));
    }
    let setup = format!(
        "fd = os.memfd_create('iam-kms-session', os.MFD_ALLOW_SEALING)\n\
         os.write(fd, bytes.fromhex('{forged}')); {SEALED}\n{}",
        pass(&["fd"], &["iam-kms-session"])
    );
    let mut command = manager.restart_with(&setup, &scene.command(&SLEEP));
    asks(&scene, &mut manager, &mut command, NOT_OURS);
    let why = "replaced the session: look for a process that should not be there";
    let mut command = manager.restart_with(&setup, &scene.command(&SLEEP));
    asks(&scene, &mut manager, &mut command, why);
}

#[test]
fn another_long_term_key_wants_a_new_code() {
    let scene = Scene::new();
    let mut manager = crashed(&scene);
    let mut command = scene.command(&SLEEP);
    command.env("AWS_SECRET_ACCESS_KEY", "another");
    let wrapper = scene.spawn(&mut manager.restart(&command));
    wrapper.process.wait_for(NOT_OURS);
    wrapper.wait_for_fifo();
    assert!(manager.stored().is_none());
}

#[test]
fn without_a_long_term_key_no_session_is_kept_or_taken_back() {
    let scene = Scene::new();
    let mut manager = crashed(&scene);
    let document = scene.aws.session_document();
    let scene = scene.without("kms_mfa_id").line("mfa = elsewhere");
    let mut command = scene.command(&SLEEP);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let wrapper = scene.spawn(&mut manager.restart(&command));
    wrapper
        .process
        .wait_for("there is no long-term key to authenticate it");
    wrapper.wait_for_fifo();
    wrapper.write(document.as_bytes());
    wrapper
        .process
        .wait_for("the session is not stored for a restart");
    wrapper.wait_for_command("sleep");
    assert!(manager.stored().is_none());
}

#[test]
fn what_is_no_sealed_session_of_ours_is_removed_and_a_code_asked_for() {
    let scene = Scene::new();
    let mut manager = crashed(&scene);
    for (make, why) in [
        ("os.write(fd, good)".into(), "it is not sealed"),
        (
            format!("os.write(fd, good); os.fchown(fd, 65534, 65534); {SEALED}"),
            "it belongs to uid 65534",
        ),
        (
            format!("os.write(fd, b'\\1' + good[1:]); {SEALED}"),
            "it was stored by another release",
        ),
        (
            format!("os.write(fd, b'\\2\\xff\\xff\\xff\\xff'); {SEALED}"),
            "it is damaged (",
        ),
        (
            format!("os.write(fd, b'\\2\\xff\\xff\\xff\\xff' + b'\\xff' * 99); {SEALED}"),
            NOT_OURS,
        ),
        (format!("os.write(fd, good[:-1]); {SEALED}"), NOT_OURS),
        (format!("os.write(fd, good + good); {SEALED}"), NOT_OURS),
        (
            format!("os.write(fd, good[:-1] + bytes([good[-1] ^ 1])); {SEALED}"),
            NOT_OURS,
        ),
        (SEALED.into(), "it is damaged (the connection was closed)"),
        (
            "fd = os.open('/etc/hostname', os.O_RDONLY)".into(),
            "it is not sealed",
        ),
        (
            "fd = socket.socket(socket.AF_UNIX).detach()".into(),
            "it cannot be opened",
        ),
        ("fd = os.pipe()[0]".into(), "it is not sealed"),
    ] {
        let setup = format!(
            "good = os.read(stored, 10000)\nfd = os.memfd_create('x', os.MFD_ALLOW_SEALING)\n\
             {make}\n{}",
            pass(&["fd"], &["iam-kms-session"])
        );
        let mut command = manager.restart_with(&setup, &scene.command(&SLEEP));
        asks(&scene, &mut manager, &mut command, why);
    }
}

/// Python that makes two listening sockets and prints their inodes.
const TWO_SOCKETS: &str = "one, two = socket.socket(), socket.socket()\n\
    one.listen(); two.listen()\n\
    print('inodes', os.fstat(one.fileno()).st_ino, os.fstat(two.fileno()).st_ino, flush=True)\n";

fn inodes(wrapper: &Wrapper) -> Vec<PathBuf> {
    let line = wrapper.process.wait_for("inodes ");
    let numbers = line.split(' ').skip(1);
    numbers
        .map(|inode| format!("socket:[{inode}]").into())
        .collect()
}

#[test]
fn sockets_move_down_to_3_and_keep_their_order_and_names() {
    let scene = Scene::new();
    let manager = crashed(&scene);
    let orders = [
        (
            ["one.fileno()", "two.fileno()", "stored"],
            ["a", "b", "iam-kms-session"],
        ),
        (
            ["one.fileno()", "stored", "two.fileno()"],
            ["a", "iam-kms-session", "b"],
        ),
        (
            ["stored", "one.fileno()", "two.fileno()"],
            ["iam-kms-session", "a", "b"],
        ),
    ];
    for (passed, names) in orders {
        let setup = format!("{TWO_SOCKETS}{}", pass(&passed, &names));
        let mut command = manager.restart_with(&setup, &scene.command(&SLEEP));
        let wrapper = starts_without_a_code(&scene, &mut command);
        let pid = wrapper.process.pid();
        let sockets: Vec<_> = (3..).zip(inodes(&wrapper)).collect();
        assert_eq!(descriptors(pid)[3..], sockets, "{names:?}");
        assert_eq!(variable(pid, "LISTEN_FDS"), "2");
        assert_eq!(variable(pid, "LISTEN_FDNAMES"), "a:b");
        assert_eq!(variable(pid, "LISTEN_PID"), pid.to_string());
        assert_no_trace_of_the_store(pid);
    }
}

#[test]
fn sockets_without_a_stored_session_pass_on_as_they_are() {
    let scene = Scene::new();
    let manager = crashed(&scene);
    let setup = format!(
        "{TWO_SOCKETS}{}",
        pass(&["one.fileno()", "two.fileno()"], &["a", "b"])
    );
    let wrapper = scene.spawn(&mut manager.restart_with(&setup, &scene.command(&SLEEP)));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    let pid = wrapper.process.pid();
    let sockets: Vec<_> = (3..).zip(inodes(&wrapper)).collect();
    assert_eq!(descriptors(pid)[3..], sockets);
    assert_eq!(variable(pid, "LISTEN_FDS"), "2");
    assert_eq!(variable(pid, "LISTEN_FDNAMES"), "a:b");
}

#[test]
fn descriptors_of_another_process_are_left_alone() {
    let scene = Scene::new();
    let manager = crashed(&scene);
    let setup = format!(
        "{}\nos.environ['LISTEN_PID'] = '1'",
        pass(&["stored"], &["iam-kms-session"])
    );
    let wrapper = scene.spawn(&mut manager.restart_with(&setup, &scene.command(&SLEEP)));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    assert_eq!(variable(wrapper.process.pid(), "LISTEN_PID"), "1");
}

#[test]
fn a_session_that_needs_no_person_is_not_stored() {
    let scene = Scene::new().without("kms_mfa_id").line("mfa = false");
    let mut manager = Manager::start(&scene.sandbox);
    let wrapper = scene.spawn(&mut service(&scene, &manager, &SLEEP));
    wrapper.wait_for_command("sleep");
    manager.wait_for("STATUS=");
    assert!(
        manager
            .heard()
            .iter()
            .all(|heard| !heard.contains("FDSTORE"))
    );
}

#[test]
fn mariadbd_killed_starts_again_without_a_code_at_the_socket_that_systemd_holds() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=FORCE"]);
    let mut manager = Manager::start(&scene.sandbox);
    let mut command = scene.database_command(&database);
    command.env("NOTIFY_SOCKET", manager.address());
    let mut server = scene.spawn_database(&mut command, &database);
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (a INT) ENGINE=InnoDB; INSERT INTO d.t VALUES (7)",
    );
    assert!(manager.stored().is_some());
    server.process.signal(SIGSEGV);
    server.process.wait();

    let setup = format!(
        "path = {:?}\nif os.path.exists(path): os.unlink(path)\n\
         mariadb = socket.socket(socket.AF_UNIX); mariadb.bind(path); mariadb.listen()\n{}",
        database.socket,
        pass(
            &["stored", "mariadb.fileno()"],
            &["iam-kms-session", "mariadb.socket"]
        )
    );
    let server = scene.spawn(&mut manager.restart_with(&setup, &command));
    database.wait_until_ready(&server.process);
    let output = server.process.output();
    assert!(!output.contains("waiting for"), "{output}");
    assert_eq!(database.sql("SELECT a FROM d.t").trim(), "7");
    assert_eq!(phase(&scene), SessionPhase::Open);
    assert_no_trace_of_the_store(server.process.pid());
    assert_eq!(scene.aws.calls("GetSessionToken"), 1);
}

#[test]
fn the_broker_replaces_the_stored_session_by_the_refreshed_one() {
    let mut scene = Scene::with_aws(&["--session-lifetime", "1"]).with_broker();
    let mut manager = Manager::start(&scene.sandbox);
    let mut wrapper = scene.spawn(&mut service(&scene, &manager, &SLEEP));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    wrapper.process.wait_for("the AWS session ended at ");
    assert!(manager.stored().is_none(), "the session is over");
    let endpoint = scene.aws.endpoint();
    scene.aws.serve_again(&endpoint, &[]);
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    let opened = wrapper.process.wait_for("iam-kms-broker: session ASIA");
    assert!(manager.stored().is_some());
    wrapper.process.signal(SIGKILL);
    wrapper.process.wait();

    let wrapper = starts_without_a_code(&scene, &mut manager.restart(&scene.command(&SLEEP)));
    let session = |line: &str| line.split(' ').nth(2).unwrap().to_owned();
    let kept = wrapper.process.wait_for("kept by systemd");
    assert_eq!(session(&kept), session(&opened));
    assert_eq!(phase(&scene), SessionPhase::Open);
}

#[test]
fn a_session_that_kms_takes_for_ended_is_removed_from_the_store() {
    let scene = Scene::with_aws(&["--session-lifetime", "300"]).with_broker();
    let mut manager = Manager::start(&scene.sandbox);
    let wrapper = scene.spawn(&mut service(&scene, &manager, &SLEEP));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    assert!(manager.stored().is_some());
    // This host's clock says that there are minutes left.
    scene.aws.set_clock("360");
    failure(&scene);
    wrapper.process.wait_for("the AWS session ended at ");
    assert!(manager.stored().is_none());
}

#[test]
fn a_broker_alone_takes_its_session_back() {
    let scene = Scene::new().with_broker();
    let mut manager = Manager::start(&scene.sandbox);
    let mut command = scene.broker_command();
    command.env("NOTIFY_SOCKET", manager.address());
    let mut broker = Process::start(&mut command);
    broker.wait_for("enter an MFA code");
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    broker.wait_for("is open until");
    assert!(manager.stored().is_some());
    broker.signal(SIGKILL);
    broker.wait();

    let broker = Process::start(&mut manager.restart(&scene.broker_command()));
    broker.wait_for("kept by systemd");
    broker.wait_for("listening on");
    assert_eq!(phase(&scene), SessionPhase::Open);
    let output = broker.output();
    assert!(!output.contains("enter an MFA code"), "{output}");
}
