//! `export`: writes all data keys into one encrypted file, with which a server can be restored without
//! AWS.
//!
//! On the day without AWS, nobody can look for a key that is not in it. So it is written only if neither the key
//! manifest nor the key store has anything against it.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    path::{self, Path, PathBuf},
};

use aws_session::key_store_location::KeyStoreLocation;
use clap::{Args, ValueEnum};
use data_files::scan::SYSTEM_KEY_ID;
use key_files::{
    key_directory::{KeyDirectory, Listing},
    key_name::{Algorithm, KeyName, has_number},
    manifest::ManifestFile,
};
use offline_keys::{
    derivation::{Derivation, Digest},
    file,
    text::{Form, OfflineKey, PLAIN_VERSION},
};
use tracing::error;

use crate::{
    DataKeysError, Outcome,
    access::Access,
    block_on,
    concurrent::each,
    data_keys,
    derivation::EXPORT,
    directories::Directories,
    manifest, names,
    option_value::one_of,
    password::PasswordArguments,
    print,
    regional_kms::Unwrapped,
    stored::{StoreArguments, compare, open_with},
    unwrapping::{Problem, Unwrapper, UnwrapperArguments},
};

/// Write all data keys into one encrypted file, for a host without AWS
#[derive(Debug, Args)]
#[command(after_help = "\
Prints the option lines for aws_key_management_offline_keys and, where the keys
allow it, for file_key_management, which reads pbkdf2 from MariaDB 12.0.1 on and
versions (--form=enterprise) from Enterprise Server 11.8 on. sha1 needs a long
random password. With the file and its password, anyone has the data keys.")]
pub(crate) struct Arguments {
    /// The file to create; it must not exist
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    #[command(flatten)]
    password: PasswordArguments,

    /// pbkdf2 or sha1
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = Format::Pbkdf2)]
    format: Format,

    /// community or enterprise
    #[arg(long, value_parser = one_of(FORMS), hide_possible_values = true, default_value = "community")]
    form: Form,

    /// Leave out this file, even if missing; repeatable
    #[arg(long, value_name = "NAME")]
    leave_out: Vec<String>,

    #[command(flatten)]
    store: StoreArguments,

    #[command(flatten)]
    unwrapper: UnwrapperArguments,

    #[command(flatten)]
    directories: Directories,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Pbkdf2,
    Sha1,
}

impl Format {
    fn derivation(self) -> Derivation {
        match self {
            Self::Pbkdf2 => EXPORT,
            Self::Sha1 => Derivation {
                digest: Digest::Sha1,
                pbkdf2_iterations: 0,
            },
        }
    }
}

const FORMS: [(&str, Form); 2] = [
    ("community", Form::Community),
    ("enterprise", Form::Enterprise),
];

/// Decrypts all keys and writes them. If one fails, is another key than the manifest lists, or is missing, writes
/// nothing.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = arguments.directories.key_files()?;
    let manifest = arguments.directories.manifest()?;
    let location = arguments.location()?;
    let listing = directory.list()?;
    let older = manifest::older_without_file(&manifest, &listing);
    let (names, unknown) = names(&directory, &manifest, listing, &arguments.leave_out)?;
    if location.is_none() && arguments.unwrapper.broker_socket.is_none() {
        expect_none_unknown(&directory, &unknown)?;
    }
    if let (Form::Enterprise, Some(why)) = (arguments.form, obstacle(&names, arguments.form)) {
        return Err(DataKeysError::NotExported(format!(
            "file_key_management cannot use these keys: {why}; leave out --form"
        )));
    }
    if fs::symlink_metadata(&arguments.output).is_ok() {
        let path = arguments.output.display();
        return Err(DataKeysError::NotExported(format!(
            "'{path}' exists; name another file, or remove it"
        )));
    }
    let password = arguments.password.get_new()?;
    let (unwrapper, access) = arguments.unwrapper.open_with_access()?;
    let here = Here {
        unwrapper,
        access,
        directory: &directory,
        manifest: &manifest,
        names: &names,
        unknown,
    };
    let keys = block_on(decrypt(arguments, location, here))??;
    file::create(
        &arguments.output,
        &keys,
        arguments.form,
        &password,
        arguments.format.derivation(),
    )?;
    let summary = summary(arguments, &names)
        + &manifest::not_compared(&manifest)
        + &manifest::without_file(&older);
    print(&summary).map_err(|why| DataKeysError::Exported {
        path: arguments.output.clone(),
        why: Box::new(why),
    })?;
    Ok(Outcome::Good)
}

/// What is to be exported.
struct Here<'a> {
    unwrapper: Unwrapper,
    access: Option<Access>,
    directory: &'a KeyDirectory,
    manifest: &'a ManifestFile,
    names: &'a [KeyName],
    /// Names to leave out that are not here.
    unknown: Vec<&'a str>,
}

/// Decrypts all keys. Fails if one fails, or the key store has others.
async fn decrypt(
    arguments: &Arguments,
    location: Option<KeyStoreLocation>,
    here: Here<'_>,
) -> Result<Vec<OfflineKey>, DataKeysError> {
    let Here {
        unwrapper,
        access,
        directory,
        manifest,
        names,
        unknown,
    } = here;
    let stored = match (location, &access) {
        (Some(location), Some(access)) => {
            let store = open_with(&location, access)?;
            let mut versions = store.list().await?;
            versions.retain(|&number, _| !has_number(names, number));
            let (stored, _) = compare::read_all(&store, versions).await?;
            Some((location.to_string(), stored))
        }
        _ => match &arguments.unwrapper.broker_socket {
            Some(socket) => compare::ask_broker(socket)?,
            None => None,
        },
    };
    let (location, stored) = stored.unwrap_or_default();
    let stored: Vec<_> = stored.into_values().map(|there| there.name).collect();
    let is_stored = |text: &str| stored.iter().any(|name| name.to_string() == text);
    let unknown: Vec<_> = unknown.into_iter().filter(|it| !is_stored(it)).collect();
    expect_none_unknown(directory, &unknown)?;
    expect_all_of_store(&location, stored, names, manifest, &arguments.leave_out)?;
    let mut keys = Vec::with_capacity(names.len());
    let any_unchecked = Cell::new(false);
    let work = async |name: &KeyName| {
        let unwrapped = unwrapper.try_unwrap(directory, name).await;
        let unwrapped = unwrapped.map_err(|not| {
            any_unchecked.set(any_unchecked.get() || not.problem == Problem::NotChecked);
            not.message
        })?;
        manifest::check(manifest, directory, name, &unwrapped.key)?;
        Ok(unwrapped)
    };
    let keep = |name: &KeyName, unwrapped: Unwrapped| {
        keys.push(OfflineKey {
            name: *name,
            key: unwrapped.key,
        });
    };
    let failed = each(names, work, keep).await;
    if failed > 0 {
        return Err(DataKeysError::NotExported(format!(
            "{} could not be decrypted, or are not what the manifest lists; fix the errors above, {}",
            data_keys(failed),
            // Nobody knows yet whether a key that could not be checked is lost.
            match any_unchecked.get() {
                true => "and run this again",
                false => "or exclude those files with --leave-out",
            }
        )));
    }
    Ok(keys)
}

impl Arguments {
    /// Where the key store is, unless a broker is asked, which knows that itself.
    fn location(&self) -> Result<Option<KeyStoreLocation>, DataKeysError> {
        match (&self.unwrapper.broker_socket, &self.store.store) {
            (Some(_), None) => Ok(None),
            (Some(_), Some(_)) => Err(DataKeysError::NotExported(
                "a broker lists its own key store; give either --broker-socket or --store=LOCATION"
                    .into(),
            )),
            (None, _) => match self.store.location(&self.unwrapper.access) {
                Err(DataKeysError::NoStore) => Ok(None),
                location => location.map(Some),
            },
        }
    }
}

/// Fails if the key store has keys that are not to be exported. Old ones that the manifest lists may have been moved away,
/// because nothing here needs them.
fn expect_all_of_store(
    location: &str,
    mut stored: Vec<KeyName>,
    names: &[KeyName],
    manifest: &ManifestFile,
    leave_out: &[String],
) -> Result<(), DataKeysError> {
    let may_be_moved_away = |name: &KeyName| {
        let is_newer = |it: &KeyName| it.id == name.id && it.version > name.version;
        names.iter().any(is_newer) && manifest.get(name.id, name.version).is_some()
    };
    stored.retain(|name| !has_number(names, name.number()));
    stored.retain(|name| !leave_out.contains(&name.to_string()) && !may_be_moved_away(name));
    for name in &stored {
        error!(
            "{name} is only in the key store {location}, such as a key that another server has made"
        );
    }
    match stored.len() {
        0 => Ok(()),
        count => Err(DataKeysError::NotExported(format!(
            "{} missing; fetch the key files named above with kms-data-keys pull, or exclude them with --leave-out",
            data_keys(count)
        ))),
    }
}

/// Fails if a name was to be left out that is nowhere.
fn expect_none_unknown(directory: &KeyDirectory, unknown: &[&str]) -> Result<(), DataKeysError> {
    match unknown.first() {
        None => Ok(()),
        Some(name) => Err(DataKeysError::NotExported(format!(
            "there is no key file '{name}' in '{}' to leave out",
            directory.path().display()
        ))),
    }
}

/// Returns the keys to export, all except those that are left out, and which of these are not here.
fn names<'a>(
    directory: &KeyDirectory,
    manifest: &ManifestFile,
    mut listing: Listing,
    leave_out: &'a [String],
) -> Result<(Vec<KeyName>, Vec<&'a str>), DataKeysError> {
    let mut unknown = Vec::new();
    let mut missing = manifest::missing(manifest, directory, &listing);
    for name in leave_out {
        let count = |listing: &Listing, missing: &BTreeMap<_, _>| {
            listing.keys.len() + listing.malformed.len() + missing.len()
        };
        let before = count(&listing, &missing);
        listing.keys.retain(|key| key.to_string() != *name);
        listing.malformed.retain(|malformed| malformed != name);
        missing.retain(|key, _| key.to_string() != *name);
        if count(&listing, &missing) == before {
            unknown.push(name.as_str());
        }
    }
    if names::check(directory, &listing) == Outcome::Bad {
        return Err(DataKeysError::NotExported(
            "there are conflicting or malformed key file names, see above".into(),
        ));
    }
    for reason in manifest::reasons(&missing) {
        error!("{reason}");
    }
    if !missing.is_empty() {
        return Err(DataKeysError::NotExported(format!(
            "{} missing, see above; restore the key files, or exclude them with --leave-out",
            data_keys(missing.len())
        )));
    }
    names::expect_any(directory, &listing.keys)?;
    Ok((listing.keys, unknown))
}

/// Describes what to set on the other host.
fn summary(arguments: &Arguments, names: &[KeyName]) -> String {
    let path = full(&arguments.output);
    let filekey = arguments
        .password
        .file()
        .map_or("/path/of/its/password".into(), full);
    let Derivation {
        digest,
        pbkdf2_iterations,
    } = arguments.format.derivation();
    let mut text = format!(
        "{} exported to '{path}', encrypted with AES-256-CBC, {}\n",
        data_keys(names.len()),
        match pbkdf2_iterations {
            0 => format!("key derived with {digest}"),
            count => format!("key derived with PBKDF2, {digest}, {count} iterations"),
        }
    );
    if !arguments.leave_out.is_empty() {
        text += &format!(
            "Not included: {}; data that they encrypted cannot be read with this file\n",
            arguments.leave_out.join(", ")
        );
    }
    let algorithm = names
        .first()
        .map(|name| name.algorithm.to_string())
        .unwrap_or_default();
    let path = option_value(&path);
    let filekey = option_value(&format!("FILE:{filekey}"));
    text += &format!(
        "For aws_key_management:
  aws_key_management_offline_keys = {path}
  aws_key_management_offline_filekey = {filekey}
  aws_key_management_offline_digest = {digest}
  aws_key_management_offline_use_pbkdf2 = {pbkdf2_iterations}
"
    );
    if arguments.form == Form::Enterprise {
        text += &format!("  aws_key_management_encryption_algorithm = {algorithm}\n");
    }
    if let Some(why) = obstacle(names, arguments.form) {
        return text + &format!("Not for file_key_management: {why}\n");
    }
    text += &format!(
        "For file_key_management{}:
  file_key_management_filename = {path}
  file_key_management_filekey = {filekey}
  file_key_management_encryption_algorithm = {algorithm}
",
        match (arguments.form, arguments.format) {
            (Form::Community, Format::Sha1) => "",
            (Form::Community, Format::Pbkdf2) => " of MariaDB 12.0.1 and later",
            (Form::Enterprise, Format::Sha1) => " of MariaDB Enterprise Server 11.8 and later",
            (Form::Enterprise, Format::Pbkdf2) =>
                " of a MariaDB Enterprise Server that has file_key_management_use_pbkdf2",
        }
    );
    // Older servers have neither variable and use these values.
    if pbkdf2_iterations > 0 {
        text += &format!(
            "  file_key_management_digest = {digest}
  file_key_management_use_pbkdf2 = {pbkdf2_iterations}
"
        );
    }
    text
}

/// Writes a value as MariaDB reads it in an option file, where # begins a comment.
fn option_value(value: &str) -> String {
    let value = value.replace('\\', "\\\\");
    match value.contains('#') {
        true => format!("\"{value}\""),
        false => value,
    }
}

/// Makes the path absolute, because the server has another working directory.
fn full(path: &Path) -> String {
    let path = path::absolute(path).unwrap_or_else(|_| path.into());
    path.display().to_string()
}

/// Returns why file_key_management cannot decrypt data of these keys, if so.
fn obstacle(names: &[KeyName], form: Form) -> Option<String> {
    let further = names.iter().find(|name| name.version != PLAIN_VERSION);
    if let (Form::Community, Some(name)) = (form, further) {
        return Some(format!(
            "it supports only version 1 of each key, but key {} has version {} (MariaDB Enterprise Server 11.8 has versions: --form=enterprise)",
            name.id, name.version
        ));
    }
    // It does not load without that one.
    if !names.iter().any(|name| name.id == SYSTEM_KEY_ID) {
        return Some(format!("it needs a key {SYSTEM_KEY_ID}"));
    }
    let with = |algorithm| names.iter().any(|name| name.algorithm == algorithm);
    (with(Algorithm::AesCbc) && with(Algorithm::AesCtr))
        .then(|| "it uses one algorithm for all keys, but these are for AES_CBC and AES_CTR".into())
}
