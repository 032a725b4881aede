//! From release 0.1.0 to this one and back, on one host with one data directory.

use std::{env, fs, path::PathBuf};

use super::{deb, encrypted_server, put, start_with};
use crate::site::Running;

/// The Debian package of 0.1.0, as `make test-upgrade` builds it.
fn old_deb() -> PathBuf {
    let folder =
        env::var_os("IAM_KMS_OLD_PACKAGES").expect("run this test with `make test-upgrade`");
    let files = fs::read_dir(folder).unwrap();
    let mut paths = files.map(|file| file.unwrap().path());
    paths
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .unwrap()
}

/// Replaces the package by another one, and starts broker and server with it.
fn change_to(running: &Running, package: &std::path::Path) {
    put(running, package);
    // apt would ask before it goes back to an older version.
    running.machine.sh("dpkg --install /root/*.deb 2>&1");
    // 0.1.0 has no `iam-kms-wrapper code`.
    let enter_code = || running.echo(&running.aws.code());
    start_with(
        running,
        "systemctl restart iam-kms-broker mariadb",
        enter_code,
    );
}

fn plugin(running: &Running) -> String {
    running
        .machine
        .sh("sha256sum /usr/lib/mysql/plugin/aws_key_management.so")
}

#[test]
fn a_host_goes_back_to_0_1_0_and_forward_again_and_reads_what_each_of_them_wrote() {
    let running = encrypted_server();
    let new = plugin(&running);
    change_to(&running, &old_deb());
    assert_ne!(plugin(&running), new);
    assert_eq!(running.sql("SELECT a FROM mysql.marked"), "marker-in-clear");
    running.sql(
        "CREATE TABLE mysql.old (a TEXT) ENGINE=InnoDB ENCRYPTION_KEY_ID=8; INSERT INTO mysql.old VALUES (\"of 0.1.0\")",
    );
    running.sql("SET GLOBAL aws_key_management_rotate_key=-1");

    change_to(&running, &deb());
    assert_eq!(plugin(&running), new);
    assert_eq!(running.sql("SELECT a FROM mysql.marked"), "marker-in-clear");
    assert_eq!(running.sql("SELECT a FROM mysql.old"), "of 0.1.0");
    running.stop_server();
    running.machine.sh("kms-data-keys check /var/lib/mysql");
}
