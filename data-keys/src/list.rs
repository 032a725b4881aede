//! `list`: which data keys there are.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::Args;
use key_files::{
    key_directory::KeyDirectory,
    key_name::{Algorithm, KeyName},
};
use tracing::warn;

use crate::{DataKeysError, Outcome, print, table};

/// List the data keys: id, version, algorithm, file and age
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The data directory, or aws_key_management_keyfile_dir where that is set
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Prints the table, and tells of each file that is none or too many.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = KeyDirectory::open(&arguments.directory)?;
    let listing = directory.list()?;
    let now = SystemTime::now();
    let mut rows = Vec::new();
    for key in &listing.keys {
        let written = directory.modified(key)?;
        rows.push([
            key.id.to_string(),
            key.version.to_string(),
            algorithm(key).to_owned(),
            key.to_string(),
            age(now.duration_since(written).unwrap_or_default()),
        ]);
    }
    print(&table::layout(
        ["ID", "VERSION", "ALGORITHM", "FILE", "AGE"],
        &rows,
    ))?;
    let mut outcome = Outcome::Good;
    for key in &listing.keys {
        // Either of the two would be told of the other.
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
            "'{}' has a name like a key file's, but no key and version: the server does not use it",
            directory.path().join(name).display()
        );
    }
    Ok(outcome)
}

/// The server's word for it (aws_key_management_encryption_algorithm).
fn algorithm(key: &KeyName) -> &'static str {
    match key.algorithm {
        Algorithm::AesCbc => "AES_CBC",
        Algorithm::AesCtr => "AES_CTR",
    }
}

/// In the largest unit of which there is a whole one.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}
