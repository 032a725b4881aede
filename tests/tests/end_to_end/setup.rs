//! What `iam-kms-wrapper setup` says of its options. What it writes is shown on booted machines.

use std::process::{Command, Output, Stdio};

use end_to_end_tests::{Sandbox, after, dist};

const DEVICE: &str = "--mfa-device=arn:aws:iam::123456789012:mfa/mariadb";
const KEY: &str =
    "--master-key=arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const ACCESS_KEY_ID: &str = "--access-key-id=AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

fn setup(arguments: &[&str]) -> Command {
    let mut command = Command::new(dist("bin/iam-kms-wrapper"));
    command.arg("setup").args(arguments).stdin(Stdio::null());
    command
}

/// A dry run; returns exit code, standard output and standard error.
fn dry_run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = setup(arguments).arg("--dry-run").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn answers_that_nobody_can_be_asked_for_are_named() {
    let secret_file = "--secret-access-key-file=/dev/null";
    for (arguments, missing) in [
        (
            &[][..],
            "missing: --mfa-device, --master-key, --region, --access-key-id, --secret-access-key-file",
        ),
        (
            &[DEVICE, "--master-key=alias/mariadb"],
            "missing: --region, --access-key-id, --secret-access-key-file",
        ),
        (
            &[DEVICE, KEY],
            "missing: --access-key-id, --secret-access-key-file",
        ),
        (
            &[DEVICE, KEY, ACCESS_KEY_ID],
            "missing: --secret-access-key-file",
        ),
        (
            &[DEVICE, KEY, ACCESS_KEY_ID, secret_file],
            "the secret access key must be",
        ),
    ] {
        let (code, shown, said) = dry_run(arguments);
        assert_eq!((code, shown.as_str()), (Some(125), ""), "{said}");
        assert!(said.contains(missing), "{said}");
    }
}

#[test]
fn a_wrong_answer_is_refused_with_what_is_right() {
    for (argument, right) in [
        (
            "--mfa-device=arn:aws:iam::123456789012:user/mariadb",
            "such as arn:aws:iam::123456789012:mfa/NAME",
        ),
        (
            "--mfa-device=arn:aws:iam::123456789012:u2f/user/mariadb/key",
            "STS takes no security key or passkey",
        ),
        ("--mfa-device=arn:aws:iam::123456789012:mfa/a b", "such as"),
        (
            "--master-key=mariadb/alias",
            "an alias such as alias/mariadb",
        ),
        (
            "--master-key=mariadb",
            "or an alias such as alias/mariadb (did you mean alias/mariadb?)",
        ),
        ("--region=EU West", "such as us-east-1"),
        (
            "--access-key-id=ASIAIOSFODNN7EXAMPLE",
            "a long-term access key",
        ),
        ("--access-key-id=secret", "such as AKIAIOSFODNN7EXAMPLE"),
        ("--hand-over=environment", "service, launcher"),
        ("--secret-access-key=secret", "--secret-access-key-file"),
    ] {
        let (code, shown, said) = dry_run(&[argument]);
        assert_eq!((code, shown.as_str()), (Some(125), ""), "{said}");
        assert!(said.contains(right), "{said}");
    }
}

#[test]
fn the_region_is_that_of_the_master_key_and_no_other() {
    let sandbox = Sandbox::new();
    let secret = sandbox.write("secret", &format!("{SECRET}\n"));
    let secret = format!("--secret-access-key-file={}", secret.display());
    let options = [DEVICE, KEY, ACCESS_KEY_ID, &secret];
    let (code, shown, said) = dry_run(&options);
    assert_eq!(code, Some(0), "{said}");
    assert!(shown.contains("\n    region = eu-west-1\n"), "{shown}");
    let (code, _, said) = dry_run(&[&options[..], &["--region=us-east-1"]].concat());
    assert_eq!(code, Some(125));
    assert!(said.contains("is not in the region us-east-1"), "{said}");
}

#[test]
fn a_dry_run_shows_all_but_the_secret() {
    let sandbox = Sandbox::new();
    let secret = sandbox.write("secret", SECRET);
    let secret = format!("--secret-access-key-file={}", secret.display());
    for (hand_over, drop_in) in [
        ("service", "iam-kms-broker.conf"),
        ("launcher", "iam-kms-wrapper.conf"),
    ] {
        let hand_over = format!("--hand-over={hand_over}");
        let (code, shown, said) = dry_run(&[DEVICE, KEY, ACCESS_KEY_ID, &secret, &hand_over]);
        assert_eq!(code, Some(0), "{said}");
        for text in [
            "Create /etc/iam-kms-wrapper/iam-kms-wrapper.config (mode 0644):\n",
            "Create /etc/iam-kms-wrapper/aws-credentials (mode 0600",
            &format!("/mariadb.service.d/{drop_in} (mode 0644):\n"),
            "\n    aws_access_key_id = AKIAIOSFODNN7EXAMPLE\n",
            "\n    aws_secret_access_key = (not shown)\n",
            "\nNothing was changed (--dry-run).\n",
        ] {
            assert!(shown.contains(text), "{text}: {shown}");
        }
        assert!(!format!("{shown}{said}").contains(SECRET));
    }
}

#[test]
fn nothing_to_undo_is_not_a_failure() {
    let output = Command::new(dist("bin/iam-kms-wrapper"))
        .args(["setup", "--undo", "--dry-run"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("There is nothing to undo: "), "{said}");
}

#[test]
fn nothing_is_changed_without_root_or_without_systemd() {
    let sandbox = Sandbox::new();
    let program = sandbox.path("iam-kms-wrapper");
    std::fs::copy(dist("bin/iam-kms-wrapper"), &program).unwrap();
    let as_nobody = ["setpriv", "--reuid=65534", "--clear-groups"];
    let mut command = Command::new(program);
    command.args(["setup", "--undo"]);
    for (mut command, why) in [
        (after(&as_nobody, &command), "run this as root"),
        (
            after(
                &[
                    "unshare",
                    "--mount",
                    "sh",
                    "-ec",
                    "mkdir -p /run/systemd; mount -t tmpfs none /run/systemd; exec \"$@\"",
                    "sh",
                ],
                &command,
            ),
            "systemd does not run this host",
        ),
    ] {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains(why), "{said}");
    }
}
