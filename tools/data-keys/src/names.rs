//! Names of key files that are wrong, and directories without any.

use key_files::{
    key_directory::{KeyDirectory, Listing},
    key_name::{Algorithm, KeyName},
};
use tracing::warn;

use crate::{DataKeysError, Outcome};

/// Reports malformed names, and versions that exist twice.
pub(crate) fn check(directory: &KeyDirectory, listing: &Listing) -> Outcome {
    let mut outcome = Outcome::Good;
    for key in &listing.keys {
        // Report each pair only once.
        if key.algorithm == Algorithm::AesCbc
            && let Err(conflict) = directory.check_conflict(&listing.keys, key)
        {
            outcome = Outcome::Bad;
            warn!("{conflict}");
        }
    }
    for name in &listing.malformed {
        outcome = Outcome::Bad;
        warn!(
            "'{}' has a name like a key file's, but no key and version: the server does not use it; move it away",
            directory.path().join(name).display()
        );
    }
    outcome
}

/// Fails if there is no key file: it is probably not the directory that is meant, and "0 failed" would hide that.
pub(crate) fn expect_any(directory: &KeyDirectory, keys: &[KeyName]) -> Result<(), DataKeysError> {
    match keys.is_empty() {
        false => Ok(()),
        true => Err(DataKeysError::NoKeyFiles(directory.path().to_owned())),
    }
}
