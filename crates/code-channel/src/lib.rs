//! The code channel: a FIFO, a terminal or a line of standard input that takes a code or a session
//! document.
//!
//! `input` splits the bytes into inputs, `note` says who entered one and why, `fifo` creates and removes the
//! FIFO, `state_file` reports the result of an input, `answer` is the same for programs, `terminal` turns
//! the echo off, `writer` writes to the FIFO of another process, and this module waits.

pub mod answer;
mod fifo;
mod input;
pub mod interactive_session;
pub mod mfa_prompt;
pub mod note;
mod state_file;
mod terminal;
pub mod writer;

use std::{
    io::{self, IsTerminal, Stdin},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    unistd::read,
};
use tracing::warn;
use zeroize::Zeroizing;

use fifo::Fifo;
pub use fifo::{FifoError, check as check_fifo};
use input::Assembler;
pub use input::Input;
pub use state_file::{Stage, State, StateReader};
use terminal::Terminal;

use aws_session::{
    config::{DEFAULT_FIFO, FifoConfig, Mfa},
    interrupt::{poll_timeout, remaining},
};

/// How often a waiting process reports that it is alive.
const TICK: Duration = Duration::from_secs(10);

/// Pause between attempts to reopen the FIFO after descriptors have run out.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// Where codes come from.
pub struct Channel {
    source: Source,
    assembler: Assembler,
    /// When the last bytes of an incomplete input arrived.
    last_bytes: Option<Instant>,
    /// Whether nothing has arrived since the FIFO was opened.
    silent: bool,
    /// Whether the FIFO is at its end and could not be reopened yet. What is written to it is still
    /// read.
    stalled: bool,
    ready: Vec<Input>,
}

enum Source {
    Fifo(Fifo),
    Terminal(Terminal),
    /// Only the first input is read; the rest is for others.
    Line(Stdin),
}

/// How a wait ended.
pub enum Event {
    /// Something was written.
    Input(Input),
    /// The interrupt descriptor became readable.
    Interrupted,
    /// The deadline has passed.
    DeadlinePassed,
}

/// The limits of a wait, and what happens meanwhile.
pub struct Wait<'a> {
    /// Ends the wait when it becomes readable, such as a signalfd. It is not read.
    pub interrupt: BorrowedFd<'a>,
    /// Ends the wait; `None`: never.
    pub deadline: Option<Instant>,
    /// Called at the start of a wait and then at least every ten seconds.
    pub alive: &'a dyn Fn(),
}

impl Channel {
    /// Opens the channel of a service: the FIFO, or the terminal if no FIFO is configured and
    /// standard input is one.
    pub fn of_service(fifo: &FifoConfig) -> Result<Self, FifoError> {
        match !fifo.is_configured && io::stdin().is_terminal() {
            true => Self::terminal(),
            false => Self::fifo(fifo),
        }
    }

    /// Opens the channel of a tool: standard input, which is a terminal or gives one line.
    pub fn standard_input() -> Result<Self, FifoError> {
        match io::stdin().is_terminal() {
            true => Self::terminal(),
            false => Ok(Self::line()),
        }
    }

    /// Creates the FIFO.
    pub fn fifo(fifo: &FifoConfig) -> Result<Self, FifoError> {
        let made = Fifo::make(&fifo.path, fifo.access)?;
        Ok(Self::new(Source::Fifo(made)))
    }

    /// Opens standard input, a terminal, and turns its echo off.
    pub fn terminal() -> Result<Self, FifoError> {
        let terminal = Terminal::open().map_err(FifoError::Terminal)?;
        Ok(Self::new(Source::Terminal(terminal)))
    }

    /// Reads one line or one session document from standard input, and nothing that follows it.
    pub fn line() -> Self {
        Self::new(Source::Line(io::stdin()))
    }

    /// Whether there is only one input, so that nobody can be prompted again.
    pub fn is_line(&self) -> bool {
        matches!(self.source, Source::Line(_))
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            assembler: Assembler::new(),
            last_bytes: None,
            silent: true,
            stalled: false,
            ready: Vec::new(),
        }
    }

    /// Says how to enter the code: a command, or at the terminal.
    pub fn instruction(&self, mfa: &Mfa) -> String {
        match &self.source {
            Source::Terminal(_) => "type it here".into(),
            Source::Line(_) => "on standard input".into(),
            Source::Fifo(fifo) => writing_command(fifo.path(), mfa),
        }
    }

    /// Reports the result of the last input to whoever wrote it to the FIFO.
    pub fn tell(&mut self, stage: Stage, text: &str) {
        if let Source::Fifo(fifo) = &mut self.source {
            fifo.tell(stage, text);
        }
    }

    /// Says what to enter, and how.
    pub fn wanted(&self, mfa: &Mfa) -> String {
        format!("{}: {}", wanted(mfa), self.instruction(mfa))
    }

    /// Returns the path if it is a FIFO.
    pub fn fifo_path(&self) -> Option<PathBuf> {
        match &self.source {
            Source::Fifo(fifo) => Some(fifo.path().into()),
            Source::Terminal(_) | Source::Line(_) => None,
        }
    }

    /// Prompts at the terminal. A FIFO needs no prompt.
    pub fn prompt(&mut self) {
        if let Source::Terminal(terminal) = &mut self.source
            && self.ready.is_empty()
        {
            terminal.prompt();
        }
    }

    /// Waits for the next input. After the deadline, none is waited for, however many come.
    pub fn next(&mut self, wait: &Wait<'_>) -> Result<Event, FifoError> {
        let is_late = || wait.deadline.is_some_and(|end| Instant::now() >= end);
        if is_late() {
            return Ok(Event::DeadlinePassed);
        }
        loop {
            if !self.ready.is_empty() {
                return Ok(Event::Input(self.ready.remove(0)));
            }
            (wait.alive)();
            match self.poll(wait)? {
                Wake::Interrupted => return Ok(Event::Interrupted),
                Wake::Readable => self.receive()?,
                Wake::TimedOut if self.stalled => self.receive()?,
                Wake::TimedOut => {
                    self.settle();
                    if let Source::Fifo(fifo) = &self.source {
                        fifo.check_place()?;
                    }
                }
            }
            if self.ready.is_empty() && is_late() {
                return Ok(Event::DeadlinePassed);
            }
        }
    }

    fn poll(&self, wait: &Wait<'_>) -> Result<Wake, FifoError> {
        let ends = [
            wait.deadline,
            self.settles_at(),
            Some(Instant::now() + TICK),
        ];
        let mut timeout = ends.into_iter().flatten().min().map_or(TICK, remaining);
        let mut descriptors = vec![PollFd::new(wait.interrupt, PollFlags::POLLIN)];
        if self.stalled {
            timeout = timeout.min(SHORTAGE_PAUSE);
        } else {
            descriptors.push(PollFd::new(self.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut descriptors, poll_timeout(timeout)) {
            Ok(0) | Err(Errno::EINTR) => Ok(Wake::TimedOut),
            Ok(_) if descriptors.first().and_then(PollFd::any) == Some(true) => {
                Ok(Wake::Interrupted)
            }
            Ok(_) => Ok(Wake::Readable),
            Err(error) => Err(FifoError::wait(error)),
        }
    }

    fn receive(&mut self) -> Result<(), FifoError> {
        let mut chunk = Zeroizing::new([0; 4096]);
        // What follows the line must stay unread, and a pipe has no look-ahead.
        let most = if self.is_line() { 1 } else { chunk.len() };
        let received = read(self.as_fd(), chunk.get_mut(..most).unwrap_or_default());
        if let Source::Terminal(terminal) = &mut self.source {
            terminal.end_prompt();
        }
        match received {
            Ok(0) => self.end_of_file(),
            Ok(length) => {
                self.silent = false;
                self.ready = self.assembler.push(chunk.get(..length).unwrap_or_default());
                self.last_bytes = self.assembler.is_unfinished().then(Instant::now);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(FifoError::wait(error)),
        }
    }

    /// The last writer has closed it, so the input is complete.
    fn end_of_file(&mut self) -> Result<(), FifoError> {
        self.ready.extend(self.assembler.finish());
        if self.is_line() && !self.ready.is_empty() {
            return Ok(());
        }
        if self.silent && !self.stalled {
            self.ready.push(self.nothing_came());
        }
        self.silent = true;
        self.last_bytes = None;
        match &mut self.source {
            Source::Fifo(fifo) => {
                let reopened = fifo.reopen();
                self.note_reopened(reopened)
            }
            Source::Terminal(_) | Source::Line(_) => Err(FifoError::InputClosed),
        }
    }

    /// A writer opened and closed the FIFO, but nothing was read here. (After a read, the time of
    /// change proves nothing: the kernel may record the write later.)
    fn nothing_came(&self) -> Input {
        match &self.source {
            Source::Fifo(fifo) if fifo.has_changed() => Input::Vanished,
            _ => Input::Refused("a writer that wrote nothing".into()),
        }
    }

    /// Notes whether the FIFO could be reopened. If not, inputs that have arrived must not be lost; and
    /// if descriptors have run out, it may succeed later.
    fn note_reopened(&mut self, reopened: Result<(), FifoError>) -> Result<(), FifoError> {
        let was_stalled = std::mem::replace(&mut self.stalled, reopened.is_err());
        match reopened {
            Err(error) if error.is_shortage() => {
                if !was_stalled {
                    warn!("{error}; trying again until it works");
                }
                Ok(())
            }
            Err(_) if !self.ready.is_empty() => Ok(()),
            reopened => reopened,
        }
    }

    /// Completes an input whose writer has paused for too long.
    fn settle(&mut self) {
        if self.settles_at().is_some_and(|at| Instant::now() >= at) {
            self.ready.extend(self.assembler.give_up());
            self.last_bytes = None;
        }
    }

    fn settles_at(&self) -> Option<Instant> {
        Some(self.last_bytes? + self.assembler.patience())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Fifo(fifo) => fifo.as_fd(),
            Source::Terminal(terminal) => terminal.as_fd(),
            Source::Line(stdin) => stdin.as_fd(),
        }
    }
}

/// Names what to enter.
pub fn wanted(mfa: &Mfa) -> String {
    match mfa {
        Mfa::Here { serial_number } => format!("the MFA code of {serial_number}"),
        _ => "a session document".into(),
    }
}

/// Returns the command that enters the code or session document into the FIFO at `path`.
pub fn writing_command(path: &Path, mfa: &Mfa) -> String {
    let mut command = String::from("iam-kms-wrapper code");
    if path != Path::new(DEFAULT_FIFO) {
        command.push_str(&format!(" --fifo={}", path.display()));
    }
    if !matches!(mfa, Mfa::Here { .. }) {
        command.push_str(" < session.json");
    }
    command
}

enum Wake {
    Readable,
    Interrupted,
    TimedOut,
}
