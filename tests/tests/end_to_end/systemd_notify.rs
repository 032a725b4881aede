//! What systemd is told while a code is awaited.

use std::{
    fs,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
};

use end_to_end_tests::{
    Manager, Process, SLEEP, Scene, Terminal, after, inspection::variable, wait_until,
};

fn assert_never_ready(manager: &mut Manager) {
    for heard in manager.heard() {
        assert!(!heard.contains("READY"), "{heard}");
        assert!(!heard.contains("MAINPID"), "{heard}");
    }
}

#[test]
fn systemd_learns_where_to_enter_the_code_and_gets_more_time_but_never_hears_that_the_service_is_ready()
 {
    let scene = Scene::new();
    let mut manager = Manager::start(&scene.sandbox);
    let mut command = scene.command(&SLEEP);
    command.env("NOTIFY_SOCKET", manager.address());
    let wrapper = scene.spawn(&mut command);
    let status = manager.wait_for("STATUS=Waiting for the MFA code of ");
    assert!(status.contains(&scene.aws.serial_number()), "{status}");
    let instruction = format!("iam-kms-wrapper code --fifo={}", scene.fifo().display());
    assert!(status.contains(&instruction), "{status}");
    let extension = manager.wait_for("EXTEND_TIMEOUT_USEC=");
    let microseconds = extension.trim().rsplit('=').next().unwrap();
    // Longer than the ten seconds until the next one.
    assert!(
        microseconds.parse::<u64>().unwrap() > 10_000_000,
        "{extension}"
    );

    wrapper.give_code(&scene.aws);
    manager.wait_for("STATUS=Session open until ");
    wrapper.wait_for_command("sleep");
    assert_never_ready(&mut manager);
    // READY is the command's to say.
    assert_eq!(
        variable(wrapper.process.pid(), "NOTIFY_SOCKET"),
        manager.address()
    );
}

#[test]
fn nothing_that_is_shown_turns_the_direction_of_text_or_begins_a_line() {
    let scene = Scene::new();
    let directory = scene.sandbox.directory("run/\u{202e}\u{2028}\u{1b}[2J");
    let fifo = directory.join("mfa");
    let scene = scene
        .without("kms_mfa_socket")
        .line(&format!("kms_mfa_socket = {}", fifo.display()));
    let mut manager = Manager::start(&scene.sandbox);
    let mut command = scene.command(&["true"]);
    command.env("NOTIFY_SOCKET", manager.address());
    let wrapper = scene.spawn(&mut command);
    let escaped = "\\u{202e}\\u{2028}\\u{1b}[2J/mfa";
    let status = manager.wait_for("STATUS=Waiting for the MFA code of ");
    let line = wrapper.process.wait_for("waiting for the MFA code of ");
    for text in [&status, &line] {
        assert!(text.contains(escaped), "{text:?}");
        assert!(
            !text.contains(['\u{202e}', '\u{2028}', '\u{1b}']),
            "{text:?}"
        );
    }
    let mut check = scene.command(&[]);
    let checked = check.arg("--check").output().unwrap().stdout;
    let checked = String::from_utf8(checked).unwrap();
    assert!(checked.contains(escaped), "{checked:?}");
    assert!(
        !checked.contains(['\u{202e}', '\u{2028}', '\u{1b}']),
        "{checked:?}"
    );
}

#[test]
fn a_notify_socket_that_nobody_reads_is_a_warning_and_no_failure() {
    let scene = Scene::new();
    let mut command = scene.command(&["true"]);
    command.env("NOTIFY_SOCKET", "/nonexistent/notify");
    let mut wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    let output = wrapper.ends_with(0);
    assert!(output.contains("cannot notify systemd"), "{output}");
}

/// Runs the program with this directory in the place of journald's.
const WITH_JOURNAL: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
     mount --bind \"$1\" /run/systemd/journal && shift && exec \"$@\"";

fn with_journal(directory: &Path, command: &Command) -> Command {
    let namespace = ["unshare", "--mount", "sh", "-c", WITH_JOURNAL, "sh"];
    let prefix = [&namespace[..], &[directory.to_str().unwrap()]].concat();
    after(&prefix, command)
}

/// The entries that have arrived.
fn entries_of(journald: &UnixDatagram) -> Vec<String> {
    journald.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    std::iter::from_fn(|| {
        let length = journald.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    })
    .collect()
}

/// A file for standard error, and the lines in it when the program has ended.
fn journal_of(scene: &Scene, journal_stream: impl Fn(&fs::Metadata) -> String) -> String {
    let journal: PathBuf = scene.sandbox.write("journal", "");
    let stream = journal_stream(&fs::metadata(&journal).unwrap());
    let mut command = scene.command(&["true"]);
    command.env("JOURNAL_STREAM", stream);
    let script = "exec \"$@\" 2>> \"$0\"";
    let command = after(&["sh", "-c", script, journal.to_str().unwrap()], &command);
    let mut command = with_journal(&scene.sandbox.directory("journald"), &command);
    let mut wrapper = scene.spawn(&mut command);
    wait_until("the FIFO", || scene.fifo().exists());
    wrapper.write(b"11167\n");
    wrapper.write(format!("{}\n", scene.aws.code()).as_bytes());
    assert_eq!(wrapper.ends_with(0), "");
    fs::read_to_string(&journal).unwrap()
}

#[test]
fn the_journal_gets_the_fields_of_each_event() {
    let scene = Scene::new();
    let path = scene.sandbox.directory("journald").join("socket");
    let journald = UnixDatagram::bind(path).unwrap();
    let rest = journal_of(&scene, |file| format!("{}:{}", file.dev(), file.ino()));
    assert_eq!(rest, "");
    let entries = entries_of(&journald);
    let entry_of = |event: &str| {
        let field = format!("\nIAM_KMS_EVENT={event}\n");
        let entry = entries.iter().find(|entry| entry.contains(&field));
        entry.unwrap_or_else(|| panic!("no {event} in {entries:?}"))
    };
    for (event, fields) in [
        (
            "prompt",
            &["MESSAGE=waiting for the MFA code", "PRIORITY=6"][..],
        ),
        ("input_refused", &["MESSAGE=ignored", "PRIORITY=4"]),
        ("code_taken", &["SYSLOG_IDENTIFIER=iam-kms-wrapper"]),
        (
            "session_open",
            &["IAM_KMS_ACCESS_KEY_ID=ASIA", "IAM_KMS_EXPIRATION="],
        ),
    ] {
        for field in fields {
            assert!(entry_of(event).contains(field), "{}", entry_of(event));
        }
    }
}

/// As the documentation shows it: an operator at a terminal, which keeps nothing.
#[test]
fn what_kms_manage_key_does_at_a_terminal_is_in_the_journal_with_its_reason() {
    let scene = end_to_end_tests::manage_key::scene(&[]);
    let directory = scene.sandbox.directory("journald");
    let journald = UnixDatagram::bind(directory.join("socket")).unwrap();
    let mut terminal = Terminal::new();
    let disable = scene.manage_key_command(&["--reason=ticket 4713", "disable"]);
    // Standard error to the terminal too.
    let on_terminal = after(&["sh", "-c", "exec \"$@\" 2>&0", "sh"], &disable);
    let mut command = with_journal(&directory, &on_terminal);
    let mut process = Process::start(command.stdin(terminal.programs()));
    terminal.wait_for_nth("MFA code: ", 1);
    terminal.type_in(&format!("{}\n", scene.aws.code()));
    let (status, output) = process.finish();
    assert!(status.success(), "{output}{}", terminal.shown());
    assert!(terminal.shown().contains("is Disabled: DisableKey by "));
    let entries = entries_of(&journald);
    for event in ["code_taken", "master_key_changed"] {
        let field = format!("\nIAM_KMS_EVENT={event}\n");
        let entry = entries.iter().find(|entry| entry.contains(&field));
        let entry = entry.unwrap_or_else(|| panic!("no {event} in {entries:?}"));
        assert!(entry.contains("\nIAM_KMS_REASON=ticket 4713\n"), "{entry}");
        assert!(
            entry.contains("\nSYSLOG_IDENTIFIER=kms-manage-key\n"),
            "{entry}"
        );
    }
    // What is no event of the audit is for the person only.
    assert!(
        entries.iter().all(|entry| entry.contains("IAM_KMS_EVENT=")),
        "{entries:?}"
    );
}

#[test]
fn lines_to_the_journal_carry_their_level() {
    let scene = Scene::new();
    let journal = journal_of(&scene, |file| format!("{}:{}", file.dev(), file.ino()));
    let level_of = |text: &str| {
        let line = journal.lines().find(|line| line.contains(text));
        line.unwrap()[..3].to_owned()
    };
    assert_eq!(level_of("iam-kms-wrapper: waiting for"), "<6>");
    assert_eq!(level_of("iam-kms-wrapper: ignored"), "<4>");
    assert_eq!(level_of("iam-kms-wrapper: session"), "<6>");
}

#[test]
fn lines_to_anything_but_the_journal_carry_no_level() {
    let scene = Scene::new();
    let journal = journal_of(&scene, |file| format!("{}:{}", file.dev(), file.ino() + 1));
    for line in journal.lines() {
        assert!(line.starts_with("iam-kms-wrapper: "), "{line}");
    }
}
