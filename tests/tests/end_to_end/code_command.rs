//! `iam-kms-wrapper code`: enters a code, harms nothing, and says what became of it.

use std::{
    fs,
    io::Read,
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt, chown, symlink},
        process::ExitStatusExt,
    },
    process::{Command, Output},
};

use end_to_end_tests::{
    NOBODY, Process, Scene, Terminal, after, dist,
    inspection::{is_dumpable, status},
    manage_key::{ends_with, start_with_input},
    run_with_input, wait_until,
};
use nix::{
    fcntl::OFlag,
    sys::{
        signal::{SIGCONT, SIGINT, SIGSTOP, SIGTERM},
        stat::Mode,
    },
    unistd::mkfifo,
};

/// `iam-kms-wrapper code` for the FIFO of the scene.
fn code_command(scene: &Scene) -> Command {
    let mut command = Command::new(dist("bin/iam-kms-wrapper"));
    command
        .args(["code", &format!("--fifo={}", scene.fifo().display())])
        .env_clear();
    command
}

/// Runs it with `input` as its standard input.
fn enter(command: &mut Command, input: &str) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = run_with_input(command, input);
    assert!(stdout.is_empty(), "{stdout:?}");
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn start_in(terminal: &Terminal, command: &mut Command) -> Process {
    let code = Process::start(command.stdin(terminal.programs()));
    code.wait_for("awaits the MFA code of ");
    code
}

#[test]
fn in_a_terminal_it_asks_without_echo_again_after_a_refusal_and_says_what_became_of_each() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    let mut terminal = Terminal::new();
    let mut code = start_in(&terminal, &mut code_command(&scene));
    wait_until("no echo", || !terminal.echoes());
    terminal.type_in("11167\n");
    let line = code.wait_for("5 digits instead of six");
    assert!(line.contains("nothing was written"), "{line}");
    let wrong = scene.aws.wrong_code();
    terminal.type_in(&format!("{wrong}\n"));
    let line = code.wait_for("refused: AWS refused the code");
    assert!(line.contains("the next code, which appears in"), "{line}");
    assert_eq!(scene.aws.calls("GetSessionToken"), 1);
    let good = scene.aws.code();
    terminal.type_in(&format!("{good}\n"));
    let (status, output) = code.finish();
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(
        output.contains("accepted: the session is open until 20"),
        "{output}"
    );
    assert!(terminal.echoes());
    for code in [wrong, good] {
        assert!(!output.contains(&code) && !terminal.shown().contains(&code));
    }
    wrapper.ends_with(0);
    assert_eq!(files_beside(&scene), 0);
}

/// What lies in the directory of the FIFO.
fn files_beside(scene: &Scene) -> usize {
    let directory = scene.fifo().parent().unwrap();
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn a_line_of_standard_input_is_entered_and_each_outcome_has_its_exit_status() {
    let scene = Scene::new();
    let (status, output) = enter(&mut code_command(&scene), "123456\n");
    assert_eq!(status, Some(4), "{output}");
    assert!(output.contains("nothing waits for a code at "), "{output}");
    assert_eq!(files_beside(&scene), 0);

    let mut wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    let (status, output) = enter(&mut code_command(&scene), "12345\n");
    assert_eq!(status, Some(1), "{output}");
    assert!(output.contains("nothing was written"), "{output}");
    let wrong = format!("{}\n", scene.aws.wrong_code());
    let (status, output) = enter(&mut code_command(&scene), &wrong);
    assert_eq!(status, Some(1), "{output}");
    assert!(output.contains("AWS refused the code"), "{output}");
    let good = format!("{}\n", scene.aws.code());
    let (status, output) = enter(&mut code_command(&scene), &good);
    assert_eq!(status, Some(0), "{output}");
    wrapper.ends_with(0);

    let mut wrong = code_command(&scene);
    let (status, output) = enter(wrong.arg("123456"), "");
    assert_eq!(status, Some(125), "{output}");
    assert!(output.contains("enter the code at the prompt"), "{output}");
}

#[test]
fn the_fifo_is_taken_from_the_configuration_and_a_broker_is_answered_for_too() {
    let scene = Scene::new().with_broker();
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("iam-kms-wrapper code --fifo=");
    let configuration = scene.configuration.write(&scene.sandbox);
    let command = || {
        let mut command = Command::new(dist("bin/iam-kms-wrapper"));
        command
            .arg("code")
            .arg(format!("--config={}", configuration.display()));
        command
    };
    let (status, output) = enter(&mut command(), &scene.aws.wrong_code());
    assert_eq!(status, Some(1), "{output}");
    // While AWS has not judged it, the reason is said and nothing else is asked for.
    scene
        .aws
        .fault("--operation GetSessionToken --kind 500 --count 1");
    let (status, output) = enter(&mut command(), &scene.aws.code());
    assert_eq!(status, Some(0), "{output}");
    assert!(
        output.contains("the code will be sent again in 1 second\n"),
        "{output}"
    );
    broker.wait_for("is open until");
    assert_eq!(enter(&mut command(), "123456").0, Some(4));
}

#[test]
fn a_session_document_is_entered_in_each_form_that_tools_print_it_in() {
    let scene = Scene::new().without("kms_mfa_id").line("mfa = elsewhere");
    let document: serde_json::Value = serde_json::from_str(&scene.aws.session_document()).unwrap();
    let credentials = &document["Credentials"];
    let sso = serde_json::json!({ "roleCredentials": {
        "accessKeyId": credentials["AccessKeyId"],
        "secretAccessKey": credentials["SecretAccessKey"],
        "sessionToken": credentials["SessionToken"],
        "expiration": 4_070_908_800_000_u64,
    }});
    for text in [
        serde_json::to_string_pretty(&document).unwrap(),
        format!("\u{feff}{credentials}\r\n"),
        sso.to_string(),
    ] {
        let mut wrapper = scene.start(&["printenv", "AWS_SESSION_TOKEN"]);
        wrapper.wait_for_fifo();
        let (status, output) = enter(&mut code_command(&scene), &text);
        assert_eq!(status, Some(0), "{output}");
        let output = wrapper.ends_with(0);
        let token = credentials["SessionToken"].as_str().unwrap();
        assert_eq!(output.lines().last(), Some(token), "{output}");
    }
}

#[test]
fn what_is_no_fifo_is_refused_and_not_touched_and_a_fifo_without_a_reader_keeps_nobody_waiting() {
    let scene = Scene::new();
    let victim = scene.sandbox.write("victim", "untouched");
    let fifo = scene.fifo();
    type Make<'a> = &'a dyn Fn();
    let cases: [(Make, i32, &str); 4] = [
        (
            &|| symlink(&victim, fifo).unwrap(),
            125,
            "it is a symbolic link",
        ),
        (
            &|| fs::write(fifo, "untouched").unwrap(),
            125,
            "it is a regular file",
        ),
        (
            &|| symlink("/nonexistent/file", fifo).unwrap(),
            125,
            "it is a symbolic link",
        ),
        (
            &|| mkfifo(fifo, Mode::S_IRWXU).unwrap(),
            4,
            "nothing waits for a code at ",
        ),
    ];
    for (make, expected, says) in cases {
        make();
        let (status, output) = enter(&mut code_command(&scene), "123456\n");
        assert_eq!(status, Some(expected), "{output}");
        assert!(output.contains(says), "{output}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        if let Ok(metadata) = fs::metadata(fifo)
            && metadata.is_file()
        {
            assert_eq!(fs::read_to_string(fifo).unwrap(), "untouched");
        }
        fs::remove_file(fifo).unwrap();
    }
}

/// A prompt starts when the FIFO appears, which is before its maker has opened it.
#[test]
fn a_fifo_that_has_just_been_made_is_given_time_to_be_opened() {
    let scene = Scene::new();
    mkfifo(scene.fifo(), Mode::S_IRWXU).unwrap();
    let trace = scene.sandbox.path("trace");
    let strace = ["strace", "-f", "-e", "trace=openat", "-o"];
    let strace = [&strace[..], &[trace.to_str().unwrap()]].concat();
    let mut command = after(&strace, &code_command(&scene));
    let code = start_with_input(&mut command, "123456\n");
    wait_until("a try that finds nobody", || {
        let trace = fs::read_to_string(&trace).unwrap_or_default();
        let mut tries = trace.lines().filter(|line| line.contains("mfa"));
        tries.any(|line| line.contains("ENXIO"))
    });
    let mut options = fs::File::options();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let mut reader = options.open(scene.fifo()).unwrap();
    // Nobody says what became of it.
    ends_with(code, 3);
    let mut written = String::new();
    reader.read_to_string(&mut written).unwrap();
    assert_eq!(written, "123456\n");
}

#[test]
fn root_writes_with_the_rights_of_the_fifos_owner_who_can_have_it_overwrite_nothing() {
    let scene = Scene::new();
    let mut wrapper = scene.spawn(&mut scene.command_as_nobody(&["true"]));
    wrapper.wait_for_fifo();
    let mut terminal = Terminal::new();
    let mut code = start_in(&terminal, &mut code_command(&scene));
    wait_until("no echo", || !terminal.echoes());
    for field in ["Uid", "Gid"] {
        let ids = status(code.pid(), field);
        assert_eq!(ids, "65534\t65534\t65534\t65534", "{field}");
    }
    assert_eq!(status(code.pid(), "Groups"), "");
    assert_eq!(status(code.pid(), "CapEff"), "0000000000000000");
    assert!(!is_dumpable(code.pid()));

    // Another FIFO, and a link, in its place, at the last moment.
    let victim = scene.sandbox.write("victim", "untouched");
    let aside = scene.sandbox.path("run/aside");
    fs::rename(scene.fifo(), &aside).unwrap();
    symlink(&victim, scene.fifo()).unwrap();
    terminal.type_in("123456\n");
    let (ended, output) = code.finish();
    assert_eq!(ended.code(), Some(125), "{output}");
    assert!(output.contains("symbolic link"), "{output}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");

    fs::rename(&aside, scene.fifo()).unwrap();
    let good = format!("{}\n", scene.aws.code());
    let (status, output) = enter(&mut code_command(&scene), &good);
    assert_eq!(status, Some(0), "{output}");
    wrapper.ends_with(0);
}

#[test]
fn a_member_of_the_fifos_group_enters_a_code_and_reads_what_became_of_it_and_others_cannot() {
    let group = "mail";
    let scene = Scene::new()
        .line("kms_mfa_socket_mode = 0620")
        .line(&format!("kms_mfa_socket_group = {group}"));
    let mut wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    let program = scene.copy_programs(&["iam-kms-wrapper"]);
    let as_nobody = |group: &str| {
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={NOBODY}"), "--clear-groups"])
            .arg(format!("--regid={group}"))
            .arg(&program)
            .args(["code", &format!("--fifo={}", scene.fifo().display())])
            .current_dir("/");
        command
    };
    let good = format!("{}\n", scene.aws.code());
    let (status, output) = enter(&mut as_nobody("65534"), &good);
    assert_eq!(status, Some(125), "{output}");
    assert!(
        output.contains("Permission denied") && output.contains("kms_mfa_socket_group"),
        "{output}"
    );
    // Before anybody takes a code from the device.
    let mut for_programs = as_nobody("65534");
    let said = run_with_input(for_programs.arg("--json"), "").stdout;
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(said["state"], "failed", "{said}");
    assert!(!output.contains("awaits"), "{output}");
    let (status, output) = enter(&mut as_nobody(group), &good);
    assert_eq!(status, Some(0), "{output}");
    assert!(output.contains("accepted: "), "{output}");
    wrapper.ends_with(0);
}

#[test]
fn a_directory_in_which_others_could_read_the_code_is_refused() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    let directory = scene.fifo().parent().unwrap();
    let set_mode = |mode| fs::set_permissions(directory, PermissionsExt::from_mode(mode)).unwrap();
    set_mode(0o777);
    let good = format!("{}\n", scene.aws.code());
    let (status, output) = enter(&mut code_command(&scene), &good);
    assert_eq!(status, Some(125), "{output}");
    assert!(
        output.contains("every user can write to the directory"),
        "{output}"
    );
    set_mode(0o755);
    assert_eq!(enter(&mut code_command(&scene), &good).0, Some(0));
    wrapper.ends_with(0);
}

#[test]
fn a_code_that_another_process_reads_is_told_to_whoever_entered_it() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    wrapper.process.signal(SIGSTOP);
    let mut thief = fs::File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(scene.fifo())
        .unwrap();
    let mut command = code_command(&scene);
    let code = std::thread::spawn(move || enter(&mut command, "123456\n"));
    let mut stolen = [0; 512];
    wait_until("the thief to have it", || {
        thief.read(&mut stolen).is_ok_and(|length| length > 0)
    });
    let stolen = String::from_utf8_lossy(&stolen);
    assert!(stolen.contains(r#""TokenCode":"123456"}"#), "{stolen}");
    drop(thief);
    wrapper.process.signal(SIGCONT);
    let (status, output) = code.join().unwrap();
    assert_eq!(status, Some(1), "{output}");
    assert!(output.contains("but another process read it"), "{output}");
    wrapper.give_code(&scene.aws);
    wrapper.ends_with(0);
}

#[test]
fn it_says_so_if_the_service_ends_before_the_code_is_judged_or_says_nothing_of_it() {
    let scene = Scene::new();
    let wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    // As one of release 0.1.0.
    fs::remove_file(scene.fifo().with_extension("state")).unwrap();
    let (status, output) = enter(&mut code_command(&scene), "11167\n");
    assert_eq!(status, Some(1), "{output}");
    let wrong = scene.aws.wrong_code();
    let (status, output) = enter(&mut code_command(&scene), &wrong);
    assert_eq!(status, Some(3), "{output}");
    assert!(output.contains("see its log"), "{output}");
    wrapper.process.wait_for("AWS refused the code");
    drop(wrapper);
    fs::remove_file(scene.fifo()).unwrap();

    let wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    scene
        .aws
        .fault("--operation GetSessionToken --kind 500 --count 1000");
    let mut terminal = Terminal::new();
    let mut code = start_in(&terminal, &mut code_command(&scene));
    terminal.type_in(&format!("{}\n", scene.aws.code()));
    code.wait_for("the code will be sent again");
    wrapper.process.signal(SIGTERM);
    let (status, output) = code.finish();
    // AWS may have taken it.
    assert_eq!(status.code(), Some(3), "{output}");
    assert!(
        output.contains("the service ended before it said what became of it"),
        "{output}"
    );
}

#[test]
fn a_code_that_is_typed_while_the_service_restarts_goes_to_the_new_one() {
    let scene = Scene::new().with_broker();
    let start = || {
        let broker = Process::start(&mut scene.broker_command());
        broker.wait_for("enter an MFA code");
        broker
    };
    let mut broker = start();
    let mut terminal = Terminal::new();
    let mut code = start_in(&terminal, &mut code_command(&scene));
    wait_until("no echo", || !terminal.echoes());
    broker.signal(SIGTERM);
    broker.wait();
    let broker = start();
    terminal.type_in(&format!("{}\n", scene.aws.code()));
    let (status, output) = code.finish();
    assert_eq!(status.code(), Some(0), "{output}");
    broker.wait_for("is open until");
}

#[test]
fn ctrl_c_ends_it_and_restores_the_echo() {
    let scene = Scene::new();
    let wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    let terminal = Terminal::new();
    let mut code = start_in(&terminal, &mut code_command(&scene));
    wait_until("no echo", || !terminal.echoes());
    code.signal(SIGINT);
    let (status, output) = code.finish();
    assert_eq!(status.signal(), Some(SIGINT as i32), "{output}");
    assert!(output.contains("nothing was written"), "{output}");
    assert!(terminal.echoes());
    assert!(!wrapper.process.output().contains("ignored"));
}

#[test]
fn a_command_of_that_name_is_still_run_under_the_wrapper() {
    let scene = Scene::new();
    let program = scene
        .sandbox
        .write("code", "#!/bin/sh\necho the program code\n");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    chown(&program, Some(0), Some(0)).unwrap();
    for separator in [&["--"][..], &[]] {
        let mut command = scene.command(&[separator, &["code"]].concat());
        command.env("PATH", program.parent().unwrap());
        let mut wrapper = scene.spawn(&mut command);
        wrapper.give_code(&scene.aws);
        let output = wrapper.ends_with(0);
        assert!(output.contains("the program code"), "{output}");
    }
}
