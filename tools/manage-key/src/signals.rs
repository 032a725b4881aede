//! All signals of a process that must not end before it has disabled the key, and those of its child.
//!
//! No handler is installed. The signals are blocked and read from signalfds, and the child gets the mask
//! that our parent has given us. Only SIGKILL, SIGSTOP and a fault of the processor are left.

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

/// What does nothing unless somebody has asked for it.
const HARMLESS: [Signal; 4] = [
    Signal::SIGCHLD,
    Signal::SIGURG,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// What stops a process, but for SIGSTOP.
const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// A signal by its number; real-time signals have no other name.
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

/// A signal that has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) number: Number,
    /// Whether the kernel sent it, for a terminal say, and no process.
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

/// All signals, held back until the end of the process.
pub(super) struct Signals {
    ending: SignalFd,
    stopping: SignalFd,
    inherited_mask: SigSet,
}

impl Signals {
    /// Holds back all that would end this process, but for what our parent has us ignore or block; and
    /// what would stop it, unless `may_stop`. Before the first thread is started.
    pub(super) fn hold(may_stop: bool) -> io::Result<Self> {
        let inherited_mask = SigSet::thread_get_mask()?;
        let ignored = process_status::mask("SigIgn");
        let is_ours = |signal: &Signal| {
            let is_ignored = ignored >> (*signal as u32 - 1) & 1 == 1;
            !is_ignored && !inherited_mask.contains(*signal)
        };
        // With the real-time signals, which have no names here.
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

    /// Readable when a signal has come that would have ended us.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.ending.as_fd()
    }

    /// Readable when a signal has come that would have stopped us.
    pub(super) fn stop_descriptor(&self) -> BorrowedFd<'_> {
        self.stopping.as_fd()
    }

    /// The signal that would have ended us, if one has come.
    pub(super) fn received(&self) -> Option<Received> {
        Received::of(&self.ending.read_signal().ok()??)
    }

    /// The signal that would have stopped us, if one has come.
    pub(super) fn stop_received(&self) -> Option<Received> {
        Received::of(&self.stopping.read_signal().ok()??)
    }

    /// The signal mask that our parent has given us.
    pub(super) fn inherited_mask(&self) -> &SigSet {
        &self.inherited_mask
    }

    /// Dies of the signal, as if it had never been held back. Returns if that is not possible.
    pub(super) fn die_of(self, number: Number) {
        if self.inherited_mask.thread_set_mask().is_ok() {
            // SAFETY: takes two numbers.
            unsafe { libc::raise(number.get()) };
        }
    }
}

/// Also the two that the C library keeps to itself, which would end the process like any other: it takes
/// them out of every mask that it is given.
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

/// A child's status is there for us also where our parent has us ignore SIGCHLD.
fn await_children() -> io::Result<()> {
    // SAFETY: no handler is set.
    match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sends the signal to the process of a pidfd, and to no other that has got its number.
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

/// Sends the signal to all processes of our group.
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
