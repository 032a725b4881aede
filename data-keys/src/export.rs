//! `export`: all data keys in one encrypted file, from which a server restores without AWS.

use std::{
    fs,
    path::{self, Path, PathBuf},
};

use clap::{Args, ValueEnum};
use key_store::{
    key_directory::KeyDirectory,
    key_name::{Algorithm, KeyName},
};
use offline_keys::{
    derivation::{Derivation, MAX_ITERATIONS},
    file,
    text::{OfflineKey, PLAIN_VERSION},
};

use crate::{
    DataKeysError, Outcome, data_keys,
    each::each,
    list,
    password::PasswordArguments,
    print, runtime,
    unwrapping::{Unwrapped, UnwrapperArguments},
};

/// As many as the plugin looks for.
const ITERATIONS: u32 = MAX_ITERATIONS;
/// The key of InnoDB's log, without which file_key_management does not load.
const SYSTEM_KEY_ID: u32 = 1;

/// Write all data keys into one encrypted file, for a host without AWS
#[derive(Debug, Args)]
#[command(after_help = "\
aws_key_management_offline_keys reads it, and file_key_management the keys of
which there is version 1 alone. The password of pbkdf2 is slow to guess, that
format for offline keys and MariaDB 12.0 and later; sha1 is for every MariaDB,
and wants a long random password.
Whoever has file and password has the data keys: no KMS is asked any more.")]
pub(crate) struct Arguments {
    /// The file to make; one that is there is left alone
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    #[command(flatten)]
    password: PasswordArguments,

    /// pbkdf2 or sha1
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = Format::Pbkdf2)]
    format: Format,

    /// Leave this key file out; may be given several times
    #[arg(long, value_name = "NAME")]
    leave_out: Vec<String>,

    #[command(flatten)]
    unwrapper: UnwrapperArguments,

    /// The data directory, or aws_key_management_keyfile_dir where that is set
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Slow to guess; for offline keys, and file_key_management of MariaDB 12.0 and later
    Pbkdf2,
    /// For file_key_management of every MariaDB; wants a long random password
    Sha1,
}

/// Unwraps all and writes them; if one fails, nothing.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = KeyDirectory::open(&arguments.directory)?;
    let names = names(&directory, &arguments.leave_out)?;
    if fs::symlink_metadata(&arguments.output).is_ok() {
        let path = arguments.output.display();
        return Err(DataKeysError::NotExported(format!(
            "'{path}' exists; name another file, or remove it"
        )));
    }
    let password = arguments.password.get_new()?;
    let runtime = runtime()?;
    let unwrapper = arguments.unwrapper.open(&runtime)?;
    let mut keys = Vec::with_capacity(names.len());
    let work = async |name: &KeyName| unwrapper.unwrap(&directory, name).await;
    let keep = |name: &KeyName, unwrapped: Unwrapped| {
        keys.push(OfflineKey {
            name: *name,
            key: unwrapped.key,
        });
    };
    let failed = runtime.block_on(each(&names, work, keep));
    if failed > 0 {
        return Err(DataKeysError::NotExported(format!(
            "{} could not be had; put it right, or name each with --leave-out",
            data_keys(failed)
        )));
    }
    file::create(
        &arguments.output,
        &keys,
        &password,
        arguments.format.derivation(),
    )?;
    print(&summary(arguments, &keys))?;
    Ok(Outcome::Good)
}

/// The keys to export: all but those that are to be left out.
fn names(directory: &KeyDirectory, leave_out: &[String]) -> Result<Vec<KeyName>, DataKeysError> {
    let mut listing = directory.list()?;
    for name in leave_out {
        let before = listing.keys.len();
        listing.keys.retain(|key| key.to_string() != *name);
        listing.malformed.retain(|malformed| malformed != name);
        if listing.keys.len() == before {
            let path = directory.path().display();
            return Err(DataKeysError::NotExported(format!(
                "there is no key file '{name}' in '{path}' to leave out"
            )));
        }
    }
    if list::check_names(directory, &listing) == Outcome::Bad {
        return Err(DataKeysError::NotExported(
            "the key files above are not clear".into(),
        ));
    }
    if listing.keys.is_empty() {
        let path = directory.path().display();
        return Err(DataKeysError::NotExported(format!(
            "there is no key file in '{path}'; name the data directory, or aws_key_management_keyfile_dir"
        )));
    }
    Ok(listing.keys)
}

/// What to set on the other host.
fn summary(arguments: &Arguments, keys: &[OfflineKey]) -> String {
    let path = full(&arguments.output);
    let filekey = arguments
        .password
        .file()
        .map_or("/path/of/its/password".into(), full);
    let (how, settings) = match arguments.format {
        Format::Pbkdf2 => (
            format!("PBKDF2 with SHA-256, {ITERATIONS} iterations"),
            format!(
                " of MariaDB 12.0 and later, with digest = sha256 and use_pbkdf2 = {ITERATIONS}"
            ),
        ),
        Format::Sha1 => ("SHA-1".into(), String::new()),
    };
    let mut text = format!(
        "{} exported to '{path}', encrypted with AES-256-CBC, {how}\n",
        data_keys(keys.len())
    );
    if !arguments.leave_out.is_empty() {
        text += &format!(
            "Not in it: {}; what they encrypted cannot be read with it\n",
            arguments.leave_out.join(", ")
        );
    }
    text += &format!(
        "For the plugin: aws_key_management_offline_keys = {path}, aws_key_management_offline_filekey = FILE:{filekey}\n"
    );
    text += &match obstacle(keys) {
        None => format!("For file_key_management{settings}: as its filename and filekey\n"),
        Some(why) => format!("Not for file_key_management: {why}\n"),
    };
    text
}

/// The server has a working directory of its own.
fn full(path: &Path) -> String {
    let path = path::absolute(path).unwrap_or_else(|_| path.into());
    path.display().to_string()
}

/// Why file_key_management cannot serve what these keys encrypted.
fn obstacle(keys: &[OfflineKey]) -> Option<String> {
    if let Some(key) = keys.iter().find(|key| key.name.version != PLAIN_VERSION) {
        return Some(format!(
            "it has version 1 of each key alone, and key {} has version {}",
            key.name.id, key.name.version
        ));
    }
    if !keys.iter().any(|key| key.name.id == SYSTEM_KEY_ID) {
        return Some(format!("it wants a key {SYSTEM_KEY_ID}"));
    }
    let with = |algorithm| keys.iter().any(|key| key.name.algorithm == algorithm);
    (with(Algorithm::AesCbc) && with(Algorithm::AesCtr))
        .then(|| "it has one algorithm for all keys, and these are of AES_CBC and AES_CTR".into())
}

impl Format {
    fn derivation(self) -> Derivation {
        match self {
            Self::Pbkdf2 => Derivation::Pbkdf2 {
                iterations: ITERATIONS,
            },
            Self::Sha1 => Derivation::Sha1,
        }
    }
}
