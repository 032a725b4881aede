//! Data keys that KMS has unwrapped, for processes that want them when the session is over: a backup,
//! a state transfer, a server that was restarted.
//!
//! While a session is open, KMS is asked: it may have disabled the master key since, and logs who
//! asks. What it refuses then is forgotten here too.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use broker_api::FailureKind;
use iam_kms_wrapper::config::KeyCache as Lifetime;
use key_store::PlaintextKey;
use locked_memory::{Arena, LockedKey, MAX_KEY_BYTES};
use tracing::warn;
use zeroize::Zeroizing;

/// 2 MiB of locked memory. What comes beyond is not kept.
const MAX_KEYS: usize = 65_536;

/// The keys, by the bytes that wrap them.
#[derive(Default)]
pub(crate) struct KeyCache {
    is_off: bool,
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    keys: HashMap<Vec<u8>, Kept>,
    arena: Arena,
    /// Forgotten ones count: their memory is wiped at the end only.
    stored: usize,
}

struct Kept {
    key: LockedKey,
    master_key_arn: String,
}

impl KeyCache {
    pub fn new(lifetime: Lifetime) -> Self {
        Self {
            is_off: lifetime == Lifetime::Session,
            ..Self::default()
        }
    }

    /// Keeps a key that KMS has just unwrapped.
    pub fn keep(&self, ciphertext_blob: &[u8], key: &PlaintextKey, master_key_arn: &str) {
        let mut content = self.content();
        if self.is_off || content.keys.contains_key(ciphertext_blob) {
            return;
        }
        if let Err(error) = content.add(ciphertext_blob, key, master_key_arn) {
            warn!("a data key is not kept for the time after the session: {error}");
        }
    }

    /// The key, and the ARN of the master key that wrapped it.
    pub fn find(&self, ciphertext_blob: &[u8]) -> Option<(PlaintextKey, String)> {
        let content = self.content();
        let kept = content.keys.get(ciphertext_blob)?;
        let mut bytes = Zeroizing::new([0; MAX_KEY_BYTES]);
        let bytes = bytes.get_mut(..kept.key.length_bytes())?;
        kept.key.copy_to(bytes).then_some(())?;
        Some((PlaintextKey::new(bytes).ok()?, kept.master_key_arn.clone()))
    }

    /// Takes note of a failure of KMS: what it refuses is not to be had here either.
    pub fn refused(&self, ciphertext_blob: &[u8], kind: FailureKind) {
        if matches!(
            kind,
            FailureKind::AccessDenied
                | FailureKind::KeyUnusable
                | FailureKind::NotFound
                | FailureKind::InvalidCiphertext
        ) {
            self.content().keys.remove(ciphertext_blob);
        }
    }

    /// The content is whole at every unlock.
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn add(&mut self, ciphertext_blob: &[u8], key: &PlaintextKey, arn: &str) -> io::Result<()> {
        if self.stored >= MAX_KEYS {
            return Err(io::Error::other(format!("{MAX_KEYS} are kept already")));
        }
        let stored = self.arena.store(key.expose())?;
        self.stored += 1;
        if let Some(error) = stored.lock_failure {
            warn!(
                "data keys that are kept may be swapped out: {error}; set LimitMEMLOCK=infinity in the unit"
            );
        }
        let kept = Kept {
            key: stored.key,
            master_key_arn: arn.into(),
        };
        self.keys.insert(ciphertext_blob.into(), kept);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> PlaintextKey {
        PlaintextKey::new(&number.to_le_bytes().repeat(4)).unwrap()
    }

    #[test]
    fn what_kms_refuses_is_forgotten_and_an_outage_forgets_nothing() {
        for (kind, is_kept) in [
            (FailureKind::KeyUnusable, false),
            (FailureKind::AccessDenied, false),
            (FailureKind::Unavailable, true),
            (FailureKind::Throttled, true),
        ] {
            let cache = KeyCache::new(Lifetime::Lifetime);
            cache.keep(b"wrapped", &key(1), "arn");
            cache.refused(b"wrapped", kind);
            assert_eq!(cache.find(b"wrapped").is_some(), is_kept, "{kind:?}");
        }
    }

    #[test]
    fn what_is_beyond_the_limit_is_not_kept_and_the_others_are() {
        let cache = KeyCache::new(Lifetime::Lifetime);
        for number in 0..=65_536_u32 {
            cache.keep(&number.to_le_bytes(), &key(number), "arn");
        }
        assert!(cache.find(&65_536_u32.to_le_bytes()).is_none());
        for number in 0..65_536_u32 {
            let (kept, _) = cache.find(&number.to_le_bytes()).unwrap();
            assert_eq!(kept, key(number));
        }
    }
}
