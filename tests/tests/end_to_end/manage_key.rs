//! `kms-manage-key`: the master key is enabled, disabled and shown behind a code.

use end_to_end_tests::{
    Process, Scene, Terminal, after,
    manage_key::{
        MFA, NO_MFA, deny, describe, ends_with, key_cli, scene, start, start_with_input, state,
    },
    wait_until,
};

/// As AWS has it: a change takes its time. Tests set AWS's clock on instead of waiting.
const DELAY: [&str; 1] = ["--key-state-delay-milliseconds=60000"];

#[test]
fn the_key_is_disabled_and_enabled_with_a_code_each() {
    let scene = scene(&[]);
    deny(&scene, r#"["kms:EnableKey", "kms:DisableKey"]"#, NO_MFA);
    let arn = describe(&scene, "Arn");
    for (action, operation, new_state) in [
        ("disable", "DisableKey", "Disabled"),
        ("enable", "EnableKey", "Enabled"),
        ("enable", "EnableKey", "Enabled"),
    ] {
        let output = ends_with(start(&scene, &[action]), 0);
        assert_eq!(state(&scene), new_state);
        let line = output.lines().last().unwrap();
        let who = format!(
            "{arn} is {new_state}: {operation} by arn:aws:iam::111122223333:user/mariadb at "
        );
        assert!(line.contains(&who), "{output}");
        let request_id = line.rsplit("(request ").next().unwrap();
        let request_id = request_id.strip_suffix(')').unwrap();
        let log = scene.aws.log();
        let record = log.lines().find(|record| record.contains(request_id));
        assert!(record.unwrap().contains(operation), "{output}\n{log}");
    }
    assert!(!scene.fifo().exists());
}

#[test]
fn it_waits_until_kms_shows_the_new_state_and_says_so_in_a_terminal() {
    let scene = scene(&DELAY);
    let mut terminal = Terminal::new();
    // Standard error to the terminal too.
    let prefix = ["sh", "-c", "exec \"$@\" 2>&0", "sh"];
    let mut command = after(&prefix, &scene.manage_key_command(&["disable"]));
    let process = Process::start(command.stdin(terminal.programs()));
    terminal.wait_for_nth("MFA code: ", 1);
    terminal.type_in(&format!("{}\n", scene.aws.code()));
    terminal.wait_for_nth("waiting for KMS to show arn:aws:kms:", 1);
    wait_until("another look", || scene.aws.calls("DescribeKey") >= 5);
    assert!(!terminal.shown().contains("is Disabled"));
    scene.aws.set_clock("90");
    terminal.wait_for_nth("is Disabled: DisableKey by ", 1);
    assert_eq!(ends_with(process, 0), "");
    let shown = terminal.shown();
    assert_eq!(shown.matches("waiting for KMS").count(), 1, "{shown}");
}

#[test]
fn a_state_that_does_not_come_in_time_exits_with_124() {
    let scene = scene(&DELAY);
    let output = ends_with(start(&scene, &["disable", "--timeout-seconds=3"]), 124);
    assert!(
        output.contains("KMS accepted DisableKey by arn:aws:iam::111122223333:user/mariadb at "),
        "{output}"
    );
    assert!(
        output.ends_with(
            "but does not show it after 3 seconds (--timeout-seconds): it is still Enabled"
        ),
        "{output}"
    );
}

#[test]
fn a_wrong_code_is_asked_for_again_at_a_terminal_and_never_shown() {
    let scene = scene(&[]);
    let mut terminal = Terminal::new();
    let mut command = scene.manage_key_command(&["disable"]);
    let process = Process::start(command.stdin(terminal.programs()));
    process.wait_for("type it here");
    assert!(!terminal.echoes());
    terminal.type_in(&format!("{}\n", scene.aws.wrong_code()));
    process.wait_for("AWS refused the code: mistyped");
    let code = scene.aws.code();
    terminal.type_in(&format!("{code}\n"));
    let output = ends_with(process, 0);
    assert_eq!(output.matches("MFA code: ").count(), 2, "{output}");
    assert!(!output.contains(&code), "{output}");
    assert!(terminal.echoes());
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn a_wrong_code_from_elsewhere_exits_with_125_and_changes_nothing() {
    let scene = scene(&[]);
    let wrong = scene.aws.wrong_code();
    let input = format!("{wrong}\n{}\n", scene.aws.code());
    let by_input = start_with_input(&mut scene.manage_key_command(&["disable"]), &input);
    let by_argument = Process::start(&mut scene.manage_key_command(&["disable", &wrong]));
    for process in [by_input, by_argument] {
        let output = ends_with(process, 125);
        assert!(
            output.contains("AWS refused the code: mistyped"),
            "{output}"
        );
        assert!(!output.contains(&wrong), "{output}");
    }
    for (input, why) in [
        ("", "standard input was closed before anything was entered"),
        ("11167\n", "ignored 5 digits instead of six"),
    ] {
        let process = start_with_input(&mut scene.manage_key_command(&["disable"]), input);
        let output = ends_with(process, 125);
        assert!(output.contains(why), "{output}");
    }
    let malformed = Process::start(&mut scene.manage_key_command(&["disable", "11167"]));
    let output = ends_with(malformed, 125);
    assert!(output.contains("is not six digits"), "{output}");
    assert_eq!(scene.aws.calls("DisableKey"), 0);
}

#[test]
fn a_code_on_the_command_line_is_taken_with_a_warning() {
    let scene = scene(&[]);
    let code = scene.aws.code();
    let process = Process::start(&mut scene.manage_key_command(&["d", &code]));
    let output = ends_with(process, 0);
    assert!(
        output.contains("is visible in the list of processes (ps)"),
        "{output}"
    );
    assert!(!output.contains(&code), "{output}");
    assert_eq!(state(&scene), "Disabled");
    ends_with(start(&scene, &["e"]), 0);
    assert_eq!(state(&scene), "Enabled");
}

#[test]
fn the_status_is_for_people_and_scripts() {
    let scene = scene(&[]);
    let arn = describe(&scene, "Arn");
    let status = |code| {
        let output = ends_with(start(&scene, &["status"]), code);
        let lines = output.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines[2], format!("key: {arn}"), "{output}");
        let caller = "asked by: arn:aws:iam::111122223333:user/mariadb";
        assert_eq!(lines.last().unwrap(), caller, "{output}");
        (lines[1].clone(), output)
    };
    assert_eq!(status(0).0, "state: Enabled");
    key_cli(&scene, "disable-key", &[]);
    assert_eq!(status(3).0, "state: Disabled");
    key_cli(
        &scene,
        "schedule-key-deletion",
        &["--pending-window-in-days=7"],
    );
    let (state, output) = status(4);
    assert_eq!(state, "state: PendingDeletion");
    assert!(output.contains("\ndeletion: 20"), "{output}");
    let advice = format!("run aws kms cancel-key-deletion --key-id {arn} and then enable it");
    assert!(output.contains(&advice), "{output}");
    // A change is refused with the same advice.
    let output = ends_with(start(&scene, &["enable"]), 123);
    assert!(
        output.contains("is PendingDeletion and nothing was changed"),
        "{output}"
    );
    assert!(output.contains(&advice), "{output}");
    assert_eq!(scene.aws.calls("EnableKey"), 0);
}

#[test]
fn the_status_is_the_same_if_its_reader_stops_early() {
    let scene = scene(&[]);
    let status = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = scene.manage_key_command(&["status"]);
        let code = format!("{}\n", scene.aws.code());
        let code = std::fs::File::open(scene.sandbox.write("code", &code)).unwrap();
        let output = command.stdin(code).stdout(writer).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!errors.contains("standard output"), "{errors}");
        output.status.code()
    };
    assert_eq!(status(), Some(0));
    key_cli(&scene, "disable-key", &[]);
    assert_eq!(status(), Some(3));
}

#[test]
fn without_permission_to_look_the_change_is_made_and_the_exit_status_is_122() {
    let scene = scene(&[]);
    let arn = describe(&scene, "Arn");
    deny(&scene, r#""kms:DescribeKey""#, MFA);
    let by_arn = format!("--key={arn}");
    let output = ends_with(start(&scene, &["disable", &by_arn]), 122);
    assert!(
        output.contains(
            "but its effect cannot be confirmed; allow kms:DescribeKey in the key policy"
        ),
        "{output}"
    );
    assert_eq!(state(&scene), "Disabled");
    // Without a look, nobody knows which key an alias is.
    let output = ends_with(start(&scene, &["enable"]), 123);
    assert!(
        output.contains("cannot look up the key alias/mariadb; name it by its id or ARN"),
        "{output}"
    );
    assert_eq!(state(&scene), "Disabled");
    let output = ends_with(start(&scene, &["status"]), 123);
    assert!(output.contains("allow kms:DescribeKey"), "{output}");
}

#[test]
fn a_refusal_of_kms_exits_with_123_and_the_reason() {
    let scene = scene(&[]);
    deny(&scene, r#""kms:DisableKey""#, MFA);
    let output = ends_with(start(&scene, &["disable"]), 123);
    assert!(
        output.contains("KMS DisableKey (request ") && output.contains("AccessDeniedException"),
        "{output}"
    );
    assert_eq!(state(&scene), "Enabled");
    let output = ends_with(start(&scene, &["enable", "--key=alias/other"]), 123);
    assert!(output.contains("NotFoundException"), "{output}");
}

#[test]
fn a_short_kms_outage_does_no_harm() {
    let scene = scene(&[]);
    scene
        .aws
        .fault("--operation DisableKey --kind 503 --count 2");
    scene
        .aws
        .fault("--operation DescribeKey --kind throttle --count 1");
    let arn = describe_without_fault(&scene);
    let output = ends_with(start(&scene, &["disable", &format!("--key={arn}")]), 0);
    assert_eq!(output.matches("; trying again").count(), 2, "{output}");
    assert_eq!(state(&scene), "Disabled");
}

/// The fault is for the program.
fn describe_without_fault(scene: &Scene) -> String {
    let query = "--query=Aliases[0].TargetKeyId";
    scene
        .aws
        .cli(&["kms", "list-aliases", query, "--output=text"])
}

#[test]
fn an_arn_names_the_region_by_itself() {
    let scene = Scene::in_region("eu-central-1")
        .line("master_key_id = arn:aws:kms:eu-central-1:111122223333:alias/mariadb");
    let output = ends_with(start(&scene, &["disable"]), 0);
    assert!(
        output.contains("arn:aws:kms:eu-central-1:111122223333:key/"),
        "{output}"
    );
}

#[test]
fn a_session_document_replaces_a_code() {
    let scene = scene(&[]).without("kms_mfa_id").line("mfa = elsewhere");
    let document = scene.aws.session_document();
    let mut command = scene.manage_key_command(&["disable"]);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    ends_with(start_with_input(&mut command, &document), 0);
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn with_mfa_off_there_is_no_prompt() {
    let scene = scene(&[]).without("kms_mfa_id").line("mfa = false");
    let mut command = scene.manage_key_command(&["disable"]);
    let output = ends_with(Process::start(&mut command), 0);
    assert!(!output.contains("waiting for"), "{output}");
    let mut command = scene.manage_key_command(&["enable", "111676"]);
    let output = ends_with(Process::start(&mut command), 125);
    assert!(
        output.contains("the configuration has mfa = false"),
        "{output}"
    );
    assert_eq!(state(&scene), "Disabled");
}

#[test]
fn mistakes_are_reported_before_the_prompt() {
    let fails = |scene: &Scene, arguments: &[&str], why: &str| {
        let output = ends_with(
            Process::start(&mut scene.manage_key_command(arguments)),
            125,
        );
        assert!(output.contains(why), "{output}");
        assert!(!output.contains("waiting for"), "{output}");
    };
    let scene = Scene::new();
    fails(
        &scene,
        &["status"],
        "no master key is named; set master_key_id in ",
    );
    fails(
        &scene,
        &["status", "--key=key/1"],
        "must be the id or ARN of a KMS key",
    );
    fails(&scene, &["destroy"], "unrecognized subcommand");
    let scene = scene.line("master_key_id = key/1");
    fails(
        &scene,
        &["status"],
        "line 4: master_key_id is \"key/1\", but must be the id or ARN",
    );
}

#[test]
fn ctrl_c_while_kms_is_awaited_says_what_was_taken() {
    let scene = scene(&DELAY);
    let mut process = start(&scene, &["disable"]);
    wait_until("DisableKey", || scene.aws.calls("DescribeKey") >= 3);
    process.signal(nix::sys::signal::SIGINT);
    let (status, output) = process.finish();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(nix::sys::signal::SIGINT as i32),
        "{status}\n{output}"
    );
    assert!(
        output.contains("ended by SIGINT: KMS accepted DisableKey by "),
        "{output}"
    );
    assert!(
        output.ends_with("but the wait for its effect was interrupted"),
        "{output}"
    );
}
