//! No code and no secret where others could read it.

use std::{fs, os::unix::process::ExitStatusExt};

use end_to_end_tests::{
    Process, SLEEP, Scene, after, contains_bytes,
    inspection::{self, is_dumpable, variable},
    traces_in_memory, wait_until, write_fifo,
};
use nix::sys::signal::{SIGABRT, SIGQUIT, SIGSEGV};

#[test]
fn neither_code_nor_secret_is_ever_printed() {
    let scene = Scene::new();
    scene
        .aws
        .fault("--operation GetSessionToken --kind 500 --count 1");
    let wrapper = scene.start(&SLEEP);
    wrapper.wait_for_fifo();
    let wrong_code = scene.aws.wrong_code();
    wrapper.write(wrong_code.as_bytes());
    wrapper.process.wait_for("AWS refused the code");
    wrapper.write(wrong_code.as_bytes());
    wrapper.process.wait_for("this code has been used");
    // As long as a code, but not taken for one.
    wrapper.write(b"hunter\n");
    wrapper.process.wait_for("6 characters");
    let code = scene.aws.code();
    wrapper.write(code.as_bytes());
    wrapper.wait_for_command("sleep");

    let pid = wrapper.process.pid();
    let (_, secret_access_key) = scene.aws.long_term_key();
    let secrets = [
        ("code", code),
        ("wrong code", wrong_code),
        ("what was no code", "hunter".into()),
        ("long-term secret key", secret_access_key),
        ("secret key", variable(pid, "AWS_SECRET_ACCESS_KEY")),
        ("session token", variable(pid, "AWS_SESSION_TOKEN")),
    ];
    wrapper.process.wait_for("is open until");
    let output = wrapper.process.output();
    for (what, secret) in &secrets {
        assert!(!output.contains(secret), "the {what} is in:\n{output}");
        let command_line = inspection::command_line(pid);
        assert!(
            !contains_bytes(&command_line, secret.as_bytes()),
            "the {what} is in the command line"
        );
    }
}

#[test]
fn a_wrapper_that_waits_cannot_be_looked_into_by_its_own_user_and_the_command_can() {
    let scene = Scene::new();
    let mut command = scene.command_as_nobody(&SLEEP);
    let wrapper = scene.spawn(&mut command);
    wrapper.wait_for_fifo();
    assert!(!is_dumpable(wrapper.process.pid()));
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    assert!(is_dumpable(wrapper.process.pid()));
}

#[test]
fn a_refused_code_is_nowhere_in_the_memory_of_launcher_and_broker() {
    let scene = Scene::new().with_broker();
    let broker = Process::start(&mut scene.broker_command());
    broker.wait_for("enter an MFA code");
    refuses_and_wipes(&scene, &broker);
    drop(broker);

    let scene = Scene::new();
    let wrapper = scene.start(&["true"]);
    wrapper.wait_for_fifo();
    refuses_and_wipes(&scene, &wrapper.process);
}

fn refuses_and_wipes(scene: &Scene, process: &Process) {
    let code = scene.aws.wrong_code();
    write_fifo(scene.fifo(), code.as_bytes());
    process.wait_for("AWS refused the code");
    assert_wiped(process, &code);
    // It is known all the same.
    write_fifo(scene.fifo(), code.as_bytes());
    process.wait_for("this code has been used");
    assert_wiped(process, &code);
}

fn assert_wiped(process: &Process, code: &str) {
    // The line in the log comes first, the end of the call's thread after it.
    wait_until("a code to be wiped", || {
        traces_in_memory(process.pid(), &[("the code", code.as_bytes())]).is_empty()
    });
    let name = traces_in_memory(process.pid(), &[("the FIFO", b"/mfa")]);
    assert_eq!(name, ["the FIFO"], "the search finds nothing");
}

#[test]
fn a_wrapper_that_crashes_leaves_no_core() {
    let scene = Scene::new();
    let directory = scene.sandbox.directory("cores");
    for signal in [SIGSEGV, SIGABRT, SIGQUIT] {
        let script = "ulimit -c unlimited && cd \"$0\" && exec \"$@\"";
        let prefix = ["sh", "-c", script, directory.to_str().unwrap()];
        let mut wrapper = scene.spawn(&mut after(&prefix, &scene.command(&["true"])));
        wrapper.wait_for_fifo();
        let limits = fs::read_to_string(format!("/proc/{}/limits", wrapper.process.pid()));
        assert!(
            limits
                .unwrap()
                .contains("Max core file size        unlimited")
        );
        wrapper.process.signal(signal);
        let (status, output) = wrapper.process.finish();
        if signal == SIGQUIT {
            assert_eq!(status.signal(), Some(signal as i32));
        } else {
            // As for each failure of its own.
            assert_eq!(status.code(), Some(125), "{signal}");
            assert!(
                output.contains("aborted, because memory ran out"),
                "{output}"
            );
        }
        // It removes what it made.
        let run = scene.fifo().parent().unwrap();
        assert_eq!(fs::read_dir(run).unwrap().count(), 0, "{signal}");
        assert!(!status.core_dumped(), "{signal}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "{signal}");
    }
}
