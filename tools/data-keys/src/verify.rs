//! `verify`: decrypts every data key, and compares it with the manifest.

use clap::Args;
use key_files::{
    key_directory::{KeyDirectory, Listing},
    key_name::KeyName,
    manifest::ManifestFile,
};
use tracing::warn;

use crate::{
    DataKeysError, Outcome, concurrent::each, data_keys, directories::Directories, names, print,
    runtime, unwrapping::UnwrapperArguments,
};

/// Decrypt every data key, and report those that fail or are wrong
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    unwrapper: UnwrapperArguments,

    #[command(flatten)]
    directories: Directories,
}

/// Decrypts all keys, reports failures, and prints a summary.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = arguments.directories.key_files()?;
    let listing = directory.list()?;
    let manifest = arguments.directories.manifest()?;
    let names = names::check(&directory, &listing);
    let missing = report_missing(&manifest, &directory, &listing);
    let (mut verified, mut kept) = (0, 0);
    let runtime = runtime()?;
    let unwrapper = arguments.unwrapper.open()?;
    let work = async |name: &KeyName| {
        let unwrapped = unwrapper.unwrap(&directory, name).await?;
        let path = directory.path_of(name);
        match manifest.check(name, &unwrapped.key) {
            Ok(()) => Ok(unwrapped),
            Err(wrong) => Err(format!("key file '{}' {wrong}", path.display())),
        }
    };
    let failed = runtime.block_on(each(&listing.keys, work, |_, unwrapped| {
        match unwrapped.is_from_kms {
            true => verified += 1,
            false => kept += 1,
        }
    }));
    let not_verified = match kept {
        0 => String::new(),
        _ => format!(
            ", {} compared only with the broker's cache: its session has ended, so KMS was not asked",
            data_keys(kept)
        ),
    };
    print(&format!(
        "{} verified at KMS, {failed} failed{not_verified}\n{}",
        data_keys(verified),
        not_compared(&manifest)
    ))?;
    Ok(names.unless_failed(failed + missing))
}

fn not_compared(manifest: &ManifestFile) -> String {
    match manifest.is_empty() {
        false => String::new(),
        true => format!(
            "Not compared with a key manifest, because there is none at '{}'; name the data directory with --datadir\n",
            manifest.path().display()
        ),
    }
}

/// Reports key versions that the manifest lists and that have no file. Returns how many of them are the newest
/// of their key: older ones may have been moved away because nothing needs them.
fn report_missing(manifest: &ManifestFile, directory: &KeyDirectory, listing: &Listing) -> usize {
    let mut newest_missing = 0;
    for entry in manifest.entries() {
        let name = entry.name;
        let mut versions = listing.keys.iter().filter(|key| key.id == name.id);
        if versions.clone().any(|key| key.version == name.version) {
            continue;
        }
        let is_newest = !versions.any(|key| key.version > name.version);
        newest_missing += usize::from(is_newest);
        if is_newest {
            warn!(
                "{name} is missing in '{}': '{}' lists it; restore it from a backup of the key files",
                directory.path().display(),
                manifest.path().display()
            );
        }
    }
    newest_missing
}
