//! A child process whose lines can be waited for.

use std::{
    fs,
    io::{PipeReader, Read, Write, pipe},
    ops::{Deref, DerefMut},
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::PATIENCE_SECONDS;

/// Between two looks at what no event announces. A look may be a client of the server, and many of
/// them would keep a busy machine from what is waited for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A child process; killed when dropped.
pub struct ChildGuard(Child);

/// A running program; killed when dropped.
pub struct Process {
    child: ChildGuard,
    lines: Arc<Lines>,
}

struct Lines {
    stream: PipeReader,
    text: Mutex<Text>,
    grew: Condvar,
}

#[derive(Default)]
struct Text {
    lines: Vec<String>,
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
    ended: bool,
}

impl ChildGuard {
    /// Starts `command`.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Deref for ChildGuard {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for ChildGuard {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        self.end();
    }
}

impl Process {
    /// Starts `command` and collects the lines of its standard output and error: both go into one
    /// pipe, so they come in the order in which they were written.
    pub fn start(command: &mut Command) -> Self {
        let (reader, writer) = pipe().unwrap();
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let child = ChildGuard::spawn(command);
        // The command holds the writing end until it gets others.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let lines = Lines::collect(reader);
        Self { child, lines }
    }

    /// Process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for a line that contains `text` and returns it.
    ///
    /// Panics with everything that was printed if the process ends or is silent for too long.
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_for_nth(text, 1)
    }

    /// Waits for the `nth` line (from 1) that contains `text`.
    pub fn wait_for_nth(&self, text: &str, nth: usize) -> String {
        let deadline = Instant::now() + Duration::from_secs(PATIENCE_SECONDS);
        let mut guard = self.lines.lock();
        loop {
            if let Some(line) = guard
                .lines
                .iter()
                .filter(|line| line.contains(text))
                .nth(nth - 1)
            {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || guard.ended {
                panic!(
                    "waited for {text:?} ({nth}), got:\n{}",
                    guard.lines.join("\n")
                );
            }
            guard = self.lines.grew.wait_timeout(guard, left).unwrap().0;
        }
    }

    /// All lines that the program has written so far.
    pub fn output(&self) -> String {
        let mut guard = self.lines.lock();
        // What is in the pipe was written before the call, and is collected as soon as the lock is free.
        while !guard.ended && self.lines.is_readable(PollTimeout::ZERO) {
            let waited = self.lines.grew.wait_timeout(guard, LONGEST_PAUSE);
            guard = waited.unwrap().0;
        }
        guard.lines.join("\n")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the end of the process (its children may live on).
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let lines = Arc::clone(&self.lines);
        let context = || lines.lock().lines.join("\n");
        wait_until_with("the process to end", context, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the end of the process and of its output: its status and all its lines.
    pub fn finish(&mut self) -> (ExitStatus, String) {
        let status = self.wait();
        let deadline = Instant::now() + Duration::from_secs(PATIENCE_SECONDS);
        let mut guard = self.lines.lock();
        while !guard.ended && Instant::now() < deadline {
            guard = self
                .lines
                .grew
                .wait_timeout(guard, Duration::from_secs(1))
                .unwrap()
                .0;
        }
        (status, guard.lines.join("\n"))
    }

    /// Waits until the process has become `program`.
    pub fn wait_for_program(&self, program: &str) {
        let name = Path::new(program).file_name().unwrap();
        let entry = |name: &str| format!("/proc/{}/{name}", self.pid());
        wait_until_with(
            program,
            || self.output(),
            || {
                // A zombie has none.
                let Ok(exe) = fs::read_link(entry("exe")) else {
                    panic!("waited for {program}, got:\n{}", self.output());
                };
                // The command line is the last thing that execve(2) sets.
                exe.file_name() == Some(name) && !fs::read(entry("cmdline")).unwrap().is_empty()
            },
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.end();
        // No test is about it, each shows it.
        if !thread::panicking() {
            let output = self.output();
            assert!(!output.contains("panicked"), "{output}");
        }
    }
}

impl Lines {
    /// A test that failed while it held the lock wants the lines in its report all the same.
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects the lines in a thread.
    fn collect(stream: PipeReader) -> Arc<Self> {
        let lines = Arc::new(Self {
            stream,
            text: Mutex::default(),
            grew: Condvar::new(),
        });
        let collecting = Arc::clone(&lines);
        thread::spawn(move || while collecting.collect_more() {});
        lines
    }

    /// Waits for more, and takes it; false at the end. With the lock, nothing is on its way from the pipe to
    /// the text.
    fn collect_more(&self) -> bool {
        self.is_readable(PollTimeout::NONE);
        let mut text = self.lock();
        let mut bytes = [0; 4096];
        let read = (&self.stream).read(&mut bytes).unwrap_or(0);
        text.ended = read == 0;
        for byte in &bytes[..read] {
            match byte {
                b'\n' => text.end_line(),
                byte => text.begun.push(*byte),
            }
        }
        if text.ended && !text.begun.is_empty() {
            text.end_line();
        }
        self.grew.notify_all();
        !text.ended
    }

    fn is_readable(&self, timeout: PollTimeout) -> bool {
        let mut ready = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut ready, timeout) {
                Err(Errno::EINTR) => {}
                polled => return polled.unwrap() > 0,
            }
        }
    }
}

impl Text {
    fn end_line(&mut self) {
        let line = core::mem::take(&mut self.begun);
        self.lines.push(String::from_utf8_lossy(&line).into_owned());
    }
}

/// Looks at `condition` until it holds, for what no event announces.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_until_with(what, String::new, condition);
}

/// The same; a failure shows what `context` says then.
pub fn wait_until_with(
    what: &str,
    context: impl FnOnce() -> String,
    mut condition: impl FnMut() -> bool,
) {
    let deadline = Instant::now() + Duration::from_secs(PATIENCE_SECONDS);
    let mut pause = SHORTEST_PAUSE;
    while !condition() {
        if Instant::now() >= deadline {
            panic!("waited in vain for {what}\n{}", context());
        }
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// Runs a command with `input` as its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}
