//! `iam-kms-wrapper setup` on a host that has MariaDB and our programs, and no configuration of ours.

use std::fs;

use end_to_end_tests::{Fence, Process, Terminal, fence};

use crate::site::{BROKER, Running, SERVICE, Site, has_systemd_247};

const CONFIG: &str = "/etc/iam-kms-wrapper/iam-kms-wrapper.config";
const CREDENTIAL: &str = "/etc/iam-kms-wrapper/aws-credentials";
const OPTIONS: &str = "/etc/mysql/mariadb.conf.d/60-encryption.cnf";
const RESTART: &str = "systemctl restart mariadb";
const RESTART_WITH_BROKER: &str = "systemctl restart iam-kms-broker mariadb";

/// A host whose server runs without encryption.
fn host() -> Running {
    let running = Site::bare()
        .told_where_aws_is(BROKER)
        .told_where_aws_is(SERVICE)
        .boot_as_it_is();
    running.wait_until_active();
    running
}

/// Setup by options alone, with further ones.
fn setup(running: &Running, more: &str) -> String {
    let (access_key_id, secret_access_key) = running.aws.long_term_key();
    format!(
        "echo {secret_access_key} | {} --access-key-id={access_key_id} --secret-access-key-file=- {more}",
        setup_without_key(running)
    )
}

fn setup_without_key(running: &Running) -> String {
    format!(
        "iam-kms-wrapper setup --mfa-device={} --master-key=alias/mariadb --region=us-east-1",
        running.aws.serial_number()
    )
}

/// Runs a script that must fail with 125; returns all that it prints.
fn fails(running: &Running, script: &str) -> String {
    let output = running
        .machine
        .command(&["sh", "-c", &format!("{script} 2>&1")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(125), "{script}: {text}");
    text
}

/// Names, owners, modes and content of all that setup could touch. systemd notes things of its own, and has a key for
/// encrypting credentials from the first one on.
fn state(running: &Running) -> String {
    let found = "find /etc /var/lib -xdev \
         '(' -path /var/lib/mariadb -o -path /var/lib/mysql -o -path /var/lib/systemd ')' -prune -o";
    running.machine.sh(&format!(
        "{found} -printf '%p %u %g %m %l\\n' | sort; {found} -type f -exec sha256sum {{}} + | sort"
    ))
}

/// Starts the server with the command that setup printed last, and gives the code.
fn start(running: &Running, printed: &str) {
    let command = printed.lines().last().unwrap().trim();
    let is_start = command.ends_with(RESTART) || command == RESTART_WITH_BROKER;
    assert!(is_start, "{printed}");
    let mut start = Process::start(&mut running.machine.command(&["sh", "-ec", command]));
    running.wait_for_fifo();
    running.echo_code();
    let (status, output) = start.finish();
    assert!(status.success(), "{output}");
    running.wait_until_active();
}

fn assert_encrypts(running: &Running) {
    running.sql(
        "CREATE OR REPLACE TABLE mysql.marked (a TEXT) ENGINE=InnoDB; INSERT INTO mysql.marked VALUES (\"marker-in-clear\"); FLUSH TABLES mysql.marked FOR EXPORT",
    );
    assert_eq!(running.sql("SELECT a FROM mysql.marked"), "marker-in-clear");
    let file = format!("{}/mysql/marked.ibd", running.data_directory());
    let machine = &running.machine;
    machine.sh(&format!("test -s {file}; ! grep -q marker-in-clear {file}"));
}

/// The lines of the preflight check among what setup printed.
fn assert_checked(printed: &str) {
    let (_, checked) = printed.split_once("Preflight check").unwrap();
    let (checked, _) = checked.split_once("\n\n").unwrap();
    let mut lines = checked.lines().skip(1).peekable();
    assert!(lines.peek().is_some(), "{printed}");
    assert!(lines.all(|line| line.starts_with("ok ")), "{printed}");
}

#[test]
fn options_alone_lead_to_an_encrypted_server_with_the_broker_as_a_service() {
    let running = host();
    let machine = &running.machine;
    let server = running.main_pid(SERVICE);
    let (_, secret) = running.aws.long_term_key();
    let printed = machine.sh(&format!("umask 077; {}", setup(&running, "--yes 2>&1")));
    assert_checked(&printed);
    assert!(!printed.contains(&secret), "{printed}");
    assert_eq!(
        running.main_pid(SERVICE),
        server,
        "the server was restarted"
    );
    let modes = format!("stat --format='%a %U %G' {CONFIG} {CREDENTIAL} {OPTIONS}");
    assert_eq!(
        machine.sh(&modes),
        "644 root root\n600 root root\n644 root root"
    );
    let in_plain_text = format!("grep -rlF {secret} /etc /var/lib/iam-kms-wrapper || :");
    assert_eq!(machine.sh(&in_plain_text), "");
    assert_eq!(machine.sh("systemctl is-enabled iam-kms-broker"), "enabled");

    start(&running, &printed);
    assert_encrypts(&running);
    assert_ne!(
        machine.sh("stat --format=%U /proc/$(pidof iam-kms-broker)"),
        "mysql"
    );

    // Again, while all of it runs.
    let before = state(&running);
    machine.sh(&setup(&running, "--dry-run"));
    let printed = machine.sh(&setup(&running, "--yes 2>&1"));
    assert!(
        printed.starts_with("All files are up to date."),
        "{printed}"
    );
    assert!(printed.contains("check was skipped"), "{printed}");
    assert!(printed.ends_with(RESTART), "{printed}");
    assert_eq!(state(&running), before);
    assert_encrypts(&running);

    // Without the plugin, the server would call its tables corrupted.
    let refused = fails(&running, "iam-kms-wrapper setup --undo --yes");
    let data = running.data_directory();
    assert!(
        refused.contains(&format!("{data} holds data keys")),
        "{refused}"
    );
    assert_eq!(state(&running), before);
    machine.sh("iam-kms-wrapper setup --undo --yes --even-if-encrypted");
    assert!(!machine.path(OPTIONS).exists());
    assert!(machine.path(&format!("{data}/aws-kms-key.1.1")).exists());
}

#[test]
fn answers_at_a_terminal_lead_to_an_encrypted_server() {
    let running = host();
    let (access_key_id, secret_access_key) = running.aws.long_term_key();
    let mut terminal = Terminal::new();
    let setup = running
        .machine
        .start_in(&terminal, &["iam-kms-wrapper", "setup"]);
    for (question, nth, answer) in [
        ("MFA device", 1, "arn:aws:iam::111122223333:user/mariadb"),
        // The refusal of the first answer says it too.
        ("MFA device", 3, &running.aws.serial_number()),
        ("Master key", 1, ""),
        ("AWS region", 1, ""),
        ("in the server's place?", 1, ""),
        ("Access key ID", 1, &access_key_id),
    ] {
        terminal.wait_for_nth(question, nth);
        terminal.type_in(&format!("{answer}\n"));
    }
    terminal.wait_for_nth("must be the ARN of an MFA device, such as arn:aws:iam::123456789012:mfa/NAME, not of a user", 1);
    terminal.wait_for_nth("Secret access key (not shown): ", 1);
    assert!(!terminal.echoes());
    terminal.type_in(&format!("{secret_access_key}\n"));
    terminal.wait_for_nth("Make these changes? [y/N] ", 1);
    assert!(!running.machine.path(CONFIG).exists());
    terminal.type_in("y\n");
    let shown = terminal.wait_for_success(setup).replace("\r\n", "\n");
    assert_checked(&shown);
    assert!(!shown.contains(&secret_access_key), "{shown}");
    start(&running, &shown);
    assert_encrypts(&running);
}

#[test]
fn enter_at_a_terminal_keeps_what_is_in_place() {
    let running = host();
    let machine = &running.machine;
    let (access_key_id, secret_access_key) = running.aws.long_term_key();
    machine.sh(&format!(
        "echo {secret_access_key} | iam-kms-wrapper setup --yes --mfa-device={} \
         --master-key=alias/other --region=eu-central-1 --hand-over=launcher \
         --access-key-id={access_key_id} --secret-access-key-file=- || :",
        running.aws.serial_number()
    ));
    let before = state(&running);
    let mut terminal = Terminal::new();
    let device = "arn:aws:iam::111122223333:mfa/second";
    // The check cannot reach an AWS of that region.
    let script = format!("iam-kms-wrapper setup --mfa-device={device} || :");
    let setup = machine.start_in(&terminal, &["sh", "-c", &script]);
    for question in [
        "Master key (alias, ARN or id) [alias/other, as now]: ",
        "AWS region of the master key [eu-central-1, as now]: ",
        "(service, launcher) [launcher, as now]: ",
        "Access key ID [keep the present one]: ",
    ] {
        terminal.wait_for_nth(question, 1);
        terminal.type_in("\n");
    }
    terminal.wait_for_nth("Make these changes? [y/N] ", 1);
    terminal.type_in("y\n");
    let shown = terminal.wait_for_success(setup);
    assert!(!shown.contains(OPTIONS), "{shown}");
    let config = machine.sh(&format!("cat {CONFIG}"));
    assert!(
        config.contains(&format!("\nkms_mfa_id = {device}\n")),
        "{config}"
    );
    assert!(config.contains("\nregion = eu-central-1\n"), "{config}");
    // The configuration and setup's own record, and nothing else.
    let after = state(&running);
    let mut changed = after.lines().filter(|line| !before.contains(line));
    assert!(changed.all(|line| line.ends_with(CONFIG) || line.ends_with("/setup.json")));
    assert_eq!(before.lines().count(), after.lines().count());
}

#[test]
fn whoever_does_not_say_yes_at_the_terminal_changes_nothing() {
    let running = host();
    let before = state(&running);
    for answer in ["n", "", "yesterday"] {
        let mut terminal = Terminal::new();
        let command = setup_without_key(&running);
        let script = format!(
            "{command} --hand-over=service --access-key-id=AKIAIOSFODNN7EXAMPLE || echo status $?"
        );
        let shell = running.machine.start_in(&terminal, &["sh", "-c", &script]);
        terminal.wait_for_nth("Secret access key", 1);
        terminal.type_in("secret\n");
        terminal.wait_for_nth("Make these changes?", 1);
        let other = fails(&running, &setup(&running, "--yes"));
        assert!(
            other.contains("another iam-kms-wrapper setup is running"),
            "{other}"
        );
        terminal.type_in(&format!("{answer}\n"));
        let shown = terminal.wait_for_success(shell);
        assert!(shown.contains("nothing was changed"), "{shown}");
        assert!(shown.contains("status 125"), "{shown}");
    }
    assert_eq!(state(&running), before);
}

#[test]
fn the_launcher_goes_into_the_servers_place_and_makes_way_for_the_service_again() {
    let running = host();
    let machine = &running.machine;
    let printed = machine.sh(&setup(&running, "--hand-over=launcher --yes 2>&1"));
    assert_checked(&printed);
    start(&running, &printed);
    assert_encrypts(&running);
    let user = "stat --format=%U /proc/$(pidof iam-kms-broker)";
    assert_eq!(machine.sh(user), "mysql");
    // When the server is up, its user can read the access key no more.
    let gone = format!("! test -e /run/credentials/{SERVICE}/aws-credentials");
    machine.wait_until("the end of the credential", SERVICE, || {
        machine
            .command(&["sh", "-c", &gone])
            .status()
            .unwrap()
            .success()
    });

    // The access key is kept.
    let printed = machine.sh(&format!("{} --yes 2>&1", setup_without_key(&running)));
    for file in ["iam-kms-wrapper.conf", "iam-kms-wrapper.credential.conf"] {
        let removed = format!("Remove /etc/systemd/system/mariadb.service.d/{file}\n");
        assert!(printed.contains(&removed), "{printed}");
    }
    start(&running, &printed);
    assert_encrypts(&running);
    assert_ne!(machine.sh(user), "mysql");

    let printed = machine.sh(&format!(
        "{} --hand-over=launcher --yes 2>&1",
        setup_without_key(&running)
    ));
    let command = printed.lines().last().unwrap().trim();
    assert_eq!(command, format!("systemctl stop {BROKER} && {RESTART}"));
    start(&running, &printed);
    assert_encrypts(&running);
    assert_eq!(machine.sh(user), "mysql");
    assert_eq!(machine.property(BROKER, "UnitFileState"), "disabled");
}

#[test]
fn another_access_key_reaches_the_running_broker_by_the_command_that_setup_prints() {
    let running = host();
    let machine = &running.machine;
    start(&running, &machine.sh(&setup(&running, "--yes 2>&1")));
    let before = running.main_pid(BROKER);
    running.aws.replace_long_term_key();
    let printed = machine.sh(&setup(&running, "--yes 2>&1"));
    assert!(printed.ends_with(RESTART_WITH_BROKER), "{printed}");
    // Running it once more shows the same command.
    let printed = machine.sh(&format!("{} --yes 2>&1", setup_without_key(&running)));
    assert!(
        printed.starts_with("All files are up to date."),
        "{printed}"
    );
    assert!(printed.ends_with(RESTART_WITH_BROKER), "{printed}");
    start(&running, &printed);
    assert_ne!(running.main_pid(BROKER), before);
    assert_encrypts(&running);
    // What only the server reads costs no code.
    let other = setup_without_key(&running).replace("alias/mariadb", "alias/other");
    let printed = machine.sh(&format!("{other} --yes 2>&1"));
    assert!(printed.contains(&format!("Replace {OPTIONS}")), "{printed}");
    assert!(printed.ends_with(RESTART), "{printed}");
}

#[test]
fn the_access_key_is_replaced_while_the_server_runs() {
    let running = host();
    let machine = &running.machine;
    start(&running, &machine.sh(&setup(&running, "--yes 2>&1")));
    let server = running.main_pid(SERVICE);
    running.aws.replace_long_term_key();
    machine.sh(&script_of_page(&running, fence("setup-access-key")));
    running.wait_for_fifo();
    running.in_terminal_with_code(&fence("setup-access-key-code").commands);
    running.sql("CREATE TABLE mysql.other (a INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=7");
    assert_eq!(running.main_pid(SERVICE), server);
}

#[test]
fn lines_that_a_person_adds_to_the_configuration_stay_there() {
    let running = host();
    let machine = &running.machine;
    machine.sh(&setup(&running, "--yes"));
    machine.sh(&format!(
        "sed -i '/^region/i # Ann: the auditors want it.\\nkey_cache = session' {CONFIG}; echo session_duration_seconds = 1200 >> {CONFIG}"
    ));
    let before = state(&running);
    let again = setup_without_key(&running);
    let printed = machine.sh(&format!("{again} --yes 2>&1"));
    assert!(
        printed.starts_with("All files are up to date."),
        "{printed}"
    );
    assert_eq!(state(&running), before);

    let printed = machine.sh(&format!("{again} --hand-over=launcher --yes 2>&1"));
    assert_checked(&printed);
    let added =
        "# Ann: the auditors want it.\nkey_cache = session\nsession_duration_seconds = 1200";
    let text = machine.sh(&format!("cat {CONFIG}"));
    assert!(text.contains("\nkms_mfa_socket = "), "{text}");
    assert!(text.ends_with(&format!("\n{added}")), "{text}");
    start(&running, &printed);

    let undo = "iam-kms-wrapper setup --undo --yes --even-if-encrypted";
    let printed = machine.sh(undo);
    let left = format!("Leave {CONFIG}, to which somebody has added lines\n");
    assert!(printed.contains(&left), "{printed}");
    assert_eq!(
        machine.sh("ls /etc/iam-kms-wrapper"),
        "iam-kms-wrapper.config"
    );
    assert_eq!(machine.sh(&format!("cat {CONFIG}")), text);
    assert!(!machine.path("/var/lib/iam-kms-wrapper").exists());
}

#[test]
fn a_dry_run_changes_nothing_and_undo_leaves_the_machine_as_it_was() {
    let running = host();
    let machine = &running.machine;
    let before = state(&running);
    for hand_over in ["service", "launcher"] {
        let options = format!("--hand-over={hand_over} 2>&1");
        let shown = machine.sh(&setup(&running, &format!("--dry-run {options}")));
        assert_eq!(state(&running), before);
        let printed = machine.sh(&setup(&running, &format!("--yes {options}")));
        let created = |text: &str| -> Vec<_> {
            let lines = text.lines().filter(|line| line.starts_with("Create "));
            lines.map(str::to_owned).collect()
        };
        assert!(created(&shown).len() > 3, "{shown}");
        assert_eq!(created(&shown), created(&printed));
        assert_ne!(state(&running), before);
        let set_up = state(&running);
        machine.sh("iam-kms-wrapper setup --undo --dry-run");
        assert_eq!(state(&running), set_up);
        machine.sh("iam-kms-wrapper setup --undo --yes");
        assert_eq!(state(&running), before);
    }
    let nothing = machine.sh("iam-kms-wrapper setup --undo --yes");
    assert!(nothing.contains("nothing to undo"), "{nothing}");
}

#[test]
fn a_file_that_a_person_has_written_or_changed_is_neither_overwritten_nor_removed() {
    let running = host();
    let machine = &running.machine;
    for path in [CONFIG, CREDENTIAL, OPTIONS] {
        machine.sh(&format!(
            "mkdir -p $(dirname {path}); echo '# mine' > {path}"
        ));
        let before = state(&running);
        let refused = fails(&running, &setup(&running, "--yes"));
        assert!(
            refused.contains(&format!("setup did not write {path}, ")),
            "{refused}"
        );
        assert_eq!(state(&running), before);
        machine.sh(&format!("rm {path}"));
    }
    machine.sh(&setup(&running, "--yes"));
    for (path, change) in [
        (CONFIG, "sed -i 's/^region = .*/region = eu-north-1/'"),
        (CONFIG, "sed -i '$a region = eu-north-1'"),
        (CONFIG, "sed -i '$a region: eu-north-1'"),
        (CREDENTIAL, "sed -i '$a # changed'"),
        (OPTIONS, "sed -i '$a # changed'"),
    ] {
        machine.sh(&format!("cp -p {path} /root/kept; {change} {path}"));
        let before = state(&running);
        let other = running.aws.serial_number().replace(":mfa/", ":mfa/other-");
        let key = "--access-key-id=AKIAIOSFODNN7EXAMPLE --secret-access-key-file=-";
        let other = format!(
            "echo other | iam-kms-wrapper setup --yes --mfa-device={other} --master-key=alias/other --region=eu-west-1 {key}"
        );
        for script in [other.as_str(), "iam-kms-wrapper setup --undo --yes"] {
            let refused = fails(&running, script);
            assert!(refused.contains(path), "{refused}");
            assert_eq!(state(&running), before, "{script}");
        }
        machine.sh(&format!("cp -p /root/kept {path}"));
    }
    // The drop-in of the other hand-over.
    let drop_in = "/etc/systemd/system/mariadb.service.d/iam-kms-wrapper.conf";
    machine.sh(&format!("echo '[Service]' > {drop_in}"));
    let refused = fails(&running, &setup(&running, "--yes"));
    assert!(refused.contains(drop_in), "{refused}");
    machine.sh(&format!("rm {drop_in}; iam-kms-wrapper setup --undo --yes"));
}

#[test]
fn an_interrupted_setup_or_undo_is_completed_by_the_next_run() {
    let running = host();
    let machine = &running.machine;
    let untouched = state(&running);
    let mut interrupted = 0;
    let mut kill = |script: &str, milliseconds: u32| {
        let seconds = f64::from(milliseconds) / 1000.0;
        let script = script.replacen(
            "iam-kms-wrapper setup",
            &format!("timeout --signal=KILL {seconds} iam-kms-wrapper setup"),
            1,
        );
        let status = machine
            .command(&["sh", "-c", &script])
            .output()
            .unwrap()
            .status;
        interrupted += u32::from(!status.success());
    };
    let undo = "iam-kms-wrapper setup --undo --yes";
    let launcher = format!("{} --hand-over=launcher --yes", setup_without_key(&running));
    for milliseconds in (10..400).step_by(30) {
        kill(&setup(&running, "--yes"), milliseconds);
        machine.sh(&setup(&running, "--yes"));
        kill(&launcher, milliseconds);
        machine.sh(&launcher);
        machine.sh("! test -e /etc/systemd/system/mariadb.service.d/iam-kms-broker.conf");
        assert_eq!(machine.property(BROKER, "UnitFileState"), "disabled");
        assert_eq!(machine.property(SERVICE, "NeedDaemonReload"), "no");
        kill(undo, milliseconds);
        // There is nothing to undo if it was killed at its end.
        machine.sh(undo);
        assert_eq!(state(&running), untouched, "after {milliseconds} ms");
    }
    assert!(interrupted > 10, "{interrupted}");
}

#[test]
fn where_systemd_cannot_encrypt_the_credential_is_for_root_alone() {
    let running = host();
    let machine = &running.machine;
    machine.sh("mv /usr/bin/systemd-creds /root");
    let shown = machine.sh(&setup(&running, "--dry-run"));
    assert!(
        shown.contains("not encrypted: this host has no systemd-creds"),
        "{shown}"
    );
    machine.sh("mv /root/systemd-creds /usr/bin");
    let creds = machine.path("/usr/local/bin/systemd-creds");
    fs::write(&creds, "#!/bin/sh\necho no TPM, no key >&2\nexit 1\n").unwrap();
    machine.sh("chmod 755 /usr/local/bin/systemd-creds");
    let printed = machine.sh(&setup(&running, "--yes 2>&1"));
    assert!(
        printed.contains("no TPM, no key; the access key is stored unencrypted"),
        "{printed}"
    );
    assert_checked(&printed);
    let (access_key_id, secret_access_key) = running.aws.long_term_key();
    let text = machine.sh(&format!(
        "stat --format='%a %U' {CREDENTIAL}; cat {CREDENTIAL}"
    ));
    assert!(text.starts_with("600 root\n"), "{text}");
    assert!(
        text.ends_with(&format!(
            "[default]\naws_access_key_id = {access_key_id}\naws_secret_access_key = {secret_access_key}"
        )),
        "{text}"
    );
    start(&running, &printed);
    assert_encrypts(&running);
}

#[test]
fn a_failed_preflight_check_is_125_and_repaired_by_the_next_run() {
    let running = host();
    let machine = &running.machine;
    let plugin = "/usr/lib/mysql/plugin/aws_key_management.so";
    machine.sh(&format!("mv {plugin} /root"));
    let printed = fails(&running, &setup(&running, "--yes"));
    assert!(printed.contains("\nFAILED       plugin: "), "{printed}");
    assert!(printed.contains("the preflight check FAILED"), "{printed}");
    machine.sh(&format!("mv /root/aws_key_management.so {plugin}"));
    let printed = machine.sh(&format!("{} --yes 2>&1", setup_without_key(&running)));
    assert_checked(&printed);
}

#[test]
fn a_host_laid_out_as_red_hats_gets_its_files() {
    let running = host();
    let machine = &running.machine;
    machine.sh(
        "mv /etc/mysql /root; mkdir -p /etc/my.cnf.d /usr/libexec; mv /usr/sbin/mariadbd /usr/libexec",
    );
    let shown = machine.sh(&setup(&running, "--hand-over=launcher --dry-run"));
    for file in [
        "/etc/my.cnf.d/60-encryption.cnf",
        "/etc/systemd/system/mariadb.service.d/iam-kms-wrapper.conf",
        "/etc/systemd/system/mariadb.service.d/iam-kms-wrapper.redhat.conf",
    ] {
        assert!(
            shown.contains(&format!("Create {file} (mode 0644)")),
            "{shown}"
        );
    }
    assert!(!shown.contains("/etc/mysql"), "{shown}");
}

#[test]
fn a_server_with_another_encryption_plugin_is_not_touched() {
    let running = host();
    let before = {
        running.machine.sh(
            "printf '[mariadb]\\nplugin-load-add = file_key_management\\n' > /etc/mysql/mariadb.conf.d/50-keys.cnf",
        );
        state(&running)
    };
    let refused = fails(&running, &setup(&running, "--yes"));
    assert!(refused.contains("load file_key_management"), "{refused}");
    assert_eq!(state(&running), before);
}

#[test]
fn a_server_that_does_not_read_the_option_file_is_found_before_it_starts_in_the_clear() {
    let running = host();
    let machine = &running.machine;
    // An administrator's own.
    machine.sh(
        "cp -P /etc/mysql/my.cnf /root; rm /etc/mysql/my.cnf; printf '[mysqld]\\nuser = mysql\\n!includedir /etc/mysql/conf.d/\\n' > /etc/mysql/my.cnf",
    );
    let printed = fails(&running, &setup(&running, "--yes"));
    let found = format!("the server does not read {OPTIONS}");
    let line = printed.lines().find(|line| line.contains(&found));
    assert!(
        line.is_some_and(|it| it.starts_with("FAILED       plugin: ")),
        "{printed}"
    );
    machine.sh("cp -P --remove-destination /root/my.cnf /etc/mysql/");
    let printed = machine.sh(&format!("{} --yes 2>&1", setup_without_key(&running)));
    assert_checked(&printed);
    // This check's user may not know.
    machine.sh("chmod 600 /etc/mysql/mariadb.conf.d/60-encryption.cnf; echo > /etc/mysql/mariadb.conf.d/70-mine.cnf; chmod 600 /etc/mysql/mariadb.conf.d/70-mine.cnf");
    let printed = machine.sh(&format!("{} --yes 2>&1", setup_without_key(&running)));
    assert!(
        printed.contains("cannot read the option file /etc/mysql/mariadb.conf.d/"),
        "{printed}"
    );
}

#[test]
fn a_drop_in_that_starts_the_server_without_the_launcher_is_named() {
    let running = host();
    let machine = &running.machine;
    let drop_in = "/etc/systemd/system/mariadb.service.d/override.conf";
    machine.sh(&format!(
        "mkdir -p $(dirname {drop_in}); printf '[Service]\\nExecStart=\\nExecStart=/usr/sbin/mariadbd --nice\\n' > {drop_in}"
    ));
    let options = "--hand-over=launcher --yes";
    let printed = fails(&running, &setup(&running, options));
    let said = format!("the command (ExecStart=) in {drop_in} replaces that of setup");
    assert!(printed.contains(&said), "{printed}");
    machine.sh(&format!("rm {drop_in}"));
    let printed = machine.sh(&format!("{} {options} 2>&1", setup_without_key(&running)));
    assert_checked(&printed);
}

#[test]
fn undo_finds_the_data_keys_however_the_servers_options_are_written() {
    let running = host();
    let machine = &running.machine;
    machine.sh(&setup(&running, "--yes"));
    let file = "/etc/mysql/mariadb.conf.d/51-mine.cnf";
    let drop_in = "/etc/systemd/system/mariadb.service.d/options.conf";
    let undo = "iam-kms-wrapper setup --undo --dry-run";
    machine.sh(
        "mkdir -p '/srv/a b' /srv/keys; touch '/srv/a b/aws-kms-key.1.1' /srv/keys/aws-kms-key.1.1",
    );
    for (options, directory) in [
        ("[mysqld]\ndatadir = \"/srv/a b\"", "/srv/a b"),
        (
            "[mariadb]\naws-key-management-keyfile-dir = /srv/keys",
            "/srv/keys",
        ),
        (
            "[mariadb]\nloose-aws-key-management-keyfile-dir = /srv/keys",
            "/srv/keys",
        ),
        (
            "[mariadb]\nloose_aws_key_management_keyfile_dir = /srv/keys",
            "/srv/keys",
        ),
        (
            "[mariadb]\naws-key-management_keyfile-dir = /srv/keys",
            "/srv/keys",
        ),
        ("[server]\nloose-datadir = /srv/keys/", "/srv/keys/"),
        ("[mariadbd.db1]\ndatadir = /srv/keys", "/srv/keys"),
        ("[mysqld1]\ndatadir = /srv/keys", "/srv/keys"),
    ] {
        fs::write(machine.path(file), format!("{options}\n")).unwrap();
        let refused = fails(&running, undo);
        let found = format!("{directory} holds data keys");
        assert!(refused.contains(&found), "{options}: {refused}");
    }
    machine.sh(&format!("rm {file}"));
    machine.sh(undo);
    for environment in ["--datadir=/srv/keys", "--tmpdir=/tmp --datadir /srv/keys"] {
        let text = format!("[Service]\nEnvironment=\"MYSQLD_OPTS={environment}\"\n");
        fs::write(machine.path(drop_in), text).unwrap();
        machine.sh("systemctl daemon-reload");
        let refused = fails(&running, undo);
        assert!(refused.contains("/srv/keys holds data keys"), "{refused}");
    }
}

#[test]
fn undo_comes_to_its_end_where_somebody_has_put_a_link_in_a_directorys_place() {
    let running = host();
    let machine = &running.machine;
    machine.sh(&setup(&running, "--yes"));
    machine.sh("mv /etc/iam-kms-wrapper /etc/shared; ln -s shared /etc/iam-kms-wrapper");
    machine.sh("iam-kms-wrapper setup --undo --yes");
    assert_eq!(machine.property(SERVICE, "NeedDaemonReload"), "no");
    assert_eq!(
        machine.sh("ls /etc/shared /var/lib/iam-kms-wrapper 2> /dev/null || :"),
        "/etc/shared:"
    );
}

#[test]
fn a_launchers_drop_in_that_is_masked_is_in_nobodys_way() {
    let running = host();
    let machine = &running.machine;
    let drop_in = "/etc/systemd/system/mariadb.service.d/iam-kms-wrapper.conf";
    machine.sh(&format!(
        "mkdir -p $(dirname {drop_in}); ln -s /dev/null {drop_in}"
    ));
    let printed = machine.sh(&setup(&running, "--yes 2>&1"));
    assert_checked(&printed);
    machine.sh("iam-kms-wrapper setup --undo --yes");
    assert_eq!(machine.sh(&format!("readlink {drop_in}")), "/dev/null");
}

#[test]
fn the_drop_ins_are_those_that_are_installed() {
    let running = host();
    let machine = &running.machine;
    for (hand_over, file) in [
        ("service", "iam-kms-broker.conf"),
        ("launcher", "iam-kms-wrapper.conf"),
    ] {
        machine.sh(&setup(&running, &format!("--hand-over={hand_over} --yes")));
        machine.sh(&format!(
            "cmp /etc/systemd/system/mariadb.service.d/{file} /usr/local/share/iam-kms-wrapper/mariadb.service.d/{file}"
        ));
    }
}

#[test]
fn the_commands_of_the_setup_page_set_up_a_host_and_undo_it() {
    let running = host();
    let machine = &running.machine;
    let before = state(&running);
    let script = script_of_page(&running, fence("setup-script"));
    let mut start = Process::start(&mut machine.command(&["sh", "-ec", &script]));
    running.wait_for_fifo();
    running.echo_code();
    let (status, output) = start.finish();
    assert!(status.success(), "{output}");
    assert_encrypts(&running);

    // As if the server had never made a data key.
    let data = running.data_directory();
    machine.sh(&format!(
        "systemctl stop 'mariadb.s*'; mkdir /root/keys; mv {data}/aws-kms-key.* /root/keys"
    ));
    let mut terminal = Terminal::new();
    let undo = machine.start_in(&terminal, &["sh", "-ec", &fence("setup-undo").commands]);
    terminal.wait_for_nth("Make these changes? [y/N] ", 1);
    terminal.type_in("y\n");
    terminal.wait_for_success(undo);
    assert_eq!(state(&running), before);
}

/// The commands with the user's device and access key.
fn script_of_page(running: &Running, fence: Fence) -> String {
    let (access_key_id, secret_access_key) = running.aws.long_term_key();
    let secret = running.machine.path("/root/secret-access-key");
    fs::write(secret, secret_access_key).unwrap();
    let device = running.aws.serial_number();
    fence
        .commands
        .replace("arn:aws:iam::123456789012:mfa/mariadb", &device)
        .replace("AKIAIOSFODNN7EXAMPLE", &access_key_id)
}

#[test]
fn a_service_whose_credential_systemd_cannot_load_is_not_set_up() {
    let running = host();
    let dry_run = |hand_over| {
        let options = format!("--dry-run --hand-over={hand_over} 2>&1 || echo failed");
        running.machine.sh(&setup(&running, &options))
    };
    let done = "Nothing was changed (--dry-run).";
    let service = dry_run("service");
    assert!(service.ends_with(done), "{service}");
    let launcher = dry_run("launcher");
    let refusal =
        "systemd 247 cannot load the credential of mariadb.service: that takes systemd 248";
    assert_eq!(launcher.contains(refusal), has_systemd_247(), "{launcher}");
    assert_ne!(launcher.ends_with(done), has_systemd_247(), "{launcher}");
}
