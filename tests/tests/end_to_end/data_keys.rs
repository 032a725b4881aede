//! `kms-data-keys`: lists, verifies and rewraps the data keys of servers.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use broker_api::{FindKey, GenerateDataKey, KeyContext, MakeKey, Numbering, Reply, Request};
use end_to_end_tests::{
    Database, ENCRYPT_ALL, LocalAws, NOBODY, ONLY_WITH_MFA, Process, Sandbox, Scene, Terminal,
    after, broker::ask, contains_bytes, dist, key_files, write_fifo,
};
use key_files::{
    MAX_CIPHERTEXT_BYTES, PlaintextKey,
    key_name::{Algorithm, KeyName},
    manifest::{Entry, ManifestFile},
};
use nix::{
    sys::{signal::Signal::SIGKILL, stat::Mode},
    unistd::mkfifo,
};

const KEY_1: &str = "000102030405060708090a0b0c0d0e0f";
const KEY_2: &str = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfefff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";
const KILL_AT: &str = "AWS_KEY_MANAGEMENT_KILL_AT";

/// AWS, and a directory with wrapped keys of both algorithms and lengths.
struct Keys {
    sandbox: Sandbox,
    aws: LocalAws,
    directory: PathBuf,
}

impl Keys {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let aws = LocalAws::start(&sandbox);
        let keys = Self {
            directory: sandbox.directory("keys"),
            sandbox,
            aws,
        };
        keys.wrap("aws-kms-key.1.1", KEY_1);
        keys.wrap("aws-kms-key.7.12.ctr", KEY_2);
        keys
    }

    fn wrap(&self, name: &str, key_hex: &str) {
        self.aws.wrap_key(&self.sandbox, key_hex, &self.file(name));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// `kms-data-keys` with the credentials that the AWS CLI would find.
    fn command(&self, arguments: &[&str]) -> Command {
        self.aws
            .data_keys_command("bin", arguments, &self.directory)
    }

    /// Runs it; exit status, standard output and standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        run(&mut self.command(arguments))
    }

    /// Runs it under strace, with `options`. What strace prints is on standard error.
    fn run_traced(&self, options: &[&str], arguments: &[&str]) -> (i32, String, String) {
        let strace = [&["strace", "-f", "-y", "-qq"], options].concat();
        run(&mut after(&strace, &self.command(arguments)))
    }

    /// The master key and the plaintext of a file, by AWS's own CLI in `region`.
    fn decrypted(&self, name: &str, region: &str) -> (String, String) {
        decrypted(&self.aws, &self.file(name), region)
    }

    fn contents(&self) -> Vec<(String, Vec<u8>)> {
        let content = |name: String| (name.clone(), fs::read(self.file(&name)).unwrap());
        key_files(&self.directory)
            .into_iter()
            .map(content)
            .collect()
    }
}

fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("an exit status");
    (code, text(output.stdout), text(output.stderr))
}

/// What `verify` of a directory says that asks the broker of the scene.
fn verify_by_broker(scene: &Scene, keys: &Path) -> (i32, String, String) {
    let socket = scene.configuration.broker_socket.display();
    let socket = format!("--broker-socket={socket}");
    let aws = &scene.aws;
    run(&mut aws.data_keys_command("bin", &["verify", &socket], keys))
}

fn decrypted(aws: &LocalAws, file: &Path, region: &str) -> (String, String) {
    let blob = format!("--ciphertext-blob=fileb://{}", file.display());
    let answer = aws.cli(&[
        "kms",
        "decrypt",
        &format!("--region={region}"),
        "--query=[KeyId,Plaintext]",
        "--output=text",
        &blob,
    ]);
    let (key, plaintext) = answer.split_once('\t').unwrap();
    (key.into(), plaintext.into())
}

#[test]
fn list_needs_no_aws_and_names_what_the_server_would_not_use() {
    let mut keys = Keys::new();
    let mut list = keys.command(&["list"]);
    keys.aws.stop();
    let (code, table, errors) = run(&mut list);
    assert_eq!((code, errors.as_str()), (0, ""));
    let rows: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["ID", "VERSION", "ALGORITHM", "FILE", "AGE"]);
    assert_eq!(rows[1][..4], ["1", "1", "AES_CBC", "aws-kms-key.1.1"]);
    assert_eq!(rows[2][..4], ["7", "12", "AES_CTR", "aws-kms-key.7.12.ctr"]);

    fs::write(keys.file("aws-kms-key.7.12.bak"), "").unwrap();
    fs::copy(
        keys.file("aws-kms-key.1.1"),
        keys.file("aws-kms-key.1.1.ctr"),
    )
    .unwrap();
    let (code, table, errors) = run(&mut list);
    assert_eq!(code, 1);
    assert_eq!(table.lines().count(), 4, "{table}");
    for told in [
        "aws-kms-key.7.12.bak' has a name like",
        "same version of the same key",
    ] {
        assert!(errors.contains(told), "{errors}");
    }
    assert_eq!(errors.lines().count(), 2, "{errors}");
}

#[test]
fn a_name_that_would_forge_lines_or_turn_the_direction_of_text_is_escaped() {
    let keys = Keys::new();
    fs::write(keys.file("aws-kms-key.1.1\n\u{202e}\u{2028}\u{1b}[2J"), "").unwrap();
    let (_, _, stderr) = run(&mut keys.command(&["list"]));
    assert!(
        stderr.contains("aws-kms-key.1.1\\n\\u{202e}\\u{2028}\\u{1b}[2J' has a name like"),
        "{stderr:?}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr:?}");
}

#[test]
fn list_with_kms_tells_length_and_master_key() {
    let keys = Keys::new();
    let arn = keys.decrypted("aws-kms-key.1.1", "us-east-1").0;
    let (code, table, errors) = keys.run(&["list", "--kms"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    for (line, length) in table.lines().skip(1).zip(["16", "32"]) {
        let cells: Vec<_> = line.split_whitespace().collect();
        assert_eq!(cells[3..5], [length, arn.as_str()], "{line}");
    }

    fs::write(keys.file("aws-kms-key.1.1"), "damaged").unwrap();
    let (code, table, errors) = keys.run(&["list", "--kms"]);
    assert_eq!(code, 1);
    assert!(errors.contains("InvalidCiphertextException"), "{errors}");
    let cells: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells[3..5], ["-", "-"], "{table}");
}

#[test]
fn verify_says_that_all_is_well() {
    let keys = Keys::new();
    let (code, summary, errors) = keys.run(&["verify"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    let lines: Vec<_> = summary.lines().collect();
    assert_eq!(lines[0], "2 data keys verified at KMS, 0 failed");
    assert!(
        lines[1].starts_with("Not compared: there is no key manifest at "),
        "{summary}"
    );
    assert_eq!(keys.aws.calls("Decrypt"), 2);
}

#[test]
fn verify_compares_with_the_manifest_of_the_data_directory_and_misses_what_it_lists() {
    let keys = Keys::new();
    let datadir = keys.sandbox.directory("data");
    let manifest = ManifestFile::open(&datadir).unwrap();
    let entry = |id, hex: &str| {
        let name = KeyName {
            id,
            version: 1,
            algorithm: Algorithm::AesCbc,
        };
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        Entry::new(name, &PlaintextKey::new(&bytes).unwrap(), "arn")
    };
    let datadir = datadir.to_str().unwrap();
    let verify = || keys.run(&["verify", "--datadir", datadir]);
    manifest.record(&[entry(1, KEY_1)]).unwrap();
    assert_eq!(
        verify(),
        (
            0,
            "2 data keys verified at KMS, 0 failed\n".into(),
            String::new()
        )
    );
    manifest.record(&[entry(8, KEY_1)]).unwrap();
    let (code, _, errors) = verify();
    assert_eq!(code, 1);
    assert!(
        errors.contains("aws-kms-key.8.1 is missing in '"),
        "{errors}"
    );
    let (code, _, errors) = keys.run(&["verify", "--datadir=/nonexistent"]);
    assert_eq!(code, 125, "{errors}");
    let expected = "cannot open the data directory '/nonexistent': No such file";
    assert!(errors.contains(expected), "{errors}");
    // Such as a disk that is not mounted: restored files would be below what is mounted later.
    let empty = keys.sandbox.directory("not-mounted");
    for (command, exit_code) in [("verify", 1), ("export", 125)] {
        let arguments = [command, "--datadir", datadir];
        let output = ["--output", "/nonexistent/keys", "--password-file=/dev/null"];
        let arguments = match command {
            "verify" => arguments.to_vec(),
            _ => [&arguments[..], &output].concat(),
        };
        let (code, _, errors) = run(&mut keys.aws.data_keys_command("bin", &arguments, &empty));
        assert_eq!(code, exit_code, "{errors}");
        let expected = format!(
            "there is no key file in '{}', but '{datadir}/aws-kms-keys.list' lists 2 data keys: see that this is the \
             directory of the key files (aws_key_management_keyfile_dir, if that is set) and that it is mounted",
            empty.display()
        );
        assert_eq!(errors.matches(&expected).count(), 1, "{errors}");
        assert!(!errors.contains("is missing in"), "{errors}");
    }
    keys.wrap("aws-kms-key.8.1", KEY_2);
    let (code, summary, errors) = verify();
    assert_eq!(
        (code, summary.as_str()),
        (1, "2 data keys verified at KMS, 1 failed\n")
    );
    assert!(
        errors.contains("aws-kms-key.8.1' holds a key that this server has never had"),
        "{errors}"
    );

    // An older version may be lost, or moved away: which, only `check` can know.
    fs::remove_file(keys.file("aws-kms-key.8.1")).unwrap();
    keys.wrap("aws-kms-key.8.3", KEY_2);
    let (code, summary, errors) = verify();
    assert_eq!((code, errors.as_str()), (0, ""), "{summary}");
    let said = "Listed in the key manifest, without a file here: aws-kms-key.8.1. Restore them";
    assert!(summary.contains(said), "{summary}");
    let (_, json, _) = keys.run(&["verify", "--json", "--datadir", datadir]);
    let said = r#""reason":null,"result":"absent","version":1}"#;
    assert_eq!(json.matches(said).count(), 1, "{json}");
}

#[test]
fn verify_names_each_file_that_cannot_be_had_and_why() {
    let keys = Keys::new();
    let other = keys.aws.key(&["--alias", "alias/other"]);
    keys.aws.wrap_key_under(
        "alias/other",
        &keys.sandbox,
        KEY_1,
        &keys.file("aws-kms-key.2.1"),
    );
    keys.aws.cli(&[
        "kms",
        "disable-key",
        "--key-id",
        other.rsplit('/').next().unwrap(),
    ]);
    fs::write(keys.file("aws-kms-key.3.1"), "").unwrap();
    fs::write(keys.file("aws-kms-key.4.1"), [7; MAX_CIPHERTEXT_BYTES + 1]).unwrap();
    fs::write(keys.file("aws-kms-key.5.1"), "damaged").unwrap();
    keys.wrap("aws-kms-key.6.1", &KEY_2[..40]);
    let (code, summary, errors) = keys.run(&["verify"]);
    assert_eq!(code, 1);
    assert!(
        summary.starts_with("2 data keys verified at KMS, 5 failed\n"),
        "{summary}"
    );
    let lines: Vec<_> = errors.lines().collect();
    let expected = [
        (
            "aws-kms-key.2.1",
            "DisabledException; enable the master key",
        ),
        ("aws-kms-key.3.1", "is empty"),
        ("aws-kms-key.4.1", "is longer than the 6144 bytes"),
        ("aws-kms-key.5.1", "InvalidCiphertextException"),
        ("aws-kms-key.6.1", "a data key of 20 bytes"),
    ];
    assert_eq!(lines.len(), expected.len(), "{errors}");
    for (line, (file, why)) in lines.into_iter().zip(expected) {
        assert!(line.contains(file) && line.contains(why), "{line}");
    }
}

#[test]
fn verify_tells_machines_the_same_as_people() {
    let keys = Keys::new();
    let other = keys.aws.key(&["--alias", "alias/other"]);
    let file = keys.file("aws-kms-key.2.1");
    keys.aws
        .wrap_key_under("alias/other", &keys.sandbox, KEY_1, &file);
    let other = other.rsplit('/').next().unwrap();
    keys.aws.cli(&["kms", "disable-key", "--key-id", other]);
    fs::write(keys.file("aws-kms-key.3.1"), "damaged").unwrap();
    let textfile = keys.sandbox.path("verify.prom");
    let option = format!("--textfile={}", textfile.display());
    // node_exporter reads it, also on a system that keeps the files of its users private.
    let private = ["sh", "-c", "umask 077; exec \"$@\"", "sh"];
    let verify = keys.command(&["verify", "--json", &option]);
    let (code, json, _) = run(&mut after(&private, &verify));
    assert_eq!(code, 1);
    assert_eq!(textfile.metadata().unwrap().mode() & 0o777, 0o644);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let results: Vec<_> = json["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| format!("{}.{} {}", key["id"], key["version"], key["result"]))
        .collect();
    let expected = [
        "1.1 \"verified\"",
        "2.1 \"master_key_unusable\"",
        "3.1 \"failed\"",
        "7.12 \"verified\"",
    ];
    assert_eq!(results, expected);
    let reason = json["keys"][1]["reason"].as_str().unwrap();
    assert!(reason.contains("DisabledException"), "{reason}");
    let metrics = fs::read_to_string(&textfile).unwrap();
    for (result, count) in [
        ("verified", 2),
        ("cached", 0),
        ("not_checked", 0),
        ("wrong_key", 0),
        ("master_key_unusable", 1),
        ("failed", 1),
        ("missing", 0),
    ] {
        let line = format!("iam_kms_verify_key_versions{{result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }

    let impossible = format!("--textfile={}", keys.file("none/verify.prom").display());
    let (code, summary, errors) = keys.run(&["verify", &impossible]);
    assert_eq!(code, 1, "what is wrong counts for more");
    assert!(summary.contains("2 failed"), "{summary}");
    assert!(errors.contains("cannot write '"), "{errors}");
    for file in ["aws-kms-key.2.1", "aws-kms-key.3.1"] {
        fs::remove_file(keys.file(file)).unwrap();
    }
    let (code, _, errors) = keys.run(&["verify", &impossible]);
    assert_eq!(code, 125, "{errors}");
    let (code, _, errors) = keys.run(&["list", &option]);
    assert_eq!(code, 125, "--textfile needs --store: {errors}");
}

#[test]
fn verify_names_files_that_the_server_would_not_use_to_machines_too() {
    let keys = Keys::new();
    fs::copy(
        keys.file("aws-kms-key.1.1"),
        keys.file("aws-kms-key.1.1.ctr"),
    )
    .unwrap();
    // JSON has no place for what would turn the direction of text.
    let malformed = "aws-kms-key.1.1.bak\u{202e}\u{7f}\u{1f511}";
    fs::write(keys.file(malformed), "").unwrap();
    let textfile = keys.sandbox.path("verify.prom");
    let option = format!("--textfile={}", textfile.display());
    let (code, text, _) = keys.run(&["verify", "--json", &option]);
    assert_eq!(code, 1);
    assert!(text.trim_end().is_ascii(), "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["malformed"], serde_json::json!([malformed]));
    let conflict = json["conflicts"][0].as_str().unwrap();
    assert!(conflict.contains("same version of the same key"), "{text}");
    let metrics = fs::read_to_string(&textfile).unwrap();
    for result in ["conflict", "malformed"] {
        let line = format!("iam_kms_verify_key_versions{{result=\"{result}\"}} 1\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

#[test]
fn what_is_wrong_or_done_is_said_although_the_output_is_lost() {
    let keys = Keys::new();
    let run_without_output = |arguments: &[&str]| {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        run(keys.command(arguments).stdout(full))
    };
    let new = keys.aws.key(&[]);
    let (code, _, errors) = run_without_output(&["rewrap", "--to", &new]);
    assert_eq!(code, 125, "{errors}");
    for said in [
        "cannot write to the standard output",
        "the work is done: 2 data keys wrapped under",
        "aws_key_management_master_key_id",
    ] {
        assert!(errors.contains(said), "{said}: {errors}");
    }
    assert_eq!(run_without_output(&["verify"]).0, 125);
    fs::write(keys.file("aws-kms-key.3.1"), "damaged").unwrap();
    for arguments in [&["verify"][..], &["verify", "--json"]] {
        let (code, _, errors) = run_without_output(arguments);
        assert_eq!(code, 1, "{errors}");
    }
}

#[test]
fn verify_outlasts_throttling() {
    let keys = Keys::new();
    keys.aws
        .fault("--operation Decrypt --kind throttle --count 3");
    let (code, summary, errors) = keys.run(&["verify"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{summary}");
    assert_eq!(keys.aws.calls("Decrypt"), 5);
}

#[test]
fn verify_through_a_broker_outlasts_throttling_and_an_answer_of_an_outage() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let keys = scene.sandbox.directory("keys");
    scene
        .aws
        .wrap_key(&scene.sandbox, KEY_1, &keys.join("aws-kms-key.7.1"));
    for kind in ["throttle", "503"] {
        scene
            .aws
            .fault(&format!("--operation Decrypt --kind {kind} --count 1"));
    }
    let (code, summary, errors) = verify_by_broker(&scene, &keys);
    assert_eq!((code, errors.as_str()), (0, ""), "{summary}");
}

/// The SDK has retries for 100 calls.
#[test]
fn any_number_of_keys_outlasts_throttling() {
    let keys = Keys::new();
    for id in 20..40 {
        let copy = keys.file(&format!("aws-kms-key.{id}.1"));
        fs::copy(keys.file("aws-kms-key.1.1"), copy).unwrap();
    }
    for operation in ["ReEncrypt", "Decrypt"] {
        keys.aws.fault(&format!(
            "--operation {operation} --kind throttle --count 60"
        ));
    }
    let (code, summary, errors) = keys.run(&["rewrap", "--to", &keys.aws.key(&[])]);
    assert_eq!((code, errors.as_str()), (0, ""), "{summary}");
}

#[test]
fn the_option_lines_of_an_export_are_read_as_they_are_meant() {
    let keys = Keys::new();
    let directory = keys.sandbox.directory("disk #1 \\new");
    let (output, password) = (directory.join("keys.enc"), directory.join("password"));
    fs::write(&password, "correct horse").unwrap();
    let (code, text, errors) = keys.run(&[
        "export",
        &format!("--output={}", output.display()),
        &format!("--password-file={}", password.display()),
    ]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    let lines = text.lines().filter(|line| line.starts_with("  "));
    let options: String = lines.map(|line| format!("{}\n", line.trim())).collect();
    let file = keys
        .sandbox
        .write("options.cnf", &format!("[mariadbd]\n{options}"));
    let (_, read, _) = run(Command::new("my_print_defaults")
        .arg(format!("--defaults-file={}", file.display()))
        .arg("mariadbd"));
    for line in [
        format!("--aws_key_management_offline_keys={}", output.display()),
        format!(
            "--aws_key_management_offline_filekey=FILE:{}",
            password.display()
        ),
    ] {
        assert!(read.lines().any(|it| it == line), "{line}: {read}");
    }
}

#[test]
fn an_export_advises_to_leave_out_only_keys_that_are_lost() {
    let keys = Keys::new();
    let password = keys.sandbox.write("password", "correct horse");
    let password = format!("--password-file={}", password.display());
    let output = format!("--output={}", keys.sandbox.path("exported").display());
    let mut export = keys.command(&["export", &output, &password]);
    fs::write(keys.file("aws-kms-key.3.1"), "damaged").unwrap();
    let (code, _, errors) = run(&mut export);
    assert_eq!(code, 125, "{errors}");
    assert!(errors.contains("--leave-out"), "{errors}");
    // A key that AWS does not know: nobody looks at the files.
    export.env("AWS_ACCESS_KEY_ID", "AKIAAAAAAAAAAAAAAAAA");
    let (code, _, errors) = run(export.env("AWS_SECRET_ACCESS_KEY", "none"));
    assert_eq!(code, 125, "{errors}");
    assert!(!errors.contains("--leave-out"), "{errors}");
    assert!(errors.contains("and run this again"), "{errors}");
}

#[test]
fn a_long_run_at_a_terminal_shows_its_progress() {
    let keys = Keys::new();
    keys.aws
        .fault("--operation Decrypt --kind delay --milliseconds 2500");
    let mut terminal = Terminal::new();
    let mut command = keys.command(&["verify"]);
    command.env("TERM", "xterm").stderr(terminal.programs());
    let output = command.output().unwrap();
    assert!(output.status.success());
    terminal.wait_for_nth("of 2 data keys", 1);
    let (code, _, errors) = keys.run(&["verify"]);
    assert_eq!((code, errors.as_str()), (0, ""));
}

#[test]
fn an_impossible_request_exits_with_125() {
    let mut keys = Keys::new();
    for arguments in [&["verify", "--nothing"][..], &["rewrap"], &[]] {
        assert_eq!(keys.run(arguments).0, 125, "{arguments:?}");
    }
    let nowhere = keys.sandbox.path("nowhere");
    for subcommand in ["list", "verify"] {
        let (code, _, errors) =
            run(&mut keys.aws.data_keys_command("bin", &[subcommand], &nowhere));
        assert_eq!(code, 125, "{errors}");
        assert!(
            errors.contains("nowhere") && errors.lines().count() == 1,
            "{errors}"
        );
    }
    let (code, _, errors) = run(keys
        .command(&["verify"])
        .env_remove("AWS_SHARED_CREDENTIALS_FILE"));
    assert_eq!(code, 125);
    assert!(errors.contains("found no AWS credentials: "), "{errors}");
    // Nobody has set it, and there are two other ways.
    assert!(!errors.contains("mfa = false"), "{errors}");
    for way in ["--config=FILE", "--broker-socket=PATH"] {
        assert!(errors.contains(way), "{errors}");
    }
    let (code, _, errors) = keys.run(&["rewrap", "--to", "alias/none"]);
    assert_eq!(code, 125);
    assert!(
        errors.contains("alias/none") && errors.contains("NotFoundException"),
        "{errors}"
    );
    let mut rewrap = keys.command(&["rewrap", "--to", "alias/mariadb"]);
    keys.aws.stop();
    assert_eq!(run(&mut rewrap).0, 125);
}

#[test]
fn verify_runs_under_the_wrapper_with_the_session_of_a_code() {
    let scene = Scene::new();
    let keys = scene.sandbox.directory("keys");
    scene
        .aws
        .wrap_key(&scene.sandbox, KEY_1, &keys.join("aws-kms-key.1.1"));
    scene.aws.put_key_policy(&scene.sandbox, ONLY_WITH_MFA);
    let (program, keys) = (dist("bin/kms-data-keys"), keys.display().to_string());
    let command = [program.to_str().unwrap(), "verify", &keys];
    let mut wrapper = scene.start(&command);
    wrapper.give_code(&scene.aws);
    let output = wrapper.ends_with(0);
    assert!(
        output.contains("1 data key verified at KMS, 0 failed"),
        "{output}"
    );
}

#[test]
fn a_code_is_read_from_standard_input_or_asked_for_in_a_terminal() {
    let scene = Scene::new();
    let keys = scene.sandbox.directory("keys");
    scene
        .aws
        .wrap_key(&scene.sandbox, KEY_1, &keys.join("aws-kms-key.1.1"));
    scene.aws.put_key_policy(&scene.sandbox, ONLY_WITH_MFA);
    let config = format!(
        "--config={}",
        scene.configuration.write(&scene.sandbox).display()
    );
    let command = || {
        scene
            .aws
            .data_keys_command("bin", &["verify", &config], &keys)
    };

    let code = scene
        .sandbox
        .write("code", &format!("{}\n", scene.aws.code()));
    let (status, summary, errors) = run(command().stdin(fs::File::open(code).unwrap()));
    assert_eq!(status, 0, "{errors}");
    assert!(
        summary.starts_with("1 data key verified at KMS, 0 failed\n"),
        "{summary}"
    );

    let (status, _, errors) = run(&mut command());
    assert_eq!(status, 125);
    assert!(errors.contains("standard input was closed"), "{errors}");

    let mut terminal = Terminal::new();
    let mut program = Process::start(command().stdin(terminal.programs()));
    program.wait_for("type it here");
    terminal.type_in(&format!("{}\n", scene.aws.code()));
    let (status, output) = program.finish();
    assert!(status.success(), "{output}");
    assert!(
        output.contains("1 data key verified at KMS, 0 failed"),
        "{output}"
    );
}

#[test]
fn rewrap_puts_every_key_under_another_master_key_and_keeps_owner_and_mode() {
    let keys = Keys::new();
    let arn = keys.aws.key(&["--alias", "alias/new"]);
    let file = keys.file("aws-kms-key.1.1");
    chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    let before =
        ["aws-kms-key.1.1", "aws-kms-key.7.12.ctr"].map(|name| keys.decrypted(name, "us-east-1"));
    for (to, summary) in [
        ("alias/new", "2 data keys wrapped under"),
        (arn.as_str(), "0 data keys wrapped under"),
        (arn.rsplit('/').next().unwrap(), "0 data keys wrapped under"),
    ] {
        let (code, output, errors) = keys.run(&["rewrap", "--to", to]);
        assert_eq!((code, errors.as_str()), (0, ""));
        assert!(output.starts_with(&format!("{summary} {arn}")), "{output}");
        // The old master key is still needed, once it has been left.
        assert_eq!(output.contains(&before[0].0), to == "alias/new", "{output}");
        assert_eq!(
            output.contains("aws_key_management_master_key_id"),
            to == "alias/new"
        );
    }
    assert_eq!(keys.aws.calls("ReEncrypt"), 2);
    assert_eq!(keys.aws.calls("Encrypt"), 2, "those that made the files");
    for (name, (_, plaintext)) in ["aws-kms-key.1.1", "aws-kms-key.7.12.ctr"]
        .iter()
        .zip(before)
    {
        assert_eq!(keys.decrypted(name, "us-east-1"), (arn.clone(), plaintext));
    }
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
        (NOBODY, NOBODY, 0o640)
    );
    assert_eq!(fs::read_dir(&keys.directory).unwrap().count(), 2);
}

#[test]
fn a_dry_run_says_what_would_be_done_and_what_would_be_refused() {
    let keys = Keys::new();
    let arn = keys.aws.key(&["--alias", "alias/new"]);
    let before = keys.contents();
    let (code, output, errors) = keys.run(&["rewrap", "--dry-run", "--to", "alias/new"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(
        output.starts_with(&format!("2 data keys would be wrapped under {arn}")),
        "{output}"
    );
    keys.aws.cli(&[
        "kms",
        "disable-key",
        "--key-id",
        arn.rsplit('/').next().unwrap(),
    ]);
    let (code, output, errors) = keys.run(&["rewrap", "--dry-run", "--to", "alias/new"]);
    assert_eq!(code, 1);
    assert!(output.contains("2 failed"), "{output}");
    assert_eq!(errors.matches("DisabledException").count(), 2, "{errors}");
    assert_eq!(keys.contents(), before);
}

#[test]
fn rewrap_to_another_region_resumes_where_it_was_interrupted() {
    let keys = Keys::new();
    let arn = keys.aws.key(&["--region", "eu-west-1"]);
    let before = keys.decrypted("aws-kms-key.1.1", "us-east-1").1;
    let dry = keys.run(&["rewrap", "--dry-run", "--to", &arn]);
    assert_eq!((dry.0, dry.2.as_str()), (0, ""));
    // The second file fails, and is done by the next run, which skips the first.
    let whole = fs::read(keys.file("aws-kms-key.7.12.ctr")).unwrap();
    fs::write(keys.file("aws-kms-key.7.12.ctr"), "damaged").unwrap();
    let (code, output, errors) = keys.run(&["rewrap", "--to", &arn]);
    assert_eq!(code, 1);
    assert!(
        output.contains("1 data key wrapped") && output.contains("1 failed"),
        "{output}"
    );
    assert!(errors.contains("aws-kms-key.7.12.ctr"), "{errors}");
    fs::write(keys.file("aws-kms-key.7.12.ctr"), whole).unwrap();
    let (code, output, errors) = keys.run(&["rewrap", "--to", &arn]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(
        output.contains("1 data key wrapped") && output.contains("1 under it already"),
        "{output}"
    );
    assert_eq!(
        keys.decrypted("aws-kms-key.1.1", "eu-west-1"),
        (arn, before)
    );
    assert_eq!(keys.aws.calls("ReEncrypt"), 0);
}

#[test]
fn rewrap_to_another_account_needs_that_accounts_permission() {
    let keys = Keys::new();
    let closed = keys.aws.key(&["--account", "444455556666"]);
    let before = keys.contents();
    let (code, _, errors) = keys.run(&["rewrap", "--to", &closed]);
    assert_eq!(code, 125);
    assert!(
        errors.contains("AccessDeniedException") && errors.contains(&closed),
        "{errors}"
    );
    assert_eq!(keys.contents(), before);

    // One that may be wrapped under, but not unwrapped again: nothing may be replaced.
    let policy = |actions: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":"111122223333"}},"Action":[{actions}],"Resource":"*"}}]}}"#
        )
    };
    let lopsided = keys
        .sandbox
        .write("policy", &policy(r#""kms:DescribeKey","kms:ReEncrypt*""#));
    let arn = keys.aws.key(&[
        "--account",
        "444455556666",
        "--policy",
        lopsided.to_str().unwrap(),
    ]);
    let (code, output, errors) = keys.run(&["rewrap", "--to", &arn]);
    assert_eq!(code, 1, "{output}");
    assert_eq!(
        errors.matches("allows the kms:Decrypt action").count(),
        2,
        "{errors}"
    );
    assert_eq!(keys.contents(), before);

    let open = keys.sandbox.write("policy", &policy(r#""kms:*""#));
    let arn = keys.aws.key(&[
        "--account",
        "444455556666",
        "--policy",
        open.to_str().unwrap(),
    ]);
    assert_eq!(keys.run(&["rewrap", "--to", &arn]).0, 0);
    assert_eq!(keys.decrypted("aws-kms-key.1.1", "us-east-1").0, arn);
}

#[test]
fn rewrap_killed_at_any_step_loses_nothing_and_is_resumed() {
    let keys = Keys::new();
    let names = ["aws-kms-key.1.1", "aws-kms-key.7.12.ctr"];
    let before = names.map(|name| keys.decrypted(name, "us-east-1").1);
    let mut arn = String::new();
    for (step, is_replaced, leaves_temporary_file) in [
        ("Generated", false, false),
        ("Unwrapped", false, false),
        ("TemporaryMade", false, true),
        ("HalfWritten", false, true),
        ("Written", false, true),
        ("FileSynced", false, true),
        ("Named", true, false),
        ("DirectorySynced", true, false),
    ] {
        arn = keys.aws.key(&[]);
        let arguments = ["rewrap", "--to", &arn];
        let mut command = keys
            .aws
            .data_keys_command("test-bin", &arguments, &keys.directory);
        let end = format!("{step}:1");
        let status = command.env(KILL_AT, end).status().unwrap();
        assert_eq!(status.signal(), Some(SIGKILL as i32), "{step}");
        let replaced = usize::from(is_replaced);
        let files = || fs::read_dir(&keys.directory).unwrap().count();
        assert_eq!(files(), 2 + usize::from(leaves_temporary_file), "{step}");
        // Each file is whole, and of the old or of the new master key.
        let (code, table, errors) = keys.run(&["list", "--kms"]);
        assert_eq!((code, errors.as_str()), (0, ""), "{step}");
        assert_eq!(table.matches(&arn).count(), replaced, "{step}: {table}");

        let (code, output, errors) = keys.run(&arguments);
        assert_eq!(code, 0, "{step}: {errors}");
        let left = format!("{replaced} under it already, 0 failed");
        assert!(output.contains(&left), "{step}: {output}");
        let is_removed = errors.contains("removed .aws-kms-key");
        assert_eq!(is_removed, leaves_temporary_file, "{step}: {errors}");
        assert_eq!(files(), 2, "{step}");
    }
    for (name, plaintext) in names.into_iter().zip(before) {
        assert_eq!(keys.decrypted(name, "us-east-1"), (arn.clone(), plaintext));
    }
}

#[test]
fn verify_asks_a_broker_that_runs_and_says_where_kms_was_not_asked() {
    let scene = Scene::with_aws(&["--session-lifetime=600"]).with_broker();
    let keys = scene.sandbox.directory("keys");
    let file = keys.join("aws-kms-key.1.1");
    scene.aws.wrap_key(&scene.sandbox, KEY_1, &file);
    scene.aws.put_key_policy(&scene.sandbox, ONLY_WITH_MFA);
    let verify = || verify_by_broker(&scene, &keys);

    let (code, summary, errors) = verify();
    assert_eq!(code, 125);
    assert!(errors.contains("no broker at"), "{errors}");
    assert!(
        summary.starts_with("0 data keys verified at KMS, 0 failed, 1 not checked\n"),
        "{summary}"
    );

    let _broker = scene.start_broker();
    let (code, summary, errors) = verify();
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(
        summary.starts_with("1 data key verified at KMS, 0 failed\n"),
        "{summary}"
    );

    // The session is over, and the clock of this host still near enough.
    scene.aws.set_clock("800");
    let (code, summary, errors) = verify();
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(
        summary.starts_with(
            "0 data keys verified at KMS, 0 failed, 1 data key from the broker's cache only"
        ),
        "{summary}"
    );

    fs::write(&file, "damaged").unwrap();
    let (code, summary, errors) = verify();
    assert_eq!(code, 125, "{summary}");
    assert!(
        errors.contains("aws-kms-key.1.1") && errors.contains("session ended"),
        "{errors}"
    );
}

/// A timer verifies also where the master key is enabled for starts only.
#[test]
fn a_key_that_kms_refuses_to_verify_is_there_for_a_backup_after_the_session() {
    let scene = Scene::with_aws(&["--session-lifetime=600"]).with_broker();
    let keys = scene.sandbox.directory("keys");
    let file = keys.join("aws-kms-key.1.1");
    scene.aws.wrap_key(&scene.sandbox, KEY_1, &file);
    let (arn, _) = decrypted(&scene.aws, &file, "us-east-1");
    let verify = || verify_by_broker(&scene, &keys);
    let _broker = scene.start_broker();
    assert_eq!(verify().0, 0);
    scene.aws.cli(&["kms", "disable-key", "--key-id", &arn]);
    let (code, _, errors) = verify();
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("is disabled"), "{errors}");

    // The session is over, and the clock of this host still near enough.
    scene.aws.set_clock("800");
    let (code, summary, errors) = verify();
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(
        summary.contains("1 data key from the broker's cache only"),
        "{summary}"
    );
}

#[test]
fn the_installed_kms_data_keys_has_no_fault_points() {
    let has_them = |folder: &str| {
        contains_bytes(
            &fs::read(dist(folder).join("kms-data-keys")).unwrap(),
            KILL_AT.as_bytes(),
        )
    };
    assert!(has_them("test-bin"));
    assert!(!has_them("bin"));
}

#[test]
fn a_server_that_makes_and_rotates_keys_meanwhile_starts_on_the_rewrapped_files() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let sandbox = Sandbox::new();
    let database = Database::new(&sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&["--aws-key-management=FORCE"]);
    let mut server = database.start();
    database.sql("CREATE DATABASE d");
    let arn = scene.aws.key(&["--alias", "alias/new"]);
    let rewrap = || {
        scene
            .aws
            .data_keys_command("bin", &["rewrap", "--to", "alias/new"], &database.datadir)
    };
    let make = |id: u32| {
        database.sql(&format!(
            "CREATE TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id};
             INSERT INTO d.t{id} SELECT seq FROM d.seq_1_to_100;
             SET GLOBAL aws_key_management_rotate_key=-1"
        ));
    };
    make(10);
    for id in 11..20 {
        let mut program = Process::start(&mut rewrap());
        make(id);
        let (status, output) = program.finish();
        assert!(status.success(), "{output}");
    }
    database.sql("SET GLOBAL aws_key_management_master_key_id='alias/new'");
    let (code, _, errors) = run(&mut rewrap());
    assert_eq!(code, 0, "{errors}");
    make(20);
    let names = database.key_files();
    assert!(names.len() > 50, "{names:?}");
    let (code, table, errors) =
        run(&mut scene
            .aws
            .data_keys_command("bin", &["list", "--kms"], &database.datadir));
    assert_eq!(code, 0, "{errors}");
    assert_eq!(table.matches(&arn).count(), names.len(), "{table}");
    database.stop(&mut server);
    let mut server = database.start();
    for id in 10..=20 {
        assert_eq!(
            database.sql(&format!("SELECT COUNT(*), SUM(i) FROM d.t{id}")),
            "100\t5050"
        );
    }
    database.stop(&mut server);
}

/// A key store that is new and empty.
fn empty_store(keys: &Keys) -> (PathBuf, String) {
    let path = keys.sandbox.directory("key-store");
    let option = format!("--store=file://{}", path.display());
    (path, option)
}

/// Records all key files in a manifest, as the server does.
fn record(keys: &Keys) {
    let manifest = ManifestFile::open(&keys.directory).unwrap();
    for (name, key, algorithm) in [
        ((1, 1), KEY_1, Algorithm::AesCbc),
        ((7, 12), KEY_2, Algorithm::AesCtr),
    ] {
        let bytes: Vec<u8> = (0..key.len() / 2)
            .map(|at| u8::from_str_radix(&key[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let name = KeyName {
            id: name.0,
            version: name.1,
            algorithm,
        };
        let entry = Entry::new(name, &PlaintextKey::new(&bytes).unwrap(), "");
        manifest.record(&[entry]).unwrap();
    }
}

/// What is said to be in the store must survive a loss of power: its content, its name, and the name of its directory.
#[test]
fn a_key_in_a_directory_is_on_the_disk_before_push_says_so() {
    let keys = Keys::new();
    let (path, store) = empty_store(&keys);
    let calls = ["-z", "-e", "trace=fsync,fdatasync,write"];
    let (code, text, trace) = keys.run_traced(&calls, &["push", "--init", &store]);
    assert_eq!(code, 0, "{text}{trace}");
    let said = trace.find("2 data keys put").expect("the summary");
    let path = path.display();
    for synced in [
        format!("sync(FD<{path}/7/12#"),
        format!("sync(FD<{path}/7>)"),
        format!("sync(FD<{path}>)"),
    ] {
        let (before, file) = synced.split_once("FD").unwrap();
        let is_it = |line: &str| line.contains(before) && line.contains(file);
        assert!(trace[..said].lines().any(is_it), "{synced}: {trace}");
    }
}

/// Such as some network file systems.
#[test]
fn a_file_system_without_locks_and_without_exclusive_renames_keeps_keys_too() {
    const WITHOUT: [&str; 6] = [
        "-e",
        "trace=flock,renameat2",
        "-e",
        "inject=flock:error=ENOLCK",
        "-e",
        "inject=renameat2:error=EINVAL",
    ];
    let keys = Keys::new();
    let (_, store) = empty_store(&keys);
    let (code, _, errors) = keys.run(&["push", "--init", &store]);
    assert_eq!(code, 0, "{errors}");
    let before = keys.contents();
    fs::remove_file(keys.file("aws-kms-key.7.12.ctr")).unwrap();
    let (code, text, trace) = keys.run_traced(&WITHOUT, &["pull", &store]);
    assert_eq!(code, 0, "{text}{trace}");
    for injected in ["ENOLCK", "EINVAL"] {
        assert!(trace.contains(injected), "{trace}");
    }
    assert!(text.starts_with("1 data key fetched"), "{text}");
    assert_eq!(keys.contents(), before);
    let metadata = fs::metadata(keys.file("aws-kms-key.7.12.ctr")).unwrap();
    assert_eq!(metadata.nlink(), 1);

    // Somebody may be writing a left-over that is not old, and nobody can say.
    let old = keys.file(".aws-kms-key.8.1.0123456789abcdef.new");
    let new = keys.file(".aws-kms-key.8.2.0123456789abcdef.new");
    for file in [&old, &new] {
        fs::write(file, "part").unwrap();
    }
    let two_days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    let file = fs::File::options().write(true).open(&old).unwrap();
    file.set_modified(two_days_ago).unwrap();
    let rewrap = ["rewrap", "--to=alias/mariadb"];
    let (code, text, trace) = keys.run_traced(&WITHOUT, &rewrap);
    assert_eq!(code, 0, "{text}{trace}");
    assert!(!old.exists());
    assert!(new.exists());
}

#[test]
fn push_puts_each_key_into_the_key_store_once_and_pull_brings_it_back() {
    let keys = Keys::new();
    record(&keys);
    let (path, store) = empty_store(&keys);
    // It might be the mount point of a file server that is not mounted.
    let (code, _, errors) = keys.run(&["pull", &store]);
    assert_eq!(code, 125, "{errors}");
    assert!(
        errors.contains("is not mounted, or was never made one"),
        "{errors}"
    );

    let (code, _, errors) = keys.run(&["push", &store]);
    assert_eq!(code, 125, "{errors}");
    assert!(errors.contains("kms-data-keys push --init"), "{errors}");
    let (code, text, errors) = keys.run(&["push", "--init", &store]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(
        text.starts_with("2 data keys put into the key store file://"),
        "{text}"
    );
    let (code, text, _) = keys.run(&["push", "--dry-run", &store]);
    assert_eq!(code, 0);
    assert!(text.starts_with("0 data keys would be put"), "{text}");
    assert!(text.contains("2 there already, 0 failed"), "{text}");
    let object = fs::read_to_string(path.join("7/12")).unwrap();
    assert!(
        object.contains(r#""algorithm":"AES_CTR","bits":256"#),
        "{object}"
    );

    let before = keys.contents();
    fs::remove_file(keys.file("aws-kms-key.7.12.ctr")).unwrap();
    let (code, text, _) = keys.run(&["pull", "--dry-run", &store]);
    assert_eq!(code, 0);
    assert!(text.starts_with("1 data key would be fetched"), "{text}");
    let (code, text, errors) = keys.run(&["pull", &store]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(text.starts_with("1 data key fetched"), "{text}");
    assert_eq!(keys.contents(), before);

    // Another key under the same name.
    keys.wrap("aws-kms-key.1.1", KEY_2);
    let (code, text, errors) = keys.run(&["push", &store]);
    assert_eq!(code, 1, "{text}");
    assert!(errors.contains("aws-kms-key.1.1' holds"), "{errors}");
    let manifest = keys.file("aws-kms-keys.list");
    fs::remove_file(&manifest).unwrap();
    let (code, text, errors) = keys.run(&["push", &store]);
    assert_eq!(code, 1, "{text}");
    assert!(
        errors.contains("is another key than 1/1 in the key store"),
        "{errors}"
    );
    // And in the other direction.
    fs::remove_file(keys.file("aws-kms-key.1.1")).unwrap();
    record(&keys);
    let other = fs::read_to_string(path.join("7/12")).unwrap();
    fs::write(
        path.join("1/1"),
        other.replace("\"id\":7,\"version\":12", "\"id\":1,\"version\":1"),
    )
    .unwrap();
    let (code, _, errors) = keys.run(&["pull", &store]);
    assert_eq!(code, 1);
    assert!(
        errors.contains("lists another key as 1/1 than the key store"),
        "{errors}"
    );
    assert!(!keys.file("aws-kms-key.1.1").exists());
}

#[test]
fn list_compares_with_the_key_store_and_its_exit_status_says_what_differs() {
    let keys = Keys::new();
    record(&keys);
    let (path, store) = empty_store(&keys);
    fs::write(path.join("conditional-put-check"), "").unwrap();
    let compare = |further: &[&str]| {
        let mut arguments = vec!["list", store.as_str()];
        arguments.extend(further);
        keys.run(&arguments)
    };
    let (code, table, _) = compare(&[]);
    assert_eq!(code, 1, "{table}");
    assert!(
        table.contains("1   1        AES_CBC    only here"),
        "{table}"
    );
    assert!(
        table.contains("lost with this host. Put them into the key store"),
        "{table}"
    );
    keys.run(&["push", &store]);
    let (code, table, errors) = compare(&[]);
    assert_eq!((code, errors.as_str()), (0, ""), "{table}");
    assert!(table.contains("7   12       AES_CTR    same"), "{table}");
    let (code, json, _) = compare(&["--json"]);
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["keys"][1]["state"], "same");
    assert_eq!(json["keys"][1]["version"], 12);
    assert!(json["key_store"].as_str().unwrap().starts_with("file://"));

    fs::remove_file(keys.file("aws-kms-key.7.12.ctr")).unwrap();
    let (code, table, _) = compare(&[]);
    assert_eq!(code, 2, "{table}");
    assert!(
        table.contains("7   12       AES_CTR    only in the key store"),
        "{table}"
    );
    let object = fs::read_to_string(path.join("1/1")).unwrap();
    let check_value = object.split_once("check_value\":\"").unwrap().1;
    let digit = &check_value[..1];
    let other = if digit == "0" { "1" } else { "0" };
    fs::write(
        path.join("1/1"),
        object.replace(
            &check_value[..32],
            &format!("{other}{}", &check_value[1..32]),
        ),
    )
    .unwrap();
    let (code, table, _) = compare(&[]);
    assert_eq!(code, 3, "{table}");
    assert!(
        table.contains("1   1        AES_CBC    DIFFERENT KEYS"),
        "{table}"
    );
    fs::remove_file(path.join("1/1")).unwrap();
    fs::remove_file(keys.file("aws-kms-key.1.1")).unwrap();
    let (code, table, _) = compare(&[]);
    assert_eq!(code, 1, "{table}");
    assert!(table.contains("1   1        AES_CBC    MISSING"), "{table}");

    fs::write(path.join("1/1"), &object).unwrap();
    assert_eq!(keys.run(&["pull", &store]).0, 0);
    fs::write(path.join("7/13"), "no key").unwrap();
    let (code, table, errors) = compare(&[]);
    assert_eq!(code, 1, "{table}");
    assert!(table.contains("7   12       AES_CTR    same"), "{table}");
    assert!(
        errors.contains("7/13 in the key store file://") && errors.contains("cannot be used"),
        "{errors}"
    );
    let (code, _, errors) = keys.run(&["list", "--store"]);
    assert_eq!(code, 125);
    assert!(errors.contains("no key store is configured"), "{errors}");
}

/// open(2) of a FIFO that nobody writes to takes as long as that of a file on such a server.
#[test]
fn a_key_store_on_a_file_server_that_does_not_answer_keeps_nobody_waiting() {
    let keys = Keys::new();
    let (path, store) = empty_store(&keys);
    assert_eq!(keys.run(&["push", "--init", &store]).0, 0);
    let object = path.join("7/12");
    fs::remove_file(&object).unwrap();
    mkfifo(&object, Mode::S_IRWXU).unwrap();
    let (status, said) = Process::start(&mut keys.command(&["list", &store])).finish();
    assert_eq!(status.code(), Some(125), "{said}");
    assert!(said.contains("no answer within 10 seconds"), "{said}");
}

#[test]
fn list_asks_a_broker_for_its_key_store_without_a_code() {
    let scene = Scene::new().with_broker();
    let store = end_to_end_tests::StoreDirectory::new(&scene.sandbox);
    let scene = scene.line(&format!("key_store = {}", store.location()));
    let broker = scene.start_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL);
    let mut server = database.start();
    database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
    database.stop(&mut server);
    let socket = format!(
        "--broker-socket={}",
        scene.configuration.broker_socket.display()
    );
    let compare = || {
        run(Command::new(dist("bin").join("kms-data-keys"))
            .args(["list", "--store", &socket])
            .arg(&database.datadir))
    };
    let (code, table, errors) = compare();
    assert_eq!((code, errors.as_str()), (0, ""), "{table}");
    assert_eq!(table.matches("same").count(), 4, "{table}");
    // The key store was restored from an older backup, and another server has taken the number.
    let (object, own) = (store.path().join("1/2"), store.path().join("own"));
    fs::rename(&object, &own).unwrap();
    assert_eq!(compare().0, 1);
    let other = fs::read_to_string(store.path().join("1/1")).unwrap();
    fs::write(&object, other.replace("\"version\":1", "\"version\":2")).unwrap();
    let (code, table, _) = compare();
    assert_eq!(code, 3, "{table}");
    assert!(table.contains("DIFFERENT KEYS"), "{table}");
    fs::rename(&own, &object).unwrap();
    assert_eq!(compare().0, 0);
    // A lifecycle rule removes the oldest objects, and leaves those of the last rewrap.
    let later = store.path().join("1/2.1");
    fs::rename(&object, &later).unwrap();
    assert_eq!(compare().0, 1);
    broker.wait_for("only a later form, 1/2.1, is there");
    fs::rename(&later, &object).unwrap();
    fs::remove_file(database.datadir.join("aws-kms-key.1.1")).unwrap();
    assert_eq!(compare().0, 2);
    fs::remove_file(store.path().join("1/1")).unwrap();
    let (code, table, _) = compare();
    assert_eq!(code, 1, "{table}");
    assert!(table.contains("MISSING"), "{table}");
}

/// Root's umask and root's ownership are those of the tools, not of the broker.
#[test]
fn what_root_puts_into_a_directory_the_brokers_user_reads_and_continues() {
    const UMASK: [&str; 3] = ["sh", "-c", "umask 077; exec \"$0\" \"$@\""];
    let scene = Scene::new().with_broker();
    let store = scene.sandbox.directory("store");
    let scene = scene.line(&format!("key_store = file://{}", store.display()));
    chown(&store, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&store, PermissionsExt::from_mode(0o755)).unwrap();
    let keys = scene.sandbox.directory("keys");
    scene
        .aws
        .wrap_key(&scene.sandbox, KEY_1, &keys.join("aws-kms-key.7.1"));
    let option = format!("--store=file://{}", store.display());
    let tool = |arguments: &[&str]| {
        let arguments = [arguments, &[&option]].concat();
        let command = scene.aws.data_keys_command("bin", &arguments, &keys);
        let (code, text, errors) = run(&mut after(&UMASK, &command));
        assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    };
    tool(&["push", "--init"]);
    tool(&["rewrap", "--to", &scene.aws.key(&[])]);
    let owned = |name: &str| {
        let metadata = store.join(name).metadata().unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o777)
    };
    for (name, mode) in [
        ("conditional-put-check", 0o644),
        ("7", 0o755),
        ("7/1", 0o644),
        ("7/1.1", 0o644),
    ] {
        assert_eq!(owned(name), (NOBODY, NOBODY, mode), "{name}");
    }
    // Runs that were killed before they came to that.
    let (first, later) = (store.join("7/1"), store.join("7/1.1"));
    for object in [&first, &later] {
        chown(object, Some(0), Some(0)).unwrap();
        fs::set_permissions(object, PermissionsExt::from_mode(0o600)).unwrap();
    }
    tool(&["push"]);
    assert_eq!(owned("7/1"), (NOBODY, NOBODY, 0o644));
    let master_key = fs::read_to_string(&later).unwrap();
    let (_, arn) = master_key.split_once("\"master_key\":\"").unwrap();
    tool(&["rewrap", "--to", arn.split('"').next().unwrap()]);
    assert_eq!(owned("7/1.1"), (NOBODY, NOBODY, 0o644));

    fs::set_permissions(scene.sandbox.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let broker = Process::start(&mut scene.broker_command_as(NOBODY));
    broker.wait_for("enter an MFA code");
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    broker.wait_for("can be used; it has 1 key version");
    let context = KeyContext {
        key_id: 7,
        ..KeyContext::default()
    };
    let find = Request::FindKey(FindKey {
        version: Some(1),
        context,
    });
    let found = ask(&scene, &find);
    assert!(
        matches!(&found, Reply::Stored { key: Some(key), .. } if arn.starts_with(&key.master_key_arn)),
        "{found:?}"
    );
    let make = Request::MakeKey(MakeKey {
        generate: GenerateDataKey {
            master_key_id: "alias/mariadb".into(),
            key_bytes: 16,
            context,
        },
        numbering: Numbering::Next { known: 1 },
    });
    let made = ask(&scene, &make);
    assert!(
        matches!(&made, Reply::Stored { is_new: true, .. }),
        "{made:?}"
    );
    assert_eq!(owned("7/2"), (NOBODY, NOBODY, 0o644));
    // A form that it may not read is passed over.
    fs::set_permissions(&later, PermissionsExt::from_mode(0o600)).unwrap();
    chown(&later, Some(0), Some(0)).unwrap();
    let found = ask(&scene, &find);
    assert!(
        matches!(&found, Reply::Stored { key: Some(key), .. } if !arn.starts_with(&key.master_key_arn)),
        "{found:?}"
    );
    broker.wait_for("an earlier form of 7/1 is used");
}

#[test]
fn rewrap_adds_the_new_form_to_the_key_store_also_after_an_interrupted_run() {
    let keys = Keys::new();
    record(&keys);
    let (path, store) = empty_store(&keys);
    keys.run(&["push", "--init", &store]);
    let new = keys.aws.cli(&[
        "kms",
        "create-key",
        "--query=KeyMetadata.Arn",
        "--output=text",
    ]);
    let to = format!("--to={new}");
    // The first run does not come to the key store, and both say so.
    let (code, text, errors) = keys.run(&["rewrap", &to]);
    assert_eq!(code, 0, "{text}{errors}");
    assert!(text.contains("still under the old master key"), "{text}");
    assert!(!path.join("1/1.1").exists());
    let (code, table, _) = keys.run(&["list", &store]);
    assert_eq!(code, 125, "{table}");
    assert!(table.contains("they were rewrapped without it"), "{table}");
    for _ in 0..2 {
        let (code, text, errors) = keys.run(&["rewrap", &to, &store]);
        assert_eq!((code, errors.as_str()), (0, ""), "{text}");
        let object = fs::read_to_string(path.join("1/1.1")).unwrap();
        assert!(object.contains(&new), "{object}");
        assert!(!text.contains("still under the old"), "{text}");
        assert!(!path.join("1/1.2").exists());
        assert!(!fs::read_to_string(path.join("1/1")).unwrap().contains(&new));
    }
    let wrapped = keys.contents();
    fs::remove_file(keys.file("aws-kms-key.1.1")).unwrap();
    let (code, text, _) = keys.run(&["pull", &store]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(keys.contents(), wrapped, "the latest form");
}

/// Such as keys of another server, or files that were moved away because nothing needs them at present.
#[test]
fn rewrap_reaches_keys_that_only_the_key_store_has() {
    let keys = Keys::new();
    record(&keys);
    let (path, store) = empty_store(&keys);
    keys.run(&["push", "--init", &store]);
    let before = keys.contents();
    let plaintext = keys.decrypted("aws-kms-key.1.1", "us-east-1").1;
    let first_form = fs::read(path.join("1/1")).unwrap();
    fs::remove_file(keys.file("aws-kms-key.1.1")).unwrap();
    let new = keys.aws.key(&[]);

    let (code, text, errors) = keys.run(&["rewrap", "--dry-run", "--to", &new, &store]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(
        text.starts_with("2 data keys would be wrapped under"),
        "{text}"
    );
    assert!(!path.join("1/1.1").exists() && !path.join("7/12.1").exists());

    for (moved, left) in [(2, 0), (0, 2)] {
        let (code, text, errors) = keys.run(&["rewrap", "--to", &new, &store]);
        assert_eq!((code, errors.as_str()), (0, ""), "{text}");
        let summary =
            format!("{moved} data keys wrapped under {new}, {left} under it already, 0 failed\n");
        assert!(text.starts_with(&summary), "{text}");
        let is_named = text.contains("without a file here: 1 data key\n");
        assert_eq!(is_named, moved == 2, "{text}");
        assert_eq!(key_files(&keys.directory), ["aws-kms-key.7.12.ctr"]);
        assert!(!path.join("1/1.2").exists() && !path.join("7/12.2").exists());
    }
    assert_eq!(fs::read(path.join("1/1")).unwrap(), first_form);

    let (code, text, _) = keys.run(&["pull", &store]);
    assert_eq!(code, 0, "{text}");
    assert_ne!(keys.contents(), before);
    assert_eq!(
        keys.decrypted("aws-kms-key.1.1", "us-east-1"),
        (new, plaintext)
    );

    // What cannot be rewrapped there is named and counted.
    fs::remove_file(keys.file("aws-kms-key.1.1")).unwrap();
    let object = fs::read_to_string(path.join("7/12")).unwrap();
    fs::create_dir(path.join("8")).unwrap();
    fs::write(
        path.join("8/1"),
        object.replace("\"id\":7,\"version\":12", "\"id\":8,\"version\":1"),
    )
    .unwrap();
    let claimed = fs::read_to_string(path.join("1/1")).unwrap();
    let check_value =
        |object: &str| object.split_once("check_value\":\"").unwrap().1[..32].to_owned();
    let another = object
        .replace("\"id\":7,\"version\":12", "\"id\":9,\"version\":1")
        .replace(&check_value(&object), &check_value(&claimed));
    fs::create_dir(path.join("9")).unwrap();
    fs::write(path.join("9/1"), another).unwrap();
    fs::create_dir(path.join("10")).unwrap();
    fs::write(path.join("10/1.1"), "").unwrap();
    let (code, text, errors) = keys.run(&["rewrap", "--to", &keys.aws.key(&[]), &store]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.starts_with("3 data keys wrapped") && text.contains("2 failed"),
        "{text}"
    );
    for said in [
        "9/1 in the key store file://",
        "holds another key than its check value says",
        "10/1 in the key store file://",
        "only a later form, 10/1.1, is there",
    ] {
        assert!(errors.contains(said), "{said}: {errors}");
    }
}

/// The file is for the day without AWS: what is wrong with it must be found out before.
#[test]
fn export_and_import_compare_with_the_manifest() {
    let keys = Keys::new();
    record(&keys);
    let password = keys.sandbox.write("password", "correct horse");
    let password = format!("--password-file={}", password.display());
    let output = |name: &str| keys.sandbox.path(name).display().to_string();
    let export = |name: &str, more: &[&str]| {
        let output = format!("--output={}", output(name));
        keys.run(&[&["export", &output, &password], more].concat())
    };
    let refused = |more: &[&str], why: &str| {
        let (code, text, errors) = export("refused", more);
        assert_eq!((code, text.as_str()), (125, ""), "{errors}");
        assert!(!keys.sandbox.path("refused").exists());
        assert!(errors.contains(why), "{why}: {errors}");
    };
    let (code, text, errors) = export("whole", &[]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(!text.contains("Not compared"), "{text}");

    let whole = keys.contents();
    keys.wrap("aws-kms-key.1.1", KEY_2);
    let wrong = "aws-kms-key.1.1' holds the key of aws-kms-key.7.12.ctr, not the one that";
    refused(&[], wrong);
    // The manifest is elsewhere, as with aws_key_management_keyfile_dir.
    let datadir = keys.sandbox.directory("data");
    let (here, there) = (
        keys.file("aws-kms-keys.list"),
        datadir.join("aws-kms-keys.list"),
    );
    fs::rename(&here, &there).unwrap();
    refused(&["--datadir", datadir.to_str().unwrap()], wrong);
    // Without it, nobody can know.
    let (code, text, _) = export("swapped", &[]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("Not compared: there is no key manifest"),
        "{text}"
    );

    let import = || {
        let (swapped, master_key) = (output("swapped"), "--master-key-id=alias/mariadb");
        let arguments = ["import", master_key, &password, &swapped];
        run(&mut keys.aws.data_keys_command("bin", &arguments, &datadir))
    };
    let (code, text, errors) = import();
    assert_eq!((code, text.as_str()), (125, ""), "{errors}");
    assert!(errors.contains("holds as aws-kms-key.1.1;"), "{errors}");
    assert_eq!(key_files(&datadir), [""; 0]);
    let keyfile_dir = keys.sandbox.directory("keyfile-dir");
    let into_keyfile_dir = |more: &[&str]| {
        let (swapped, master_key) = (output("swapped"), "--master-key-id=alias/mariadb");
        let arguments = ["import", master_key, &password];
        let arguments = [&arguments[..], more, &[&swapped]].concat();
        run(&mut keys.aws.data_keys_command("bin", &arguments, &keyfile_dir))
    };
    let (code, _, errors) = into_keyfile_dir(&["--datadir", datadir.to_str().unwrap()]);
    assert_eq!(code, 125, "{errors}");
    assert!(errors.contains("holds as aws-kms-key.1.1;"), "{errors}");
    let (code, text, _) = into_keyfile_dir(&[]);
    assert_eq!(code, 0, "{text}");
    let said = "Not compared: there is no key manifest";
    assert!(text.contains(said), "{text}");
    fs::rename(&there, &here).unwrap();
    assert_eq!(import().0, 0);

    for (name, content) in whole {
        fs::write(keys.file(&name), content).unwrap();
    }
    fs::remove_file(keys.file("aws-kms-key.7.12.ctr")).unwrap();
    refused(&[], "aws-kms-key.7.12.ctr is missing in '");
    refused(&[], "nothing was exported: 1 data key missing");
    // A key that is lost for good must not keep the others from being exported.
    let (code, text, errors) = export("partly", &["--leave-out=aws-kms-key.7.12.ctr"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    let said = "Not included: aws-kms-key.7.12.ctr";
    assert!(text.contains(said), "{text}");
    assert!(!text.contains("without a file here"), "{text}");
    keys.wrap("aws-kms-key.7.13.ctr", KEY_2);
    let (code, text, errors) = export("newer", &[]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    let said = "without a file here: aws-kms-key.7.12.ctr. Restore";
    assert!(text.contains(said), "{text}");
    fs::remove_file(keys.file("aws-kms-key.7.13.ctr")).unwrap();

    fs::write(here, "aws-kms-keys 1\n").unwrap();
    refused(&[], "is damaged");
}

/// Another server of the cluster has made it. Whoever restores that server's backup needs it.
#[test]
fn an_export_has_the_keys_that_only_the_key_store_has_or_is_refused() {
    let keys = Keys::new();
    record(&keys);
    let (path, store) = empty_store(&keys);
    assert_eq!(keys.run(&["push", "--init", &store]).0, 0);
    let password = keys.sandbox.write("password", "correct horse");
    let password = format!("--password-file={}", password.display());
    let export = |output: &str, more: &[&str]| {
        let output = format!("--output={}", keys.sandbox.path(output).display());
        keys.run(&[&["export", &output, &password, &store], more].concat())
    };
    let (code, text, errors) = export("same", &[]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    let (code, _, errors) = export("typo", &["--leave-out=aws-kms-key.7.14.ctr"]);
    assert_eq!(code, 125);
    assert!(
        errors.contains("there is no key file 'aws-kms-key.7.14.ctr'"),
        "{errors}"
    );

    let object = fs::read_to_string(path.join("7/12")).unwrap();
    let other = object.replace("\"version\":12", "\"version\":13");
    fs::write(path.join("7/13"), &other).unwrap();
    let (code, text, errors) = export("refused", &[]);
    assert_eq!((code, text.as_str()), (125, ""), "{errors}");
    assert!(
        errors.contains("aws-kms-key.7.13.ctr is only in the key store file://")
            && errors.contains(
                "1 data key missing; fetch the key files named above with kms-data-keys pull"
            ),
        "{errors}"
    );
    assert!(!keys.sandbox.path("refused").exists());
    let (code, text, errors) = export("without", &["--leave-out=aws-kms-key.7.13.ctr"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(
        text.contains("Not included: aws-kms-key.7.13.ctr"),
        "{text}"
    );
    assert_eq!(keys.run(&["pull", &store]).0, 0);
    let (code, text, errors) = export("pulled", &[]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(text.starts_with("3 data keys exported"), "{text}");

    // Where objects cannot be deleted, one that is no key stays.
    fs::create_dir(path.join("9")).unwrap();
    fs::write(path.join("9/1"), "no key").unwrap();
    let (code, text, errors) = export("beside_junk", &[]);
    assert_eq!(code, 0, "{errors}");
    assert!(text.starts_with("3 data keys exported"), "{text}");
    assert!(errors.contains("9/1 in the key store file://"), "{errors}");
    fs::remove_file(path.join("9/1")).unwrap();

    // An old version that this server had, and that was moved away because nothing here needs it.
    fs::remove_file(keys.file("aws-kms-key.7.12.ctr")).unwrap();
    let (code, text, errors) = export("moved", &[]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
}

/// Such as aws_key_management_keyfile_dir on a file system that is not mounted.
#[test]
fn a_directory_without_key_files_is_not_called_well() {
    let keys = Keys::new();
    let empty = keys.sandbox.directory("empty");
    let on_empty =
        |arguments: &[&str]| run(&mut keys.aws.data_keys_command("bin", arguments, &empty));
    let textfile = keys.sandbox.path("verify.prom");
    fs::write(&textfile, "of the last run\n").unwrap();
    let option = format!("--textfile={}", textfile.display());
    let (path, store) = empty_store(&keys);
    fs::write(path.join("conditional-put-check"), "").unwrap();
    let refused = |arguments: &[&str]| {
        let (code, text, errors) = on_empty(arguments);
        assert_eq!((code, text.as_str()), (125, ""), "{arguments:?} {errors}");
        let said = format!("there is no key file in '{}'; name the", empty.display());
        assert!(errors.contains(&said), "{arguments:?} {errors}");
    };
    refused(&["list"]);
    refused(&["list", "--kms"]);
    refused(&["verify", "--json", &option]);
    assert_eq!(fs::read_to_string(&textfile).unwrap(), "of the last run\n");
    refused(&["rewrap", "--to=alias/mariadb"]);
    refused(&["rewrap", "--to=alias/mariadb", &store]);
    refused(&["push", &store]);
    // A copy whose manifest says nothing but that it is one.
    let manifest = ManifestFile::open(&empty).unwrap();
    manifest.set_forked(true).unwrap();
    refused(&["verify", &option]);
    assert_eq!(fs::read_to_string(&textfile).unwrap(), "of the last run\n");

    // It is there, and a file beside it too.
    keys.aws
        .wrap_key(&keys.sandbox, KEY_1, &empty.join("aws-kms-key.1.1"));
    let (code, text, errors) = on_empty(&["verify"]);
    assert_eq!(code, 0, "{errors}");
    assert!(
        text.contains("Not compared: the key manifest '") && text.contains("' lists no key;"),
        "{text}"
    );
    fs::remove_file(empty.join("aws-kms-key.1.1")).unwrap();

    // Not so a new host, whose key store is made before its first key, and a manifest that lists keys.
    assert_eq!(on_empty(&["push", "--init", &store]).0, 0);
    record(&keys);
    let list = empty.join("aws-kms-keys.list");
    fs::rename(keys.file("aws-kms-keys.list"), list).unwrap();
    let (code, text, errors) = on_empty(&["verify", &option]);
    assert_eq!(code, 1, "{errors}");
    assert!(text.contains("0 failed, 2 missing"), "{text}");
    let metrics = fs::read_to_string(&textfile).unwrap();
    assert!(metrics.contains("{result=\"missing\"} 2\n"), "{metrics}");
}

/// One unread broker socket is not four damaged key files.
#[test]
fn verify_tells_what_it_could_not_check_from_what_is_wrong() {
    let mut keys = Keys::new();
    let textfile = keys.sandbox.path("verify.prom");
    let option = format!("--textfile={}", textfile.display());
    let uncertain = |command: &mut Command, why: &str| {
        let (code, json, errors) = run(command);
        assert_eq!(code, 125, "{json}{errors}");
        assert_eq!(errors.matches(why).count(), 2, "{why}: {errors}");
        assert!(errors.contains("not all keys could be checked"), "{errors}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        for key in json["keys"].as_array().unwrap() {
            assert_eq!(key["result"], "not_checked");
        }
        let metrics = fs::read_to_string(&textfile).unwrap();
        for (result, count) in [("not_checked", 2), ("failed", 0)] {
            let line = format!("{{result=\"{result}\"}} {count}\n");
            assert!(metrics.contains(&line), "{line}{metrics}");
        }
        fs::remove_file(&textfile).unwrap();
    };
    let verify = ["verify", "--json", &option];
    let no_broker = ["verify", "--json", &option, "--broker-socket=/none"];
    uncertain(&mut keys.command(&no_broker), "no broker at '/none'");
    let mut unknown = keys.command(&verify);
    unknown
        .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        .env(
            "AWS_SECRET_ACCESS_KEY",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        );
    uncertain(&mut unknown, "AWS does not accept the access key");

    // Something wrong is worse than something unknown.
    fs::write(keys.file("aws-kms-key.3.1"), "").unwrap();
    let (code, _, errors) = keys.run(&no_broker);
    assert_eq!(code, 1, "{errors}");
    assert!(
        !errors.contains("not all keys could be checked"),
        "{errors}"
    );
    fs::remove_file(keys.file("aws-kms-key.3.1")).unwrap();

    let mut without_network = keys.command(&verify);
    keys.aws.stop();
    uncertain(&mut without_network, "cannot reach it");
}

#[test]
fn list_with_store_looks_into_the_key_files() {
    let keys = Keys::new();
    record(&keys);
    let (_, store) = empty_store(&keys);
    keys.run(&["push", "--init", &store]);
    let compare = || keys.run(&["list", &store]);
    assert_eq!(compare().0, 0);

    let good = fs::read(keys.file("aws-kms-key.1.1")).unwrap();
    fs::write(keys.file("aws-kms-key.1.1"), "").unwrap();
    fs::write(keys.file("aws-kms-key.bad"), "").unwrap();
    fs::copy(
        keys.file("aws-kms-key.7.12.ctr"),
        keys.file("aws-kms-key.7.12"),
    )
    .unwrap();
    let (code, table, errors) = compare();
    assert_eq!(code, 1, "{table}");
    fs::remove_file(keys.file("aws-kms-key.7.12")).unwrap();
    for said in [
        "aws-kms-key.1.1' is empty",
        "aws-kms-key.bad' has a name like",
        "same version of the same key",
    ] {
        assert!(errors.contains(said), "{said}: {errors}");
    }
    let (code, table, errors) = compare();
    assert_eq!(code, 1, "{table}{errors}");
    let row = "1   1        AES_CBC    not compared\n7   12       AES_CTR    same\n";
    assert!(table.contains(row), "{table}");
    fs::remove_file(keys.file("aws-kms-key.bad")).unwrap();

    // Another key, which nobody can know without KMS.
    fs::copy(
        keys.file("aws-kms-key.7.12.ctr"),
        keys.file("aws-kms-key.1.1"),
    )
    .unwrap();
    let (code, table, errors) = compare();
    assert_eq!(code, 125, "{table}");
    assert!(
        errors.contains("not all keys could be compared"),
        "{errors}"
    );
    assert!(table.contains(row), "{table}");
    assert!(
        table.contains("Not compared: 1: these files are not")
            && table.contains("kms-data-keys verify"),
        "{table}"
    );

    // Without a manifest, the bytes say it; and the new form counts as well.
    fs::write(keys.file("aws-kms-key.1.1"), good).unwrap();
    fs::remove_file(keys.file("aws-kms-keys.list")).unwrap();
    for _ in 0..2 {
        let (code, table, _) = compare();
        assert_eq!((code, table.matches("same").count()), (0, 2), "{table}");
        let new = keys.aws.key(&[]);
        assert_eq!(keys.run(&["rewrap", "--to", &new, &store]).0, 0);
    }
}

#[test]
fn a_key_store_that_cannot_be_written_is_reported_for_each_key() {
    let keys = Keys::new();
    let full = end_to_end_tests::StoreDirectory::full(&keys.sandbox);
    let option = format!("--store={}", full.location());
    let (code, text, errors) = keys.run(&["push", &option]);
    assert_eq!(code, 1, "{errors}");
    assert!(text.contains("0 there already, 2 failed"), "{text}");
    for name in ["aws-kms-key.1.1", "aws-kms-key.7.12.ctr"] {
        let said = format!("{name}: the key store file://");
        assert!(errors.contains(&said), "{said}: {errors}");
    }
    assert_eq!(errors.matches("run this again").count(), 2, "{errors}");

    let (path, store) = empty_store(&keys);
    assert_eq!(keys.run(&["push", "--init", &store]).0, 0);
    // Where the new form would be.
    fs::create_dir(path.join("1/1.1")).unwrap();
    let new = keys.aws.key(&[]);
    let (code, text, errors) = keys.run(&["rewrap", "--to", &new, &store]);
    assert_eq!(code, 1, "{text}{errors}");
    assert!(
        text.contains("1 data key wrapped") && text.contains("1 failed"),
        "{text}"
    );
    let said =
        "aws-kms-key.1.1' is under the new master key, but its key in the key store is not: ";
    assert!(errors.contains(said), "{errors}");
    assert_eq!(keys.decrypted("aws-kms-key.1.1", "us-east-1").0, new);
    fs::remove_dir(path.join("1/1.1")).unwrap();
    let (code, text, errors) = keys.run(&["rewrap", "--to", &new, &store]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(path.join("1/1.1").is_file());
}

#[test]
fn an_export_whose_summary_is_lost_says_that_the_file_is_there() {
    let keys = Keys::new();
    let password = keys.sandbox.write("password", "correct horse");
    let password = format!("--password-file={}", password.display());
    let path = keys.sandbox.path("exported");
    let output = format!("--output={}", path.display());
    let mut export = keys.command(&["export", &password, &output]);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ended = export.stdout(full).output().unwrap();
    let errors = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(125), "{errors}");
    let said = format!("the keys were exported to '{}', but", path.display());
    assert!(errors.contains(&said), "{errors}");
    assert!(path.exists());
}

#[test]
fn a_user_who_may_not_read_the_files_learns_who_may() {
    let scene = Scene::new();
    let directory = scene.sandbox.directory("keys");
    fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    let file = directory.join("aws-kms-key.1.1");
    fs::write(&file, "wrapped").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let program = scene.copy_programs(&["kms-data-keys"]);
    let user = format!("--reuid={NOBODY}");
    let mut command = Command::new("setpriv");
    command.args([&user, "--clear-groups"]).arg(program);
    command.args(["verify", "--broker-socket=/none"]);
    let (code, summary, errors) = run(command.arg(&directory));
    assert_eq!(code, 125, "{summary}{errors}");
    assert!(summary.contains("0 failed, 1 not checked"), "{summary}");
    assert!(
        errors.contains("give the file to the user of the server")
            && errors.contains("a tool must run as that user, or as root"),
        "{errors}"
    );
}
