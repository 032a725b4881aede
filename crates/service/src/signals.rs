//! Signals during a wait: the process cleans up, and then dies of the signal.
//!
//! No handler is installed and no disposition is changed, so the command inherits them unchanged.
//! Instead, the signals are blocked and read from a signalfd, and the mask is restored before the
//! command runs.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    process::Command,
};

use aws_session::child_output::set_signal_mask;
use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal, raise},
    signalfd::{SfdFlags, SignalFd},
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

/// Calls `ask`, which prompts for a secret. Ctrl-C ends the program only afterwards: rpassword raises SIGINT while the
/// echo is off, and the terminal would stay like that.
pub fn hold_interrupt<T>(ask: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut interrupt = SigSet::empty();
    interrupt.add(Signal::SIGINT);
    let before = interrupt.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let answer = ask();
    before.thread_set_mask()?;
    answer
}

fn is_in(mask: u64, signal: Signal) -> bool {
    mask >> (signal as u32 - 1) & 1 == 1
}
