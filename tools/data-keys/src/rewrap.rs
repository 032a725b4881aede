//! `rewrap`: wraps the data keys under another master key.
//!
//! Each key separately: KMS wraps it under the new master key, the result is decrypted and compared, and
//! only then replaces the old file, and is added to the key store. Files and key store alone show the
//! progress, so an interrupted run can simply be repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use aws_session::master_key_id::MasterKeyId;
use broker_api::Failure;
use clap::Args;
use key_files::{
    WrappedKey,
    check_value::CheckValue,
    fault_points::{self, Step},
    key_directory::KeyDirectory,
    key_name::KeyName,
};
use subtle::ConstantTimeEq;
use tracing::info;

use crate::{
    DataKeysError, Outcome,
    access::{Access, AccessArguments},
    block_on,
    concurrent::each,
    data_keys, names, print_summary,
    regional_kms::RegionalKms,
    regional_kms::Unwrapped,
    stored::{StoreArguments, open_with, rewrapped::Rewrapped},
};

/// Wrap every data key under another master key
#[derive(Debug, Args)]
#[command(after_help = "\
Works while the server runs, and can be interrupted and repeated at any time.
A file is replaced only after the new one was verified to contain the same data
key.

With a key store, add --config or --store: otherwise its keys stay under the old
master key. There the new form is added and the old one stays, also for keys
that have no file here.

Name a KEY of another region or account by its ARN.")]
pub(crate) struct Arguments {
    /// The master key: id, ARN, alias or alias ARN
    #[arg(long, value_name = "KEY")]
    to: MasterKeyId,

    /// Change nothing; ask KMS whether the calls would be allowed
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    store: StoreArguments,

    #[command(flatten)]
    access: AccessArguments,

    /// The data directory, or aws_key_management_keyfile_dir if that is set
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Wraps all keys, reports failures, and prints a summary.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = KeyDirectory::open(&arguments.directory)?;
    let listing = directory.list()?;
    let names = names::check(&directory, &listing);
    let location = match arguments.store.location(&arguments.access) {
        Ok(location) => Some(location),
        Err(DataKeysError::NoStore) => {
            names::expect_any(&directory, &listing.keys)?;
            None
        }
        Err(error) => return Err(error),
    };
    let access = arguments.access.open()?;
    let store = location.map(|location| open_with(&location, &access));
    let store = store.transpose()?;
    let summary = block_on(async {
        let mut rewrapping = Rewrapping::new(arguments, &directory, &access).await?;
        rewrapping.stored = store.map(Rewrapped::new);
        rewrapping.run_until_no_key_is_new().await
    })??;
    names
        .unless_failed(summary.failed)
        .despite(print_summary(&summary.text(arguments.dry_run)))
}

struct Rewrapping<'a> {
    directory: &'a KeyDirectory,
    source: RegionalKms,
    destination: RegionalKms,
    master_key_arn: String,
    dry_run: bool,
    stored: Option<Rewrapped>,
}

/// Where a wrapped data key is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// In a file here, and perhaps in the key store too.
    File(KeyName),
    /// In the key store only, by id and version.
    StoreOnly(u32, u32),
}

/// What was done.
#[derive(Default)]
struct Summary {
    master_key_arn: String,
    /// Whether the key store was left out.
    is_without_store: bool,
    /// The number of keys that each other master key had wrapped.
    moved: BTreeMap<String, usize>,
    /// The number of those that have no file here.
    moved_without_file: usize,
    /// The number of keys that the new master key had wrapped already.
    left: usize,
    failed: usize,
}

impl<'a> Rewrapping<'a> {
    async fn new(
        arguments: &Arguments,
        directory: &'a KeyDirectory,
        access: &Access,
    ) -> Result<Self, DataKeysError> {
        let (destination, master_key_arn) =
            RegionalKms::of_master_key(access, &arguments.to).await?;
        Ok(Self {
            directory,
            source: RegionalKms::new(access, None),
            destination,
            master_key_arn,
            dry_run: arguments.dry_run,
            stored: None,
        })
    }

    /// The servers may create keys meanwhile, under the old master key.
    async fn run_until_no_key_is_new(mut self) -> Result<Summary, DataKeysError> {
        if !self.dry_run {
            for name in self.directory.remove_stale_temporaries()? {
                info!("removed {name}, which a killed program left behind");
            }
        }
        let mut summary = Summary {
            master_key_arn: self.master_key_arn.clone(),
            is_without_store: self.stored.is_none(),
            ..Summary::default()
        };
        let (mut seen, mut seen_in_store) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let files = self.directory.list()?.keys;
            // After the files: the server puts a new key into the key store first.
            let mut stored = match &mut self.stored {
                Some(stored) => stored.list().await?,
                None => Vec::new(),
            };
            let here: BTreeSet<_> = files.iter().map(KeyName::number).collect();
            stored.retain(|number| !here.contains(number) && seen_in_store.insert(*number));
            let keys: Vec<_> = files
                .into_iter()
                .filter(|name| seen.insert(*name))
                .map(Place::File)
                .chain(stored.into_iter().map(|key| Place::StoreOnly(key.0, key.1)))
                .collect();
            if keys.is_empty() {
                if seen.is_empty() && seen_in_store.is_empty() {
                    names::expect_any(self.directory, &[])?;
                }
                return Ok(summary);
            }
            let work = async |place: &Place| match place {
                Place::File(name) => self.rewrap_file(name).await,
                Place::StoreOnly(id, version) => self.rewrap_stored(*id, *version).await,
            };
            let mut done = Vec::new();
            summary.failed += each(&keys, work, |place, before| done.push((*place, before))).await;
            for (place, before) in done {
                summary.add(place, before);
            }
        }
    }

    /// Returns the ARN of the master key that wrapped the data key before.
    async fn rewrap_file(&self, name: &KeyName) -> Result<String, String> {
        let path = self.directory.path_of(name);
        let object = format!("key file '{}'", path.display());
        let old = self
            .directory
            .read(name)
            .map_err(|error| error.to_string())?;
        let before = self.unwrap(&object, &old).await?;
        if before.master_key_arn == self.master_key_arn {
            // An earlier run may have been interrupted before it came to the key store.
            self.put_into_store(name, &before, &old).await?;
            return Ok(before.master_key_arn);
        }
        let Some(new) = self.wrap_and_verify(&object, &old, &before).await? else {
            return Ok(before.master_key_arn);
        };
        self.directory
            .replace(name, &old, &new)
            .map_err(|error| error.to_string())?;
        self.put_into_store(name, &before, &new).await?;
        Ok(before.master_key_arn)
    }

    /// Does the same for a key that has no file here. None is written: the server or `pull` fetches it.
    async fn rewrap_stored(&self, id: u32, version: u32) -> Result<String, String> {
        let Some(stored) = &self.stored else {
            return Ok(self.master_key_arn.clone());
        };
        let object = format!("{id}/{version} in the key store {}", stored.location());
        let there = stored
            .find(id, version)
            .await?
            .ok_or_else(|| format!("{object} is not there any more"))?;
        let before = self.unwrap(&object, &there.ciphertext_blob).await?;
        if there.check_value != CheckValue::of(&before.key) {
            return Err(format!(
                "{object} was not changed: it holds another key than its check value says; find out who put it there"
            ));
        }
        if before.master_key_arn == self.master_key_arn {
            if !self.dry_run {
                stored.share(id, version).await?;
            }
            return Ok(before.master_key_arn);
        }
        let old = &there.ciphertext_blob;
        if let Some(new) = self.wrap_and_verify(&object, old, &before).await? {
            let key = WrappedKey {
                master_key_arn: self.master_key_arn.clone(),
                ciphertext_blob: new,
                ..there
            };
            stored.add(&key).await?;
        }
        Ok(before.master_key_arn)
    }

    /// Returns the key under the new master key; `None` for a dry run.
    async fn wrap_and_verify(
        &self,
        object: &str,
        old: &[u8],
        before: &Unwrapped,
    ) -> Result<Option<Vec<u8>>, String> {
        let failed = |failure| failed(object, &failure);
        if self.dry_run {
            self.try_wrap(old).await.map_err(failed)?;
            return Ok(None);
        }
        let new = self.wrap(old, before).await.map_err(failed)?;
        fault_points::reach(Step::Generated);
        let after = self
            .destination
            .decrypt(&new, Some(&self.master_key_arn))
            .await
            .map_err(failed)?;
        if !bool::from(after.key.expose().ct_eq(before.key.expose())) {
            return Err(format!(
                "{object} was not changed: KMS wrapped a different data key; try again"
            ));
        }
        fault_points::reach(Step::Unwrapped);
        Ok(Some(new))
    }

    async fn put_into_store(
        &self,
        name: &KeyName,
        unwrapped: &Unwrapped,
        new: &[u8],
    ) -> Result<(), String> {
        let put = match &self.stored {
            Some(stored) if !self.dry_run => {
                stored.put(name, unwrapped, new, &self.master_key_arn).await
            }
            _ => Ok(()),
        };
        put.map_err(|why| {
            let path = self.directory.path_of(name);
            format!(
                "key file '{}' is under the new master key, but its key in the key store is not: {why}",
                path.display()
            )
        })
    }

    fn is_one_region(&self) -> bool {
        self.source.region() == self.destination.region()
    }

    /// Decrypts what is under the old master key, or under the new one after an earlier run.
    async fn unwrap(&self, object: &str, blob: &[u8]) -> Result<Unwrapped, String> {
        let at_source = self.source.decrypt(blob, None).await;
        let unwrapped = match at_source {
            Err(failure) if !self.is_one_region() && !failure.kind.is_retryable() => {
                let key = Some(self.master_key_arn.as_str());
                let at_destination = self.destination.decrypt(blob, key).await;
                at_destination.map_err(|_| failure)
            }
            answered => answered,
        };
        unwrapped.map_err(|failure| failed(object, &failure))
    }

    async fn wrap(&self, blob: &[u8], unwrapped: &Unwrapped) -> Result<Vec<u8>, Failure> {
        let destination = &self.destination;
        match self.is_one_region() {
            true => destination.re_encrypt(blob, &self.master_key_arn).await,
            false => {
                destination
                    .encrypt(&unwrapped.key, &self.master_key_arn)
                    .await
            }
        }
    }

    async fn try_wrap(&self, blob: &[u8]) -> Result<(), Failure> {
        let destination = &self.destination;
        match self.is_one_region() {
            true => destination.try_re_encrypt(blob, &self.master_key_arn).await,
            false => destination.try_encrypt(&self.master_key_arn).await,
        }
    }
}

/// Formats a failure of KMS with what it is about.
fn failed(object: &str, failure: &Failure) -> String {
    format!("{object}: {}", failure.message)
}

impl Summary {
    fn add(&mut self, place: Place, before: String) {
        if before == self.master_key_arn {
            self.left += 1;
            return;
        }
        *self.moved.entry(before).or_default() += 1;
        if let Place::StoreOnly(..) = place {
            self.moved_without_file += 1;
        }
    }

    fn text(&self, dry_run: bool) -> String {
        let Self {
            master_key_arn,
            is_without_store,
            moved,
            moved_without_file,
            left,
            failed,
        } = self;
        let done = match dry_run {
            true => "would be wrapped",
            false => "wrapped",
        };
        let all = moved.values().sum();
        let mut text = format!(
            "{} {done} under {master_key_arn}, {left} under it already, {failed} failed\n",
            data_keys(all)
        );
        if *moved_without_file > 0 {
            text += &format!(
                "Of these only in the key store, without a file here: {}\n",
                data_keys(*moved_without_file)
            );
        }
        for (arn, count) in moved {
            text += &format!(
                "{} of {arn}: copies in backups remain under it, so keep it as long as they may be restored\n",
                data_keys(*count)
            );
        }
        if *is_without_store {
            text += "If this server has a key store, the keys there are still under the old master key: run this again with --config or --store\n";
        }
        if all > 0 {
            text += &format!(
                "New data keys: set aws_key_management_master_key_id = {master_key_arn} in the server's configuration, and with SET GLOBAL\n"
            );
        }
        text
    }
}
