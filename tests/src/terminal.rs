//! A terminal with a person at it.

use std::{
    cell::RefCell,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    process::Stdio,
};

use nix::{
    fcntl::OFlag,
    pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::termios::{LocalFlags, tcgetattr},
};

use crate::{ChildGuard, wait_until_with};

/// A terminal: what is typed and shown is on one side, the programs are on the other.
pub struct Terminal {
    person: PtyMaster,
    programs: File,
    shown: String,
}

impl Terminal {
    /// Opens a new one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        // No program may inherit the person's side: it would keep the terminal alive.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let person = posix_openpt(flags).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let programs = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(ptsname_r(&person).unwrap());
        Self {
            person,
            programs: programs.unwrap(),
            shown: String::new(),
        }
    }

    /// A program's standard stream.
    pub fn programs(&self) -> Stdio {
        self.programs.try_clone().unwrap().into()
    }

    /// What the keys do.
    pub fn type_in(&mut self, text: &str) {
        self.type_bytes(text.as_bytes());
    }

    /// The same at a terminal with another encoding.
    pub fn type_bytes(&mut self, bytes: &[u8]) {
        self.person.write_all(bytes).unwrap();
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
        self.wait_until(&format!("{text:?} ({nth}) in the terminal"), |shown| {
            shown.matches(text).count() >= nth
        });
    }

    /// Waits until a program in it has succeeded; returns all that is shown.
    pub fn wait_for_success(&mut self, mut program: ChildGuard) -> &str {
        let mut status = None;
        self.wait_until("the end of the program in the terminal", |_| {
            status = program.try_wait().unwrap();
            status.is_some()
        });
        let shown = self.shown();
        assert!(status.unwrap().success(), "{shown}");
        shown
    }

    /// Waits for a condition of what it has shown, and reads it, or the programs would have to wait.
    fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&str) -> bool) {
        let last = RefCell::new(String::new());
        wait_until_with(
            what,
            || last.borrow().clone(),
            || {
                self.shown().clone_into(&mut last.borrow_mut());
                condition(&last.borrow())
            },
        );
    }
}
