//! `iam-kms-wrapper audit`: the events of the audit, from the journal or from a log in JSON, as JSON lines or
//! as a line for each session.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use clap::Parser;
use nix::unistd::geteuid;
use serde_json::{Map, Value};
use tracing::{error, warn};
use visible_text::escape;

use aws_session::clock::{parse_utc, seconds_text, utc_text};
use service::{
    audit_events::{EVENTS, FIELDS},
    usage::show_usage,
};

/// The first argument that chooses this part of the program.
pub const SUBCOMMAND: &str = "audit";

const FAILURE: i32 = 125;

/// Longest line that is read, in bytes. Lines of the journal have some thousand.
const MAX_LINE_BYTES: u64 = 1024 * 1024;

/// The prefix of our fields in the journal.
const PREFIX: &str = "IAM_KMS_";

/// What the journal itself adds to an event: our name for it, its own, and whether it is a number. No process
/// can forge these. Source: systemd.journal-fields(7).
const TRUSTED: [(&str, &str, bool); 5] = [
    ("host", "_HOSTNAME", false),
    ("unit", "_SYSTEMD_UNIT", false),
    ("exe", "_EXE", false),
    ("uid", "_UID", true),
    ("pid", "_PID", true),
];

/// Show who opened sessions, and what the keys were used for.
#[derive(Debug, Parser)]
#[command(
    name = SUBCOMMAND,
    bin_name = "iam-kms-wrapper audit",
    about = "Show who opened sessions, from the journal, or export the audit as JSON",
    override_usage = "iam-kms-wrapper audit [--json] [--since=TIME] [--until=TIME]\n       \
iam-kms-wrapper audit [--json] --input=FILE",
    after_help = "\
Shows a line for each session: when it was opened and for how long, by whom,
from where, why, and which KMS calls were made. Of one that was opened before
--since, it shows the end alone. With --json: each event as JSON.
TIME is as for journalctl(1), such as yesterday. The journal of all hosts:
  ssh db1 journalctl --output=json > db1.json

Any process can write such events to the journal. Only host, unit, exe, uid and
pid are added by the journal itself: check that unit and exe are right.
Exit status: 0, or 125 after a failure."
)]
pub struct AuditCommandLine {
    /// Print each event as a JSON object on a line of its own
    #[arg(long)]
    json: bool,

    /// Show only events from this time on
    #[arg(long, value_name = "TIME", conflicts_with = "input")]
    since: Option<String>,

    /// Show only events until this time
    #[arg(long, value_name = "TIME", conflicts_with = "input")]
    until: Option<String>,

    /// Read the output of journalctl --output=json, or a log in JSON; - is standard input
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// Why the audit cannot be shown.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    #[error("cannot run journalctl: {0}; give the log with --input=FILE")]
    Journal(io::Error),
    #[error("journalctl failed; see its message")]
    JournalFailed,
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "there is no JSON in {}: make it with journalctl --output=json, or with log_format = json in the configuration", .0.display()
    )]
    NoJson(PathBuf),
    #[error("cannot write to standard output: {0}")]
    Write(io::Error),
}

/// Runs this part of the program with its own arguments, [`SUBCOMMAND`] first; returns the exit code.
pub fn main(arguments: impl Iterator<Item = OsString>) -> i32 {
    let command_line = match AuditCommandLine::try_parse_from(arguments) {
        Ok(command_line) => command_line,
        Err(usage) => return show_usage(&usage).into(),
    };
    match run(&command_line) {
        Ok(()) => 0,
        // The reader, such as head, has seen enough.
        Err(AuditError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(failure) => {
            error!("{failure}");
            FAILURE
        }
    }
}

fn run(command_line: &AuditCommandLine) -> Result<(), AuditError> {
    let mut out = io::stdout().lock();
    let mut sessions = Sessions::default();
    let mut events = 0;
    let mut show = |event: Map<String, Value>| {
        events += 1;
        if command_line.json {
            writeln!(out, "{}", Value::Object(event)).map_err(AuditError::Write)
        } else {
            sessions.add(&event);
            Ok(())
        }
    };
    match &command_line.input {
        None => {
            let (mut journal, output) = journal(command_line)?;
            read(output, "the journal".into(), &mut show)?;
            let status = journal.wait().map_err(AuditError::Journal)?;
            if !status.success() {
                return Err(AuditError::JournalFailed);
            }
        }
        Some(path) if path.as_os_str() == "-" => {
            read(io::stdin().lock(), "standard input".into(), &mut show)?;
        }
        Some(path) => {
            let file = File::open(path).map_err(|error| unreadable(path, error))?;
            read(file, path.clone(), &mut show)?;
        }
    }
    if events == 0 && !command_line.json {
        match command_line.input {
            None if !geteuid().is_root() => warn!(
                "found no event of the audit; only root and members of the group systemd-journal see those of services"
            ),
            _ => warn!("found no event of the audit"),
        }
    }
    sessions.print(&mut out).map_err(AuditError::Write)
}

fn unreadable(path: &Path, source: io::Error) -> AuditError {
    AuditError::Read {
        path: path.into(),
        source,
    }
}

/// Starts journalctl for our events.
fn journal(command_line: &AuditCommandLine) -> Result<(Child, ChildStdout), AuditError> {
    let mut command = Command::new("journalctl");
    command.args(["--output=json", "--all", "--no-pager", "--quiet"]);
    let bounds = [
        ("since", &command_line.since),
        ("until", &command_line.until),
    ];
    for (name, time) in bounds {
        command.args(time.iter().map(|time| format!("--{name}={time}")));
    }
    command.args(
        EVENTS
            .iter()
            .map(|event| format!("{PREFIX}EVENT={}", event.name)),
    );
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(AuditError::Journal)?;
    let output = child.stdout.take();
    let output = output.ok_or_else(|| AuditError::Journal(io::ErrorKind::BrokenPipe.into()))?;
    Ok((child, output))
}

/// Hands each event of `input` to `show`. Lines that hold none are skipped.
fn read(
    input: impl Read,
    name: PathBuf,
    show: &mut impl FnMut(Map<String, Value>) -> Result<(), AuditError>,
) -> Result<(), AuditError> {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    let mut has_text = false;
    let mut has_json = false;
    loop {
        line.clear();
        let length = input
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| unreadable(&name, error))?;
        if length == 0 {
            return match has_text && !has_json {
                true => Err(AuditError::NoJson(name)),
                false => Ok(()),
            };
        }
        if !line.ends_with(b"\n") && line.len() as u64 >= MAX_LINE_BYTES {
            warn!("skipped a line of more than {MAX_LINE_BYTES} bytes");
            input
                .skip_until(b'\n')
                .map_err(|error| unreadable(&name, error))?;
            continue;
        }
        let Ok(Value::Object(entry)) = serde_json::from_slice(&line) else {
            // journalctl says "-- No entries --".
            has_text |= !line.trim_ascii().is_empty() && !line.starts_with(b"-- ");
            continue;
        };
        has_json = true;
        if let Some(event) = event_of(entry) {
            show(event)?;
        }
    }
}

/// The event of an entry of the journal or of a log in JSON, with its members in the order of their names.
fn event_of(entry: Map<String, Value>) -> Option<Map<String, Value>> {
    let event = match entry.contains_key("__REALTIME_TIMESTAMP") {
        true => of_journal(&entry)?,
        false => entry,
    };
    let name = event.get("event")?.as_str()?;
    EVENTS
        .iter()
        .any(|known| known.name == name)
        .then_some(event)
}

fn of_journal(entry: &Map<String, Value>) -> Option<Map<String, Value>> {
    let text = |name: &str| entry.get(name)?.as_str();
    let microseconds: i64 = text("__REALTIME_TIMESTAMP")?.parse().ok()?;
    let mut event = Map::new();
    event.insert("time".into(), utc_text(microseconds / 1_000_000).into());
    for (name, field, is_number) in TRUSTED {
        if let Some(value) = text(field) {
            event.insert(name.into(), typed(value, is_number));
        }
    }
    for (name, field) in [("program", "SYSLOG_IDENTIFIER"), ("message", "MESSAGE")] {
        if let Some(value) = text(field) {
            event.insert(name.into(), value.into());
        }
    }
    event.insert("event".into(), text("IAM_KMS_EVENT")?.into());
    for field in FIELDS {
        let in_journal = format!("{PREFIX}{}", field.name.to_ascii_uppercase());
        if let Some(value) = text(&in_journal) {
            event.insert(field.name.into(), typed(value, field.is_number));
        }
    }
    Some(event)
}

fn typed(text: &str, is_number: bool) -> Value {
    match text.parse::<u64>() {
        Ok(number) if is_number => number.into(),
        _ => text.into(),
    }
}

/// The sessions of the events so far.
#[derive(Default)]
struct Sessions {
    /// In the order in which they were opened.
    all: Vec<Session>,
    /// The index of each session, by host and id.
    by_id: BTreeMap<(String, String), usize>,
    /// The index of the last session of each service, by host and service.
    present: BTreeMap<(String, String), usize>,
}

/// What shares a session: a unit, or else a program. A launcher opens the session of the broker that it starts.
fn service_of(event: &Map<String, Value>) -> String {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    match (text("unit"), text("program")) {
        (Some(unit), _) => unit.into(),
        (None, Some("iam-kms-broker")) => "iam-kms-wrapper".into(),
        (None, program) => program.unwrap_or_default().into(),
    }
}

/// What is known of a session.
#[derive(Default)]
struct Session {
    host: String,
    access_key_id: String,
    opened: String,
    ended: Option<String>,
    expiration: Option<String>,
    operator: Option<String>,
    from: Option<String>,
    reason: Option<String>,
    /// Calls by operation.
    calls: BTreeMap<String, u64>,
    failures: u64,
}

impl Sessions {
    fn add(&mut self, event: &Map<String, Value>) {
        let text = |name: &str| event.get(name).and_then(Value::as_str).map(str::to_owned);
        let host = text("host").unwrap_or_default();
        let time = text("time").unwrap_or_default();
        let service = (host.clone(), service_of(event));
        match text("event").as_deref() {
            Some("code_taken" | "session_document_taken" | "session_open") => {
                let id = text("access_key_id").unwrap_or_default();
                let index = self.index(&host, &id);
                self.present.insert(service, index);
                let session = &mut self.all[index];
                session.opened = Some(std::mem::take(&mut session.opened))
                    .filter(|opened| !opened.is_empty())
                    .unwrap_or(time);
                for (known, said) in [
                    (&mut session.expiration, text("expiration")),
                    (&mut session.operator, text("operator")),
                    (&mut session.from, text("from")),
                    (&mut session.reason, text("reason")),
                ] {
                    *known = known.take().or(said);
                }
            }
            Some("session_end") => {
                let id = text("access_key_id").unwrap_or_default();
                let index = self.index(&host, &id);
                self.all[index].ended = Some(time);
            }
            Some("kms_call" | "key_store_call") if event.contains_key("request_id") => {
                if let Some(session) = self.present(&service, &time) {
                    let operation = text("operation").unwrap_or_default();
                    *session.calls.entry(operation).or_default() += 1;
                }
            }
            Some("kms_call_failed") => {
                if let Some(session) = self.present(&service, &time) {
                    session.failures += 1;
                }
            }
            _ => {}
        }
    }

    /// The index of the session with this id.
    fn index(&mut self, host: &str, access_key_id: &str) -> usize {
        let key = (host.to_owned(), access_key_id.to_owned());
        let next = self.all.len();
        let index = *self.by_id.entry(key).or_insert(next);
        if index == next {
            self.all.push(Session {
                host: host.into(),
                access_key_id: access_key_id.into(),
                ..Session::default()
            });
        }
        index
    }

    /// The session that a service has at `time`, if it has one.
    fn present(&mut self, service: &(String, String), time: &str) -> Option<&mut Session> {
        let session = self.all.get_mut(*self.present.get(service)?)?;
        session.is_open_at(time).then_some(session)
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for session in &self.all {
            writeln!(out, "{}", session.line())?;
        }
        Ok(())
    }
}

impl Session {
    fn line(&self) -> String {
        let is_begun = !self.opened.is_empty();
        let mut line = match &self.ended {
            Some(ended) if !is_begun => format!("{ended}  "),
            _ => format!("{}  ", self.opened),
        };
        if !self.host.is_empty() {
            line += &format!("{}  ", self.host);
        }
        line += &self.access_key_id;
        if !is_begun {
            return escape(&format!(
                "{line}  ended; opened before the first event shown"
            ));
        }
        let unknown = "unknown".to_owned();
        let operator = self.operator.as_ref().unwrap_or(&unknown);
        line += &format!("  opened by {operator}");
        if let Some(from) = &self.from {
            line += &format!(" from {from}");
        }
        match self.seconds() {
            Some(seconds) => line += &format!(", for {}", seconds_text(seconds)),
            None => line += ", open",
        }
        for (operation, calls) in &self.calls {
            line += &format!(", {calls} {operation}");
        }
        if self.failures > 0 {
            line += &format!(", {} failed", self.failures);
        }
        if let Some(reason) = &self.reason {
            line += &format!(": {reason}");
        }
        escape(&line)
    }

    fn is_open_at(&self, time: &str) -> bool {
        let expiration = self.expiration.as_deref().and_then(parse_utc);
        let is_expired = match (expiration, parse_utc(time)) {
            (Some(expiration), Some(time)) => time > expiration,
            _ => false,
        };
        self.ended.is_none() && !is_expired
    }

    /// How long it was open, or may be.
    fn seconds(&self) -> Option<u64> {
        let end = self.ended.as_ref().or(self.expiration.as_ref())?;
        let seconds = parse_utc(end)? - parse_utc(&self.opened)?;
        u64::try_from(seconds).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const JOURNAL: &str = r#"
{"__REALTIME_TIMESTAMP":"1795721400123456","_HOSTNAME":"db1","_SYSTEMD_UNIT":"iam-kms-broker.service","_EXE":"/usr/bin/iam-kms-broker","_UID":"61234","_PID":"700","SYSLOG_IDENTIFIER":"iam-kms-broker","MESSAGE":"AWS accepted the code","IAM_KMS_EVENT":"code_taken","IAM_KMS_ACCESS_KEY_ID":"ASIAX","IAM_KMS_EXPIRATION":"2026-11-26T21:45:00Z","IAM_KMS_OPERATOR":"alice","IAM_KMS_FROM":"192.0.2.7","IAM_KMS_REASON":"ticket 4711"}
{"__REALTIME_TIMESTAMP":"1795721401000000","_HOSTNAME":"db1","_PID":"700","MESSAGE":"open","IAM_KMS_EVENT":"session_open","IAM_KMS_ACCESS_KEY_ID":"ASIAX","IAM_KMS_EXPIRATION":"2026-11-26T21:45:00Z"}
{"__REALTIME_TIMESTAMP":"1795721402000000","_HOSTNAME":"db1","MESSAGE":"other"}
not json
{"__REALTIME_TIMESTAMP":"1795721402000000","_HOSTNAME":"db1","_PID":"700","MESSAGE":"call","IAM_KMS_EVENT":"kms_call","IAM_KMS_OPERATION":"Decrypt","IAM_KMS_REQUEST_ID":"r-1","IAM_KMS_KEY_ID":"7"}
{"__REALTIME_TIMESTAMP":"1795721403000000","_HOSTNAME":"db1","_PID":"700","MESSAGE":[1,2],"IAM_KMS_EVENT":"unknown"}
"#;

    fn events(text: &str) -> Vec<Map<String, Value>> {
        let mut events = Vec::new();
        let mut add = |event| {
            events.push(event);
            Ok(())
        };
        read(text.as_bytes(), "test".into(), &mut add).unwrap();
        events
    }

    #[test]
    fn events_of_the_journal_have_its_own_members_and_ours_with_numbers_as_numbers() {
        let events = events(JOURNAL);
        assert_eq!(events.len(), 3, "{events:?}");
        let taken = Value::Object(events[0].clone());
        assert_eq!(taken["time"], "2026-11-26T19:30:00Z");
        assert_eq!(taken["unit"], "iam-kms-broker.service");
        assert_eq!(taken["uid"], 61234);
        assert_eq!(taken["reason"], "ticket 4711");
        assert_eq!(events[2]["key_id"], 7);
    }

    #[test]
    fn a_session_is_one_line() {
        let mut sessions = Sessions::default();
        for event in events(JOURNAL) {
            sessions.add(&event);
        }
        let mut out = Vec::new();
        sessions.print(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-11-26T19:30:00Z  db1  ASIAX  opened by alice from 192.0.2.7, for 8100 seconds, 1 Decrypt: ticket 4711\n"
        );
    }

    #[test]
    fn a_session_that_began_before_the_first_event_is_shown_by_its_end() {
        let (_, end) = JOURNAL.trim_end().rsplit_once('\n').unwrap();
        let end = end.replace("1795721403", "1795722000").replace(
            r#""IAM_KMS_EVENT":"unknown""#,
            r#""IAM_KMS_EVENT":"session_end","IAM_KMS_ACCESS_KEY_ID":"ASIAX""#,
        );
        let mut sessions = Sessions::default();
        for event in events(&end) {
            sessions.add(&event);
        }
        let mut out = Vec::new();
        sessions.print(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-11-26T19:40:00Z  db1  ASIAX  ended; opened before the first event shown\n"
        );
    }

    #[test]
    fn a_long_line_is_skipped() {
        let long = format!("{{\"x\":\"{}\"}}\n", "x".repeat(2_000_000));
        let text = format!("{long}{}", r#"{"event":"prompt"}"#);
        assert_eq!(events(&text).len(), 1);
    }
}
