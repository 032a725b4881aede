//! `iam-kms-unlock`: one operator with one code, and hosts with a real sshd in namespaces of their own, on
//! which real brokers and launchers wait.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use aws_session::config::TlsFiles;
use broker_api::{FailureKind, Reply};
use end_to_end_tests::{
    ChildGuard, Configuration, LocalAws, Process, Sandbox, Scene, StoreDirectory, Terminal,
    Wrapper, after,
    broker::{Peer, generate},
    dist,
    fleet::{Fleet, Role, in_a_network_of_its_own},
    inspection,
    key_server::{Authority, DAY, get_key, given, make_key},
    run_with_input, wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The objects of `--json`.
fn objects(output: &Output) -> Vec<Value> {
    let lines = stdout(output);
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn result_of<'a>(objects: &'a [Value], host: &str) -> &'a Value {
    let mut of_host = objects.iter().filter(|it| it["host"] == host);
    let result = of_host
        .next()
        .unwrap_or_else(|| panic!("{host}: {objects:?}"));
    assert!(of_host.next().is_none(), "{host}: {objects:?}");
    result
}

/// Whether the broker of a machine gets a new data key from KMS.
fn makes_a_key(fleet: &Fleet, machine: usize) -> bool {
    let socket = fleet.path(machine, "/run/iam-kms-wrapper/broker.sock");
    matches!(
        Peer::connect(&socket).ask(&generate(16)),
        Reply::Generated { .. }
    )
}

#[test]
fn one_code_unlocks_the_hosts_that_wait_and_three_dead_ones_cost_them_no_time() {
    in_a_network_of_its_own(|| {
        let mut fleet = Fleet::new();
        fleet.add("silent", &Role::Silent);
        fleet.add("hung", &Role::Hung);
        fleet.add("refusing", &Role::WithoutSshd);
        let brokers = ["db1", "db2", "db3", "keys1"].map(|name| fleet.add(name, &Role::Broker));
        // This operator may do nothing else there.
        let limited = "restrict,command=\"iam-kms-wrapper code --json\"";
        let limited = fleet.add_with("db4", &Role::Broker, limited);
        let work = "sh -c 'printenv AWS_ACCESS_KEY_ID; exec sleep infinity'";
        let launcher = fleet.add("db5", &Role::Launcher(work));
        fleet.add("idle", &Role::Idle);
        let hosts = "silent\nhung # since Monday\n\nrefusing\ndb1\ndb2\ndb3\ndb4\ndb5\nidle\n";
        let hosts = fleet.sandbox.write("hosts", hosts);
        let hosts = format!("--hosts={}", hosts.display());
        let device = format!("--mfa-serial={}", fleet.aws.serial_number());
        let timeout_seconds = 20;
        let timeout = format!("--timeout-seconds={timeout_seconds}");
        let arguments = [
            &device,
            &hosts,
            &timeout,
            "--json",
            "--reason=change 4711",
            "keys1",
        ];

        let begun = Instant::now();
        let output = run_with_input(&mut fleet.unlock(&arguments), &fleet.aws.code());
        let took = begun.elapsed();

        let results = objects(&output);
        assert_eq!(results.len(), 10, "{results:?}");
        for host in ["db1", "db2", "db3", "db4", "db5", "keys1"] {
            let result = result_of(&results, host);
            assert_eq!(result["result"], "unlocked", "{result}");
            assert!(
                result["expiration"].as_str().unwrap().ends_with('Z'),
                "{result}"
            );
        }
        assert_eq!(result_of(&results, "idle")["result"], "not_waiting");
        for (host, why) in [
            ("refusing", "Connection refused"),
            ("silent", "Connection timed out"),
            ("hung", "timed out"),
        ] {
            let result = result_of(&results, host);
            assert_eq!(result["result"], "unreachable", "{result}");
            assert!(
                result["message"].as_str().unwrap().contains(why),
                "{result}"
            );
        }
        // The two that answered nothing come last, when all others are done.
        for result in &results[8..] {
            assert!(
                ["silent", "hung"].contains(&result["host"].as_str().unwrap()),
                "{results:?}"
            );
        }
        assert!(took < Duration::from_secs(timeout_seconds), "{took:?}");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let stderr = stderr(&output);
        let summary = "iam-kms-unlock: 6 of 10 hosts unlocked, 1 not waiting, 3 unreachable";
        assert_eq!(stderr.lines().last(), Some(summary), "{stderr}");

        assert_eq!(fleet.aws.calls("GetSessionToken"), 1);
        for broker in brokers.into_iter().chain([limited]) {
            assert!(makes_a_key(&fleet, broker));
            let log = fleet.machine(broker).output();
            assert!(log.contains("\"reason\":\"change 4711\""), "{log}");
        }
        fleet.machine(launcher).wait_for("ASIA");
    });
}

#[test]
fn one_code_opens_two_key_servers_and_a_database_host_gets_its_key_from_either() {
    in_a_network_of_its_own(|| {
        let mut fleet = Fleet::new();
        let store = StoreDirectory::new(&fleet.sandbox);
        let authority = Authority::new(fleet.sandbox.directory("authority"));
        let files = |files: TlsFiles| {
            format!(
                "tls_certificate = {}\ntls_key = {}\n",
                files.certificate.display(),
                files.key.display()
            )
        };
        let clients = authority.certificate();
        let mut upstream = Vec::new();
        let servers = ["keys1", "keys2"].map(|name| {
            let address = fleet.next_address();
            let lines = format!(
                "master_key_id = alias/mariadb\nkey_store = {}\ntls_listen = {address}:7443\n{}tls_client_ca = {}\n\
                 [client \"db1.example\"]\nkey_ids = 1-9\nmay_make = true\n",
                store.location(),
                files(authority.issue(name, &[&address], DAY)),
                clients.display()
            );
            upstream.push(format!("{address}:7443"));
            fleet.add(name, &Role::KeyServer(lines))
        });
        let lines = format!(
            "upstream = {}\n{}tls_server_ca = {}\n",
            upstream.join(", "),
            files(authority.issue("db1", &["db1.example"], DAY)),
            authority.certificate().display()
        );
        let host = fleet.add("db1", &Role::DatabaseHost(lines));
        let mut broker = Peer::connect(&fleet.path(host, "/run/iam-kms-wrapper/broker.sock"));
        let refused = broker.ask(&make_key(5, ""));
        assert!(
            matches!(&refused, Reply::Failed(failure) if failure.kind == FailureKind::SessionOver),
            "{refused:?}"
        );

        let device = format!("--mfa-serial={}", fleet.aws.serial_number());
        let mut command = fleet.unlock(&[&device, "keys1", "keys2"]);
        let output = run_with_input(&mut command, &fleet.aws.code());
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fleet.aws.calls("GetSessionToken"), 1);

        let made = broker.ask(&make_key(5, ""));
        assert!(
            matches!(made, Reply::Stored { is_new: true, .. }),
            "{made:?}"
        );
        let key = given(broker.ask(&get_key(5, 1)));
        let line = "GetKey of key 5, version 1, for client db1.example at ";
        fleet.machine(servers[0]).wait_for(line);
        // The whole machine is lost.
        fleet.machine(servers[0]).signal(Signal::SIGKILL);
        // It may take a moment to die, and answer meanwhile.
        wait_until("the other key server", || {
            assert_eq!(given(broker.ask(&get_key(5, 1))), key);
            fleet.machine(servers[1]).output().contains(line)
        });
        assert_eq!(fleet.aws.calls("GetSessionToken"), 1);
    });
}

#[test]
fn a_look_at_hosts_of_an_ansible_inventory_opens_no_session() {
    in_a_network_of_its_own(|| {
        let mut fleet = Fleet::new();
        let waiting = fleet.add("one", &Role::Broker);
        let idle = fleet.add("two", &Role::Idle);
        let ini = format!(
            "[web]\nwww1\n[primary]\ndb1 ansible_host=10.77.0.{waiting} ansible_user=root ansible_port=22\n\
             [databases:children]\nprimary\n[databases]\ndb2 ansible_host=10.77.0.{idle}\n"
        );
        let yaml = format!(
            "web:\n  hosts:\n    www1:\ndatabases:\n  hosts:\n    db2:\n      ansible_host: 10.77.0.{idle}\n  \
             children:\n    primary:\n      hosts:\n        db1:\n          ansible_host: 10.77.0.{waiting}\n          \
             ansible_port: '22'\n"
        );
        for inventory in [
            fleet.sandbox.write("hosts.ini", &ini),
            fleet.sandbox.write("hosts.yml", &yaml),
        ] {
            let inventory = format!("--inventory={}", inventory.display());
            let arguments = [
                "--dry-run",
                "--sudo",
                &inventory,
                "--group=databases",
                "--json",
            ];
            let output = run_with_input(&mut fleet.unlock(&arguments), "");
            let results = objects(&output);
            assert_eq!(results.len(), 2, "{output:?}");
            assert_eq!(
                result_of(&results, "db1")["result"],
                "waiting",
                "{output:?}"
            );
            assert_eq!(
                result_of(&results, "db2")["result"],
                "not_waiting",
                "{output:?}"
            );
            assert_eq!(output.status.code(), Some(4), "{output:?}");
            let arguments = ["--dry-run", &inventory, "--group=cache"];
            let output = run_with_input(&mut fleet.unlock(&arguments), "");
            assert_eq!(output.status.code(), Some(125), "{output:?}");
            assert!(
                stderr(&output).ends_with(" has no group \"cache\"\n"),
                "{output:?}"
            );
        }
        assert_eq!(fleet.aws.log(), "");
        assert!(!fleet.machine(waiting).output().contains("is open until"));
    });
}

#[test]
fn a_signal_tells_what_was_done_and_leaves_no_process_behind() {
    in_a_network_of_its_own(|| {
        let mut fleet = Fleet::new();
        fleet.add("db1", &Role::Broker);
        fleet.add("hung", &Role::Hung);
        let document = fleet
            .sandbox
            .write("session", &fleet.aws.session_document());
        let mut command = fleet.unlock(&["--session=-", "hung", "db1"]);
        command.stdin(fs::File::open(document).unwrap());
        let mut unlock = Process::start(&mut command);
        unlock.wait_for("db1   unlocked until ");
        let children = inspection::children(unlock.pid());
        assert_eq!(children.split_whitespace().count(), 1, "{children}");
        unlock.signal(Signal::SIGINT);
        let (status, output) = unlock.finish();
        assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{output}");
        let last: Vec<_> = output
            .lines()
            .skip_while(|line| !line.starts_with("db1"))
            .collect();
        assert_eq!(
            last[1..],
            [
                "hung  interrupted: nothing was sent",
                "iam-kms-unlock: 1 of 2 hosts unlocked, 1 not called",
                "iam-kms-unlock: stopped by a signal",
            ]
        );
        let child = Path::new("/proc").join(children.trim());
        wait_until("the end of ssh", || !child.exists());
    });
}

#[test]
fn a_host_that_cannot_take_the_session_says_why() {
    in_a_network_of_its_own(|| {
        let mut fleet = Fleet::new();
        let broker = fleet.add("db1", &Role::Broker);
        fleet.add_with("bare", &Role::Idle, "command=\"no-such-program\"");
        fleet.add_with(
            "old",
            &Role::Idle,
            "command=\"iam-kms-wrapper code --no-such-option\"",
        );
        let acting = "command=\"printf 'no\\033[2J\\n' >&2; exit 3\"";
        fleet.add_with("acting", &Role::Idle, acting);
        let noisy = "command=\"echo {}; echo hello; iam-kms-wrapper code --json\"";
        fleet.add_with("noisy", &Role::Broker, noisy);
        let stranger = fleet.add("stranger", &Role::Broker);
        let known = fs::read_to_string(fleet.sandbox.path("known_hosts")).unwrap();
        let known = known.replace(&format!("10.77.0.{stranger} "), "10.77.0.254 ");
        fs::write(fleet.sandbox.path("known_hosts"), known).unwrap();
        let names = [
            "--session=-",
            "bare",
            "old",
            "acting",
            "noisy",
            "stranger",
            "db1",
        ];
        let output = run_with_input(&mut fleet.unlock(&names), &fleet.aws.session_document());
        let shown = stdout(&output);
        for line in ["db1       unlocked until ", "noisy     unlocked until "] {
            assert!(shown.lines().any(|it| it.starts_with(line)), "{output:?}");
        }
        for (host, why) in [
            ("bare      refused: ", "no-such-program: "),
            ("old       refused: ", ""),
            ("acting    refused: ", "no\\u{1b}[2J"),
            ("stranger  unreachable: ", "Host key verification failed."),
        ] {
            let line = shown.lines().find(|line| line.starts_with(host));
            assert!(line.is_some_and(|line| line.contains(why)), "{output:?}");
        }
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(makes_a_key(&fleet, broker));
        // Nobody has sent it anything.
        assert!(
            !fleet
                .machine(stranger)
                .output()
                .contains("session_document_taken")
        );
    });
}

#[test]
fn what_the_operators_ssh_forwards_to_a_host_or_runs_there_by_itself_is_left_out() {
    in_a_network_of_its_own(|| {
        let mut fleet = Fleet::new();
        // The port is 4711.
        let note = "command=\"printenv > /run/variables; grep -c ':1267 ' /proc/net/tcp > /run/ports; \
                    exec iam-kms-wrapper code --json\"";
        let host = fleet.add_with("db1", &Role::Broker, note);
        let forwarding = "Host *\n ForwardAgent yes\n RemoteForward 4711 127.0.0.1:22\n";
        let mut configuration = fs::File::options()
            .append(true)
            .open(fleet.sandbox.path("ssh_config"))
            .unwrap();
        configuration.write_all(forwarding.as_bytes()).unwrap();
        let socket = fleet.sandbox.path("agent");
        let mut agent = Command::new("ssh-agent");
        let _agent = Process::start(agent.args(["-D", "-a"]).arg(&socket));
        wait_until("the agent", || UnixStream::connect(&socket).is_ok());
        let is_forwarded = || {
            let read = |name: &str| fs::read_to_string(fleet.path(host, name)).unwrap();
            (
                read("/run/variables").contains("SSH_AUTH_SOCK="),
                read("/run/ports").trim() != "0",
            )
        };

        // The control: ssh by itself forwards both.
        let mut ssh = Command::new("ssh");
        ssh.args(["-o", "BatchMode=yes", "db1"])
            .env("SSH_AUTH_SOCK", &socket);
        run_with_input(&mut ssh, "");
        assert_eq!(is_forwarded(), (true, true));

        // With a command, ssh refuses to connect to a host that has one here.
        configuration.write_all(b" RemoteCommand true\n").unwrap();

        let mut unlock = fleet.unlock(&["--session=-", "db1"]);
        unlock.env("SSH_AUTH_SOCK", &socket);
        let output = run_with_input(&mut unlock, &fleet.aws.session_document());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(is_forwarded(), (false, false));
    });
}

/// A launcher of this host that waits for a session document, and the directory of the programs.
fn this_host(command: &'static str) -> (Scene, Wrapper, PathBuf) {
    let scene = Scene::new().without("kms_mfa_id").line("mfa = elsewhere");
    let mut waiting = scene.command(&command.split(' ').collect::<Vec<_>>());
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        waiting.env_remove(name);
    }
    let wrapper = scene.spawn(&mut waiting);
    wrapper.wait_for_fifo();
    (
        scene,
        wrapper,
        dist("bin/iam-kms-wrapper").parent().unwrap().into(),
    )
}

fn unlock_this_host(scene: &Scene, programs: &Path, arguments: &[&str]) -> Command {
    let fifo = format!("--fifo={}", scene.fifo().display());
    let mut command = scene.aws.program("iam-kms-unlock", arguments);
    command
        .arg(fifo)
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
    command
}

#[test]
fn without_a_host_the_code_of_a_terminal_unlocks_this_host_and_the_table_fills_in() {
    let (scene, mut wrapper, programs) = this_host("printenv AWS_ACCESS_KEY_ID");
    let mut terminal = Terminal::new();
    let device = format!("--mfa-serial={}", scene.aws.serial_number());
    // A table needs to know the size of its terminal.
    let sized = ["sh", "-c", "stty rows 24 columns 80; exec \"$@\"", "sh"];
    let mut command = after(&sized, &unlock_this_host(&scene, &programs, &[&device]));
    command
        .env("TERM", "xterm")
        .stdin(terminal.programs())
        .stdout(terminal.programs())
        .stderr(terminal.programs());
    let unlock = ChildGuard::spawn(&mut command);
    terminal.wait_for_nth("MFA code: ", 1);
    assert!(!terminal.echoes());
    terminal.type_in(&format!("{}\n", scene.aws.wrong_code()));
    terminal.wait_for_nth("MFA code: ", 2);
    let code = scene.aws.code();
    terminal.type_in(&format!("{code}\n"));
    let shown = terminal.wait_for_success(unlock).to_owned();
    assert!(
        shown.contains("AWS refused the code: mistyped"),
        "{shown:?}"
    );
    assert!(shown.contains("this host  unlocked until "), "{shown:?}");
    assert!(
        shown.contains("iam-kms-unlock: 1 of 1 host unlocked"),
        "{shown:?}"
    );
    assert!(!shown.contains(&code), "{shown:?}");
    assert!(terminal.echoes());
    assert!(wrapper.ends_with(0).contains("ASIA"));
}

/// As ssh says it of a host that is down, in more than a row of the terminal.
#[test]
fn a_terminal_shows_in_the_end_what_became_of_every_host_and_why() {
    let sandbox = Sandbox::new();
    sandbox.directory("programs");
    let ssh = sandbox.write(
        "programs/ssh",
        "#!/bin/sh\necho \"ssh: connect to host port 22: Connection timed out, $(printf '%080d' 0) the end\" >&2; exit 255",
    );
    fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).unwrap();
    let mut terminal = Terminal::new();
    let sized = ["sh", "-c", "stty rows 24 columns 80; exec \"$@\"", "sh"];
    let mut unlock = Command::new(dist("bin/iam-kms-unlock"));
    let hosts: Vec<_> = (1..=16)
        .map(|number| format!("db{number}.example"))
        .collect();
    unlock.args(["--dry-run", "--jobs=1"]).args(&hosts);
    let programs = format!("{}:/usr/bin:/bin", ssh.parent().unwrap().display());
    let mut command = after(&sized, &unlock);
    command.env("PATH", programs).env("TERM", "xterm");
    command
        .stdin(terminal.programs())
        .stdout(terminal.programs())
        .stderr(terminal.programs());
    let _unlock = ChildGuard::spawn(&mut command);
    terminal.wait_for_nth("0 of 16 hosts waiting, 16 unreachable", 1);
    let shown = terminal.shown();
    for host in hosts {
        let said = format!(
            "{host:12}  unreachable: ssh: connect to host port 22: Connection timed out, {:080} the end",
            0
        );
        assert!(shown.contains(&said), "{host}: {shown}");
    }
}

#[test]
fn the_session_is_in_no_argument_and_no_environment() {
    let (scene, mut wrapper, programs) = this_host("printenv AWS_SESSION_TOKEN");
    let trace = scene.sandbox.path("trace");
    let device = format!("--mfa-serial={}", scene.aws.serial_number());
    let unlock = unlock_this_host(&scene, &programs, &[&device]);
    let strace = [
        "strace",
        "-f",
        "-v",
        "-s",
        "100000",
        "-e",
        "trace=execve",
        "-o",
    ];
    let strace = [&strace[..], &[trace.to_str().unwrap()]].concat();
    let mut command = after(&strace, &unlock);
    let output = run_with_input(&mut command, &scene.aws.code());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let log = wrapper.ends_with(0);
    let token = log.lines().last().unwrap();
    assert!(token.len() > 50, "{log}");
    let trace = fs::read_to_string(trace).unwrap();
    assert!(trace.contains("\"code\", \"--json\""), "{trace}");
    assert!(trace.contains("PATH="), "{trace}");
    assert!(!trace.contains(token), "{trace}");
    assert!(!stdout(&output).contains(token) && !stderr(&output).contains(token));
}

#[test]
fn a_service_that_gives_no_answer_leaves_the_result_unknown() {
    let (scene, wrapper, programs) = this_host("sleep 1000");
    wrapper.process.signal(Signal::SIGSTOP);
    let arguments = ["--session=-", "--timeout-seconds=2", "--json"];
    let output = run_with_input(
        &mut unlock_this_host(&scene, &programs, &arguments),
        &scene.aws.session_document(),
    );
    let results = objects(&output);
    assert_eq!(
        result_of(&results, "this host")["result"],
        "unknown",
        "{output:?}"
    );
    assert_eq!(
        results[0]["message"],
        "no answer within 2 seconds; the session was sent, see the log of the service"
    );
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    wrapper.process.signal(Signal::SIGCONT);
    wrapper.wait_for_command("sleep");
}

#[test]
fn results_that_cannot_be_written_are_an_error() {
    let (scene, mut wrapper, programs) = this_host("true");
    let full = ["sh", "-c", "exec \"$@\" > /dev/full", "sh"];
    let unlock = unlock_this_host(&scene, &programs, &["--session=-", "--json"]);
    let output = run_with_input(&mut after(&full, &unlock), &scene.aws.session_document());
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let said = stderr(&output);
    assert!(
        said.contains("cannot write what became of the hosts: No space left on device"),
        "{said}"
    );
    wrapper.ends_with(0);
}

/// As an operator with these profiles of the AWS CLI, version 2 of which Debian has in /usr/bin.
fn unlock_with_profile(scene: &Scene, programs: &Path, profiles: &Path, name: &str) -> Output {
    let profile = format!("--profile={name}");
    let mut command = unlock_this_host(scene, programs, &[&profile]);
    command
        .env("AWS_CONFIG_FILE", profiles)
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    run_with_input(&mut command, "")
}

#[test]
fn a_profile_is_signed_in_to_by_the_aws_cli() {
    let (scene, mut wrapper, programs) = this_host("printenv AWS_ACCESS_KEY_ID");
    let document: Value = serde_json::from_str(&scene.aws.session_document()).unwrap();
    let mut printed = document["Credentials"].clone();
    printed["Version"] = 1.into();
    let file = scene.sandbox.write("printed", &printed.to_string());
    let (id, secret) = scene.aws.long_term_key();
    let profiles = scene.sandbox.write(
        "profiles",
        &format!(
            "[profile signed-in]\ncredential_process = cat {}\n\
             [profile key]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n\
             [profile sso]\nsso_start_url = https://example.invalid/start\nsso_region = us-east-1\n\
             sso_account_id = 111122223333\nsso_role_name = dba\n",
            file.display()
        ),
    );
    for (profile, why) in [
        (
            "key",
            "; if the profile has a long-term key, add --mfa-serial=ARN",
        ),
        (
            "sso",
            "; sign in first (aws sso login, or aws login), with the same --profile",
        ),
        ("none", "it failed ("),
    ] {
        let output = unlock_with_profile(&scene, &programs, &profiles, profile);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(stderr(&output).contains(why), "{output:?}");
        assert!(!stderr(&output).contains(&secret), "{output:?}");
        assert_eq!(stdout(&output), "");
    }
    let output = unlock_with_profile(&scene, &programs, &profiles, "signed-in");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        stdout(&output).starts_with("this host  unlocked until "),
        "{output:?}"
    );
    let log = wrapper.ends_with(0);
    assert_eq!(log.lines().last(), printed["AccessKeyId"].as_str(), "{log}");
}

#[test]
fn without_a_session_or_a_host_nothing_is_called() {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start(&sandbox);
    let configuration = Configuration::new(&sandbox, &aws.serial_number());
    let called = sandbox.path("called");
    let programs = sandbox.directory("bin");
    for name in ["ssh", "iam-kms-wrapper"] {
        let script = format!("#!/bin/sh\ntouch {}\n", called.display());
        let program = sandbox.write(&format!("bin/{name}"), &script);
        fs::set_permissions(program, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let device = format!("--mfa-serial={}", aws.serial_number());
    let empty = format!("--hosts={}", sandbox.write("empty", "# none\n").display());
    let fifo = format!("--hosts={}", configuration.write(&sandbox).display());
    let wrong = aws.wrong_code();
    for (arguments, input, says) in [
        (
            &[device.as_str(), "db1"][..],
            wrong.as_str(),
            "AWS refused the code: mistyped",
        ),
        (&[&device, "db1"], "12345\n", "5 digits instead of six"),
        (
            &["--session=-", "db1"],
            "{}\n",
            "a session document without ",
        ),
        (
            &[&device, &empty],
            "",
            "there is no host in the file or the inventory",
        ),
        (&[&device, &fifo], "", ".config, line 2: \"kms_mfa_id = "),
        (
            &[&device, "--", "-oProxyCommand=id"],
            "",
            "is not the name of a host",
        ),
        (&["db1"], "", "--mfa-serial"),
    ] {
        let mut command = aws.program("iam-kms-unlock", arguments);
        command.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
        let output = run_with_input(&mut command, input);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(stderr(&output).contains(says), "{says}: {output:?}");
        assert_eq!(stdout(&output), "");
    }
    assert!(!called.exists());
}
