//! What the director and the clients share.

use std::{
    any::Any,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Sabotage, shadow::Shadow, tally::Tally, watch::Watch};
use crate::{Database, try_sql};

/// A statement takes that long at most: the longest promise of the plugin is 30 seconds, and it may
/// stand behind another one.
pub(super) const STATEMENT_BOUND: Duration = Duration::from_secs(180);
/// How often a pause looks for failures.
const INTERVAL: Duration = Duration::from_millis(20);

/// What came of a statement.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It succeeded, and printed this.
    Done(String),
    /// The server has refused it, for this reason, and changed nothing.
    Refused(String),
    /// The server was on its way out: nobody knows.
    Unknown,
}

#[derive(Default)]
struct Server {
    socket: PathBuf,
    datadir: PathBuf,
    version: String,
}

/// What all threads share.
pub(super) struct World {
    pub shadow: Shadow,
    pub watch: Watch,
    pub tally: Tally,
    pub sabotage: Option<Sabotage>,
    server: Mutex<Server>,
    /// The key ids that tables have used.
    key_ids: Mutex<Vec<u32>>,
    journal: Mutex<File>,
    journal_path: PathBuf,
    began: Instant,
    failures: Mutex<Vec<String>>,
    has_failed: AtomicBool,
    is_ending: AtomicBool,
    may_lack_keys: AtomicBool,
    /// Statements that change definitions hold it, shared.
    pub definitions: RwLock<()>,
}

impl World {
    pub fn new(reports: &Path, sabotage: Option<Sabotage>) -> Self {
        let journal_path = reports.join("actions.log");
        Self {
            shadow: Shadow::default(),
            watch: Watch::new(reports.into()),
            tally: Tally::default(),
            sabotage,
            server: Mutex::default(),
            key_ids: Mutex::new(vec![1]),
            journal: Mutex::new(File::create(&journal_path).unwrap()),
            journal_path,
            began: Instant::now(),
            failures: Mutex::default(),
            has_failed: AtomicBool::new(false),
            is_ending: AtomicBool::new(true),
            may_lack_keys: AtomicBool::new(false),
            definitions: RwLock::default(),
        }
    }

    /// Writes down what is done.
    pub fn note(&self, what: impl AsRef<str>) {
        let seconds = self.began.elapsed().as_secs_f64();
        let thread = thread::current();
        let name = thread.name().unwrap_or("director");
        let mut journal = lock(&self.journal);
        writeln!(journal, "{seconds:8.3} {name}: {}", what.as_ref()).unwrap();
    }

    pub fn journal_path(&self) -> &Path {
        &self.journal_path
    }

    /// Something is wrong: the run ends.
    pub fn fail(&self, reason: String) {
        self.note(format!("WRONG: {reason}"));
        lock(&self.failures).push(reason);
        self.has_failed.store(true, Ordering::SeqCst);
    }

    pub fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    /// A server is ready, and has all it needs.
    pub fn begin_life(&self, database: &Database) {
        *lock(&self.server) = Server {
            socket: database.socket.clone(),
            datadir: database.datadir.clone(),
            version: database.sql("SELECT VERSION()"),
        };
        self.may_lack_keys.store(false, Ordering::SeqCst);
        self.is_ending.store(false, Ordering::SeqCst);
    }

    /// The server is about to be killed or stopped. To be said before that is done.
    pub fn end_life(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
    }

    pub fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::SeqCst) || self.has_failed()
    }

    /// KMS, the session or the broker is about to be taken away. Until the end of this life, what
    /// needs a key that is not in memory may fail. To be said before that is done.
    pub fn disturb(&self) {
        self.may_lack_keys.store(true, Ordering::SeqCst);
    }

    pub fn may_lack_keys(&self) -> bool {
        self.may_lack_keys.load(Ordering::SeqCst)
    }

    pub fn datadir(&self) -> PathBuf {
        lock(&self.server).datadir.clone()
    }

    pub fn server_version(&self) -> String {
        lock(&self.server).version.clone()
    }

    /// Key ids that have been used, 1 among them.
    pub fn key_ids(&self) -> Vec<u32> {
        lock(&self.key_ids).clone()
    }

    /// A table of this key id was made.
    pub fn key_id_is_used(&self, id: u32) {
        let mut ids = lock(&self.key_ids);
        if !ids.contains(&id) {
            ids.push(id);
            self.tally.count("keys", "ids");
        }
    }

    /// Runs statements at the server. Each call is a transaction at most.
    pub fn execute(&self, statements: &str) -> Outcome {
        self.note(shortened(statements));
        let _under_way = self.watch.begin(shortened(statements), STATEMENT_BOUND);
        let socket = lock(&self.server).socket.clone();
        match try_sql(&socket, statements) {
            Ok(output) => Outcome::Done(output),
            // Everything that a server says while it shuts down is about that.
            Err(_) if self.is_ending() => Outcome::Unknown,
            Err(error) if error.has_lost_server() => panic!(
                "the server is gone, and nobody has sent it away: {}: {}",
                shortened(statements),
                error.text
            ),
            Err(error) => {
                self.note(format!(
                    "refused: {}: {}",
                    shortened(statements),
                    error.text
                ));
                Outcome::Refused(error.text)
            }
        }
    }

    /// Looks at `condition` until it holds. [`Watch`] sees to it that this ends.
    pub fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        while !condition() {
            self.pause(INTERVAL);
        }
    }

    /// Lets time pass. Panics if another thread has found something wrong meanwhile.
    pub fn pause(&self, duration: Duration) {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            assert!(!self.has_failed(), "another thread has failed");
            thread::sleep(INTERVAL.min(end.saturating_duration_since(Instant::now())));
        }
    }
}

/// What a panic says.
pub(super) fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a text").into()
}

/// Beginning and end of a long statement, in one line.
fn shortened(statements: &str) -> String {
    const BEGINNING: usize = 70;
    const END: usize = 90;
    let text: Vec<char> = statements
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .collect();
    if text.len() <= BEGINNING + END {
        return text.into_iter().collect();
    }
    let beginning: String = text[..BEGINNING].iter().collect();
    let end: String = text[text.len() - END..].iter().collect();
    format!("{beginning} … {end}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
