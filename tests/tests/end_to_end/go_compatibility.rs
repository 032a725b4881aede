//! What worked with the Go program of MariaDB's manual works unchanged.

use std::fs;

use end_to_end_tests::{SLEEP, Scene, Wrapper, inspection};

/// Prints its arguments, one a line.
const SHOW_ARGUMENTS: [&str; 4] = ["sh", "-c", "for a in \"$@\"; do echo \"<$a>\"; done", "sh"];

#[test]
fn the_file_of_the_manual_works_unchanged() {
    let scene = Scene::new();
    let text = fs::read_to_string(scene.configuration.write(&scene.sandbox)).unwrap();
    assert_eq!(
        text,
        format!(
            "[kms]\nkms_mfa_id = {}\nkms_mfa_socket = {}\n",
            scene.aws.serial_number(),
            scene.fifo().display()
        )
    );
    let mut wrapper = scene.start(&["true"]);
    wrapper.give_code(&scene.aws);
    wrapper.ends_with(0);
}

/// As systemd makes it of `ExecStart=… --config=FILE /usr/sbin/mysqld $MYSQLD_OPTS`.
#[test]
fn every_way_that_go_took_the_config_flag_works_with_the_commands_own_flags_behind_it() {
    let scene = Scene::new();
    let file = scene.configuration.write(&scene.sandbox);
    let file = file.to_str().unwrap();
    let with_equals = |flag: &str| vec![format!("{flag}={file}")];
    let with_space = |flag: &str| vec![flag.to_owned(), file.to_owned()];
    for flags in [
        with_equals("--config"),
        with_equals("-config"),
        with_space("--config"),
        with_space("-config"),
    ] {
        for end_of_flags in [None, Some("--")] {
            let mut command = scene.aws.program("iam-kms-wrapper", &[]);
            command
                .args(&flags)
                .args(end_of_flags)
                .args(SHOW_ARGUMENTS)
                .args(["--config=/etc/my.cnf", "-config", "--", "--user=mysql"]);
            let mut wrapper = scene.spawn(&mut command);
            wrapper.give_code(&scene.aws);
            let output = wrapper.ends_with(0);
            let arguments: Vec<_> = output
                .lines()
                .filter(|line| line.starts_with('<'))
                .collect();
            assert_eq!(
                arguments,
                [
                    "<--config=/etc/my.cnf>",
                    "<-config>",
                    "<-->",
                    "<--user=mysql>"
                ],
                "{flags:?} {end_of_flags:?}"
            );
        }
    }
}

/// Starts with a good code under other variables than the usual two.
fn start_with(scene: &Scene, variables: &[(&str, &str)]) -> Wrapper {
    let mut command = scene.command(&SLEEP);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .envs(variables.iter().copied());
    let wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    wrapper
}

fn caller(scene: &Scene) -> String {
    let log = scene.aws.log();
    let call = log.lines().last().unwrap();
    let call: serde_json::Value = serde_json::from_str(call).unwrap();
    call["userIdentity"]["userName"].as_str().unwrap().into()
}

#[test]
fn the_second_names_of_the_key_variables_are_taken_too() {
    let scene = Scene::new();
    let (access_key_id, secret_access_key) = scene.aws.long_term_key();
    start_with(
        &scene,
        &[
            ("AWS_ACCESS_KEY", &access_key_id),
            ("AWS_SECRET_KEY", &secret_access_key),
        ],
    );
}

#[test]
fn the_credentials_file_is_found_by_the_variable_of_the_manual() {
    let scene = Scene::new();
    let file = scene.aws.path("credentials");
    let file = file.to_str().unwrap();
    for name in [
        "AWS_CREDENTIAL_PROFILES_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
    ] {
        let wrapper = start_with(&scene, &[(name, file)]);
        let environment = inspection::environment(wrapper.process.pid());
        assert!(
            !environment.iter().any(|(known, _)| known == name),
            "{name}"
        );
    }
}

#[test]
fn a_profile_is_chosen_by_the_configuration_or_by_the_environment() {
    let scene = Scene::new();
    scene.aws.run(&["user", "operator"]);
    let serial_number = scene.aws.read("users/operator/mfa-serial");
    let scene = scene
        .without("kms_mfa_id")
        .line(&format!("kms_mfa_id = {serial_number}"));
    let file = scene.aws.path("credentials");
    let file = ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap());
    // Whose code it is does not matter here: AWS tells whose key it was.
    let ask = |scene: &Scene, variables: &[(&str, &str)]| {
        let mut command = scene.command(&["true"]);
        command
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .envs(variables.iter().copied());
        let wrapper = scene.spawn(&mut command);
        wrapper.wait_for_fifo();
        wrapper.write(scene.aws.wrong_code().as_bytes());
        wrapper.process.wait_for("AWS refused the code");
        caller(scene)
    };
    assert_eq!(
        ask(&scene, &[file, ("AWS_PROFILE", "operator")]),
        "operator"
    );
    let scene = scene.line("profile = operator");
    assert_eq!(ask(&scene, &[file]), "operator");
    // As the configuration says, whatever the environment holds.
    let (access_key_id, secret_access_key) = scene.aws.long_term_key();
    let key = [
        file,
        ("AWS_ACCESS_KEY_ID", access_key_id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", secret_access_key.as_str()),
    ];
    assert_eq!(ask(&scene, &key), "operator");
}

/// `local-aws` takes requests for its own region only.
#[test]
fn the_region_comes_from_the_profile_and_reaches_the_command() {
    let scene = Scene::in_region("eu-north-1");
    let text = "[default]\nregion = eu-north-1\n";
    let file = scene.sandbox.write("aws-config", text);
    let (access_key_id, secret_access_key) = scene.aws.long_term_key();
    let wrapper = start_with(
        &scene,
        &[
            ("AWS_ACCESS_KEY_ID", &access_key_id),
            ("AWS_SECRET_ACCESS_KEY", &secret_access_key),
            ("AWS_CONFIG_FILE", file.to_str().unwrap()),
        ],
    );
    let pid = wrapper.process.pid();
    assert_eq!(inspection::variable(pid, "AWS_REGION"), "eu-north-1");
}
