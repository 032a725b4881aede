//! Cleans up when the process aborts because memory has run out or because of a bug: reports it,
//! removes the files that the process created, and exits with the status of all failures.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_int},
    io::{self, stderr},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::{null, null_mut},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    unistd::{unlink, write},
};

const EXIT_STATUS: c_int = 125;

/// It does not name the program; the journal shows the process id.
const MESSAGE: &[u8] = b"aborted, because memory ran out or because of a bug; please report it with the preceding log lines\n";

/// How a process aborts: by abort(3), which a failed allocation calls, or when its stack cannot grow.
const SIGNALS: [Signal; 3] = [Signal::SIGABRT, Signal::SIGSEGV, Signal::SIGBUS];

/// Stack for the handler when the main stack cannot grow. Most of it is for the kernel's frame.
const STACK_BYTES: usize = 64 * 1024;

/// The FIFO that takes codes.
pub static FIFO: Leftover = Leftover::none();

/// The state file next to it.
pub static STATE_FILE: Leftover = Leftover::none();

/// The sockets: of the keys, the overview and the metrics.
static SOCKETS: [Leftover; 3] = [const { Leftover::none() }; 3];

/// Records that a socket exists at `path`. `None` if there are already three, or the path contains a NUL byte.
pub(crate) fn socket_made(path: &Path) -> Option<&'static Leftover> {
    SOCKETS.iter().find(|socket| socket.made(path))
}

/// A file that must not outlive the process.
pub struct Leftover {
    path: OnceLock<CString>,
    is_there: AtomicBool,
}

impl Leftover {
    const fn none() -> Self {
        Self {
            path: OnceLock::new(),
            is_there: AtomicBool::new(false),
        }
    }

    /// Records that the file exists at `path`. Returns false for another path than the first time: that file is not
    /// removed.
    pub fn made(&self, path: &Path) -> bool {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return false;
        };
        let is_same = *self.path.get_or_init(|| path.clone()) == path;
        self.is_there.fetch_or(is_same, Ordering::Relaxed);
        is_same
    }

    /// Records that the file has been removed.
    pub fn removed(&self) {
        self.is_there.store(false, Ordering::Relaxed);
    }

    fn path(&self) -> Option<&CStr> {
        let is_there = self.is_there.load(Ordering::Relaxed);
        self.path.get().filter(|_| is_there).map(CString::as_c_str)
    }
}

/// Installs the clean-up handlers, unless the signal is ignored. An executed program does not inherit
/// them.
pub fn clean_up() -> io::Result<()> {
    provide_stack()?;
    for signal in SIGNALS {
        let flags = SaFlags::SA_RESETHAND | SaFlags::SA_ONSTACK;
        let action = |handler| SigAction::new(handler, flags, SigSet::empty());
        // SAFETY: the handler does only what signal-safety(7) allows.
        let inherited = unsafe { sigaction(signal, &action(SigHandler::Handler(break_off))) }?;
        if matches!(inherited.handler(), SigHandler::SigIgn) {
            // SAFETY: no handler is set.
            unsafe { sigaction(signal, &action(SigHandler::SigIgn)) }?;
        }
    }
    Ok(())
}

/// Gives the handler its own stack, unless Rust's start-up code has done so.
fn provide_stack() -> io::Result<()> {
    let mut present = libc::stack_t {
        ss_sp: null_mut(),
        ss_flags: 0,
        ss_size: 0,
    };
    // SAFETY: nothing is set, and `present` is there to be written to.
    if unsafe { libc::sigaltstack(null(), &mut present) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if present.ss_flags & libc::SS_DISABLE == 0 {
        return Ok(());
    }
    let stack = libc::stack_t {
        ss_sp: Vec::leak(vec![0_u8; STACK_BYTES]).as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: STACK_BYTES,
    };
    // SAFETY: the memory is of that size, is never freed and belongs to nobody else.
    match unsafe { libc::sigaltstack(&stack, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Allocates nothing and takes no lock.
extern "C" fn break_off(_: c_int) {
    for leftover in [&FIFO, &STATE_FILE].into_iter().chain(&SOCKETS) {
        if let Some(path) = leftover.path() {
            // A file that cannot be removed stays.
            let _ = unlink(path);
        }
    }
    // There is nowhere else to report it.
    let _ = write(stderr(), MESSAGE);
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(EXIT_STATUS) }
}
