//! `list`: lists the data keys.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::Args;
use key_files::{
    key_directory::{KeyDirectory, Listing},
    key_name::KeyName,
};

use aws_session::key_store_location::KeyStoreLocation;

use crate::{
    DataKeysError, Outcome, block_on,
    concurrent::each,
    names, print,
    stored::{
        StoreArguments,
        compare::{self, Comparison},
    },
    table,
    unwrapping::UnwrapperArguments,
};

/// List the data keys: id, version, algorithm, file, age
#[derive(Debug, Args)]
#[command(after_help = "\
With --store, the exit status says what differs: 1 if keys are only here, and
would be lost with this host, or in neither place, or a file cannot be used; 2
if keys are only in the key store; 3 if some keys differ; 125 if some could not
be compared.")]
pub(crate) struct Arguments {
    /// Decrypt each key, and list its length and master key too
    #[arg(long)]
    kms: bool,

    /// Compare with a key store; default: that of the configuration or broker
    #[arg(
        long,
        value_name = "LOCATION",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with = "kms"
    )]
    store: Option<Option<KeyStoreLocation>>,

    /// Print the comparison as JSON
    #[arg(long, requires = "store")]
    json: bool,

    /// Also write metrics for node_exporter
    #[arg(long, value_name = "FILE.prom", requires = "store")]
    textfile: Option<PathBuf>,

    #[command(flatten)]
    unwrapper: UnwrapperArguments,

    /// The directory with the key manifest, if not DIR
    #[arg(long, value_name = "DATADIR", requires = "store")]
    datadir: Option<PathBuf>,

    /// The data directory, or aws_key_management_keyfile_dir if that is set
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Prints the table, and reports files that are not key files, that are duplicates, or that cannot be
/// decrypted.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let directory = KeyDirectory::open(&arguments.directory)?;
    if let Some(location) = &arguments.store {
        return compare::run(&Comparison {
            store: &StoreArguments {
                store: location.clone(),
            },
            access: &arguments.unwrapper.access,
            broker_socket: arguments.unwrapper.broker_socket.as_deref(),
            datadir: arguments.datadir.as_ref(),
            directory: &directory,
            path: &arguments.directory,
            json: arguments.json,
            textfile: arguments.textfile.as_deref(),
        });
    }
    let listing = directory.list()?;
    let names = names::check(&directory, &listing);
    names::expect_any(&directory, &listing.keys)?;
    let now = SystemTime::now();
    let mut rows = Vec::new();
    for key in &listing.keys {
        let written = directory.modified(key)?;
        rows.push([
            key.id.to_string(),
            key.version.to_string(),
            key.algorithm.to_string(),
            key.to_string(),
            age(now.duration_since(written).unwrap_or_default()),
        ]);
    }
    let titles = ["ID", "VERSION", "ALGORITHM", "FILE", "AGE"];
    if !arguments.kms {
        return names.despite(print(&table::layout(titles, &rows)));
    }
    let known = ask_kms(arguments, &directory, &listing)?;
    let rows: Vec<_> = listing
        .keys
        .iter()
        .zip(rows)
        .map(|(key, [id, version, algorithm, file, age])| {
            let (bytes, master_key) = match known.get(key) {
                Some(known) => (known.bytes.to_string(), known.master_key_arn.clone()),
                None => ("-".into(), "-".into()),
            };
            [id, version, algorithm, bytes, master_key, file, age]
        })
        .collect();
    let [id, version, algorithm, file, age] = titles;
    let titles = [id, version, algorithm, "BYTES", "MASTER_KEY", file, age];
    let printed = print(&table::layout(titles, &rows));
    let failed = listing.keys.len() - known.len();
    names.unless_failed(failed).despite(printed)
}

/// Details of a decrypted data key.
struct Known {
    bytes: usize,
    master_key_arn: String,
}

/// Decrypts all keys. Those that fail are reported and not in the result.
fn ask_kms(
    arguments: &Arguments,
    directory: &KeyDirectory,
    listing: &Listing,
) -> Result<BTreeMap<KeyName, Known>, DataKeysError> {
    let mut known = BTreeMap::new();
    let unwrapper = arguments.unwrapper.open()?;
    let work = async |name: &KeyName| unwrapper.unwrap(directory, name).await;
    block_on(each(&listing.keys, work, |name, unwrapped| {
        let answer = Known {
            bytes: unwrapped.key.expose().len(),
            master_key_arn: unwrapped.master_key_arn,
        };
        known.insert(*name, answer);
    }))?;
    Ok(known)
}

/// Formats an age in the largest unit that fits.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}
