//! The worked set-ups of `examples/`: each page is followed, as root in its folder, on a machine
//! that has what `make install` installs.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use end_to_end_tests::{Fence, LocalAws, Process, aws_cli, copy, dist, fence};

use crate::site::{BROKER, Running, SERVICE, Site};

/// Where the machine has this repository.
const SOURCE: &str = "/usr/local/src/iam-kms-wrapper";

/// A machine on which nothing is configured, with the repository and an editor.
fn bare() -> Site {
    let site = Site::bare();
    let editor = fill_in_key(&site.aws);
    with_repository(site).file(EDITOR, 0o755, &editor)
}

/// The same, of an EC2 instance with a role.
fn instance() -> Site {
    let site = Site::bare_with_aws(|sandbox| {
        let aws = LocalAws::start_with(sandbox, &["--machine-role=mariadb"]);
        let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/policies/iam");
        let trust = format!("{policies}/server-role-trust-ec2.json");
        aws.run(&["role", "mariadb", "--trust", &trust]);
        aws
    });
    // Whose region is that of the example.
    with_repository(site).file(EDITOR, 0o755, "#!/bin/sh\n")
}

fn with_repository(site: Site) -> Site {
    let endpoint = site.aws.endpoint();
    let mut site = told_where_aws_is(site, &endpoint);
    for folder in ["examples", "systemd"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(folder);
        site.image = site.image.copy(&from, &format!("{SOURCE}/{folder}"));
    }
    site
}

fn told_where_aws_is(site: Site, endpoint: &str) -> Site {
    site.told_that_aws_is_at(SERVICE, endpoint)
        .told_that_aws_is_at(BROKER, endpoint)
}

/// In the place of a person at an editor, who fills in what only that person knows.
const EDITOR: &str = "/usr/local/bin/editor";

fn fill_in_key(aws: &LocalAws) -> String {
    let (access_key_id, secret_access_key) = aws.long_term_key();
    let serial_number = aws.serial_number();
    format!(
        "#!/bin/sh\nexec sed -i \"$@\" \
         -e 's|^kms_mfa_id = .*|kms_mfa_id = {serial_number}|' \
         -e 's|^aws_access_key_id =$|aws_access_key_id = {access_key_id}|' \
         -e 's|^aws_secret_access_key =$|aws_secret_access_key = {secret_access_key}|'"
    )
}

/// The commands of a block as typed in `folder` of the repository, by somebody whose programs find AWS. The pages
/// say where the package puts things; on these machines, `make install` has put them.
fn script(site: &Running, folder: &Path, commands: &str) -> String {
    let endpoint = site.aws.endpoint();
    let folder = folder.display();
    let commands = commands.replace(
        "/usr/share/iam-kms-wrapper/",
        "/usr/local/share/iam-kms-wrapper/",
    );
    format!("export AWS_ENDPOINT_URL={endpoint}\ncd {SOURCE}/{folder}\n{commands}")
}

/// Starts the commands of a block, in the folder of its page.
fn follow(site: &Running, fence: &Fence) -> Process {
    follow_in(site, &fence.folder, fence)
}

fn follow_in(site: &Running, folder: &Path, fence: &Fence) -> Process {
    let script = script(site, folder, &fence.commands);
    Process::start(&mut site.machine.command(&["sh", "-exc", &script]))
}

/// The same, and waits until they have succeeded; returns what they print.
fn done(site: &Running, fence: &Fence) -> String {
    succeeds(follow(site, fence), site)
}

fn succeeds(mut steps: Process, site: &Running) -> String {
    let (status, output) = steps.finish();
    assert!(
        status.success(),
        "{output}\n{}",
        site.machine.journal(SERVICE)
    );
    output
}

/// The same, with a code when one is awaited.
fn done_with_code(site: &Running, fence: &Fence) {
    let steps = follow(site, fence);
    site.wait_for_fifo();
    site.echo_code();
    succeeds(steps, site);
}

/// The preflight check of a page finds broker, plugin and everything else as it should be.
fn finds_nothing_wrong(site: &Running, check: &Fence) {
    let endpoint = site.aws.endpoint();
    let aws = format!(
        "-p DynamicUser=yes -p 'Environment=AWS_ENDPOINT_URL={endpoint} \
         AWS_EC2_METADATA_SERVICE_ENDPOINT={endpoint}'"
    );
    let commands = check.commands.replace("-p DynamicUser=yes", &aws);
    assert_ne!(commands, check.commands);
    let found = site.machine.sh(&commands);
    let is_right = |line: &str| line.starts_with("ok ") || line.starts_with("not needed ");
    assert!(found.lines().all(is_right), "{found}");
    for what in [" broker: ", " plugin: "] {
        assert!(found.contains(what), "{found}");
    }
}

/// Tables and redo log are encrypted, and AWS has made the keys.
fn encrypts(site: &Running) {
    encrypts_a_table(site);
    assert!(site.aws.calls("GenerateDataKeyWithoutPlaintext") > 0);
}

fn encrypts_a_table(site: &Running) {
    site.sql("CREATE DATABASE d; CREATE TABLE d.t (a INT); INSERT INTO d.t VALUES (7)");
    let table = "SELECT ENCRYPTION_SCHEME, CURRENT_KEY_ID
        FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE NAME = \"d/t\"";
    assert_eq!(site.sql(table), "1\t1");
}

#[test]
fn the_launcher_in_the_servers_place() {
    let site = bare().boot_as_it_is();
    done_with_code(&site, &fence("mfa-at-boot"));
    encrypts(&site);
    assert!(site.programs().contains("iam-kms-broker"));
}

#[test]
fn a_host_without_a_key_takes_the_session_of_the_operator() {
    let site = bare().boot_as_it_is();
    done(&site, &fence("many-hosts"));
    finds_nothing_wrong(&site, &fence("many-hosts-check"));
    let steps = follow(&site, &fence("many-hosts-start"));
    site.wait_for_fifo();
    send_session_document(&site);
    succeeds(steps, &site);
    encrypts(&site);
    let journal = site.machine.journal(BROKER);
    assert!(!journal.contains("No such file"), "{journal}");
}

/// As the page on codes says, on the operator's machine, which is this host. Its ssh reaches the database host alone.
fn send_session_document(site: &Running) {
    let programs = site.sandbox.directory("programs");
    let enter = site.machine.command(&["\"$@\""]);
    let words = enter
        .get_args()
        .map(|word| word.to_string_lossy().into_owned());
    let words = words.collect::<Vec<_>>().join(" ");
    let ssh = programs.join("ssh");
    let script = format!("#!/bin/sh\n[ \"$1\" = root@db1 ]\nshift\nexec nsenter {words}\n");
    fs::write(&ssh, script).unwrap();
    fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).unwrap();
    let commands = fence("session-document").commands;
    let commands = commands.replace("123456", &site.aws.code());
    let (access_key_id, secret_access_key) = site.aws.long_term_key();
    let aws = aws_cli();
    let aws = Path::new(aws.get_program()).parent().unwrap();
    let path = format!(
        "{}:{}:/usr/local/bin:/usr/bin:/bin",
        programs.display(),
        aws.display()
    );
    let output = Command::new("sh")
        .args(["-ec", &commands])
        .env("PATH", path)
        .env("AWS_ACCESS_KEY_ID", access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", secret_access_key)
        .env("AWS_ENDPOINT_URL", site.aws.endpoint())
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("MFA_SERIAL", site.aws.serial_number())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        site.aws.log().contains("\"durationSeconds\":\"900\""),
        "{}",
        site.aws.log()
    );
}

#[test]
fn one_host_with_a_code_at_boot() {
    let site = bare().boot_as_it_is();
    let steps = follow(&site, &fence("broker-service"));
    site.wait_for_fifo();
    let shown = site.in_terminal_with_code(&fence("broker-service-code").commands);
    assert!(
        shown.contains("accepted: the session is open until "),
        "{shown}"
    );
    succeeds(steps, &site);
    encrypts(&site);
    let calls = site.machine.sh(&fence("broker-service-audit").commands);
    assert!(calls.contains("IAM_KMS_PEER_UID="), "{calls}");
    let unit = site.machine.sh(&format!("systemctl is-enabled {BROKER}"));
    assert_eq!(unit, "enabled");

    // Debian's package of node_exporter makes the directory.
    let metrics = "/var/lib/prometheus/node-exporter";
    site.machine.sh(&format!("install -d {metrics}"));
    done(&site, &fence("data-keys-metrics"));
    let metrics = site.machine.sh(&format!("cat {metrics}/kms-*.prom"));
    for metric in ["iam_kms_verify_last_run", "iam_kms_rotation_last_run"] {
        assert!(metrics.contains(metric), "{metrics}");
    }
    let timer = site
        .machine
        .property("kms-data-keys-metrics.timer", "ActiveState");
    assert_eq!(timer, "active");
}

#[test]
fn the_access_key_of_a_host_that_was_configured_by_hand_is_replaced() {
    let site = bare().boot_as_it_is();
    done_with_code(&site, &fence("broker-service"));
    encrypts(&site);
    let replace = || {
        fs::write(site.machine.path(EDITOR), fill_in_key(&site.aws)).unwrap();
        done_in_book(&site, fence("access-key-by-hand"));
    };
    let restart = |key_id| {
        site.machine.sh("systemctl restart iam-kms-broker");
        site.wait_for_fifo();
        site.echo_code();
        site.sql(&format!(
            "CREATE TABLE d.t{key_id} (a INT) ENCRYPTION_KEY_ID={key_id}"
        ));
    };
    site.aws.replace_long_term_key();
    replace();
    restart(3);

    // As the page on the installation encrypts it, and in the place of an encrypted one.
    let drop_in = "install -d /etc/systemd/system/iam-kms-broker.service.d
         printf '[Service]\nLoadCredential=\nLoadCredentialEncrypted=aws-credentials:/etc/iam-kms-wrapper/aws-credentials\n' \
             > /etc/systemd/system/iam-kms-broker.service.d/override.conf
         systemctl daemon-reload";
    site.machine.sh(drop_in);
    for key_id in [4, 5] {
        done_in_book(&site, fence("install-encrypt-access-key"));
        let found = "cd /etc/iam-kms-wrapper; ls; stat --format=%a aws-credentials; grep -c '\\[' aws-credentials || :";
        let found = site.machine.sh(found);
        assert_eq!(found, "aws-credentials\niam-kms-wrapper.config\n600\n0");
        restart(key_id);
        replace();
    }
}

#[test]
fn the_pages_on_the_key_store_lose_nothing() {
    let site = bare().boot_as_it_is();
    let steps = follow(&site, &fence("broker-service"));
    site.wait_for_fifo();
    site.in_terminal_with_code(&fence("broker-service-code").commands);
    succeeds(steps, &site);
    encrypts(&site);
    let folder = Path::new("examples");
    let done = |fence| done_in_book(&site, fence);
    done(fence("key-store-directory"));
    let push = script(&site, folder, &fence("key-store-push").commands);
    let shown = site.in_terminal_with_code(&push);
    assert!(
        shown.contains("2 data keys put into the key store file:///mnt/keys/db1"),
        "{shown}"
    );
    site.wait_for_fifo();
    site.in_terminal_with_code(&fence("broker-service-code").commands);
    site.machine
        .follow_journal(BROKER)
        .wait_for("can be used; it has 2 key versions");

    // One that is lost, and one that is new.
    site.machine
        .sh("systemctl stop mariadb; rm /var/lib/mysql/aws-kms-key.1.1; systemctl start mariadb");
    assert_eq!(site.sql("SELECT a FROM d.t"), "7");
    site.sql(
        "CREATE TABLE d.u (a INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10; INSERT INTO d.u VALUES (8)",
    );
    let table = done(fence("key-store-list"));
    assert_eq!(table.matches("same").count(), 3, "{table}");
    done(fence("losing-nothing-verify"));
    the_drill_touches_nothing_of_the_server(&site, folder);
}

/// Whatever directories its option files name.
fn the_drill_touches_nothing_of_the_server(site: &Running, folder: &Path) {
    site.machine.sh("systemctl stop 'mariadb.s*'
         install -d -o mysql -g mysql /var/lib/other
         cd /var/lib/mysql
         mv aws-kms-key.* aria_log* ib_logfile0 /var/lib/other
         printf '%s\n' '[mariadb]' aws-key-management-keyfile-dir=/var/lib/other \
             aria-log-dir-path=/var/lib/other innodb-log-group-home-dir=/var/lib/other \
             tmpdir=/var/lib/other general-log general-log-file=/var/lib/other/general.log \
             > /etc/mysql/mariadb.conf.d/90-other.cnf
         systemctl start mariadb
         touch '/var/lib/other/#sql-temporary.MAI'");
    let drill = fence("losing-nothing-try");
    let (backup, start) = drill.commands.split_once("chown").unwrap();
    let commands = format!("{backup}mariadb -e 'INSERT INTO d.t VALUES (9)'\nchown{start}");
    let log = done_in(site, folder, &commands);
    for table in ["d.t", "d.u"] {
        let is_right = |line: &str| line.starts_with(table) && line.ends_with("OK");
        assert!(log.lines().any(is_right), "{table} in {log}");
    }
    let left = site
        .machine
        .sh("cd /var/lib/other; ls '#sql-temporary.MAI'; grep -c 'started with:' general.log");
    assert_eq!(left, "#sql-temporary.MAI\n1");
    done_in(site, folder, &fence("losing-nothing-remove").commands);

    // A copy that does not come up.
    let (_, start) = drill.commands.split_once("/usr/sbin/mariadbd").unwrap();
    let script = format!("/usr/sbin/mariadbd{start}");
    let mut drill = Process::start(&mut site.machine.command(&["sh", "-exc", &script]));
    let (status, output) = drill.finish();
    assert!(!status.success(), "{output}");
    let log = site.machine.sh("cat /var/backups/try.log");
    assert!(log.contains("backup-my.cnf"), "{log}");

    site.machine
        .sh("systemctl kill --signal=KILL mariadb; systemctl restart mariadb");
    assert_eq!(site.sql("SELECT a FROM d.t"), "7\n9");
}

/// The pages of the book need no folder of their own.
fn done_in_book(site: &Running, fence: Fence) -> String {
    done_in(site, Path::new("examples"), &fence.commands)
}

fn done_in(site: &Running, folder: &Path, commands: &str) -> String {
    let fence = Fence {
        folder: folder.into(),
        commands: commands.into(),
    };
    done(site, &fence)
}

#[test]
fn the_check_of_a_database_host_reads_its_private_key_as_the_brokers_user() {
    let site = bare().boot_as_it_is();
    site.machine.sh(&format!(
        "install -D -m 644 {SOURCE}/examples/key-server/database-host.config \
             /etc/iam-kms-wrapper/iam-kms-wrapper.config
         install -m 644 {SOURCE}/examples/configuration/60-encryption.cnf /etc/mysql/mariadb.conf.d"
    ));
    for step in [
        fence("key-server-authority"),
        fence("key-server-certificate"),
        fence("key-server-group"),
    ] {
        let commands = &step.commands;
        site.machine
            .sh(&format!("cd /etc/iam-kms-wrapper\n{commands}"));
    }
    let check = fence("key-server-check").commands;
    let found = || site.machine.sh(&format!("{{ {check} }} || [ $? = 125 ]"));
    let ready = found();
    for what in ["certificate", "broker", "plugin"] {
        let line = format!("ok           {what}: ");
        assert!(ready.contains(&line), "{ready}");
    }
    // There are no key servers, and nothing else is wrong.
    assert_eq!(ready.matches("FAILED").count(), 2, "{ready}");
    site.machine
        .sh("chgrp root /etc/iam-kms-wrapper/db1.example.key");
    let locked = found();
    assert!(locked.contains("FAILED       certificate: "), "{locked}");
}

#[test]
fn an_instance_with_a_role_asks_nobody() {
    let site = instance().boot_as_it_is();
    done(&site, &fence("ec2-role"));
    finds_nothing_wrong(&site, &fence("ec2-role-check"));
    done(&site, &fence("ec2-role-start"));
    encrypts(&site);
    assert_eq!(site.aws.calls("GetSessionToken"), 0);
    let denied = site.machine.property(SERVICE, "IPAddressDeny");
    assert!(denied.contains("169.254.169.254/32"), "{denied}");
}

/// The network, or the role, may come after network-online.target.
#[test]
fn an_instance_whose_metadata_service_answers_late_starts_by_itself() {
    let mut site = instance().boot_as_it_is();
    done(&site, &fence("ec2-role"));
    let endpoint = site.aws.endpoint();
    site.machine
        .sh(&format!("systemctl stop 'mariadb.s*' {BROKER}"));
    site.aws.stop();
    site.machine.sh("systemctl start --no-block mariadb");
    site.machine
        .follow_journal(BROKER)
        .wait_for("trying again in 4 s");
    assert_eq!(site.state(), "activating");
    site.aws.start_again_at(&endpoint);
    site.wait_until_active();
    encrypts(&site);
}

#[test]
fn a_backup_at_night_needs_no_code_and_is_restored() {
    let mut site = bare().file(
        "/etc/mysql/mariadb.conf.d/90-log.cnf",
        0o644,
        "[mariadb]\nlog-bin = /srv/logs/bin\n",
    );
    let endpoint = site.aws.endpoint();
    site.aws.serve_again(&endpoint, &["--session-lifetime=600"]);
    let site = site.boot_as_it_is();
    site.machine.sh("install -d -o mysql /srv/logs");
    done_with_code(&site, &fence("mfa-at-boot"));
    encrypts(&site);
    // It is over by AWS's clock; the broker notices when a key is wanted.
    site.aws.set_clock("800");
    done(&site, &fence("nightly-backup"));
    let log = site.machine.journal("mariadb-nightly-backup.service");
    assert!(
        log.contains("backup complete: /var/backups/mariadb/"),
        "{log}"
    );
    // Makes the same day's again, and removes the oldest. One was made while the clock was wrong.
    site.machine
        .sh("cd /var/backups/mariadb; mkdir 2099-01-01; for day in 1 2 3 4 5 6 7; do mkdir 2020-01-0$day; done");
    site.sql("INSERT INTO d.t VALUES (8)");
    site.machine
        .sh("systemctl start mariadb-nightly-backup.service");
    let backups = site.machine.sh("ls -d /var/backups/mariadb/2*");
    assert_eq!(backups.lines().count(), 7, "{backups}");
    assert!(!backups.contains("2020-01-02"), "{backups}");
    let latest = site.machine.sh("realpath /var/backups/mariadb/latest");
    assert_eq!(backups.lines().nth(5), Some(&*latest), "{backups}");
    assert_eq!(site.aws.calls("GetSessionToken"), 1);

    // After the backup, a binary log on another disk is encrypted with a version that no backup has.
    site.wait_for_fifo();
    site.echo_code();
    site.sql("SET GLOBAL aws_key_management_rotate_key = 1");
    site.sql("FLUSH BINARY LOGS; CREATE TABLE d.since (a INT)");
    let log = site.sql("SHOW MASTER STATUS");
    let log = log.split_whitespace().next().unwrap();
    site.sql("DROP TABLE d.t");
    // Else the broker's FIFO could be taken for that of the start.
    site.stop_server();
    done_with_code(&site, &fence("nightly-backup-restore"));
    assert_eq!(site.sql("SELECT a FROM d.t"), "7\n8");
    let events = format!("SHOW BINLOG EVENTS IN \"{log}\"");
    assert!(site.sql(&events).contains("CREATE TABLE d.since"));
    site.sql("SET GLOBAL aws_key_management_rotate_key = 1");
    let keys = site.machine.sh("cd /var/lib/mysql; ls aws-kms-key.1.*");
    assert_eq!(keys, "aws-kms-key.1.1\naws-kms-key.1.2\naws-kms-key.1.3");
    assert!(site.sql(&events).contains("CREATE TABLE d.since"));
}

#[test]
fn a_restore_onto_a_mount_point_does_not_start_the_server_on_the_old_data() {
    let site = bare().boot_as_it_is();
    let machine = &site.machine;
    machine.sh("systemctl stop 'mariadb.s*'
         mv /var/lib/mysql /root/data
         install -d /var/lib/mysql
         mount -t tmpfs tmpfs /var/lib/mysql
         cp -a /root/data/. /var/lib/mysql
         chown mysql: /var/lib/mysql
         install -d -m 700 /var/lib/mysql/lost+found");
    done_with_code(&site, &fence("broker-service"));
    encrypts(&site);
    done(&site, &fence("nightly-backup"));
    site.sql("DROP TABLE d.t");

    let restore = fence("nightly-backup-restore");
    let (status, output) = follow(&site, &restore).finish();
    assert!(!status.success(), "{output}");
    assert!(output.contains("Device or resource busy"), "{output}");
    assert_eq!(site.state(), "inactive", "{output}");

    done_in_book(&site, fence("backup-restore-mount-point"));
    let (backup, rest) = restore.commands.split_once("mv -T ").unwrap();
    let (_, backup) = backup.split_once('\n').unwrap();
    let (_, rest) = rest.split_once("&&\n").unwrap();
    let forced = "--copy-back --force-non-empty-directories ";
    let rest = rest.replace("--copy-back ", forced);
    done_in(&site, &restore.folder, &format!("{backup}{rest}"));
    assert_eq!(site.sql("SELECT a FROM d.t"), "7");
    let old = machine.sh("ls /var/lib/mysql.old/ibdata1; ls -d /var/lib/mysql/lost+found");
    assert_eq!(old.lines().count(), 2, "{old}");
}

#[test]
fn no_backup_of_a_server_that_does_not_run_and_a_failed_one_leaves_the_last() {
    let site = bare().boot_as_it_is();
    done_with_code(&site, &fence("mfa-at-boot"));
    done(&site, &fence("nightly-backup"));
    let backups = site.machine.sh("ls /var/backups/mariadb");
    let left = site.machine.sh("mount -t tmpfs -o size=2m none /mnt
         /usr/local/sbin/mariadb-nightly-backup /mnt 7 > /root/log 2>&1 || grep -q 'No space left' /root/log
         ls -A /mnt");
    assert_eq!(left, "", "room that the server could need");
    site.stop_server();
    let start = "systemctl start mariadb-nightly-backup.service";
    let failed = site.machine.sh(&format!("! {start} 2>&1"));
    assert!(failed.contains("dependency job"), "{failed}");
    assert_eq!(site.machine.sh("ls /var/backups/mariadb"), backups);
}

/// The stock plugin may not be distributed. In its place stands ours with `mock`, which has all its
/// variables and needs no broker.
#[test]
fn the_stock_plugin_has_the_session_in_the_servers_environment() {
    let plugin = dist("test-plugin/aws_key_management.so");
    let mut site = bare().file(
        "/etc/mysql/mariadb.conf.d/90-mock.cnf",
        0o644,
        "[mariadb]\naws-key-management-mock = ON\n",
    );
    site.image = site
        .image
        .copy(&plugin, "/usr/lib/mysql/plugin/aws_key_management.so");
    let site = site.boot_as_it_is();
    done_with_code(&site, &fence("stock-plugin"));
    assert!(!site.programs().contains("iam-kms-broker"));
    let server = site.main_pid(SERVICE);
    let environment = site
        .machine
        .sh(&format!("tr '\\0' '\\n' < /proc/{server}/environ"));
    let value = |name: &str| {
        let line = environment.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}")).to_owned()
    };
    assert!(value("AWS_ACCESS_KEY_ID=").starts_with("ASIA"));
    assert!(!value("AWS_SESSION_TOKEN=").is_empty());
    let (_, long_term_key) = site.aws.long_term_key();
    assert_ne!(value("AWS_SECRET_ACCESS_KEY="), long_term_key);
}

/// A node among others that share this host's network, each with an address of its own.
fn node(site: Site, own: &str, all: &str, editor: &str) -> Site {
    let alone = format!(
        "[mariadb]\nport = 3307\nwsrep-sst-receive-address = {own}\n\
         wsrep-provider-options = \"gmcast.listen_addr=tcp://{own}:4567;ist.recv_addr={own}\"\n"
    );
    let editor =
        format!("{editor} -e 's|gcomm:.*|gcomm://{all}|' -e '/-address = 10/s|10.0.0.10|{own}|'");
    site.file("/etc/mysql/mariadb.conf.d/90-alone.cnf", 0o644, &alone)
        .file(EDITOR, 0o755, &editor)
}

#[test]
fn a_node_on_premises_joins_a_cluster_in_ec2() {
    let (first, second) = ("127.0.7.1", "127.0.7.2");
    let all = format!("{first},{second}");
    let page = Path::new("examples/on-premises-and-ec2");
    let cloud = node(instance(), first, &all, "#!/bin/sh\nexec sed -i \"$@\"");
    let cloud = cloud.boot_as_it_is();
    for step in [fence("ec2-role"), fence("ec2-role-start")] {
        succeeds(follow_in(&cloud, &page.join("ec2"), &step), &cloud);
    }
    done(&cloud, &fence("cluster-first-node"));
    encrypts(&cloud);

    // An AWS of its own, too, which it does not know of.
    let site = told_where_aws_is(with_repository(Site::bare()), &cloud.aws.endpoint());
    let cellar = node(site, second, &all, &fill_in_key(&cloud.aws)).boot_as_it_is();
    let steps = follow_in(&cellar, &page.join("on-premises"), &fence("broker-service"));
    cellar.wait_for_fifo();
    cellar.echo(&cloud.aws.code());
    succeeds(steps, &cellar);
    done(&cellar, &fence("cluster-next-node"));
    assert_eq!(cellar.sql("SELECT a FROM d.t"), "7");
    cellar.sql("INSERT INTO d.t VALUES (8)");
    let rows = "SET wsrep_sync_wait = 1; SELECT a FROM d.t";
    assert_eq!(cloud.sql(rows), "7\n8");
}

/// A server with file_key_management.
fn with_key_file() -> Running {
    let site = bare().boot_as_it_is();
    site.machine.sh(&format!(
        "umask 077; cd /etc/mysql
         openssl rand -hex 32 > keys.password
         echo \"1;$(openssl rand -hex 32)\" |
             openssl enc -aes-256-cbc -md sha1 -pass file:keys.password -out keys.enc
         umask 022
         cp {SOURCE}/examples/migration/60-file-key-management.cnf /etc/mysql/mariadb.conf.d
         chown mysql: /etc/mysql/keys.*
         systemctl restart mariadb"
    ));
    site
}

/// Waits until the statement of a block returns no row.
fn no_row(site: &Running, fence: &Fence) {
    site.machine
        .wait_until("the block to return no row", SERVICE, || {
            site.machine.sh(&fence.commands).is_empty()
        });
}

#[test]
fn a_server_with_a_key_file_moves_to_kms_and_back() {
    let site = with_key_file();
    encrypts_a_table(&site);
    done(&site, &fence("migration-stop-and-copy"));
    done(&site, &fence("migration-configure"));
    let import = fence("migration-import");
    let said = site.in_terminal_with_code(&script(&site, &import.folder, &import.commands));
    assert!(said.contains("1 data key imported"), "{said}");
    done_with_code(&site, &fence("migration-change-plugin"));
    done(&site, &fence("migration-rotate"));
    no_row(&site, &fence("migration-rotation-done"));
    done(&site, &fence("migration-remove-old"));
    assert_eq!(site.sql("SELECT a FROM d.t"), "7");
    site.sql(
        "CREATE TABLE d.s (a TEXT) ENCRYPTION_KEY_ID=3; INSERT INTO d.s VALUES (\"marker-in-clear\");
         CREATE TABLE d.aria ENGINE=Aria SELECT * FROM d.s",
    );

    let said = done(&site, &fence("migration-export"));
    assert!(said.contains("Not for file_key_management"), "{said}");
    done(&site, &fence("decrypt-innodb"));
    no_row(&site, &fence("decrypt-innodb-done"));
    done(&site, &fence("decrypt-aria"));
    done(&site, &fence("decrypt-logs"));
    let said = done(&site, &fence("decrypt-check"));
    assert!(!said.contains("  needed  "), "{said}");
    let in_the_clear = "cd /var/lib/mysql/d; grep -l 'marker-in-clear' * || :";
    assert_eq!(site.machine.sh(in_the_clear), "aria.MAD\ns.ibd");
    done(&site, &fence("migration-new-key-file"));
    done(&site, &fence("migration-to-file-key-management"));
    done(&site, &fence("encrypt-aria"));
    no_row(&site, &fence("encrypt-innodb-done"));
    site.stop_server();
    assert_eq!(site.machine.sh(in_the_clear), "");
    site.machine.sh("systemctl start mariadb");
    for table in ["s", "aria"] {
        assert_eq!(
            site.sql(&format!("SELECT a FROM d.{table}")),
            "marker-in-clear"
        );
    }
    starts_nothing_of_ours(&site);
}

#[test]
fn a_server_whose_keys_were_never_rotated_goes_on_with_file_key_management() {
    for set_up in [fence("broker-service"), fence("mfa-at-boot")] {
        let site = bare().boot_as_it_is();
        done_with_code(&site, &set_up);
        encrypts(&site);
        let said = done(&site, &fence("migration-export"));
        assert!(said.contains("For file_key_management"), "{said}");
        done(&site, &fence("migration-to-file-key-management"));
        assert_eq!(site.sql("SELECT a FROM d.t"), "7");
        starts_nothing_of_ours(&site);
    }
}

/// Neither now nor at the next boot.
fn starts_nothing_of_ours(site: &Running) {
    assert!(!site.programs().contains("iam-kms-"));
    assert_eq!(site.machine.property(BROKER, "UnitFileState"), "disabled");
    let wants = site.machine.property(SERVICE, "Wants");
    assert!(!wants.contains("iam-kms-"), "{wants}");
}

#[test]
fn a_backup_is_restored_on_a_host_without_aws() {
    let site = bare().boot_as_it_is();
    done_with_code(&site, &fence("mfa-at-boot"));
    encrypts(&site);
    site.sql("SET GLOBAL aws_key_management_rotate_key = -1");
    done(&site, &fence("offline-export"));
    site.machine
        .sh("mariadb-backup --backup --target-dir=/root/backup");

    let host = with_repository(Site::bare()).boot_as_it_is();
    host.wait_until_active();
    for (from, to) in [
        ("/root/keys.enc", "/root"),
        ("/root/keys.password", "/root"),
        ("/root/backup", "/var/backups/restore"),
    ] {
        copy(&site.machine.path(from), &host.machine.path(to));
    }
    done(&host, &fence("offline-prepare"));
    done(&host, &fence("offline-start"));
    assert_eq!(host.sql("SELECT a FROM d.t"), "7");
    assert!(!host.programs().contains("iam-kms-"));
}
