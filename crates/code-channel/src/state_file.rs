//! The state file next to the FIFO: one line that tells writers the result of their input. It exists as
//! long as the FIFO.
//!
//! The line is `NUMBER WORD TEXT`. The number grows with each change, so that a writer knows which
//! result came after its own input.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, fchmod},
    unistd::{Gid, UnlinkatFlags, fchown, unlinkat},
};
use visible_text::escape;

use aws_session::config::FifoAccess;
use service::on_abort;

/// Longest line, in bytes: longer than any message, and written in one call.
const LINE_BYTES: usize = 1024;

/// The state of the last input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing has been written yet; the text says what to enter.
    Awaited,
    /// AWS is being asked; the text may say why it takes long.
    Asking,
    /// It was refused; the text says why. Another input is needed.
    Refused,
    /// It opened a session.
    Accepted,
}

impl Stage {
    const ALL: [(Self, &str); 4] = [
        (Self::Awaited, "awaited"),
        (Self::Asking, "asking"),
        (Self::Refused, "refused"),
        (Self::Accepted, "accepted"),
    ];

    fn word(self) -> &'static str {
        let is_self = |(stage, _): &&(Self, &str)| *stage == self;
        Self::ALL.iter().find(is_self).map_or("", |(_, word)| *word)
    }
}

/// The file, for the process that waits for a code. Its path never changes, so whoever removes the FIFO
/// removes it too ([`remove`]).
pub(super) struct StateFile {
    file: File,
    number: u64,
}

impl StateFile {
    /// Creates it in the directory of the FIFO `path`, readable for those who may write to the FIFO.
    pub fn make(path: &Path, directory: &OwnedFd, access: FifoAccess) -> io::Result<Self> {
        let name = name_beside(path);
        match unlinkat(directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        // With O_EXCL, it follows no link.
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let descriptor = openat(directory, name.as_os_str(), flags, Mode::S_IWUSR)?;
        on_abort::STATE_FILE.made(&path.with_file_name(&name));
        if let Some(gid) = access.gid {
            fchown(&descriptor, None, Some(Gid::from_raw(gid)))?;
        }
        fchmod(&descriptor, readable_by_writers(access.mode))?;
        Ok(Self {
            file: descriptor.into(),
            number: 0,
        })
    }

    /// Reports the state of the last input. Errors are ignored: only the writer's convenience depends
    /// on it.
    pub fn tell(&mut self, stage: Stage, text: &str) {
        let text = escape(text);
        let mut line = format!("{} {} {text}", self.number, stage.word());
        line.truncate(line.floor_char_boundary(LINE_BYTES - 1));
        line.push('\n');
        self.number += 1;
        // Readers ignore a line without its end, which is still being written.
        let _ = self
            .file
            .set_len(0)
            .and_then(|()| self.file.write_all_at(line.as_bytes(), 0));
    }
}

/// Removes the file of the FIFO at `path`, if there is one.
pub(super) fn remove(path: &Path, directory: &OwnedFd) {
    on_abort::STATE_FILE.removed();
    let name = name_beside(path);
    // It may never have been created.
    let _ = unlinkat(directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir);
}

/// The file, for a writer.
pub struct StateReader(File);

/// A line of it.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    /// Grows with each change.
    pub number: u64,
    /// The state of the last input.
    pub stage: Stage,
    /// Details: printable, on one line.
    pub text: String,
}

impl StateReader {
    /// Opens the file of the FIFO at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(file_beside(path))?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self(file))
    }

    /// Reads the current line; `None` while it is being written, or if it is invalid.
    pub fn read(&self) -> Option<State> {
        let mut buffer = [0; LINE_BYTES];
        let length = self.0.read_at(&mut buffer, 0).ok()?;
        parse(str::from_utf8(buffer.get(..length)?).ok()?)
    }
}

fn parse(text: &str) -> Option<State> {
    let mut words = text.strip_suffix('\n')?.splitn(3, ' ');
    let number = words.next()?.parse().ok()?;
    let word = words.next()?;
    let (stage, _) = Stage::ALL.iter().find(|(_, known)| *known == word)?;
    Some(State {
        number,
        stage: *stage,
        text: escape(words.next()?),
    })
}

fn file_beside(path: &Path) -> PathBuf {
    path.with_file_name(name_beside(path))
}

fn name_beside(path: &Path) -> OsString {
    let mut name = path.file_name().unwrap_or(OsStr::new("")).to_owned();
    name.push(".state");
    name
}

/// Returns a mode that lets everybody read the file who may write to the FIFO.
fn readable_by_writers(fifo_mode: u32) -> Mode {
    let writers = Mode::from_bits_truncate(fifo_mode) & (Mode::S_IWGRP | Mode::S_IWOTH);
    Mode::S_IRUSR | Mode::S_IWUSR | Mode::from_bits_truncate(writers.bits() << 1)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use nix::{
        fcntl::{FcntlArg, FdFlag, fcntl},
        unistd::mkfifo,
    };

    use super::*;

    fn made(mode: u32) -> (tempfile::TempDir, PathBuf, StateFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mfa");
        let descriptor = File::open(directory.path()).unwrap().into();
        let file = StateFile::make(&path, &descriptor, FifoAccess { mode, gid: None }).unwrap();
        (directory, path, file)
    }

    #[test]
    fn each_answer_has_the_next_number_and_is_one_printable_line() {
        let (_directory, path, mut file) = made(0o600);
        let reader = StateReader::open(&path).unwrap();
        assert_eq!(reader.read(), None);
        for (number, stage, text, read) in [
            (0, Stage::Awaited, "the MFA code of a long device", None),
            (1, Stage::Asking, "", None),
            (
                2,
                Stage::Refused,
                "a\n9 accepted \u{202e}b",
                Some("a\\n9 accepted \\u{202e}b"),
            ),
            (3, Stage::Accepted, "open", None),
        ] {
            file.tell(stage, text);
            let text = read.unwrap_or(text).to_owned();
            let expected = State {
                number,
                stage,
                text,
            };
            assert_eq!(reader.read(), Some(expected));
        }
    }

    #[test]
    fn a_long_text_is_truncated_and_other_files_are_ignored() {
        let (_directory, path, mut file) = made(0o600);
        file.tell(Stage::Refused, &"ü".repeat(LINE_BYTES));
        let reader = StateReader::open(&path).unwrap();
        assert!(reader.read().unwrap().text.starts_with('ü'));
        for text in ["", "1 refused no end", "x refused a\n", "1 gone a\n", "\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn programs_do_not_inherit_it_and_it_is_removed() {
        let (directory, path, file) = made(0o600);
        let flags = fcntl(&file.file, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
        let descriptor = File::open(directory.path()).unwrap().into();
        remove(&path, &descriptor);
        assert!(!file_beside(&path).exists());
        remove(&path, &descriptor);
    }

    #[test]
    fn a_writer_follows_no_link_and_waits_for_no_fifo() {
        let (_directory, path, _file) = made(0o600);
        let name = file_beside(&path);
        let elsewhere = path.with_file_name("elsewhere");
        fs::rename(&name, &elsewhere).unwrap();
        symlink(&elsewhere, &name).unwrap();
        assert!(StateReader::open(&path).is_err());
        fs::remove_file(&name).unwrap();
        mkfifo(&name, Mode::S_IRWXU).unwrap();
        assert!(StateReader::open(&path).is_err());
    }

    #[test]
    fn it_is_readable_for_everybody_who_may_write_to_the_fifo() {
        for (fifo, expected) in [(0o600, 0o600), (0o620, 0o640), (0o622, 0o644)] {
            let (_directory, path, _file) = made(fifo);
            let mode = file_beside(&path).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, expected);
        }
    }
}
