//! Who gets which credentials.

use std::path::Path;

use end_to_end_tests::{Machine, contains_bytes, traces, write_fifo};
use serde_json::Value;

use crate::site::{FIFO, Running, SERVICE, Site};

/// The environment of the service's main process.
fn environment(site: &Running) -> Vec<String> {
    let main_pid = site.machine.property(SERVICE, "MainPID");
    let environment = site
        .machine
        .sh(&format!("tr '\\0' '\\n' < /proc/{main_pid}/environ"));
    environment.lines().map(Into::into).collect()
}

fn value(environment: &[String], name: &str) -> String {
    let mut values = environment
        .iter()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values
        .next_back()
        .unwrap_or_else(|| panic!("no {name}"))
        .into()
}

#[test]
fn neither_the_journal_nor_the_server_gets_a_secret() {
    let site = Site::new().boot();
    let code = site.echo_code();
    site.wait_until_active();
    let (_, secret_access_key) = site.aws.long_term_key();
    let journal = site.machine.whole_journal();
    for secret in [&code, &secret_access_key] {
        assert!(!journal.contains(secret), "{secret} is in the journal");
    }
    let environment = environment(&site);
    for name in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ] {
        assert!(
            !environment.iter().any(|line| line.starts_with(name)),
            "{name}"
        );
    }
}

/// A session of which the secrets are known.
fn session_document(site: &Running) -> (String, String, String) {
    let document = site.aws.session_document();
    let parsed: Value = serde_json::from_str(&document).unwrap();
    let secret = |name| parsed["Credentials"][name].as_str().unwrap().to_owned();
    let (key, token) = (secret("SecretAccessKey"), secret("SessionToken"));
    (document, key, token)
}

/// The long-term secret key, that of the session and the session's token, where user mysql could
/// get them.
pub fn traces_for_user_mysql(site: Site) -> Vec<String> {
    let site = site.boot();
    let (document, secret_access_key, session_token) = session_document(&site);
    write_fifo(&site.machine.path(FIFO), document.as_bytes());
    site.wait_until_active();
    // Now with the session that systemd has kept.
    site.machine.sh("systemctl restart mariadb");
    // Processes that end are hard to look into; this script goes on in the background.
    site.machine
        .wait_until("the end of debian-start", SERVICE, || {
            !site.programs().contains("debian-start")
        });
    let (_, long_term_key) = site.aws.long_term_key();
    let secrets = [
        ("long-term key", long_term_key.as_bytes()),
        ("secret key", secret_access_key.as_bytes()),
        ("session token", session_token.as_bytes()),
    ];
    let journal = site.machine.whole_journal();
    for (what, secret) in &secrets {
        assert!(
            !contains_bytes(journal.as_bytes(), secret),
            "{what} is in the journal"
        );
    }
    let user = site.machine.user("mysql");
    traces(&site.machine.processes(), user, &secrets)
}

#[test]
fn user_mysql_finds_no_secret_in_any_process() {
    let found = traces_for_user_mysql(Site::new());
    assert!(found.is_empty(), "{found:?}");
}

/// That shows that the test before this one would find something.
#[test]
fn user_mysql_finds_the_session_where_it_is_handed_over_in_the_environment() {
    let site = Site::new().configuration("handoff = environment").file(
        "/etc/mysql/mariadb.conf.d/60-encryption.cnf",
        0o644,
        "",
    );
    let found = traces_for_user_mysql(site);
    assert_eq!(
        found,
        [
            "secret key in the environment of mariadbd",
            "secret key in the memory of mariadbd",
            "session token in the environment of mariadbd",
            "session token in the memory of mariadbd",
        ]
    );
}

#[test]
fn the_set_up_of_the_manual_works_unchanged() {
    let site = Site::bare();
    let credentials = site.credentials("AWS_ACCESS_KEY_ID=\nAWS_SECRET_ACCESS_KEY=\n");
    let config = format!(
        "[kms]\nkms_mfa_id = {}\nkms_mfa_socket = /tmp/kms_mfa_socket\n",
        site.aws.serial_number()
    );
    let drop_ins = "/etc/systemd/system/mariadb.service.d";
    let site = site
        .file(&format!("{drop_ins}/aws-kms.env"), 0o600, &credentials)
        .file("/etc/my.cnf.d/iam-kms-wrapper.config", 0o644, &config)
        .file(
            &format!("{drop_ins}/aws-kms.conf"),
            0o644,
            "[Service]\n\
             EnvironmentFile=/etc/systemd/system/mariadb.service.d/aws-kms.env\n\
             ExecStart=\n\
             ExecStart=/usr/local/bin/iam-kms-wrapper --config=/etc/my.cnf.d/iam-kms-wrapper.config /usr/sbin/mysqld $MYSQLD_OPTS\n",
        )
        .boot_with_fifo("/tmp/kms_mfa_socket");
    // Not as `echo` opens it: with fs.protected_fifos the kernel refuses that there.
    write_fifo(
        &site.machine.path("/tmp/kms_mfa_socket"),
        site.aws.code().as_bytes(),
    );
    site.wait_until_active();
    let environment = environment(&site);
    let (access_key_id, _) = site.aws.long_term_key();
    assert_ne!(value(&environment, "AWS_ACCESS_KEY_ID"), access_key_id);
    let journal = site.machine.whole_journal();
    for name in ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        assert!(
            !journal.contains(&value(&environment, name)),
            "{name} is in the journal"
        );
    }
}

const ONLOOKER: &str = "/usr/local/lib/onlooker";

/// A machine on which a process of user mysql, with the capability that mariadb.service gives to those of the
/// server, looks into each of our programs that starts.
fn with_onlooker() -> Running {
    let mut site = Site::new();
    site.image = site
        .image
        .copy(Path::new(env!("CARGO_BIN_EXE_onlooker")), ONLOOKER);
    let site = site.boot_and_stop();
    site.machine.sh(&format!(
        "systemd-run --quiet --unit=onlooker -p User=mysql -p AmbientCapabilities=CAP_IPC_LOCK \
             {ONLOOKER} /usr/local/bin/iam-kms-"
    ));
    site.machine.wait_until("the onlooker", "onlooker", || {
        site.machine.journal("onlooker").contains("looking")
    });
    site
}

/// Starts the launcher as mariadb.service does, so many times, each up to where it waits for a code.
fn start_repeatedly(machine: &Machine, times: usize) {
    machine.sh(&format!(
        "for n in $(seq {times}); do
             systemctl start --no-block mariadb
             until [ -p {FIFO} ]; do sleep 0.02; done
             systemctl kill --signal=KILL mariadb
             systemctl stop 'mariadb.s*'
             systemctl reset-failed mariadb
             rm -f {FIFO}
         done"
    ));
}

fn has_seen(site: &Running) -> String {
    let journal = site.machine.journal("onlooker");
    let lines = journal
        .lines()
        .filter(|line| line.starts_with("could read"));
    lines.collect::<Vec<_>>().join(", ")
}

#[test]
fn no_process_of_user_mysql_can_look_into_the_launcher_in_fifty_starts() {
    let site = with_onlooker();
    start_repeatedly(&site.machine, 50);
    assert_eq!(has_seen(&site), "");
    // And if user mysql could read the program, that process would see something.
    site.machine.sh("chmod 755 /usr/local/bin/iam-kms-*");
    site.machine.wait_until("a look", "onlooker", || {
        start_repeatedly(&site.machine, 5);
        has_seen(&site).contains("could read environ")
    });
}

/// Why SECURITY.md recommends the broker as a service.
#[test]
fn user_mysql_can_take_a_code_from_the_launcher_and_read_the_key_meanwhile() {
    let site = Site::new().boot();
    let launcher = site.main_pid(SERVICE);
    let as_mysql = "setpriv --reuid=mysql --regid=mysql --init-groups";
    let taken = site.machine.sh(&format!(
        "kill -STOP {launcher}
         timeout 60 {as_mysql} sh -c 'head -n 1 <> {FIFO}' > /run/taken & reader=$!
         timeout 60 sh -c 'echo 123456 > {FIFO}'
         wait $reader
         kill -CONT {launcher}
         cat /run/taken"
    ));
    assert_eq!(taken, "123456");
    let (_, secret_access_key) = site.aws.long_term_key();
    let credential = format!("{as_mysql} cat /run/credentials/{SERVICE}/aws-credentials");
    assert!(site.machine.sh(&credential).contains(&secret_access_key));
}
