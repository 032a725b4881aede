//! The key cache: data keys that KMS has decrypted, for processes that need them after the session: a
//! backup, a state transfer, a server that was restarted.
//!
//! While a session is open, KMS is always asked: the master key may have been disabled, and CloudTrail
//! shall show each use. Keys that KMS refuses are removed here too.
//!
//! A key is identified by its check value, and found by each wrapped form that KMS has decrypted to it.

use std::collections::HashMap;

use aws_session::config::KeyCache as Lifetime;
use broker_api::FailureKind;
use key_files::{
    PlaintextKey,
    check_value::{CHECK_VALUE_BYTES, CheckValue},
};
use locked_memory::{Arena, LockedKey, MAX_KEY_BYTES};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::users::UserId;

/// Uses 2 MiB of locked memory. Further keys are not cached.
const MAX_KEYS: usize = 65_536;

/// Wrapped forms that are remembered for a key: one for each master key.
const MAX_WRAPPINGS: usize = 16;

/// SHA-256 of a wrapped key.
type Wrapping = [u8; 32];

/// The keys.
#[derive(Default)]
pub(crate) struct KeyCache {
    is_off: bool,
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    keys: HashMap<CheckValue, Kept>,
    by_wrapping: HashMap<Wrapping, CheckValue>,
    /// The number of keys that each user had decrypted first.
    by_user: HashMap<UserId, usize>,
    arena: Arena,
}

struct Kept {
    key: LockedKey,
    master_key_arn: String,
    wrappings: Vec<Wrapping>,
    user: UserId,
}

impl KeyCache {
    pub fn new(lifetime: Lifetime) -> Self {
        Self {
            is_off: lifetime == Lifetime::Session,
            ..Self::default()
        }
    }

    /// Whether no key is cached (`key_cache = session`).
    pub fn is_off(&self) -> bool {
        self.is_off
    }

    /// Caches a key that KMS has just decrypted for `user`.
    ///
    /// The error is for the log: the key is not cached, or its memory is not protected.
    pub fn keep(
        &self,
        user: &UserId,
        ciphertext_blob: &[u8],
        key: &PlaintextKey,
        master_key_arn: &str,
    ) -> Result<(), String> {
        if self.is_off {
            return Ok(());
        }
        let (check_value, wrapping) = (CheckValue::of(key), wrapping(ciphertext_blob));
        let mut content = self.content.lock();
        let warning = if content.keys.contains_key(&check_value) {
            None
        } else {
            content.add(user, check_value, key)?
        };
        content.add_wrapping(check_value, wrapping, master_key_arn);
        warning.map_or(Ok(()), Err)
    }

    /// Finds the key with this wrapped form, or else with this check value, and the ARN of the master
    /// key that wrapped it last.
    pub fn find(
        &self,
        ciphertext_blob: &[u8],
        check_value: Option<[u8; CHECK_VALUE_BYTES]>,
    ) -> Option<(PlaintextKey, String)> {
        let wrapping = wrapping(ciphertext_blob);
        let content = self.content.lock();
        let known = content.by_wrapping.get(&wrapping).copied();
        let check_value = known.or(check_value.map(CheckValue::from_bytes))?;
        let kept = content.keys.get(&check_value)?;
        let mut bytes = Zeroizing::new([0; MAX_KEY_BYTES]);
        let bytes = bytes.get_mut(..kept.key.length_bytes())?;
        kept.key.copy_to(bytes).then_some(())?;
        Some((PlaintextKey::new(bytes).ok()?, kept.master_key_arn.clone()))
    }

    /// Handles a failure of KMS. A key that KMS refuses to decrypt is removed. If KMS has not looked at
    /// the key, for example because of a wrong clock, nothing is removed.
    pub fn refused(&self, ciphertext_blob: &[u8], kind: FailureKind) {
        if kind.refuses_key() {
            self.content.lock().forget(wrapping(ciphertext_blob));
        }
    }

    /// Wipes all keys.
    pub fn wipe(&self) {
        let mut content = self.content.lock();
        content.arena.wipe();
        content.keys.clear();
        content.by_wrapping.clear();
    }
}

impl Content {
    /// Returns the warning about memory that is not protected as it should be.
    fn add(
        &mut self,
        user: &UserId,
        check_value: CheckValue,
        key: &PlaintextKey,
    ) -> Result<Option<String>, String> {
        // A user may have as many keys cached as there is room left for the others.
        let room = MAX_KEYS.saturating_sub(self.keys.len());
        let of_user = self.by_user.entry(user.clone()).or_default();
        if *of_user >= room {
            return Err(format!(
                "a data key of {user} is not cached, because its {of_user} keys fill its share of the cache; after the session, it is served only with a new code"
            ));
        }
        let stored = self.arena.store(key.expose()).map_err(|error| {
            format!(
                "a data key of {user} is not cached: {error}; after the session, it is served only with a new code"
            )
        })?;
        *of_user += 1;
        let kept = Kept {
            key: stored.key,
            master_key_arn: String::new(),
            wrappings: Vec::new(),
            user: user.clone(),
        };
        self.keys.insert(check_value, kept);
        Ok(stored.lock_failure.map(|error| {
            format!(
                "cached data keys may be swapped out or dumped: {error}; set LimitMEMLOCK=infinity in the unit"
            )
        }))
    }

    fn add_wrapping(&mut self, check_value: CheckValue, wrapping: Wrapping, arn: &str) {
        let Some(kept) = self.keys.get_mut(&check_value) else {
            return;
        };
        arn.clone_into(&mut kept.master_key_arn);
        if kept.wrappings.contains(&wrapping) {
            return;
        }
        if kept.wrappings.len() == MAX_WRAPPINGS {
            self.by_wrapping.remove(&kept.wrappings.remove(0));
        }
        kept.wrappings.push(wrapping);
        self.by_wrapping.insert(wrapping, check_value);
    }

    /// Removes a wrapped form, and the key together with the last one.
    fn forget(&mut self, wrapping: Wrapping) {
        let Some(check_value) = self.by_wrapping.remove(&wrapping) else {
            return;
        };
        let Some(kept) = self.keys.get_mut(&check_value) else {
            return;
        };
        kept.wrappings.retain(|known| *known != wrapping);
        if !kept.wrappings.is_empty() {
            return;
        }
        if let Some(of_user) = self.by_user.get_mut(&kept.user) {
            *of_user = of_user.saturating_sub(1);
        }
        self.keys.remove(&check_value);
    }
}

fn wrapping(ciphertext_blob: &[u8]) -> Wrapping {
    Sha256::digest(ciphertext_blob).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: UserId = UserId::Uid(27);

    fn key(number: u32) -> PlaintextKey {
        PlaintextKey::new(&number.to_le_bytes().repeat(4)).unwrap()
    }

    fn check_value(number: u32) -> Option<[u8; CHECK_VALUE_BYTES]> {
        Some(CheckValue::of(&key(number)).to_bytes())
    }

    fn cache() -> KeyCache {
        KeyCache::new(Lifetime::Lifetime)
    }

    #[test]
    fn only_a_refusal_of_the_key_removes_it() {
        for (kind, is_kept) in [
            (FailureKind::KeyUnusable, false),
            (FailureKind::AccessDenied, false),
            (FailureKind::NotFound, false),
            (FailureKind::InvalidCiphertext, false),
            (FailureKind::NotAuthenticated, true),
            (FailureKind::SessionOver, true),
            (FailureKind::Unavailable, true),
            (FailureKind::Throttled, true),
            (FailureKind::Other, true),
        ] {
            let cache = cache();
            cache.keep(&SERVER, b"wrapped", &key(1), "arn").unwrap();
            cache.refused(b"wrapped", kind);
            assert_eq!(cache.find(b"wrapped", None).is_some(), is_kept, "{kind:?}");
            let by_value = cache.find(b"other", check_value(1));
            assert_eq!(by_value.is_some(), is_kept, "{kind:?}");
        }
    }

    #[test]
    fn a_key_is_found_by_its_check_value_after_a_rewrap() {
        let cache = cache();
        cache.keep(&SERVER, b"before", &key(1), "arn").unwrap();
        let (found, _) = cache.find(b"after", check_value(1)).unwrap();
        assert_eq!(found, key(1));
        assert!(cache.find(b"after", check_value(2)).is_none());
        assert!(cache.find(b"after", None).is_none());
    }

    #[test]
    fn the_wrapped_form_takes_precedence_over_the_check_value() {
        let cache = cache();
        cache.keep(&SERVER, b"first", &key(1), "arn").unwrap();
        cache.keep(&SERVER, b"second", &key(2), "arn").unwrap();
        let (found, _) = cache.find(b"first", check_value(2)).unwrap();
        assert_eq!(found, key(1));
    }

    #[test]
    fn a_key_stays_while_another_wrapped_form_is_accepted() {
        let cache = cache();
        cache.keep(&SERVER, b"old", &key(1), "old arn").unwrap();
        cache.keep(&SERVER, b"new", &key(1), "new arn").unwrap();
        cache.refused(b"old", FailureKind::KeyUnusable);
        assert!(cache.find(b"old", None).is_none());
        assert_eq!(cache.find(b"new", None).unwrap().1, "new arn");
        cache.refused(b"new", FailureKind::KeyUnusable);
        assert!(cache.find(b"new", check_value(1)).is_none());
    }

    #[test]
    fn one_user_cannot_fill_the_cache() {
        let cache = cache();
        let mut number = 0_u32;
        let mut fill = |uid: u32| {
            (0..)
                .take_while(|_| {
                    number += 1;
                    let blob = number.to_le_bytes();
                    cache
                        .keep(&UserId::Uid(uid), &blob, &key(number), "arn")
                        .is_ok()
                })
                .count()
        };
        assert_eq!(fill(1), MAX_KEYS / 2);
        assert_eq!(fill(2), MAX_KEYS / 4);
        assert_eq!(fill(27), MAX_KEYS / 8);
        // What is forgotten makes room.
        let last = number - 1;
        cache.refused(&last.to_le_bytes(), FailureKind::KeyUnusable);
        let blob = number.to_le_bytes();
        assert!(cache.keep(&SERVER, &blob, &key(number), "arn").is_ok());
        assert!(cache.find(&1_u32.to_le_bytes(), None).is_some());
    }

    #[test]
    fn wrapped_forms_of_one_key_are_limited() {
        let cache = cache();
        for number in 0..1000_u32 {
            let blob = number.to_le_bytes();
            cache.keep(&SERVER, &blob, &key(1), "arn").unwrap();
        }
        assert_eq!(cache.content.lock().by_wrapping.len(), MAX_WRAPPINGS);
        assert!(cache.find(&999_u32.to_le_bytes(), None).is_some());
        assert!(cache.find(&0_u32.to_le_bytes(), None).is_none());
    }

    #[test]
    fn a_wiped_cache_is_empty() {
        let cache = cache();
        cache.keep(&SERVER, b"wrapped", &key(1), "arn").unwrap();
        cache.wipe();
        assert!(cache.find(b"wrapped", check_value(1)).is_none());
    }
}
