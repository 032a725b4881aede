//! `import`: wraps the keys of file_key_management, or exported ones, into key files.

use std::path::PathBuf;

use aws_session::master_key_id::MasterKeyId;
use broker_api::Failure;
use clap::Args;
use key_files::PlaintextKey;
use key_files::{
    key_directory::{KeyDirectory, Stored, VersionPolicy},
    key_name::{Algorithm, KeyName},
    manifest::ManifestFile,
};
use offline_keys::{derivation::Derivation, file::KeyFile, text::OfflineKey};
use subtle::ConstantTimeEq;
use tracing::info;

use crate::{
    DataKeysError, Outcome, access::AccessArguments, block_on, concurrent::each, data_keys,
    derivation::DerivationArguments, directories::Directories, manifest, names,
    option_value::one_of, password::PasswordArguments, print_summary, regional_kms::RegionalKms,
    regional_kms::Unwrapped, unwrapping::failed,
};

/// Wrap the keys of a file_key_management or exported file
#[derive(Debug, Args)]
#[command(after_help = "\
KMS wraps each key and decrypts it to compare. Ids and versions stay. Nothing is
overwritten. Stop the server first, and start it with aws_key_management after.
ALGORITHM, DIGEST and NUMBER: file_key_management_encryption_algorithm, _digest
and _use_pbkdf2 (before MariaDB 12.0.1: sha1 and 0), or -md and -iter of openssl
enc. Without DIGEST and NUMBER, import tries common ones, for up to a minute.")]
pub(crate) struct Arguments {
    /// The master key: id, ARN, alias or alias ARN
    #[arg(long, value_name = "KEY")]
    master_key_id: MasterKeyId,

    /// For keys whose lines name none
    #[arg(long, value_parser = one_of(Algorithm::NAMED), hide_possible_values = true, default_value = "AES_CBC")]
    algorithm: Algorithm,

    #[command(flatten)]
    password: PasswordArguments,

    #[command(flatten)]
    derivation: DerivationArguments,

    #[command(flatten)]
    access: AccessArguments,

    /// The file with the keys
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    directories: Directories,
}

/// Wraps all keys and writes them. It can be run again: existing key files are compared, and left
/// unchanged.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = arguments.directories.key_files()?;
    let manifest = arguments.directories.manifest()?;
    let names = names::check(&directory, &directory.list()?);
    let keys = read(arguments)?;
    compare_with_manifest(arguments, &manifest, &keys)?;
    let there = those_there(&directory, &keys)?;
    let access = arguments.access.open()?;
    let (mut written, mut left) = (0, 0);
    let failed = block_on(async {
        let (kms, master_key_arn) =
            RegionalKms::of_master_key(&access, &arguments.master_key_id).await?;
        let import = Import {
            directory: &directory,
            kms,
            master_key_arn,
        };
        let work = async |key: &OfflineKey| match there.contains(&key.name) {
            true => import.prove(key).await.map(|()| false),
            false => import.wrap(key).await,
        };
        let count = |_: &OfflineKey, is_new| match is_new {
            true => written += 1,
            false => left += 1,
        };
        Ok::<_, DataKeysError>(each(&keys, work, count).await)
    })??;
    let printed = print_summary(&format!(
        "{} imported into '{}' under {}, {left} existed already, {failed} failed\n{}",
        data_keys(written),
        directory.path().display(),
        arguments.master_key_id.as_str(),
        manifest::not_compared(&manifest)
    ));
    names.unless_failed(failed).despite(printed)
}

/// Reads the file. Prompts for the password if it needs one.
fn read(arguments: &Arguments) -> Result<Vec<OfflineKey>, DataKeysError> {
    let file = KeyFile::read(&arguments.file)?;
    if !file.is_encrypted() {
        return Ok(file.keys(None, [], arguments.algorithm)?);
    }
    let password = arguments.password.get()?;
    let mut last = None;
    let candidates = arguments.derivation.candidates();
    let keys = file.keys(
        Some(&password),
        candidates.inspect(|candidate| last = Some(*candidate)),
        arguments.algorithm,
    )?;
    if let Some(Derivation {
        digest,
        pbkdf2_iterations,
    }) = last
    {
        info!("the file was decrypted with --digest={digest} --iterations={pbkdf2_iterations}");
    }
    Ok(keys)
}

/// Fails if the manifest of this directory lists another key under the name of one of these: the server would not
/// start with it.
fn compare_with_manifest(
    arguments: &Arguments,
    manifest: &ManifestFile,
    keys: &[OfflineKey],
) -> Result<(), DataKeysError> {
    let wrong: Vec<_> = keys
        .iter()
        .filter(|key| manifest.check(&key.name, &key.key).is_err())
        .map(|key| key.name.to_string())
        .collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(DataKeysError::NotImported(format!(
            "'{}' lists other keys than '{}' holds as {}; import the keys of this server, or into the directory of the server that had them",
            manifest.path().display(),
            arguments.file.display(),
            wrong.join(", ")
        ))),
    }
}

/// Returns the keys that have a key file already. Fails if there is a version of a key that the file
/// does not contain, or another algorithm: their data would be mixed up.
fn those_there(
    directory: &KeyDirectory,
    keys: &[OfflineKey],
) -> Result<Vec<KeyName>, DataKeysError> {
    let mut there = directory.list()?.keys;
    there.retain(|name| keys.iter().any(|key| key.name.id == name.id));
    for name in &there {
        if !keys.iter().any(|key| key.name == *name) {
            return Err(DataKeysError::NotImported(format!(
                "'{}' is another version of a key to be imported; import into a directory without it",
                directory.path_of(name).display()
            )));
        }
    }
    Ok(there)
}

struct Import<'a> {
    directory: &'a KeyDirectory,
    kms: RegionalKms,
    master_key_arn: String,
}

impl Import<'_> {
    /// Returns whether the key file is new. If another program has created it meanwhile, it must
    /// contain the same key.
    async fn wrap(&self, offline_key: &OfflineKey) -> Result<bool, String> {
        let OfflineKey { name, key } = offline_key;
        let failed = |failure: Failure| failed(self.directory, name, &failure.message);
        let encrypted = self.kms.encrypt(key, &self.master_key_arn).await;
        let blob = encrypted.map_err(failed)?;
        let decrypted = self.kms.decrypt(&blob, Some(&self.master_key_arn)).await;
        if !is_same(&decrypted.map_err(failed)?, key) {
            return Err(format!(
                "key file '{}' was not created: KMS wrapped a different data key; try again",
                self.directory.path_of(name).display()
            ));
        }
        let placement = VersionPolicy::Exactly {
            version: name.version,
        };
        let stored = self
            .directory
            .store(name.id, name.algorithm, placement, &blob)
            .map_err(|error| error.to_string())?;
        match stored {
            Stored::New(_) => Ok(true),
            Stored::Exists => self.prove(offline_key).await.map(|()| false),
        }
    }

    /// Fails unless the existing key file contains the same key.
    async fn prove(&self, OfflineKey { name, key }: &OfflineKey) -> Result<(), String> {
        let blob = self
            .directory
            .read(name)
            .map_err(|error| error.to_string())?;
        let decrypted = self.kms.decrypt(&blob, None).await;
        let there = decrypted.map_err(|failure| failed(self.directory, name, &failure.message))?;
        match is_same(&there, key) {
            true => Ok(()),
            false => Err(format!(
                "key file '{}' was not changed: it contains another key than the imported file",
                self.directory.path_of(name).display()
            )),
        }
    }
}

fn is_same(unwrapped: &Unwrapped, key: &PlaintextKey) -> bool {
    unwrapped.key.expose().ct_eq(key.expose()).into()
}
