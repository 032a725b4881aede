//! How a code reaches the wrapper, and what else may be written.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, chown, symlink},
        net::UnixListener,
    },
    path::Path,
    process::Command,
};

use end_to_end_tests::{
    ECHO, FifoWriter, NOBODY, Process, SLEEP, Scene, Wrapper, after_python,
    broker::{failure, generated},
    inspection::variable,
    mode, wait_until, write_fifo,
};
use nix::{
    sys::{
        signal::{SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM},
        stat::Mode,
    },
    unistd::{Group, mkfifo},
};

#[test]
fn six_digits_start_the_command_with_newline_crlf_or_neither() {
    let scene = Scene::new();
    for end in ["\n", "\r\n", ""] {
        let mut wrapper = scene.start(&ECHO);
        wrapper.wait_for_fifo();
        wrapper.write(format!("{}{end}", scene.aws.code()).as_bytes());
        wrapper.runs_echo();
    }
}

#[test]
fn a_code_may_come_in_pieces_within_one_open() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    let mut writer = FifoWriter::open(scene.fifo());
    let code = scene.aws.code();
    for piece in [&code[..1], &code[1..4], &code[4..]] {
        writer.write(piece.as_bytes());
    }
    drop(writer);
    wrapper.runs_echo();
    assert_eq!(scene.aws.calls("GetSessionToken"), 1);
}

#[test]
fn a_code_that_is_written_before_its_fifo_is_removed_is_not_lost() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    let mut writer = FifoWriter::open(scene.fifo());
    fs::remove_file(scene.fifo()).unwrap();
    writer.write(scene.aws.code().as_bytes());
    drop(writer);
    wrapper.runs_echo();
}

#[test]
fn input_that_is_not_a_code_is_described_by_length_and_kind_and_asked_for_again() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    let letters = [b'x'; 4096];
    let lines = b"rubbish\n".repeat(512);
    for (bytes, kind) in [
        (&b""[..], "a writer that wrote nothing"),
        (b"\n", "an empty line"),
        (b"\r\n", "an empty line"),
        (b"11167\n", "5 digits instead of six"),
        (b"1116760\n", "7 digits instead of six"),
        (b"letter\n", "6 characters that are not six digits"),
        (b"111-676\n", "7 characters that are not six digits"),
        (&letters, "4096 characters that are not six digits"),
        (&lines, "4096 bytes in several lines, none of them a code"),
        (b"\x00\xff\x1b[2J\n", "6 bytes of binary data"),
        (
            b"{\"Credentials\":{}}",
            "a session document without Expiration",
        ),
        (b"{\"Credentials\":", "a session document that is cut off"),
    ] {
        let before = lines_of(&wrapper, kind);
        wrapper.write(bytes);
        let line = wrapper.process.wait_for_nth(kind, before + 1);
        assert!(line.starts_with("iam-kms-wrapper: ignored "), "{line}");
        assert!(line.contains("enter the six digits"), "{line}");
        assert!(line.contains(&*scene.fifo().to_string_lossy()), "{line}");
    }
    assert_eq!(scene.aws.log(), "", "STS was asked");
    wrapper.give_code(&scene.aws);
    let output = wrapper.ends_with(0);
    assert!(output.contains("the command runs"), "{output}");
    for written in ["11167", "letter", "xxx", "rubbish", "\x1b"] {
        assert!(!output.contains(written), "{written:?} is in the log");
    }
}

fn lines_of(wrapper: &Wrapper, text: &str) -> usize {
    let output = wrapper.process.output();
    output.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn two_writers_at_once_are_told_apart_by_their_lines() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    let mut one = FifoWriter::open(scene.fifo());
    let mut other = FifoWriter::open(scene.fifo());
    one.write(b"nonsense\n");
    other.write(format!("{}\n", scene.aws.code()).as_bytes());
    wrapper
        .process
        .wait_for("8 characters that are not six digits");
    wrapper.runs_echo();
}

#[test]
fn two_writers_in_one_line_waste_a_line_but_no_code() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    let mut one = FifoWriter::open(scene.fifo());
    let mut other = FifoWriter::open(scene.fifo());
    let code = scene.aws.code();
    one.write(&code.as_bytes()[..2]);
    other.write(format!("{code}\n").as_bytes());
    wrapper.process.wait_for("8 digits instead of six");
    assert_eq!(scene.aws.log(), "", "STS was asked");
    other.write(format!("{code}\n").as_bytes());
    wrapper.runs_echo();
}

#[test]
fn two_codes_at_once_are_tried_one_after_the_other() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    let codes = format!("{}\n{}\n", scene.aws.wrong_code(), scene.aws.code());
    write_fifo(scene.fifo(), codes.as_bytes());
    wrapper.process.wait_for("AWS refused the code");
    wrapper.runs_echo();
    assert_eq!(scene.aws.calls("GetSessionToken"), 2);
}

#[test]
fn a_writer_that_never_finishes_does_not_keep_others_out() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    let mut stuck = FifoWriter::open(scene.fifo());
    stuck.write(b"123");
    wrapper
        .process
        .wait_for("3 digits instead of six, without a line end");
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
    drop(stuck);
}

#[test]
fn six_digits_are_taken_though_their_writer_neither_ends_the_line_nor_closes() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    let mut writer = FifoWriter::open(scene.fifo());
    writer.write(scene.aws.code().as_bytes());
    wrapper.runs_echo();
    drop(writer);
}

#[test]
fn a_session_document_of_the_aws_cli_is_used_as_it_is() {
    let scene = Scene::new();
    let document = session_document(&scene);
    let document_text = serde_json::to_string_pretty(&document).unwrap();
    let calls = scene.aws.calls("GetSessionToken");

    let wrapper = scene.start(&SLEEP);
    write_fifo(scene.fifo(), document_text.as_bytes());
    wrapper.wait_for_command("sleep");
    for (name, field) in [
        ("AWS_ACCESS_KEY_ID", "AccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "SecretAccessKey"),
        ("AWS_SESSION_TOKEN", "SessionToken"),
    ] {
        let value = variable(wrapper.process.pid(), name);
        assert_eq!(value, document["Credentials"][field], "{name}");
    }
    assert_eq!(scene.aws.calls("GetSessionToken"), calls);
}

#[test]
fn a_host_without_an_aws_key_starts_with_a_session_document() {
    let scene = Scene::new().without("kms_mfa_id").line("mfa = elsewhere");
    let document = session_document(&scene)["Credentials"].to_string();
    let mut command = scene.command(&ECHO);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let mut wrapper = scene.spawn(&mut command);
    let line = wrapper.process.wait_for("waiting for a session document");
    assert!(line.contains("iam-kms-wrapper code --fifo="), "{line}");
    wrapper.write(b"123456\n");
    wrapper.process.wait_for("ignored a code");
    // As `credential_process` prints it.
    wrapper.write(document.replacen('{', "{\"Version\":1,", 1).as_bytes());
    wrapper.runs_echo();
}

/// `document` with another end, in seconds from now.
fn ending_in(document: &serde_json::Value, seconds: i64) -> String {
    let output = Command::new("date")
        .args(["--utc", "--iso-8601=seconds"])
        .arg(format!("--date={seconds} seconds"))
        .output()
        .unwrap();
    let end = String::from_utf8(output.stdout).unwrap();
    let mut changed = document.clone();
    changed["Credentials"]["Expiration"] = end.trim().into();
    changed.to_string()
}

/// Writes documents that are none, and reads of each what is wrong with it.
fn refuses_documents(wrapper: &Wrapper, program: &str, document: &serde_json::Value) {
    let mut empty = document.clone();
    empty["Credentials"]["SessionToken"] = "".into();
    let twice = document
        .to_string()
        .replacen('{', "{\"Credentials\":null,", 1);
    for (written, says) in [
        (ending_in(document, -3600), "that expired at 20"),
        (ending_in(document, 30), "60 seconds"),
        (empty.to_string(), "that has no SessionToken"),
        (twice, "JSON, but not a session document"),
        (
            format!("{{\"Other\":{}", "[".repeat(10_000)),
            "a session document that is cut off",
        ),
        (
            format!("{{\"Credentials\":\"{}", "x".repeat(100_000)),
            "100016 characters",
        ),
    ] {
        let of_program = |line: &&str| line.starts_with(&format!("{program}: ignored "));
        let seen = wrapper.process.output();
        let seen = seen.lines().filter(of_program).count();
        wrapper.write(written.as_bytes());
        let ignored = format!("{program}: ignored ");
        let line = wrapper.process.wait_for_nth(&ignored, seen + 1);
        assert!(line.contains(says), "{line}");
        assert!(
            line.contains("; enter a session document: iam-kms-wrapper code --fifo="),
            "{line}"
        );
    }
}

#[test]
fn a_document_is_checked_at_the_start_and_at_the_next_prompt() {
    let scene = Scene::with_aws(&["--session-lifetime", "300"])
        .with_broker()
        .without("kms_mfa_id")
        .line("mfa = elsewhere");
    let document = session_document(&scene);
    let wrapper = scene.start(&SLEEP);
    wrapper.wait_for_fifo();
    refuses_documents(&wrapper, "iam-kms-wrapper", &document);
    wrapper.write(document.to_string().as_bytes());
    wrapper.wait_for_command("sleep");
    generated(&scene);

    // Over for KMS, so the broker asks.
    scene.aws.set_clock("360");
    failure(&scene);
    wrapper
        .process
        .wait_for("iam-kms-broker: the AWS session ended at ");
    refuses_documents(&wrapper, "iam-kms-broker", &document);
    wrapper.write(session_document(&scene).to_string().as_bytes());
    wrapper.process.wait_for("iam-kms-broker: session ASIA");
    generated(&scene);
}

/// What an operator gets on a machine of their own.
fn session_document(scene: &Scene) -> serde_json::Value {
    serde_json::from_str(&scene.aws.session_document()).unwrap()
}

#[test]
fn with_mfa_off_there_is_no_prompt_and_the_source_credentials_are_handed_over() {
    let scene = Scene::new().without("kms_mfa_id").line("mfa = false");
    let mut command = scene.command(&SLEEP);
    let wrapper = scene.spawn(command.env("AWS_SESSION_TOKEN", "of-an-instance-role"));
    wrapper.wait_for_command("sleep");
    let pid = wrapper.process.pid();
    let (access_key_id, secret_access_key) = scene.aws.long_term_key();
    assert_eq!(variable(pid, "AWS_ACCESS_KEY_ID"), access_key_id);
    assert_eq!(variable(pid, "AWS_SECRET_ACCESS_KEY"), secret_access_key);
    assert_eq!(variable(pid, "AWS_SESSION_TOKEN"), "of-an-instance-role");
    wrapper
        .process
        .wait_for("no MFA code is asked for (mfa = false)");
    assert_eq!(scene.aws.log(), "");
}

#[test]
fn the_fifo_is_0600_whatever_the_umask() {
    let scene = Scene::new();
    for umask in ["0o777", "0"] {
        let command = scene.command(&ECHO);
        let mut command = after_python(&format!("os.umask({umask})"), &command);
        let mut wrapper = scene.spawn(&mut command);
        wrapper.wait_for_fifo();
        assert_eq!(mode(scene.fifo()), 0o600, "umask {umask}");
        wrapper.give_code(&scene.aws);
        wrapper.runs_echo();
    }
}

#[test]
fn the_fifo_has_the_configured_mode_and_group_whatever_the_umask() {
    let group = Group::from_name("mail").unwrap().unwrap();
    let scene = Scene::new()
        .line("kms_mfa_socket_mode = 0620")
        .line("kms_mfa_socket_group = mail");
    let mut command = after_python("os.umask(0o777)", &scene.command(&ECHO));
    let wrapper = scene.spawn(&mut command);
    wrapper.wait_for_fifo();
    assert_eq!(mode(scene.fifo()), 0o620);
    assert_eq!(
        fs::metadata(scene.fifo()).unwrap().gid(),
        group.gid.as_raw()
    );
}

#[test]
fn the_fifo_is_gone_when_the_command_runs() {
    let scene = Scene::new();
    let wrapper = scene.start_with_code(&SLEEP);
    assert!(!scene.fifo().exists());
    drop(wrapper);
}

#[test]
fn the_fifo_is_gone_after_a_failure() {
    let scene = Scene::new();
    let mut command = scene.command(&ECHO);
    command.env("AWS_SECRET_ACCESS_KEY", "wrong");
    let mut wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.ends_with(125);
}

#[test]
fn the_fifo_is_gone_after_each_signal_and_the_death_shows_it() {
    let scene = Scene::new();
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
        let mut wrapper = scene.start(&ECHO);
        wrapper.wait_for_fifo();
        wrapper.process.signal(signal);
        let output = wrapper.dies_of(signal);
        assert!(output.contains(&format!("ended by {signal}")), "{output}");
    }
}

#[test]
fn a_fifo_left_behind_is_taken_over_with_the_writers_that_wait_in_it() {
    let scene = Scene::new();
    mkfifo(scene.fifo(), Mode::from_bits_truncate(0o622)).unwrap();
    let before = fs::metadata(scene.fifo()).unwrap().ino();
    // Its `>` blocks until somebody reads.
    let script = format!("echo 11167 > {}", scene.fifo().display());
    let early = Process::start(Command::new("sh").args(["-c", &script]));
    let mut wrapper = scene.start(&ECHO);
    wrapper.process.wait_for("5 digits instead of six");
    let metadata = fs::metadata(scene.fifo()).unwrap();
    assert_eq!((metadata.ino(), mode(scene.fifo())), (before, 0o600));
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
    drop(early);
}

/// As below /var/run.
#[test]
fn a_fifo_left_behind_below_a_symbolic_link_is_taken_over() {
    let scene = Scene::new();
    let link = scene.sandbox.path("link");
    symlink(scene.fifo().parent().unwrap(), &link).unwrap();
    let scene = scene
        .without("kms_mfa_socket")
        .line(&format!("kms_mfa_socket = {}/mfa", link.display()));
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    wrapper.process.signal(SIGKILL);
    wrapper.process.wait();
    assert!(scene.fifo().exists());
    let mut wrapper = scene.start(&ECHO);
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
    assert!(!scene.fifo().exists());
}

#[test]
fn anything_else_at_the_path_is_refused_by_name_and_left_alone() {
    let scene = Scene::new();
    let fifo = scene.fifo();
    let elsewhere = scene.sandbox.path("elsewhere");
    mkfifo(&elsewhere, Mode::S_IRWXU).unwrap();
    type Make<'a> = &'a dyn Fn();
    let cases: [(Make, &str); 5] = [
        (
            &|| fs::write(fifo, "111676\n").unwrap(),
            "it is a regular file",
        ),
        (
            &|| symlink(&elsewhere, fifo).unwrap(),
            "it is a symbolic link",
        ),
        (&|| fs::create_dir(fifo).unwrap(), "it is a directory"),
        (
            &|| drop(UnixListener::bind(fifo).unwrap()),
            "it is a socket",
        ),
        (
            &|| {
                mkfifo(fifo, Mode::S_IRWXU).unwrap();
                chown(fifo, Some(NOBODY), Some(NOBODY)).unwrap();
            },
            "it belongs to another user",
        ),
    ];
    for (make, what) in cases {
        make();
        let before = fs::symlink_metadata(fifo).unwrap();
        let (status, output) = scene.start(&ECHO).process.finish();
        assert_eq!(status.code(), Some(125), "{output}");
        let expected = format!("refusing to use {} as the FIFO: {what}", fifo.display());
        assert!(output.contains(&expected), "{output}");
        let after = fs::symlink_metadata(fifo).unwrap();
        assert_eq!((before.ino(), before.mode()), (after.ino(), after.mode()));
        if what.contains("directory") {
            fs::remove_dir(fifo).unwrap();
        } else {
            fs::remove_file(fifo).unwrap();
        }
    }
}

#[test]
fn a_missing_directory_is_named_with_what_to_do() {
    let scene = Scene::new();
    fs::remove_dir(scene.fifo().parent().unwrap()).unwrap();
    let output = scene.start(&ECHO).ends_with(125);
    assert!(
        output.contains(&*scene.fifo().to_string_lossy()),
        "{output}"
    );
    assert!(output.contains("No such file or directory"), "{output}");
    assert!(
        output.contains("RuntimeDirectory=iam-kms-wrapper"),
        "{output}"
    );
}

#[test]
fn a_directory_that_all_can_write_is_refused() {
    let scene = Scene::new();
    set_mode(scene.fifo().parent().unwrap(), 0o777);
    let output = scene.start(&ECHO).ends_with(125);
    assert!(
        output.contains("every user can write to the directory"),
        "{output}"
    );
}

#[test]
fn a_directory_that_a_group_can_write_is_refused_wherever_it_is_on_the_way() {
    let scene = Scene::new();
    let directory = scene.fifo().parent().unwrap();
    for directory in [directory, directory.parent().unwrap()] {
        chown(directory, None, Some(NOBODY)).unwrap();
        set_mode(directory, 0o775);
        let output = scene.start(&ECHO).ends_with(125);
        let expected = format!(
            "every member of group 65534 can write to the directory {}",
            directory.display()
        );
        assert!(output.contains(&expected), "{output}");
        // A container's user may own its directories through root's group alone.
        chown(directory, None, Some(0)).unwrap();
    }
    let mut wrapper = scene.start(&ECHO);
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
}

#[test]
fn a_second_start_on_one_fifo_is_refused_and_told_who_waits_there() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    let holder = format!(
        "process {} (iam-kms-wrapper) already waits for a code",
        wrapper.process.pid()
    );
    let (status, output) = scene.start(&ECHO).process.finish();
    assert_eq!(status.code(), Some(125), "{output}");
    assert!(output.contains(&holder), "{output}");
    let mut check = scene.command(&[]);
    let output = check.arg("--check").output().unwrap();
    let checked = String::from_utf8(output.stdout).unwrap();
    let line = checked
        .lines()
        .find(|line| line.contains("FIFO: "))
        .unwrap();
    assert!(
        line.starts_with("not checked ") && line.contains(&holder),
        "{line}"
    );
    // The first has lost nothing.
    wrapper.give_code(&scene.aws);
    wrapper.runs_echo();
    assert!(!wrapper.process.output().contains("ignored"));
}

#[test]
fn starters_at_the_same_moment_share_no_fifo() {
    let scene = Scene::new();
    let mut starters: Vec<_> = (0..6).map(|_| scene.start(&ECHO)).collect();
    wait_until("all but one to give up", || {
        let ended = starters.iter_mut().filter_map(|starter| {
            starter
                .process
                .has_ended()
                .then(|| starter.process.output())
        });
        ended
            .inspect(|output| assert!(output.contains("already waits"), "{output}"))
            .count()
            == 5
    });
    let is_left = |starter: &mut Wrapper| !starter.process.has_ended();
    let left = starters.iter_mut().position(is_left).unwrap();
    starters[left].give_code(&scene.aws);
    starters[left].runs_echo();
}

#[test]
fn what_another_process_reads_from_the_fifo_is_reported_with_what_it_may_mean() {
    let scene = Scene::new();
    let mut wrapper = scene.start(&ECHO);
    wrapper.wait_for_fifo();
    for nth in 1..=2 {
        wrapper.process.signal(SIGSTOP);
        let mut thief = Process::start(
            Command::new("timeout")
                .args(["60", "head", "-c7"])
                .arg(scene.fifo()),
        );
        // Its open waits for the writer, which waits until all is read.
        write_fifo(scene.fifo(), b"123456\n");
        thief.wait_for("123456");
        thief.wait();
        wrapper.process.signal(SIGCONT);
        let line = wrapper
            .process
            .wait_for_nth("but another process read it", nth);
        assert!(
            line.contains("an attacker who now has your MFA code"),
            "{line}"
        );
        assert!(line.contains("fuser "), "{line}");
        // Who has written nothing has lost nothing.
        drop(FifoWriter::open(scene.fifo()));
        wrapper
            .process
            .wait_for_nth("ignored a writer that wrote nothing", nth);
    }
    wrapper.give_code(&scene.aws);
    let output = wrapper.ends_with(0);
    assert_eq!(
        output.matches("another process read it").count(),
        2,
        "{output}"
    );
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let scene = Scene::new();
    chown(scene.fifo().parent().unwrap(), Some(NOBODY), None).unwrap();
    let output = scene.start(&ECHO).ends_with(125);
    assert!(
        output.contains("user 65534 owns the directory "),
        "{output}"
    );
}

#[test]
fn a_sticky_directory_works_with_a_warning_where_the_kernel_would_refuse_root() {
    let scene = Scene::new();
    let directory = scene.fifo().parent().unwrap();
    let protected = fs::read_to_string("/proc/sys/fs/protected_fifos").unwrap();
    let starts = |command: &mut Command| {
        chown(directory, Some(0), Some(0)).unwrap();
        set_mode(directory, 0o1777);
        let mut wrapper = scene.spawn(command);
        wrapper.give_code(&scene.aws);
        wrapper.ends_with(0)
    };
    let output = starts(&mut scene.command_as_nobody(&ECHO));
    let warned = output.contains("(fs.protected_fifos) refuses ");
    assert_eq!(warned, protected.trim() != "0", "{output}");
    // The directory's owner is not kept from a FIFO of its own.
    let output = starts(&mut scene.command(&ECHO));
    assert!(!output.contains("fs.protected_fifos"), "{output}");
}

fn set_mode(path: &Path, mode: u32) {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(path, permissions).unwrap();
}

#[test]
fn the_wait_ends_after_prompt_timeout_seconds() {
    let scene = Scene::new().line("prompt_timeout_seconds = 1");
    let output = scene.start(&ECHO).ends_with(125);
    assert!(
        output.contains("no MFA code was entered within 1 second (prompt_timeout_seconds)"),
        "{output}"
    );
}
