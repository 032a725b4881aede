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

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        fs::File,
        io::{Read, Write},
        os::fd::OwnedFd,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use aws_session::{config::FifoAccess, interrupt::sleep_until};
    use nix::unistd::{dup, dup2_stdin, pipe};
    use tracing::{Event as LogEvent, Metadata, Subscriber, span};

    use super::*;

    /// Long enough for everything that happens at once, even on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// For a wait in which nothing happens.
    const MOMENT: Duration = Duration::from_millis(20);

    fn here() -> Mfa {
        Mfa::Here {
            serial_number: "GAHT12345678".into(),
        }
    }

    struct Scene {
        _directory: tempfile::TempDir,
        path: PathBuf,
        channel: Channel,
        interrupt: OwnedFd,
        interrupter: Option<OwnedFd>,
        alive: Cell<usize>,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("mfa");
            let channel = Channel::of_service(&FifoConfig {
                path: path.clone(),
                is_configured: true,
                access: FifoAccess {
                    mode: 0o600,
                    gid: None,
                },
                prompt_timeout: None,
            });
            Self::of(channel.unwrap(), directory, path)
        }

        fn of(channel: Channel, directory: tempfile::TempDir, path: PathBuf) -> Self {
            let (interrupt, interrupter) = pipe().unwrap();
            Self {
                _directory: directory,
                path,
                channel,
                interrupt,
                interrupter: Some(interrupter),
                alive: Cell::new(0),
            }
        }

        fn writer(&self) -> File {
            File::options().write(true).open(&self.path).unwrap()
        }

        fn write(&self, bytes: &[u8]) {
            self.writer().write_all(bytes).unwrap();
        }

        /// Receives what has been written, as if that had been so long ago.
        fn receive_before(&mut self, ago: Duration) {
            self.channel.receive().unwrap();
            let came = self.channel.last_bytes.unwrap();
            self.channel.last_bytes = came.checked_sub(ago);
        }

        fn next(&mut self, patience: Duration) -> Result<Event, FifoError> {
            self.channel.next(&Wait {
                interrupt: self.interrupt.as_fd(),
                deadline: Some(Instant::now() + patience),
                alive: &|| self.alive.set(self.alive.get() + 1),
            })
        }

        /// What the next wait gives, in words.
        fn event_within(&mut self, patience: Duration) -> String {
            match self.next(patience) {
                Ok(Event::Input(Input::TokenCode(code, _))) => code.expose().to_owned(),
                Ok(Event::Input(Input::Refused(why))) => why,
                Ok(Event::Input(Input::Vanished)) => "vanished".into(),
                Ok(Event::Input(Input::Session(..))) => "session".into(),
                Ok(Event::Interrupted) => "interrupted".into(),
                Ok(Event::DeadlinePassed) => "nothing".into(),
                Err(error) => error.to_string(),
            }
        }

        fn event(&mut self) -> String {
            self.event_within(PATIENCE)
        }
    }

    #[test]
    fn each_input_is_read_once_and_the_fifo_goes_on_to_the_next_writer() {
        let mut scene = Scene::new();
        scene.write(b"111676\n222333\n");
        assert_eq!(scene.event(), "111676");
        assert_eq!(scene.event(), "222333");
        assert_eq!(scene.event_within(MOMENT), "nothing");
        scene.write(b"333444");
        assert_eq!(scene.event(), "333444");
        assert_eq!(scene.event_within(MOMENT), "nothing");
        scene.writer();
        assert_eq!(scene.event(), "a writer that wrote nothing");
        assert_eq!(scene.event_within(MOMENT), "nothing");
    }

    #[test]
    fn an_input_that_another_process_reads_has_vanished() {
        let mut scene = Scene::new();
        // Opened with write access too, so that it does not wait for a writer.
        let mut thief = File::options()
            .read(true)
            .write(true)
            .open(&scene.path)
            .unwrap();
        let mut writer = scene.writer();
        // The time of change has the resolution of the kernel's clock.
        let changed = |scene: &Scene| match &scene.channel.source {
            Source::Fifo(fifo) => fifo.has_changed(),
            _ => false,
        };
        let until = Instant::now() + PATIENCE;
        while !changed(&scene) && Instant::now() < until {
            writer.write_all(b"111676\n").unwrap();
            thief.read_exact(&mut [0; 7]).unwrap();
        }
        drop((writer, thief));
        assert_eq!(scene.event(), "vanished");
    }

    #[test]
    fn a_wait_ends_at_an_interrupt_and_at_its_deadline_whatever_has_come() {
        let mut scene = Scene::new();
        scene.write(b"111676\n");
        assert_eq!(scene.event_within(Duration::ZERO), "nothing");
        assert_eq!(scene.alive.get(), 0);
        assert_eq!(scene.event(), "111676");
        scene.interrupter = None;
        assert_eq!(scene.event(), "interrupted");
    }

    #[test]
    fn an_input_that_has_come_is_not_kept_back_by_the_deadline() {
        let mut scene = Scene::new();
        scene.write(b"111676\n");
        let interrupt = scene.interrupt.as_fd();
        let deadline = Instant::now() + Duration::from_secs(1);
        let event = scene.channel.next(&Wait {
            interrupt,
            deadline: Some(deadline),
            alive: &|| assert!(!sleep_until(deadline, interrupt)),
        });
        assert!(matches!(event, Ok(Event::Input(Input::TokenCode(..)))));
    }

    #[test]
    fn a_waiting_process_reports_that_it_is_alive_and_sleeps() {
        let mut scene = Scene::new();
        assert_eq!(scene.event_within(Duration::from_millis(100)), "nothing");
        assert!((1..10).contains(&scene.alive.get()), "{:?}", scene.alive);
    }

    #[test]
    fn an_input_without_an_end_counts_once_its_writer_has_paused_for_long() {
        let mut scene = Scene::new();
        let mut writer = scene.writer();
        writer.write_all(b"111676").unwrap();
        scene.receive_before(Duration::ZERO);
        assert_eq!(scene.event_within(MOMENT), "nothing");
        scene.channel.last_bytes = Instant::now().checked_sub(Duration::from_secs(1));
        assert_eq!(scene.event(), "111676");
        writer.write_all(b"11").unwrap();
        scene.receive_before(Duration::from_secs(8));
        assert_eq!(scene.event_within(MOMENT), "nothing");
        scene.channel.last_bytes = Instant::now().checked_sub(Duration::from_secs(10));
        assert_eq!(scene.event(), "2 digits instead of six, without a line end");
        assert!(scene.channel.last_bytes.is_none());
    }

    #[test]
    fn a_fifo_that_was_removed_ends_the_wait() {
        let mut scene = Scene::new();
        let mut writer = scene.writer();
        writer.write_all(b"11").unwrap();
        scene.receive_before(Duration::from_secs(10));
        std::fs::remove_file(&scene.path).unwrap();
        assert!(scene.event().contains("it was removed or replaced"));
    }

    /// Counts the warnings of this thread.
    struct Warnings(Arc<AtomicUsize>);

    impl Subscriber for Warnings {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }
        fn event(&self, _: &LogEvent<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    fn not_reopened(errno: Errno) -> Result<(), FifoError> {
        Err(FifoError::Make {
            path: "/run/mfa".into(),
            step: "open",
            source: errno.into(),
        })
    }

    #[test]
    fn while_descriptors_have_run_out_it_warns_once_and_reads_on() {
        let warnings = Arc::new(AtomicUsize::new(0));
        let mut scene = Scene::new();
        tracing::subscriber::with_default(Warnings(warnings.clone()), || {
            for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
                scene.channel.note_reopened(not_reopened(errno)).unwrap();
                assert!(scene.channel.stalled);
            }
        });
        assert_eq!(warnings.load(Ordering::Relaxed), 1);
        // There are descriptors again: an end of the FIFO while it was stalled is no writer that wrote nothing.
        assert_eq!(scene.event_within(10 * SHORTAGE_PAUSE), "nothing");
        assert!(!scene.channel.stalled);
        scene
            .channel
            .note_reopened(not_reopened(Errno::EMFILE))
            .unwrap();
        scene.write(b"111676\n");
        assert_eq!(scene.event(), "111676");
    }

    #[test]
    fn a_fifo_that_cannot_be_reopened_ends_the_wait_after_what_has_come() {
        let mut scene = Scene::new();
        let failed = scene.channel.note_reopened(not_reopened(Errno::EACCES));
        assert!(failed.is_err());
        scene.write(b"111676");
        scene.channel.receive().unwrap();
        std::fs::remove_file(&scene.path).unwrap();
        assert_eq!(scene.event(), "111676");
        assert!(scene.event().contains("cannot open the FIFO"));
    }

    #[test]
    fn it_says_what_to_enter_and_where() {
        let mut scene = Scene::new();
        let fifo = format!("iam-kms-wrapper code --fifo={}", scene.path.display());
        assert_eq!(scene.channel.instruction(&here()), fifo);
        assert_eq!(
            scene.channel.wanted(&here()),
            format!("the MFA code of GAHT12345678: {fifo}")
        );
        assert_eq!(scene.channel.fifo_path(), Some(scene.path.clone()));
        assert!(!scene.channel.is_line());
        let default = Path::new(DEFAULT_FIFO);
        assert_eq!(writing_command(default, &here()), "iam-kms-wrapper code");
        assert_eq!(
            writing_command(default, &Mfa::Elsewhere),
            "iam-kms-wrapper code < session.json"
        );
        assert_eq!(wanted(&Mfa::Elsewhere), "a session document");
        scene.channel.tell(Stage::Refused, "too late");
        let told = StateReader::open(&scene.path).unwrap().read().unwrap();
        assert_eq!(
            (told.stage, told.text.as_str()),
            (Stage::Refused, "too late")
        );
    }

    /// The only test that reads standard input, which is the process's.
    #[test]
    fn of_standard_input_one_line_is_read_and_its_end_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let before = dup(io::stdin()).unwrap();
        let (reader, writer) = pipe().unwrap();
        dup2_stdin(&reader).unwrap();
        let mut writer = File::from(writer);
        writer.write_all(b"111676\nfor others\n222333").unwrap();
        let channel = Channel::standard_input().unwrap();
        assert!(channel.is_line());
        assert_eq!(channel.fifo_path(), None);
        assert_eq!(channel.instruction(&here()), "on standard input");
        let mut scene = Scene::of(channel, directory, PathBuf::new());
        assert_eq!(scene.event(), "111676");
        let mut rest = [0; 11];
        File::from(dup(&reader).unwrap())
            .read_exact(&mut rest)
            .unwrap();
        assert_eq!(&rest, b"for others\n");
        drop(writer);
        assert_eq!(scene.event(), "222333");
        let end = "standard input was closed before anything was entered";
        assert_eq!(scene.event(), end);
        dup2_stdin(before).unwrap();
    }
}
