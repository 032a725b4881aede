//! `kms-manage-key unlock`: the key is enabled for as long as a command runs.

use std::{os::unix::process::ExitStatusExt, process::Command};

use end_to_end_tests::{
    Database, NEW_KEY, Process, Scene, Terminal, after, after_python, aws_cli, dist, inspection,
    manage_key::{MFA, deny, describe, ends_with, key_cli, scene, start, start_with_input, state},
    wait_until,
};
use nix::sys::signal::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, Signal};

/// Says "ready", and then what signals it gets.
const SIGNAL_TELLER: &str = "sleep 1000 >/dev/null 2>&1 &
    for s in INT TERM HUP QUIT; do trap \"echo got $s; kill $!; exit 5\" $s; done
    echo ready; wait";

/// A scene whose key is disabled.
fn locked(serve_arguments: &[&str]) -> Scene {
    let scene = scene(serve_arguments);
    key_cli(&scene, "disable-key", &[]);
    scene
}

fn unlock(scene: &Scene, command: &[&str]) -> Process {
    start(scene, &[&["unlock", "--"], command].concat())
}

/// Runs it with `script` in a terminal of its own.
fn unlock_in(terminal: &mut Terminal, scene: &Scene, script: &str) -> Process {
    let unlock = scene.manage_key_command(&["unlock", "sh", "-c", script]);
    let mut command = after(&["setsid", "--ctty", "--wait"], &unlock);
    let process = Process::start(command.stdin(terminal.programs()));
    process.wait_for("type it here");
    terminal.type_in(&format!("{}\n", scene.aws.code()));
    process
}

fn dies_of(mut process: Process, signal: Signal) -> String {
    let (status, output) = process.finish();
    assert_eq!(status.signal(), Some(signal as i32), "{status}\n{output}");
    assert!(!status.core_dumped(), "{status}");
    output
}

#[test]
fn the_key_is_enabled_while_the_command_runs_and_disabled_afterwards() {
    let scene = locked(&[]);
    // As whoever uses the key, not as who enables it.
    let script = format!(
        "AWS_SHARED_CREDENTIALS_FILE={} AWS_DEFAULT_REGION=us-east-1 \
         {} kms describe-key --key-id alias/mariadb --query KeyMetadata.KeyState --output text
         env; cat; exit 7",
        scene.aws.path("credentials").display(),
        aws_cli().get_program().display()
    );
    let input = format!("{}\nfor the command\n", scene.aws.code());
    let mut command = scene.manage_key_command(&["unlock", "sh", "-c", &script]);
    let output = ends_with(start_with_input(&mut command, &input), 7);
    let position = |text: &str| {
        let position = output.lines().position(|line| line.contains(text));
        position.unwrap_or_else(|| panic!("no {text}: {output}"))
    };
    let lines = [
        "is Enabled: EnableKey by arn:aws:iam::111122223333:user/mariadb",
        "that will disable the key is open until ",
        "for the command",
        "is Disabled: DisableKey by arn:aws:iam::111122223333:user/mariadb",
    ]
    .map(position);
    assert!(lines.is_sorted(), "{output}");
    assert!(output.lines().any(|line| line == "Enabled"), "{output}");
    for secret in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ] {
        assert!(!output.contains(secret), "{output}");
    }
    assert_eq!(state(&scene), "Disabled");
    assert_eq!(scene.aws.calls("GetSessionToken"), 1);
}

#[test]
fn a_server_starts_while_the_key_is_unlocked_and_serves_afterwards() {
    let scene = locked(&[])
        .with_broker()
        .line("master_key_id = alias/mariadb");
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON"]);
    let process = unlock(&scene, &["sh", "-c", &until_go(&scene)]);
    process.wait_for("ready");
    let _server = scene.start_database(&database);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t1 (i INT); INSERT INTO d.t1 VALUES (1)");
    scene.sandbox.write("go", "");
    ends_with(process, 5);
    let count = database.sql("INSERT INTO d.t1 VALUES (2); SELECT COUNT(*) FROM d.t1");
    assert_eq!(count, "2");
    let error = database.sql_error(NEW_KEY);
    assert!(error.contains("DisabledException"), "{error}");
}

#[test]
fn it_dies_of_the_signal_that_the_command_died_of() {
    let scene = locked(&[]);
    let output = dies_of(unlock(&scene, &["sh", "-c", "kill -KILL $$"]), SIGKILL);
    assert!(output.contains("is Disabled: DisableKey by "), "{output}");
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn signals_go_on_to_the_command_and_the_key_is_disabled() {
    let scene = locked(&[]);
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
        let process = unlock(&scene, &["sh", "-c", SIGNAL_TELLER]);
        process.wait_for("ready");
        process.signal(signal);
        let output = ends_with(process, 5);
        let got = format!("got {}", signal.as_str().strip_prefix("SIG").unwrap());
        assert_eq!(output.matches(&got).count(), 1, "{output}");
        assert!(output.contains("is Disabled: DisableKey by "), "{output}");
    }
    assert_eq!(state(&scene), "Disabled");
}

/// Python that prints each signal that it gets, and ends by SIGTERM.
const LISTENER: &str = "
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
print('ready', flush=True)
while (got := signal.sigwait(range(1, 65))) != signal.SIGTERM:
    print(f'got {int(got)}.', flush=True)
";

#[test]
fn no_signal_but_kill_and_stop_ends_or_stops_it_while_the_key_is_enabled() {
    // Ignored by Rust's programs; do nothing unless asked for; stop; the C library's own.
    const NOT_PASSED_ON: [i32; 10] = [13, 17, 18, 20, 21, 22, 23, 28, 32, 33];
    let scene = locked(&[]);
    let process = unlock(&scene, &["python3", "-c", LISTENER]);
    process.wait_for("ready");
    let all = (1..=64).filter(|number| ![9, 15, 19].contains(number));
    for number in all {
        let mut kill = Command::new("/bin/kill");
        kill.arg(format!("-{number}"))
            .arg(process.pid().to_string());
        assert!(kill.status().unwrap().success(), "{number}");
        if !NOT_PASSED_ON.contains(&number) {
            process.wait_for(&format!("got {number}."));
        }
    }
    let output = process.output();
    for number in NOT_PASSED_ON {
        assert!(!output.contains(&format!("got {number}.")), "{output}");
    }
    let state_of_process = inspection::status(process.pid(), "State");
    assert!(!state_of_process.starts_with('T'), "{state_of_process}");
    process.signal(SIGTERM);
    let output = ends_with(process, 0);
    assert_eq!(output.matches("is not passed on").count(), 3, "{output}");
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn ctrl_z_does_not_stop_the_command_while_the_key_is_enabled() {
    let scene = locked(&[]);
    let mut terminal = Terminal::new();
    let process = unlock_in(&mut terminal, &scene, &until_go(&scene));
    process.wait_for("ready");
    terminal.type_in("\x1a");
    process.wait_for("the command was continued: the key is enabled until it ends");
    scene.sandbox.write("go", "");
    ends_with(process, 5);
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn the_commands_status_is_known_where_the_parent_ignores_children() {
    let scene = locked(&[]);
    let setup = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)";
    let command = scene.manage_key_command(&["unlock", "sh", "-c", "exit 7"]);
    let input = format!("{}\n", scene.aws.code());
    ends_with(
        start_with_input(&mut after_python(setup, &command), &input),
        7,
    );
    assert_eq!(state(&scene), "Disabled");
}

/// `unlock` with a panic at this point.
fn unlock_with_panic(scene: &Scene, point: &str) -> Process {
    let line = scene.manage_key_command(&["unlock", "echo", "started"]);
    let mut command = Command::new(dist("test-bin/kms-manage-key"));
    command.args(line.get_args()).env_clear();
    command.envs(line.get_envs().map(|(name, value)| (name, value.unwrap())));
    command.env("KMS_MANAGE_KEY_PANIC", point);
    start_with_input(&mut command, &format!("{}\n", scene.aws.code()))
}

#[test]
fn a_panic_while_the_key_is_enabled_is_125_with_a_disabled_key() {
    let scene = locked(&[]);
    let output = ends_with(unlock_with_panic(&scene, "enabled"), 125);
    assert!(output.contains("is Enabled: EnableKey by "), "{output}");
    assert!(output.contains("is Disabled: DisableKey by "), "{output}");
    assert!(output.contains("internal error (panic)"), "{output}");
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn a_panic_while_the_key_is_disabled_exits_with_121_and_the_command_that_disables_it() {
    let scene = locked(&[]);
    let output = ends_with(unlock_with_panic(&scene, "disabling"), 121);
    assert!(
        output.contains("trying again after an internal error"),
        "{output}"
    );
    assert!(
        output.contains("THE KEY MAY STILL BE ENABLED: internal error (panic)"),
        "{output}"
    );
    assert_eq!(state(&scene), "Enabled");
}

#[test]
fn a_command_that_ignores_signals_is_waited_for() {
    let scene = locked(&[]);
    let go = scene.sandbox.path("go");
    let script = format!(
        "trap 'echo ignored' TERM; echo ready; until [ -e {} ]; do sleep 0.1; done",
        go.display()
    );
    let process = unlock(&scene, &["sh", "-c", &script]);
    process.wait_for("ready");
    for nth in 1..=2 {
        process.signal(SIGTERM);
        process.wait_for_nth("ignored", nth);
    }
    assert_eq!(state(&scene), "Enabled");
    scene.sandbox.write("go", "");
    ends_with(process, 0);
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn ctrl_c_reaches_the_command_once_and_the_key_is_disabled() {
    let scene = locked(&[]);
    let mut terminal = Terminal::new();
    let script = "sleep 1000 >/dev/null 2>&1 &
        n=0; trap 'n=$((n+1)); echo got $n' INT; trap 'echo had $n; kill $!; exit 5' TERM
        echo ready; while :; do wait; done";
    let process = unlock_in(&mut terminal, &scene, script);
    process.wait_for("ready");
    terminal.type_in("\x03");
    process.wait_for("got 1");
    let pid = child_of(&process);
    Command::new("kill").arg(&pid).status().unwrap();
    let output = ends_with(process, 5);
    assert!(output.contains("had 1"), "{output}");
    assert_eq!(state(&scene), "Disabled");
}

/// `setsid` has become the program, or has forked it.
fn child_of(process: &Process) -> String {
    let children = |pid: &str| {
        let path = format!("/proc/{pid}/task/{pid}/children");
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let pid = process.pid().to_string();
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    match name(&pid).trim() {
        "setsid" => children(&pid).trim().into(),
        _ => pid,
    }
}

#[test]
fn a_terminal_that_goes_away_ends_with_a_disabled_key() {
    let scene = locked(&[]);
    let mut terminal = Terminal::new();
    let process = unlock_in(&mut terminal, &scene, SIGNAL_TELLER);
    process.wait_for("ready");
    drop(terminal);
    process.wait_for("got HUP");
    process.wait_for("is Disabled: DisableKey by ");
    ends_with(process, 5);
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn a_signal_before_the_command_takes_the_change_back() {
    let scene = scene(&[]);
    key_cli(&scene, "disable-key", &[]);
    let scene = with_delay(scene);
    let process = unlock(&scene, &["echo", "started"]);
    wait_until("EnableKey", || scene.aws.calls("EnableKey") == 1);
    process.signal(SIGTERM);
    let output = dies_of(process, SIGTERM);
    assert!(
        output.contains("SIGTERM arrived before the command was started"),
        "{output}"
    );
    assert!(!output.lines().any(|line| line == "started"), "{output}");
    assert!(output.contains("is Disabled: DisableKey by "), "{output}");
    scene.aws.set_clock("90");
    assert_eq!(state(&scene), "Disabled");
}

/// From now on, changes take a minute.
fn with_delay(mut scene: Scene) -> Scene {
    let endpoint = scene.aws.endpoint();
    let delay = ["--key-state-delay-milliseconds=60000"];
    scene.aws.serve_again(&endpoint, &delay);
    scene
}

#[test]
fn the_command_waits_until_the_key_is_really_enabled() {
    let scene = with_delay(locked(&[]));
    let process = unlock(&scene, &["echo", "started"]);
    wait_until("looks", || scene.aws.calls("DescribeKey") >= 6);
    assert!(!process.output().contains("started"));
    scene.aws.set_clock("90");
    process.wait_for("started");
    wait_until("DisableKey", || scene.aws.calls("DisableKey") == 2);
    scene.aws.set_clock("180");
    ends_with(process, 0);
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn a_key_that_does_not_get_enabled_in_time_exits_with_124_without_the_command() {
    let scene = with_delay(locked(&[]));
    let process = start(
        &scene,
        &["--timeout-seconds=3", "unlock", "echo", "started"],
    );
    let output = ends_with(process, 124);
    assert!(!output.lines().any(|line| line == "started"), "{output}");
    assert!(output.contains("is Disabled: DisableKey by "), "{output}");
}

#[test]
fn a_key_that_was_enabled_before_is_disabled_at_the_end_too() {
    let scene = scene(&[]);
    let output = ends_with(unlock(&scene, &["true"]), 0);
    assert!(
        output.contains("is enabled already; it will be disabled at the end nevertheless"),
        "{output}"
    );
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn the_key_is_disabled_through_failures_of_kms() {
    let scene = locked(&[]);
    let go = scene.sandbox.path("go");
    let script = format!(
        "echo ready; until [ -e {} ]; do sleep 0.1; done",
        go.display()
    );
    let process = unlock(&scene, &["sh", "-c", &script]);
    process.wait_for("ready");
    scene
        .aws
        .fault("--operation DisableKey --kind reset --count 2");
    scene
        .aws
        .fault("--operation DisableKey --kind 503 --count 1");
    scene.sandbox.write("go", "");
    process.wait_for_nth("; trying again", 1);
    // Not even signals end that.
    process.signal(SIGTERM);
    process.signal(SIGINT);
    let output = ends_with(process, 0);
    assert_eq!(output.matches("; trying again").count(), 3, "{output}");
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn a_key_that_stays_enabled_is_121_with_the_command_that_disables_it() {
    let scene = locked(&[]);
    deny(&scene, r#""kms:DisableKey""#, MFA);
    let output = ends_with(unlock(&scene, &["true"]), 121);
    let line = output.lines().last().unwrap();
    assert!(
        line.contains("THE KEY MAY STILL BE ENABLED: KMS DisableKey (request "),
        "{output}"
    );
    let repair = format!(
        "disable it now: kms-manage-key --config={} --key={} disable",
        scene.sandbox.path("iam-kms-wrapper.config").display(),
        describe(&scene, "Arn")
    );
    assert!(line.ends_with(&repair), "{output}");
    assert_eq!(state(&scene), "Enabled");

    // It can be pasted into a shell, wherever the configuration is.
    let path = scene.sandbox.directory("it's my").join("mk.config");
    std::fs::copy(scene.sandbox.path("iam-kms-wrapper.config"), &path).unwrap();
    let usual = scene.manage_key_command(&["unlock", "true"]);
    let mut command = Command::new(usual.get_program());
    for argument in usual.get_args().filter_map(|it| it.to_str()) {
        match argument.starts_with("--config=") {
            true => command.arg(format!("--config={}", path.display())),
            false => command.arg(argument),
        };
    }
    command.env_clear();
    for (name, value) in usual.get_envs() {
        command.envs(value.map(|value| (name, value)));
    }
    let input = format!("{}\n", scene.aws.code());
    let output = ends_with(start_with_input(&mut command, &input), 121);
    let (_, pasted) = output
        .rsplit_once("disable it now: kms-manage-key ")
        .unwrap();
    let script = format!("set -- {pasted}; echo \"$#|$1|$3\"");
    let shell = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(
        String::from_utf8(shell.stdout).unwrap(),
        format!("3|--config={}|disable\n", path.display())
    );
}

/// Has the session end while the command runs.
fn outlive_session(scene: &Scene, process: &Process) {
    process.wait_for("ready");
    scene.aws.set_clock("300");
    scene.sandbox.write("go", "");
}

fn until_go(scene: &Scene) -> String {
    let go = scene.sandbox.path("go");
    format!(
        "echo ready; until [ -e {} ]; do sleep 0.1; done; exit 5",
        go.display()
    )
}

#[test]
fn a_session_that_ends_before_the_command_exits_with_121_where_nobody_can_be_asked() {
    let scene = locked(&["--session-lifetime=120"]);
    let process = unlock(&scene, &["sh", "-c", &until_go(&scene)]);
    outlive_session(&scene, &process);
    let output = ends_with(process, 121);
    assert!(
        output.contains("THE KEY MAY STILL BE ENABLED: the session ended at "),
        "{output}"
    );
    assert_eq!(state(&scene), "Enabled");
}

#[test]
fn a_session_that_ends_before_the_command_asks_for_a_code_at_the_terminal() {
    let scene = locked(&["--session-lifetime=120"]);
    let mut terminal = Terminal::new();
    let process = unlock_in(&mut terminal, &scene, &until_go(&scene));
    outlive_session(&scene, &process);
    process.wait_for("a new one is needed to disable the key");
    process.wait_for_nth("type it here", 2);
    terminal.type_in(&format!("{}\n", scene.aws.code()));
    ends_with(process, 5);
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn nothing_is_begun_that_could_not_be_verified_or_run() {
    let scene = locked(&[]);
    deny(&scene, r#""kms:DescribeKey""#, MFA);
    let output = ends_with(unlock(&scene, &["true"]), 123);
    assert!(output.contains("allow kms:DescribeKey"), "{output}");
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let mut command = scene.manage_key_command(&["unlock", program]);
        let output = ends_with(Process::start(&mut command), code);
        assert!(!output.contains("waiting for"), "{output}");
    }
    assert_eq!(scene.aws.calls("EnableKey"), 0);
}
