//! How it ends where it does not become the command, and how the command's end shows.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use end_to_end_tests::{Process, SLEEP, Scene, Wrapper, dist};
use nix::{
    sys::{
        signal::{SIGHUP, SIGINT, SIGTERM},
        stat::Mode,
    },
    unistd::mkfifo,
};

/// Checks that the program found the mistake before it asked for a code or called AWS. The command must
/// know where AWS is: without an endpoint, the call log would be empty whatever the program did.
fn fails_before_it_asks(scene: &Scene, wrapper: &mut Wrapper, code: i32) -> String {
    let output = wrapper.ends_with(code);
    assert!(!output.contains("waiting for"), "{output}");
    assert_eq!(scene.aws.log(), "", "AWS was called");
    output
}

#[test]
fn an_unknown_key_exits_with_125_and_file_line_and_nearest_key() {
    let scene = Scene::new().line("# a comment").line("regoin = us-east-1");
    let output = fails_before_it_asks(&scene, &mut scene.start(&["true"]), 125);
    assert!(
        output
            .ends_with("/iam-kms-wrapper.config, line 5: unknown key regoin; did you mean region?"),
        "{output}"
    );
}

#[test]
fn a_wrong_value_exits_with_125_and_file_line_and_what_is_right() {
    let scene = Scene::new().line("session_duration_seconds = 60");
    let output = fails_before_it_asks(&scene, &mut scene.start(&["true"]), 125);
    assert!(
        output.ends_with(
            "/iam-kms-wrapper.config, line 4: session_duration_seconds is \"60\", but must be a number from 900 to 129600"
        ),
        "{output}"
    );
}

#[test]
fn a_missing_configuration_exits_with_125_and_is_named() {
    let scene = Scene::new();
    let mut command = scene
        .aws
        .program("iam-kms-wrapper", &["--config=/nonexistent/file", "true"]);
    let output = fails_before_it_asks(&scene, &mut scene.spawn(&mut command), 125);
    assert_eq!(
        output,
        "iam-kms-wrapper: cannot read the configuration file /nonexistent/file: No such file or directory (os error 2); name it with --config=FILE, or begin with an example from /usr/share/iam-kms-wrapper/examples/configuration"
    );
}

/// All command lines that read this configuration.
fn readers_of(configuration: &Path) -> Vec<Command> {
    let option = format!("--config={}", configuration.display());
    [
        ("iam-kms-wrapper", &["true"][..]),
        ("iam-kms-wrapper", &["--check"]),
        ("iam-kms-wrapper", &["code"]),
        ("iam-kms-broker", &[]),
        ("kms-manage-key", &["status"]),
        ("kms-data-keys", &["push", "--init", "/tmp"]),
    ]
    .map(|(program, arguments)| {
        let mut command = Command::new(dist("bin").join(program));
        // Where the arguments are a subcommand or options, the option may follow.
        match arguments {
            ["true"] => command.arg(&option).args(arguments),
            _ => command.args(arguments).arg(&option),
        };
        command
    })
    .into()
}

#[test]
fn a_configuration_that_is_no_file_is_refused_by_name_and_neither_hangs_nor_fills_memory() {
    let scene = Scene::new();
    let fifo = scene.sandbox.path("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let directory = scene.sandbox.directory("directory");
    for (path, what) in [
        (fifo.as_path(), "it is a FIFO, not a regular file"),
        (Path::new("/dev/zero"), "it is a device, not a regular file"),
        (&directory, "it is a directory, not a regular file"),
    ] {
        for mut command in readers_of(path) {
            let mut process = Process::start(&mut command);
            let (status, output) = process.finish();
            assert_eq!(status.code(), Some(125), "{command:?}: {output}");
            let expected = format!("configuration file {}: {what}", path.display());
            assert!(output.contains(&expected), "{command:?}: {output}");
        }
    }
}

#[test]
fn a_configuration_may_begin_with_a_byte_order_mark() {
    for name in ["a.config", "a.toml"] {
        let scene = Scene::new();
        let text = format!(
            "\u{feff}[kms]\nkms_mfa_id = \"{}\"\nkms_mfa_socket = \"{}\"\n",
            scene.aws.serial_number(),
            scene.fifo().display()
        );
        // INI takes no quotes.
        let is_toml = name.ends_with(".toml");
        let text = if is_toml { text } else { text.replace('"', "") };
        let path = scene.sandbox.write(name, &text);
        let option = format!("--config={}", path.display());
        let mut command = scene.aws.program("iam-kms-wrapper", &[&option, "true"]);
        let mut wrapper = scene.spawn(&mut command);
        wrapper.give_code(&scene.aws);
        wrapper.ends_with(0);
    }
}

#[test]
fn a_configuration_that_is_not_text_is_reported_as_such() {
    let scene = Scene::new();
    let path = scene.sandbox.path("utf-16");
    fs::write(&path, b"\xff\xfe[\0k\0m\0s\0]\0").unwrap();
    for mut command in readers_of(&path) {
        let (status, output) = Process::start(&mut command).finish();
        assert_eq!(status.code(), Some(125), "{output}");
        assert!(output.contains("utf-16: it is not UTF-8 text"), "{output}");
    }
}

#[test]
fn without_source_credentials_it_exits_with_125_and_says_where_to_put_them() {
    let scene = Scene::new();
    let mut command = scene.command(&["true"]);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let output = fails_before_it_asks(&scene, &mut scene.spawn(&mut command), 125);
    assert!(output.contains("found no AWS credentials"), "{output}");
    assert!(
        output.contains("set LoadCredential=aws-credentials:FILE in the unit, AWS_ACCESS_KEY_ID"),
        "{output}"
    );
    assert_eq!(output.lines().count(), 1, "{output}");
}

#[test]
fn a_profile_that_is_not_there_exits_with_125_and_is_named() {
    let scene = Scene::new().line("profile = nobody");
    let output = fails_before_it_asks(&scene, &mut scene.start(&["true"]), 125);
    assert!(
        output.contains("there is no profile nobody (profile in the configuration, or --profile)"),
        "{output}"
    );
}

#[test]
fn temporary_source_credentials_exit_with_125_and_what_to_do_instead() {
    let scene = Scene::new();
    let mut command = scene.command(&["true"]);
    command.env("AWS_SESSION_TOKEN", "token");
    let output = fails_before_it_asks(&scene, &mut scene.spawn(&mut command), 125);
    assert!(
        output
            .contains("GetSessionToken accepts only long-term keys; set role_arn, or mfa = false"),
        "{output}"
    );
}

#[test]
fn wrong_usage_exits_with_125_and_the_usage() {
    let scene = Scene::new();
    let configuration = scene.configuration.write(&scene.sandbox);
    let configuration = format!("--config={}", configuration.display());
    let usage = "Usage: iam-kms-wrapper --config=FILE [--] COMMAND [ARG…]";
    for (arguments, text) in [
        (&[][..], usage),
        (&[configuration.as_str()], usage),
        (&[configuration.as_str(), "--"], usage),
        (&["true"], usage),
        (&["--confg=x", "true"], usage),
        (&["--config"], "a value is required for '--config <FILE>'"),
    ] {
        let mut command = scene.aws.program("iam-kms-wrapper", arguments);
        let output = fails_before_it_asks(&scene, &mut scene.spawn(&mut command), 125);
        assert!(output.contains(text), "{arguments:?}: {output}");
    }
}

#[test]
fn an_unknown_option_of_any_program_exits_with_125() {
    for line in [
        "iam-kms-wrapper code",
        "iam-kms-wrapper setup",
        "iam-kms-wrapper audit",
        "iam-kms-unlock",
        "iam-kms-broker",
        "iam-kms-console",
        "kms-manage-key status",
        "kms-data-keys verify",
    ] {
        let mut words = line.split(' ');
        let mut command = Command::new(dist("bin").join(words.next().unwrap()));
        command.args(words).arg("--no-such-option");
        let (status, output) = Process::start(&mut command).finish();
        assert_eq!(status.code(), Some(125), "{line}: {output}");
        assert!(output.contains("--no-such-option"), "{line}: {output}");
    }
}

#[test]
fn a_command_that_cannot_be_executed_exits_with_126() {
    let scene = Scene::new();
    for command in ["/etc/passwd", "/etc"] {
        let output = fails_before_it_asks(&scene, &mut scene.start(&[command]), 126);
        assert!(
            output.contains(&format!("cannot execute {command}: ")),
            "{output}"
        );
    }
}

#[test]
fn a_command_that_is_not_found_exits_with_127() {
    let scene = Scene::new();
    for command in ["/nonexistent/mariadbd", "no-such-program-here", ""] {
        let output = fails_before_it_asks(&scene, &mut scene.start(&[command]), 127);
        assert!(
            output.contains(&format!("cannot find \"{command}\"")),
            "{output}"
        );
    }
}

#[test]
fn the_launcher_exits_with_the_commands_exit_code() {
    let scene = Scene::new();
    for code in [0, 7, 255] {
        let mut wrapper = scene.start(&["sh", "-c", &format!("exit {code}")]);
        wrapper.give_code(&scene.aws);
        wrapper.ends_with(code);
    }
}

#[test]
fn the_launcher_dies_of_the_signal_that_ended_the_command() {
    let scene = Scene::new();
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let mut wrapper = scene.start_with_code(&SLEEP);
        wrapper.process.signal(signal);
        wrapper.dies_of(signal);
    }
}

#[test]
fn help_and_version_exit_with_0_and_go_to_standard_output() {
    for (program, option, text) in [
        ("iam-kms-wrapper", "--help", "Exit status:"),
        (
            "iam-kms-wrapper",
            "--help",
            "iam-kms-wrapper --check --config=FILE",
        ),
        ("iam-kms-wrapper", "-h", "Usage: iam-kms-wrapper"),
        ("iam-kms-wrapper", "--version", "iam-kms-wrapper 0."),
        ("iam-kms-broker", "--help", "Exit status:"),
        ("iam-kms-broker", "--version", "iam-kms-broker 0."),
    ] {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new(dist("bin").join(program))
            .arg(option)
            .output()
            .unwrap();
        let stdout = String::from_utf8(stdout).unwrap();
        assert!(status.success(), "{program} {option}: {status}");
        assert!(stdout.contains(text), "{program} {option}: {stdout}");
        assert!(stderr.is_empty(), "{program} {option}");
    }
}
