//! What the environment holds: no value makes a program panic, an empty variable counts as unset, and
//! what cannot be used is named before a code is asked for.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStringExt,
    path::Path,
    process::Command,
    thread,
};

use end_to_end_tests::{Scene, after, dist, variables_of};

/// Every variable that our programs read, or the AWS SDK in them.
const VARIABLES: [&str; 54] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_ACCESS_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CREDENTIAL_PROFILES_FILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_STS",
    "AWS_ENDPOINT_URL_KMS",
    "AWS_ENDPOINT_URL_S3",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_CA_BUNDLE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_SDK_UA_APP_ID",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_MAX_ATTEMPTS",
    "AWS_RETRY_MODE",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CREDENTIALS_DIRECTORY",
    "HOME",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "SSH_CONNECTION",
    "SUDO_UID",
    "_X_AMZN_TRACE_ID",
];

/// For messages.
fn short(variable: &str, value: &OsStr) -> String {
    let value: String = value.to_string_lossy().chars().take(60).collect();
    format!("{variable}={value:?}")
}

fn values() -> Vec<OsString> {
    [
        b"".to_vec(),
        b"\r".to_vec(),
        b"value\r\n".to_vec(),
        b"va lue".to_vec(),
        b"\xff\xfe\x01".to_vec(),
        "\u{feff}v\u{e4}lue".into(),
        vec![b'a'; 100_000],
        b"/dev/zero".to_vec(),
        b"http://[::1".to_vec(),
    ]
    .map(OsString::from_vec)
    .to_vec()
}

/// The programs: each gets as far as it can without a code.
fn programs(scene: &Scene, keys: &Path) -> Vec<Command> {
    let without_key = |mut command: Command| {
        command
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env_remove("AWS_EC2_METADATA_DISABLED")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9");
        command
    };
    let device = format!("--mfa-serial={}", scene.aws.serial_number());
    vec![
        scene.command(&["--check", "true"]),
        without_key(scene.command(&["--check", "true"])),
        scene.manage_key_command(&["--key=alias/mariadb", "status", "000000"]),
        scene.aws.data_keys_command("bin", &["verify"], keys),
        without_key(scene.aws.data_keys_command("bin", &["verify"], keys)),
        scene.aws.program("iam-kms-unlock", &[&device]),
        // Its socket cannot be made.
        scene
            .aws
            .program("iam-kms-console", &["--listen=/proc/console.sock"]),
    ]
}

/// Runs `command`, which must end by itself and in order; returns what it said.
fn ends_in_order(command: &mut Command, what: &str) -> String {
    let mut limited = after(&["timeout", "--signal=KILL", "120"], command);
    let output = limited.output().unwrap();
    let (out, err) = (&output.stdout, &output.stderr);
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    );
    let code = output.status.code();
    assert!(
        matches!(code, Some(0 | 1 | 123 | 125)) && !said.contains("panicked"),
        "{what}: {:?} {}\n{}",
        command.get_program(),
        output.status,
        said.chars().take(2000).collect::<String>()
    );
    assert!(said.len() < 20_000, "{what}: {} bytes", said.len());
    said
}

#[test]
fn no_value_of_any_variable_makes_a_program_panic_or_hang() {
    let scene = Scene::new().line("request_timeout_seconds = 2");
    let keys = scene.sandbox.directory("keys");
    let key = "00112233445566778899aabbccddeeff";
    scene
        .aws
        .wrap_key(&scene.sandbox, key, &keys.join("aws-kms-key.1.1"));
    let count = programs(&scene, &keys).len();
    // Most of them spend their time waiting for an endpoint that is not there.
    thread::scope(|threads| {
        for program in 0..count {
            let mut runs = Vec::new();
            for variable in VARIABLES {
                for value in values() {
                    let mut command = programs(&scene, &keys).swap_remove(program);
                    command.env(variable, &value);
                    runs.push((command, short(variable, &value)));
                }
            }
            threads.spawn(|| {
                for (mut command, what) in runs {
                    ends_in_order(&mut command, &what);
                }
            });
        }
    });
}

#[test]
fn no_value_of_any_variable_makes_a_start_or_a_broker_panic() {
    let scene = Scene::new()
        .without("kms_mfa_id")
        .line("mfa = false")
        .line("request_timeout_seconds = 2");
    let broker = scene.sandbox.write(
        "broker.config",
        "[kms]\nmfa = false\nbroker_socket = /proc/broker.sock\n",
    );
    for variable in VARIABLES {
        for value in values() {
            let what = short(variable, &value);
            let said = ends_in_order(scene.command(&["/bin/true"]).env(variable, &value), &what);
            assert!(!said.contains("waiting for the MFA code"), "{said}");
            // It gets as far as its socket, which cannot be made.
            let mut command = scene.command(&[]);
            command.env(variable, &value);
            let mut alone = Command::new(dist("bin/iam-kms-broker"));
            alone
                .arg(format!("--config={}", broker.display()))
                .env_clear()
                .envs(variables_of(&command));
            ends_in_order(&mut alone, &what);
        }
    }
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let scene = Scene::new();
    for variable in VARIABLES {
        if variable.starts_with("SSL_CERT") {
            continue;
        }
        let present = scene
            .command(&[])
            .get_envs()
            .any(|(name, _)| name == OsStr::new(variable));
        if present && variable != "AWS_EC2_METADATA_DISABLED" {
            continue;
        }
        let mut command = scene.command(&["--check", "true"]);
        let said = ends_in_order(command.env(variable, ""), variable);
        assert!(!said.contains("FAILED"), "{variable}: {said}");
    }
    // The general URL is not hidden by an empty special one, nor the region by an empty one.
    let mut command = scene.command(&["--check", "true"]);
    command
        .env("AWS_ENDPOINT_URL_STS", "")
        .env("AWS_REGION", "")
        .env("AWS_DEFAULT_REGION", "us-east-1");
    assert!(!ends_in_order(&mut command, "endpoint").contains("FAILED"));
}

#[test]
fn what_cannot_be_used_is_named_before_the_prompt_and_no_secret_shown() {
    let scene = Scene::new();
    let (id, secret) = scene.aws.long_term_key();
    for (variable, value, says) in [
        (
            "AWS_ACCESS_KEY_ID",
            format!("{id}\r"),
            "AWS_ACCESS_KEY_ID contains a line break",
        ),
        (
            "AWS_SECRET_ACCESS_KEY",
            format!("{secret}\n"),
            "AWS_SECRET_ACCESS_KEY contains a line break",
        ),
        (
            "AWS_SECRET_ACCESS_KEY",
            String::new(),
            "AWS_SECRET_ACCESS_KEY is not",
        ),
        ("AWS_SECRET_ACCESS_KEY", "a b".into(), "has a space"),
        (
            "AWS_REGION",
            "us-east-1\r".into(),
            "AWS_REGION contains a line break",
        ),
        (
            "AWS_REGION",
            "us east".into(),
            "AWS_REGION (environment) is \"us east\", which is not an AWS region",
        ),
        (
            "AWS_ENDPOINT_URL",
            "127.0.0.1:4566".into(),
            "AWS_ENDPOINT_URL (environment) is \"127.0.0.1:4566\", which is not a URL",
        ),
        (
            "AWS_USE_FIPS_ENDPOINT",
            "yes".into(),
            "AWS_USE_FIPS_ENDPOINT is neither true nor false",
        ),
        (
            "AWS_SESSION_TOKEN",
            "x".repeat(40_000),
            "AWS_SESSION_TOKEN is longer than",
        ),
        (
            "AWS_CREDENTIAL_EXPIRATION",
            "tomorrow".into(),
            "AWS_CREDENTIAL_EXPIRATION is not a time",
        ),
        (
            "AWS_CREDENTIAL_EXPIRATION",
            "2020-01-01T00:00:00Z".into(),
            "expired at 2020-01-01T00:00:00Z",
        ),
    ] {
        let mut command = scene.command(&["true"]);
        if variable == "AWS_CREDENTIAL_EXPIRATION" {
            command.env("AWS_SESSION_TOKEN", "token");
        }
        let output = scene.spawn(command.env(variable, &value)).ends_with(125);
        assert!(output.contains(says), "{variable}: {output}");
        assert!(!output.contains("waiting for"), "{output}");
        assert!(!output.contains(&secret), "{output}");
    }
}
