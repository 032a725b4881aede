//! Signals during a wait: the process cleans up, and then dies of the signal.
//!
//! No handler is installed and no disposition is changed, so the command inherits them unchanged.
//! Instead, the signals are blocked and read from a signalfd, and the mask is restored before the
//! command runs.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    process::Command,
    thread,
};

use aws_session::child_output::set_signal_mask;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, raise},
        signalfd::{SfdFlags, SignalFd},
        termios::{SetArg, tcgetattr, tcsetattr},
    },
};

use crate::process_status;

/// The signals that end a wait.
const ENDING: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// The signals that end a wait, blocked until [`Signals::release`].
pub struct Signals {
    descriptor: SignalFd,
    inherited_mask: SigSet,
}

impl Signals {
    /// Blocks the signals that end a wait, except those that this process inherited as ignored or
    /// blocked; and SIGPIPE, which a broken connection would raise.
    pub fn hold() -> io::Result<Self> {
        let inherited_mask = SigSet::thread_get_mask()?;
        let ignored = process_status::mask("SigIgn");
        let ending: SigSet = ENDING
            .into_iter()
            .filter(|signal| !inherited_mask.contains(*signal) && !is_in(ignored, *signal))
            .collect();
        let mut held = ending;
        held.add(Signal::SIGPIPE);
        let descriptor =
            SignalFd::with_flags(&ending, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        held.thread_block()?;
        Ok(Self {
            descriptor,
            inherited_mask,
        })
    }

    /// Returns a descriptor that is readable when such a signal has arrived.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Gives the child that `command` starts the inherited mask: it would keep ours.
    pub fn give_inherited_mask(&self, command: &mut Command) {
        set_signal_mask(command, self.inherited_mask);
    }

    /// Returns the signal that has arrived, if any.
    pub fn received(&self) -> Option<Signal> {
        let info = self.descriptor.read_signal().ok()??;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }

    /// Restores the inherited mask. A signal that has arrived meanwhile is delivered.
    pub fn release(self) -> io::Result<()> {
        // Signals from our connections and child processes are not for the command.
        let ours: SigSet = [Signal::SIGPIPE, Signal::SIGCHLD].into_iter().collect();
        let pending = SignalFd::with_flags(&ours, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        while pending.read_signal()?.is_some() {}
        Ok(self.inherited_mask.thread_set_mask()?)
    }

    /// Dies of `signal`, as if it had never been blocked. Returns if that is not possible.
    pub fn die_of(self, signal: Signal) -> io::Result<()> {
        self.release()?;
        Ok(raise(signal)?)
    }
}

/// Calls `ask`, which prompts at the terminal for a secret, with the echo off. A signal ends the program with the terminal
/// as it was.
///
/// Ctrl-C does so only afterwards: rpassword reads it as a character, and raises SIGINT in this thread.
pub fn with_terminal_restored<T>(ask: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let terminal = File::open("/dev/tty")?;
    let before = tcgetattr(&terminal)?;
    let signals = Signals::hold()?;
    let inherited_mask = signals.inherited_mask;
    let (answered, end) = io::pipe()?;
    let watch = move || {
        let event = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut events = [event(signals.descriptor()), event(answered.as_fd())];
        // Readable, or closed, when there is an answer. EINTR: a stop and SIGCONT.
        while poll(&mut events, PollTimeout::NONE) == Err(Errno::EINTR) {}
        if let Some(signal) = signals.received() {
            // If this fails, nothing more can be done.
            let _ = tcsetattr(&terminal, SetArg::TCSANOW, &before);
            let _ = signals.die_of(signal);
        }
    };
    let watching = thread::Builder::new().spawn(watch)?;
    let answer = ask();
    drop(end);
    // It has panicked, or has nothing to say.
    let _ = watching.join();
    inherited_mask.thread_set_mask()?;
    answer
}

fn is_in(mask: u64, signal: Signal) -> bool {
    mask >> (signal as u32 - 1) & 1 == 1
}
