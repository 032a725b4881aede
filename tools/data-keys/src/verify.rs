//! `verify`: decrypts every data key, and compares it with the manifest.

use std::{cell::RefCell, collections::BTreeMap};

use clap::Args;
use key_files::{
    key_directory::{KeyDirectory, Listing},
    key_name::KeyName,
    manifest::ManifestFile,
};
use serde_json::json;
use tracing::warn;

use crate::{
    DataKeysError, Outcome, block_on,
    concurrent::each,
    data_keys,
    directories::Directories,
    manifest,
    names::{self, WrongNames},
    print, print_json,
    textfile::{Metrics, TextfileArguments, unix_seconds},
    unwrapping::{Problem, Unwrapper, UnwrapperArguments},
};

/// Decrypt every data key, and report those that fail or are wrong
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    unwrapper: UnwrapperArguments,

    /// Print the results as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    textfile: TextfileArguments,

    #[command(flatten)]
    directories: Directories,
}

/// What was found out about one key version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Finding {
    /// KMS has decrypted it, and it is the key that the manifest lists.
    Verified,
    /// The broker has it in memory and did not ask KMS.
    Cached,
    /// The manifest lists it, and only newer versions of its key have a file. It may have been moved away.
    Absent,
    /// Nobody could be asked, or the file may not be read: nothing is known of it.
    NotChecked,
    /// It is another key than the manifest lists.
    WrongKey,
    /// The master key is disabled, pending deletion or of the wrong kind.
    MasterKeyUnusable,
    /// It could not be decrypted for another reason.
    Failed,
    /// The manifest lists it as the newest of its key, and its file is missing.
    Missing,
}

impl Finding {
    const ALL: [Self; 8] = [
        Self::Verified,
        Self::Cached,
        Self::Absent,
        Self::NotChecked,
        Self::WrongKey,
        Self::MasterKeyUnusable,
        Self::Failed,
        Self::Missing,
    ];

    /// The word for it in JSON and metrics.
    fn word(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Cached => "cached",
            Self::Absent => "absent",
            Self::NotChecked => "not_checked",
            Self::WrongKey => "wrong_key",
            Self::MasterKeyUnusable => "master_key_unusable",
            Self::Failed => "failed",
            Self::Missing => "missing",
        }
    }
}

/// All findings, and the reasons of those that are bad.
type Findings = BTreeMap<KeyName, (Finding, Option<String>)>;

/// Decrypts all keys, reports failures, and prints a summary.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = arguments.directories.key_files()?;
    let listing = directory.list()?;
    let manifest = arguments.directories.manifest()?;
    let wrong = names::find(&directory, &listing);
    if manifest.is_empty() {
        names::expect_any(&directory, &listing.keys)?;
    }
    // Without key files, only a key server can be asked, and no credentials are needed.
    let has_work = !listing.keys.is_empty() || arguments.unwrapper.broker_socket.is_some();
    let unwrapper = match has_work {
        true => Some(arguments.unwrapper.open()?),
        false => None,
    };
    let key_server = unwrapper
        .as_ref()
        .and_then(|unwrapper| unwrapper.of_key_server(&listing));
    let mut findings = Findings::new();
    let mut older = Vec::new();
    if key_server.is_none() {
        let missing = manifest::missing(&manifest, &directory, &listing);
        for reason in manifest::reasons(&missing) {
            warn!("{reason}");
        }
        for (name, reason) in missing {
            findings.insert(name, (Finding::Missing, Some(reason)));
        }
        older = manifest::older_without_file(&manifest, &listing);
        findings.extend(older.iter().map(|name| (*name, (Finding::Absent, None))));
    }
    if let Some(unwrapper) = &unwrapper {
        decrypt(unwrapper, &directory, &listing, &manifest, &mut findings)?;
    }
    let printed = match arguments.json {
        true => print_json(&as_json(&findings, &manifest, &wrong)),
        false => print(&(summary(&findings, &manifest) + &manifest::without_file(&older))),
    };
    let metrics = metrics(&findings, &manifest, &wrong);
    let written = printed.and(metrics.write(arguments.textfile.path()));
    let bad = findings
        .values()
        .filter(|(finding, _)| *finding > Finding::NotChecked)
        .count();
    match (
        wrong.outcome().unless_failed(bad),
        count(&findings, Finding::NotChecked),
    ) {
        (Outcome::Good, 1..) => Outcome::unknown(DataKeysError::NotVerified, written),
        (outcome, _) => outcome.despite(written),
    }
}

/// Decrypts all keys that have a file, or are on a key server, and compares them with the manifest.
fn decrypt(
    unwrapper: &Unwrapper,
    directory: &KeyDirectory,
    listing: &Listing,
    manifest: &ManifestFile,
    findings: &mut Findings,
) -> Result<(), DataKeysError> {
    let key_server = unwrapper.of_key_server(listing);
    let mut keys = listing.keys.clone();
    if key_server.is_some() {
        let listed = manifest.entries().into_iter().map(|entry| entry.name);
        keys.extend(listed.filter(|name| !listing.has(name)));
    }
    let failures = RefCell::new(Findings::new());
    let fail = |name: &KeyName, finding, reason: String| {
        let entry = (finding, Some(reason.clone()));
        failures.borrow_mut().insert(*name, entry);
        reason
    };
    let work = async |name: &KeyName| {
        let key_server = key_server.filter(|_| !listing.has(name));
        let unwrapped = match key_server {
            Some(key_server) => key_server.get(name).await,
            None => unwrapper.try_unwrap(directory, name).await,
        };
        let unwrapped = unwrapped.map_err(|failure| {
            let finding = match failure.problem {
                Problem::MasterKeyUnusable => Finding::MasterKeyUnusable,
                Problem::Failed => Finding::Failed,
                Problem::NotChecked => Finding::NotChecked,
            };
            fail(name, finding, failure.message)
        })?;
        let checked = match key_server {
            Some(_) => manifest::check_of_key_server(manifest, name, &unwrapped.key),
            None => manifest::check(manifest, directory, name, &unwrapped.key),
        };
        match checked {
            Ok(()) => Ok(unwrapped),
            Err(reason) => Err(fail(name, Finding::WrongKey, reason)),
        }
    };
    block_on(each(&keys, work, |name, unwrapped| {
        let finding = match unwrapped.is_from_kms {
            true => Finding::Verified,
            false => Finding::Cached,
        };
        findings.insert(*name, (finding, None));
    }))?;
    findings.append(&mut failures.into_inner());
    Ok(())
}

fn count(findings: &Findings, wanted: Finding) -> usize {
    let is_it = |it: &&(Finding, Option<String>)| it.0 == wanted;
    findings.values().filter(is_it).count()
}

fn summary(findings: &Findings, manifest: &ManifestFile) -> String {
    let not_verified = match count(findings, Finding::Cached) {
        0 => String::new(),
        kept => format!(
            ", {} from the broker's cache only: KMS was not asked",
            data_keys(kept)
        ),
    };
    let some = |wanted, word| match count(findings, wanted) {
        0 => String::new(),
        count => format!(", {count} {word}"),
    };
    let missing = some(Finding::Missing, "missing");
    let not_checked = some(Finding::NotChecked, "not checked");
    let failed: usize = [
        Finding::WrongKey,
        Finding::MasterKeyUnusable,
        Finding::Failed,
    ]
    .map(|it| count(findings, it))
    .iter()
    .sum();
    format!(
        "{} verified at KMS, {failed} failed{missing}{not_checked}{not_verified}\n{}",
        data_keys(count(findings, Finding::Verified)),
        manifest::not_compared(manifest)
    )
}

fn as_json(findings: &Findings, manifest: &ManifestFile, wrong: &WrongNames) -> serde_json::Value {
    let keys: Vec<_> = findings
        .iter()
        .map(|(name, (finding, reason))| {
            json!({
                "id": name.id,
                "version": name.version,
                "algorithm": name.algorithm.to_string(),
                "result": finding.word(),
                "reason": reason,
            })
        })
        .collect();
    json!({
        "manifest": !manifest.is_empty(),
        "keys": keys,
        "conflicts": wrong.conflicts,
        "malformed": wrong.malformed,
    })
}

fn metrics(findings: &Findings, manifest: &ManifestFile, wrong: &WrongNames) -> Metrics {
    let mut metrics = Metrics::new("verify");
    metrics.gauge(
        "key_versions",
        "Key versions by the result of kms-data-keys verify.",
        "result",
        Finding::ALL
            .map(|it| (it.word(), count(findings, it)))
            .into_iter()
            .chain([
                ("conflict", wrong.conflicts.len()),
                ("malformed", wrong.malformed.len()),
            ])
            .map(|(result, count)| (result.into(), count as u64)),
    );
    let newest: BTreeMap<u32, u64> = manifest
        .entries()
        .iter()
        .map(|entry| (entry.name.id, unix_seconds(entry.recorded)))
        .collect();
    metrics.gauge(
        "newest_version_timestamp_seconds",
        "When the newest version of each key was made.",
        "key_id",
        newest.into_iter().map(|(id, time)| (id.to_string(), time)),
    );
    metrics
}
