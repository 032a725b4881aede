//! Reads small files that others write, without ever blocking.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use nix::fcntl::OFlag;
use zeroize::{Zeroize, Zeroizing};

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputFileError {
    /// It cannot be opened or read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A FIFO, a device or a directory.
    #[error("it is {0}, not a regular file")]
    Kind(&'static str),
    /// It is too long.
    #[error("it is longer than {0} bytes")]
    Length(usize),
    /// It is not text.
    #[error("it is not UTF-8 text")]
    NotText,
}

impl InputFileError {
    /// Whether the file does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == std::io::ErrorKind::NotFound)
    }
}

/// Reads a regular file of at most `limit_bytes`. The contents are wiped when dropped.
///
/// `/dev/null`, which people use to disable a file, counts as an empty file.
pub fn read(path: &Path, limit_bytes: usize) -> Result<Zeroizing<Vec<u8>>, InputFileError> {
    // Opening a FIFO that nobody writes to must not block.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)?;
    if path == Path::new("/dev/null") {
        return Ok(Zeroizing::default());
    }
    check_kind(&file)?;
    let length_bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    // A file that grows, or one of /proc, is longer than its length.
    for room in [length_bytes.min(limit_bytes), limit_bytes] {
        // Full size from the start: a buffer that grows leaves copies of secrets in memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(room + 1));
        let most = u64::try_from(room + 1).unwrap_or(u64::MAX);
        (&file).take(most).read_to_end(&mut bytes)?;
        if bytes.len() <= room {
            return Ok(bytes);
        }
        (&file).rewind()?;
    }
    Err(InputFileError::Length(limit_bytes))
}

/// Reads UTF-8 text, without the byte order mark that Windows editors add.
pub fn read_text(path: &Path, limit_bytes: usize) -> Result<Zeroizing<String>, InputFileError> {
    let mut bytes = read(path, limit_bytes)?;
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(..3);
    }
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            error.into_bytes().zeroize();
            Err(InputFileError::NotText)
        }
    }
}

fn check_kind(file: &File) -> Result<(), InputFileError> {
    let kind = file.metadata()?.file_type();
    let name = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(InputFileError::Kind(name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn refusal(path: &Path) -> String {
        read_text(path, 10).unwrap_err().to_string()
    }

    #[test]
    fn fifos_devices_and_directories_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert_eq!(refusal(&fifo), "it is a FIFO, not a regular file");
        assert_eq!(
            refusal(Path::new("/dev/zero")),
            "it is a device, not a regular file"
        );
        assert_eq!(
            refusal(directory.path()),
            "it is a directory, not a regular file"
        );
    }

    #[test]
    fn text_is_read_up_to_the_limit_and_without_its_byte_order_mark() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "\u{feff}[a]").unwrap();
        assert_eq!(read_text(&path, 10).unwrap().as_str(), "[a]");
        fs::write(&path, "0123456789a").unwrap();
        assert_eq!(refusal(&path), "it is longer than 10 bytes");
        fs::write(&path, b"\xff\xfe[\0").unwrap();
        assert_eq!(refusal(&path), "it is not UTF-8 text");
        assert!(
            read(&directory.path().join("none"), 1)
                .unwrap_err()
                .is_absent()
        );
        assert!(read_text(Path::new("/dev/null"), 10).unwrap().is_empty());
        // Its length is 0.
        let of_kernel = read_text(Path::new("/proc/self/status"), 1 << 20).unwrap();
        assert!(of_kernel.starts_with("Name:"), "{of_kernel:?}");
    }
}
