//! Keys of a file in place of key files and KMS: `aws_key_management_offline_keys`.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use key_store::key_name::Algorithm;
use offline_keys::file::{self, OfflineFileError};
use offline_keys::password::{Password, PasswordError};

use crate::key_error::KeyError;
use crate::key_manager::{KeyManager, SYSTEM_IDS};
use crate::server_log;

/// What is in front of a path, as in `file_key_management_filekey`.
const FILE_PREFIX: &[u8] = b"FILE:";

/// Why the offline keys cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The password itself would be shown to everybody by SHOW VARIABLES. So it is not told here.
    #[error(
        "aws_key_management_offline_filekey must be FILE: and the path of the file with the password, because SHOW VARIABLES and backups would show the password itself"
    )]
    NoPath,
    /// The password.
    #[error("aws_key_management_offline_filekey: {0}")]
    Password(#[from] PasswordError),
    /// There is no password, and the file needs one.
    #[error("aws_key_management_offline_keys: '{}' is encrypted; set aws_key_management_offline_filekey to FILE: and the path of the file with its password", .0.display())]
    NoPassword(PathBuf),
    /// The file with the keys.
    #[error("aws_key_management_offline_keys: {0}")]
    File(OfflineFileError),
    /// No memory.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Puts all keys of the file into memory, and says so.
///
/// Those of which the file does not tell how they encrypt do it as `encryption_algorithm` says.
pub fn load(manager: &KeyManager, path: &Path) -> Result<(), OfflineError> {
    let password = password(&manager.settings.offline_filekey)?;
    let unnamed = manager.algorithm_of_new_keys();
    let keys = file::read(path, password.as_ref(), unnamed).map_err(|error| match error {
        OfflineFileError::NoPassword { path } => OfflineError::NoPassword(path),
        error => OfflineError::File(error),
    })?;
    if keys.readable_by_others {
        server_log::warning(&format!(
            "every user of this host can read '{}', which has the data keys; make it readable by the user of the server alone (chmod 600)",
            path.display()
        ));
    }
    for offline in &keys.keys {
        manager.check(path, &offline.name, &offline.key)?;
        manager.publish(&offline.name, &offline.key)?;
    }
    for offline in &keys.keys {
        let name = offline.name;
        if SYSTEM_IDS.contains(&name.id)
            && name.algorithm == Algorithm::AesCtr
            && manager.keyring.latest_version(name.id) == Some(name.version)
        {
            server_log::warning(&format!(
                "new data of key {} is encrypted with AES_CTR, which is not safe for redo log, temporary tables and Aria, because MariaDB uses an IV more than once there; offline keys cannot change that",
                name.id
            ));
        }
    }
    server_log::note(&format!(
        "serving {} keys, {} versions, of '{}'{} (aws_key_management_offline_keys): neither broker nor KMS is asked, and no keys or versions are made",
        manager.keyring.id_count(),
        manager.keyring.version_count(),
        path.display(),
        if keys.encrypted {
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
