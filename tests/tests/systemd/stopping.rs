//! What `systemctl stop` leaves behind.

use crate::site::{FIFO, Running, SERVICE, Site};

fn assert_nothing_left(site: &Running) {
    assert_eq!(site.state(), "inactive");
    for path in [FIFO, "/run/iam-kms-wrapper"] {
        assert!(!site.machine.path(path).exists(), "{path} is left behind");
    }
    let programs = site.programs();
    for program in [
        "iam-kms-wrapper",
        "iam-kms-broker",
        "mariadbd",
        "systemd-ask-pas",
    ] {
        assert!(
            !programs.lines().any(|running| running == program),
            "{program} runs on"
        );
    }
    assert_eq!(site.machine.property(SERVICE, "NFileDescriptorStore"), "0");
}

#[test]
fn a_stop_while_the_code_is_awaited_leaves_nothing() {
    let site = Site::new().boot();
    site.stop_server();
    site.machine
        .wait_for_property("iam-kms-wrapper-prompt.service", "ActiveState", "inactive");
    assert_nothing_left(&site);
}

#[test]
fn a_stop_takes_the_fifo_and_the_broker_along() {
    let site = Site::new().boot();
    site.echo_code();
    site.wait_until_active();
    assert!(site.programs().contains("iam-kms-broker"));
    site.stop_server();
    assert_nothing_left(&site);
}
