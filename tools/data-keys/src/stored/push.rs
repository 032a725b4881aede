//! `push`: puts the key files of a host into the key store.

use aws_session::key_store_location::KeyStoreLocation;
use clap::Args;
use key_files::{
    WrappedKey, check_value::CheckValue, key_directory::KeyDirectory, key_name::KeyName,
    manifest::ManifestFile,
};
use key_store::Put;

use crate::{
    DataKeysError, Outcome,
    access::AccessArguments,
    block_on,
    concurrent::each,
    data_keys,
    directories::Directories,
    manifest, names, print_summary,
    regional_kms::RegionalKms,
    stored::{StoreArguments, differs, failed, open_with},
    unwrapping::Unwrapper,
};

/// Put the data keys into the key store
#[derive(Debug, Args)]
#[command(after_help = "\
KMS decrypts each key once, to identify it in the key store. Keys that are there
already are compared and left unchanged. If any of them differs, nothing is
added. It can be interrupted and repeated.

Needs kms:Decrypt, s3:ListBucket, s3:GetObject and s3:PutObject.")]
pub(crate) struct Arguments {
    /// Change nothing; print what would be added
    #[arg(long)]
    dry_run: bool,

    /// Make an empty directory a key store first
    #[arg(long, conflicts_with = "dry_run")]
    init: bool,

    #[command(flatten)]
    store: StoreArguments,

    #[command(flatten)]
    access: AccessArguments,

    #[command(flatten)]
    directories: Directories,
}

/// Puts the keys, reports failures, and prints a summary.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = arguments.directories.key_files()?;
    let listing = directory.list()?;
    let manifest = arguments.directories.manifest()?;
    let names = names::check(&directory, &listing);
    // A new host has no keys yet when its key store is made.
    if !arguments.init {
        names::expect_any(&directory, &listing.keys)?;
    }
    let location = arguments.store.location(&arguments.access)?;
    let access = arguments.access.open()?;
    let store = open_with(&location, &access)?;
    let unwrapper = Unwrapper::RegionalKms(RegionalKms::new(&access, None));
    let pushed = block_on(async {
        if arguments.init {
            store.init().await?;
        }
        if !arguments.dry_run {
            store.check().await?;
        }
        let versions = store.list().await?;
        let mut pushed = Pushed::default();
        let (mut new, mut there) = (Vec::new(), Vec::new());
        let compare = async |name: &KeyName| {
            let key = identify(&directory, &manifest, &unwrapper, name).await?;
            let there = match versions.contains_key(&name.number()) {
                true => {
                    let there = store.get(name.id, name.version, 0).await;
                    there.map_err(failed(name))?
                }
                false => None,
            };
            same(&key, there.as_ref(), &directory, &location)?;
            Ok((key, there.is_some()))
        };
        pushed.failed = each(
            &listing.keys,
            compare,
            |_, (key, is_there)| match is_there {
                true => there.push(key.name),
                false => new.push(key),
            },
        )
        .await;
        // What was put into the store of another server could not be taken out again.
        if arguments.dry_run || pushed.failed > 0 {
            pushed.put = new.len() * usize::from(arguments.dry_run);
            pushed.there = there.len();
            return Ok::<_, DataKeysError>(pushed);
        }
        // The push that put them may have ended before it had given them their permissions.
        let share = async |name: &KeyName| {
            let shared = store.share_form(name.id, name.version, 0).await;
            shared.map_err(failed(name))
        };
        let unshared = each(&there, share, |_, ()| pushed.there += 1).await;
        let put = async |key: &WrappedKey| {
            let put = store.put(key).await;
            match put.map_err(failed(key.name))? {
                Put::New => Ok(()),
                Put::Exists(other) => same(key, Some(&other), &directory, &location),
            }
        };
        pushed.failed = unshared + each(&new, put, |_, ()| pushed.put += 1).await;
        Ok(pushed)
    })??;
    let done = match arguments.dry_run {
        true => "would be put",
        false => "put",
    };
    let printed = print_summary(&format!(
        "{} {done} into the key store {location}, {} there already, {} failed\n",
        data_keys(pushed.put),
        pushed.there,
        pushed.failed
    ));
    names.unless_failed(pushed.failed).despite(printed)
}

/// How many keys are there now.
#[derive(Default)]
struct Pushed {
    put: usize,
    there: usize,
    failed: usize,
}

/// Fails if another key is in the store.
fn same(
    key: &WrappedKey,
    there: Option<&WrappedKey>,
    directory: &KeyDirectory,
    location: &KeyStoreLocation,
) -> Result<(), String> {
    match there {
        Some(other) if (other.name, other.check_value) != (key.name, key.check_value) => {
            Err(differs(&key.name, directory, location))
        }
        _ => Ok(()),
    }
}

/// Decrypts a key file once, and checks that it is the right one.
async fn identify(
    directory: &KeyDirectory,
    manifest: &ManifestFile,
    unwrapper: &Unwrapper,
    name: &KeyName,
) -> Result<WrappedKey, String> {
    let ciphertext_blob = directory.read(name).map_err(|error| error.to_string())?;
    let unwrapped = unwrapper.unwrap(directory, name).await?;
    manifest::check(manifest, directory, name, &unwrapped.key)?;
    Ok(WrappedKey {
        name: *name,
        bits: unwrapped.key.bits(),
        check_value: CheckValue::of(&unwrapped.key),
        master_key_arn: unwrapped.master_key_arn,
        ciphertext_blob,
    })
}
