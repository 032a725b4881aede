//! Reads and creates key files.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use key_files::key_name::Algorithm;
use zeroize::Zeroizing;

use crate::derivation::{Derivation, SALT_BYTES};
use crate::envelope::{self, Envelope, EnvelopeError};
use crate::password::Password;
use crate::regular_file;
use crate::text::{self, Form, OfflineKey, SyntaxError};

/// Size of the largest key file in bytes, as in file_key_management.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;
const OWNER_ONLY: u32 = 0o600;
const READABLE_BY_OTHERS: u32 = 0o004;

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on the disk",
        _ => "check the path and its permissions",
    }
}

/// Why a key file cannot be read or created. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum OfflineFileError {
    /// A system call failed.
    #[error("cannot {action} the key file '{}': {source}; {}", path.display(), advice(source))]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is longer than [`MAX_FILE_BYTES`].
    #[error("the key file '{}' is longer than {MAX_FILE_BYTES} bytes, more than file_key_management reads; check the path", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The keys do not fit into a file of [`MAX_FILE_BYTES`].
    #[error("the key file '{}' would be longer than {MAX_FILE_BYTES} bytes, more than file_key_management reads; export fewer keys (--leave-out)", path.display())]
    TooManyKeys {
        /// The file.
        path: PathBuf,
    },
    /// The file is encrypted, and no password was given.
    #[error("the key file '{}' is encrypted; specify the file with its password", path.display())]
    NoPassword {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be decrypted or encrypted, whatever the password.
    #[error("the key file '{}' {source}", path.display())]
    Envelope {
        /// The file.
        path: PathBuf,
        /// Why.
        source: EnvelopeError,
    },
    /// The file does not decrypt to a list of keys.
    #[error(
        "cannot decrypt the key file '{}': the password is wrong, the key is derived with another digest or number of iterations, the file is damaged, or it has no key in it{}",
        path.display(),
        password_hint(*several_lines)
    )]
    WrongPassword {
        /// The file.
        path: PathBuf,
        /// Whether the password has several lines.
        several_lines: bool,
    },
    /// The file is not a list of keys.
    #[error("the key file '{}' cannot be used: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Which line, and why.
        source: SyntaxError,
    },
    /// The file lists no key.
    #[error("the key file '{}' contains no key; check the path", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
}

/// Returns a hint about a wrong password, to be added to a message.
pub fn password_hint(several_lines: bool) -> &'static str {
    if several_lines {
        ". The password has several lines: openssl uses only the first, MariaDB all of them"
    } else {
        ""
    }
}

/// The content of a key file, still encrypted if the file is.
pub struct KeyFile {
    path: PathBuf,
    content: Zeroizing<Vec<u8>>,
    /// Whether every user of the host may read the file.
    pub readable_by_others: bool,
}

impl KeyFile {
    /// Reads a file of at most [`MAX_FILE_BYTES`].
    pub fn read(path: &Path) -> Result<Self, OfflineFileError> {
        let failed = |source| OfflineFileError::File {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let file = regular_file::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        let content = regular_file::read(file, MAX_FILE_BYTES + 1).map_err(failed)?;
        if content.len() > MAX_FILE_BYTES {
            return Err(OfflineFileError::TooLong {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            content,
            readable_by_others: mode & READABLE_BY_OTHERS != 0,
        })
    }

    /// Whether the file needs a password.
    pub fn is_encrypted(&self) -> bool {
        envelope::is_encrypted(&self.content)
    }

    /// Returns the keys of the file, at least one, in the order of their names. An encrypted file needs `password`,
    /// which is tried with each of `derivations` until one works. `unnamed` is the algorithm of keys whose lines
    /// name none.
    pub fn keys(
        &self,
        password: Option<&Password>,
        derivations: impl IntoIterator<Item = Derivation>,
        unnamed: Algorithm,
    ) -> Result<Vec<OfflineKey>, OfflineFileError> {
        if self.is_encrypted() {
            self.parse(&self.decrypt(password, derivations)?, unnamed)
        } else {
            self.parse(&self.content, unnamed)
        }
    }

    fn decrypt(
        &self,
        password: Option<&Password>,
        derivations: impl IntoIterator<Item = Derivation>,
    ) -> Result<Zeroizing<Vec<u8>>, OfflineFileError> {
        let path = || self.path.clone();
        let password = password.ok_or_else(|| OfflineFileError::NoPassword { path: path() })?;
        let envelope =
            Envelope::parse(&self.content).map_err(|source| OfflineFileError::Envelope {
                path: path(),
                source,
            })?;
        derivations
            .into_iter()
            .find_map(|derivation| envelope.open(password, derivation))
            .ok_or_else(|| OfflineFileError::WrongPassword {
                path: path(),
                several_lines: password.has_several_lines(),
            })
    }

    fn parse(&self, text: &[u8], unnamed: Algorithm) -> Result<Vec<OfflineKey>, OfflineFileError> {
        let keys = text::parse(text, unnamed).map_err(|source| OfflineFileError::Syntax {
            path: self.path.clone(),
            source,
        })?;
        if keys.is_empty() {
            return Err(OfflineFileError::NoKey {
                path: self.path.clone(),
            });
        }
        Ok(keys)
    }
}

/// Creates an encrypted key file with mode 0600, and returns once it would survive a power failure. Does not
/// overwrite an existing file.
pub fn create(
    path: &Path,
    keys: &[OfflineKey],
    form: Form,
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
    let content = envelope::seal(&text::format(keys, form), password, &salt, derivation).map_err(
        |source| OfflineFileError::Envelope {
            path: path.to_owned(),
            source,
        },
    )?;
    if content.len() > MAX_FILE_BYTES {
        return Err(OfflineFileError::TooManyKeys {
            path: path.to_owned(),
        });
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(OWNER_ONLY)
        .open(path)
        .map_err(|source| failed("create", source))?;
    let written = file
        // A umask such as 0277 may have removed permissions.
        .set_permissions(Permissions::from_mode(OWNER_ONLY))
        .and_then(|()| file.write_all(&content))
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_directory_of(path));
    written.map_err(|source| {
        // A partial file would look complete. The first failure is the one to report.
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

    use key_files::PlaintextKey;
    use key_files::key_name::KeyName;

    use super::*;
    use crate::derivation::Digest;

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
        keys(file.path(), None).unwrap_err().to_string()
    }

    const DERIVATION: Derivation = Derivation {
        digest: Digest::Sha256,
        pbkdf2_iterations: 100,
    };

    fn keys(path: &Path, password: Option<&Password>) -> Result<Vec<OfflineKey>, OfflineFileError> {
        KeyFile::read(path)?.keys(password, [DERIVATION], Algorithm::AesCbc)
    }

    #[test]
    fn a_created_file_is_read_back_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.enc");
        let made = [
            key(1, 1, Algorithm::AesCbc),
            key(1, 2, Algorithm::AesCtr),
            key(7, 1, Algorithm::AesCtr),
        ];
        let form = Form::Community;
        create(&path, &made, form, &password("one"), DERIVATION).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let read = KeyFile::read(&path).unwrap();
        assert!(read.is_encrypted() && !read.readable_by_others);
        assert_eq!(keys(&path, Some(&password("one"))).unwrap(), made);

        let before = fs::read(&path).unwrap();
        let again = create(&path, &made, form, &password("two"), DERIVATION);
        assert!(again.unwrap_err().to_string().contains("File exists"));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn the_first_derivation_that_works_is_used_and_a_password_of_several_lines_is_mentioned() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.enc");
        let made = [key(1, 1, Algorithm::AesCbc)];
        let several_lines = password("one\ntwo");
        create(&path, &made, Form::Community, &several_lines, DERIVATION).unwrap();
        let file = KeyFile::read(&path).unwrap();
        let with = |pbkdf2_iterations| Derivation {
            pbkdf2_iterations,
            ..DERIVATION
        };
        let mut tried = Vec::new();
        let derivations = [0, 99, 100, 101]
            .map(with)
            .into_iter()
            .inspect(|derivation| tried.push(derivation.pbkdf2_iterations));
        let unnamed = Algorithm::AesCbc;
        let keys = file.keys(Some(&several_lines), derivations, unnamed);
        assert_eq!(keys.unwrap(), made);
        assert_eq!(tried, [0, 99, 100]);

        for (password, hint) in [(several_lines, true), (password("one"), false)] {
            let error = file.keys(Some(&password), [with(99)], unnamed).unwrap_err();
            assert_eq!(error.to_string().contains("several lines"), hint, "{error}");
        }
    }

    #[test]
    fn anything_but_a_key_file_is_refused_with_the_reason() {
        assert!(error(b"").contains("contains no key"));
        assert!(error(b"# only a comment\n").contains("contains no key"));
        assert!(error(b"\0\xff").contains("line 1"));
        assert!(error(b"Salted__1234567").contains("is encrypted"));
        assert!(error(&vec![b'\n'; MAX_FILE_BYTES + 1]).contains("is longer than 1048576 bytes"));
        let directory = tempfile::tempdir().unwrap();
        let failed = keys(directory.path(), None).unwrap_err();
        assert!(failed.to_string().contains("not a regular file"));
    }
}
