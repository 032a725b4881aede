//! Every key version that a host was told of.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_session::config::TlsFiles;
use broker_api::Reply;
use end_to_end_tests::{
    StoreDirectory,
    key_server::{KeyServer, TlsPeer, get_key},
};
use key_files::check_value::CheckValue;

/// Id and version.
pub type Number = (u32, u32);

/// The versions of all name spaces. A version that exists is another key for nobody, and never goes away.
#[derive(Default)]
pub struct Versions(Mutex<BTreeMap<(String, Number), Version>>);

struct Version {
    check_value: CheckValue,
    /// Whether a host was told that it has made it.
    is_made: bool,
}

impl Versions {
    /// A host was told that it has made this version, so nobody else was.
    pub fn made(&self, space: &str, number: Number, check_value: CheckValue) {
        let was_made = self.note(space, number, check_value, true);
        assert!(!was_made, "{number:?} of {space} was made twice");
    }

    /// A host has this version.
    pub fn seen(&self, space: &str, number: Number, check_value: CheckValue) {
        self.note(space, number, check_value, false);
    }

    /// Returns whether a host was told before that it has made it.
    fn note(&self, space: &str, number: Number, check_value: CheckValue, is_made: bool) -> bool {
        let mut all = self.lock();
        let version = all.entry((space.to_owned(), number)).or_insert(Version {
            check_value,
            is_made: false,
        });
        assert_eq!(
            version.check_value, check_value,
            "{number:?} of {space} is another key"
        );
        let was_made = version.is_made;
        version.is_made |= is_made;
        was_made
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// That all of a name space are in the key store, and that this key server gives them as they were made.
    pub fn check(&self, space: &str, store: &StoreDirectory, server: &KeyServer, tls: &TlsFiles) {
        let mut peer = TlsPeer::connect(server, tls);
        for ((_, (id, version)), known) in self.lock().iter().filter(|((of, _), _)| of == space) {
            let object = format!("{space}/{id}/{version}");
            assert!(store.path().join(&object).exists(), "{object} is lost");
            match peer.ask(&get_key(*id, *version)) {
                Reply::Decrypted { key, .. } => {
                    assert_eq!(CheckValue::of(&key), known.check_value, "{object}");
                }
                reply => panic!("{object}: {reply:?}"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, Number), Version>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
