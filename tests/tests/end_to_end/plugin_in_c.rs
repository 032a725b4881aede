//! The plugin in a C program in the server's place, which drives it through the server's headers:
//! by itself, under sanitizers, under valgrind.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use end_to_end_tests::{Scene, dist};

/// Compiles `plugin_in_c/server.c` with further options.
fn compile(scene: &Scene, options: &[&str]) -> PathBuf {
    let program = scene.sandbox.path("server");
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/end_to_end/plugin_in_c/server.c"
    );
    let output = Command::new("cc")
        .args(["-g", "-Wall", "-Werror", "-rdynamic", "-pthread"])
        .args(["-isystem", "/usr/include/mariadb/server"])
        .args(options)
        .args([Path::new("-o"), &program, Path::new(source)])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    program
}

/// The command line of the program behind `prefix`.
fn command(scene: &Scene, prefix: &[&str], program: &Path) -> Vec<String> {
    let paths = [
        program.to_owned(),
        dist("plugin/aws_key_management.so"),
        scene.configuration.broker_socket.clone(),
        scene.sandbox.directory("keys"),
    ];
    let paths = paths.iter().map(|path| path.display().to_string());
    prefix
        .iter()
        .map(|word| (*word).to_owned())
        .chain(paths)
        .collect()
}

fn run(scene: &Scene, command: &[String], code: i32) -> String {
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    let mut wrapper = scene.start(&command);
    wrapper.give_code(&scene.aws);
    wrapper.ends_with(code)
}

fn drive(prefix: &[&str], options: &[&str]) {
    let scene = Scene::new().with_broker();
    let program = compile(&scene, options);
    let output = run(&scene, &command(&scene, prefix, &program), 0);
    assert!(output.contains("all is as it must be"), "{output}");
    // The program has nothing of what the plugin looks up in a server by name, and installs it twice.
    for symbol in ["thd_killed", "wsrep_provider"] {
        let told = format!("this server does not export '{symbol}': ");
        assert_eq!(output.matches(&told).count(), 2, "{output}");
    }
}

/// What it calls possibly lost is what hash tables and reference counts point into.
const VALGRIND: [&str; 6] = [
    "valgrind",
    "--quiet",
    "--leak-check=full",
    "--errors-for-leak-kinds=definite",
    "--error-exitcode=99",
    "--num-callers=30",
];

#[test]
fn a_c_program_uses_the_plugin_as_the_server_does() {
    drive(&[], &["-O2"]);
}

#[test]
fn address_and_undefined_behaviour_sanitizers_find_nothing() {
    drive(
        &[],
        &[
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=undefined",
        ],
    );
}

#[test]
fn valgrind_finds_nothing() {
    drive(&VALGRIND, &[]);
}

/// Without this one the test above would prove nothing.
#[test]
fn valgrind_finds_a_buffer_that_is_one_byte_too_short() {
    let scene = Scene::new().with_broker();
    let program = compile(&scene, &[]);
    let mut command = command(&scene, &VALGRIND, &program);
    command.push("short".into());
    let output = run(&scene, &command, 99);
    assert!(output.contains("Invalid write of size"), "{output}");
    assert!(output.contains("inside a block of size 63"), "{output}");
}
