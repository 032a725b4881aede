//! The broker as a service of its own, beside a mariadb.service that starts without the wrapper.

use std::{
    fs,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use broker_api::{Decrypt, KeyContext, Reply, Request, read_frame, write_frame};
use end_to_end_tests::{Process, Terminal, fence, wait_until};

use crate::hand_over::traces_for_user_mysql;
use crate::site::{BROKER, BROKER_DROP_IN, FIFO, Running, SERVICE, Site};

/// What a person is told.
const TO_DO: &str = "enter an MFA code of ";

fn wait_for_status(site: &Running, text: &str) {
    site.machine.wait_until(text, SERVICE, || {
        site.machine.property(SERVICE, "StatusText").contains(text)
    });
}

fn questions(site: &Running) -> usize {
    let journal = site.machine.journal(BROKER);
    journal.matches(TO_DO).count()
}

#[test]
fn a_boot_waits_says_so_and_goes_on_with_the_code_and_without_the_wrapper() {
    let site = Site::with_broker_service()
        .service("TimeoutStartSec=20")
        .boot();
    let start = Instant::now();
    let to_do = format!(
        "enter an MFA code of {}: iam-kms-wrapper code",
        site.aws.serial_number()
    );
    wait_for_status(&site, &to_do);
    assert_eq!(site.state(), "activating");
    for (unit, text) in [(SERVICE, to_do.as_str()), (BROKER, "iam-kms-wrapper code")] {
        let status = format!("systemctl status --no-pager --lines=0 {unit} || :");
        let status = site.machine.sh(&status);
        assert!(status.contains(text), "{status}");
    }
    wait_until("the time-out of the unit to pass", || {
        start.elapsed() > Duration::from_secs(25)
    });
    assert_eq!(site.state(), "activating");

    site.echo_code();
    site.wait_until_active();
    site.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (a INT) ENCRYPTED=YES; INSERT INTO d.t VALUES (7)",
    );
    assert_eq!(site.sql("SELECT a FROM d.t"), "7");
    assert_eq!(site.aws.calls("GetSessionToken"), 1);
    assert_eq!(questions(&site), 1);
    let server = site.main_pid(SERVICE);
    let command_line = format!("tr '\\0' ' ' < /proc/{server}/cmdline");
    assert_eq!(site.machine.sh(&command_line), "/usr/sbin/mariadbd");
    assert!(!site.programs().contains("iam-kms-wrapper"));
}

#[test]
fn the_page_on_the_broker_moves_a_host_from_the_launcher_to_the_service() {
    let site = Site::new()
        .told_where_aws_is(BROKER)
        .file(
            "/usr/share/iam-kms-wrapper/mariadb.service.d/iam-kms-broker.conf",
            0o644,
            BROKER_DROP_IN,
        )
        .boot();
    let script = fence("broker-service-move").commands;
    let mut steps = Process::start(&mut site.machine.command(&["sh", "-ec", &script]));
    wait_for_status(&site, TO_DO);
    site.echo_code();
    let (status, output) = steps.finish();
    assert!(status.success(), "{output}");
    site.sql("CREATE TABLE mysql.other (a INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=7");
    let broker = site.main_pid(BROKER);
    assert_eq!(site.machine.sh("pidof iam-kms-broker"), broker);
}

#[test]
fn user_mysql_reads_neither_the_long_term_key_nor_the_brokers_process() {
    let site = Site::with_broker_service().boot_with_code();
    let broker = site.main_pid(BROKER);
    site.dynamic_user(BROKER);
    let (_, secret_access_key) = site.aws.long_term_key();
    let credential = format!("/run/credentials/{BROKER}/aws-credentials");
    let text = site.machine.sh(&format!("cat {credential}"));
    assert!(text.contains(&secret_access_key));
    for file in [
        "/etc/iam-kms-wrapper/aws-credentials",
        &credential,
        &format!("/proc/{broker}/environ"),
        &format!("/proc/{broker}/mem"),
        &format!("/proc/{broker}/maps"),
        &format!("/proc/{broker}/root/run"),
        &format!("/proc/{broker}/fd/0"),
    ] {
        let open = |as_user: &str| {
            site.machine
                .sh(&format!("{as_user} sh -c ': < {file}' 2>&1 || :"))
        };
        // What is refused is there.
        assert_eq!(open(""), "");
        let refusal = open("setpriv --reuid=mysql --regid=mysql --init-groups");
        assert!(refusal.contains("Permission denied"), "{file}: {refusal}");
    }
}

#[test]
fn user_mysql_can_neither_take_a_code_nor_write_one_nor_replace_fifo_or_socket() {
    let site = Site::with_broker_service().boot();
    let socket = "/run/iam-kms-wrapper/broker.sock";
    for (attempt, path) in [
        (format!("head -n 1 < {FIFO}"), FIFO),
        (format!("echo 123456 > {FIFO}"), FIFO),
        (format!("rm -f {FIFO}"), FIFO),
        (format!("mv {FIFO} /tmp/mfa"), FIFO),
        (format!("rm -f {socket}"), socket),
        ("mv /run/iam-kms-wrapper /run/other".into(), FIFO),
    ] {
        let as_mysql = "setpriv --reuid=mysql --regid=mysql --init-groups timeout 60";
        let refusal = site
            .machine
            .sh(&format!("{as_mysql} sh -c '{attempt}' 2>&1 || :"));
        assert!(
            refusal.contains("Permission denied"),
            "{attempt}: {refusal}"
        );
        assert!(site.machine.path(path).exists(), "{attempt}");
    }
}

#[test]
fn systemctl_start_asks_in_its_terminal_until_the_code_is_right() {
    const QUESTION: &str = "MFA code for mariadb.service:";
    let site = Site::with_broker_service().boot_and_stop();
    site.machine.sh(&format!("systemctl stop {BROKER}"));
    // Until the question of the boot is withdrawn.
    let prompt = "iam-kms-wrapper-prompt.service";
    site.machine
        .wait_for_property(prompt, "ActiveState", "inactive");
    let mut terminal = Terminal::new();
    let start = site
        .machine
        .start_in(&terminal, &["systemctl", "start", SERVICE]);
    terminal.wait_for_nth(QUESTION, 1);
    terminal.type_in(&format!("{}\n", site.aws.wrong_code()));
    terminal.wait_for_nth(QUESTION, 2);
    let shown = terminal.shown().to_owned();
    assert!(
        shown.contains("AWS refused the code"),
        "{shown}\n{}\n{}",
        site.machine.journal("iam-kms-wrapper-prompt.service"),
        site.machine.journal(BROKER)
    );
    terminal.type_in(&format!("{}\n", site.aws.code()));
    terminal.wait_for_success(start);
    site.machine
        .wait_for_property("iam-kms-wrapper-prompt.path", "ActiveState", "inactive");
}

#[test]
fn user_mysql_finds_no_secret_in_any_process() {
    let found = traces_for_user_mysql(Site::with_broker_service());
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_server_that_waits_for_a_code_waits_on_when_the_broker_is_restarted() {
    let site = Site::with_broker_service().boot();
    wait_for_status(&site, TO_DO);
    let server = site.main_pid(SERVICE);
    site.machine.sh(&format!("systemctl restart {BROKER}"));
    site.machine
        .wait_until("the second question", BROKER, || questions(&site) == 2);
    site.echo_code();
    site.wait_until_active();
    assert_eq!(site.main_pid(SERVICE), server);
    let journal = site.machine.journal(SERVICE);
    assert_eq!(
        journal.matches("the broker is gone").count(),
        1,
        "{journal}"
    );
}

#[test]
fn a_killed_broker_is_started_again_and_asks_and_the_server_goes_on() {
    let site = Site::with_broker_service().boot_with_code();
    site.sql("CREATE TABLE mysql.known (a INT) ENGINE=InnoDB ENCRYPTED=YES");
    let server = site.main_pid(SERVICE);
    let create = "CREATE TABLE mysql.other (a INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=7";
    site.machine
        .sh(&format!("systemctl kill --signal=KILL {BROKER}"));
    site.machine.wait_for_property(BROKER, "NRestarts", "1");
    site.machine
        .wait_until("the second question", BROKER, || questions(&site) == 2);
    assert_eq!(
        site.sql("INSERT INTO mysql.known VALUES (7); SELECT a FROM mysql.known"),
        "7"
    );
    let refusal = site.machine.sh(&format!("mariadb -e '{create}' 2>&1 || :"));
    assert!(refusal.contains(TO_DO), "{refusal}");
    site.echo_code();
    site.machine.wait_until("the second session", BROKER, || {
        site.machine
            .journal(BROKER)
            .matches("is open until")
            .count()
            == 2
    });
    site.sql(create);
    assert_eq!(site.main_pid(SERVICE), server);
}

#[test]
fn a_server_that_is_restarted_after_the_sessions_end_needs_no_code() {
    let mut site = Site::with_broker_service();
    let endpoint = site.aws.endpoint();
    site.aws.serve_again(&endpoint, &["--session-lifetime=600"]);
    let site = site.boot_with_code();
    site.sql("CREATE TABLE mysql.known (a INT) ENGINE=InnoDB ENCRYPTED=YES");
    // It is over by AWS's clock; the broker notices when a key is wanted.
    site.aws.set_clock("800");
    site.machine.sh(&format!("systemctl restart {SERVICE}"));
    assert_eq!(site.sql("SELECT COUNT(*) FROM mysql.known"), "0");
    assert_eq!(site.aws.calls("GetSessionToken"), 1);
    site.wait_for_fifo();
}

#[test]
fn each_use_of_a_key_is_in_the_journal_with_the_user_who_had_it() {
    let site = Site::with_broker_service().boot_with_code();
    let user = site.machine.user("mysql");
    let events = site.machine.sh(&format!(
        "journalctl --sync
         journalctl _SYSTEMD_UNIT={BROKER} IAM_KMS_EVENT=kms_call IAM_KMS_PEER_UID={user} \
            IAM_KMS_KEY_ID=1 --output=cat --output-fields=IAM_KMS_OPERATION"
    ));
    assert_eq!(events, "GenerateDataKeyWithoutPlaintext\nDecrypt");
}

#[test]
fn a_flood_of_calls_hides_no_later_one_from_the_audit() {
    const FLOOD: usize = 60_000;
    let mut site = Site::with_broker_service();
    let endpoint = site.aws.endpoint();
    site.aws.serve_again(&endpoint, &["--session-lifetime=600"]);
    let site = site.boot_with_code();
    // From now on, calls cost KMS nothing.
    site.aws.set_clock("800");
    let file = format!("{}/aws-kms-key.1.1", site.data_directory());
    let file = site.machine.path(&file);
    let ciphertext_blob = fs::read(file).unwrap();
    let socket = site.machine.path("/run/iam-kms-wrapper/broker.sock");
    let mut broker = UnixStream::connect(socket).unwrap();
    let mut decrypt = |key_id| {
        let request = Request::Decrypt(Decrypt {
            ciphertext_blob: ciphertext_blob.clone(),
            check_value: None,
            context: KeyContext {
                key_id,
                ..KeyContext::default()
            },
        });
        write_frame(&mut broker, &request).unwrap();
        loop {
            match read_frame(&mut broker).unwrap() {
                Reply::Waiting(_) => {}
                Reply::Decrypted { .. } => return,
                reply => panic!("{reply:?}"),
            }
        }
    };
    (0..FLOOD).for_each(|_| decrypt(77));
    (0..5).for_each(|_| decrypt(99));
    let events = |field: &str| {
        let count = site.machine.sh(&format!(
            "journalctl --sync
             journalctl _SYSTEMD_UNIT={BROKER} {field} --output=cat --output-fields=IAM_KMS_EVENT | wc -l"
        ));
        count.parse::<usize>().unwrap()
    };
    wait_until("the events", || events("IAM_KMS_KEY_ID=99") == 5);
    assert_eq!(events("IAM_KMS_KEY_ID=77"), FLOOD);
    assert_eq!(events("IAM_KMS_EVENT=log_lost"), 0);
}

#[test]
fn the_broker_may_lock_its_keys_in_memory() {
    let site = Site::with_broker_service().boot_with_code();
    let broker = site.main_pid(BROKER);
    let locked = site
        .machine
        .sh(&format!("grep VmLck: /proc/{broker}/status"));
    assert!(!locked.ends_with(" 0 kB"), "{locked}");
    let journal = site.machine.journal(BROKER);
    assert!(
        !journal.contains("cached data keys may be swapped"),
        "{journal}"
    );
}

#[test]
fn the_journal_tells_who_opened_the_session_and_is_exported_as_json_lines() {
    let site = Site::with_broker_service().boot();
    let code = site.aws.code();
    site.machine.sh(&format!(
        "echo {code} | SSH_CONNECTION='192.0.2.7 50000 192.0.2.1 22' iam-kms-wrapper code --reason='ticket 4711'"
    ));
    site.wait_until_active();
    let shown = site.machine.sh(&fence("audit-sessions").commands);
    let line = shown.lines().find(|line| line.contains("ticket 4711"));
    let line = line.unwrap_or_else(|| panic!("{shown}"));
    for part in [" opened by root from 192.0.2.7, for ", " Decrypt"] {
        assert!(line.contains(part), "{line}");
    }

    site.machine.sh(&fence("audit-export").commands);
    let exported = site.machine.sh("cat audit.jsonl");
    let events: Vec<serde_json::Value> = exported
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let find = |event: &str| {
        let found = events.iter().find(|it| it["event"] == event);
        found.unwrap_or_else(|| panic!("{event}: {exported}"))
    };
    let taken = find("code_taken");
    for (name, value) in [
        ("unit", BROKER),
        ("exe", "/usr/local/bin/iam-kms-broker"),
        ("operator", "root"),
        ("from", "192.0.2.7"),
        ("reason", "ticket 4711"),
        ("mfa_device", &site.aws.serial_number()),
    ] {
        assert_eq!(taken[name], value, "{taken}");
    }
    let call = find("kms_call");
    assert_eq!(call["unit"], BROKER);
    assert!(
        call["request_id"].as_str().is_some_and(|id| !id.is_empty()),
        "{call}"
    );
    assert_eq!(
        find("session_open")["access_key_id"],
        taken["access_key_id"]
    );
    let piped =
        "journalctl --output=json --since=yesterday | iam-kms-wrapper audit --json --input=-";
    assert_eq!(site.machine.sh(piped), exported);
    assert!(!exported.contains(&code) && !shown.contains(&code));
}

#[test]
fn systemd_analyze_finds_nothing_wrong_and_rates_the_unit_as_documented() {
    let site = Site::with_broker_service().boot();
    let complaints = format!("systemd-analyze verify --man=no {BROKER} {SERVICE} 2>&1");
    assert_eq!(site.machine.sh(&complaints), "");
    let claim = fence("broker-service-exposure").commands;
    let security = format!("systemd-analyze security --no-pager {BROKER}");
    let rating = site.machine.sh(&security);
    assert!(rating.contains(claim.trim_end()), "{rating}");
}
