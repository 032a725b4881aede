//! Steps of making a key at which a test build ends the whole process, as a power failure would end
//! the server.
//!
//! For tests only: the feature `fault-points` is off by default, and without it nothing of this is
//! compiled in. With it, `AWS_KEY_MANAGEMENT_KILL_AT=STEP:N` ends the process at the N-th occurrence of
//! a [`Step`] of a key file, `Manifest` in front of the step means the manifest's.

use std::fs::File;
use std::io::{self, Write};

use crate::file_error::FileKind;

/// A step of making a key that has just been done.
#[cfg_attr(feature = "fault-points", derive(Debug))]
#[derive(Clone, Copy)]
pub enum Step {
    /// KMS has answered with a wrapped key.
    Generated,
    /// The wrapped key has proved to open.
    Unwrapped,
    /// The directory is locked and the version chosen.
    VersionChosen,
    /// The temporary file is there, without content.
    TemporaryMade,
    /// The temporary file has half of its content.
    HalfWritten,
    /// The temporary file has its content.
    Written,
    /// The content is on disk.
    FileSynced,
    /// The file has its name.
    Named,
    /// The name is on disk.
    DirectorySynced,
    /// The key is in memory, and the server may ask for it.
    Published,
}

/// Ends the process if it is to end at this step of making a key file.
#[inline(always)]
pub fn reach(step: Step) {
    reach_of(FileKind::Key, step);
}

/// Ends the process if it is to end at this step of making a file.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn reach_of(_kind: FileKind, _step: Step) {}

/// Writes all of `content`.
#[cfg(not(feature = "fault-points"))]
pub(crate) fn write_all(_kind: FileKind, file: &mut File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)
}

/// Ends the process if it is to end at this step of making a file.
#[cfg(feature = "fault-points")]
pub(crate) fn reach_of(kind: FileKind, step: Step) {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    static OCCURRENCES: AtomicUsize = AtomicUsize::new(0);

    let Ok(end) = std::env::var("AWS_KEY_MANAGEMENT_KILL_AT") else {
        return;
    };
    let Some((name, number)) = end.split_once(':') else {
        return;
    };
    let prefix = match kind {
        FileKind::Key => "",
        FileKind::Manifest => "Manifest",
    };
    if name != format!("{prefix}{step:?}") {
        return;
    }
    let occurrence = OCCURRENCES.fetch_add(1, Ordering::SeqCst) + 1;
    if number.parse() == Ok(occurrence) {
        // SIGKILL: no handler, no clean-up, no core.
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }
}

/// Writes all of `content`, with [`Step::HalfWritten`] in the middle.
#[cfg(feature = "fault-points")]
pub(crate) fn write_all(kind: FileKind, file: &mut File, content: &[u8]) -> io::Result<()> {
    let (first, second) = content.split_at(content.len() / 2);
    file.write_all(first)?;
    reach_of(kind, Step::HalfWritten);
    file.write_all(second)
}
