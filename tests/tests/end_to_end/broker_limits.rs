//! What one user of the broker cannot keep from others, and what nobody loses by waiting.

use std::{
    fs::{self, Permissions},
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use broker_api::{
    PROTOCOL_VERSION, Reply, Request, SessionPhase, WaitPolicy, WaitReason, encode, read_frame,
    write_frame,
};
use end_to_end_tests::{
    ChildGuard, Database, NOBODY, Process, Scene, after_python,
    broker::{Peer, ask, decrypt, generate_with, generated, phase},
    run_client, wait_until,
};
use nix::{
    sys::signal::{Signal::SIGTERM, kill},
    unistd::{Gid, Group, Pid},
};

/// A member of the group that the broker serves.
const MEMBER: u32 = 3000;

/// How long somebody may have to wait on a busy machine, however little there is to wait for.
const SOON: Duration = Duration::from_secs(10);

/// A broker that serves a group.
fn scene_with_group() -> Scene {
    let group = Group::from_gid(Gid::from_raw(NOBODY)).unwrap().unwrap();
    let scene = Scene::new()
        .with_broker()
        .line(&format!("broker_socket_group = {}", group.name));
    fs::set_permissions(scene.sandbox.path(""), Permissions::from_mode(0o755)).unwrap();
    scene
}

/// A Python script of a member of the group, which has the socket in `path`.
fn of_member(scene: &Scene, script: &str) -> Process {
    let path = &scene.configuration.broker_socket;
    let script = format!(
        "import os, resource, socket, time\n\
         hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
         resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n\
         os.setgroups([]); os.setgid({NOBODY}); os.setuid({MEMBER})\n\
         path = {path:?}\n{script}"
    );
    Process::start(Command::new("/usr/bin/python3").args(["-u", "-c", &script]))
}

#[test]
fn a_member_of_the_group_with_thousands_of_slow_connections_keeps_nobody_else_waiting() {
    let scene = scene_with_group();
    let broker = scene.start_broker();
    let blob = generated(&scene);
    let flood = of_member(
        &scene,
        "connections = []\n\
         while True:\n \
           while len(connections) < 3000:\n  \
             c = socket.socket(socket.AF_UNIX); c.setblocking(False)\n  \
             try:\n   c.connect(path)\n  \
             except OSError:\n   break\n  \
             connections.append(c)\n \
           alive = []\n \
           for c in connections:\n  \
             try:\n   c.send(b'\\2'); alive.append(c)\n  \
             except OSError:\n   c.close()\n \
           connections = alive\n \
           print('flooding', len(connections))",
    );
    let line = broker.wait_for("rejected a connection (uid 3000, pid ");
    assert!(line.contains("limit of 1024 reached"), "{line}");
    for _ in 0..20 {
        let start = Instant::now();
        generated(&scene);
        let answer = ask(&scene, &decrypt(blob.clone()));
        assert!(matches!(answer, Reply::Decrypted { .. }), "{answer:?}");
        assert_eq!(phase(&scene), SessionPhase::Open);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    }
    // And the log is not full of it.
    let rejections = broker.output().matches("rejected a connection").count();
    assert!(rejections <= 40, "{rejections}");
    drop(flood);
}

#[test]
fn under_a_small_limit_of_descriptors_one_user_gets_half_of_the_connections() {
    let scene = scene_with_group();
    let setup = "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))";
    let broker = Process::start(&mut after_python(setup, &scene.broker_command()));
    broker.wait_for("enter an MFA code");
    let connect = || Peer::connect(&scene.configuration.broker_socket);
    let is_served = |peer: &mut Peer| {
        write_frame(&mut peer.0, &Request::Session).is_ok()
            && read_frame::<Reply>(&mut peer.0).is_ok()
    };
    let mut peers = Vec::new();
    loop {
        let mut peer = connect();
        if !is_served(&mut peer) {
            break;
        }
        peers.push(peer);
    }
    assert_eq!(peers.len(), 128);
    let line = broker.wait_for("rejected a connection (uid 0, pid ");
    assert!(line.contains("limit of 128 reached"), "{line}");
    let member = of_member(
        &scene,
        "c = socket.socket(socket.AF_UNIX); c.connect(path)\n\
         c.send(b'\\2\\1\\0\\0\\0\\2'); print('got', len(c.recv(100)) > 0)",
    );
    assert_eq!(member.wait_for("got"), "got True");
    drop(peers);
    wait_until("room for a connection", || is_served(&mut connect()));
}

#[test]
fn more_calls_than_are_made_at_once_wait_in_line_and_learn_that() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let operation = "--operation GenerateDataKeyWithoutPlaintext";
    scene
        .aws
        .fault(&format!("{operation} --kind delay --milliseconds 3000"));
    let mut peers: Vec<Peer> = (0..200)
        .map(|_| {
            let mut peer = Peer::connect(&scene.configuration.broker_socket);
            write_frame(&mut peer.0, &generate_with(WaitPolicy::Never)).unwrap();
            peer
        })
        .collect();
    let mut have_waited = 0;
    for peer in &mut peers {
        let mut has_waited = false;
        loop {
            match read_frame(&mut peer.0).unwrap() {
                Reply::Waiting(waiting) => {
                    assert_eq!(waiting.reason, WaitReason::Turn, "{waiting:?}");
                    has_waited = true;
                }
                Reply::Generated { .. } => break,
                reply => panic!("{reply:?}"),
            }
        }
        have_waited += usize::from(has_waited);
    }
    assert_eq!(have_waited, 200 - 64);
}

#[test]
fn five_hundred_tables_with_new_keys_at_once_are_made_even_if_kms_takes_three_seconds() {
    const TABLES: usize = 500;
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON", "--max-connections=600"]);
    let _wrapper = scene.start_database(&database);
    database.sql("CREATE DATABASE d");
    let any = "--operation any --kind delay --milliseconds 3000";
    scene.aws.fault(any);
    thread::scope(|scope| {
        for id in 100..100 + TABLES {
            let socket = &database.socket;
            scope.spawn(move || {
                let create = format!(
                    "CREATE TABLE d.t{id} (i INT) ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID={id}"
                );
                let output = run_client(socket, &create);
                assert!(output.status.success(), "{output:?}");
            });
        }
    });
    let count = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema='d'";
    assert_eq!(database.sql(count), TABLES.to_string());
}

#[test]
fn a_user_who_makes_too_many_calls_waits_and_others_do_not() {
    let scene = scene_with_group();
    let _broker = scene.start_broker();
    let caller = of_member(
        &scene,
        "request = b'\\2' + (6).to_bytes(4, 'little') + b'\\0\\0\\0\\1\\1\\0'\n\
         c = socket.socket(socket.AF_UNIX); c.connect(path)\n\
         start = time.monotonic()\n\
         for _ in range(30000):\n \
           c.send(request)\n \
           while True:\n  \
             header = c.recv(5, socket.MSG_WAITALL)\n  \
             body = c.recv(int.from_bytes(header[1:], 'little'), socket.MSG_WAITALL)\n  \
             if body[0] == 3: break\n\
         print('done', time.monotonic() - start)",
    );
    wait_until("calls of the member", || {
        let start = Instant::now();
        generated(&scene);
        assert!(start.elapsed() < SOON);
        caller.output().contains("done")
    });
    let line = caller.wait_for("done");
    let seconds: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    // The first 10,000 as fast as they can, the others 1,000 a second.
    assert!(seconds >= 19.0, "{line}");
}

#[test]
fn every_request_counts_not_only_the_use_of_a_key() {
    let scene = scene_with_group();
    let _broker = scene.start_broker();
    let mut requests = [
        Request::Session,
        Request::Overview,
        Request::Events { before: None },
    ]
    .map(|request| encode(PROTOCOL_VERSION, &request).unwrap().to_vec())
    .to_vec();
    // A version that this broker does not have.
    requests.push(vec![9, 1, 0, 0, 0, 0]);
    let caller = of_member(
        &scene,
        &format!(
            "requests = [bytes(it) for it in {requests:?}]\n\
             c = socket.socket(socket.AF_UNIX); c.connect(path)\n\
             start = time.monotonic()\n\
             for number in range(20000):\n \
               c.send(requests[number % len(requests)])\n \
               header = c.recv(5, socket.MSG_WAITALL)\n \
               c.recv(int.from_bytes(header[1:], 'little'), socket.MSG_WAITALL)\n\
             print('done', time.monotonic() - start)"
        ),
    );
    let line = caller.wait_for("done");
    let seconds: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    // The first 10,000 as fast as they can, the others 1,000 a second.
    assert!(seconds >= 9.5, "{line}");
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody_who_does_not_fill_it_and_loses_nothing() {
    let scene = scene_with_group().line("log_format = json");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = scene.broker_command();
    let mut broker = ChildGuard::spawn(command.stdout(Stdio::null()).stderr(writer));
    drop(command);
    let socket = &scene.configuration.broker_socket;
    // It is there before it takes connections.
    wait_until("the broker", || UnixStream::connect(socket).is_ok());
    let mut peer = Peer::connect(socket);
    // Each is an event, and at last one must wait for the log.
    let mut refused = 0;
    loop {
        write_frame(&mut peer.0, &generate_with(WaitPolicy::Never)).unwrap();
        match read_frame(&mut peer.0).unwrap() {
            Reply::Failed(_) => refused += 1,
            Reply::Waiting(waiting) => break assert_eq!(waiting.reason, WaitReason::Turn),
            reply => panic!("{reply:?}"),
        }
    }
    assert!(refused > 5_000, "{refused}");
    let member = of_member(
        &scene,
        "c = socket.socket(socket.AF_UNIX); c.connect(path); start = time.monotonic()\n\
         c.send(b'\\2' + (6).to_bytes(4, 'little') + b'\\0\\0\\0\\1\\1\\0')\n\
         c.recv(100); print('got', time.monotonic() - start < 5)",
    );
    assert_eq!(member.wait_for("got"), "got True");
    // Now somebody reads.
    let lines = thread::spawn(move || {
        let mut lines = String::new();
        reader.read_to_string(&mut lines).unwrap();
        lines
    });
    let last = loop {
        match read_frame(&mut peer.0).unwrap() {
            Reply::Waiting(_) => {}
            reply => break reply,
        }
    };
    assert!(matches!(last, Reply::Failed(_)), "{last:?}");
    kill(Pid::from_raw(broker.id().cast_signed()), SIGTERM).unwrap();
    broker.wait().unwrap();
    let lines = lines.join().unwrap();
    let written = lines.matches("\"operation\":\"GenerateDataKey").count();
    assert_eq!(written, refused + 1);
    assert!(!lines.contains("log_lost"));
}

#[test]
fn of_two_brokers_that_start_together_one_listens_and_the_other_says_which() {
    let scene = Scene::new().with_broker();
    for _ in 0..5 {
        let mut brokers = [(); 2].map(|()| Process::start(&mut scene.broker_command()));
        wait_until("one to give up", || {
            brokers.iter_mut().any(Process::has_ended)
        });
        brokers.sort_by_key(|broker| !broker.output().contains("another broker"));
        let [loser, winner] = &mut brokers;
        let (status, output) = loser.finish();
        assert_eq!(status.code(), Some(125), "{output}");
        let holder = format!("(process {})", winner.pid());
        assert!(output.contains(&holder), "{output}");
        winner.wait_for("enter an MFA code");
        assert_eq!(phase(&scene), SessionPhase::AwaitingCode);
        winner.signal(SIGTERM);
        winner.wait();
    }
}
