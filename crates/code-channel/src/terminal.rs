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
    /// Whether the cursor is after a prompt. Without echo, the Enter that ends the line does not move
    /// it.
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

    /// Prints the prompt to standard error, because standard output belongs to the command.
    pub fn prompt(&mut self) {
        // Even if this fails, a code can still be typed.
        let _ = io::stderr().write_all(b"MFA code: ");
        self.prompted = true;
    }

    /// Starts a new line for the output that follows.
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
        // The command inherits the terminal as it was. If this fails, nothing more can be done.
        let _ = tcsetattr(&self.stdin, SetArg::TCSADRAIN, &self.before);
        self.end_prompt();
    }
}
