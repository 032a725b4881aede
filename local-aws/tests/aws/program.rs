//! The program itself: its files, its readiness, its end, its refusals; and the AWS CLI.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{BINARY, Server, aws_tools, fails, local_aws, succeeds};

/// A state directory made by `init`, removed at the end.
struct State {
    parent: tempfile::TempDir,
}

impl State {
    fn new() -> Self {
        let state = Self {
            parent: tempfile::tempdir().unwrap(),
        };
        succeeds(&mut local_aws("init", &state.path("state")));
        state
    }

    fn path(&self, name: &str) -> PathBuf {
        self.parent.path().join(name)
    }

    fn directory(&self) -> PathBuf {
        self.path("state")
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }
}

/// The AWS CLI, with nothing of the surroundings and only one try.
fn aws(state: &State, server: &Server) -> Command {
    let mut aws = Command::new(aws_tools().join("aws"));
    aws.env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", state.parent.path())
        .env(
            "AWS_SHARED_CREDENTIALS_FILE",
            state.path("state/credentials"),
        )
        .env("AWS_ENDPOINT_URL", &server.url)
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_MAX_ATTEMPTS", "1");
    aws
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn init_makes_files_for_people_and_scripts_that_only_their_owner_reads() {
    let state = State::new();
    assert_eq!(mode(&state.directory()), 0o700);
    for name in ["credentials", "env", "mfa-serial", "mfa-seed", "state.json"] {
        assert_eq!(mode(&state.directory().join(name)), 0o600, "{name}");
    }
    let read = |name: &str| fs::read_to_string(state.directory().join(name)).unwrap();
    assert_eq!(
        read("mfa-serial"),
        "arn:aws:iam::111122223333:mfa/mariadb\n"
    );
    assert!(read("credentials").starts_with("[default]\naws_access_key_id = AKIA"));
    let env = read("env");
    assert!(env.starts_with("AWS_ACCESS_KEY_ID=AKIA"), "{env}");
    assert!(env.contains("\nAWS_SECRET_ACCESS_KEY="), "{env}");
    assert_eq!(read("mfa-seed").trim_end().len(), 64);
}

#[test]
fn init_refuses_a_directory_in_use_and_changes_nothing_there() {
    let state = State::new();
    let before = fs::read(state.directory().join("state.json")).unwrap();
    let error = fails(&mut local_aws("init", &state.directory()));
    assert!(error.contains("is not empty"), "{error}");
    assert_eq!(
        fs::read(state.directory().join("state.json")).unwrap(),
        before
    );
}

#[test]
fn account_user_and_region_can_be_chosen() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("state");
    let mut init = local_aws("init", &directory);
    init.args([
        "--account",
        "999988887777",
        "--user",
        "db",
        "--region",
        "eu-west-1",
    ]);
    succeeds(&mut init);
    let serial = fs::read_to_string(directory.join("mfa-serial")).unwrap();
    assert_eq!(serial, "arn:aws:iam::999988887777:mfa/db\n");
    for wrong in [
        ["--account", "1"],
        ["--user", "../x"],
        ["--region", "Mars!"],
    ] {
        let other = parent.path().join("other");
        fails(local_aws("init", &other).args(wrong));
        assert!(!other.exists());
    }
}

#[test]
fn the_endpoint_file_is_there_while_the_server_runs() {
    let state = State::new();
    let endpoint = state.directory().join("endpoint");
    for signal in ["-TERM", "-INT"] {
        let server = Server::start(&state.directory(), &[]);
        assert!(
            server.url.starts_with("http://127.0.0.1:"),
            "{}",
            server.url
        );
        assert_eq!(
            fs::read_to_string(&endpoint).unwrap(),
            format!("{}\n", server.url)
        );
        assert_eq!(server.end_by(signal), Some(0), "{signal}");
        assert!(!endpoint.exists());
    }
}

#[test]
fn a_server_starts_again_after_it_was_killed() {
    let state = State::new();
    let server = Server::start(&state.directory(), &[]);
    assert_eq!(server.end_by("-KILL"), None);
    Server::start(&state.directory(), &[]);
}

#[test]
fn only_loopback_addresses_are_listened_on() {
    let state = State::new();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let error = fails(local_aws("serve", &state.directory()).args(["--listen", address]));
        assert!(error.contains("refusing to listen on"), "{error}");
    }
    let server = Server::start(&state.directory(), &["--listen", "127.0.0.2:0"]);
    assert!(
        server.url.starts_with("http://127.0.0.2:"),
        "{}",
        server.url
    );
}

#[test]
fn one_state_directory_has_one_server() {
    let state = State::new();
    let server = Server::start(&state.directory(), &[]);
    let error = fails(&mut local_aws("serve", &state.directory()));
    assert!(error.contains("another 'local-aws serve' runs"), "{error}");
    assert_eq!(server.end_by("-TERM"), Some(0));
}

#[test]
fn a_directory_without_state_is_named() {
    let parent = tempfile::tempdir().unwrap();
    for command in ["serve", "user"] {
        let mut program = local_aws(command, &parent.path().join("none"));
        if command == "user" {
            program.arg("name");
        }
        let error = fails(&mut program);
        assert!(
            error.contains("cannot find '") && error.contains("none/state.json"),
            "{error}"
        );
    }
}

#[test]
fn users_are_profiles_of_the_aws_cli() {
    let state = State::new();
    let server = Server::start(&state.directory(), &[]);
    succeeds(local_aws("user", &state.directory()).arg("operator"));
    for (profile, user) in [("default", "mariadb"), ("operator", "operator")] {
        let mut command = aws(&state, &server);
        let arguments = [
            "sts",
            "get-caller-identity",
            "--query",
            "Arn",
            "--output",
            "text",
        ];
        let arn = succeeds(command.args(["--profile", profile]).args(arguments));
        assert_eq!(arn, format!("arn:aws:iam::111122223333:user/{user}\n"));
    }
    for name in ["credentials", "env", "mfa-serial", "mfa-seed"] {
        assert_eq!(
            mode(&state.directory().join("users/operator").join(name)),
            0o600,
            "{name}"
        );
    }
    let error = fails(local_aws("user", &state.directory()).arg("operator"));
    assert!(
        error.contains("there is a user of that name already"),
        "{error}"
    );
}

#[test]
fn a_policy_file_that_cannot_be_used_is_refused_by_name() {
    let state = State::new();
    let policy = state.write("policy.json", r#"{"Statement":[{"Effect":"Allow"}]}"#);
    let error = fails(
        local_aws("user", &state.directory())
            .arg("x")
            .arg("--policy")
            .arg(&policy),
    );
    assert!(
        error.contains("policy.json' is not a policy that can be used"),
        "{error}"
    );
    let trust = state.write("trust.json", "{}");
    let error = fails(
        local_aws("role", &state.directory())
            .arg("x")
            .arg("--trust")
            .arg(&trust),
    );
    assert!(
        error.contains("trust.json' is not a policy that can be used"),
        "{error}"
    );
    let error = fails(
        local_aws("role", &state.directory())
            .arg("x")
            .args(["--trust", "none"]),
    );
    assert!(error.contains("cannot read 'none'"), "{error}");
}

#[test]
fn the_aws_cli_takes_its_answers_over_https() {
    let state = State::new();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certified = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = state.write("cert.pem", &certified.cert.pem());
    let key = state.write("key.pem", &certified.signing_key.serialize_pem());
    let [certificate, key] = [certificate, key].map(|path| path.to_str().unwrap().to_owned());
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    let server = Server::start(&state.directory(), &tls);
    assert!(
        server.url.starts_with("https://127.0.0.1:"),
        "{}",
        server.url
    );
    let mut command = aws(&state, &server);
    succeeds(
        command
            .env("AWS_CA_BUNDLE", &certificate)
            .args(["kms", "list-aliases"]),
    );
    let error = fails(aws(&state, &server).args(["kms", "list-aliases"]));
    assert!(error.contains("SSL validation failed"), "{error}");
}

#[test]
fn a_certificate_that_cannot_be_used_is_named() {
    let state = State::new();
    let wrong = state.write("wrong.pem", "no certificate");
    let wrong = wrong.to_str().unwrap();
    let mut serve = local_aws("serve", &state.directory());
    let error = fails(serve.args(["--tls-cert", wrong, "--tls-key", wrong]));
    assert!(error.contains("wrong.pem' for TLS"), "{error}");
    let error = fails(local_aws("serve", &state.directory()).args(["--tls-cert", wrong]));
    assert!(error.contains("--tls-key"), "{error}");
}

const README: &str = include_str!("../../README.md");

/// The first block of the README in this language.
fn readme_block(language: &str) -> &'static str {
    let (_, rest) = README.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

#[test]
fn the_policy_of_the_readme_wants_a_session_with_mfa() {
    let state = State::new();
    let server = Server::start(&state.directory(), &[]);
    let policy = state.write("policy.json", readme_block("json"));
    let policy = format!("file://{}", policy.display());
    let mut describe = aws(&state, &server);
    describe.args(["kms", "describe-key", "--key-id", "alias/mariadb"]);
    let key = succeeds(describe.args(["--query", "KeyMetadata.KeyId", "--output", "text"]));
    let mut put = aws(&state, &server);
    succeeds(put.args([
        "kms",
        "put-key-policy",
        "--key-id",
        key.trim(),
        "--policy",
        &policy,
    ]));
    let use_key = [
        "kms",
        "generate-data-key",
        "--key-id",
        "alias/mariadb",
        "--key-spec",
        "AES_256",
    ];
    let error = fails(aws(&state, &server).args(use_key));
    assert!(error.contains("(AccessDeniedException)"), "{error}");

    let read = |name: &str| fs::read_to_string(state.directory().join(name)).unwrap();
    let seed = state.directory().join("mfa-seed");
    let mut oathtool = Command::new("oathtool");
    let code = succeeds(
        oathtool
            .args(["--totp", "-b", "-"])
            .stdin(fs::File::open(seed).unwrap()),
    );
    let mut get = aws(&state, &server);
    get.args([
        "sts",
        "get-session-token",
        "--token-code",
        code.trim(),
        "--output",
        "json",
    ]);
    let session = succeeds(get.args(["--serial-number", read("mfa-serial").trim()]));
    let session: serde_json::Value = serde_json::from_str(&session).unwrap();
    let credential = |name: &str| session["Credentials"][name].as_str().unwrap().to_owned();
    let mut with_session = aws(&state, &server);
    with_session
        .env("AWS_ACCESS_KEY_ID", credential("AccessKeyId"))
        .env("AWS_SECRET_ACCESS_KEY", credential("SecretAccessKey"))
        .env("AWS_SESSION_TOKEN", credential("SessionToken"));
    succeeds(with_session.args(use_key));
}

#[test]
fn the_commands_of_the_readme_work() {
    let commands = readme_block("sh");
    let directory = tempfile::tempdir().unwrap();
    let programs = Path::new(BINARY).parent().unwrap();
    let tools = aws_tools();
    let path = std::env::join_paths(
        [programs, &tools]
            .into_iter()
            .map(Path::to_owned)
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let script = format!("set -eu\ntrap 'kill %1; wait %1' EXIT\n{commands}");
    let mut bash = Command::new("bash");
    bash.args(["-m", "-c", &script])
        .env_clear()
        .env("PATH", path.unwrap())
        .env("HOME", directory.path())
        .current_dir(directory.path());
    let output = succeeds(&mut bash);
    assert!(output.contains("\"SessionToken\": "), "{output}");
    assert!(output.contains("\"CiphertextBlob\": "), "{output}");
}
