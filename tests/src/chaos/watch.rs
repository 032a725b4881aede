//! What takes too long: it is reported with the stacks of the processes, which are then killed, so
//! that whoever waits for them goes on and the run ends.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, exit},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal::SIGCONT, Signal::SIGKILL, kill},
    unistd::Pid,
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// After the processes were killed, all threads have this long to notice.
const LAST_GRACE: Duration = Duration::from_secs(90);

/// What is under way, and the processes that it depends on.
pub(super) struct Watch {
    state: Mutex<State>,
    changed: Condvar,
    numbers: AtomicU64,
    reports: PathBuf,
}

#[derive(Default)]
struct State {
    under_way: BTreeMap<u64, Activity>,
    processes: BTreeMap<String, Pid>,
    has_ended: bool,
}

struct Activity {
    what: String,
    began: Instant,
    bound: Duration,
}

/// Something under way, until dropped.
pub(super) struct UnderWay<'a> {
    watch: &'a Watch,
    number: u64,
}

impl Watch {
    pub fn new(reports: PathBuf) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            numbers: AtomicU64::new(0),
            reports,
        }
    }

    /// Something has begun that takes `bound` at most, even on a busy machine.
    pub fn begin(&self, what: impl Into<String>, bound: Duration) -> UnderWay<'_> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let activity = Activity {
            what: what.into(),
            began: Instant::now(),
            bound,
        };
        self.state().under_way.insert(number, activity);
        UnderWay {
            watch: self,
            number,
        }
    }

    /// This process is to be looked at when something hangs. It must be forgotten before it is
    /// waited for, or its number may be another's by then.
    pub fn follow(&self, name: &str, pid: Pid) {
        self.state().processes.insert(name.into(), pid);
    }

    pub fn forget(&self, name: &str) {
        self.state().processes.remove(name);
    }

    /// Ends [`Self::run`].
    pub fn end(&self) {
        self.state().has_ended = true;
        self.changed.notify_all();
    }

    /// Looks for what takes too long, and reports the first that does.
    pub fn run(&self, tell: impl Fn(String)) {
        let mut state = self.state();
        while !state.has_ended {
            let overdue = state
                .under_way
                .values()
                .find(|activity| activity.began.elapsed() > activity.bound);
            if let Some(activity) = overdue {
                let seconds = activity.bound.as_secs();
                let reason = format!("{} is not done after {seconds} s", activity.what);
                let processes = state.processes.clone();
                drop(state);
                tell(format!("{reason}; {}", self.write_stacks(&processes)));
                self.kill_all(&processes, &reason);
                return;
            }
            let waited = self.changed.wait_timeout(state, INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write_stacks(&self, processes: &BTreeMap<String, Pid>) -> String {
        let mut written = Vec::new();
        for (name, pid) in processes {
            let mut gdb = Command::new("timeout");
            gdb.args(["--signal=KILL", "60", "gdb", "--batch", "--nx"])
                .args(["-p", &pid.to_string()])
                .args(["-ex", "thread apply all bt"]);
            let text = match gdb.output() {
                Ok(output) => [output.stdout, output.stderr].concat(),
                Err(error) => format!("gdb: {error}").into_bytes(),
            };
            let path = self.reports.join(format!("stacks-of-{name}.txt"));
            fs::write(&path, text).unwrap();
            written.push(path.display().to_string());
        }
        format!("stacks: {}", written.join(", "))
    }

    /// Whoever waits for these processes goes on. Where that does not help, everything ends.
    fn kill_all(&self, processes: &BTreeMap<String, Pid>, reason: &str) {
        for pid in processes.values() {
            let _ = kill(*pid, SIGKILL);
            let _ = kill(*pid, SIGCONT);
        }
        let end = Instant::now() + LAST_GRACE;
        let mut state = self.state();
        while !state.has_ended {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                eprintln!(
                    "{reason}\nThe threads of chaos itself do not end; see {}",
                    self.reports.display()
                );
                exit(1);
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.watch.state().under_way.remove(&self.number);
    }
}
