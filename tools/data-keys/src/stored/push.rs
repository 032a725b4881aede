//! `push`: puts the key files of a host into the key store.

use std::{cell::Cell, path::PathBuf};

use clap::Args;
use key_files::{
    WrappedKey, check_value::CheckValue, key_directory::KeyDirectory, key_name::KeyName,
    manifest::ManifestFile,
};
use key_store::Put;

use crate::{
    DataKeysError, Outcome,
    access::AccessArguments,
    concurrent::each,
    data_keys, names, print,
    regional_kms::RegionalKms,
    runtime,
    stored::{StoreArguments, differs, open_with},
    unwrapping::Unwrapper,
};

/// Put the data keys into the key store
#[derive(Debug, Args)]
#[command(after_help = "\
Each key is decrypted at KMS once, to be identified in the key store. What is
there already is compared and left alone. It can be interrupted and repeated.

Needs kms:Decrypt, s3:ListBucket, s3:GetObject and s3:PutObject.")]
pub(crate) struct Arguments {
    /// Change nothing; tell what would be put there
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    store: StoreArguments,

    #[command(flatten)]
    access: AccessArguments,

    /// The data directory with the key manifest, if it is not DIR
    #[arg(long, value_name = "DATADIR")]
    datadir: Option<PathBuf>,

    /// The data directory, or aws_key_management_keyfile_dir if that is set
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Puts the keys, reports failures, and prints a summary.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = KeyDirectory::open(&arguments.directory)?;
    let listing = directory.list()?;
    let manifest = ManifestFile::open(arguments.datadir.as_ref().unwrap_or(&arguments.directory))?;
    let names = names::check(&directory, &listing);
    let location = arguments.store.location(&arguments.access)?;
    let access = arguments.access.open()?;
    let store = open_with(&location, &access)?;
    let unwrapper = Unwrapper::RegionalKms(RegionalKms::new(&access, None));
    let (put, there) = (Cell::new(0), Cell::new(0));
    let failed = runtime()?.block_on(async {
        if !arguments.dry_run {
            store.init().await?;
            store.check().await?;
        }
        let versions = store.list().await?;
        let work = async |name: &KeyName| {
            let key = identify(&directory, &manifest, &unwrapper, name).await?;
            let text = |error: key_store::StoreError| error.to_string();
            let other = match versions.get(&(name.id, name.version)) {
                Some(&form) => store.get(name.id, name.version, form).await.map_err(text)?,
                None if arguments.dry_run => None,
                None => match store.put(&key).await.map_err(text)? {
                    Put::New => None,
                    Put::Exists(other) => Some(other),
                },
            };
            match other {
                None => {
                    put.update(|count| count + 1);
                    Ok(())
                }
                Some(other) if (other.name, other.check_value) == (key.name, key.check_value) => {
                    there.update(|count| count + 1);
                    Ok(())
                }
                Some(_) => Err(differs(name, &directory, &location)),
            }
        };
        Ok::<_, DataKeysError>(each(&listing.keys, work, |_, ()| {}).await)
    })?;
    let done = match arguments.dry_run {
        true => "would be put",
        false => "put",
    };
    print(&format!(
        "{} {done} into the key store {location}, {} there already, {failed} failed\n",
        data_keys(put.get()),
        there.get()
    ))?;
    Ok(names.unless_failed(failed))
}

/// Decrypts a key file once, and checks that it is the right one.
async fn identify(
    directory: &KeyDirectory,
    manifest: &ManifestFile,
    unwrapper: &Unwrapper,
    name: &KeyName,
) -> Result<WrappedKey, String> {
    let path = directory.path_of(name);
    let ciphertext_blob = directory.read(name).map_err(|error| error.to_string())?;
    let unwrapped = unwrapper.unwrap(directory, name).await?;
    manifest
        .check(name, &unwrapped.key)
        .map_err(|wrong| format!("key file '{}' {wrong}", path.display()))?;
    Ok(WrappedKey {
        name: *name,
        bits: u16::try_from(unwrapped.key.expose().len() * 8).unwrap_or_default(),
        check_value: CheckValue::of(&unwrapped.key),
        master_key_arn: unwrapped.master_key_arn,
        ciphertext_blob,
    })
}
