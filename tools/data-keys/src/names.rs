//! Names of key files that are wrong, and directories without any.

use key_files::{
    key_directory::{KeyDirectory, Listing},
    key_name::{Algorithm, KeyName},
};
use tracing::warn;

use crate::{DataKeysError, Outcome};

/// Names of key files that are wrong.
#[derive(Debug, Default)]
pub(crate) struct WrongNames {
    /// What is wrong with each pair of files that are the same version of the same key.
    pub conflicts: Vec<String>,
    /// Names that are like a key file's and have no key and version.
    pub malformed: Vec<String>,
}

impl WrongNames {
    pub fn outcome(&self) -> Outcome {
        Outcome::Good.unless_failed(self.conflicts.len() + self.malformed.len())
    }
}

/// Reports malformed names, and versions that exist twice.
pub(crate) fn check(directory: &KeyDirectory, listing: &Listing) -> Outcome {
    find(directory, listing).outcome()
}

/// The same, and returns them.
pub(crate) fn find(directory: &KeyDirectory, listing: &Listing) -> WrongNames {
    let mut wrong = WrongNames::default();
    for key in &listing.keys {
        // Report each pair only once.
        if key.algorithm == Algorithm::AesCbc
            && let Err(conflict) = directory.check_conflict(&listing.keys, key)
        {
            warn!("{conflict}");
            wrong.conflicts.push(conflict.to_string());
        }
    }
    for name in &listing.malformed {
        warn!(
            "'{}' has a name like a key file's, but no key and version: the server does not use it; move it away",
            directory.path().join(name).display()
        );
        wrong.malformed.push(name.clone());
    }
    wrong
}

/// Fails if there is no key file: it is probably not the directory that is meant, and "0 failed" would hide that.
pub(crate) fn expect_any(directory: &KeyDirectory, keys: &[KeyName]) -> Result<(), DataKeysError> {
    match keys.is_empty() {
        false => Ok(()),
        true => Err(DataKeysError::NoKeyFiles(directory.path().to_owned())),
    }
}
