//! Broker and launcher without threads, descriptors or memory for some time.

use std::{fs, path::Path, process::Command};

use broker_api::{Failure, FailureKind, Reply, Request, SessionPhase};
use end_to_end_tests::{
    Process, SLEEP, Sandbox, Scene, StoreDirectory, after_python,
    broker::{self, Peer, broker_pid, failure, generated, phase},
    inspection,
    inspection::wait_until_disconnected,
    key_server::{Authority, DAY, KeyServer, configure_upstream, make_key},
    variables_of, wait_until, write_fifo,
};
use nix::{sys::signal::Signal::SIGTERM, unistd::Pid};

/// A user that has no other process on this host: its processes and threads are counted.
const LONELY: u32 = 3117;

/// Sets the soft limit of a running process, as prlimit(1) has it. As its user: root in a container may
/// not.
fn limit(pid: Pid, limit: &str) {
    let user = |field| {
        let numbers = inspection::status(pid, field);
        numbers.split_whitespace().next().unwrap().to_owned()
    };
    let mut prlimit = Command::new("setpriv");
    prlimit
        .args(["--reuid", &user("Uid"), "--regid", &user("Gid")])
        .args(["--clear-groups", "prlimit"])
        .args(["--pid", &pid.to_string(), limit]);
    assert!(prlimit.status().unwrap().success(), "{prlimit:?}");
}

/// AWS by a name that must be looked up.
fn by_name(scene: &Scene) -> String {
    scene.aws.endpoint().replace("127.0.0.1", "localhost")
}

/// What is to be run without privileges, which no limit of processes holds up.
fn as_lonely(scene: &Scene, command: &Command) -> Command {
    for file in [scene.fifo().parent().unwrap(), &scene.sandbox.path("")] {
        std::os::unix::fs::chown(file, Some(LONELY), Some(LONELY)).unwrap();
    }
    let setup = format!("os.setgroups([]); os.setgid({LONELY}); os.setuid({LONELY})");
    after_python(&setup, command)
}

/// The same command line, with a copy of `program` that every user can reach.
fn copied(scene: &Scene, program: &str, template: &Command) -> Command {
    let mut command = Command::new(scene.copy_programs(&[program]));
    command
        .args(template.get_args())
        .env_clear()
        .envs(variables_of(template));
    command.env("AWS_ENDPOINT_URL", by_name(scene));
    command
}

fn lonely_broker(scene: &Scene) -> Process {
    let command = copied(scene, "iam-kms-broker", &scene.broker_command());
    let broker = Process::start(&mut as_lonely(scene, &command));
    broker.wait_for("enter an MFA code");
    broker
}

fn give_code(scene: &Scene) {
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
}

#[test]
fn a_broker_without_threads_says_so_keeps_the_code_and_continues_when_there_are_some() {
    let scene = Scene::new().with_broker();
    let broker = lonely_broker(&scene);
    limit(broker.pid(), "--nproc=1:");
    give_code(&scene);
    let line = broker.wait_for("cannot start a thread for a DNS look-up");
    assert!(line.contains("the code will be sent again"), "{line}");
    assert!(scene.fifo().exists());
    limit(broker.pid(), "--nproc=1000:");
    broker.wait_for("is open until");
    generated(&scene);

    // Without threads, but with a session: calls fail with the reason, and later they do not.
    wait_until_disconnected(broker.pid());
    limit(broker.pid(), "--nproc=1:");
    let refused = failure(&scene);
    assert_unavailable(&refused, "cannot start a thread");
    assert_eq!(phase(&scene), SessionPhase::Open);
    limit(broker.pid(), "--nproc=1000:");
    generated(&scene);
    ends_well(broker);
}

/// Makes the user of the broker the owner of what its configuration names.
fn give_to_lonely(path: &Path) {
    let status = Command::new("chown")
        .args(["-R", &format!("{LONELY}:{LONELY}")])
        .arg(path)
        .status();
    assert!(status.unwrap().success());
}

/// In the thread that serves everybody, too: it checks the key store when a session has been opened.
#[test]
fn a_broker_with_a_key_store_in_a_directory_serves_it_without_a_further_thread() {
    let scene = Scene::new().with_broker();
    let store = StoreDirectory::new(&scene.sandbox);
    let scene = scene.line(&format!("key_store = {}", store.location()));
    give_to_lonely(store.path());
    let broker = lonely_broker(&scene);
    let document = scene.aws.session_document();
    limit(broker.pid(), "--nproc=1:");
    write_fifo(scene.fifo(), document.as_bytes());
    broker.wait_for("the key store ");
    broker.wait_for("can be used; it has 0 key versions");
    let list = Request::ListKeys(broker_api::ListKeys {
        context: broker_api::KeyContext::default(),
        after: None,
    });
    let listed = broker::ask(&scene, &list);
    assert!(matches!(listed, Reply::KeyList { .. }), "{listed:?}");
    // KMS is called by its name.
    let refused = broker::ask(&scene, &make_key(1, "alias/mariadb"));
    let Reply::Failed(refused) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        refused.message.contains("cannot start a thread"),
        "{}",
        refused.message
    );
    limit(broker.pid(), "--nproc=1000:");
    let made = broker::ask(&scene, &make_key(1, "alias/mariadb"));
    assert!(
        matches!(made, Reply::Stored { key: Some(_), .. }),
        "{made:?}"
    );
    ends_well(broker);
}

#[test]
fn a_broker_of_a_database_host_without_threads_says_so_and_continues_when_there_are_some() {
    let scene = Scene::new();
    let store = StoreDirectory::new(&scene.sandbox);
    let authority = Authority::new(scene.sandbox.directory("authority"));
    let tls = authority.issue("keys1", &["localhost"], DAY);
    let sections = "[client \"db1.example\"]\nkey_ids = 1-99\nmay_make = true";
    let mut server = KeyServer::new(&scene.aws, &store, tls, sections);
    server.start(&scene.aws);
    server.unlock(&scene.aws);
    let sandbox = Sandbox::new();
    let tls = authority.issue("db1", &["db1.example"], DAY);
    let address = format!("localhost:{}", server.port);
    let socket = configure_upstream(&sandbox, &[address], &tls);
    give_to_lonely(&sandbox.path(""));
    give_to_lonely(&scene.sandbox.path("authority"));
    let mut command = Command::new("iam-kms-broker");
    command.arg(format!(
        "--config={}",
        sandbox.path("broker.config").display()
    ));
    let command = copied(&scene, "iam-kms-broker", &command);
    let broker = Process::start(&mut as_lonely(&scene, &command));
    broker.wait_for("listening on");
    limit(broker.pid(), "--nproc=1:");
    let ask = |request: &Request| Peer::connect(&socket).ask(request);
    let Reply::Failed(refused) = ask(&make_key(1, "")) else {
        panic!("it was served");
    };
    assert_unavailable(&refused, "cannot start a thread for a DNS look-up");
    let state = ask(&Request::Session);
    assert!(matches!(state, Reply::Session(_)), "{state:?}");
    limit(broker.pid(), "--nproc=1000:");
    let made = ask(&make_key(1, ""));
    assert!(matches!(made, Reply::Stored { .. }), "{made:?}");
    ends_well(broker);
}

/// A failure that may pass, with `reason` in its message.
fn assert_unavailable(failure: &Failure, reason: &str) {
    let message = &failure.message;
    assert_eq!(failure.kind, FailureKind::Unavailable, "{message}");
    assert!(message.contains(reason), "{message}");
}

/// Ends with 0 on SIGTERM.
fn ends_well(mut broker: Process) {
    broker.signal(SIGTERM);
    let (status, output) = broker.finish();
    assert_eq!(status.code(), Some(0), "{output}");
}

#[test]
fn a_broker_that_renews_its_session_by_itself_continues_to_do_so_after_a_failure() {
    let scene = Scene::with_machine_role("6");
    let mut command = scene.broker_command();
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env_remove("AWS_EC2_METADATA_DISABLED")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", by_name(&scene));
    let command = copied(&scene, "iam-kms-broker", &command);
    let broker = Process::start(&mut as_lonely(&scene, &command));
    broker.wait_for("listening on");
    broker.wait_for("is open until");
    limit(broker.pid(), "--nproc=1:");
    broker.wait_for("cannot get a new AWS session: ");
    wait_until("the end of the session", || {
        phase(&scene) != SessionPhase::Open
    });
    limit(broker.pid(), "--nproc=1000:");
    wait_until("a session", || phase(&scene) == SessionPhase::Open);
    ends_well(broker);
}

#[test]
fn a_wrapper_without_descriptors_keeps_the_code_and_continues_when_there_are_some() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    // Not one more, whichever are free: neither for the FIFO, which is opened again when a writer has
    // gone, nor for a call of AWS.
    limit(wrapper.process.pid(), "--nofile=3:");
    wrapper.write(b"11167");
    wrapper.process.wait_for("ignored 5 digits instead of six");
    wrapper.process.wait_for("cannot open the FIFO");
    wrapper.write(scene.aws.code().as_bytes());
    let line = wrapper.process.wait_for("the code will be sent again");
    assert!(line.contains("Too many open files"), "{line}");
    limit(wrapper.process.pid(), "--nofile=1000:");
    let output = wrapper.ends_with(0);
    assert_eq!(
        output.matches("cannot open the FIFO").count(),
        1,
        "{output}"
    );
    assert_eq!(scene.aws.calls("GetSessionToken"), 1);
}

#[test]
fn a_broker_without_descriptors_keeps_the_code_and_continues_when_there_are_some() {
    let scene = Scene::new().with_broker();
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    let open = fs::read_dir(format!("/proc/{}/fd", broker.pid()))
        .unwrap()
        .count();
    limit(broker.pid(), &format!("--nofile={open}:"));
    give_code(&scene);
    let line = broker.wait_for("the code will be sent again");
    assert!(line.contains("Too many open files"), "{line}");
    limit(broker.pid(), "--nofile=1000:");
    broker.wait_for("is open until");
    generated(&scene);
    ends_well(broker);
}

#[test]
fn a_broker_that_can_accept_no_connection_says_so_once_and_accepts_again() {
    let scene = Scene::new().with_broker();
    let broker = scene.start_broker();
    limit(broker.pid(), "--nofile=3:");
    let mut waiting = broker::Peer::connect(&scene.configuration.broker_socket);
    broker.wait_for("cannot accept a connection: Too many open files");
    limit(broker.pid(), "--nofile=1000:");
    let reply = waiting.ask(&broker_api::Request::Session);
    assert!(matches!(reply, broker_api::Reply::Session(_)), "{reply:?}");
    let said = broker
        .output()
        .matches("cannot accept a connection")
        .count();
    assert_eq!(said, 1, "{}", broker.output());
}

/// Just what the process has, so that it cannot have more.
fn no_more_memory(pid: Pid) {
    let size = inspection::status(pid, "VmSize");
    let kilobytes: u64 = size.trim_end_matches(" kB").parse().unwrap();
    limit(pid, &format!("--as={}:", kilobytes * 1024));
}

/// Either it went on when there was memory again, or it ended as its failure, and left nothing behind.
fn recovers_or_ends(process: &mut Process, recovered: &str, left: &[&Path]) {
    wait_until("an outcome", || {
        process.has_ended() || process.output().contains(recovered)
    });
    if process.has_ended() {
        let (status, output) = process.finish();
        assert_eq!(status.code(), Some(125), "{output}");
        for path in left {
            assert!(fs::symlink_metadata(path).is_err(), "{}", path.display());
        }
    }
}

#[test]
fn a_broker_without_memory_continues_later_or_ends_with_125_and_leaves_nothing_behind() {
    let scene = Scene::new().with_broker();
    let mut broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    no_more_memory(broker.pid());
    give_code(&scene);
    wait_until("an outcome", || {
        let output = broker.output();
        broker.has_ended() || output.contains("is open until") || output.contains("will be sent")
    });
    if !broker.has_ended() {
        limit(broker.pid(), "--as=unlimited:");
    }
    let (fifo, socket) = (scene.fifo(), &scene.configuration.broker_socket);
    recovers_or_ends(&mut broker, "is open until", &[fifo, socket]);
}

#[test]
fn a_launcher_without_memory_continues_later_or_ends_with_125_and_leaves_no_fifo() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&SLEEP);
    wrapper.wait_for_fifo();
    no_more_memory(wrapper.process.pid());
    wrapper.write(scene.aws.code().as_bytes());
    wait_until("an outcome", || {
        let output = wrapper.process.output();
        wrapper.process.has_ended()
            || output.contains("is open until")
            || output.contains("will be sent")
    });
    if !wrapper.process.has_ended() {
        limit(wrapper.process.pid(), "--as=unlimited:");
    }
    recovers_or_ends(&mut wrapper.process, "is open until", &[scene.fifo()]);
}

#[test]
fn a_launcher_without_threads_keeps_the_code_and_continues_when_there_are_some() {
    let scene = Scene::new();
    let command = copied(&scene, "iam-kms-wrapper", &scene.command(&SLEEP));
    let wrapper = scene.spawn(&mut as_lonely(&scene, &command));
    wrapper.wait_for_fifo();
    limit(wrapper.process.pid(), "--nproc=1:");
    wrapper.write(scene.aws.code().as_bytes());
    let line = wrapper
        .process
        .wait_for("cannot start a thread for a DNS look-up");
    assert!(line.contains("the code will be sent again"), "{line}");
    assert!(scene.fifo().exists());
    limit(wrapper.process.pid(), "--nproc=1000:");
    wrapper.wait_for_command("sleep");
    assert!(!scene.fifo().exists());
}

#[test]
fn an_abort_of_the_launcher_exits_with_125_and_leaves_no_fifo() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&SLEEP);
    wrapper.wait_for_fifo();
    wrapper.process.signal(nix::sys::signal::Signal::SIGABRT);
    wrapper.ends_with(125);
}

#[test]
fn an_abort_of_the_broker_exits_with_125_and_leaves_neither_fifo_nor_sockets() {
    let scene = Scene::new().with_broker();
    let beside = |name: &str| scene.configuration.broker_socket.with_file_name(name);
    let (overview, metrics) = (beside("overview.sock"), beside("metrics.sock"));
    let scene = scene
        .line(&format!("overview_socket = {}", overview.display()))
        .line(&format!("metrics_listen = {}", metrics.display()));
    let mut broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    assert_eq!(broker_pid(&scene), broker.pid());
    assert!(overview.exists() && metrics.exists());
    broker.signal(nix::sys::signal::Signal::SIGABRT);
    let (status, output) = broker.finish();
    assert_eq!(status.code(), Some(125), "{output}");
    assert!(!scene.fifo().exists());
    for socket in [&scene.configuration.broker_socket, &overview, &metrics] {
        assert!(!socket.exists(), "{}", socket.display());
    }
}

#[test]
fn the_command_gets_the_signal_of_an_abort_as_usual() {
    let scene = Scene::new();
    let wrapper = scene.start_with_code(&SLEEP);
    let caught = inspection::status(wrapper.process.pid(), "SigCgt");
    assert_eq!(u64::from_str_radix(&caught, 16).unwrap() >> 5 & 1, 0);
    // Nor does it take one away that its parent has ignored.
    let setup = "signal.signal(signal.SIGABRT, signal.SIG_IGN)";
    let scene = Scene::new();
    let wrapper = scene.spawn(&mut after_python(setup, &scene.command(&SLEEP)));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    let ignored = inspection::status(wrapper.process.pid(), "SigIgn");
    assert_eq!(u64::from_str_radix(&ignored, 16).unwrap() >> 5 & 1, 1);
}
