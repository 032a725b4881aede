//! The unit files themselves.

use std::{fs, process::Command};

use end_to_end_tests::{Sandbox, dist};

use crate::site::{SERVICE, Site};

const REDHAT: &str =
    include_str!("../../../systemd/redhat/mariadb.service.d/iam-kms-wrapper.redhat.conf");

#[test]
fn systemd_analyze_finds_nothing_wrong_with_the_units() {
    let site = Site::new().boot();
    let units = "iam-kms-wrapper-prompt.path iam-kms-wrapper-prompt.service mariadb.service";
    let complaints = site
        .machine
        .sh(&format!("systemd-analyze verify --man=no {units} 2>&1"));
    assert_eq!(complaints, "");
}

#[test]
fn the_units_are_installed_but_not_enabled() {
    let site = Site::new().boot();
    let state = site
        .machine
        .property("iam-kms-wrapper-prompt.path", "UnitFileState");
    assert_eq!(state, "static");
    site.machine
        .sh("test ! -e /etc/systemd/system/sysinit.target.wants/iam-kms-wrapper-prompt.path");
}

#[test]
fn units_installed_under_another_prefix_name_the_programs_there() {
    let sandbox = Sandbox::new();
    let root = sandbox.directory("root");
    let mut install = Command::new("make");
    install
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["--silent", "install", "PREFIX=/opt/kms"])
        .arg(format!("DIST={}", dist("").display()))
        .arg(format!("DESTDIR={}", root.display()));
    assert!(install.status().unwrap().success());
    let opt = root.join("opt/kms");
    for (unit, program) in [
        (
            "lib/systemd/system/iam-kms-wrapper-prompt.service",
            "libexec/iam-kms-wrapper-prompt",
        ),
        (
            "lib/systemd/system/iam-kms-broker.service",
            "bin/iam-kms-broker",
        ),
        (
            "share/iam-kms-wrapper/mariadb.service.d/iam-kms-wrapper.conf",
            "bin/iam-kms-wrapper",
        ),
        (
            "share/iam-kms-wrapper/redhat/mariadb.service.d/iam-kms-wrapper.redhat.conf",
            "bin/iam-kms-wrapper",
        ),
    ] {
        let unit = fs::read_to_string(opt.join(unit)).unwrap();
        assert!(
            unit.contains(&format!("ExecStart=/opt/kms/{program} ")),
            "{unit}"
        );
        assert!(!unit.contains("/usr/local"), "{unit}");
        assert!(opt.join(program).exists(), "{program}");
    }
}

#[test]
fn a_service_of_red_hats_shape_starts_with_the_drop_in_for_it() {
    let program = |path: &str| format!("#!/bin/sh\nexec {path} \"$@\"\n");
    let site = Site::new()
        .file(
            "/etc/systemd/system/mariadb.service.d/iam-kms-wrapper.redhat.conf",
            0o644,
            REDHAT,
        )
        .file(
            "/usr/libexec/mariadbd",
            0o755,
            &program("/usr/sbin/mariadbd"),
        )
        .file("/usr/libexec/mariadb-check-socket", 0o755, &program("true"))
        .file(
            "/usr/libexec/mariadb-prepare-db-dir",
            0o755,
            &program("test mariadb.service ="),
        )
        .boot();
    site.echo_code();
    site.wait_until_active();
    let pid = site.machine.property(SERVICE, "MainPID");
    let line = site
        .machine
        .sh(&format!("tr '\\0' ' ' < /proc/{pid}/cmdline"));
    assert_eq!(line, "/usr/sbin/mariadbd --basedir=/usr");
}
