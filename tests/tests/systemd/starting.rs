//! How mariadb.service starts with the code from the FIFO.

use std::time::{Duration, Instant};

use end_to_end_tests::{Process, wait_until};

use crate::site::{SERVICE, Site};

#[test]
fn a_boot_waits_says_so_and_goes_on_with_the_code_written_to_the_fifo() {
    let site = Site::new().boot();
    assert_eq!(site.state(), "activating");
    let status = site.machine.sh("systemctl status --no-pager mariadb || :");
    let waiting = format!(
        "Status: \"Waiting for the MFA code of {}",
        site.aws.serial_number()
    );
    assert!(status.contains(&waiting), "{status}");
    assert!(status.contains("iam-kms-wrapper code"), "{status}");
    // The server has not been started in the meantime.
    assert!(!site.programs().contains("mariadbd"));

    site.echo_code();
    site.wait_until_active();
    site.sql("CREATE DATABASE d; CREATE TABLE d.t (a INT) ENCRYPTED=YES");
    assert_eq!(site.aws.calls("GetSessionToken"), 1);
    let main_pid = site.machine.property(SERVICE, "MainPID");
    let main_program = site.machine.sh(&format!("cat /proc/{main_pid}/comm"));
    assert_eq!(main_program, "mariadbd");
    // Active from the server's own READY=1 on, not from the wrapper's exec.
    let journal = site.machine.journal(SERVICE);
    let position = |text| {
        journal
            .find(text)
            .unwrap_or_else(|| panic!("no {text}:\n{journal}"))
    };
    assert!(position("is open until") < position("ready for connections"));
    assert!(position("ready for connections") < position("Started mariadb.service"));
}

#[test]
fn a_wait_outlasts_the_units_start_timeout_and_ends_at_prompt_timeout_seconds() {
    // Longer than the minute that systemd is asked for at a time.
    let prompt_timeout = Duration::from_secs(75);
    let seconds = prompt_timeout.as_secs();
    let start = Instant::now();
    let site = Site::new()
        .configuration(&format!("prompt_timeout_seconds = {seconds}"))
        .service("TimeoutStartSec=15")
        .boot();
    let journal = site.machine.follow_journal(SERVICE);
    let mut ended = false;
    wait_until("the time-out of the unit to pass", || {
        ended = site.state() != "activating";
        ended || start.elapsed() > Duration::from_secs(45)
    });
    assert!(!ended, "{}", journal.output());
    let line = journal.wait_for("prompt_timeout_seconds");
    assert!(
        line.contains("no MFA code was entered within 75 seconds"),
        "{line}"
    );
    assert!(start.elapsed() >= prompt_timeout);
    site.machine
        .wait_for_property(SERVICE, "ActiveState", "failed");
    assert_eq!(site.machine.property(SERVICE, "ExecMainStatus"), "125");
    assert!(!site.machine.path("/run/iam-kms-wrapper").exists());
}

#[test]
fn a_server_whose_code_comes_late_still_has_all_the_time_to_start_that_its_unit_gives_it() {
    let start = Instant::now();
    let site = Site::new()
        .service(
            "TimeoutStartSec=20\nExecStart=\n\
             ExecStart=/usr/local/bin/iam-kms-wrapper \
             --config=/etc/iam-kms-wrapper/iam-kms-wrapper.config \
             /bin/sh -c \"sleep 80; exec /usr/sbin/mariadbd\"",
        )
        .boot();
    wait_until("the time-out of the unit to pass", || {
        start.elapsed() > Duration::from_secs(40)
    });
    assert_eq!(site.state(), "activating");
    site.echo_code();
    // Longer than the minute that was asked for while the code was awaited.
    site.wait_until_active();
    site.sql("SELECT 1");
}

#[test]
fn a_client_at_the_socket_starts_the_server_and_is_served_after_the_code() {
    let site = Site::new().boot();
    site.machine
        .sh("systemctl stop mariadb.service && systemctl is-active mariadb.socket");
    let client = [
        "mariadb",
        "--batch",
        "--skip-column-names",
        "-e",
        "SELECT 40 + 2",
    ];
    let client = Process::start(&mut site.machine.command(&client));
    site.wait_for_fifo();
    site.echo_code();
    client.wait_for("42");
    let journal = site.machine.journal(SERVICE);
    assert!(
        journal.contains("Using systemd activated unix socket /run/mysqld/mysqld.sock"),
        "{journal}"
    );
}

#[test]
fn a_start_makes_the_servers_runtime_directory_where_only_exec_start_pre_would() {
    // As in MariaDB's units up to 10.5, whose ExecStartPre= makes it.
    let site = Site::new().boot_and_stop();
    site.machine
        .sh("rm -r /run/mysqld; systemctl start --no-block mariadb");
    site.wait_for_fifo();
    site.echo_code();
    site.wait_until_active();
}

#[test]
fn what_the_readme_checks_before_the_start_is_all_right_and_takes_nothing_from_it() {
    let site = Site::new().boot_and_stop();
    let checked = site.machine.sh(&format!(
        "systemd-run --quiet --pipe --wait -p User=mysql -p Environment=AWS_ENDPOINT_URL={} \
            -p LoadCredential=aws-credentials:/etc/iam-kms-wrapper/aws-credentials \
            -p RuntimeDirectory=iam-kms-wrapper -p RuntimeDirectoryPreserve=yes \
            iam-kms-wrapper --check --config=/etc/iam-kms-wrapper/iam-kms-wrapper.config /usr/sbin/mariadbd",
        site.aws.endpoint()
    ));
    assert_eq!(checked.lines().count(), 10, "{checked}");
    assert!(
        checked.lines().all(|line| line.starts_with("ok ")),
        "{checked}"
    );
    assert_eq!(site.aws.calls("GetSessionToken"), 0);
    site.machine.sh("systemctl start --no-block mariadb");
    site.wait_for_fifo();
    site.echo_code();
    site.wait_until_active();
}
