//! The long-term key as a credential of the service: `LoadCredential=` in systemd.exec(5).

use std::{path::PathBuf, process::Command};

use end_to_end_tests::{
    Process, SLEEP, Scene,
    inspection::{environment, variable},
    write_fifo,
};

/// The user's key as a credentials file with this section.
fn file(scene: &Scene, section: &str) -> String {
    let (access_key_id, secret_access_key) = scene.aws.long_term_key();
    format!(
        "[{section}]\naws_access_key_id = {access_key_id}\naws_secret_access_key = {secret_access_key}\n"
    )
}

/// The directory as systemd makes it, with this file.
fn directory(scene: &Scene, file: &str) -> PathBuf {
    let directory = scene.sandbox.directory("credentials");
    scene.sandbox.write("credentials/aws-credentials", file);
    directory
}

/// `command` with the directory, and with a key in its environment that AWS does not know.
fn with_directory(command: &mut Command, directory: PathBuf) {
    command
        .env("CREDENTIALS_DIRECTORY", directory)
        .env("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN")
        .env("AWS_SECRET_ACCESS_KEY", "unknown");
}

#[test]
fn the_credential_goes_before_the_environment_and_the_command_is_not_led_to_it() {
    let scene = Scene::new();
    let mut command = scene.command(&SLEEP);
    with_directory(&mut command, directory(&scene, &file(&scene, "default")));
    let wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    for (name, value) in environment(wrapper.process.pid()) {
        assert_ne!(name, "CREDENTIALS_DIRECTORY");
        assert!(!value.contains("AKIA"), "{name}={value}");
    }
}

#[test]
fn the_profile_of_the_configuration_chooses_the_section() {
    let scene = Scene::new().line("profile = mariadb");
    let text = format!(
        "{}{}",
        file(&scene, "mariadb"),
        "[default]\naws_access_key_id = AKIANO\n"
    );
    let mut command = scene.command(&["true"]);
    with_directory(&mut command, directory(&scene, &text));
    let mut wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.ends_with(0);
}

#[test]
fn a_damaged_credential_exits_with_125_and_is_named_before_the_prompt() {
    let scene = Scene::new();
    for (text, why) in [
        (String::new(), "it has no aws_access_key_id in [default]"),
        (
            file(&scene, "other"),
            "it has no aws_access_key_id in [default]",
        ),
        (
            file(&scene, "default").repeat(20_000),
            "it is longer than 1048576 bytes",
        ),
    ] {
        let directory = directory(&scene, &text);
        let mut command = scene.command(&["true"]);
        with_directory(&mut command, directory.clone());
        let output = scene.spawn(&mut command).ends_with(125);
        let path = directory.join("aws-credentials");
        let refusal = format!(
            "cannot use the AWS credentials in {}: {why}",
            path.display()
        );
        assert!(output.contains(&refusal), "{output}");
        assert!(!output.contains("waiting for"), "{output}");
    }
}

#[test]
fn a_directory_without_our_credential_changes_nothing_and_passes_on() {
    let scene = Scene::new();
    let directory = scene.sandbox.directory("credentials");
    scene.sandbox.write("credentials/other", "for the server");
    let mut command = scene.command(&SLEEP);
    command.env("CREDENTIALS_DIRECTORY", &directory);
    let wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    let passed = environment(wrapper.process.pid());
    let expected = (
        "CREDENTIALS_DIRECTORY".into(),
        directory.to_str().unwrap().into(),
    );
    assert!(passed.contains(&expected), "{passed:?}");
}

#[test]
fn other_credentials_of_the_service_pass_on_beside_ours() {
    let scene = Scene::new();
    let directory = directory(&scene, &file(&scene, "default"));
    scene.sandbox.write("credentials/other", "for the server");
    let mut command = scene.command(&SLEEP);
    with_directory(&mut command, directory.clone());
    let wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    let passed = variable(wrapper.process.pid(), "CREDENTIALS_DIRECTORY");
    assert_eq!(passed, directory.to_str().unwrap());
}

#[test]
fn a_broker_alone_takes_the_credential_too() {
    let scene = Scene::new().with_broker();
    let mut command = scene.broker_command();
    with_directory(&mut command, directory(&scene, &file(&scene, "default")));
    let broker = Process::start(&mut command);
    broker.wait_for("enter an MFA code");
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    broker.wait_for("is open until");
}
