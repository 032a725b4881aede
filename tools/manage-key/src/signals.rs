//! The signals of a process that must not end before it has disabled the key, and those of its child.
//!
//! No handler is installed. The signals are blocked and read from signalfds, and the child gets the
//! inherited mask. Only SIGKILL, SIGSTOP and synchronous faults remain.

#![allow(unsafe_code)]

use std::{
    ffi::c_int,
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr::{null, null_mut},
};

use nix::{
    libc,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd, siginfo},
    },
};

use service::process_status;

/// Signals that are ignored by default.
const HARMLESS: [Signal; 4] = [
    Signal::SIGCHLD,
    Signal::SIGURG,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// Signals that stop a process, except SIGSTOP.
const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// A signal by its number, because real-time signals have no names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(c_int);

impl Number {
    pub(super) const CONT: Self = Self(libc::SIGCONT);

    pub(super) fn new(number: c_int) -> Self {
        Self(number)
    }

    pub(super) fn get(self) -> c_int {
        self.0
    }

    pub(super) fn is(self, signal: Signal) -> bool {
        self.0 == signal as c_int
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str()),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

/// A signal that has arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) number: Number,
    /// Whether the kernel sent it, for example because of the terminal.
    pub(super) is_of_kernel: bool,
}

impl Received {
    /// Source: `si_code` in sigaction(2).
    fn of(info: &siginfo) -> Option<Self> {
        Some(Self {
            number: Number(info.ssi_signo.try_into().ok()?),
            is_of_kernel: info.ssi_code > 0,
        })
    }
}

/// All signals, blocked until the end of the process.
pub(super) struct Signals {
    ending: SignalFd,
    stopping: SignalFd,
    inherited_mask: SigSet,
}

impl Signals {
    /// Blocks all signals that would end this process, except those that it inherited as ignored or
    /// blocked; and those that would stop it, unless `may_stop`. Must be called before the first thread
    /// is started.
    pub(super) fn hold(may_stop: bool) -> io::Result<Self> {
        let inherited_mask = SigSet::thread_get_mask()?;
        let ignored = process_status::mask("SigIgn");
        let is_ours = |signal: &Signal| {
            let is_ignored = ignored >> (*signal as u32 - 1) & 1 == 1;
            !is_ignored && !inherited_mask.contains(*signal)
        };
        // Including the real-time signals, which have no names here.
        let mut ending = SigSet::all();
        for signal in Signal::iterator() {
            if HARMLESS.contains(&signal) || STOPPING.contains(&signal) || !is_ours(&signal) {
                ending.remove(signal);
            }
        }
        let stopping = STOPPING.into_iter().filter(is_ours).collect();
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = Self {
            ending: SignalFd::with_flags(&ending, flags)?,
            stopping: SignalFd::with_flags(&stopping, flags)?,
            inherited_mask,
        };
        let left: &[Signal] = if may_stop { &STOPPING } else { &[] };
        block_all_but(HARMLESS.iter().chain(left))?;
        await_children()?;
        Ok(signals)
    }

    /// Returns a descriptor that is readable when a signal has arrived that would have ended this
    /// process.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.ending.as_fd()
    }

    /// Returns a descriptor that is readable when a signal has arrived that would have stopped this
    /// process.
    pub(super) fn stop_descriptor(&self) -> BorrowedFd<'_> {
        self.stopping.as_fd()
    }

    /// Returns the signal that would have ended this process, if one has arrived.
    pub(super) fn received(&self) -> Option<Received> {
        Received::of(&self.ending.read_signal().ok()??)
    }

    /// Returns the signal that would have stopped this process, if one has arrived.
    pub(super) fn stop_received(&self) -> Option<Received> {
        Received::of(&self.stopping.read_signal().ok()??)
    }

    /// Returns the inherited signal mask.
    pub(super) fn inherited_mask(&self) -> &SigSet {
        &self.inherited_mask
    }

    /// Dies of the signal, as if it had never been blocked. Returns if that is not possible.
    pub(super) fn die_of(self, number: Number) {
        if self.inherited_mask.thread_set_mask().is_ok() {
            // SAFETY: takes two numbers.
            unsafe { libc::raise(number.get()) };
        }
    }
}

/// Blocks all signals, including the two that the C library reserves and removes from each mask. They
/// would end the process like any other.
fn block_all_but<'a>(left: impl Iterator<Item = &'a Signal>) -> io::Result<()> {
    let mask = left.fold(u64::MAX, |mask, signal| mask & !(1 << (*signal as u32 - 1)));
    // SAFETY: the kernel reads one mask of that many bytes, and writes none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
    check(result)
}

/// Restores the default of SIGCHLD. If it was inherited as ignored, the status of a child would be
/// lost.
fn await_children() -> io::Result<()> {
    // SAFETY: no handler is set.
    match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sends the signal to the process of a pidfd, never to another that has reused its process id.
pub(super) fn send(pidfd: BorrowedFd<'_>, number: Number) -> io::Result<()> {
    // SAFETY: takes a descriptor that is open, a number, no information and no flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number.get(),
            null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result)
}

/// Sends the signal to all processes of this process group.
pub(super) fn send_to_group(number: Number) -> io::Result<()> {
    // SAFETY: takes two numbers.
    check(unsafe { libc::kill(0, number.get()) }.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
