//! The pages for the operator, whose commands are typed in beside an encrypted server.

use end_to_end_tests::{Fence, fence};

use super::encrypted_server;
use crate::site::Running;

const CONFIG: &str = "/etc/iam-kms-wrapper/iam-kms-wrapper.config";
const AT_TERMINAL: &str = "/etc/iam-kms-wrapper/terminal.config";
const IN_ENVIRONMENT: &str = "/etc/iam-kms-wrapper/operator.config";
const DATADIR: &str = "/var/lib/mysql";

/// A host with an encrypted server, whose root has AWS credentials as the AWS CLI finds them.
fn host_of_operator() -> Running {
    let running = encrypted_server();
    running
        .machine
        .sh("install -D -m 600 /etc/iam-kms-wrapper/aws-credentials /root/.aws/credentials");
    running
}

fn typed(running: &Running, command: &str) -> String {
    let endpoint = running.aws.endpoint();
    format!("export HOME=/root AWS_ENDPOINT_URL={endpoint} AWS_REGION=us-east-1\n{command}")
}

/// The same, if it is `systemd-run` that is typed.
fn passed_on(command: &str) -> String {
    let passed = command.replace("--pty ", "--pty -E AWS_ENDPOINT_URL -E AWS_REGION ");
    assert_ne!(passed, command);
    passed
}

fn encrypt_access_key(running: &Running) {
    running.machine.sh("cd /etc/iam-kms-wrapper
         systemd-creds encrypt --with-key=host --name=aws-credentials aws-credentials encrypted
         mv encrypted aws-credentials");
}

#[test]
fn the_master_key_is_enabled_for_the_start_and_disabled_again() {
    let running = host_of_operator();
    let machine = &running.machine;
    machine.sh(&format!(
        "cd /usr/share/iam-kms-wrapper/examples/configuration
         sed -e 's|^kms_mfa_id = .*|kms_mfa_id = {}|' -e 's|^master_key_id = .*|master_key_id = alias/mariadb|' \\
             kms-manage-key.config > /etc/iam-kms-wrapper/kms-manage-key.config
         systemctl stop 'mariadb.s*' iam-kms-broker",
        running.aws.serial_number()
    ));
    let typed = |fence: Fence| typed(&running, &fence.commands);
    let told = running.in_terminal_with_code(&typed(fence("manage-key-status")));
    assert!(told.contains("state: Enabled"), "{told}");

    // The command runs here: the operator's host and the server's are one.
    let unlock = typed(fence("manage-key-unlock")).replace("ssh db1 sudo ", "");
    let (mut terminal, unlocking) = running.start_in_terminal_with_code(&unlock);
    running.wait_for_fifo();
    running.echo_code();
    let told = terminal.wait_for_success(unlocking);
    assert!(told.contains("is Disabled: DisableKey"), "{told}");
    running.wait_until_active();
    assert_eq!(running.sql("SELECT a FROM mysql.marked"), "marker-in-clear");

    let told = running.in_terminal_with_code(&typed(fence("manage-key-enable")));
    assert!(told.contains("is Enabled: EnableKey"), "{told}");
    let told = running.in_terminal_with_code(&typed(fence("manage-key-disable")));
    assert!(told.contains("is Disabled: DisableKey"), "{told}");
}

#[test]
fn a_backup_is_prepared_and_restored() {
    let running = encrypted_server();
    let machine = &running.machine;
    machine.sh(&format!(
        "sed '/^kms_mfa_socket/d' {CONFIG} > {AT_TERMINAL}; mkdir /var/backups/of"
    ));
    let of = |fence: Fence, backup: &str| {
        fence
            .commands
            .replace("DIR", &format!("/var/backups/of/{backup}"))
            .replace("--config=FILE", &format!("--config={AT_TERMINAL}"))
    };
    for backup in ["here", "elsewhere", "again"] {
        machine.sh(&of(fence("backup-make"), backup));
    }
    running.sql("DROP TABLE mysql.marked; SET GLOBAL aws_key_management_rotate_key = 1");
    machine.sh(&of(fence("backup-restore"), "here"));
    running.wait_until_active();
    assert_eq!(running.sql("SELECT a FROM mysql.marked"), "marker-in-clear");
    // Binary logs elsewhere may need the version that the backup does not have.
    let rotated = "aws-kms-key.1.2";
    machine.sh(&format!(
        "cmp /var/lib/mysql.old/{rotated} {DATADIR}/{rotated}"
    ));
    running.sql("SET GLOBAL aws_key_management_rotate_key = 1");
    machine.sh(&format!("test -e {DATADIR}/aws-kms-key.1.3"));

    machine.sh("systemctl stop 'mariadb.s*' iam-kms-broker");
    let prepare = of(fence("backup-prepare-launcher"), "elsewhere");
    let told = running.in_terminal_with_code(&typed(&running, &prepare));
    assert!(told.contains("completed OK!"), "{told}");

    encrypt_access_key(&running);
    let prepare = of(fence("backup-prepare-encrypted"), "again");
    let told = running.in_terminal_with_code(&passed_on(&typed(&running, &prepare)));
    assert!(told.contains("completed OK!"), "{told}");
}

#[test]
fn the_data_keys_are_listed_verified_rewrapped_and_checked() {
    let running = encrypted_server();
    let other = running.aws.key(&["--alias", "alias/other"]);
    running.machine.sh(&format!(
        "sed -e 's/^handoff = .*/handoff = environment/' -e '/^kms_mfa_socket/d' {CONFIG} > {IN_ENVIRONMENT}"
    ));
    let access_key = fence("data-keys-access-key").commands;
    let typed = |fence: Fence, config: &str| {
        let command = fence
            .commands
            .replace("DATADIR", DATADIR)
            .replace("DIR", DATADIR)
            .replace("FILE", config)
            .replace("KEY", &other);
        typed(&running, &format!("{access_key}{command}"))
    };
    let printed = |fence| running.machine.sh(&typed(fence, CONFIG));

    let told = printed(fence("data-keys-list"));
    assert!(told.contains("aws-kms-key.1.1"), "{told}");
    let verified = "2 data keys verified at KMS, 0 failed";
    for told in [
        printed(fence("data-keys-verify")),
        running.in_terminal_with_code(&typed(fence("data-keys-verify-code"), CONFIG)),
        running.in_terminal_with_code(&typed(fence("data-keys-verify-wrapper"), IN_ENVIRONMENT)),
    ] {
        assert!(told.contains(verified), "{told}");
    }
    let told = printed(fence("data-keys-verify-broker"));
    assert!(told.contains("verified at KMS"), "{told}");

    let told = printed(fence("data-keys-rewrap"));
    assert!(
        told.contains(&format!("2 data keys wrapped under {other}")),
        "{told}"
    );
    assert!(printed(fence("data-keys-verify")).contains(verified));

    encrypt_access_key(&running);
    let encrypted = typed(fence("data-keys-verify-encrypted"), CONFIG);
    let told = running.in_terminal_with_code(&passed_on(&encrypted));
    assert!(told.contains(verified), "{told}");

    running.stop_server();
    let told = printed(fence("data-keys-check"));
    assert!(told.contains("  needed  "), "{told}");
    assert!(!told.contains("MISSING"), "{told}");
}
