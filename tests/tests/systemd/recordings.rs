//! What an operator sees, recorded: `make recordings` keeps the recordings, for the README and the book.

use std::{env, fs, path::PathBuf};

use end_to_end_tests::{ChildGuard, Terminal};
use serde_json::json;

use crate::site::{Running, Site};

/// A typist's pause between two keys, and an operator's before the code.
const KEY_SECONDS: f64 = 0.05;
const READING_SECONDS: f64 = 1.5;

const PROMPT: &str = "# ";
const COLUMNS: usize = 96;
const ROWS: usize = 16;

/// A shell of root's in a terminal, and what it shows. Pauses are the typist's, whatever the machine needs.
struct Recording<'a> {
    site: &'a Running,
    terminal: Terminal,
    shell: ChildGuard,
    prompts: usize,
    /// Bytes of what was shown that are recorded.
    recorded: usize,
    seconds: f64,
    /// When, and what was shown then.
    events: Vec<(f64, String)>,
}

impl<'a> Recording<'a> {
    fn start(site: &'a Running) -> Self {
        let mut terminal = Terminal::new();
        let shell = ["env", &format!("PS1={PROMPT}"), "sh", "-i"];
        let shell = site.machine.start_in(&terminal, &shell);
        terminal.wait_for_nth(PROMPT, 1);
        let mut recording = Self {
            site,
            terminal,
            shell,
            prompts: 1,
            recorded: 0,
            seconds: 0.0,
            events: Vec::new(),
        };
        recording.record();
        recording
    }

    fn new_output(&mut self) -> String {
        let shown = self.terminal.shown();
        let output = shown[self.recorded..].to_owned();
        self.recorded = shown.len();
        output
    }

    /// Records what is new as shown at once.
    fn record(&mut self) {
        let output = self.new_output();
        self.events.push((self.seconds, output));
        self.seconds += READING_SECONDS;
    }

    /// Types a command, key by key.
    fn type_command(&mut self, command: &str) {
        self.terminal.type_in(command);
        self.wait_for(command);
        for key in self.new_output().chars() {
            self.events.push((self.seconds, key.into()));
            self.seconds += KEY_SECONDS;
        }
        self.terminal.type_in("\n");
    }

    /// Waits until `text` is shown after what is recorded.
    fn wait_for(&mut self, text: &str) {
        let before = self.terminal.shown()[..self.recorded].matches(text).count();
        self.terminal.wait_for_nth(text, before + 1);
    }

    /// Enters a code at a prompt. Returns it.
    fn enter_code(&mut self, prompt: &str) -> String {
        self.wait_for(prompt);
        self.record();
        let code = self.site.aws.code();
        self.terminal.type_in(&format!("{code}\n"));
        code
    }

    /// Waits for the command's end.
    fn finish_command(&mut self) {
        self.prompts += 1;
        let prompt = format!("\n{PROMPT}");
        self.terminal.wait_for_nth(&prompt, self.prompts - 1);
        self.record();
    }

    fn run(&mut self, command: &str) {
        self.type_command(command);
        self.finish_command();
    }

    /// Ends the shell, and keeps the recording if it is to be kept.
    fn keep(mut self, name: &str) {
        self.terminal.type_in("exit\n");
        // It fails to give the terminal of another PID namespace back.
        self.shell.wait().unwrap();
        let Some(folder) = env::var_os("IAM_KMS_RECORDINGS").map(PathBuf::from) else {
            return;
        };
        // Source: https://docs.asciinema.org/manual/asciicast/v2/
        let header = json!({ "version": 2, "width": COLUMNS, "height": ROWS, "title": name });
        let events = self
            .events
            .iter()
            .map(|(seconds, text)| json!([seconds, "o", text]));
        let lines: Vec<_> = std::iter::once(header).chain(events).collect();
        let lines = lines.iter().map(|line| format!("{line}\n"));
        fs::write(
            folder.join(format!("{name}.cast")),
            lines.collect::<String>(),
        )
        .unwrap();
    }

    fn shown(&mut self) -> String {
        self.terminal.shown().to_owned()
    }
}

#[test]
fn a_start_prompts_for_the_code_and_a_session_that_has_expired_for_another() {
    let mut site = Site::with_broker_service();
    let endpoint = site.aws.endpoint();
    site.aws.serve_again(&endpoint, &["--session-lifetime=600"]);
    let site = site.boot_and_stop();

    let mut start = Recording::start(&site);
    start.type_command("systemctl start mariadb");
    let code = start.enter_code("MFA code for mariadb.service:");
    start.finish_command();
    start.run("mariadb -e \"CREATE DATABASE shop; CREATE TABLE shop.orders (id INT)\"");
    start.run("mariadb -e \"SHOW GLOBAL STATUS LIKE 'aws_key_management_session%'\"");
    let shown = start.shown();
    assert!(shown.contains("open"), "{shown}");
    assert!(!shown.contains(&code), "{shown}");
    start.keep("start");

    // The session is over by AWS's clock; the broker notices when a key is wanted.
    site.aws.set_clock("800");
    let create = "mariadb -e \"CREATE TABLE shop.audit (id INT) ENCRYPTION_KEY_ID=7\"";
    let mut refresh = Recording::start(&site);
    refresh.run(create);
    assert!(refresh.shown().contains("iam-kms-wrapper code"));
    refresh.type_command("iam-kms-wrapper code");
    let code = refresh.enter_code("MFA code: ");
    refresh.finish_command();
    refresh.run(create);
    refresh.run("mariadb -e \"SHOW TABLES FROM shop\"");
    let shown = refresh.shown();
    assert!(shown.contains("accepted: "), "{shown}");
    assert!(shown.contains("| audit "), "{shown}");
    assert!(!shown.contains(&code), "{shown}");
    refresh.keep("refresh");
}
