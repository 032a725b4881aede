//! Restarts without a person, and where the session and the long-term key lie meanwhile.

use std::path::Path;

use crate::site::{Running, SERVICE, Site};

fn stored(site: &Running) -> String {
    site.machine.property(SERVICE, "NFileDescriptorStore")
}

/// Runs `command` and waits until the service runs again.
fn restart(site: &Running, command: &str) {
    let before = site.main_pid(SERVICE);
    site.machine.sh(command);
    // In this order: the state is that of the new process, or of none.
    site.machine.wait_until("the restart", SERVICE, || {
        site.main_pid(SERVICE) != before && site.state() == "active"
    });
}

/// How often a code has been asked for.
fn questions(site: &Running) -> usize {
    let journal = site.machine.journal(SERVICE);
    journal.matches("waiting for the MFA code").count()
}

#[test]
fn a_crash_and_a_restart_within_the_session_need_no_code_and_a_start_after_a_stop_does() {
    let site = Site::new().boot_with_code();
    assert_eq!(stored(&site), "1");
    for command in [
        "systemctl kill --signal=SEGV --kill-who=main mariadb",
        "systemctl restart mariadb",
    ] {
        restart(&site, command);
        assert_eq!(questions(&site), 1);
        assert_eq!(site.sql("SELECT 1"), "1");
        let descriptors = format!("ls -l /proc/{}/fd", site.main_pid(SERVICE));
        let descriptors = site.machine.sh(&descriptors);
        assert!(!descriptors.contains("iam-kms-session"), "{descriptors}");
    }
    assert_eq!(site.aws.calls("GetSessionToken"), 1);
    site.stop_server();
    assert_eq!(stored(&site), "0");
    site.machine.sh("systemctl start --no-block mariadb");
    site.wait_for_fifo();
}

#[test]
fn the_broker_has_systemd_drop_a_session_that_is_over_and_keep_the_next() {
    let mut site = Site::new();
    let endpoint = site.aws.endpoint();
    site.aws.serve_again(&endpoint, &["--session-lifetime=300"]);
    let site = site.boot_with_code();
    let create = "CREATE TABLE mysql.other (a INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=7";
    // It is over by AWS's clock; this host's says that there are minutes left.
    site.aws.set_clock("360");
    site.machine
        .sh(&format!("! mariadb -e '{create}' 2> /dev/null"));
    site.wait_for_fifo();
    assert_eq!(stored(&site), "0");
    site.echo_code();
    site.machine
        .wait_for_property(SERVICE, "NFileDescriptorStore", "1");
    site.sql(create);
    restart(&site, "systemctl restart mariadb");
    assert_eq!(questions(&site), 1);
    site.sql("SELECT * FROM mysql.other");
}

#[test]
fn without_a_store_each_start_asks() {
    let site = Site::new()
        .service("FileDescriptorStoreMax=0")
        .boot_with_code();
    site.machine.sh("systemctl restart --no-block mariadb");
    site.wait_for_fifo();
    let journal = site.machine.journal(SERVICE);
    let refusals = journal.matches("FileDescriptorStoreMax=0").count();
    assert_eq!(refusals, 1, "{journal}");
}

#[test]
fn user_mysql_cannot_read_the_long_term_key_once_the_server_is_up() {
    let site = Site::new().boot_with_code();
    for _ in 0..2 {
        // Once as all processes see it, once as the server does.
        for root in [
            String::new(),
            format!("/proc/{}/root", site.main_pid(SERVICE)),
        ] {
            let path = format!("{root}/run/credentials/{SERVICE}");
            assert_eq!(site.machine.sh(&format!("ls -A {path}")), "");
        }
        restart(&site, "systemctl restart mariadb");
    }
}

#[test]
fn the_long_term_key_may_be_encrypted_on_the_disk() {
    let site = Site::new().boot_and_stop();
    site.machine.sh("cd /etc/iam-kms-wrapper
         systemd-creds encrypt --with-key=host --name=aws-credentials aws-credentials encrypted
         mv encrypted aws-credentials
         sed -i s/^LoadCredential=/LoadCredentialEncrypted=/ \
             /etc/systemd/system/mariadb.service.d/iam-kms-wrapper.conf
         systemctl daemon-reload
         systemctl start --no-block mariadb");
    site.wait_for_fifo();
    site.echo_code();
    site.wait_until_active();
    let left = format!("ls -A /run/credentials/{SERVICE}");
    assert_eq!(site.machine.sh(&left), "");

    // What a thief of the file can do with it on another host, and a thief of the whole disk without a TPM.
    let decrypt = |secret: &str| {
        site.machine.sh(&format!(
            "export SYSTEMD_CREDENTIAL_SECRET={secret}; systemd-creds setup
             systemd-creds decrypt --name=aws-credentials /etc/iam-kms-wrapper/aws-credentials - || echo refused"
        ))
    };
    assert_eq!(decrypt("/root/of-another-host"), "refused");
    site.machine
        .sh("mv /var/lib/systemd/credential.secret /root/stolen");
    let (_, secret_access_key) = site.aws.long_term_key();
    assert!(decrypt("/root/stolen").contains(&secret_access_key));
}

/// From within the unit, as its user, which is what an attacker who has taken over the server can do.
#[test]
fn a_session_that_a_process_of_the_server_has_systemd_keep_in_its_place_is_refused() {
    const FORGER: &str = "/usr/local/lib/forger";
    let mut site = Site::new().service(&format!("ExecStartPost={FORGER}"));
    site.image = site
        .image
        .copy(Path::new(env!("CARGO_BIN_EXE_forger")), FORGER);
    let site = site.boot_with_code();
    assert_eq!(stored(&site), "1");
    site.machine.sh("systemctl restart --no-block mariadb");
    site.machine.wait_until("the refusal", SERVICE, || {
        site.machine
            .journal(SERVICE)
            .contains("it is not authenticated by the secret of the long-term key")
    });
    site.wait_for_fifo();
    assert_eq!(questions(&site), 2);
    site.echo_code();
    site.wait_until_active();
}
