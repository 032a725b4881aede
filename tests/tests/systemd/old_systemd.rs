//! What the documents say for versions of systemd that cannot load a credential.

use crate::site::{BROKER, Running, SERVICE, Site};

/// The main process of `service` has the key, and user mysql cannot read it there.
fn assert_out_of_reach(site: &Running, service: &str) {
    let (access_key_id, _) = site.aws.long_term_key();
    let pid = site.main_pid(service);
    let environment = format!("/proc/{pid}/environ");
    let has_key = format!("grep --text --count {access_key_id} {environment}");
    assert_eq!(site.machine.sh(&has_key), "1");
    let refusal =
        format!("setpriv --reuid=mysql --regid=mysql --clear-groups cat {environment} 2>&1 || :");
    let refusal = site.machine.sh(&refusal);
    assert!(refusal.ends_with("Permission denied"), "{refusal}");
}

#[test]
fn the_launcher_takes_the_key_from_its_environment_and_passes_it_neither_on_nor_around() {
    let site = Site::new().credential_in_environment(SERVICE).boot();
    assert_out_of_reach(&site, SERVICE);
    site.echo_code();
    site.wait_until_active();
    let (access_key_id, _) = site.aws.long_term_key();
    let server = format!("/proc/{}/environ", site.main_pid(SERVICE));
    let without = format!("! grep --text {access_key_id} {server}");
    site.machine.sh(&without);
}

#[test]
fn the_broker_takes_the_key_from_its_environment_and_does_not_pass_it_around() {
    let site = Site::with_broker_service()
        .credential_in_environment(BROKER)
        .boot();
    assert_out_of_reach(&site, BROKER);
    site.echo_code();
    site.wait_until_active();
}
