//! `list --store`: compares the key files of a host with the key store.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use broker_api::{KeyContext, ListKeys, Reply, Request, client::BrokerClient};
use futures_util::{StreamExt, TryStreamExt, stream};
use key_files::{
    check_value::CheckValue, key_directory::KeyDirectory, key_name::KeyName, manifest::ManifestFile,
};
use serde_json::json;

use crate::{
    DataKeysError, Outcome,
    access::AccessArguments,
    print,
    progress::Progress,
    runtime,
    stored::{StoreArguments, open, without_manifest},
    table,
    textfile::Metrics,
    unwrapping::BROKER_MARGIN,
};

/// How many objects are read at the same time.
const READS: usize = 16;

/// The keys of a store, with their check values.
type Stored = BTreeMap<(u32, u32), (KeyName, CheckValue)>;

/// Where a key version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Same,
    /// No check value is known here.
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
    let (location, stored) = match comparison.broker_socket {
        Some(socket) => ask_broker(socket)?,
        None => {
            let location = comparison.store.location(comparison.access)?;
            let store = open(&location, comparison.access)?;
            let stored = runtime()?.block_on(async {
                let versions = store.list().await?;
                let progress = Progress::of_keys(versions.len());
                stream::iter(versions)
                    .map(|((id, version), _)| store.get(id, version, 0))
                    .buffered(READS)
                    .inspect(|_| progress.add(1))
                    .try_filter_map(async |key| Ok(key))
                    .map_ok(|key| (number(&key.name), (key.name, key.check_value)))
                    .try_collect::<Stored>()
                    .await
            })?;
            (location.to_string(), stored)
        }
    };
    // A key that the manifest lists belongs here, even if its file is gone.
    let mut here: BTreeMap<_, _> = manifest
        .entries()
        .into_iter()
        .map(|entry| {
            (
                number(&entry.name),
                Here {
                    name: entry.name,
                    check_value: Some(entry.check_value),
                    has_file: false,
                },
            )
        })
        .collect();
    for name in comparison.directory.list()?.keys {
        let listed = here.get(&number(&name)).filter(|it| it.name == name);
        let check_value = listed.and_then(|it| it.check_value);
        let has_file = true;
        here.insert(
            number(&name),
            Here {
                name,
                check_value,
                has_file,
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
    metrics.write(comparison.textfile)?;
    if comparison.json {
        let keys: Vec<_> = states
            .iter()
            .map(|(name, state)| {
                json!({
                    "id": name.id,
                    "version": name.version,
                    "algorithm": name.algorithm.to_string(),
                    "state": state.identifier(),
                })
            })
            .collect();
        print(&json!({ "key_store": location, "keys": keys }).to_string())?;
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
        print(&table::layout(
            ["ID", "VERSION", "ALGORITHM", "STATE"],
            &rows,
        ))?;
        print(&summary(&location, &count))?;
        if count(State::NotCompared) > 0 && manifest.is_empty() {
            print(&format!("Not compared: {}", without_manifest(&manifest)))?;
        }
    }
    Ok(match () {
        () if count(State::Differs) > 0 => Outcome::Differs,
        () if count(State::OnlyHere) + count(State::Nowhere) > 0 => Outcome::Bad,
        () if count(State::OnlyStored) > 0 => Outcome::OnlyStored,
        () => Outcome::Good,
    })
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
            "Not found anywhere, although listed: {}. If kms-data-keys check reports them as not needed, ignore this. Otherwise restore them from a backup\n",
            count(State::Nowhere)
        );
    }
    if count(State::Differs) > 0 {
        text += &format!(
            "Different keys here and in the key store: {}. It belongs to another server, or to servers that made keys independently\n",
            count(State::Differs)
        );
    }
    text
}

/// What is known of a key version here.
struct Here {
    name: KeyName,
    check_value: Option<CheckValue>,
    has_file: bool,
}

fn number(name: &KeyName) -> (u32, u32) {
    (name.id, name.version)
}

fn states(here: &BTreeMap<(u32, u32), Here>, stored: &Stored) -> Vec<(KeyName, State)> {
    let mut states: BTreeMap<(u32, u32), (KeyName, State)> = stored
        .iter()
        .map(|(&number, &(name, _))| (number, (name, State::OnlyStored)))
        .collect();
    for (&number, here) in here {
        let state = match (stored.get(&number), here.check_value) {
            (None, _) if here.has_file => State::OnlyHere,
            (None, _) => State::Nowhere,
            (Some((other, _)), _) if *other != here.name => State::Differs,
            (Some((_, other)), Some(check_value)) if *other != check_value => State::Differs,
            (Some(_), _) if !here.has_file => State::OnlyStored,
            (Some(_), None) => State::NotCompared,
            (Some(_), Some(_)) => State::Same,
        };
        states.insert(number, (here.name, state));
    }
    states.into_values().collect()
}

/// Has a running broker list its key store.
fn ask_broker(socket: &Path) -> Result<(String, Stored), DataKeysError> {
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
    let location = state.key_store.ok_or_else(|| {
        failed("the broker has no key store (key_store in its configuration)".into())
    })?;
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
        stored.extend(
            keys.into_iter()
                .map(|(name, check)| (number(&name), (name, check))),
        );
        if next.is_none() {
            return Ok((location, stored));
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

    #[test]
    fn a_key_is_compared_by_algorithm_and_check_value() {
        let check = |byte| CheckValue::of(&PlaintextKey::new(&[byte; 16]).unwrap());
        let name = |version, algorithm| KeyName {
            id: 1,
            version,
            algorithm,
        };
        let cbc = |version| name(version, Algorithm::AesCbc);
        let here = [
            (cbc(1), Some(check(1)), true),
            (cbc(2), Some(check(2)), true),
            (cbc(3), None, true),
            (cbc(4), Some(check(4)), true),
            (name(5, Algorithm::AesCtr), Some(check(5)), true),
            (cbc(7), Some(check(7)), false),
            (cbc(8), Some(check(8)), false),
            (cbc(9), Some(check(9)), false),
        ];
        let here = here.map(|(name, check_value, has_file)| {
            let here = Here {
                name,
                check_value,
                has_file,
            };
            (number(&name), here)
        });
        let here = here.into_iter().collect();
        let stored = [
            (cbc(1), check(1)),
            (cbc(2), check(9)),
            (cbc(3), check(3)),
            (cbc(5), check(5)),
            (cbc(6), check(6)),
            (cbc(8), check(8)),
            (cbc(9), check(1)),
        ];
        let stored = stored
            .into_iter()
            .map(|it| ((1, it.0.version), it))
            .collect();
        let states: Vec<_> = states(&here, &stored).into_iter().map(|it| it.1).collect();
        assert_eq!(
            states,
            [
                State::Same,
                State::Differs,
                State::NotCompared,
                State::OnlyHere,
                State::Differs,
                State::OnlyStored,
                State::Nowhere,
                State::OnlyStored,
                State::Differs
            ]
        );
    }
}
