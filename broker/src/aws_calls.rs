//! Answers the requests of this host's processes with KMS, the key store and the key cache.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use broker_api::{
    Decrypt, Failure, FailureKind, FrameError, Reply, Request, SessionState, WAITING_INTERVAL,
    WaitPolicy, WaitReason, Waiting,
};
use key_files::check_value::CHECK_VALUE_BYTES;
use tokio::{net::UnixStream, time::timeout};

use crate::{
    audit,
    connection::Connection,
    key_cache::KeyCache,
    key_store_calls::{KeyStoreCalls, found},
    kms_calls::{KmsCalls, check, invalid},
    session_manager::SessionManager,
    users::User,
};

/// The session, and what is called with it.
pub(crate) struct AwsCalls {
    pub sessions: Arc<SessionManager>,
    pub kms: KmsCalls,
    pub key_store: Option<KeyStoreCalls>,
    pub cache: KeyCache,
    /// Requests that wait for a session.
    pub waiting: AtomicUsize,
}

/// A request that waits for a session, counted as long as this exists.
struct WaitingRequest<'a>(&'a AtomicUsize);

impl<'a> WaitingRequest<'a> {
    fn of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for WaitingRequest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AwsCalls {
    /// Checks the key store each time that a session has been opened, as long as it is polled.
    pub async fn check_key_store(&self, is_key_server: bool) {
        let Some(store) = &self.key_store else {
            return pending().await;
        };
        let mut openings = self.sessions.openings();
        loop {
            if self.sessions.session().is_ok() {
                store.check(&self.sessions, is_key_server).await;
            }
            // The sender lives as long as this.
            let _ = openings.changed().await;
        }
    }

    /// Returns the state of the session, for clients.
    pub fn session_state(&self) -> SessionState {
        let store = self.key_store.as_ref().map(KeyStoreCalls::location);
        self.sessions
            .state(self.kms.settings().clone(), store.map(ToString::to_string))
    }

    /// Asks KMS or the key cache. If there is no session and the peer may wait, waits for one first.
    /// Fails if the peer disconnects.
    pub async fn answer(
        &self,
        connection: &mut Connection<UnixStream>,
        user: &User,
        request: &Request,
    ) -> Result<Result<Reply, Failure>, FrameError> {
        let Some((_, context)) = request.call() else {
            return Ok(Ok(Reply::Session(self.session_state())));
        };
        if let Err(failure) = check(request) {
            return Ok(Err(failure));
        }
        let mut openings = self.sessions.openings();
        let limit = self.sessions.wait_limit(context.wait);
        let until = limit.map(|limit| Instant::now() + limit);
        let mut counted = None;
        loop {
            let over = match self.call(connection, user, request).await? {
                Err(failure) if failure.kind == FailureKind::SessionOver => failure,
                answered => return Ok(answered),
            };
            // A session may have been opened during the call.
            if self.sessions.session().is_ok() {
                continue;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Err(over));
            }
            counted.get_or_insert_with(|| WaitingRequest::of(&self.waiting));
            let waiting = Waiting {
                reason: WaitReason::Session,
                message: over.message,
            };
            connection.reply(Reply::Waiting(waiting)).await?;
            let pause = left.map_or(WAITING_INTERVAL, |left| left.min(WAITING_INTERVAL));
            // In both cases, the loop tries again.
            let _ = timeout(pause, openings.changed()).await;
        }
    }

    /// Makes one attempt. A request that waits for a session is not in the queue, so it blocks nobody.
    async fn call(
        &self,
        connection: &mut Connection<UnixStream>,
        user: &User,
        request: &Request,
    ) -> Result<Result<Reply, Failure>, FrameError> {
        let store = self.key_store.as_ref();
        let needs_session = !store.is_some_and(|store| store.needs_no_session(request));
        if needs_session && let Err(over) = self.sessions.session() {
            return Ok(self.kept(request).ok_or(over));
        }
        let permit = connection
            .wait_for(|| turn(user), user.calls.acquire())
            .await?;
        let answered = match (request, store) {
            (Request::MakeKey(_) | Request::FindKey(_) | Request::ListKeys(_), Some(store)) => {
                let attempt = self.attempt(request);
                connection.wait_for(|| store.slow(), attempt).await?
            }
            _ => self.attempt(request).await,
        };
        drop(permit);
        if let Request::Decrypt(decrypt) = request {
            self.remember(user, decrypt, &answered);
        }
        Ok(match answered {
            Err(failure) if failure.kind == FailureKind::SessionOver => {
                self.kept(request).ok_or(failure)
            }
            answered => answered,
        })
    }

    /// Keeps a key that KMS has unwrapped in the cache, and takes out one that it has refused to others than a monitor.
    pub fn remember(&self, user: &User, request: &Decrypt, answered: &Result<Reply, Failure>) {
        let blob = &request.ciphertext_blob;
        match answered {
            Ok(Reply::Decrypted {
                key,
                master_key_arn,
                ..
            }) => {
                if let Err(why) = self.cache.keep(&user.id, blob, key, master_key_arn) {
                    audit::not_kept(user, &why);
                }
            }
            Ok(_) => {}
            Err(_) if request.context.wait == WaitPolicy::Monitor => {}
            Err(failure) => self.cache.refused(blob, failure.kind),
        }
    }

    async fn attempt(&self, request: &Request) -> Result<Reply, Failure> {
        let sessions = &*self.sessions;
        let none =
            || invalid("the broker has no key store (key_store in its configuration)".into());
        let store = self.key_store.as_ref();
        match request {
            Request::Decrypt(request) => self.kms.decrypt(sessions, request).await,
            Request::GenerateDataKey(request) => match store {
                None => self.kms.generate(sessions, request).await,
                Some(store) => Err(invalid(format!(
                    "a new key must be in the key store {} before it is used, and the plugin that is loaded cannot do that; restart the server, which then loads the installed one",
                    store.location()
                ))),
            },
            Request::MakeKey(request) => {
                let store = store.ok_or_else(none)?;
                store.make(sessions, &self.kms, request).await
            }
            Request::FindKey(request) => {
                let key = store.ok_or_else(none)?.find(sessions, request).await?;
                Ok(found(key))
            }
            Request::ListKeys(request) => store.ok_or_else(none)?.list(sessions, request).await,
            Request::GetKey(_) => Err(invalid(
                "only a key server gives keys by their number, and only over TLS".into(),
            )),
            Request::Session | Request::Overview | Request::Events { .. } => {
                Err(invalid("a report is no call".into()))
            }
        }
    }

    fn kept(&self, request: &Request) -> Option<Reply> {
        let Request::Decrypt(request) = request else {
            return None;
        };
        self.cached(&request.ciphertext_blob, request.check_value)
    }

    /// The answer with a key of the key cache, which no request of KMS has given.
    pub fn cached(
        &self,
        blob: &[u8],
        check_value: Option<[u8; CHECK_VALUE_BYTES]>,
    ) -> Option<Reply> {
        let (key, master_key_arn) = self.cache.find(blob, check_value)?;
        Some(Reply::Decrypted {
            key,
            master_key_arn,
            request_id: String::new(),
        })
    }
}

/// What a user is told whose other calls come first.
pub(crate) fn turn(user: &User) -> Waiting {
    Waiting {
        reason: WaitReason::Turn,
        message: format!(
            "too many concurrent KMS calls by {}: this one waits for its turn",
            user.id
        ),
    }
}
