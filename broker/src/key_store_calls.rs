//! The calls of the key store, one attempt each.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use aws_session::{
    credentials::Credentials, key_store_location::KeyStoreLocation, settings::Settings,
};
use broker_api::{
    Decrypt, Failure, FailureKind, FindKey, ListKeys, MAX_LISTED_KEYS, MakeKey, Numbering, Reply,
    Request, WaitReason, Waiting,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use key_files::{
    WrappedKey,
    check_value::CheckValue,
    key_name::{Algorithm, KeyName, is_valid_number},
};
use key_store::{KeyStore, MAX_JUMP, Put, Stamp, StoreError, Versions};
use parking_lot::Mutex;
use tracing::{error, info};

use crate::{kms_calls::KmsCalls, session_manager::SessionManager};

/// How many numbers are tried for a new key, if other servers take them meanwhile.
const MAX_NUMBERS: u32 = 100;

/// Objects that are read at the same time for a list.
const READS: usize = 32;

/// How long the pages of a list come from one list of the store. Other brokers put keys there meanwhile.
const LISTING_AGE: Duration = Duration::from_secs(60);

/// Keys of which the name and check value are remembered.
const MAX_REMEMBERED: usize = 100_000;

/// The key store of the configuration.
pub(crate) struct KeyStoreCalls {
    location: KeyStoreLocation,
    /// The part of it that is meant; `None`: all of it.
    name_space: Option<String>,
    aws: Settings,
    /// Credentials of its own, in place of the session.
    own: Option<Arc<Credentials>>,
    /// The store, with the credentials of the last session.
    open: Mutex<Option<(Option<Arc<Credentials>>, KeyStore)>>,
    /// Whether the store has proved that it refuses to overwrite.
    is_checked: AtomicBool,
    listing: Mutex<Listing>,
}

/// What lists are made of.
#[derive(Default)]
struct Listing {
    versions: Versions,
    read_at: Option<Instant>,
    /// What was read of the first form of each key, and from which object.
    known: BTreeMap<(u32, u32), (Stamp, KeyName, CheckValue)>,
}

impl Listing {
    /// Whether a list whose last key so far was `after` goes on here. It may have begun at another broker.
    fn has(&self, after: (u32, u32)) -> bool {
        let is_new = self.read_at.is_some_and(|at| at.elapsed() < LISTING_AGE);
        is_new && self.versions.contains_key(&after)
    }

    /// What is known of a key whose first form is this object.
    fn known(&self, number: (u32, u32), object: &Stamp) -> Option<(KeyName, CheckValue)> {
        let (known, name, check_value) = self.known.get(&number)?;
        (known == object).then_some((*name, *check_value))
    }

    fn remember(&mut self, object: Stamp, name: KeyName, check_value: CheckValue) {
        let number = name.number();
        if self.known.len() < MAX_REMEMBERED || self.known.contains_key(&number) {
            self.known.insert(number, (object, name, check_value));
        }
    }
}

/// The reply with a key that was in the key store, or with none.
pub(crate) fn found(key: Option<WrappedKey>) -> Reply {
    Reply::Stored {
        key,
        is_new: false,
        request_id: String::new(),
    }
}

/// Logs what cannot be used, in one line for each list: a user's calls are limited, and so must be what they log.
fn log_invalid(invalid: &[StoreError]) {
    let Some((first, others)) = invalid.split_first() else {
        return;
    };
    let others = match others.len() {
        0 => String::new(),
        count => format!("; the same list has {count} more objects that cannot be used"),
    };
    error!(event = "key_store_failed", "{first}{others}");
}

impl KeyStoreCalls {
    /// Calls the store at `location` with credentials of its `own`, or else with the session.
    pub fn new(location: KeyStoreLocation, aws: Settings, own: Option<Credentials>) -> Self {
        Self::part(location, None, aws, own.map(Arc::new))
    }

    /// Calls a part of the store.
    pub fn name_space(&self, name: &str) -> Self {
        let (location, aws, own) = (self.location.clone(), self.aws.clone(), self.own.clone());
        Self::part(location, Some(name.into()), aws, own)
    }

    fn part(
        location: KeyStoreLocation,
        name_space: Option<String>,
        aws: Settings,
        own: Option<Arc<Credentials>>,
    ) -> Self {
        Self {
            location,
            name_space,
            aws,
            own,
            open: Mutex::new(None),
            is_checked: AtomicBool::new(false),
            listing: Mutex::default(),
        }
    }

    /// Where it is.
    pub fn location(&self) -> &KeyStoreLocation {
        &self.location
    }

    /// What a client is told while the store has not answered.
    pub fn slow(&self) -> Waiting {
        Waiting {
            reason: WaitReason::KeyStore,
            message: format!("the key store {} has not answered yet", self.location),
        }
    }

    /// Whether `request` can be served without a session: it only reads, and the store needs no session.
    pub fn needs_no_session(&self, request: &Request) -> bool {
        (matches!(self.location, KeyStoreLocation::Directory(_)) || self.own.is_some())
            && matches!(request, Request::FindKey(_) | Request::ListKeys(_))
    }

    /// Checks the store when a session has been opened, and logs the result: later would be too late to
    /// learn that no key can be made. On a key server, the keys are in the name spaces of its hosts, and are not counted.
    pub async fn check(&self, sessions: &SessionManager, is_key_server: bool) {
        self.is_checked.store(false, Ordering::Relaxed);
        let checked = async {
            let store = self.checked(sessions).await?;
            self.read(store.list().await)
        };
        match checked.await {
            Ok(_) if is_key_server => info!(
                event = "key_store",
                key_store = %self.location,
                "the key store {} can be used; each host's keys are in its name space there",
                self.location
            ),
            Ok(versions) => info!(
                event = "key_store",
                key_store = %self.location,
                versions = versions.len(),
                "the key store {} can be used; it has {}",
                self.location,
                match versions.len() {
                    1 => "1 key version".into(),
                    count => format!("{count} key versions"),
                }
            ),
            Err(failure) if failure.kind == FailureKind::SessionOver => {}
            Err(failure) => error!(
                event = "key_store_failed",
                "{}; until this is corrected, no data key can be made, and missing key files cannot be restored from it",
                failure.message
            ),
        }
    }

    /// Finds a key.
    pub async fn find(
        &self,
        sessions: &SessionManager,
        request: &FindKey,
    ) -> Result<Option<WrappedKey>, Failure> {
        let store = self.store(sessions)?;
        let found = store.find(request.context.key_id, request.version).await;
        self.read(found)
    }

    /// Lists a page of keys.
    pub async fn list(
        &self,
        sessions: &SessionManager,
        request: &ListKeys,
    ) -> Result<Reply, Failure> {
        let store = self.store(sessions)?;
        let is_begun = request
            .after
            .is_some_and(|after| self.listing.lock().has(after));
        if !is_begun {
            let versions = self.read(store.list().await)?;
            let mut listing = self.listing.lock();
            listing.versions = versions;
            listing.read_at = Some(Instant::now());
        }
        let (page, next) = {
            let listing = self.listing.lock();
            let after = request.after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut rest = listing.versions.range((after, Bound::Unbounded));
            let page: Vec<_> = rest
                .by_ref()
                .take(MAX_LISTED_KEYS)
                .map(|(&number, forms)| {
                    let object = forms.first.as_ref();
                    let known = object.and_then(|it| listing.known(number, it));
                    (number, forms.clone(), known)
                })
                .collect();
            let last = page.last().map(|&(number, ..)| number);
            (page, last.filter(|_| rest.next().is_some()))
        };
        let keys = stream::iter(page).map(|((id, version), forms, known)| {
            let store = &store;
            async move {
                let object = match forms.first {
                    Some(object) => object,
                    None => {
                        let lost = store.without_first(id, version, forms.latest);
                        return Ok(Some(Err(lost)));
                    }
                };
                match known {
                    Some((name, check_value)) => Ok(Some(Ok((object, name, check_value)))),
                    None => match store.get(id, version, 0).await {
                        Ok(key) => Ok(key.map(|key| Ok((object, key.name, key.check_value)))),
                        // One bad object does not hide the others.
                        Err(invalid @ StoreError::Invalid { .. }) => Ok(Some(Err(invalid))),
                        Err(error) => Err(error),
                    },
                }
            }
        });
        let found: Result<Vec<_>, _> = keys.buffered(READS).try_collect().await;
        let (mut keys, mut invalid) = (Vec::new(), Vec::new());
        for key in self.read(found)?.into_iter().flatten() {
            match key {
                Ok(key) => keys.push(key),
                Err(error) => invalid.push(error),
            }
        }
        log_invalid(&invalid);
        let mut listing = self.listing.lock();
        let keys = keys.into_iter().map(|(object, name, check_value)| {
            listing.remember(object, name, check_value);
            (name, check_value)
        });
        Ok(Reply::KeyList {
            keys: keys.collect(),
            next,
        })
    }

    /// Makes a key. It is in the store before anybody gets it.
    pub async fn make(
        &self,
        sessions: &SessionManager,
        kms: &KmsCalls,
        request: &MakeKey,
    ) -> Result<Reply, Failure> {
        let id = request.generate.context.key_id;
        let store = self.checked(sessions).await?;
        let versions = self.read(store.list_id(id).await)?;
        let highest = self.read(store.highest(id, &versions))?;
        let base = match (request.numbering, highest) {
            (Numbering::First, None) => 0,
            (Numbering::First, Some(version)) => {
                let forms = versions.get(&(id, version));
                let latest = forms.map_or(0, |forms| forms.latest);
                let key = self.read(store.latest_form(id, version, latest).await)?;
                return Ok(found(key));
            }
            (Numbering::Next { known }, highest) => {
                let highest = highest.unwrap_or_default();
                // The new version is at least one above `known`, and nobody accepts one that is further up.
                if known >= highest.saturating_add(MAX_JUMP) {
                    return Err(self.failed(format!(
                        "the highest version of key {id} in the key store {} is {highest}; a new version above {known} is refused, because it would use up the version numbers. Put this server's keys into the key store first (kms-data-keys push)",
                        self.location
                    )));
                }
                known.max(highest)
            }
        };
        let (mut key, request_id) = self.generate(sessions, kms, request).await?;
        for number in 1..=MAX_NUMBERS {
            let Some(version) = base.checked_add(number).filter(|&it| is_valid_number(it)) else {
                break;
            };
            key.name.version = version;
            let put = self.read(store.put(&key).await)?;
            let (key, is_new) = match (put, request.numbering) {
                (Put::New, _) => (key, true),
                (Put::Exists(other), Numbering::First) => (other, false),
                (Put::Exists(_), Numbering::Next { .. }) => continue,
            };
            return Ok(Reply::Stored {
                key: Some(key),
                is_new,
                request_id,
            });
        }
        Err(self.failed(format!(
            "there is no free version of key {id} after {base} in the key store {}; try again",
            self.location
        )))
    }

    /// Has KMS make a key, and opens it once for its check value.
    async fn generate(
        &self,
        sessions: &SessionManager,
        kms: &KmsCalls,
        request: &MakeKey,
    ) -> Result<(WrappedKey, String), Failure> {
        let unexpected = || self.failed("KMS sent an unexpected reply".into());
        let context = request.generate.context;
        let Reply::Generated {
            ciphertext_blob,
            master_key_arn,
            request_id,
        } = kms.generate(sessions, &request.generate).await?
        else {
            return Err(unexpected());
        };
        let decrypt = Decrypt {
            ciphertext_blob: ciphertext_blob.clone(),
            check_value: None,
            context,
        };
        let Reply::Decrypted { key, .. } = kms.decrypt(sessions, &decrypt).await? else {
            return Err(unexpected());
        };
        let key = WrappedKey {
            name: KeyName {
                id: context.key_id,
                version: 0,
                // The servers that share a store encrypt different pages under the same key.
                algorithm: Algorithm::AesCbc,
            },
            bits: key.bits(),
            check_value: CheckValue::of(&key),
            master_key_arn,
            ciphertext_blob,
        };
        Ok((key, request_id))
    }

    /// The store, once it has proved that it refuses to overwrite.
    async fn checked(&self, sessions: &SessionManager) -> Result<KeyStore, Failure> {
        let store = self.store(sessions)?;
        if !self.is_checked.load(Ordering::Relaxed) {
            self.read(store.check().await)?;
            self.is_checked.store(true, Ordering::Relaxed);
        }
        Ok(store)
    }

    fn store(&self, sessions: &SessionManager) -> Result<KeyStore, Failure> {
        let session = match self.location {
            KeyStoreLocation::Directory(_) => None,
            KeyStoreLocation::S3 { .. } => Some(match &self.own {
                Some(own) => Arc::clone(own),
                None => sessions.session()?,
            }),
        };
        let mut open = self.open.lock();
        if let Some((of, store)) = &*open
            && of.as_ref().map(Arc::as_ptr) == session.as_ref().map(Arc::as_ptr)
        {
            return Ok(store.clone());
        }
        let opened = KeyStore::open(&self.location, &self.aws, session.as_deref());
        let store = self.read(opened)?;
        let store = match &self.name_space {
            Some(name) => store.name_space(name),
            None => store,
        };
        *open = Some((session, store.clone()));
        Ok(store)
    }

    fn read<T>(&self, result: Result<T, StoreError>) -> Result<T, Failure> {
        result.map_err(|error| {
            // Only KMS decides whether the session is over: another store than AWS's may say anything.
            error.failure(|| Failure {
                kind: FailureKind::NotAuthenticated,
                message: match &self.own {
                    Some(own) => format!(
                        "the credentials {} of key_store_profile have expired; restart the broker with fresh ones",
                        own.access_key_id
                    ),
                    None => "the key store says that the AWS session has expired".into(),
                },
            })
        })
    }

    fn failed(&self, message: String) -> Failure {
        Failure {
            kind: FailureKind::Other,
            message,
        }
    }
}
