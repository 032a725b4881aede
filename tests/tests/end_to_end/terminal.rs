//! The code is asked for in a terminal.

use std::process::Command;

use end_to_end_tests::{SLEEP, Scene, Terminal, Wrapper, after, wait_until};

fn scene() -> Scene {
    Scene::new().without("kms_mfa_socket")
}

fn start(scene: &Scene, terminal: &Terminal, command: &mut Command) -> Wrapper {
    let wrapper = scene.spawn(command.stdin(terminal.programs()));
    let line = wrapper.process.wait_for("waiting for the MFA code of ");
    assert!(line.ends_with("type it here"), "{line}");
    wrapper
}

#[test]
fn the_code_is_taken_from_the_terminal_and_never_shown() {
    let scene = scene();
    let mut terminal = Terminal::new();
    let wrapper = start(&scene, &terminal, &mut scene.command(&SLEEP));
    assert!(!terminal.echoes());
    terminal.type_in("11167\n");
    wrapper.process.wait_for("ignored 5 digits instead of six");
    let code = scene.aws.code();
    terminal.type_in(&format!("{code}\n"));
    wrapper.wait_for_command("sleep");
    assert!(terminal.echoes(), "the command has a terminal without echo");
    let shown = terminal.shown();
    assert!(!shown.contains(|c: char| c.is_ascii_digit()), "{shown:?}");
    wrapper.process.wait_for("is open until");
    assert!(!wrapper.process.output().contains(&code));
}

#[test]
fn the_prompt_stands_alone_on_its_line() {
    let scene = scene();
    let mut terminal = Terminal::new();
    let mut wrapper = start(&scene, &terminal, &mut scene.command(&["true"]));
    terminal.type_in("11167\n");
    wrapper.process.wait_for("ignored 5 digits instead of six");
    terminal.type_in(&format!("{}\n", scene.aws.code()));
    let output = wrapper.ends_with(0);
    let prompts = output.lines().filter(|line| *line == "MFA code: ").count();
    assert_eq!(prompts, 2, "{output}");
}

#[test]
fn ctrl_c_ends_the_wait_and_restores_the_echo() {
    let scene = scene();
    let mut terminal = Terminal::new();
    // A shell is at the terminal before and after.
    let script = "trap : INT; \"$@\"; echo \"status $?\"; stty -a";
    let prefix = ["setsid", "--ctty", "sh", "-c", script, "sh"];
    let mut command = after(&prefix, &scene.command(&["true"]));
    let mut wrapper = start(&scene, &terminal, &mut command);
    assert!(!terminal.echoes());
    terminal.type_in("111\x03");
    let output = wrapper.ends_with(0);
    assert!(output.contains("ended by SIGINT"), "{output}");
    assert!(output.contains("status 130"), "{output}");
    assert!(output.contains(" echo "), "{output}");
}

#[test]
fn ctrl_backslash_ends_the_wait_and_restores_the_echo() {
    let scene = scene();
    let mut terminal = Terminal::new();
    let script = "trap : QUIT; \"$@\"; echo \"status $?\"; stty -a";
    let prefix = ["setsid", "--ctty", "sh", "-c", script, "sh"];
    let mut command = after(&prefix, &scene.command(&["true"]));
    let mut wrapper = start(&scene, &terminal, &mut command);
    assert!(!terminal.echoes());
    terminal.type_in("111\x1c");
    let output = wrapper.ends_with(0);
    assert!(output.contains("status 131"), "{output}");
    assert!(output.contains(" echo "), "{output}");
}

#[test]
fn a_terminal_that_is_closed_ends_the_wait() {
    let scene = scene();
    let mut terminal = Terminal::new();
    let mut wrapper = start(&scene, &terminal, &mut scene.command(&["true"]));
    terminal.type_in("\x04");
    let output = wrapper.ends_with(125);
    assert!(
        output.contains("standard input was closed before anything was entered"),
        "{output}"
    );
    assert!(terminal.echoes());
}

#[test]
fn a_configured_fifo_is_used_even_at_a_terminal() {
    let scene = Scene::new();
    let terminal = Terminal::new();
    let wrapper = scene.spawn(scene.command(&["true"]).stdin(terminal.programs()));
    wrapper.wait_for_fifo();
    assert!(terminal.echoes());
    wait_until("the FIFO", || scene.fifo().exists());
}
