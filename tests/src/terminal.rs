//! A terminal with a person at it.

use std::{
    cell::RefCell,
    fs::File,
    io::{Read, Write},
    process::Stdio,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::openpty,
    sys::termios::{LocalFlags, tcgetattr},
};

use crate::process::wait_until_with;

/// A terminal: what is typed and shown is on one side, the programs are on the other.
pub struct Terminal {
    person: File,
    programs: File,
    shown: String,
}

impl Terminal {
    /// Opens a new one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let pair = openpty(None, None).unwrap();
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Self {
            person: pair.master.into(),
            programs: pair.slave.into(),
            shown: String::new(),
        }
    }

    /// A program's standard stream.
    pub fn programs(&self) -> Stdio {
        self.programs.try_clone().unwrap().into()
    }

    /// What the keys do.
    pub fn type_in(&mut self, text: &str) {
        self.person.write_all(text.as_bytes()).unwrap();
    }

    /// Whether it shows what is typed.
    pub fn echoes(&self) -> bool {
        let settings = tcgetattr(&self.programs).unwrap();
        settings.local_flags.contains(LocalFlags::ECHO)
    }

    /// All that it has shown.
    pub fn shown(&mut self) -> &str {
        let mut shown = Vec::new();
        // Ends with "would block".
        let _ = self.person.read_to_end(&mut shown);
        self.shown.push_str(&String::from_utf8_lossy(&shown));
        &self.shown
    }

    /// Waits until it has shown `text` for the `nth` time (from 1).
    pub fn wait_for_nth(&mut self, text: &str, nth: usize) {
        let last = RefCell::new(String::new());
        wait_until_with(
            &format!("{text:?} ({nth}) in the terminal"),
            || last.borrow().clone(),
            || {
                self.shown().clone_into(&mut last.borrow_mut());
                last.borrow().matches(text).count() >= nth
            },
        );
    }
}
