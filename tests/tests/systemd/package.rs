//! The Debian package on a clean Debian, used as the documents say, and the RPM beside it.

mod operator;
mod portable;
mod quickstart;
mod upgrade;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use end_to_end_tests::{Fence, Process, Sandbox, fence};

use crate::site::{BROKER, Running, SERVICE, Site};

/// What the package may never touch.
const KEPT: &str = "/var/lib/mysql /etc/iam-kms-wrapper /etc/mysql /etc/systemd/system";

/// The Debian package for this machine.
fn deb() -> PathBuf {
    package(if env::consts::ARCH == "aarch64" {
        "_arm64.deb"
    } else {
        "_amd64.deb"
    })
}

/// The RPM for this machine.
fn rpm() -> PathBuf {
    package(&format!(".{}.rpm", env::consts::ARCH))
}

/// The RPM with the policy module for SELinux.
fn rpm_selinux() -> PathBuf {
    package(".noarch.rpm")
}

/// The package that `make package` made, by the end of its name.
fn package(ending: &str) -> PathBuf {
    let folder = env::var_os("IAM_KMS_PACKAGES").expect("run these tests with `make test-package`");
    let files = fs::read_dir(folder).unwrap();
    let mut found = files.map(|file| file.unwrap().path());
    found
        .find(|path| path.to_string_lossy().ends_with(ending))
        .unwrap()
}

/// Runs a program; returns what it prints.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A machine with MariaDB that knows nothing of us but the package's file, and whose `editor` is a
/// person who fills in the user's MFA device and access key.
fn clean_machine() -> Running {
    let site = Site::clean();
    let (access_key_id, secret_access_key) = site.aws.long_term_key();
    let editor = format!(
        "#!/bin/sh
        sed -i 's|^kms_mfa_id = .*|kms_mfa_id = {}|' \"$1\"
        sed -i 's|^aws_access_key_id =|& {access_key_id}|; s|^aws_secret_access_key =|& {secret_access_key}|' \"$2\"\n",
        site.aws.serial_number()
    );
    boot_with_package(
        site.told_where_aws_is(SERVICE)
            .told_where_aws_is(BROKER)
            .file("/usr/bin/editor", 0o755, &editor),
    )
}

/// Boots the machine and puts the Debian package where the installation finds it.
fn boot_with_package(site: Site) -> Running {
    let running = site
        // There is no mirror to take the recommended CA certificates from.
        .file(
            "/etc/apt/apt.conf.d/alone",
            0o644,
            "APT::Install-Recommends \"false\";\n",
        )
        .boot_as_it_is();
    running.wait_until_active();
    put(&running, &deb());
    running
}

/// Puts a package where the installation finds it, in the place of the one before.
fn put(running: &Running, package: &Path) {
    running.machine.sh("rm -f /root/*.deb");
    let name = package.file_name().unwrap().to_string_lossy();
    fs::copy(package, running.machine.path(&format!("/root/{name}"))).unwrap();
}

fn install(running: &Running) -> String {
    let machine = &running.machine;
    let commands = fence("install-package").commands;
    machine.sh(&format!("cd /root\n{} 2>&1", commands.trim_end()))
}

/// Runs commands that start the server, and enters the code as the documents say.
fn start(running: &Running, script: &str) {
    start_with(running, script, || {
        running.echo_code();
    });
}

fn start_with(running: &Running, script: &str, enter_code: impl FnOnce()) {
    let mut start = Process::start(&mut running.machine.command(&["sh", "-ec", script]));
    running.wait_for_fifo();
    enter_code();
    let (status, output) = start.finish();
    let journal = || running.machine.journal("mariadb");
    assert!(status.success(), "{output}\n{}", journal());
    running.wait_until_active();
}

/// Follows the installation from the package to an encrypted server with a row in it.
fn encrypted_server() -> Running {
    let running = clean_machine();
    install(&running);
    encrypt(&running);
    running
}

/// Follows the installation after the package.
fn encrypt(running: &Running) {
    for step in [fence("install-configure"), fence("install-encryption")] {
        running.machine.sh(&step.commands);
    }
    assert_check_is_ok(running, &fence("install-check"), "-p DynamicUser=yes");
    start(running, &fence("install-start").commands);
    running.sql("CREATE TABLE mysql.marked (a TEXT) ENGINE=InnoDB; INSERT INTO mysql.marked VALUES (\"marker-in-clear\")");
}

/// Runs the preflight check of a page, with AWS's endpoint beside this option.
fn assert_check_is_ok(running: &Running, check: &Fence, option: &str) {
    let endpoint = running.aws.endpoint();
    let aws = format!("{option} -p Environment=AWS_ENDPOINT_URL={endpoint}");
    let commands = check.commands.replace(option, &aws);
    assert_ne!(commands, check.commands);
    let checked = running.machine.sh(&commands);
    assert!(
        checked.lines().all(|line| line.starts_with("ok ")),
        "{checked}"
    );
}

/// What lies in the places that are to be kept: names, owners, modes and content.
fn kept(running: &Running) -> String {
    running.machine.sh(&format!(
        "find {KEPT} -printf '%p %u %g %m\\n' | sort; find {KEPT} -type f -exec sha256sum {{}} + | sort"
    ))
}

/// The same package with a higher version.
fn newer_package(sandbox: &Sandbox) -> PathBuf {
    let tree = sandbox.path("newer");
    let tree_text = tree.to_string_lossy();
    run(
        "dpkg-deb",
        &["--raw-extract", &deb().to_string_lossy(), &tree_text],
    );
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let newer = text.replace("\nVersion: ", "\nVersion: 9");
    assert_ne!(newer, text);
    fs::write(control, newer).unwrap();
    let package = sandbox.path("iam-kms-wrapper_newer.deb");
    run(
        "dpkg-deb",
        &[
            "--root-owner-group",
            "--build",
            &tree_text,
            &package.to_string_lossy(),
        ],
    );
    package
}

#[test]
fn the_package_starts_enables_and_configures_nothing() {
    let running = clean_machine();
    let server = running.main_pid(SERVICE);
    // The server runs, so the content of its files changes.
    let kept_beside_data = || {
        let kept = kept(&running);
        let lines = kept
            .lines()
            .filter(|line| !line.contains("  /var/lib/mysql/"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = kept_beside_data();
    let output = install(&running);
    assert!(!output.contains("warning"), "{output}");
    assert_eq!(kept_beside_data(), before);
    assert_eq!(running.main_pid(SERVICE), server);
    for unit in [
        "iam-kms-broker.service",
        "iam-kms-console.service",
        "iam-kms-wrapper-prompt.path",
    ] {
        assert_eq!(running.machine.property(unit, "LoadState"), "loaded");
        assert_eq!(running.machine.property(unit, "ActiveState"), "inactive");
    }
    let enabled = "systemctl is-enabled iam-kms-broker.service || :";
    assert_eq!(running.machine.sh(enabled), "disabled");
    // So an upgrade never asks about a changed file, and a purge deletes none.
    let files = running.machine.sh("dpkg-query --listfiles iam-kms-wrapper");
    assert!(files.contains("/usr/bin/iam-kms-wrapper"), "{files}");
    assert!(
        !files.lines().any(|file| file.starts_with("/etc")),
        "{files}"
    );
}

#[test]
fn the_installation_page_starts_an_encrypted_server_from_the_package() {
    let running = encrypted_server();
    assert_eq!(
        running.sql("SELECT ENCRYPTION_SCHEME FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE NAME=\"mysql/marked\""),
        "1"
    );
    let data = running.data_directory();
    running.stop_server();
    let machine = &running.machine;
    machine.sh(&format!(
        "test -s {data}/mysql/marked.ibd; ! grep -rq marker-in-clear {data}"
    ));
    let version = run(
        "dpkg-deb",
        &["--field", &deb().to_string_lossy(), "Version"],
    );
    let programs = running
        .machine
        .sh("iam-kms-wrapper --version; iam-kms-broker --version");
    for line in programs.lines() {
        let (_, program_version) = line.split_once(' ').unwrap();
        assert_eq!(format!("{program_version}-1"), version.trim(), "{line}");
    }
}

#[test]
fn the_launcher_page_puts_the_launcher_in_the_servers_place() {
    let running = clean_machine();
    install(&running);
    running.machine.sh(&fence("launcher-install").commands);
    assert_check_is_ok(&running, &fence("launcher-check"), "-p User=mysql");
    start(&running, &fence("launcher-start").commands);
    running.sql("CREATE TABLE mysql.marked (a INT) ENGINE=InnoDB ENCRYPTED=YES");
    assert_runs_behind_the_launcher(&running);
}

#[test]
fn the_launcher_page_leads_back_from_the_service_with_the_same_configuration_and_access_key() {
    let running = encrypted_server();
    let configuration = "cat /etc/iam-kms-wrapper/*";
    let before = running.machine.sh(configuration);
    start(&running, &fence("launcher-return").commands);
    assert_eq!(running.sql("SELECT a FROM mysql.marked"), "marker-in-clear");
    assert_eq!(running.machine.sh(configuration), before);
    assert_runs_behind_the_launcher(&running);
}

fn assert_runs_behind_the_launcher(running: &Running) {
    let broker = running
        .machine
        .sh("stat --format=%U /proc/$(pidof iam-kms-broker)");
    assert_eq!(broker, "mysql");
    assert_eq!(running.machine.property(BROKER, "ActiveState"), "inactive");
}

#[test]
fn programs_that_hold_credentials_can_be_read_by_root_alone() {
    let running = clean_machine();
    install(&running);
    let modes = "stat --format='%a %U' /usr/bin/iam-kms-* /usr/bin/kms-* | sort -u";
    assert_eq!(running.machine.sh(modes), "711 root");
    let help = "setpriv --reuid=mysql --regid=mysql --init-groups sh -ec
        'for program in /usr/bin/iam-kms-* /usr/bin/kms-*; do $program --help > /dev/null; done'";
    running.machine.sh(&help.replace('\n', ""));
}

/// The kernel of these machines has no AppArmor; `make test-confinement` has it.
#[test]
fn each_installation_loads_the_rules_for_apparmor_and_adds_them_to_what_a_person_has_written() {
    let running = clean_machine();
    let machine = &running.machine;
    machine.sh("mkdir -p /etc/apparmor.d/local
         touch /etc/apparmor.d/mariadbd
         printf '# mine' > /etc/apparmor.d/local/mariadbd
         ln -s /bin/true /usr/bin/aa-enabled
         printf '#!/bin/sh\\necho \"$@\" >> /root/loaded' > /usr/sbin/apparmor_parser
         chmod 755 /usr/sbin/apparmor_parser");
    install(&running);
    put(&running, &newer_package(&running.sandbox));
    install(&running);
    let local = "cat /etc/apparmor.d/local/mariadbd";
    assert_eq!(
        machine.sh(local),
        "# mine\ninclude if exists \"/usr/share/iam-kms-wrapper/apparmor/mariadbd\""
    );
    let load = "--replace /etc/apparmor.d/mariadbd";
    assert_eq!(machine.sh("cat /root/loaded"), format!("{load}\n{load}"));
    machine.sh("apt-get remove --yes iam-kms-wrapper 2>&1");
    assert_eq!(machine.sh(local), "# mine");
}

#[test]
fn upgrade_remove_and_purge_leave_data_and_keys_and_the_server_starts_again_afterwards() {
    let running = encrypted_server();
    let machine = &running.machine;
    let server = running.main_pid(SERVICE);
    put(&running, &newer_package(&running.sandbox));
    install(&running);
    let version = machine.sh("dpkg-query --show --showformat='${Version}' iam-kms-wrapper");
    assert!(version.starts_with('9'), "{version}");
    assert_eq!(running.main_pid(SERVICE), server);
    // The broker before the upgrade still serves.
    running.sql("CREATE TABLE mysql.other (a INT) ENGINE=InnoDB ENCRYPTION_KEY_ID=7");

    running.stop_server();
    let before = kept(&running);
    assert!(
        before.contains("/var/lib/mysql/aws-kms-key.1.1 "),
        "{before}"
    );
    assert!(
        before.contains("/var/lib/mysql/aws-kms-key.7.1 "),
        "{before}"
    );
    let told = machine.sh("apt-get remove --yes iam-kms-wrapper 2>&1");
    assert!(
        told.contains("mariadb.service.d/iam-kms-broker.conf still has"),
        "{told}"
    );
    assert_eq!(kept(&running), before);
    let told = machine.sh("apt-get purge --yes iam-kms-wrapper 2>&1");
    assert!(
        told.contains("/etc/iam-kms-wrapper is left as it is"),
        "{told}"
    );
    assert_eq!(kept(&running), before);
    let left =
        "find / -xdev '(' -name '*iam-kms-*' -o -name 'aws_key_management*' ')' -path '/usr/*'";
    assert_eq!(machine.sh(left), "");

    put(&running, &deb());
    install(&running);
    start(&running, "systemctl start mariadb");
    assert_eq!(running.sql("SELECT a FROM mysql.marked"), "marker-in-clear");
}

#[test]
fn red_hats_package_is_installed_by_rpm_starts_an_encrypted_server_and_leaves_what_is_not_its_own()
{
    let running = clean_machine();
    let machine = &running.machine;
    let root = machine.path("/");
    let root = root.to_string_lossy();
    // SQLite follows the link /proc/N/root to the root of this system, where the database of packages must not be.
    let database = running.sandbox.directory("rpmdb");
    let database = database.to_string_lossy();
    // There is no C library in that database: hence --nodeps.
    let there = ["--root", &root, "--dbpath", &database, "--nodeps"];
    let rpm_there = |arguments: &[&str]| run("rpm", &[&there[..], arguments].concat());
    let selinux = rpm_selinux();
    let told = rpm_there(&[
        "--install",
        &rpm().to_string_lossy(),
        &selinux.to_string_lossy(),
    ]);
    assert!(told.contains("nothing is configured yet"), "{told}");
    let names = ["iam-kms-wrapper", "iam-kms-wrapper-selinux"];
    for name in names {
        assert_eq!(rpm_there(&["--verify", name]), "");
    }
    let modes = "stat --format='%a %U' /usr/bin/iam-kms-* /usr/bin/kms-* | sort -u";
    assert_eq!(machine.sh(modes), "711 root");

    // What rpm runs in another root does not reach this machine's systemd; and Debian's server looks elsewhere.
    machine.sh("systemctl daemon-reload");
    machine.sh(
        "printf '[mariadb]\\nplugin_dir = /usr/lib64/mysql/plugin\\n' > /etc/mysql/mariadb.conf.d/90-plugin-dir.cnf",
    );
    encrypt(&running);
    assert_eq!(
        running.sql("SELECT @@plugin_dir"),
        "/usr/lib64/mysql/plugin/"
    );
    assert_eq!(
        running.sql("SELECT ENCRYPTION_SCHEME FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE NAME=\"mysql/marked\""),
        "1"
    );

    running.stop_server();
    machine.sh("systemctl stop iam-kms-broker");
    let before = kept(&running);
    rpm_there(&["--erase", names[0], names[1]]);
    assert_eq!(kept(&running), before);
    let left =
        "find / -xdev '(' -name '*iam-kms-*' -o -name 'aws_key_management*' ')' -path '/usr/*'";
    assert_eq!(machine.sh(left), "");
}

#[test]
fn the_rpm_for_selinux_has_the_module_alone_loads_it_and_removes_it_with_itself() {
    let rpm = rpm_selinux();
    let rpm = rpm.to_string_lossy();
    let query = |what: &str| run("rpm", &["--query", "--package", what, &rpm]);
    let module = "/usr/share/selinux/packages/iam-kms-wrapper/iam_kms_wrapper.cil";
    assert_eq!(query("--list").trim_end(), module);
    for (what, named) in [
        ("--requires", "policycoreutils"),
        ("--requires", "selinux-policy"),
        ("--conflicts", ""),
        ("--recommends", ""),
        ("--suggests", ""),
    ] {
        let said = query(what);
        assert!(
            said.contains(named) && (!named.is_empty() || said.is_empty()),
            "{what}: {said}"
        );
    }
    let scripts = query("--scripts");
    let load = format!("semodule -X 200 -i {module}");
    for part in [
        load.as_str(),
        "semodule -X 200 -r iam_kms_wrapper",
        "restorecon",
    ] {
        assert!(scripts.contains(part), "{part}: {scripts}");
    }
    assert!(!scripts.contains("systemctl"), "{scripts}");
}

#[test]
fn the_rpm_is_whole_starts_nothing_and_holds_what_the_deb_holds() {
    let rpm = rpm();
    let rpm = rpm.to_string_lossy();
    assert!(run("rpm", &["--checksig", "--nosignature", &rpm]).ends_with("digests OK\n"));
    let query = |what: &str| run("rpm", &["--query", "--package", what, &rpm]);
    let requires = query("--requires");
    assert!(
        requires.contains("libc.so.6(GLIBC_2.28)(64bit)"),
        "{requires}"
    );
    assert!(requires.contains("/bin/sh"), "{requires}");
    assert!(query("--conflicts").contains("MariaDB-aws-key-management"));
    let scripts = query("--scripts");
    assert!(scripts.contains("daemon-reload"), "{scripts}");
    for word in ["enable", "start ", "restart", "/etc", "/var", "rm "] {
        assert!(!scripts.contains(word), "{word}: {scripts}");
    }

    let sandbox = Sandbox::new();
    let (redhat, debian) = (sandbox.directory("redhat"), sandbox.directory("debian"));
    for rpm in [rpm.as_ref(), &rpm_selinux().to_string_lossy()] {
        let unpack = format!(
            "rpm2archive - < '{rpm}' | tar --extract --gzip --directory {}",
            redhat.display()
        );
        run("sh", &["-ec", &unpack]);
    }
    run(
        "dpkg-deb",
        &[
            "--extract",
            &deb().to_string_lossy(),
            &debian.to_string_lossy(),
        ],
    );
    let unit = "usr/lib/systemd/system/iam-kms-broker.service";
    let unit = fs::read_to_string(redhat.join(unit)).unwrap();
    assert!(
        unit.contains("ExecStart=/usr/bin/iam-kms-broker "),
        "{unit}"
    );
    let plugin = |server: &str| {
        let file = format!("usr/lib64/{server}/plugin/aws_key_management.so");
        fs::read(redhat.join(file)).unwrap()
    };
    assert!(plugin("mysql") == plugin("mariadb"), "two plugins");
    // Each distribution has its own places for these.
    let elsewhere = [
        "/lib64/mariadb/",
        "/changelog",
        "/CHANGELOG.md",
        "/copyright",
        "/THIRD-PARTY-LICENSES",
        "/share/licenses/",
        "/share/lintian/",
    ];
    let as_on_debian = |path: String| {
        path.replace("/lib64/", "/lib/")
            .replace("/zsh/site-functions/", "/zsh/vendor-completions/")
    };
    let files = |folder: &Path| -> BTreeSet<String> {
        let list = "cd \"$1\"; find . -type f -printf '%m %p\\n'";
        let list = run("sh", &["-ec", list, "sh", &folder.to_string_lossy()]);
        list.lines()
            .filter(|line| !elsewhere.iter().any(|place| line.contains(place)))
            .map(|line| as_on_debian(line.trim_end_matches(".gz").to_owned()))
            .collect()
    };
    assert_eq!(files(&redhat), files(&debian));
}
