//! Hosts that ask their real broker as the plugin does, with the plugin's own client, but without a server around it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aws_key_management::{
    concurrent,
    kms::client::{KmsClient, KmsError, Limits},
    settings::{GLOBAL_SETTINGS, StartupSettings},
};
use aws_session::config::TlsFiles;
use broker_api::{Numbering, WaitPolicy};
use end_to_end_tests::{
    Process, Sandbox,
    key_server::{configure_upstream, start_with_upstream},
};
use fastrand::Rng;
use key_files::{WrappedKey, check_value::CheckValue};

use crate::{World, versions::Number};

/// How long the plugin retries at a start (`keys::loading`), when it lists the keys (`keys::stored`), and in a rotation
/// (`keys::rotation`).
const START_PATIENCE: Duration = Duration::from_secs(30);
const LIST_PATIENCE: Duration = Duration::from_secs(15);
const ROTATION_PATIENCE: Duration = Duration::from_secs(12);
/// Keys that a host makes at most.
const KEYS: u32 = 6;
/// Longest pause between two of its actions, in milliseconds.
const PAUSE: u64 = 1500;

/// A host.
pub struct Client {
    addresses: Vec<String>,
    tls: TlsFiles,
    _sandbox: Sandbox,
    socket: PathBuf,
    _broker: Process,
    space: String,
    /// The keys that it has seen, as its manifest would list them.
    known: BTreeMap<Number, CheckValue>,
    rng: Rng,
}

impl Client {
    /// Starts its broker.
    pub fn new(addresses: &[String], tls: &TlsFiles, space: &str, rng: Rng) -> Self {
        let sandbox = Sandbox::new();
        let socket = configure_upstream(&sandbox, addresses, tls);
        let broker = start_with_upstream(&sandbox);
        Self {
            addresses: addresses.into(),
            tls: tls.clone(),
            _sandbox: sandbox,
            socket,
            _broker: broker,
            space: space.into(),
            known: BTreeMap::new(),
            rng,
        }
    }

    /// Starts, makes or rotates a key, and backs up.
    pub fn live(&mut self, world: &World) {
        let kms = client(&self.socket);
        self.start(world, &kms);
        self.pause();
        for id in 1..=2 {
            if !self.known.contains_key(&(id, 1)) {
                self.make(world, &kms, id, Numbering::First);
            }
        }
        let id = self.rng.u32(1..=KEYS);
        let latest = self.known.range((id, 0)..=(id, u32::MAX)).next_back();
        let numbering = latest.map_or(Numbering::First, |(&(_, known), _)| Numbering::Next {
            known,
        });
        self.make(world, &kms, id, numbering);
        self.pause();
        self.back_up();
        self.pause();
    }

    fn pause(&mut self) {
        thread::sleep(Duration::from_millis(self.rng.u64(..PAUSE)));
    }

    /// As `keys::loading` does it: loads all keys that it knows, and what else the key store has.
    fn start(&mut self, world: &World, kms: &KmsClient) {
        kms.check_broker().unwrap();
        let limits = || Limits {
            wait: WaitPolicy::Never,
            deadline: Some(Instant::now() + LIST_PATIENCE),
            may_retry: &|_| true,
            is_interrupted: &|| false,
        };
        assert!(kms.key_store(&limits()).unwrap().is_some());
        fetch(kms, &self.known, WaitPolicy::UntilOpen);
        let listed = kms.list_keys(&limits()).unwrap();
        let listed: BTreeMap<_, _> = listed
            .into_iter()
            .map(|(name, check)| (name.number(), check))
            .collect();
        for (number, check_value) in &self.known {
            assert_eq!(listed.get(number), Some(check_value), "{number:?}");
        }
        let new: BTreeMap<_, _> = listed
            .into_iter()
            .filter(|(number, _)| !self.known.contains_key(number))
            .collect();
        fetch(kms, &new, WaitPolicy::UntilOpen);
        for (number, check_value) in new {
            self.learn(world, number, check_value);
        }
    }

    /// As `keys::stored` does it, for a rotation or a new table.
    fn make(&mut self, world: &World, kms: &KmsClient, id: u32, numbering: Numbering) {
        let began = Instant::now();
        let limits = Limits {
            wait: WaitPolicy::Never,
            deadline: Some(began + START_PATIENCE),
            may_retry: &|_: &KmsError| began.elapsed() < ROTATION_PATIENCE,
            is_interrupted: &|| false,
        };
        let made = kms.make_key(String::new(), 16, (id, numbering), &limits);
        let (made, is_new): (WrappedKey, bool) = made.unwrap();
        let number = made.name.number();
        if is_new {
            world.versions.made(&self.space, number, made.check_value);
        } else {
            assert_eq!(numbering, Numbering::First, "{number:?}");
        }
        self.learn(world, number, made.check_value);
        let key = kms.decrypt(Vec::new(), Some(made.check_value), number, &limits);
        assert_eq!(CheckValue::of(&key.unwrap().key), made.check_value);
    }

    fn learn(&mut self, world: &World, number: Number, check_value: CheckValue) {
        world.versions.seen(&self.space, number, check_value);
        self.known.insert(number, check_value);
    }

    /// Loads all keys, as mariadb-backup does, through a broker that has just started.
    fn back_up(&self) {
        let sandbox = Sandbox::new();
        let socket = configure_upstream(&sandbox, &self.addresses, &self.tls);
        let _broker = start_with_upstream(&sandbox);
        fetch(&client(&socket), &self.known, WaitPolicy::Limited);
    }
}

fn client(socket: &Path) -> KmsClient {
    let settings = StartupSettings {
        broker_socket: socket.into(),
        ..StartupSettings::default()
    };
    KmsClient::new(&settings, &GLOBAL_SETTINGS)
}

/// Loads keys, as many at a time as the plugin does.
fn fetch(kms: &KmsClient, keys: &BTreeMap<Number, CheckValue>, wait: WaitPolicy) {
    let began = Instant::now();
    let work = |((id, version), check_value): (Number, CheckValue), _: &_| {
        let limits = Limits {
            wait,
            deadline: None,
            may_retry: &|_| began.elapsed() < START_PATIENCE,
            is_interrupted: &|| false,
        };
        let found = kms.find_key(id, Some(version), &limits)?;
        let key = kms.decrypt(Vec::new(), Some(check_value), (id, version), &limits)?;
        assert_eq!(found.map(|it| it.check_value), Some(check_value));
        assert_eq!(CheckValue::of(&key.key), check_value, "{id}.{version}");
        Ok::<_, KmsError>(())
    };
    let items = keys.iter().map(|(&number, &check)| (number, check));
    let left = concurrent::for_each(items.collect(), work, |result| {
        result.is_none_or(|result| {
            result.unwrap();
            true
        })
    });
    assert!(left.is_empty(), "{left:?}");
}
