//! boto3 against the program: every operation, error and fault. The tests are in `tests/boto3/`.

use std::process::Command;

use crate::support::{BINARY, aws_tools};

fn passes(module: &str) {
    let mut python = Command::new(aws_tools().join("python"));
    python
        .args(["-B", "-m", "unittest", "--verbose", module])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/boto3"))
        .env("LOCAL_AWS", BINARY);
    for name in [
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL",
        "AWS_CA_BUNDLE",
    ] {
        python.env_remove(name);
    }
    let output = python.output().unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    // An empty module also succeeds.
    assert!(report.contains(" ... ok\n"), "{report}");
}

#[test]
fn sessions_codes_and_roles_are_as_boto3_expects() {
    passes("test_sts");
}

#[test]
fn the_role_of_a_machine_is_as_botocore_expects() {
    passes("test_machine");
}

#[test]
fn keys_and_blobs_are_as_boto3_expects() {
    passes("test_kms");
}

#[test]
fn other_regions_accounts_and_dry_runs_are_as_boto3_expects() {
    passes("test_places");
}

#[test]
fn policies_allow_and_deny_as_boto3_expects() {
    passes("test_policies");
}

#[test]
fn signatures_times_and_forms_are_checked() {
    passes("test_requests");
}

#[test]
fn faults_happen_on_demand_and_every_call_is_logged() {
    passes("test_faults");
}
