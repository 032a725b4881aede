//! Standard input as a terminal, with its echo off.

use std::{
    io::{self, Stdin, Write},
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// Standard input with its echo off until dropped.
pub(super) struct Terminal {
    stdin: Stdin,
    before: Termios,
    /// Whether the cursor stands behind a prompt: the Enter that ends a line shows as little as the
    /// digits do.
    prompted: bool,
}

impl Terminal {
    pub fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent)?;
        Ok(Self {
            stdin,
            before,
            prompted: false,
        })
    }

    /// Written to standard error: standard output belongs to the command.
    pub fn prompt(&mut self) {
        // A terminal that cannot be written to can still be typed into.
        let _ = io::stderr().write_all(b"MFA code: ");
        self.prompted = true;
    }

    /// Takes what is written next to a line of its own.
    pub fn end_prompt(&mut self) {
        if std::mem::take(&mut self.prompted) {
            let _ = io::stderr().write_all(b"\n");
        }
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stdin.as_fd()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The command inherits the terminal as it was; nothing more can be done where that fails.
        let _ = tcsetattr(&self.stdin, SetArg::TCSADRAIN, &self.before);
        self.end_prompt();
    }
}
