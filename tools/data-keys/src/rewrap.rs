//! `rewrap`: wraps the data keys under another master key.
//!
//! Each file separately: KMS wraps its key under the new master key, the result is decrypted and
//! compared, and only then replaces the old file. The files alone show the progress, so an interrupted
//! run can simply be repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use aws_session::master_key_id::MasterKeyId;
use broker_api::Failure;
use clap::Args;
use key_files::{
    fault_points::{self, Step},
    key_directory::KeyDirectory,
    key_name::KeyName,
};
use subtle::ConstantTimeEq;
use tracing::info;

use crate::{
    DataKeysError, Outcome,
    access::{Access, AccessArguments},
    concurrent::each,
    data_keys, names, print,
    regional_kms::RegionalKms,
    regional_kms::Unwrapped,
    runtime,
    stored::{StoreArguments, open_with, rewrapped::Rewrapped},
    unwrapping::failed,
};

/// Wrap every data key under another master key
#[derive(Debug, Args)]
#[command(after_help = "\
Works while the server runs, and can be interrupted and repeated at any time.
A file is replaced only after the new one was verified to contain the same data
key. In a key store, the new form is added and the old one stays. Name a KEY of
another region or account by its ARN.")]
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
    let names = names::check(&directory, &directory.list()?);
    let access = arguments.access.open()?;
    let store = match arguments.store.location(&arguments.access) {
        Ok(location) if !arguments.dry_run => Some(open_with(&location, &access)?),
        Ok(_) | Err(DataKeysError::NoStore) => None,
        Err(error) => return Err(error),
    };
    let summary = runtime()?.block_on(async {
        let mut rewrapping = Rewrapping::new(arguments, &directory, &access).await?;
        if let Some(store) = store {
            let versions = store.list().await?;
            rewrapping.stored = Some(Rewrapped { store, versions });
        }
        rewrapping.run_until_no_file_is_new().await
    })?;
    print(&summary.text(arguments.dry_run))?;
    Ok(names.unless_failed(summary.failed))
}

struct Rewrapping<'a> {
    directory: &'a KeyDirectory,
    source: RegionalKms,
    destination: RegionalKms,
    master_key_arn: String,
    dry_run: bool,
    stored: Option<Rewrapped>,
}

/// What was done.
struct Summary {
    master_key_arn: String,
    /// The number of keys that each other master key had wrapped.
    moved: BTreeMap<String, usize>,
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

    /// The server may create keys meanwhile, under the old master key.
    async fn run_until_no_file_is_new(self) -> Result<Summary, DataKeysError> {
        if !self.dry_run {
            for name in self.directory.remove_stale_temporaries()? {
                info!("removed {name}, which a killed program left behind");
            }
        }
        let mut summary = Summary {
            master_key_arn: self.master_key_arn.clone(),
            moved: BTreeMap::new(),
            left: 0,
            failed: 0,
        };
        let mut seen = BTreeSet::new();
        loop {
            let mut keys = self.directory.list()?.keys;
            keys.retain(|name| seen.insert(*name));
            if keys.is_empty() {
                return Ok(summary);
            }
            let work = async |name: &KeyName| self.rewrap(name).await;
            let (mut left, mut moved) = (0, Vec::new());
            summary.failed += each(&keys, work, |_, before| {
                if before == self.master_key_arn {
                    left += 1;
                } else {
                    moved.push(before);
                }
            })
            .await;
            summary.left += left;
            for before in moved {
                *summary.moved.entry(before).or_default() += 1;
            }
        }
    }

    /// Returns the ARN of the master key that wrapped the data key before.
    async fn rewrap(&self, name: &KeyName) -> Result<String, String> {
        let failed = |failure: Failure| failed(self.directory, name, &failure);
        let old = self
            .directory
            .read(name)
            .map_err(|error| error.to_string())?;
        let before = self.unwrap(&old).await.map_err(failed)?;
        if before.master_key_arn == self.master_key_arn {
            // An earlier run may have been interrupted before it came to the key store.
            self.put_into_store(name, &before, &old).await?;
            return Ok(before.master_key_arn);
        }
        if self.dry_run {
            self.try_wrap(&old).await.map_err(failed)?;
            return Ok(before.master_key_arn);
        }
        let new = self.wrap(&old, &before).await.map_err(failed)?;
        fault_points::reach(Step::Generated);
        let after = self
            .destination
            .decrypt(&new, Some(&self.master_key_arn))
            .await
            .map_err(failed)?;
        if !bool::from(after.key.expose().ct_eq(before.key.expose())) {
            return Err(format!(
                "key file '{}' was not changed: KMS wrapped a different data key; try again",
                self.directory.path_of(name).display()
            ));
        }
        fault_points::reach(Step::Unwrapped);
        self.directory
            .replace(name, &old, &new)
            .map_err(|error| error.to_string())?;
        self.put_into_store(name, &before, &new).await?;
        Ok(before.master_key_arn)
    }

    async fn put_into_store(
        &self,
        name: &KeyName,
        unwrapped: &Unwrapped,
        new: &[u8],
    ) -> Result<(), String> {
        match &self.stored {
            Some(stored) => stored.put(name, unwrapped, new, &self.master_key_arn).await,
            None => Ok(()),
        }
    }

    fn is_one_region(&self) -> bool {
        self.source.region() == self.destination.region()
    }

    /// Decrypts a file that is under the old master key, or under the new one after an earlier run.
    async fn unwrap(&self, blob: &[u8]) -> Result<Unwrapped, Failure> {
        let at_source = self.source.decrypt(blob, None).await;
        match at_source {
            Err(failure) if !self.is_one_region() && !failure.kind.is_retryable() => {
                let key = Some(self.master_key_arn.as_str());
                let at_destination = self.destination.decrypt(blob, key).await;
                at_destination.map_err(|_| failure)
            }
            answered => answered,
        }
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

impl Summary {
    fn text(&self, dry_run: bool) -> String {
        let Self {
            master_key_arn,
            moved,
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
        for (arn, count) in moved {
            text += &format!(
                "{} of {arn}: copies in backups remain under it, so keep it as long as they may be restored\n",
                data_keys(*count)
            );
        }
        if all > 0 {
            text += &format!(
                "New data keys: set aws_key_management_master_key_id = {master_key_arn} in the server's configuration, and with SET GLOBAL\n"
            );
        }
        text
    }
}
