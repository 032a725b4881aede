//! `list --store`: compares the key files of a host with the key store.
//!
//! Nothing is decrypted. A file that is the same, byte for byte, as a form of the key in the store is that key. What
//! another file holds, only `verify` can find out. A broker tells no wrapped keys; then the manifest says which keys
//! the files should hold.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use broker_api::{KeyContext, ListKeys, Reply, Request, client::BrokerClient};
use futures_util::{StreamExt, stream};
use key_files::{
    check_value::CheckValue, key_directory::KeyDirectory, key_name::KeyName, manifest::ManifestFile,
};
use key_store::{Forms, KeyStore, StoreError, Versions};
use serde_json::json;
use tracing::warn;

use crate::{
    DataKeysError, Outcome,
    access::AccessArguments,
    block_on, manifest, names, print, print_json,
    progress::Progress,
    stored::{StoreArguments, open},
    table,
    textfile::Metrics,
    unwrapping::BROKER_MARGIN,
};

/// How many objects are read at the same time.
const READS: usize = 16;

/// The keys of a store.
pub(crate) type Stored = BTreeMap<(u32, u32), There>;

/// What is known of a key version in the store.
pub(crate) struct There {
    pub name: KeyName,
    check_value: CheckValue,
    /// Its first form and its latest one, wrapped; `None`: a broker does not tell.
    forms: Option<Vec<Vec<u8>>>,
}

/// Where a key version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Same,
    /// It is not known which key the file holds.
    NotCompared,
    OnlyStored,
    OnlyHere,
    /// The manifest lists it, and it is nowhere.
    Nowhere,
    Differs,
}

impl State {
    const ALL: [Self; 6] = [
        Self::Same,
        Self::NotCompared,
        Self::OnlyStored,
        Self::OnlyHere,
        Self::Nowhere,
        Self::Differs,
    ];

    /// The word for it in JSON and metrics.
    fn identifier(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::NotCompared => "not_compared",
            Self::OnlyStored => "only_stored",
            Self::OnlyHere => "only_here",
            Self::Nowhere => "missing",
            Self::Differs => "differs",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same",
            Self::NotCompared => "not compared",
            Self::OnlyStored => "only in the key store",
            Self::OnlyHere => "only here",
            Self::Nowhere => "MISSING",
            Self::Differs => "DIFFERENT KEYS",
        })
    }
}

/// What to compare, and with what.
pub(crate) struct Comparison<'a> {
    pub store: &'a StoreArguments,
    pub access: &'a AccessArguments,
    pub broker_socket: Option<&'a Path>,
    pub datadir: Option<&'a PathBuf>,
    pub directory: &'a KeyDirectory,
    pub path: &'a PathBuf,
    pub json: bool,
    pub textfile: Option<&'a Path>,
}

/// Prints the table; the outcome is the worst of what it says.
pub(crate) fn run(comparison: &Comparison<'_>) -> Result<Outcome, DataKeysError> {
    if comparison.broker_socket.is_some() && comparison.store.store.is_some() {
        return Err(DataKeysError::Broker(
            "a broker lists its own key store; give either --broker-socket or --store=LOCATION"
                .into(),
        ));
    }
    let manifest = ManifestFile::open(comparison.datadir.unwrap_or(comparison.path))?;
    let (location, stored, objects) = match comparison.broker_socket {
        Some(socket) => {
            let (location, stored) = ask_broker(socket)?.ok_or_else(|| {
                DataKeysError::Broker(
                    "the broker has no key store (key_store in its configuration)".into(),
                )
            })?;
            (location, stored, Vec::new())
        }
        None => {
            let location = comparison.store.location(comparison.access)?;
            let store = open(&location, comparison.access)?;
            let (stored, objects) =
                block_on(async { read_all(&store, store.list().await?).await })??;
            (location.to_string(), stored, objects)
        }
    };
    // A key that the manifest lists belongs here, even if its file is gone.
    let mut here: BTreeMap<_, _> = manifest
        .entries()
        .into_iter()
        .map(|entry| {
            (
                entry.name.number(),
                Here {
                    name: entry.name,
                    check_value: Some(entry.check_value),
                    file: File::Absent,
                },
            )
        })
        .collect();
    let listing = comparison.directory.list()?;
    let wrong = names::find(comparison.directory, &listing);
    let mut unusable = BTreeMap::new();
    for name in listing.keys {
        let listed = here.get(&name.number()).filter(|it| it.name == name);
        let check_value = listed.and_then(|it| it.check_value);
        let file = match comparison.directory.read(&name) {
            Ok(content) => File::Content(content),
            Err(error) => {
                warn!("{error}");
                unusable.insert(name, error.to_string());
                File::Unusable
            }
        };
        here.insert(
            name.number(),
            Here {
                name,
                check_value,
                file,
            },
        );
    }
    let states = states(&here, &stored);
    let count = |wanted| states.iter().filter(|(_, state)| *state == wanted).count();
    let mut metrics = Metrics::new("store");
    metrics.gauge(
        "key_versions",
        "Key versions by the state that kms-data-keys list --store found.",
        "state",
        State::ALL.map(|state| (state.identifier().into(), count(state) as u64)),
    );
    let printed = if comparison.json {
        let keys: Vec<_> = states
            .iter()
            .map(|(name, state)| {
                json!({
                    "id": name.id,
                    "version": name.version,
                    "algorithm": name.algorithm.to_string(),
                    "state": state.identifier(),
                    "reason": unusable.get(name),
                })
            })
            .collect();
        print_json(&json!({
            "key_store": location,
            "keys": keys,
            "conflicts": wrong.conflicts,
            "malformed": wrong.malformed,
            "unusable_objects": objects,
        }))
    } else {
        let rows: Vec<_> = states
            .iter()
            .map(|(name, state)| {
                [
                    name.id.to_string(),
                    name.version.to_string(),
                    name.algorithm.to_string(),
                    state.to_string(),
                ]
            })
            .collect();
        let titles = ["ID", "VERSION", "ALGORITHM", "STATE"];
        let not_compared = match count(State::NotCompared) {
            0 => String::new(),
            some => not_compared(some, comparison, &manifest),
        };
        print(&(table::layout(titles, &rows) + &summary(&location, &count) + &not_compared))
    };
    let written = printed.and(metrics.write(comparison.textfile));
    let outcome = match () {
        () if count(State::Differs) > 0 => Outcome::Differs,
        () if count(State::OnlyHere) + count(State::Nowhere) > 0 => Outcome::Bad,
        () if !(unusable.is_empty() && objects.is_empty()) => Outcome::Bad,
        () if wrong.outcome() == Outcome::Bad => Outcome::Bad,
        () if count(State::OnlyStored) > 0 => Outcome::OnlyStored,
        () if count(State::NotCompared) > 0 => {
            return Outcome::unknown(DataKeysError::NotCompared, written);
        }
        () => Outcome::Good,
    };
    outcome.despite(written)
}

fn summary(location: &str, count: &impl Fn(State) -> usize) -> String {
    let mut text = format!(
        "{} in both places, {} only in the key store {location}, {} only here\n",
        count(State::Same) + count(State::NotCompared),
        count(State::OnlyStored),
        count(State::OnlyHere)
    );
    if count(State::OnlyHere) > 0 {
        text += "Keys that are only here would be lost with this host. Put them into the key store with kms-data-keys push\n";
    }
    if count(State::Nowhere) > 0 {
        text += &format!(
            "Not found anywhere, although listed: {}. Restore them from a backup. Those that were moved away because kms-data-keys check reported them as not needed: bring them back, run kms-data-keys push, and move them away again\n",
            count(State::Nowhere)
        );
    }
    if count(State::Differs) > 0 {
        text += &format!(
            "Different keys here and in the key store: {}. The key store belongs to another server, or to servers that made keys independently: correct key_store\n",
            count(State::Differs)
        );
    }
    text
}

/// Says why files were not compared, and what to do.
fn not_compared(count: usize, comparison: &Comparison<'_>, manifest: &ManifestFile) -> String {
    let why = match comparison.broker_socket {
        None => {
            "these files are not, byte for byte, what the key store has: they were rewrapped without it, so its keys are under the old master key (kms-data-keys rewrap with --config or --store), or the files are wrong"
                .into()
        }
        Some(_) if manifest.is_empty() => manifest::without_entries(manifest),
        Some(_) => format!(
            "'{}' does not list them, or the files cannot be used",
            manifest.path().display()
        ),
    };
    format!("Not compared: {count}: {why}. kms-data-keys verify decrypts them\n")
}

/// Reads what the store has of these versions. An object that is no key is reported and returned, and does not hide the
/// others.
pub(crate) async fn read_all(
    store: &KeyStore,
    versions: Versions,
) -> Result<(Stored, Vec<String>), StoreError> {
    let progress = Progress::of_keys(versions.len());
    let mut unusable = Vec::new();
    let mut stored = Stored::new();
    let mut found = stream::iter(versions)
        .map(|(number, forms)| read(store, number, forms))
        .buffered(READS)
        .inspect(|_| progress.add(1));
    while let Some(there) = found.next().await {
        match there {
            Ok(there) => stored.extend(there.map(|there| (there.name.number(), there))),
            Err(error @ StoreError::Invalid { .. }) => {
                warn!("{error}");
                unusable.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok((stored, unusable))
}

/// Reads what the store has of a key version; `None`: nothing any more.
async fn read(
    store: &KeyStore,
    (id, version): (u32, u32),
    listed: Forms,
) -> Result<Option<There>, StoreError> {
    let Some(first) = store.get(id, version, 0).await? else {
        return match listed.latest {
            0 => Ok(None),
            latest => Err(store.without_first(id, version, latest)),
        };
    };
    let mut forms = vec![first.ciphertext_blob];
    if listed.latest > 0
        && let Some(latest) = store.latest_form(id, version, listed.latest).await?
    {
        forms.push(latest.ciphertext_blob);
    }
    Ok(Some(There {
        name: first.name,
        check_value: first.check_value,
        forms: Some(forms),
    }))
}

/// What is known of a key version here.
struct Here {
    name: KeyName,
    /// That of the manifest.
    check_value: Option<CheckValue>,
    file: File,
}

#[derive(Debug, PartialEq, Eq)]
enum File {
    Absent,
    /// It is there, and can hold no key or not be read.
    Unusable,
    Content(Vec<u8>),
}

fn states(here: &BTreeMap<(u32, u32), Here>, stored: &Stored) -> Vec<(KeyName, State)> {
    let mut states: BTreeMap<(u32, u32), (KeyName, State)> = stored
        .iter()
        .map(|(&number, there)| (number, (there.name, State::OnlyStored)))
        .collect();
    for (&number, here) in here {
        let state = match stored.get(&number) {
            None if here.file == File::Absent => State::Nowhere,
            None => State::OnlyHere,
            Some(there) => state(here, there),
        };
        states.insert(number, (here.name, state));
    }
    states.into_values().collect()
}

/// The state of a key version that is in the store.
fn state(here: &Here, there: &There) -> State {
    let is_listed = here.check_value.is_some();
    if there.name != here.name || is_listed && here.check_value != Some(there.check_value) {
        return State::Differs;
    }
    match (&here.file, &there.forms) {
        (File::Absent, _) => State::OnlyStored,
        (File::Unusable, _) => State::NotCompared,
        (File::Content(content), Some(forms)) if forms.contains(content) => State::Same,
        (File::Content(_), None) if is_listed => State::Same,
        (File::Content(_), _) => State::NotCompared,
    }
}

/// Has a running broker list its key store. `None` if it has none.
pub(crate) fn ask_broker(socket: &Path) -> Result<Option<(String, Stored)>, DataKeysError> {
    let client = BrokerClient::new(socket);
    let failed = |why: String| DataKeysError::Broker(why);
    let ask = |request: &Request| {
        let reply = client.request(request, BROKER_MARGIN, |_| true);
        match reply.map_err(|error| failed(error.to_string()))? {
            Reply::Failed(failure) => Err(failed(failure.message)),
            reply => Ok(reply),
        }
    };
    let unexpected = || failed("the broker gave an unexpected answer; see its log".into());
    let Reply::Session(state) = ask(&Request::Session)? else {
        return Err(unexpected());
    };
    let Some(location) = state.key_store else {
        return Ok(None);
    };
    let mut stored = Stored::new();
    let mut after = None;
    loop {
        let request = Request::ListKeys(ListKeys {
            after,
            context: KeyContext::default(),
        });
        let Reply::KeyList { keys, next } = ask(&request)? else {
            return Err(unexpected());
        };
        stored.extend(keys.into_iter().map(|(name, check_value)| {
            let forms = None;
            let there = There {
                name,
                check_value,
                forms,
            };
            (name.number(), there)
        }));
        if next.is_none() {
            return Ok(Some((location, stored)));
        }
        if next <= after {
            return Err(unexpected());
        }
        after = next;
    }
}

#[cfg(test)]
mod tests {
    use key_files::{PlaintextKey, key_name::Algorithm};

    use super::*;

    fn check(byte: u8) -> CheckValue {
        CheckValue::of(&PlaintextKey::new(&[byte; 16]).unwrap())
    }

    fn name(version: u32, algorithm: Algorithm) -> KeyName {
        KeyName {
            id: 1,
            version,
            algorithm,
        }
    }

    /// The states of the versions, where the store has some keys in these forms.
    fn states_of(
        here: &[(KeyName, Option<CheckValue>, File)],
        stored: &[(KeyName, CheckValue)],
        forms: Option<&[&[u8]]>,
    ) -> Vec<State> {
        let copy = |file: &File| match file {
            File::Absent => File::Absent,
            File::Unusable => File::Unusable,
            File::Content(content) => File::Content(content.clone()),
        };
        let here = here.iter().map(|(name, check_value, file)| {
            let here = Here {
                name: *name,
                check_value: *check_value,
                file: copy(file),
            };
            (name.number(), here)
        });
        let stored = stored.iter().map(|&(name, check_value)| {
            let there = There {
                name,
                check_value,
                forms: forms.map(|forms| forms.iter().map(|form| form.to_vec()).collect()),
            };
            (name.number(), there)
        });
        states(&here.collect(), &stored.collect())
            .into_iter()
            .map(|it| it.1)
            .collect()
    }

    #[test]
    fn a_key_is_compared_by_algorithm_and_check_value() {
        let cbc = |version| name(version, Algorithm::AesCbc);
        let file = || File::Content(vec![1]);
        let here = [
            (cbc(1), Some(check(1)), file()),
            (cbc(2), Some(check(2)), file()),
            (cbc(3), None, file()),
            (cbc(4), Some(check(4)), file()),
            (name(5, Algorithm::AesCtr), Some(check(5)), file()),
            (cbc(7), Some(check(7)), File::Absent),
            (cbc(8), Some(check(8)), File::Absent),
            (cbc(9), Some(check(9)), File::Absent),
            (cbc(10), Some(check(1)), File::Unusable),
        ];
        let stored = [
            (cbc(1), check(1)),
            (cbc(2), check(9)),
            (cbc(3), check(3)),
            (cbc(5), check(5)),
            (cbc(6), check(6)),
            (cbc(8), check(8)),
            (cbc(9), check(1)),
            (cbc(10), check(1)),
        ];
        assert_eq!(
            states_of(&here, &stored, None),
            [
                State::Same,
                State::Differs,
                State::NotCompared,
                State::OnlyHere,
                State::Differs,
                State::OnlyStored,
                State::Nowhere,
                State::OnlyStored,
                State::Differs,
                State::NotCompared,
            ]
        );
    }

    #[test]
    fn a_file_is_the_key_whose_form_it_is() {
        let cbc = |version| name(version, Algorithm::AesCbc);
        let file = |byte| File::Content(vec![byte]);
        let here = [
            (cbc(1), None, file(1)),
            (cbc(2), Some(check(1)), file(2)),
            (cbc(3), Some(check(1)), file(3)),
            (cbc(4), Some(check(4)), file(1)),
        ];
        let stored = [1, 2, 3, 4].map(|version| (cbc(version), check(1)));
        assert_eq!(
            states_of(&here, &stored, Some(&[&[1], &[2]])),
            [State::Same, State::Same, State::NotCompared, State::Differs]
        );
    }
}
