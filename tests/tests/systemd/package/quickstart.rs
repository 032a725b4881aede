//! The quick start on AWS, from an empty account to an encrypted table. moto stands in for IAM and KMS on the
//! workstation. It checks neither codes nor policies, so local-aws stands in for STS and KMS on the host, with the key
//! policy that the page has put on the key.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use end_to_end_tests::{Process, Sandbox, Terminal, fence};
use serde_json::Value;

use super::boot_with_package;
use crate::site::{BROKER, Running, Site};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const DEVICE: &str = "arn:aws:iam::123456789012:mfa/mariadb";

/// An empty account, and a clone of the repository in which an administrator works.
struct Account {
    _server: Process,
    url: String,
    programs: PathBuf,
    clone: PathBuf,
}

impl Account {
    fn new(sandbox: &Sandbox) -> Self {
        let tools = Command::new(format!("{REPOSITORY}/scripts/aws-tools"))
            .args(["moto", "moto[server]==5.2.5"])
            .output()
            .unwrap();
        let programs = PathBuf::from(String::from_utf8(tools.stdout).unwrap().trim());
        let mut moto = Command::new(programs.join("moto_server"));
        let server = Process::start(moto.args(["--host", "127.0.0.1", "--port", "0"]));
        let line = server.wait_for("Running on http://");
        let (_, url) = line.split_once("Running on ").unwrap();
        let clone = sandbox.directory("clone");
        std::os::unix::fs::symlink(format!("{REPOSITORY}/examples"), clone.join("examples"))
            .unwrap();
        Self {
            url: url.trim().into(),
            _server: server,
            programs,
            clone,
        }
    }

    /// What the administrator types, and sees.
    fn typed(&self, commands: &str) -> String {
        let output = Command::new("sh")
            .args(["-ec", commands])
            .current_dir(&self.clone)
            .env("PATH", format!("{}:/usr/bin:/bin", self.programs.display()))
            .env("AWS_ENDPOINT_URL", &self.url)
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "an example's secret")
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{commands}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn answer(&self, command: &str) -> Value {
        serde_json::from_str(&self.typed(command)).unwrap()
    }
}

/// A policy of examples/policies for this account and this key.
fn policy(name: &str, key_arn: &str) -> Value {
    let path = Path::new(REPOSITORY).join("examples/policies").join(name);
    let text = fs::read_to_string(path).unwrap();
    let sample = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let text = text
        .replace(sample, key_arn)
        .replace("111122223333", "123456789012");
    serde_json::from_str(&text).unwrap()
}

/// Follows the steps of the workstation; returns the key policy.
fn make_key_and_user(account: &Account) -> String {
    let steps = [
        fence("quickstart-user"),
        fence("quickstart-key"),
        fence("quickstart-policies"),
        fence("quickstart-mfa-device"),
        fence("quickstart-mfa-enable"),
        fence("quickstart-access-key"),
    ];
    let printed = account.typed(&steps.map(|step| step.commands).concat());
    assert!(
        printed.contains(&format!("MFA device: {DEVICE}\n")),
        "{printed}"
    );

    let described = account.answer("aws kms describe-key --key-id alias/mariadb");
    let key_arn = described["KeyMetadata"]["Arn"].as_str().unwrap();
    let on_the_key =
        |operation: &str| account.answer(&format!("aws kms {operation} --key-id {key_arn}"));
    assert_eq!(
        on_the_key("get-key-rotation-status")["KeyRotationEnabled"],
        true
    );
    let key_policy = on_the_key("get-key-policy --policy-name default");
    let key_policy = key_policy["Policy"].as_str().unwrap();
    let parsed: Value = serde_json::from_str(key_policy).unwrap();
    assert_eq!(parsed, policy("mfa.json", key_arn));
    let user_policy =
        account.answer("aws iam get-user-policy --user-name mariadb --policy-name mariadb-kms");
    assert_eq!(
        user_policy["PolicyDocument"],
        policy("iam/server-user.json", key_arn)
    );
    let devices = account.answer("aws iam list-mfa-devices --user-name mariadb");
    assert_eq!(devices["MFADevices"][0]["SerialNumber"], DEVICE);
    let keys = account.answer("aws iam list-access-keys --user-name mariadb");
    assert_eq!(keys["AccessKeyMetadata"].as_array().unwrap().len(), 1);
    key_policy.into()
}

/// A host with MariaDB and the package's file.
fn host() -> Running {
    boot_with_package(Site::clean().told_where_aws_is(BROKER))
}

#[test]
fn the_quick_start_leads_from_an_empty_account_to_an_encrypted_table() {
    let sandbox = Sandbox::new();
    let account = Account::new(&sandbox);
    let key_policy = make_key_and_user(&account);
    let running = host();
    let machine = &running.machine;
    // Without encryption, the text is in the file.
    let table = fence("quickstart-table").commands;
    assert_eq!(machine.sh(&table), "text\nnobody may read this\n1");
    machine.sh("mariadb -e 'DROP DATABASE quickstart'");

    let key_policy = key_policy.replace("123456789012", "111122223333");
    running.aws.put_key_policy(&sandbox, &key_policy);
    let (access_key_id, secret_access_key) = running.aws.long_term_key();
    machine.sh(&format!(
        "cd /root\n{}",
        fence("quickstart-install").commands
    ));

    let mut terminal = Terminal::new();
    let setup = fence("quickstart-setup").commands;
    let setup = machine.start_in(&terminal, &["sh", "-ec", &setup]);
    for (question, answer) in [
        ("MFA device", running.aws.serial_number().as_str()),
        ("Master key", ""),
        ("AWS region", ""),
        ("in the server's place?", ""),
        ("Access key ID", &access_key_id),
        ("Secret access key", &secret_access_key),
        ("Make these changes?", "y"),
    ] {
        terminal.wait_for_nth(question, 1);
        terminal.type_in(&format!("{answer}\n"));
    }
    terminal.wait_for_success(setup);

    let start = fence("quickstart-start").commands;
    let mut start = Process::start(&mut machine.command(&["sh", "-ec", &start]));
    running.wait_for_fifo();
    running.echo_code();
    let (status, output) = start.finish();
    assert!(status.success(), "{output}");
    assert_eq!(machine.sh(&table), "text\nnobody may read this\n0");
}
