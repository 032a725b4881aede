//! A run of chaos finds the damage that is done behind its back, and without it finds none.

use std::{fs, time::Duration};

use end_to_end_tests::chaos::{Failure, Options, Sabotage, run};

/// A run of the first and the last life of the server.
fn shortest(sabotage: Option<Sabotage>) -> Result<String, Box<Failure>> {
    run(&Options {
        duration: Duration::ZERO,
        seed: 1,
        sabotage,
    })
}

/// The report of a run that must find this.
fn report_of(sabotage: Sabotage) -> String {
    let failure = shortest(Some(sabotage)).unwrap_err();
    let report = fs::read_to_string(failure.directory.join("report/report.txt")).unwrap();
    assert_eq!(report, failure.report);
    assert!(failure.directory.join("data/ibdata1").exists(), "{report}");
    assert!(report.contains("Try again with CHAOS_SEED=1"), "{report}");
    // The last of what was done, so that it can be repeated.
    assert!(report.contains("end: Stopped"), "{report}");
    fs::remove_dir_all(&failure.directory).unwrap();
    report
}

#[test]
fn a_run_without_damage_says_that_nothing_is_lost() {
    let summary = shortest(None).unwrap_or_else(|failure| panic!("{}", failure.report));
    assert!(summary.ends_with("lost 0, hung 0\n"), "{summary}");
    assert!(summary.contains("rows verified "), "{summary}");
    assert!(!summary.contains("rows verified 0"), "{summary}");
}

#[test]
fn a_row_that_was_removed_behind_its_back_is_named() {
    let report = report_of(Sabotage::RemoveRow);
    let missing = "t1 (Plain): row 1 is missing; generation ";
    assert!(report.contains(missing), "{report}");
}

#[test]
fn a_row_that_was_changed_behind_its_back_is_named() {
    let report = report_of(Sabotage::ChangeRow);
    let changed = "t1 (Plain): row 1 does not have what belongs to it";
    assert!(report.contains(changed), "{report}");
}

#[test]
fn a_marker_in_the_clear_is_found_in_its_file() {
    let report = report_of(Sabotage::WriteMarkerInTheClear);
    assert!(
        report.contains("d/leak.ibd has the marker in the clear"),
        "{report}"
    );
}

#[test]
fn a_statement_that_hangs_is_reported_with_the_stacks_of_server_and_broker() {
    let failure = shortest(Some(Sabotage::Hang)).unwrap_err();
    let report = &failure.report;
    assert!(
        report.contains("SELECT SLEEP(1000) is not done"),
        "{report}"
    );
    for (process, thread) in [("server", "Item_func_sleep"), ("broker", "iam-kms-broker")] {
        let stacks = failure
            .directory
            .join(format!("report/stacks-of-{process}.txt"));
        let stacks = fs::read_to_string(stacks).unwrap();
        assert!(stacks.contains("Thread "), "{stacks}");
        assert!(stacks.contains(thread), "{stacks}");
    }
    fs::remove_dir_all(&failure.directory).unwrap();
}
