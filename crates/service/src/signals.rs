//! Signals while we wait: noticed, cleaned up after, and then died of.
//!
//! No handler is ever installed and no disposition changed, so the command inherits all of them as
//! they were. The signals are blocked and read from a signalfd instead, and the mask is put back
//! before the command runs.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::{
    signal::{SigSet, Signal, raise},
    signalfd::{SfdFlags, SignalFd},
};

use crate::process_status;

/// What ends a wait.
const ENDING: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// The ending signals, held back until [`Signals::release`].
pub struct Signals {
    descriptor: SignalFd,
    inherited_mask: SigSet,
}

impl Signals {
    /// Holds back the ending signals, but for those that our parent has us ignore or block, and
    /// SIGPIPE, which a connection that breaks would raise.
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

    /// Readable when an ending signal has come.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The ending signal that has come, if one has.
    pub fn received(&self) -> Option<Signal> {
        let info = self.descriptor.read_signal().ok()??;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }

    /// Puts the mask back as it was inherited. An ending signal that came meanwhile is delivered.
    pub fn release(self) -> io::Result<()> {
        // Those of our connections and of the process that starts the broker are not the command's.
        let ours: SigSet = [Signal::SIGPIPE, Signal::SIGCHLD].into_iter().collect();
        let pending = SignalFd::with_flags(&ours, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        while pending.read_signal()?.is_some() {}
        Ok(self.inherited_mask.thread_set_mask()?)
    }

    /// Dies of `signal`, as if it had never been held back. Returns if that is not possible.
    pub fn die_of(self, signal: Signal) -> io::Result<()> {
        self.release()?;
        Ok(raise(signal)?)
    }
}

fn is_in(mask: u64, signal: Signal) -> bool {
    mask >> (signal as u32 - 1) & 1 == 1
}
