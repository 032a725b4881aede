//! `kms-manage-key`, and AWS's own CLI beside it.

use std::{
    io::{Write, pipe},
    process::Command,
};

use crate::{Process, Scene};

/// A condition of a policy that is met with MFA.
pub const MFA: &str = r#""Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"}}"#;
/// A condition of a policy that is met without MFA.
pub const NO_MFA: &str =
    r#""Condition": {"BoolIfExists": {"aws:MultiFactorAuthPresent": "false"}}"#;

/// A host whose master key is `alias/mariadb`.
pub fn scene(serve_arguments: &[&str]) -> Scene {
    Scene::with_aws(serve_arguments).line("master_key_id = alias/mariadb")
}

/// Denies the user `action` of KMS under `condition`.
pub fn deny(scene: &Scene, action: &str, condition: &str) {
    let policy = format!(
        r#"{{"Version": "2012-10-17", "Statement": [
            {{"Effect": "Allow", "Principal": {{"AWS": "arn:aws:iam::111122223333:root"}},
              "Action": "kms:*", "Resource": "*"}},
            {{"Effect": "Deny", "Principal": {{"AWS": "arn:aws:iam::111122223333:user/mariadb"}},
              "Action": {action}, "Resource": "*", {condition}}}]}}"#
    );
    let key_id = describe(scene, "KeyId");
    let arguments = [
        "kms",
        "put-key-policy",
        "--key-id",
        &key_id,
        "--policy",
        &policy,
    ];
    scene.aws.cli(&arguments);
}

/// What AWS's own CLI says of the key.
pub fn describe(scene: &Scene, what: &str) -> String {
    let query = format!("--query=KeyMetadata.{what}");
    let arguments = [
        "kms",
        "describe-key",
        "--key-id=alias/mariadb",
        "--output=text",
    ];
    scene.aws.cli(&[&arguments[..], &[&query]].concat())
}

/// The state that AWS's own CLI shows.
pub fn state(scene: &Scene) -> String {
    describe(scene, "KeyState")
}

/// AWS's own CLI on the key: `disable-key` and the like.
pub fn key_cli(scene: &Scene, operation: &str, further: &[&str]) {
    let key_id = format!("--key-id={}", describe(scene, "KeyId"));
    scene
        .aws
        .cli(&[&["kms", operation, &key_id], further].concat());
}

/// Starts it with this on standard input, a pipe.
pub fn start_with_input(command: &mut Command, input: &str) -> Process {
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(input.as_bytes()).unwrap();
    Process::start(command.stdin(reader))
}

/// Starts it with a good code on standard input.
pub fn start(scene: &Scene, arguments: &[&str]) -> Process {
    let code = format!("{}\n", scene.aws.code());
    start_with_input(&mut scene.manage_key_command(arguments), &code)
}

/// Waits for the end, which must have this exit code, and returns all lines.
pub fn ends_with(mut process: Process, code: i32) -> String {
    let (status, output) = process.finish();
    assert_eq!(status.code(), Some(code), "{status}\n{output}");
    output
}
