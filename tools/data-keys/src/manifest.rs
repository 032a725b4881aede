//! What the key manifest says of key files, for the subcommands that compare them with it.

use std::collections::{BTreeMap, BTreeSet};

use key_files::{
    PlaintextKey,
    key_directory::{KeyDirectory, Listing},
    key_name::KeyName,
    manifest::ManifestFile,
};

use crate::data_keys;

/// Fails if the manifest lists another key under the name of this file.
pub(crate) fn check(
    manifest: &ManifestFile,
    directory: &KeyDirectory,
    name: &KeyName,
    key: &PlaintextKey,
) -> Result<(), String> {
    let path = directory.path_of(name);
    manifest
        .check(name, key)
        .map_err(|wrong| format!("key file '{}' {wrong}", path.display()))
}

/// The same of a key that a key server has given.
pub(crate) fn check_of_key_server(
    manifest: &ManifestFile,
    name: &KeyName,
    key: &PlaintextKey,
) -> Result<(), String> {
    let path = manifest.path();
    manifest.check(name, key).map_err(|wrong| {
        format!(
            "{} of the key server is not the key that '{}' lists; restore the key store of the key server",
            wrong.name,
            path.display()
        )
    })
}

/// Returns the key versions that the manifest lists as the newest of their key and that have no file, with what to
/// do. For older ones, see [`older_without_file`].
pub(crate) fn missing(
    manifest: &ManifestFile,
    directory: &KeyDirectory,
    listing: &Listing,
) -> BTreeMap<KeyName, String> {
    let entries = manifest.entries();
    let is_missing = |name: &KeyName| listing.newest(name.id) < Some(name.version);
    let names = entries.iter().map(|entry| entry.name).filter(is_missing);
    let names: Vec<_> = names.collect();
    let here = directory.path().display();
    let path = manifest.path();
    let list = path.display();
    // Somebody who restored files into a mount point would have work of the past in the way of what is mounted later.
    let is_other_place = listing.keys.is_empty() && listing.malformed.is_empty();
    let reason = |name: &KeyName| match is_other_place {
        true => format!(
            "there is no key file in '{here}', but '{list}' lists {}: see that this is the directory of the key files \
             (aws_key_management_keyfile_dir, if that is set) and that it is mounted; if they are lost, restore them from a \
             backup of the key files",
            data_keys(names.len())
        ),
        false => format!(
            "{name} is missing in '{here}': '{list}' lists it; restore it from a backup of the key files"
        ),
    };
    names.iter().map(|name| (*name, reason(name))).collect()
}

/// Returns each reason of [`missing`] once, for the log.
pub(crate) fn reasons(missing: &BTreeMap<KeyName, String>) -> BTreeSet<&str> {
    missing.values().map(String::as_str).collect()
}

/// Returns the key versions that the manifest lists, that have no file, and of whose key a newer version has one: lost,
/// or moved away because nothing needs them.
pub(crate) fn older_without_file(manifest: &ManifestFile, listing: &Listing) -> Vec<KeyName> {
    let names = manifest.entries().into_iter().map(|entry| entry.name);
    names.filter(|name| listing.is_retired(name)).collect()
}

/// Says, in a line, which older versions have no file, if any.
pub(crate) fn without_file(older: &[KeyName]) -> String {
    let names: Vec<String> = older.iter().map(ToString::to_string).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!(
            "Listed in the key manifest, without a file here: {}. Restore them, unless kms-data-keys check reported them as not needed\n",
            names.join(", ")
        ),
    }
}

/// Says, in a line, that nothing could be compared, if so.
pub(crate) fn not_compared(manifest: &ManifestFile) -> String {
    match manifest.is_empty() {
        false => String::new(),
        true => format!("Not compared: {}\n", without_entries(manifest)),
    }
}

/// Says why nothing could be compared with a manifest that is empty, and what to do.
pub(crate) fn without_entries(manifest: &ManifestFile) -> String {
    let path = manifest.path();
    let why = match path.exists() {
        // Such as a copy of which nothing is known but that it is one.
        true => format!("the key manifest '{}' lists no key", path.display()),
        false => format!("there is no key manifest at '{}'", path.display()),
    };
    format!("{why}; name the data directory with --datadir")
}
