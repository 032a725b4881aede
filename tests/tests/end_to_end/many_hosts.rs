//! `examples/many-hosts`: one operator, one code, three hosts. The AWS CLI is the real one; the
//! hosts are directories of this machine, and in the place of ssh a script runs the command that it
//! is given with `sh -c` in the directory of that host.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output, Stdio},
};

use end_to_end_tests::{Configuration, LocalAws, Sandbox, Wrapper, aws_cli, dist};

const SSH: &str = r#"#!/bin/sh
echo "$*" >> "$HOSTS/arguments"
[ "$1" = -o ] && shift 2
cd "$HOSTS/$1" || exit 255
shift
exec sh -c "$*"
"#;

struct Host {
    wrapper: Wrapper,
    _sandbox: Sandbox,
}

/// A host that waits for a session; the operator knows it as `name`.
fn host(operator: &Sandbox, aws: &LocalAws, name: &str) -> Host {
    let sandbox = Sandbox::new();
    let configuration = Configuration::new(&sandbox, &aws.serial_number())
        .without("kms_mfa_id")
        .line("mfa = elsewhere");
    let option = format!("--config={}", configuration.write(&sandbox).display());
    let mut command = aws.program(
        "iam-kms-wrapper",
        &[&option, "printenv", "AWS_ACCESS_KEY_ID"],
    );
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let wrapper = Wrapper::spawn(&mut command, &configuration.fifo);
    let directory = configuration.fifo.parent().unwrap();
    symlink(directory, operator.path("hosts").join(name)).unwrap();
    wrapper.wait_for_fifo();
    Host {
        wrapper,
        _sandbox: sandbox,
    }
}

fn operator() -> (Sandbox, LocalAws) {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start(&sandbox);
    sandbox.directory("hosts");
    sandbox.directory("bin");
    let ssh = sandbox.write("bin/ssh", SSH);
    fs::set_permissions(ssh, PermissionsExt::from_mode(0o755)).unwrap();
    symlink(
        dist("bin/iam-kms-wrapper"),
        sandbox.path("bin/iam-kms-wrapper"),
    )
    .unwrap();
    (sandbox, aws)
}

fn unlock(sandbox: &Sandbox, aws: &LocalAws, code: &str, hosts: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/many-hosts/unlock");
    let aws_cli = aws_cli();
    let path = format!(
        "{}:{}:/usr/bin:/bin",
        sandbox.path("bin").display(),
        Path::new(aws_cli.get_program()).parent().unwrap().display()
    );
    let mut script = Command::new(script)
        .args(hosts)
        .env("PATH", path)
        .env("HOSTS", sandbox.path("hosts"))
        .env("FIFO", "mfa")
        .env("MFA_SERIAL", aws.serial_number())
        .env("AWS_ENDPOINT_URL", aws.endpoint())
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_SHARED_CREDENTIALS_FILE", aws.path("credentials"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = script.stdin.take().unwrap();
    writeln!(stdin, "{code}").unwrap();
    drop(stdin);
    script.wait_with_output().unwrap()
}

#[test]
fn one_code_starts_the_commands_of_three_hosts_and_a_host_that_is_down_holds_up_no_other() {
    let (sandbox, aws) = operator();
    let mut hosts = ["db1", "db2", "db3"].map(|name| host(&sandbox, &aws, name));
    // Up, but nothing waits there.
    sandbox.directory("hosts/idle");
    // Up too, and somebody has written a code before its time.
    sandbox.directory("hosts/early");
    let file = sandbox.write("hosts/early/mfa", "111676");
    let names = ["db1", "down", "db2", "idle", "early", "db3"];
    let output = unlock(&sandbox, &aws, &aws.code(), &names);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "db1: has the session\n\
         down: FAILED, see above\n\
         db2: has the session\n\
         idle: FAILED, see above\n\
         early: FAILED, see above\n\
         db3: has the session\n"
    );
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    for refusal in [
        "/idle/mfa\n",
        "/early/mfa: it is a regular file; only a FIFO is written to\n",
    ] {
        assert_eq!(stderr.matches(refusal).count(), 1, "{stderr}");
    }
    let keys = hosts.each_mut().map(|host| {
        let output = host.wrapper.ends_with(0);
        output.lines().last().unwrap().to_owned()
    });
    assert!(keys[0].starts_with("ASIA"), "{keys:?}");
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert_eq!(aws.calls("GetSessionToken"), 1);
    assert!(!sandbox.path("hosts/idle/mfa").exists());
    assert_eq!(fs::read_to_string(file).unwrap(), "111676");
    let arguments = fs::read_to_string(sandbox.path("hosts/arguments")).unwrap();
    assert_eq!(arguments.matches("ConnectTimeout").count(), names.len());
    assert!(!arguments.contains(&keys[0]), "{arguments}");
}

#[test]
fn every_host_that_has_the_session_exits_with_0() {
    let (sandbox, aws) = operator();
    let mut host = host(&sandbox, &aws, "db1");
    let output = unlock(&sandbox, &aws, &aws.code(), &["db1"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    host.wrapper.ends_with(0);
}

#[test]
fn without_a_session_no_host_is_called() {
    let (sandbox, aws) = operator();
    for (code, says) in [
        (aws.wrong_code().as_str(), "invalid MFA one time pass code"),
        ("12345", "a code has six digits"),
        ("", "a code has six digits"),
    ] {
        let output = unlock(&sandbox, &aws, code, &["db1"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(says), "{stderr}");
    }
    assert!(!sandbox.path("hosts/arguments").exists());
}
