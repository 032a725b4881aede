//! The console as a service beside the broker's.

use end_to_end_tests::{console::Page, fence};

use crate::site::{BROKER, Site};

const CONSOLE: &str = "iam-kms-console.service";

#[test]
fn an_operator_enters_a_code_on_the_page_of_the_service_that_the_book_sets_up() {
    let configuration = fence("console-configuration").commands;
    let site = Site::with_broker_service()
        .configuration(&format!("broker_socket_group = mysql\n{configuration}"))
        .boot_as_it_is();
    site.machine.sh(&fence("console-group").commands);
    site.machine.sh(&fence("console-start").commands);
    site.wait_for_fifo();
    // At boot, before the group was there, the broker may have failed, and the server with it.
    site.machine.sh("systemctl --no-block start mariadb");

    let socket = "/run/iam-kms-console/console.sock";
    site.machine
        .wait_until("the page", CONSOLE, || site.machine.path(socket).exists());
    let page = Page {
        socket: site.machine.path(socket),
    };
    assert!(page.get("/").body.contains("A code is awaited."));
    let entered = page.enter(&site.aws.code(), "boot");
    assert!(entered.contains("the session is open until"), "{entered}");
    site.wait_until_active();
    let journal = site.machine.journal(BROKER);
    assert!(
        journal.contains("entered by iam-kms-console: boot"),
        "{journal}"
    );

    let modes = format!("stat --format='%A %G' /run/iam-kms-console {socket}");
    assert_eq!(
        site.machine.sh(&modes),
        "drwxr-x--- iam-kms-operators\nsrw-rw---- iam-kms-operators"
    );
    let user = site.dynamic_user(CONSOLE);
    assert_ne!(user, site.dynamic_user(BROKER));
    let keys = format!(
        "setpriv --reuid={user} --regid=iam-kms-operators --clear-groups \
         sh -c ': < /run/iam-kms-wrapper/broker.sock' 2>&1 || :"
    );
    assert!(site.machine.sh(&keys).contains("Permission denied"));
    let complaints = format!("systemd-analyze verify --man=no {CONSOLE} 2>&1");
    assert_eq!(site.machine.sh(&complaints), "");
}
