//! The code asked for by systemd's password agents.

use std::time::Instant;

use end_to_end_tests::{ChildGuard, Terminal, fence};

use crate::site::{FIFO, Running, SERVICE, Site};

const PATH_UNIT: &str = "iam-kms-wrapper-prompt.path";
const PROMPT_UNIT: &str = "iam-kms-wrapper-prompt.service";
const QUESTION: &str = "MFA code for mariadb.service:";

/// Questions that systemd's agents are to ask.
fn open_questions(site: &Running) -> String {
    site.machine
        .sh("ls /run/systemd/ask-password | grep '^ask\\.' || :")
}

fn wait_for_question(site: &Running) {
    site.machine.wait_until("a question", PROMPT_UNIT, || {
        !open_questions(site).is_empty()
    });
}

/// A script that answers the question as an agent does; nothing is a cancelled question.
fn reply(answer: &str) -> String {
    let answered = u8::from(!answer.is_empty());
    format!(
        "socket=$(sed -n s/^Socket=//p /run/systemd/ask-password/ask.*)
         printf '%s' '{answer}' | /lib/systemd/systemd-reply-password {answered} $socket"
    )
}

/// `systemctl start` in a terminal, with its question.
fn asked_in_a_terminal() -> (Running, Terminal, ChildGuard) {
    let site = Site::new().boot_and_stop();
    // The question of the boot is withdrawn a second after its FIFO has gone, and the agent would show it.
    site.machine
        .wait_for_property(PROMPT_UNIT, "ActiveState", "inactive");
    let mut terminal = Terminal::new();
    let systemctl = site
        .machine
        .start_in(&terminal, &["systemctl", "start", SERVICE]);
    terminal.wait_for_nth(QUESTION, 1);
    (site, terminal, systemctl)
}

/// Withdraws the question, which is asked again after a pause. The agent may show a question twice whose answer it
/// has just sent, so this looks at the questions and not at the terminal.
fn assert_asked_after_a_pause(
    site: &Running,
    terminal: &mut Terminal,
    withdraw: impl FnOnce(&mut Terminal),
) {
    let start = Instant::now();
    withdraw(terminal);
    site.machine
        .wait_until("the end of the question", PROMPT_UNIT, || {
            open_questions(site).is_empty()
        });
    let shown = terminal.shown().matches(QUESTION).count();
    wait_for_question(site);
    assert!(start.elapsed().as_secs() >= 4, "{}", terminal.shown());
    terminal.wait_for_nth(QUESTION, shown + 1);
}

#[test]
fn systemctl_start_asks_in_its_terminal_until_the_code_is_right() {
    let (site, mut terminal, systemctl) = asked_in_a_terminal();
    terminal.type_in(&format!("{}\n", site.aws.wrong_code()));
    terminal.wait_for_nth(QUESTION, 2);
    let shown = terminal.shown();
    assert!(
        shown.contains("AWS refused the code: mistyped, used before"),
        "{shown}"
    );
    // While AWS has not judged it, nobody is asked for another.
    site.aws
        .fault("--operation GetSessionToken --kind 500 --count 2");
    let code = site.aws.code();
    terminal.type_in(&format!("{code}\n"));
    terminal.wait_for_success(systemctl);
    assert_eq!(site.state(), "active");
    let shown = terminal.shown();
    assert_eq!(shown.matches(QUESTION).count(), 2, "{shown}");
    assert!(!shown.contains(&code), "{shown}");
    assert!(!site.machine.whole_journal().contains(&code));
    site.machine
        .wait_for_property(PATH_UNIT, "ActiveState", "inactive");
}

#[test]
fn a_question_is_withdrawn_when_the_code_came_through_the_fifo() {
    let (site, mut terminal, systemctl) = asked_in_a_terminal();
    assert!(!terminal.echoes());
    site.echo_code();
    terminal.wait_for_success(systemctl);
    assert!(terminal.echoes(), "the shell has a terminal without echo");
    site.machine
        .wait_for_property(PROMPT_UNIT, "ActiveState", "inactive");
    assert_eq!(site.machine.property(PROMPT_UNIT, "Result"), "success");
    assert_eq!(open_questions(&site), "");
}

#[test]
fn an_empty_answer_and_a_cancelled_question_are_asked_again_after_a_pause() {
    let (site, mut terminal, systemctl) = asked_in_a_terminal();
    assert_asked_after_a_pause(&site, &mut terminal, |terminal| terminal.type_in("\n"));
    assert_asked_after_a_pause(&site, &mut terminal, |_| {
        site.machine.sh(&reply(""));
    });
    assert_eq!(site.aws.calls("GetSessionToken"), 0);
    terminal.type_in(&format!("{}\n", site.aws.code()));
    terminal.wait_for_success(systemctl);
}

#[test]
fn the_question_is_also_asked_for_a_fifo_at_another_path() {
    let site = Site::new().boot_and_stop();
    let directory = "/run/elsewhere";
    let prompt = fence("prompt-elsewhere")
        .commands
        .replace("DIRECTORY", directory)
        .replace("/usr/libexec/", "/usr/local/libexec/");
    site.machine.sh(&format!(
        "install -d -o mysql {directory}
         sed -i 's|^kms_mfa_socket = .*|kms_mfa_socket = {directory}/mfa|' \
             /etc/iam-kms-wrapper/iam-kms-wrapper.config
         {prompt}
         systemctl start --no-block {SERVICE}"
    ));
    wait_for_question(&site);
    site.machine.sh(&reply(&site.aws.code()));
    site.wait_until_active();
}

#[test]
fn what_is_no_fifo_is_neither_asked_for_nor_written_to() {
    let site = Site::new().boot_and_stop();
    site.machine.sh(&format!(
        "install -d -o mysql /run/iam-kms-wrapper
         echo untouched > /run/other
         ln -s /run/other {FIFO}
         systemctl start {PATH_UNIT}"
    ));
    site.machine
        .wait_for_property(PROMPT_UNIT, "ActiveState", "active");
    let started = site
        .machine
        .property(PROMPT_UNIT, "ExecMainStartTimestampMonotonic");
    // With a FIFO in its place the question comes, from the program that was started first.
    site.machine.sh(&format!("rm {FIFO}; mkfifo {FIFO}"));
    wait_for_question(&site);
    assert_eq!(
        site.machine
            .property(PROMPT_UNIT, "ExecMainStartTimestampMonotonic"),
        started
    );
    // Swapped again in the very moment of the answer.
    site.machine
        .sh(&format!("ln -sfn /run/other {FIFO}; {}", reply("123456")));
    site.machine.wait_until("a refusal", PROMPT_UNIT, || {
        let journal = site.machine.journal(PROMPT_UNIT);
        journal.contains("it is a symbolic link; only a FIFO is written to")
    });
    assert_eq!(site.machine.sh("cat /run/other"), "untouched");
    site.machine.sh(&format!("rm {FIFO}"));
    site.machine
        .wait_for_property(PROMPT_UNIT, "ActiveState", "inactive");
    assert_eq!(site.machine.property(PATH_UNIT, "SubState"), "waiting");
}

#[test]
fn nothing_that_the_servers_user_says_becomes_an_option_or_silences_the_question() {
    let site = Site::new().boot_and_stop();
    // In the launcher's place: a refusal for each code, and lines in the unit's name.
    let script = "cd /run/iam-kms-wrapper
        mkfifo --mode=600 mfa
        echo 0 awaited a code > mfa.state
        echo --version
        for number in 1 2; do
            cat mfa > /dev/null
            printf \"%s refused --version \\\\033[2J%s\\\\n\" $number $(seq --separator=x 200) > mfa.state
        done";
    site.machine.sh(&format!(
        "install -d -o mysql /run/iam-kms-wrapper
         systemd-run --quiet --unit=hostile -p User=mysql sh -c '{script}'
         systemctl start {PATH_UNIT}"
    ));
    wait_for_question(&site);
    for _ in 0..2 {
        let asked = open_questions(&site);
        site.machine.sh(&reply("123456"));
        site.machine
            .wait_until("the next question", PROMPT_UNIT, || {
                let next = open_questions(&site);
                !next.is_empty() && next != asked
            });
        let message = site
            .machine
            .sh("sed -n s/^Message=//p /run/systemd/ask-password/ask.*");
        let beginning = "Not accepted: --version \\u{1b}[2J1x2x3";
        assert!(message.starts_with(beginning), "{message}");
        assert!(message.ends_with(&format!(". {QUESTION}")), "{message}");
        assert!(message.len() < 500, "{message}");
    }
}

#[test]
fn an_answer_that_another_process_of_the_servers_user_reads_is_reported() {
    let site = Site::new().boot();
    site.machine.sh(&format!(
        "systemctl start {PATH_UNIT}; systemctl kill --kill-whom=main --signal=STOP {SERVICE}
         systemd-run --quiet --unit=thief -p User=mysql head --lines=1 {FIFO}"
    ));
    wait_for_question(&site);
    site.machine.sh(&reply("123456"));
    site.machine
        .wait_until("the thief to have it", PROMPT_UNIT, || {
            site.machine.journal("thief").contains("123456")
        });
    site.machine.sh(&format!(
        "systemctl kill --kill-whom=main --signal=CONT {SERVICE}"
    ));
    let told = "something was written to /run/iam-kms-wrapper/mfa, but another process read it";
    site.machine.wait_until("the report", SERVICE, || {
        site.machine.journal(SERVICE).contains(told)
    });
    let question = || {
        site.machine
            .sh("sed -n s/^Message=//p /run/systemd/ask-password/ask.* 2> /dev/null || :")
    };
    site.machine
        .wait_until("the next question", PROMPT_UNIT, || {
            question().contains(told)
        });
}

#[test]
fn a_server_that_crashes_has_the_code_asked_for_again_where_no_session_is_to_be_reused() {
    let site = Site::new()
        .configuration("reuse_session_min_seconds = 129600")
        .boot();
    site.echo_code();
    site.wait_until_active();
    assert_eq!(open_questions(&site), "");
    site.machine.sh(&format!(
        "systemctl kill --kill-whom=main --signal=SEGV {SERVICE}"
    ));
    wait_for_question(&site);
    site.echo_code();
    site.wait_until_active();
}
