//! The keys that the key server gives, each name space by itself: read from the key store, unwrapped by KMS once for all
//! that ask, and then served from the key cache. Without a key cache, KMS unwraps them for each request.

use std::{collections::HashMap, sync::Arc, time::Instant};

use broker_api::{Decrypt, Failure, FailureKind, FindKey, KeyContext, ListKeys, MakeKey, Reply};
use key_files::{WrappedKey, check_value::CheckValue};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use crate::{
    aws_calls::AwsCalls,
    key_store_calls::{KeyStoreCalls, found},
    kms_calls::invalid,
    users::User,
};

/// KMS calls at the same time, for all clients. Each has a connection.
const MAX_KMS_CALLS: usize = 64;

/// The keys of all name spaces.
pub(crate) struct StoredKeys {
    aws: Arc<AwsCalls>,
    spaces: Mutex<HashMap<String, Arc<Space>>>,
    kms_calls: Semaphore,
}

/// A name space.
struct Space {
    store: KeyStoreCalls,
    keys: Keys,
}

/// What is known of key versions, by id and version.
type Keys = Mutex<HashMap<(u32, u32), Arc<AsyncMutex<Slot>>>>;

/// A key version. Who looks for it holds the lock.
#[derive(Default)]
struct Slot {
    /// What the key store has, which never changes.
    key: Option<WrappedKey>,
    /// The last failure, for those that waited for the same.
    failure: Option<(Instant, Failure)>,
}

/// Looks for a key version. The last one to leave removes it if it does not exist, so that nobody can fill the memory with
/// numbers: a client that has disconnected leaves too.
struct Visit<'a> {
    keys: &'a Keys,
    number: (u32, u32),
    slot: Arc<AsyncMutex<Slot>>,
}

impl<'a> Visit<'a> {
    fn begin(keys: &'a Keys, number: (u32, u32)) -> Self {
        let slot = Arc::clone(keys.lock().entry(number).or_default());
        Self { keys, number, slot }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut keys = self.keys.lock();
        // One is ours, and one the map's.
        let is_last = Arc::strong_count(&self.slot) <= 2;
        if is_last && self.slot.try_lock().is_ok_and(|slot| slot.key.is_none()) {
            keys.remove(&self.number);
        }
    }
}

impl StoredKeys {
    pub fn new(aws: Arc<AwsCalls>) -> Self {
        Self {
            aws,
            spaces: Mutex::default(),
            kms_calls: Semaphore::new(MAX_KMS_CALLS),
        }
    }

    /// A data key that needs neither key store nor KMS, and that nobody looks for just now.
    pub fn in_memory(&self, name_space: &str, context: &KeyContext) -> Option<Reply> {
        let space = self.space(name_space).ok()?;
        let keys = space.keys.lock();
        let slot = keys.get(&(context.key_id, context.key_version))?;
        let slot = slot.try_lock().ok()?;
        self.aws.cached(&slot.key.as_ref()?.ciphertext_blob, None)
    }

    /// Gives a data key to a client.
    pub async fn get(
        &self,
        name_space: &str,
        user: &User,
        context: &KeyContext,
    ) -> Result<Reply, Failure> {
        let space = self.space(name_space)?;
        let give = async |slot: &mut Slot| {
            let key = self.find_in(&space, slot, context).await?;
            let key = key.ok_or_else(|| Failure {
                kind: FailureKind::NotFound,
                message: format!(
                    "the key store has no version {} of key {} for this host (name space {name_space})",
                    context.key_version, context.key_id
                ),
            })?;
            let refused = match self.unwrap(&key, user, context).await {
                // Other: it is another key than its description says.
                Err(failure)
                    if failure.kind.refuses_key() || failure.kind == FailureKind::Other =>
                {
                    failure
                }
                answered => return answered,
            };
            // It may have been rewrapped since, and its first master key disabled.
            slot.key = None;
            match self.find_in(&space, slot, context).await? {
                Some(newer) if newer.ciphertext_blob != key.ciphertext_blob => {
                    self.unwrap(&newer, user, context).await
                }
                _ => Err(refused),
            }
        };
        if !self.aws.cache.is_off() {
            return self.with_slot(&space, context, give).await;
        }
        // Nobody would get a key sooner by waiting for the call of another.
        let find = async |slot: &mut Slot| self.find_in(&space, slot, context).await;
        let found = self.with_slot(&space, context, find).await?;
        let mut own = Slot {
            key: found.clone(),
            failure: None,
        };
        let given = give(&mut own).await;
        if own.key != found {
            // Whatever has become of the requests of others meanwhile.
            let visit = Visit::begin(&space.keys, (context.key_id, context.key_version));
            visit.slot.lock().await.key = own.key;
        }
        given
    }

    /// Describes a key, without the wrapped key.
    pub async fn find(&self, name_space: &str, request: &FindKey) -> Result<Reply, Failure> {
        let space = self.space(name_space)?;
        let key = match request.version {
            None => space.store.find(&self.aws.sessions, request).await?,
            Some(key_version) => {
                let context = KeyContext {
                    key_version,
                    ..request.context
                };
                let find = async |slot: &mut Slot| self.find_in(&space, slot, &context).await;
                self.with_slot(&space, &context, find).await?
            }
        };
        Ok(found(key.map(WrappedKey::without_blob)))
    }

    /// Lists names and check values.
    pub async fn list(&self, name_space: &str, request: &ListKeys) -> Result<Reply, Failure> {
        let space = self.space(name_space)?;
        space.store.list(&self.aws.sessions, request).await
    }

    /// Makes a key, and describes it without the wrapped key.
    pub async fn make(&self, name_space: &str, request: &MakeKey) -> Result<Reply, Failure> {
        let space = self.space(name_space)?;
        let _permit = self.kms_calls.acquire().await;
        let (sessions, kms) = (&*self.aws.sessions, &self.aws.kms);
        let made = space.store.make(sessions, kms, request).await?;
        Ok(without_blob(made))
    }

    fn space(&self, name: &str) -> Result<Arc<Space>, Failure> {
        let store = self.aws.key_store.as_ref();
        let store = store.ok_or_else(|| invalid("this key server has no key store".into()))?;
        let mut spaces = self.spaces.lock();
        let space = spaces.entry(name.into()).or_insert_with(|| {
            Arc::new(Space {
                store: store.name_space(name),
                keys: Mutex::default(),
            })
        });
        Ok(Arc::clone(space))
    }

    /// Does `work` for a key version, while others who ask for the same wait. A failure counts for all that waited for
    /// it, so that they do not fail one after the other.
    async fn with_slot<T>(
        &self,
        space: &Space,
        context: &KeyContext,
        work: impl AsyncFnOnce(&mut Slot) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        let visit = Visit::begin(&space.keys, (context.key_id, context.key_version));
        let mut slot = visit.slot.lock().await;
        if let Some((at, failure)) = &slot.failure
            && *at > began
        {
            return Err(failure.clone());
        }
        let result = work(&mut slot).await;
        slot.failure = match &result {
            Ok(_) => None,
            Err(failure) => Some((Instant::now(), failure.clone())),
        };
        result
    }

    async fn find_in(
        &self,
        space: &Space,
        slot: &mut Slot,
        context: &KeyContext,
    ) -> Result<Option<WrappedKey>, Failure> {
        if slot.key.is_none() {
            let request = FindKey {
                version: Some(context.key_version),
                context: *context,
            };
            slot.key = space.store.find(&self.aws.sessions, &request).await?;
        }
        Ok(slot.key.clone())
    }

    /// Unwraps a key of the key store. It is found in the key cache by its wrapped form only: who could write into the
    /// key store could give it the check value of any key.
    async fn unwrap(
        &self,
        key: &WrappedKey,
        user: &User,
        context: &KeyContext,
    ) -> Result<Reply, Failure> {
        let aws = &self.aws;
        if let Some(cached) = aws.cached(&key.ciphertext_blob, None) {
            return Ok(cached);
        }
        let request = Decrypt {
            ciphertext_blob: key.ciphertext_blob.clone(),
            check_value: None,
            context: *context,
        };
        let permit = self.kms_calls.acquire().await;
        let decrypted = aws.kms.decrypt(&aws.sessions, &request).await;
        drop(permit);
        if let Ok(Reply::Decrypted { key: plaintext, .. }) = &decrypted
            && CheckValue::of(plaintext) != key.check_value
        {
            return Err(Failure {
                kind: FailureKind::Other,
                message: format!(
                    "{} of the key store is another key than its check value says, so it is not used; find out who has put it there",
                    key.name
                ),
            });
        }
        aws.remember(user, &request, &decrypted);
        decrypted
    }
}

fn without_blob(reply: Reply) -> Reply {
    match reply {
        Reply::Stored {
            key,
            is_new,
            request_id,
        } => Reply::Stored {
            key: key.map(WrappedKey::without_blob),
            is_new,
            request_id,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_does_not_exist_leaves_nothing_behind() {
        let keys = Keys::default();
        let first = Visit::begin(&keys, (1, 1));
        let second = Visit::begin(&keys, (1, 1));
        drop(first);
        assert_eq!(keys.lock().len(), 1);
        drop(second);
        assert_eq!(keys.lock().len(), 0);
    }
}
