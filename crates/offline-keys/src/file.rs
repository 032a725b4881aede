//! Reading and making key files.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use key_store::key_name::Algorithm;
use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use crate::derivation::{Derivation, MAX_ITERATIONS, SALT_BYTES};
use crate::envelope::{self, EnvelopeError};
use crate::password::Password;
use crate::text::{self, OfflineKey, SyntaxError};

/// Longest key file in bytes, as file_key_management has it.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;
const OWNER_ONLY: u32 = 0o600;
const READABLE_BY_OTHERS: u32 = 0o004;

/// Why a key file cannot be read or made. Each message names the file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum OfflineFileError {
    /// A system call.
    #[error("cannot {action} the key file '{}': {source}; check the path and its permissions", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// More than [`MAX_FILE_BYTES`].
    #[error("the key file '{}' is longer than {MAX_FILE_BYTES} bytes, which file_key_management does not read; check the path", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Encrypted, and no password was given.
    #[error("the key file '{}' is encrypted; name the file with its password", path.display())]
    NoPassword {
        /// The file.
        path: PathBuf,
    },
    /// It does not decrypt.
    #[error("the key file '{}' {source}", path.display())]
    Envelope {
        /// The file.
        path: PathBuf,
        /// Why.
        source: EnvelopeError,
    },
    /// It is no list of keys.
    #[error("the key file '{}' cannot be used: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Which line, and why.
        source: SyntaxError,
    },
    /// It lists nothing.
    #[error("the key file '{}' has no key in it; check the path", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
}

/// A key file that was read.
pub struct KeyFile {
    /// At least one key, in the order of their names.
    pub keys: Vec<OfflineKey>,
    /// Whether it is under a password.
    pub encrypted: bool,
    /// Whether every user of the host may read it.
    pub readable_by_others: bool,
}

/// Reads a key file; the password is used if it is encrypted. `unnamed` is how the keys encrypt of
/// which the file does not say it.
pub fn read(
    path: &Path,
    password: Option<&Password>,
    unnamed: Algorithm,
) -> Result<KeyFile, OfflineFileError> {
    let to_path = || path.to_owned();
    let failed = |source| OfflineFileError::File {
        action: "read",
        path: to_path(),
        source,
    };
    let file = open_regular(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    let content = read_bounded(file)
        .map_err(failed)?
        .ok_or_else(|| OfflineFileError::TooLong { path: to_path() })?;
    let encrypted = envelope::is_encrypted(&content);
    let text = match (encrypted, password) {
        (false, _) => content,
        (true, None) => return Err(OfflineFileError::NoPassword { path: to_path() }),
        (true, Some(password)) => {
            envelope::open(&content, password, MAX_ITERATIONS).map_err(|source| {
                OfflineFileError::Envelope {
                    path: to_path(),
                    source,
                }
            })?
        }
    };
    let keys = text::parse(&text, unnamed).map_err(|source| OfflineFileError::Syntax {
        path: to_path(),
        source,
    })?;
    if keys.is_empty() {
        return Err(OfflineFileError::NoKey { path: to_path() });
    }
    Ok(KeyFile {
        keys,
        encrypted,
        readable_by_others: mode & READABLE_BY_OTHERS != 0,
    })
}

/// Opens a file that is one: a FIFO would stop the server, a device would never end.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

fn read_bounded(file: File) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    // As long as it may get, so that it never leaves a copy behind by growing.
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES + 1));
    let limit = content.capacity() as u64;
    file.take(limit).read_to_end(&mut content)?;
    Ok((content.len() <= MAX_FILE_BYTES).then_some(content))
}

/// Makes an encrypted key file, mode 0600, and returns when it would survive a power failure. A file
/// that exists is not overwritten.
pub fn create(
    path: &Path,
    keys: &[OfflineKey],
    password: &Password,
    derivation: Derivation,
) -> Result<(), OfflineFileError> {
    let failed = |action, source| OfflineFileError::File {
        action,
        path: path.to_owned(),
        source,
    };
    let mut salt = [0; SALT_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut salt))
        .map_err(|source| failed("get random bytes for", source))?;
    let content =
        envelope::seal(&text::format(keys), password, &salt, derivation).map_err(|source| {
            OfflineFileError::Envelope {
                path: path.to_owned(),
                source,
            }
        })?;
    if content.len() > MAX_FILE_BYTES {
        return Err(OfflineFileError::TooLong {
            path: path.to_owned(),
        });
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(OWNER_ONLY)
        .open(path)
        .map_err(|source| failed("make", source))?;
    let written = file
        // A umask of 0277 or the like takes bits away.
        .set_permissions(Permissions::from_mode(OWNER_ONLY))
        .and_then(|()| file.write_all(&content))
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_directory_of(path));
    written.map_err(|source| {
        // Half a file would look like a whole one. The first failure is the one to tell.
        let _ = std::fs::remove_file(path);
        failed("write", source)
    })
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use key_store::PlaintextKey;
    use key_store::key_name::KeyName;

    use super::*;

    fn key(id: u32, version: u32, algorithm: Algorithm) -> OfflineKey {
        OfflineKey {
            name: KeyName {
                id,
                version,
                algorithm,
            },
            key: PlaintextKey::new(&[id as u8; 32]).unwrap(),
        }
    }

    fn password(text: &str) -> Password {
        Password::new(Zeroizing::new(text.into())).unwrap()
    }

    fn error(content: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        match read(file.path(), None, Algorithm::AesCbc) {
            Ok(_) => panic!("read"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_file_that_was_made_is_read_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.enc");
        let keys = [
            key(1, 1, Algorithm::AesCbc),
            key(1, 2, Algorithm::AesCtr),
            key(7, 1, Algorithm::AesCtr),
        ];
        let derivation = Derivation::Pbkdf2 { iterations: 100 };
        create(&path, &keys, &password("one"), derivation).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let read = read(&path, Some(&password("one")), Algorithm::AesCbc).unwrap();
        assert_eq!(read.keys, keys);
        assert!(read.encrypted && !read.readable_by_others);

        let before = fs::read(&path).unwrap();
        let again = create(&path, &keys, &password("two"), derivation);
        assert!(again.unwrap_err().to_string().contains("File exists"));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn what_is_no_key_file_is_refused_with_the_reason() {
        assert!(error(b"").contains("has no key in it"));
        assert!(error(b"# only a comment\n").contains("has no key in it"));
        assert!(error(b"\0\xff").contains("line 1"));
        assert!(error(b"Salted__1234567").contains("is encrypted"));
        assert!(error(&vec![b'\n'; MAX_FILE_BYTES + 1]).contains("is longer than 1048576 bytes"));
        let directory = tempfile::tempdir().unwrap();
        let failed = read(directory.path(), None, Algorithm::AesCbc)
            .err()
            .unwrap();
        assert!(failed.to_string().contains("not a regular file"));
    }
}
