//! The log: one line an event, to standard error.
//!
//! Standard output belongs to the command (systemd's `galera_recovery` parses it), so nothing is
//! ever written there.

use std::{
    env,
    fmt::{self, Write as _},
    io::{self, Write as _},
};

use nix::sys::stat::fstat;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Targets of our own crates. What the SDK says of itself is nothing for an operator.
const OWN_TARGETS: &str = "iam_kms_";

/// Sends all events of this process to standard error, each line beginning with `program`.
pub fn init(program: &'static str) {
    let log = StandardErrorLog {
        program,
        is_journal: is_journal(),
    };
    // Fails only where a log is set already; then that one serves.
    let _ = tracing::subscriber::set_global_default(log);
}

struct StandardErrorLog {
    program: &'static str,
    is_journal: bool,
}

impl Subscriber for StandardErrorLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with(OWN_TARGETS)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = String::new();
        if self.is_journal {
            line.push_str(syslog_prefix(*event.metadata().level()));
        }
        line.push_str(self.program);
        line.push_str(": ");
        event.record(&mut Message(&mut line));
        line.push('\n');
        // One write, so that lines of other processes cannot come in between. Where even standard
        // error fails, there is nobody left to tell.
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Writes an event's message, with line ends made visible: one event, one line.
struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let text = format!("{value:?}");
            for c in text.chars() {
                if c.is_control() {
                    let _ = write!(self.0, "{}", c.escape_default());
                } else {
                    self.0.push(c);
                }
            }
        }
    }
}

/// Source: sd-daemon(3).
fn syslog_prefix(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        _ => "<6>",
    }
}

/// Whether standard error is a stream to systemd's journal, which takes levels as prefixes.
///
/// Source: `$JOURNAL_STREAM` in systemd.exec(5).
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(io::stderr()).is_ok_and(|status| stream == format!("{}:{}", status.st_dev, status.st_ino))
}
