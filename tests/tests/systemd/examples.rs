//! The worked set-ups of `examples/`: each page is followed, as root in its folder, on a machine
//! that has what `make install` installs.

use std::{fs, path::Path};

use end_to_end_tests::{Process, write_fifo};

use crate::site::{BROKER, FIFO, Running, SERVICE, Site};

/// Where the machine has this repository.
const SOURCE: &str = "/usr/local/src/iam-kms-wrapper";

/// A machine on which nothing is configured, with the repository, and with an editor that fills in
/// what only this person knows.
fn bare() -> Site {
    let site = Site::bare();
    let (access_key_id, secret_access_key) = site.aws.long_term_key();
    let serial_number = site.aws.serial_number();
    let editor = format!(
        "#!/bin/sh\nexec sed -i \
         -e 's|^kms_mfa_id = .*|kms_mfa_id = {serial_number}|' \
         -e 's|^aws_access_key_id =$|aws_access_key_id = {access_key_id}|' \
         -e 's|^aws_secret_access_key =$|aws_secret_access_key = {secret_access_key}|' \"$@\"\n"
    );
    let mut site = site
        .told_where_aws_is(SERVICE)
        .told_where_aws_is(BROKER)
        .file("/usr/local/bin/editor", 0o755, &editor);
    for folder in ["examples", "systemd"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(folder);
        site.image = site.image.folder(&from, &format!("{SOURCE}/{folder}"));
    }
    site
}

/// The blocks of commands of a page, in order.
fn blocks(page: &str) -> Vec<String> {
    let path = format!(
        "{}/../examples/{page}/README.md",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = fs::read_to_string(path).unwrap();
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(command) => *blocks.last_mut().unwrap() += &format!("{command}\n"),
            None if line.is_empty() || blocks.last().unwrap().is_empty() => {}
            None => blocks.push(String::new()),
        }
    }
    blocks
}

/// Starts the commands of a block, in the folder of its page.
fn follow(site: &Running, page: &str, block: usize) -> Process {
    let script = format!("cd {SOURCE}/examples/{page}\n{}", blocks(page)[block]);
    Process::start(&mut site.machine.command(&["sh", "-exc", &script]))
}

/// The same, and waits until they have succeeded.
fn done(site: &Running, page: &str, block: usize) {
    succeeds(follow(site, page, block), site);
}

fn succeeds(mut steps: Process, site: &Running) {
    let (status, output) = steps.finish();
    assert!(
        status.success(),
        "{output}\n{}",
        site.machine.journal(SERVICE)
    );
}

/// The same, with a code when one is awaited.
fn done_with_code(site: &Running, page: &str, block: usize) {
    let steps = follow(site, page, block);
    site.wait_for_fifo();
    site.echo_code();
    succeeds(steps, site);
}

/// Tables and redo log are encrypted, and AWS has made the keys.
fn encrypts(site: &Running) {
    site.sql("CREATE DATABASE d; CREATE TABLE d.t (a INT); INSERT INTO d.t VALUES (7)");
    let table = "SELECT ENCRYPTION_SCHEME, CURRENT_KEY_ID
        FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE NAME = \"d/t\"";
    assert_eq!(site.sql(table), "1\t1");
    assert!(site.aws.calls("GenerateDataKeyWithoutPlaintext") > 0);
}

#[test]
fn one_host_with_a_code_at_boot() {
    let site = bare().boot_without_waiting();
    done_with_code(&site, "mfa-at-boot", 0);
    encrypts(&site);
    assert!(site.programs().contains("iam-kms-broker"));
}

#[test]
fn a_host_without_a_key_takes_the_session_of_the_operator() {
    let site = bare().boot_without_waiting();
    // The first block is the operator's, who has no part in this test.
    let steps = follow(&site, "many-hosts", 1);
    site.wait_for_fifo();
    let document = site.aws.session_document();
    write_fifo(&site.machine.path(FIFO), document.as_bytes());
    succeeds(steps, &site);
    encrypts(&site);
    let journal = site.machine.journal(SERVICE);
    assert!(!journal.contains("No such file"), "{journal}");
}

#[test]
fn the_broker_under_its_own_user() {
    let site = bare().boot_without_waiting();
    done_with_code(&site, "broker-service", 0);
    encrypts(&site);
    let calls = site.machine.sh(&blocks("broker-service")[1]);
    assert!(calls.contains("IAM_KMS_PEER_UID="), "{calls}");
    let unit = site.machine.sh(&format!("systemctl is-enabled {BROKER}"));
    assert_eq!(unit, "enabled");
}
