//! Keys from a file instead of key files and KMS: `aws_key_management_offline_keys`.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use key_files::key_name::Algorithm;
use offline_keys::derivation::Derivation;
use offline_keys::file::{KeyFile, OfflineFileError, password_hint};
use offline_keys::password::{Password, PasswordError};

use crate::keys::error::KeyError;
use crate::keys::manager::{KeyManager, SYSTEM_IDS};
use crate::server::log;

/// The prefix of a path, as in `file_key_management_filekey`.
const FILE_PREFIX: &[u8] = b"FILE:";

/// Why the offline keys cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The variable contains the password itself, which SHOW VARIABLES would reveal. The message does not
    /// repeat it.
    #[error(
        "aws_key_management_offline_filekey must be FILE: and the path of the file with the password, because SHOW VARIABLES and backups would reveal the password itself"
    )]
    NoPath,
    /// The password cannot be read.
    #[error("aws_key_management_offline_filekey: {0}")]
    Password(#[from] PasswordError),
    /// The file needs a password and there is none.
    #[error("aws_key_management_offline_keys: '{}' is encrypted; set aws_key_management_offline_filekey to FILE: and the path of the file with its password", .0.display())]
    NoPassword(PathBuf),
    /// Password, digest or number of iterations is wrong.
    #[error(
        "aws_key_management_offline_keys: cannot decrypt '{}' with the password of aws_key_management_offline_filekey, aws_key_management_offline_digest={} and aws_key_management_offline_use_pbkdf2={}: check all three (what kms-data-keys export writes needs sha256 and 600000, with --format=sha1 sha1 and 0; a file of kms-data-keys 0.1.0 needs sha256 and 200000, or sha1 and 0){}",
        path.display(),
        derivation.digest,
        derivation.pbkdf2_iterations,
        password_hint(*several_lines)
    )]
    WrongPassword {
        /// The key file.
        path: PathBuf,
        /// The settings that were tried.
        derivation: Derivation,
        /// Whether the password has several lines.
        several_lines: bool,
    },
    /// The key file cannot be read.
    #[error("aws_key_management_offline_keys: {0}")]
    File(OfflineFileError),
    /// A key is not the one that the manifest lists, or there is no memory.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Loads all keys of the file into memory and reports them.
///
/// `encryption_algorithm` applies to keys whose lines name no algorithm, as
/// `file_key_management_encryption_algorithm` applies to all keys. The password is tried only with the digest
/// and iterations that are set, because a search would delay the server's start.
pub fn load(manager: &KeyManager, path: &Path) -> Result<(), OfflineError> {
    let password = password(&manager.settings.offline_filekey)?;
    let unnamed = manager.dynamic.algorithm();
    let derivation = manager.settings.offline_derivation;
    let failed = |error| match error {
        OfflineFileError::NoPassword { path } => OfflineError::NoPassword(path),
        OfflineFileError::WrongPassword {
            path,
            several_lines,
        } => OfflineError::WrongPassword {
            path,
            derivation,
            several_lines,
        },
        error => OfflineError::File(error),
    };
    let file = KeyFile::read(path).map_err(failed)?;
    let keys = file.keys(password.as_ref(), [derivation], unnamed);
    let keys = keys.map_err(failed)?;
    if file.readable_by_others {
        log::warning(&format!(
            "every user of this host can read '{}', which contains the data keys; make it readable only by the server's user (chmod 600)",
            path.display()
        ));
    }
    for offline in &keys {
        manager.check(path, &offline.name, &offline.key)?;
        manager.publish(&offline.name, &offline.key)?;
    }
    for offline in &keys {
        let name = offline.name;
        if SYSTEM_IDS.contains(&name.id)
            && name.algorithm == Algorithm::AesCtr
            && manager.keyring.latest_version(name.id) == Some(name.version)
        {
            log::warning(&format!(
                "new data of key {} is encrypted with AES_CTR, which is not safe for redo log, temporary tables and Aria, because MariaDB reuses IVs there. Offline keys cannot change that",
                name.id
            ));
        }
    }
    log::note(&format!(
        "serving keys: {}, versions: {}, from '{}'{} (aws_key_management_offline_keys). Neither broker nor KMS is used, and no keys or versions are made",
        manager.keyring.id_count(),
        manager.keyring.version_count(),
        path.display(),
        if file.is_encrypted() {
            ""
        } else {
            ", which is not encrypted"
        },
    ));
    Ok(())
}

fn password(filekey: &Path) -> Result<Option<Password>, OfflineError> {
    let filekey = filekey.as_os_str().as_bytes();
    if filekey.is_empty() {
        return Ok(None);
    }
    let path = filekey
        .strip_prefix(FILE_PREFIX)
        .ok_or(OfflineError::NoPath)?;
    Ok(Some(Password::read(Path::new(OsStr::from_bytes(path)))?))
}
