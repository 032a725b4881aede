//! The log. If standard error is connected to the journal, each event goes there with all its fields;
//! otherwise to standard error, as the message or as a JSON object (`log_format = json`). From a terminal, which
//! keeps nothing, the events of the audit go to the journal too.
//!
//! Nothing is ever written to standard output: it belongs to the command, and `galera_recovery` parses
//! it. The crates tracing-subscriber and tracing-journald are not used: they keep a socket open, which
//! must not be passed on by exec, and write to a journal that hangs in the thread that logs.

use std::{
    collections::VecDeque,
    env,
    fmt::{self, Write as _},
    io::{self, IsTerminal, Write as _},
    os::unix::net::UnixDatagram,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use broker_api::MAX_EVENT_MESSAGE_BYTES;
use nix::sys::stat::fstat;
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};
use visible_text::escape;

use aws_session::{
    clock::{unix_seconds_now, utc_text},
    config::LogFormat,
};

/// The crates of this project that log, and [`AUDIT`]. Events of the SDK are of no use to an operator.
const OWN_TARGETS: [&str; 13] = [
    "aws_session",
    "code_channel",
    "iam_kms_audit",
    "iam_kms_broker",
    "iam_kms_console",
    "iam_kms_unlock",
    "iam_kms_wrapper",
    "key_store",
    "kms_data_keys",
    "kms_manage_key",
    "local_http",
    "mutual_tls",
    "service",
];

/// Target of events for audits only; they do not appear as text on standard error.
pub const AUDIT: &str = "iam_kms_audit";

/// The socket of the journal that takes events with fields. Source: the "Native Journal Protocol",
/// <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Events that may wait to be written: somewhat more than the burst that the broker allows a user.
const QUEUE_LENGTH: usize = 16_384;

static IS_JSON: AtomicBool = AtomicBool::new(false);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// The last events of the audit, once [`keep_recent`] was called.
static RECENT: OnceLock<Mutex<Recent>> = OnceLock::new();

struct Recent {
    events: VecDeque<broker_api::AuditEvent>,
    most: usize,
    next_number: u64,
}

impl Recent {
    fn add(&mut self, name: &str, message: &str) {
        if self.events.len() >= self.most {
            self.events.pop_front();
        }
        let end = message.floor_char_boundary(MAX_EVENT_MESSAGE_BYTES);
        self.events.push_back(broker_api::AuditEvent {
            number: self.next_number,
            unix_seconds: unix_seconds_now(),
            name: name.into(),
            message: message.get(..end).unwrap_or_default().into(),
        });
        self.next_number += 1;
    }
}

/// Keeps the last `most` events of the audit in memory, from now on. Long messages are cut.
pub fn keep_recent(most: usize) {
    // Fails only if events are kept already.
    let _ = RECENT.set(Mutex::new(Recent {
        events: VecDeque::with_capacity(most),
        most,
        next_number: 0,
    }));
}

/// Returns at most `most` of the kept events with a number below `before`, the latest first.
pub fn recent(before: Option<u64>, most: usize) -> Vec<broker_api::AuditEvent> {
    let Some(recent) = RECENT.get() else {
        return Vec::new();
    };
    let recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
    let events = recent.events.iter().rev();
    let wanted = events.filter(|event| before.is_none_or(|before| event.number < before));
    wanted.take(most).cloned().collect()
}

/// Completes the message of an event before which `suppressed` others were not logged.
pub fn not_logged(suppressed: u64) -> String {
    match suppressed {
        0 => String::new(),
        count => format!("; such events not logged: {count}"),
    }
}

/// Sends all events of this process to the journal or to standard error, under the name `program`.
pub fn init(program: &'static str) {
    let stream = Stream::of_standard_error();
    let log = Log {
        program,
        write: move |record| match QUEUE.get() {
            Some(queue) => queue.add(record),
            None => write(record, stream),
        },
    };
    // Fails only if a log is set already; then that one stays.
    let _ = tracing::subscriber::set_global_default(log);
}

/// Starts a thread that writes the events of [`init`], so that a journal that hangs blocks nobody else.
/// If the queue is full, events are dropped, and their number is logged.
///
/// Must not be called before a fork, which does not copy the thread. Errors: no thread can be started.
pub fn write_in_background(program: &'static str) -> io::Result<()> {
    let stream = Stream::of_standard_error();
    let (queue, receiver) = Queue::new(QUEUE_LENGTH);
    // Fails only if there is a queue already; then the new thread ends.
    let _ = QUEUE.set(queue);
    thread::Builder::new()
        .name("log".into())
        .stack_size(256 * 1024)
        .spawn(move || {
            if let Some(queue) = QUEUE.get() {
                queue.write_all(program, &receiver, |record| write(record, stream));
            }
        })
        .map(drop)
}

/// Whether more than half of the queue is full, so that callers that cause many events should wait.
pub fn is_backed_up() -> bool {
    QUEUE
        .get()
        .is_some_and(|queue| queue.length.load(Ordering::Relaxed) > QUEUE_LENGTH / 2)
}

/// Waits until all events so far are written, but no longer than `patience`.
pub fn flush(patience: Duration) {
    let (sender, receiver) = mpsc::sync_channel(1);
    if let Some(queue) = QUEUE.get()
        && queue.sender.try_send(Entry::Flush(sender)).is_ok()
    {
        // It may take longer, or the thread may have ended.
        let _ = receiver.recv_timeout(patience);
    }
}

/// A task of the thread that writes.
enum Entry {
    Write(Record),
    Flush(SyncSender<()>),
}

struct Queue {
    sender: SyncSender<Entry>,
    length: AtomicUsize,
    /// Events that were dropped since the thread last checked.
    lost: AtomicU64,
}

impl Queue {
    fn new(length: usize) -> (Self, Receiver<Entry>) {
        let (sender, receiver) = mpsc::sync_channel(length);
        let queue = Self {
            sender,
            length: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
        };
        (queue, receiver)
    }

    fn add(&self, record: Record) {
        self.length.fetch_add(1, Ordering::Relaxed);
        match self.sender.try_send(Entry::Write(record)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.length.fetch_sub(1, Ordering::Relaxed);
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Writes the events, and the number of those that were dropped.
    fn write_all(&self, program: &'static str, entries: &Receiver<Entry>, write: impl Fn(Record)) {
        for entry in entries {
            match entry {
                Entry::Write(record) => {
                    self.length.fetch_sub(1, Ordering::Relaxed);
                    write(record);
                }
                Entry::Flush(done) => drop(done.send(())),
            }
            match self.lost.swap(0, Ordering::Relaxed) {
                0 => {}
                lost => write(Record::of_lost(program, lost)),
            }
        }
    }
}

/// Sets the format of events that do not go to the journal.
pub fn use_format(format: LogFormat) {
    IS_JSON.store(format == LogFormat::Json, Ordering::Relaxed);
}

fn write(record: Record, stream: Stream) {
    let is_journal = stream == Stream::Journal;
    if is_journal && send_to_journal(&record.journal_entry(), true).is_ok() {
        return;
    }
    if stream == Stream::Terminal && record.fields.contains_key("event") {
        // Where there is no journal, the person at the terminal sees it all the same.
        let _ = send_to_journal(&record.journal_entry(), false);
    }
    let line = if IS_JSON.load(Ordering::Relaxed) {
        record.json()
    } else if record.is_for_audit && !is_journal {
        return;
    } else {
        record.text(is_journal)
    };
    // One write, so that lines of other processes do not mix with it. If even standard error fails, the
    // event is lost.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// A subscriber that turns the events of this project into records.
struct Log<W> {
    program: &'static str,
    write: W,
}

impl<W: Fn(Record) + 'static> Subscriber for Log<W> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        let name = target.split_once("::").map_or(target, |(name, _)| name);
        *metadata.level() <= Level::INFO && OWN_TARGETS.contains(&name)
    }

    fn event(&self, event: &Event<'_>) {
        let mut record = Record {
            program: self.program,
            level: *event.metadata().level(),
            is_for_audit: event.metadata().target() == AUDIT,
            message: String::new(),
            fields: Map::new(),
        };
        event.record(&mut record);
        if let Some(recent) = RECENT.get()
            && let Some(Value::String(name)) = record.fields.get("event")
        {
            let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.add(name, &record.message);
        }
        (self.write)(record);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// An event. Its texts are escaped.
struct Record {
    program: &'static str,
    level: Level,
    is_for_audit: bool,
    message: String,
    fields: Map<String, Value>,
}

impl Record {
    fn of_lost(program: &'static str, lost: u64) -> Self {
        let fields = [("event", "log_lost".into()), ("lost", lost.into())];
        Self {
            program,
            level: Level::ERROR,
            is_for_audit: false,
            message: format!(
                "{lost} events were dropped here: the journal or the reader of standard error was too slow"
            ),
            fields: fields
                .map(|(name, value): (&str, Value)| (name.to_owned(), value))
                .into_iter()
                .collect(),
        }
    }

    fn text(&self, has_level: bool) -> String {
        let prefix = if has_level {
            format!("<{}>", priority(self.level))
        } else {
            String::new()
        };
        format!("{prefix}{}: {}\n", self.program, self.message)
    }

    fn json(mut self) -> String {
        let common = [
            ("time", utc_text(unix_seconds_now())),
            ("level", self.level.as_str().to_ascii_lowercase()),
            ("program", self.program.into()),
            ("message", self.message),
        ];
        for (name, value) in common {
            self.fields.insert(name.into(), value.into());
        }
        format!("{}\n", Value::Object(self.fields))
    }

    /// Formats the event for the journal. Fields that are not the journal's own get a prefix.
    fn journal_entry(&self) -> String {
        let mut entry = format!(
            "MESSAGE={}\nPRIORITY={}\nSYSLOG_IDENTIFIER={}\n",
            self.message,
            priority(self.level),
            self.program
        );
        for (name, value) in &self.fields {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            // Writing to a String does not fail.
            let _ = writeln!(entry, "IAM_KMS_{}={value}", name.to_ascii_uppercase());
        }
        entry
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = escape(&format!("{value:?}"));
        match field.name() {
            "message" => self.message = text,
            name => drop(self.fields.insert(name.into(), text.into())),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.insert(field.name().into(), value.into());
    }
}

/// Source: sd-daemon(3) and syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        _ => 6,
    }
}

/// Sends an entry; `may_wait` if the journal is busy, or else fails then.
fn send_to_journal(entry: &str, may_wait: bool) -> io::Result<()> {
    // No socket is kept open, because this process closes and passes on descriptors.
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(!may_wait)?;
    socket.send_to(entry.as_bytes(), JOURNAL_SOCKET).map(drop)
}

/// What standard error is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    /// systemd's journal, which reads levels as prefixes.
    Journal,
    Terminal,
    Other,
}

impl Stream {
    /// Source: `$JOURNAL_STREAM` in systemd.exec(5).
    fn of_standard_error() -> Self {
        let is_journal = |stream: &str| {
            fstat(io::stderr())
                .is_ok_and(|status| stream == format!("{}:{}", status.st_dev, status.st_ino))
        };
        match env::var("JOURNAL_STREAM") {
            Ok(stream) if is_journal(&stream) => Self::Journal,
            _ if io::stderr().is_terminal() => Self::Terminal,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tracing::info;

    use super::*;

    /// The record that an event makes.
    fn record_of(say: impl FnOnce()) -> Record {
        let (sender, receiver) = mpsc::channel();
        let log = Log {
            program: "iam-kms-broker",
            write: move |record| sender.send(record).unwrap(),
        };
        tracing::subscriber::with_default(log, say);
        receiver.recv().unwrap()
    }

    fn example() -> Record {
        record_of(|| {
            info!(
                event = "kms_call",
                request_id = "a\nPRIORITY=0",
                peer_uid = 27_u32,
                absent = None::<&str>,
                "one\ntwo"
            );
        })
    }

    #[test]
    fn the_journal_gets_each_field_on_one_line_and_no_other() {
        let entry = example().journal_entry();
        let mut lines: Vec<_> = entry.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "IAM_KMS_EVENT=kms_call",
                "IAM_KMS_PEER_UID=27",
                "IAM_KMS_REQUEST_ID=a\\nPRIORITY=0",
                "MESSAGE=one\\ntwo",
                "PRIORITY=6",
                "SYSLOG_IDENTIFIER=iam-kms-broker",
            ]
        );
        assert!(entry.ends_with('\n'));
    }

    #[test]
    fn json_is_one_object_on_one_line_with_numbers_as_numbers() {
        let line = example().json();
        assert_eq!(line.trim_end().lines().count(), 1);
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["message"], "one\\ntwo");
        assert_eq!(object["level"], "info");
        assert_eq!(object["peer_uid"], 27);
        assert_eq!(object["request_id"], "a\\nPRIORITY=0");
    }

    #[test]
    fn only_the_last_events_are_kept() {
        let mut recent = Recent {
            events: VecDeque::new(),
            most: 3,
            next_number: 0,
        };
        for number in 0..5 {
            recent.add("prompt", &number.to_string());
        }
        let numbers: Vec<_> = recent.events.iter().map(|event| event.number).collect();
        assert_eq!(numbers, [2, 3, 4]);
        recent.add("prompt", &"ü".repeat(1000));
        let cut = recent.events.back().unwrap().message.len();
        assert_eq!(cut, MAX_EVENT_MESSAGE_BYTES);
    }

    #[test]
    fn dropped_events_are_counted_and_their_number_is_logged() {
        let (queue, receiver) = Queue::new(4);
        let queue: &'static Queue = Box::leak(Box::new(queue));
        for _ in 0..10 {
            queue.add(example());
        }
        assert_eq!(queue.length.load(Ordering::Relaxed), 4);
        let (writer, written) = mpsc::channel();
        thread::spawn(move || {
            queue.write_all("iam-kms-broker", &receiver, |record| {
                drop(writer.send(record.json()));
            });
        });
        let events: Vec<Value> = written
            .iter()
            .take(5)
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect();
        let lost: Vec<_> = events
            .iter()
            .filter(|event| event["event"] == "log_lost")
            .map(|event| event["lost"].as_u64().unwrap())
            .collect();
        assert_eq!(lost, [6], "{events:?}");
        assert_eq!(queue.length.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn text_contains_only_the_message() {
        assert_eq!(example().text(false), "iam-kms-broker: one\\ntwo\n");
        assert_eq!(example().text(true), "<6>iam-kms-broker: one\\ntwo\n");
    }
}
