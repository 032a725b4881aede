//! `pull`: fetches key files from the key store.

use clap::Args;
use key_files::{
    key_directory::{KeyDirectory, Stored, VersionPolicy},
    key_name::has_number,
    manifest::ManifestFile,
};
use key_store::{Forms, KeyStore};

use crate::{
    DataKeysError, Outcome,
    access::AccessArguments,
    block_on,
    concurrent::each,
    data_keys,
    directories::Directories,
    manifest, print_summary,
    stored::{StoreArguments, failed, open},
};

/// Fetch missing key files from the key store
#[derive(Debug, Args)]
#[command(after_help = "\
The server fetches what it needs by itself. Use pull for a host that should have
all key files, or to inspect a key store. Existing files are left unchanged, and
nothing is decrypted.

Needs s3:ListBucket and s3:GetObject.")]
pub(crate) struct Arguments {
    /// Change nothing; print what would be fetched
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    store: StoreArguments,

    #[command(flatten)]
    access: AccessArguments,

    #[command(flatten)]
    directories: Directories,
}

/// Fetches what is missing, reports failures, and prints a summary.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = arguments.directories.key_files()?;
    let manifest = arguments.directories.manifest()?;
    let location = arguments.store.location(&arguments.access)?;
    let store = open(&location, &arguments.access)?;
    let here = directory.list()?.keys;
    let (fetched, failed, there) = block_on(async {
        let versions = store.list().await?;
        let all = versions.len();
        let mut missing = versions;
        missing.retain(|&number, _| !has_number(&here, number));
        let missing: Vec<_> = missing.into_iter().collect();
        let there = all - missing.len();
        if arguments.dry_run {
            return Ok::<_, DataKeysError>((missing.len(), 0, there));
        }
        let mut fetched = 0;
        let work = async |version: &_| fetch(&store, &directory, &manifest, version).await;
        let failed = each(&missing, work, |_, is_new| fetched += usize::from(is_new)).await;
        Ok((fetched, failed, there))
    })??;
    let done = match arguments.dry_run {
        true => "would be fetched",
        false => "fetched",
    };
    let not_compared = manifest::not_compared(&manifest);
    let printed = print_summary(&format!(
        "{} {done} from the key store {location}, {there} here already, {failed} failed\n{not_compared}",
        data_keys(fetched)
    ));
    Outcome::Good.unless_failed(failed).despite(printed)
}

/// Returns whether the file is new.
async fn fetch(
    store: &KeyStore,
    directory: &KeyDirectory,
    manifest: &ManifestFile,
    &((id, version), ref forms): &((u32, u32), Forms),
) -> Result<bool, String> {
    let found = store.latest_form(id, version, forms.latest).await;
    let key = found
        .map_err(failed(format_args!("{id}/{version}")))?
        .ok_or_else(|| format!("{id}/{version} is not in the key store any more"))?;
    let listed = manifest.get(id, version);
    if listed.is_some_and(|it| (it.name, it.check_value) != (key.name, key.check_value)) {
        return Err(format!(
            "'{}' lists another key as {id}/{version} than the key store {} has: they belong to different servers, or to servers that made keys independently",
            manifest.path().display(),
            store.location()
        ));
    }
    let version = VersionPolicy::Exactly { version };
    directory
        .store(id, key.name.algorithm, version, &key.ciphertext_blob)
        .map(|stored| matches!(stored, Stored::New(_)))
        .map_err(|error| error.to_string())
}
