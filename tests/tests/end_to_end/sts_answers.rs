//! What STS may answer, what the operator reads of it, and what happens to the code.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use end_to_end_tests::{ECHO, Scene, Wrapper, wait_until};
use nix::sys::signal::{SIGINT, SIGTERM};

fn calls(scene: &Scene) -> usize {
    scene.aws.calls("GetSessionToken")
}

/// The code that was written first is sent again by itself and taken in the end.
fn the_code_is_kept(scene: &Scene, says: &str, mend: impl FnOnce()) {
    let mut wrapper = scene.start(&ECHO);
    wrapper.give_code(&scene.aws);
    let line = wrapper.process.wait_for(says);
    assert!(
        line.contains("; the code will be sent again in 1 second"),
        "{line}"
    );
    mend();
    let output = wrapper.runs_echo();
    assert!(!output.contains("ignored"), "{output}");
}

/// AWS, or something in its place, has had the code: it is never sent again.
fn another_code_is_needed(scene: &Scene, says: &str) {
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    let code = scene.aws.code();
    wrapper.write(format!("{code}\n").as_bytes());
    let line = wrapper.process.wait_for(says);
    assert!(
        line.contains("; enter the next code, which appears in "),
        "{line}"
    );
    let calls_before = calls(scene);
    wrapper.write(format!("{code}\n").as_bytes());
    wrapper
        .process
        .wait_for("this code has been used; the next one appears in ");
    assert_eq!(calls(scene), calls_before, "the code was sent again");
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
}

/// No code will do before somebody mends something.
fn no_code_will_do(scene: &Scene, wrapper: &mut Wrapper, says: &str) {
    wrapper.give_code(&scene.aws);
    let output = wrapper.ends_with(125);
    let last = output.lines().last().unwrap_or_default();
    assert!(last.contains(says), "{output}");
    assert!(!output.contains("the command runs"), "{output}");
    assert_eq!(calls(scene), 1);
}

#[test]
fn a_wrong_code_is_named_and_another_one_is_requested() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    wrapper.write(scene.aws.wrong_code().as_bytes());
    let line = wrapper.process.wait_for("AWS refused the code");
    assert!(
        line.contains("mistyped, used before, or of another device; enter the next code"),
        "{line}"
    );
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
    assert_eq!(calls(&scene), 2);
}

#[test]
fn codes_that_follow_each_other_are_sent_a_second_apart() {
    let scene = Scene::new();
    let wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    let codes = [1_000_000_000, 1_000_000_030, 1_000_000_060].map(|time| scene.aws.code_at(time));
    let start = Instant::now();
    wrapper.write(codes.map(|code| code + "\n").concat().as_bytes());
    wrapper.process.wait_for_nth("AWS refused the code", 3);
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(calls(&scene), 3);
}

#[test]
fn a_signal_ends_the_pause_before_the_next_code() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    let codes: Vec<_> = (0..60)
        .map(|step| scene.aws.code_at(1_000_000_000 + step * 30) + "\n")
        .collect();
    wrapper.write(codes.concat().as_bytes());
    wrapper.process.wait_for("AWS refused the code");
    wrapper.process.signal(SIGTERM);
    wrapper.dies_of(SIGTERM);
    assert!(calls(&scene) < 60);
}

#[test]
fn a_code_that_aws_has_refused_is_not_sent_again() {
    let scene = Scene::new();
    let wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    let code = scene.aws.wrong_code();
    for nth in 1..=3 {
        wrapper.write(code.as_bytes());
        wrapper.process.wait_for_nth("appears in ", nth);
    }
    assert_eq!(calls(&scene), 1);
}

#[test]
fn a_code_that_was_taken_once_is_not_taken_again() {
    let scene = Scene::new();
    let code = scene.aws.code();
    let mut first = scene.start(&ECHO);
    first.wait_for_fifo();
    first.write(code.as_bytes());
    first.runs_echo();

    let mut second = scene.start(&ECHO);
    second.wait_for_fifo();
    second.write(code.as_bytes());
    second
        .process
        .wait_for("AWS refused the code: mistyped, used before");
    second.give_code(&scene.aws);
    second.runs_echo();
}

#[test]
fn a_wrong_serial_number_ends_with_125_and_names_kms_mfa_id() {
    let scene = Scene::new()
        .without("kms_mfa_id")
        .line("kms_mfa_id = arn:aws:iam::111122223333:mfa/another");
    no_code_will_do(
        &scene,
        &mut scene.start(&ECHO),
        "AWS does not know the MFA device arn:aws:iam::111122223333:mfa/another for this user; correct the serial number (kms_mfa_id in the configuration, or --mfa-serial)",
    );
}

#[test]
fn a_clock_that_is_behind_is_reported_with_the_difference_and_the_code_is_kept() {
    let scene = Scene::new();
    scene.aws.set_clock("3600");
    let right = || scene.aws.set_clock("0");
    // A code of the right time: the clock is set right before it is judged.
    clock_is_off(&scene, "3600 seconds behind AWS's", right);
}

#[test]
fn a_clock_that_is_ahead_is_reported_with_the_difference_and_the_code_is_kept() {
    let scene = Scene::new();
    scene.aws.set_clock("-7200");
    let right = || scene.aws.set_clock("0");
    clock_is_off(&scene, "7200 seconds ahead of AWS's", right);
}

fn clock_is_off(scene: &Scene, says: &str, right: impl FnOnce()) {
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    wrapper.write(scene.aws.present_code().as_bytes());
    let line = wrapper.process.wait_for("this host's clock is ");
    // One more or less where the second changes in between.
    let seconds: i64 = line
        .split("clock is ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{line}"));
    let (expected, direction) = says.split_once(' ').unwrap();
    let expected: i64 = expected.parse().unwrap();
    assert!((seconds - expected).abs() <= 1, "{line}");
    assert!(line.contains(direction), "{line}");
    assert!(line.contains("set the clock (timedatectl)"), "{line}");
    right();
    wrapper.runs_echo();
}

#[test]
fn an_unknown_access_key_ends_with_125() {
    let scene = Scene::new();
    let mut command = scene.command(&ECHO);
    command.env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE");
    no_code_will_do(
        &scene,
        &mut scene.spawn(&mut command),
        "AWS does not accept the access key AKIAIOSFODNN7EXAMPLE (InvalidClientTokenId); check that it exists and is active, that the secret key belongs to it, and that the region is enabled for its account",
    );
}

#[test]
fn a_wrong_secret_access_key_ends_with_125() {
    let scene = Scene::new();
    let mut command = scene.command(&ECHO);
    command.env("AWS_SECRET_ACCESS_KEY", "wrong");
    no_code_will_do(
        &scene,
        &mut scene.spawn(&mut command),
        &format!(
            "AWS does not accept the access key {} (SignatureDoesNotMatch); check that it exists and is active, that the secret key belongs to it, and that the region is enabled for its account",
            scene.aws.long_term_key().0
        ),
    );
}

#[test]
fn another_region_than_the_endpoints_is_reported_in_the_words_of_aws() {
    let scene = Scene::new().line("region = eu-west-1");
    no_code_will_do(
        &scene,
        &mut scene.start(&ECHO),
        "STS refused the request: SignatureDoesNotMatch: Credential should be scoped to a valid region, not 'eu-west-1'",
    );
}

#[test]
fn an_internal_failure_keeps_the_code() {
    let scene = Scene::new();
    scene
        .aws
        .fault("--operation GetSessionToken --kind 500 --count 1");
    the_code_is_kept(
        &scene,
        "STS cannot answer now: InternalFailure (HTTP status 500)",
        || {},
    );
    assert_eq!(calls(&scene), 2);
}

#[test]
fn an_unavailable_service_keeps_the_code() {
    let scene = Scene::new();
    scene
        .aws
        .fault("--operation GetSessionToken --kind 503 --count 1");
    the_code_is_kept(
        &scene,
        "STS cannot answer now: ServiceUnavailable (HTTP status 503)",
        || {},
    );
    assert_eq!(calls(&scene), 2);
}

#[test]
fn throttling_keeps_the_code() {
    let scene = Scene::new();
    scene
        .aws
        .fault("--operation GetSessionToken --kind throttle --count 1");
    the_code_is_kept(
        &scene,
        "STS cannot answer now: Throttling (HTTP status 400)",
        || {},
    );
    assert_eq!(calls(&scene), 2);
}

#[test]
fn a_refused_connection_keeps_the_code_until_sts_is_there() {
    let mut scene = Scene::new();
    let endpoint = scene.aws.endpoint();
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    let code = scene.aws.code();
    scene.aws.stop();
    wrapper.write(code.as_bytes());
    let line = wrapper.process.wait_for(": Connection refused");
    assert!(line.contains("; the code will be sent again"), "{line}");
    scene.aws.start_again_at(&endpoint);
    wrapper.runs_echo();
    assert_eq!(calls(&scene), 1);
}

#[test]
fn a_reset_connection_keeps_the_code() {
    let scene = Scene::new();
    scene
        .aws
        .fault("--operation GetSessionToken --kind reset --count 1");
    the_code_is_kept(&scene, ": Connection reset by peer", || {});
    assert_eq!(calls(&scene), 2);
}

#[test]
fn https_works_with_a_certificate_that_the_system_trusts_and_with_no_other() {
    let mut scene = Scene::new();
    let [certificate, key] = scene.make_certificate();
    let endpoint = scene.aws.endpoint();
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    scene.aws.serve_again(&endpoint, &tls);
    assert!(scene.aws.endpoint().starts_with("https://"));

    let wrapper = scene.start(&ECHO);
    wrapper.give_code(&scene.aws);
    let line = wrapper.process.wait_for("cannot reach STS: ");
    assert!(
        line.contains("is not signed by any of the CA certificates of this host"),
        "{line}"
    );
    drop(wrapper);
    assert_eq!(calls(&scene), 0);

    let mut command = scene.command(&ECHO);
    let mut wrapper = scene.spawn(command.env("SSL_CERT_FILE", &certificate));
    // The first wrapper did not live to remove it.
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
}

#[test]
fn silence_ends_after_request_timeout_seconds_and_keeps_the_code() {
    let scene = Scene::new().line("request_timeout_seconds = 3");
    scene
        .aws
        .fault("--operation GetSessionToken --kind silence --count 1");
    the_code_is_kept(
        &scene,
        " gave no answer within 3 seconds (request_timeout_seconds)",
        || {},
    );
    assert_eq!(calls(&scene), 2);
}

#[test]
fn a_page_in_the_place_of_an_answer_is_told_and_another_code_asked_for() {
    let scene = Scene::new();
    scene
        .aws
        .fault("--operation GetSessionToken --kind garbage --count 1");
    another_code_is_needed(
        &scene,
        "the answer (HTTP status 200) is not STS's; check the endpoint URL http://127.0.0.1:",
    );
}

#[test]
fn an_empty_answer_is_reported_and_another_code_is_requested() {
    let scene = Scene::new();
    scene
        .aws
        .fault("--operation GetSessionToken --kind empty --count 1");
    another_code_is_needed(
        &scene,
        "the answer (HTTP status 200) is not STS's; check the endpoint URL http://127.0.0.1:",
    );
}

#[test]
fn an_answer_without_credentials_is_told_and_another_code_asked_for() {
    let scene = Scene::new();
    scene
        .aws
        .fault("--operation GetSessionToken --kind no-credentials --count 1");
    another_code_is_needed(
        &scene,
        "STS answered without credentials; check the endpoint URL http://127.0.0.1:",
    );
}

#[test]
fn a_signal_ends_the_wait_for_an_answer() {
    for signal in [SIGTERM, SIGINT] {
        let scene = Scene::new().line("request_timeout_seconds = 600");
        scene
            .aws
            .fault("--operation GetSessionToken --kind silence");
        let mut wrapper = scene.start(&ECHO);
        wrapper.give_code(&scene.aws);
        wait_until("the call", || calls(&scene) == 1);
        wrapper.process.signal(signal);
        wrapper.dies_of(signal);
    }
}

#[test]
fn a_signal_ends_the_pause_between_two_calls() {
    let scene = Scene::new();
    scene.aws.fault("--operation GetSessionToken --kind 500");
    let mut wrapper = scene.start(&ECHO);
    wrapper.give_code(&scene.aws);
    wrapper
        .process
        .wait_for_nth("the code will be sent again", 2);
    wrapper.process.signal(SIGTERM);
    wrapper.dies_of(SIGTERM);
}

/// The account's user may assume the role with MFA only.
fn scene_with_role() -> Scene {
    let scene = Scene::new().line("role_arn = arn:aws:iam::111122223333:role/database");
    scene.make_role(
        "database",
        r#"{"AWS": "arn:aws:iam::111122223333:root"}"#,
        r#", "Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"}}"#,
    );
    scene
}

#[test]
fn a_role_is_assumed_with_the_code() {
    let scene = scene_with_role();
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    wrapper.write(scene.aws.wrong_code().as_bytes());
    wrapper.process.wait_for("AWS refused the code");
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
    assert_eq!((scene.aws.calls("AssumeRole"), calls(&scene)), (2, 0));
}

#[test]
fn a_role_that_may_not_be_assumed_ends_with_125_in_the_words_of_aws() {
    let scene = scene_with_role()
        .without("role_arn")
        .line("role_arn = arn:aws:iam::111122223333:role/another");
    let mut wrapper = scene.start(&ECHO);
    wrapper.give_code(&scene.aws);
    let output = wrapper.ends_with(125);
    assert!(
        output.contains("STS refused the request: AccessDenied: User: "),
        "{output}"
    );
    assert!(
        output.contains("is not authorized to perform: sts:AssumeRole"),
        "{output}"
    );
}

/// Something in STS's place that answers every request with this session.
fn impostor(fields: [(&str, &str); 4]) -> String {
    let fields: String = fields
        .iter()
        .map(|(name, value)| format!("<{name}>{value}</{name}>"))
        .collect();
    let body = format!(
        "<GetSessionTokenResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetSessionTokenResult><Credentials>{fields}</Credentials></GetSessionTokenResult></GetSessionTokenResponse>"
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 8192]);
            let length = body.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(body.as_bytes());
        }
    });
    url
}

#[test]
fn a_session_that_is_incomplete_over_unprintable_or_too_long_is_not_used() {
    let scene = Scene::new();
    let good = [
        ("AccessKeyId", "ASIAEXAMPLE"),
        ("SecretAccessKey", "secret"),
        ("SessionToken", "token"),
        ("Expiration", "2099-01-01T00:00:00Z"),
    ];
    let long = "A".repeat(200_000);
    let endless = "A".repeat(3_000_000);
    for (field, value, says) in [
        (
            "Expiration",
            "1970-01-01T00:00:00Z",
            "a session that expired at 1970-01-01T00:00:00Z",
        ),
        ("AccessKeyId", "", "a session that has no AccessKeyId"),
        (
            "SecretAccessKey",
            "",
            "a session that has no SecretAccessKey",
        ),
        ("SessionToken", "", "a session that has no SessionToken"),
        (
            "AccessKeyId",
            "ASIA&#10;READY=1",
            "non-printable character in its AccessKeyId",
        ),
        (
            "SessionToken",
            "to&#x2028;ken",
            "non-printable character in its SessionToken",
        ),
        ("SecretAccessKey", "two words", "a space or a non-printable"),
        (
            "AccessKeyId",
            &long,
            "an AccessKeyId of more than 128 bytes",
        ),
        (
            "SessionToken",
            &long,
            "a SessionToken of more than 16384 bytes",
        ),
        (
            "SessionToken",
            &endless,
            "the answer of STS (HTTP status 200) could not be read to its end: ",
        ),
    ] {
        let fields = good.map(|(name, good)| (name, if name == field { value } else { good }));
        let mut command = scene.command(&ECHO);
        command.env("AWS_ENDPOINT_URL_STS", impostor(fields));
        let mut wrapper = scene.spawn(&mut command);
        wrapper.give_code(&scene.aws);
        let line = wrapper.process.wait_for("enter the next code");
        assert!(line.contains(says), "{field}: {line}");
        assert!(line.len() < 1000, "{field}: {} bytes", line.len());
        wrapper.process.signal(SIGTERM);
        let output = wrapper.dies_of(SIGTERM);
        assert!(!output.contains("the command runs"), "{output}");
    }
    let mut command = scene.command(&ECHO);
    command.env("AWS_ENDPOINT_URL_STS", impostor(good));
    let mut wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
}
