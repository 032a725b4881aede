//! Where credentials come from: each source works, or the message says what to do; what others could
//! have planted has no effect; what never ends is refused.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use aws_session::clock::{unix_seconds_now, utc_text};
use broker_api::{Reply, Request};
use end_to_end_tests::{
    Manager, NOBODY, Process, SLEEP, Scene, after, after_mounting,
    broker::{ask, generate, generated},
    inspection::environment,
    wait_until,
};
use serde_json::Value;

/// The user's key as the lines of a profile.
fn key(scene: &Scene) -> String {
    let (id, secret) = scene.aws.long_term_key();
    format!("aws_access_key_id = {id}\naws_secret_access_key = {secret}\n")
}

/// `command` without the key in its environment.
fn without_key(mut command: Command) -> Command {
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    command
}

/// `command` with this text as AWS's configuration file, and no key in its environment.
fn with_config(scene: &Scene, command: Command, text: &str) -> Command {
    let file = scene.sandbox.write("aws-config", text);
    let mut command = without_key(command);
    command.env("AWS_CONFIG_FILE", file);
    command
}

fn check(scene: &Scene, text: &str) -> (Option<i32>, String) {
    output(&mut with_config(
        scene,
        scene.command(&["--check", "true"]),
        text,
    ))
}

fn output(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (&output.stdout, &output.stderr);
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    );
    (output.status.code(), said)
}

fn works(scene: &Scene, text: &str) {
    let (code, said) = check(scene, text);
    assert_eq!(code, Some(0), "{text}\n{said}");
}

fn says(scene: &Scene, text: &str, expected: &str) {
    let (code, said) = check(scene, text);
    assert_eq!(code, Some(125), "{text}\n{said}");
    assert!(said.contains(expected), "{expected:?} is not in\n{said}");
    for of_rust in ["Error {", "cargo", "Some(", "panicked", "StatusCode"] {
        assert!(!said.contains(of_rust), "{said}");
    }
    assert!(!said.contains(&scene.aws.long_term_key().1), "{said}");
}

/// A scene with a role that the user may assume without a code.
fn scene_with_role() -> Scene {
    let scene = Scene::new().without("kms_mfa_id").line("mfa = false");
    scene.make_role(
        "database",
        r#"{"AWS": "arn:aws:iam::111122223333:root"}"#,
        "",
    );
    scene
}

const ROLE: &str = "role_arn = arn:aws:iam::111122223333:role/database\n";

#[test]
fn a_credentials_file_has_the_rules_of_the_aws_sdk_wherever_it_lies() {
    let scene = Scene::new();
    let key = key(&scene);
    let (id, secret) = key.split_at(key.find('\n').unwrap() + 1);
    let directory = scene.sandbox.directory("credentials");
    for text in [
        format!("[default]\n{key}"),
        format!("[default] # the user of production\n{key}"),
        format!("[ default ]\n{}", key.replace("aws_", "AWS_")),
        format!("[default]\n{id}[other]\na = b\n[default]\n{secret}"),
        format!("[default]\n{}", key.replace('\n', " # mine\n")),
        format!("\u{feff}[default]\n{key}"),
        format!("[default]\n{key}").replace('\n', "\r\n"),
    ] {
        let file = scene.sandbox.write("credentials/aws-credentials", &text);
        for (variable, value) in [
            ("CREDENTIALS_DIRECTORY", &directory),
            ("AWS_SHARED_CREDENTIALS_FILE", &file),
        ] {
            let mut command = without_key(scene.command(&["--check", "true"]));
            let (code, said) = output(command.env(variable, value));
            assert_eq!(code, Some(0), "{variable} {text:?}\n{said}");
        }
    }
}

/// Not only the keys.
#[test]
fn settings_in_a_credentials_file_count_wherever_it_lies() {
    let scene = Scene::new();
    let directory = scene.sandbox.directory("credentials");
    let text = format!(
        "[default]\n{}region = eu-central-1\nuse_fips_endpoint = true\n",
        key(&scene)
    );
    let file = scene.sandbox.write("credentials/aws-credentials", &text);
    for (variable, value) in [
        ("CREDENTIALS_DIRECTORY", &directory),
        ("AWS_SHARED_CREDENTIALS_FILE", &file),
    ] {
        let mut command = without_key(scene.command(&["--check", "true"]));
        command.env_remove("AWS_ENDPOINT_URL").env(variable, value);
        let (code, said) = output(&mut after(&["unshare", "--net"], &command));
        assert_eq!(code, Some(125), "{said}");
        for service in ["sts", "kms"] {
            let host = format!("cannot resolve {service}-fips.eu-central-1.amazonaws.com");
            assert!(said.contains(&host), "{variable}: {said}");
        }
    }
    // An empty variable counts as unset: the current directory is not that of the service's credentials.
    let mut command = without_key(scene.command(&["--check", "true"]));
    command
        .current_dir(&directory)
        .env("CREDENTIALS_DIRECTORY", "");
    let (code, said) = output(&mut command);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("found no AWS credentials"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_its_variable_before_the_prompt() {
    let scene = Scene::new();
    let fifo = scene.sandbox.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let directory = scene.sandbox.directory("directory");
    let syntax = scene.sandbox.write("syntax", "[default]\nno equals sign\n");
    let binary = scene.sandbox.path("binary");
    fs::write(&binary, b"\xff\xfe[\0d\0").unwrap();
    // What systemd-creds encrypts.
    let line = "k6iUCUh0RJCQyvL8k8q1UyAAAAABAAAADAAAABAAAAC1lFmbWAqZ8dCCQkAAAAAAgAAAAAAAAA";
    let encrypted = scene
        .sandbox
        .write("encrypted", &format!("{line}\n{line}==\n"));
    for (file, why) in [
        (
            encrypted.as_path(),
            "it looks encrypted by systemd-creds: have systemd decrypt it, with LoadCredentialEncrypted= in",
        ),
        (Path::new("/dev/zero"), "it is a device, not a regular file"),
        (&fifo, "it is a FIFO, not a regular file"),
        (&directory, "it is a directory, not a regular file"),
        (&syntax, "line 2: expected key = value"),
        (&binary, "it is not UTF-8 text"),
    ] {
        for variable in ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"] {
            let mut command = without_key(scene.command(&["true"]));
            let output = scene.spawn(command.env(variable, file)).ends_with(125);
            let expected = format!(
                "cannot use the AWS file {} ({variable}): {why}",
                file.display()
            );
            assert!(output.contains(&expected), "{output}");
        }
    }
    let credentials = scene.sandbox.directory("credentials");
    nix::unistd::mkfifo(
        &credentials.join("aws-credentials"),
        nix::sys::stat::Mode::S_IRWXU,
    )
    .unwrap();
    let mut command = without_key(scene.command(&["true"]));
    command.env("CREDENTIALS_DIRECTORY", &credentials);
    let output = scene.spawn(&mut command).ends_with(125);
    assert!(
        output.contains("it is a FIFO, not a regular file"),
        "{output}"
    );
}

#[test]
fn an_unreadable_file_and_one_that_is_not_there_are_named_for_the_services_user() {
    let scene = Scene::new();
    let file = scene
        .sandbox
        .write("unreadable", &format!("[default]\n{}", key(&scene)));
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let mut command = without_key(scene.command_as_nobody(&["true"]));
    command.env("AWS_SHARED_CREDENTIALS_FILE", &file);
    let output = scene.spawn(&mut command).ends_with(125);
    let expected = format!(
        "cannot use the AWS file {} (AWS_SHARED_CREDENTIALS_FILE): Permission denied",
        file.display()
    );
    assert!(output.contains(&expected), "{output}");

    let mut command = without_key(scene.command(&["true"]));
    command.env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials");
    let output = scene.spawn(&mut command).ends_with(125);
    let expected = "/nonexistent/credentials (AWS_SHARED_CREDENTIALS_FILE), which does not exist";
    assert!(output.contains(expected), "{output}");

    let mut command = without_key(scene.command(&["true"]));
    command.env("AWS_PROFILE", "prod");
    let output = scene.spawn(&mut command).ends_with(125);
    assert!(
        output.contains("there is no profile prod (AWS_PROFILE)"),
        "{output}"
    );
}

#[test]
fn a_malformed_key_is_named_with_file_and_line() {
    let scene = Scene::new();
    let text = "[default]\n\naws_access_key_id = AK IA\naws_secret_access_key = s3cret\n";
    let file = scene.sandbox.path("aws-config");
    says(
        &scene,
        text,
        &format!(
            "the key ({}, line 3) has a space or a non-printable character in its AccessKeyId",
            file.display()
        ),
    );
    says(
        &scene,
        "[default]\naws_access_key_id = AKIA\n",
        "it has no aws_secret_access_key",
    );
    says(
        &scene,
        "[default]\naws_access_key_id =\n",
        "its aws_access_key_id is empty",
    );
    says(
        &scene,
        &format!("[default]\n{}region = us east\n", key(&scene)),
        &format!(
            "region ({}, line 4) is \"us east\", which is not an AWS region",
            file.display()
        ),
    );
}

#[test]
fn a_role_is_assumed_with_another_profiles_key_its_own_or_the_environments() {
    let scene = scene_with_role();
    let key = key(&scene);
    works(
        &scene,
        &format!("[default]\n{ROLE}source_profile = base\n[profile base]\n{key}"),
    );
    works(
        &scene,
        &format!("[default]\n{ROLE}source_profile = default\n{key}"),
    );
    let profile = format!("[profile role]\n{ROLE}credential_source = Environment\n");
    let file = scene.sandbox.write("aws-config", &profile);
    // The profile is named in the configuration, so that the key is not taken as it is.
    let scene = scene.line("profile = role");
    let mut command = scene.command(&["--check", "true"]);
    let (code, said) = output(command.env("AWS_CONFIG_FILE", file));
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("assumed-role/database/iam-kms-wrapper-"),
        "{said}"
    );
}

#[test]
fn a_profile_has_the_credentials_that_the_aws_cli_would_find_in_it() {
    let scene = scene_with_role();
    let (key, scene) = (key(&scene), scene.line("profile = p"));
    let lines = format!("{ROLE}source_profile = base\n");
    // Keys come before a role only where another role is assumed with them.
    works(
        &scene,
        &format!(
            "[profile p]\n{lines}[profile base]\n{key}role_arn = arn:aws:iam::1:role/none\nsource_profile = p\n"
        ),
    );
    // As `aws configure set` writes a name with a space.
    works(
        &scene,
        &format!("[profile p]\n{ROLE}source_profile = my base\n[profile 'my base']\n{key}"),
    );
    for text in [
        "sso_session = company",
        "login_session = arn:aws:iam::111122223333:user/db",
    ] {
        says(
            &scene,
            &format!("[profile p]\n{text}\n{key}"),
            "which only the AWS CLI does",
        );
    }
    says(
        &scene,
        &format!("[profile p]\nrole_arn = r\nweb_identity_token_file = /none\n{key}"),
        "cannot use the token file /none (web_identity_token_file)",
    );
    let short = |seconds| {
        format!("[profile p]\n{lines}duration_seconds = {seconds}\n[profile base]\n{key}")
    };
    says(
        &scene,
        &short(60),
        "its duration_seconds is \"60\", which is not a number from 900 to 43200",
    );
    let scene = scene.with_broker();
    let mut command = with_config(&scene, scene.broker_command(), &short(900));
    let broker = Process::start(&mut command);
    broker.wait_for("is open until");
    broker.wait_for("listening on");
    let Reply::Session(state) = ask(&scene, &Request::Session) else {
        panic!("no state");
    };
    let left = state.expiration_unix_seconds.unwrap() - unix_seconds_now();
    assert!((1..=900).contains(&left), "{left}");
}

#[test]
fn half_a_key_in_the_environment_disturbs_no_profile() {
    let scene = Scene::new().line("profile = p");
    let config = format!("[profile p]\n{}", key(&scene));
    let mut command = with_config(&scene, scene.command(&["--check", "true"]), &config);
    let (code, said) = output(command.env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_profile_takes_the_credentials_of_container_and_instance_and_exchanges_a_token() {
    let scene = Scene::with_machine_role("900").line("profile = p");
    scene.make_role(
        "database",
        r#"{"AWS": "arn:aws:iam::111122223333:role/host"}"#,
        "",
    );
    let token = scene.aws.path("web-identity-token");
    let uri = format!("{}/container-credentials", scene.aws.endpoint());
    for (lines, role) in [
        (
            format!("{ROLE}credential_source = EcsContainer\n"),
            "database",
        ),
        (
            format!("{ROLE}credential_source = Ec2InstanceMetadata\n"),
            "database",
        ),
        (
            format!(
                "role_arn = arn:aws:iam::111122223333:role/host\nweb_identity_token_file = {}\n",
                token.display()
            ),
            "host",
        ),
    ] {
        let mut command = with_config(
            &scene,
            scene.command(&["--check", "true"]),
            &format!("[profile p]\n{lines}"),
        );
        command
            .env_remove("AWS_EC2_METADATA_DISABLED")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", scene.aws.endpoint())
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri)
            .env(
                "AWS_CONTAINER_AUTHORIZATION_TOKEN",
                scene.aws.read("container-token"),
            );
        let (_, said) = output(&mut command);
        let line = said
            .lines()
            .find(|line| line.contains("AWS credentials: "))
            .unwrap();
        let session = format!("assumed-role/{role}/");
        assert!(line.starts_with("ok ") && line.contains(&session), "{said}");
    }
}

#[test]
fn a_role_that_leads_nowhere_is_reported_in_plain_words() {
    let scene = scene_with_role();
    let key = key(&scene);
    for (text, expected) in [
        (
            format!("[default]\n{ROLE}"),
            "it has role_arn, but no source_profile or credential_source",
        ),
        (
            format!("[default]\n{ROLE}source_profile = gone\n"),
            "there is no profile gone (source_profile)",
        ),
        (
            format!(
                "[default]\n{ROLE}source_profile = a\n[profile a]\n{ROLE}source_profile = default\n"
            ),
            "its roles form a loop",
        ),
        (
            format!(
                "[default]\nrole_arn = arn:aws:iam::111122223333:role/none\nsource_profile = base\n[profile base]\n{key}"
            ),
            "STS refused the request: AccessDenied: User: ",
        ),
        (
            format!("[default]\n{ROLE}source_profile = base\nmfa_serial = arn:aws:iam::1:mfa/x\n"),
            "set kms_mfa_id = arn:aws:iam::1:mfa/x, role_arn = arn:aws:iam::111122223333:role/database and profile = base there",
        ),
    ] {
        says(&scene, &text, expected);
    }
}

#[test]
fn profiles_that_only_the_aws_cli_signs_in_say_how_to_export_their_credentials() {
    let scene = Scene::new();
    for line in [
        "sso_session = company",
        "sso_start_url = https://company.awsapps.com/start",
        "login_session = arn:aws:iam::111122223333:user/db",
    ] {
        says(
            &scene,
            &format!("[default]\n{line}\nsso_account_id = 1\n"),
            "aws configure export-credentials --profile default --format env",
        );
    }
}

/// A file with what a credential_process prints: the user's key.
fn printed(scene: &Scene) -> PathBuf {
    let (id, secret) = scene.aws.long_term_key();
    let document = format!(r#"{{"Version":1,"AccessKeyId":"{id}","SecretAccessKey":"{secret}"}}"#);
    scene.sandbox.write("printed.json", &document)
}

#[test]
fn a_credential_process_is_waited_for_aloud_and_not_for_ever() {
    let scene = Scene::new().line("request_timeout_seconds = 1");
    let printed = printed(&scene);
    let text = format!(
        "[default]\ncredential_process = cat {}\n",
        printed.display()
    );
    works(&scene, &text);
    says(
        &scene,
        "[default]\ncredential_process = sleep 1000\n",
        "credential_process: it did not end within 1 second (request_timeout_seconds) and was killed",
    );
    let (_, said) = check(&scene, "[default]\ncredential_process = exit 7\n");
    assert!(
        said.contains("waiting for the credential_process of profile default"),
        "{said}"
    );
    assert!(
        said.contains("credential_process: it failed (exit status: 7)"),
        "{said}"
    );
}

/// On Red Hat, SUSE and Arch, /bin/sh is bash, which keeps the signal mask that it starts with.
#[test]
fn a_credential_process_of_the_broker_can_end_what_it_starts_where_the_shell_is_bash() {
    let scene = Scene::new()
        .with_broker()
        .line("request_timeout_seconds = 8");
    let printed = printed(&scene);
    let text = format!(
        "[default]\ncredential_process = timeout 1 sleep 1000; cat {}\n",
        printed.display()
    );
    let command = with_config(&scene, scene.broker_command(), &text);
    let bash = Path::new("/bin/bash");
    let broker = Process::start(&mut after_mounting(bash, "/bin/sh", &command));
    broker.wait_for("enter an MFA code");
}

#[test]
fn the_launcher_waits_for_a_slow_credential_process_of_the_key_store_and_has_fresh_credentials() {
    let scene = Scene::new().with_broker();
    let store = scene.sandbox.directory("store");
    let scene = scene
        .line("request_timeout_seconds = 60")
        .line(&format!("key_store = file://{}", store.display()))
        .line("key_store_profile = store");
    let runs = scene.sandbox.path("runs");
    for (end, pause) in [
        // Longer than a broker may take to come up.
        ("", "sleep 11;"),
        (
            r#","SessionToken":"t","Expiration":"2099-01-01T00:00:00Z""#,
            "",
        ),
    ] {
        let document =
            format!(r#"{{"Version":1,"AccessKeyId":"AKIASTORE","SecretAccessKey":"secret"{end}}}"#);
        let printed = scene.sandbox.write("printed.json", &document);
        fs::write(&runs, "").unwrap();
        let config = scene.sandbox.write(
            "aws-config",
            &format!(
                "[profile store]\ncredential_process = echo run >> {}; {pause} cat {}\n",
                runs.display(),
                printed.display()
            ),
        );
        let mut command = scene.command(&SLEEP);
        let wrapper = scene.spawn(command.env("AWS_CONFIG_FILE", config));
        wrapper.process.wait_for("waiting for the MFA code");
        wrapper.write(format!("{}\n", scene.aws.code()).as_bytes());
        wrapper.wait_for_command("sleep");
        // Those that end are looked for again after the code.
        let runs = fs::read_to_string(&runs).unwrap().lines().count();
        assert_eq!(runs, if end.is_empty() { 1 } else { 2 });
        drop(wrapper);
        let socket = &scene.configuration.broker_socket;
        wait_until("the broker to leave", || !socket.exists());
    }
}

#[test]
fn what_a_servers_user_plants_in_its_home_runs_no_program_and_is_named() {
    let scene = Scene::new();
    let (home, ran) = scene.plant_home(NOBODY, "http://127.0.0.1:9");
    let mut command = without_key(scene.command_as_nobody(&["true"]));
    let output = scene.spawn(command.env("HOME", &home)).ends_with(125);
    let said = format!("({} is not read", home.join(".aws").display());
    assert!(output.contains(&said), "{output}");
    assert!(!output.contains("AKIAPLANTED"), "{output}");
    assert!(!ran.exists());
}

#[test]
fn root_reads_no_home_that_others_can_write_and_none_beside_a_credential_of_the_service() {
    let scene = Scene::new().without("kms_mfa_id").line("mfa = false");
    let (home, ran) = scene.plant_home(NOBODY, "http://127.0.0.1:9");
    let mut command = without_key(scene.command(&["true"]));
    let output = scene.spawn(command.env("HOME", &home)).ends_with(125);
    assert!(output.contains("is not read"), "{output}");
    // Now nobody else can write it, but the service has a key of its own.
    for path in [
        home.clone(),
        home.join(".aws"),
        home.join(".aws/config"),
        home.join(".aws/credentials"),
    ] {
        chown(&path, Some(0), None).unwrap();
    }
    let mut command = scene.command(&["printenv", "AWS_REGION"]);
    let mut wrapper = scene.spawn(command.env("HOME", &home));
    // No region was found: printenv ends with 1.
    wrapper.ends_with(1);
    assert!(!ran.exists());
}

#[test]
fn the_operators_tools_read_the_home_directory_as_the_aws_cli_does() {
    let scene = Scene::new();
    let home = scene.sandbox.directory("home");
    fs::create_dir(home.join(".aws")).unwrap();
    fs::write(
        home.join(".aws/credentials"),
        format!("[default]\n{}", key(&scene)),
    )
    .unwrap();
    let keys = scene.sandbox.directory("keys");
    let data_key = "00112233445566778899aabbccddeeff";
    scene
        .aws
        .wrap_key(&scene.sandbox, data_key, &keys.join("aws-kms-key.1.1"));
    let mut command = scene.aws.data_keys_command("bin", &["verify"], &keys);
    command
        .env_remove("AWS_SHARED_CREDENTIALS_FILE")
        .env("HOME", &home);
    let (code, said) = output(&mut command);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn instance_metadata_that_does_not_answer_is_distinguished_from_one_without_a_role() {
    let scene = Scene::with_machine_role("900");
    let mut command = without_key(scene.command(&["true"]));
    command
        .env_remove("AWS_EC2_METADATA_DISABLED")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", scene.aws.endpoint());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url);
    let output = scene.spawn(&mut command).ends_with(125);
    let expected = format!("the instance metadata service at {url} gave no credentials: ");
    assert!(output.contains(&expected), "{output}");
    assert!(
        output.contains("the hop limit must be 2 or more"),
        "{output}"
    );

    let mut scene = scene;
    let endpoint = scene.aws.endpoint();
    scene.aws.serve_again(&endpoint, &[]);
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint);
    let output = scene.spawn(&mut command).ends_with(125);
    let expected =
        format!("the instance metadata service at {endpoint} has no role for this instance");
    assert!(output.contains(&expected), "{output}");
    assert!(!output.contains("hop limit"), "{output}");
}

#[test]
fn a_token_file_is_named_with_its_variable() {
    let scene = Scene::with_machine_role("900");
    let fifo = scene.sandbox.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let empty = scene.sandbox.write("empty", "");
    for (file, why) in [
        (Path::new("/nonexistent/token"), "No such file"),
        (Path::new("/dev/zero"), "it is a device, not a regular file"),
        (&fifo, "it is a FIFO, not a regular file"),
        (&empty, "it is empty"),
    ] {
        for variable in [
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        ] {
            let mut command = without_key(scene.command(&["true"]));
            let uri = format!("{}/container-credentials", scene.aws.endpoint());
            command
                .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)
                .env("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/host")
                .env(variable, file);
            let output = scene.spawn(&mut command).ends_with(125);
            let expected = format!(
                "cannot use the token file {} ({variable}): {why}",
                file.display()
            );
            assert!(output.contains(&expected), "{output}");
        }
    }
}

/// The command knows nothing of the profile that the configuration names.
#[test]
fn the_session_of_the_configured_profile_is_handed_to_the_command() {
    let scene = Scene::new()
        .without("kms_mfa_id")
        .line("mfa = false")
        .line("profile = p")
        .line("region = us-east-1");
    let document: Value = serde_json::from_str(&scene.aws.session_document_without_code()).unwrap();
    let mut printed = document["Credentials"].clone();
    printed["Version"] = 1.into();
    let file = scene.sandbox.write("printed", &printed.to_string());
    let config = format!("[profile p]\ncredential_process = cat {}\n", file.display());
    let wrapper = scene.spawn(&mut with_config(&scene, scene.command(&SLEEP), &config));
    wrapper.wait_for_command("sleep");
    let passed = environment(wrapper.process.pid());
    let has = |name: &str, value: &str| passed.contains(&(name.into(), value.into()));
    let id = printed["AccessKeyId"].as_str().unwrap();
    assert!(has("AWS_ACCESS_KEY_ID", id), "{passed:?}");
    assert!(has("AWS_REGION", "us-east-1"), "{passed:?}");
}

#[test]
fn a_roles_credentials_are_not_frozen_in_the_environment() {
    let scene = Scene::with_machine_role("900")
        .without("handoff")
        .line("region = us-east-1");
    let mut command = without_key(scene.command(&SLEEP));
    command.env_remove("AWS_REGION");
    let uri = format!("{}/container-credentials", scene.aws.endpoint());
    let token = scene.aws.read("container-token");
    command
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri)
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN", &token);
    let wrapper = scene.spawn(&mut command);
    wrapper.wait_for_command("sleep");
    let passed = environment(wrapper.process.pid());
    for (name, value) in [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", token),
        ("AWS_REGION", "us-east-1".into()),
    ] {
        assert!(passed.contains(&(name.to_owned(), value)), "{passed:?}");
    }
    assert!(
        !passed
            .iter()
            .any(|(name, _)| name == "AWS_ACCESS_KEY_ID" || name == "AWS_SESSION_TOKEN"),
        "{passed:?}"
    );
}

/// Writes a credentials file with a new session, as the agent of Systems Manager does on a hybrid host.
fn rotate(scene: &Scene, name: &str) -> String {
    let document = scene.aws.session_document_without_code();
    let document: Value = serde_json::from_str(&document).unwrap();
    let session = &document["Credentials"];
    let text = |field: &str| session[field].as_str().unwrap();
    let lines = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\naws_session_token = {}\n",
        text("AccessKeyId"),
        text("SecretAccessKey"),
        text("SessionToken")
    );
    scene.sandbox.write(name, &lines);
    text("AccessKeyId").into()
}

#[test]
fn a_credentials_file_that_an_agent_rotates_is_read_again_when_its_session_is_over() {
    let scene = Scene::with_aws(&["--session-lifetime=600"])
        .with_broker()
        .without("kms_mfa_id")
        .line("mfa = false");
    let first = rotate(&scene, "rotated");
    let mut command = without_key(scene.broker_command());
    command.env("AWS_SHARED_CREDENTIALS_FILE", scene.sandbox.path("rotated"));
    let broker = Process::start(&mut command);
    broker.wait_for("listening on ");
    generated(&scene);
    assert!(scene.aws.log().contains(&first));
    scene.aws.end_session();
    assert!(matches!(ask(&scene, &generate(16)), Reply::Failed(_)));
    // The same credentials are not tried again and again meanwhile.
    broker.wait_for(&format!(
        "({first}) have expired; provide new ones; trying again in 2 s"
    ));
    let second = rotate(&scene, "rotated");
    wait_until("a key with the next session", || {
        matches!(ask(&scene, &generate(16)), Reply::Generated { .. })
    });
    broker.wait_for(&format!("session {second} is open"));
}

#[test]
fn systemd_learns_that_a_session_without_a_code_is_over_and_why_there_is_no_next_one() {
    let end = unix_seconds_now() + 12;
    let scene = Scene::new()
        .with_broker()
        .without("kms_mfa_id")
        .line("mfa = false")
        .line("log_format = json")
        .line("profile = p");
    let session = format!(
        r#"{{"Version":1,"AccessKeyId":"ASIAX1","SecretAccessKey":"s","SessionToken":"t","Expiration":"{}"}}"#,
        utc_text(end)
    );
    let session = scene.sandbox.write("session.json", &session);
    let profile = format!(
        "[profile p]\ncredential_process = cat {}\n",
        session.display()
    );
    let mut manager = Manager::start(&scene.sandbox);
    let mut command = without_key(scene.broker_command());
    command
        .env(
            "AWS_CONFIG_FILE",
            scene.sandbox.write("aws-config", &profile),
        )
        .env("NOTIFY_SOCKET", manager.address());
    let broker = Process::start(&mut command);
    manager.wait_for("STATUS=session ASIAX1 is open until");
    fs::remove_file(&session).unwrap();
    // No client asks for the session.
    manager.wait_for("and no new one can be opened");
    broker.wait_for("session_end");
}
