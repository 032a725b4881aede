//! The password of an encrypted key file.

use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::regular_file;

/// Length of the longest password in bytes, as in file_key_management.
pub const MAX_PASSWORD_BYTES: usize = 256;

/// A password: 1 to [`MAX_PASSWORD_BYTES`] bytes. Wiped when dropped, never printed.
pub struct Password(Zeroizing<Vec<u8>>);

impl PartialEq for Password {
    /// Compares two passwords that somebody has typed.
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The file cannot be read.
    #[error("cannot read the password file '{}': {source}; check the path and its permissions", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has no password that can be used.
    #[error("the password file '{}': {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<Self>,
    },
    /// The password is empty.
    #[error("the password is empty")]
    Empty,
    /// The password is longer than [`MAX_PASSWORD_BYTES`].
    #[error(
        "the password is longer than {MAX_PASSWORD_BYTES} bytes, which file_key_management does not read"
    )]
    TooLong,
    /// The server would use only the part before the NUL byte.
    #[error("the password contains a NUL byte, at which file_key_management stops reading")]
    Nul,
}

impl Password {
    /// Uses the bytes unchanged.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Self, PasswordError> {
        match bytes.len() {
            0 => Err(PasswordError::Empty),
            1..=MAX_PASSWORD_BYTES if bytes.contains(&0) => Err(PasswordError::Nul),
            1..=MAX_PASSWORD_BYTES => Ok(Self(bytes)),
            _ => Err(PasswordError::TooLong),
        }
    }

    /// Reads a password file. Line breaks at its end are ignored, as in file_key_management.
    pub fn read(path: &Path) -> Result<Self, PasswordError> {
        const LINE_ENDS: usize = 2;
        let failed = |source| PasswordError::File {
            path: path.to_owned(),
            source,
        };
        let file = regular_file::open(path).map_err(failed)?;
        // One more, which tells that it is too long.
        let most_bytes = MAX_PASSWORD_BYTES + LINE_ENDS + 1;
        let mut bytes = regular_file::read(file, most_bytes).map_err(failed)?;
        while matches!(bytes.last(), Some(b'\r' | b'\n')) {
            bytes.pop();
        }
        Self::new(bytes).map_err(|source| PasswordError::InFile {
            path: path.to_owned(),
            source: source.into(),
        })
    }

    /// Returns whether the password spans several lines. Of such a file, openssl uses the first line and
    /// file_key_management uses everything.
    pub fn has_several_lines(&self) -> bool {
        self.0.contains(&b'\n')
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<Vec<u8>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        Password::read(file.path())
            .map(|password| password.expose().to_vec())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn line_breaks_at_the_end_are_ignored() {
        for content in ["se cret", "se cret\n", "se cret\r\n", "se cret\n\n"] {
            assert_eq!(read(content.as_bytes()).unwrap(), b"se cret");
        }
        let longest = [&[b'x'; MAX_PASSWORD_BYTES][..], b"\r\n"].concat();
        assert_eq!(read(&longest).unwrap().len(), MAX_PASSWORD_BYTES);
    }

    #[test]
    fn a_password_of_several_lines_is_recognised() {
        for (content, several) in [("one\n", false), ("one\r\n\n", false), ("one\ntwo\n", true)] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), content).unwrap();
            let password = Password::read(file.path()).unwrap();
            assert_eq!(password.has_several_lines(), several, "{content:?}");
        }
    }

    #[test]
    fn a_password_that_the_server_would_not_accept_is_refused() {
        assert!(read(b"\n").unwrap_err().contains("empty"));
        assert!(read(b"a\0b").unwrap_err().contains("NUL"));
        assert!(read(&[b'x'; 257]).unwrap_err().contains("longer than 256"));
        assert!(read(&[b'x'; 100_000]).unwrap_err().contains("longer"));
    }
}
