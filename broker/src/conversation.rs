//! Accepts peers and answers them, each in its own task.

use std::{
    future::pending,
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant},
};

use broker_api::{
    Failure, FailureKind, FrameError, MAX_FRAME_BYTES, PROTOCOL_VERSION, Reply, Request,
    WAITING_INTERVAL, WaitReason, Waiting, decode, version1,
};
use service::logging;
use tokio::{
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    audit,
    connection::{Connection, Frame},
    key_cache::KeyCache,
    key_store_calls::KeyStoreCalls,
    kms_calls::{KmsCalls, check, invalid},
    peer::{Admission, Peer},
    session_manager::SessionManager,
    users::{User, Users},
};

/// Pause after a failure to accept, so that existing connections have time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long calls of a user who makes many of them wait for a log that is behind. After that, events
/// are dropped and counted.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// The state that all conversations share.
pub(crate) struct Service {
    pub sessions: Arc<SessionManager>,
    pub kms: KmsCalls,
    pub key_store: Option<KeyStoreCalls>,
    pub cache: KeyCache,
    pub admission: Admission,
    pub users: Users,
}

impl Service {
    /// Accepts peers as long as it is polled.
    pub async fn accept(self: &Arc<Self>, socket: &UnixListener) {
        let mut has_failed = false;
        loop {
            match socket.accept().await {
                Ok((stream, _)) => {
                    has_failed = false;
                    self.admit(stream);
                }
                Err(error) => {
                    if !has_failed {
                        warn!("cannot accept a connection: {error}; trying again");
                    }
                    has_failed = true;
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Checks the key store each time that a session has been opened, as long as it is polled.
    pub async fn check_key_store(&self) {
        let Some(store) = &self.key_store else {
            return pending().await;
        };
        let mut openings = self.sessions.openings();
        loop {
            if self.sessions.session().is_ok() {
                store.check(&self.sessions).await;
            }
            // The sender lives as long as this.
            let _ = openings.changed().await;
        }
    }

    fn admit(self: &Arc<Self>, stream: UnixStream) {
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => return warn!("cannot identify a peer: {error}"),
        };
        let user = self.users.get(peer.uid);
        if let Err(why) = self.admission.check(&peer) {
            return audit::peer_refused(&user, &peer, &why);
        }
        let admitted = match self.users.admit(&user) {
            Ok(admitted) => admitted,
            Err(limit) => {
                let why = format!("limit of {limit} reached");
                return audit::peer_refused(&user, &peer, &why);
            }
        };
        let service = Arc::clone(self);
        tokio::spawn(async move {
            let user = admitted.user();
            if let Err(error) = service.converse(stream, &peer, user).await
                && !has_left(&error)
            {
                audit::peer_dropped(user, &peer, &error);
            }
        });
    }

    /// Answers requests until the peer disconnects, which is an error as well, or sends something
    /// invalid.
    async fn converse(
        &self,
        stream: UnixStream,
        peer: &Peer,
        user: &User,
    ) -> Result<(), FrameError> {
        let mut connection = Connection::new(stream);
        loop {
            let version = connection.begin().await?;
            let reading = user.frames.acquire().await;
            let frame = connection.finish(version).await?;
            drop(reading);
            if !matches!(frame.version, version1::PROTOCOL_VERSION | PROTOCOL_VERSION) {
                connection.reply(unsupported(user, peer, &frame)).await?;
            }
            if frame.body_bytes > MAX_FRAME_BYTES {
                return Err(FrameError::TooLong(frame.body_bytes));
            }
            let (request, refusal): (Request, _) = match frame.version {
                PROTOCOL_VERSION => (decode(&frame.body)?, None),
                version1::PROTOCOL_VERSION => {
                    let request: version1::Request = decode(&frame.body)?;
                    note_version_1(user, peer);
                    let refusal = self.kms.check_options(&request).err();
                    (request.into(), refusal)
                }
                _ => continue,
            };
            drop(frame);
            if request.context().is_some() {
                wait_for_room_in_log(&mut connection, user).await?;
            }
            let answered = match refusal {
                Some(refusal) => Err(refusal),
                None => Box::pin(self.answer(&mut connection, user, &request)).await?,
            };
            audit::answered(peer, &request, &answered);
            connection
                .reply(answered.unwrap_or_else(Reply::Failed))
                .await?;
        }
    }

    /// Asks KMS or the key cache. If there is no session and the peer may wait, waits for one first.
    /// Fails if the peer disconnects.
    async fn answer(
        &self,
        connection: &mut Connection,
        user: &User,
        request: &Request,
    ) -> Result<Result<Reply, Failure>, FrameError> {
        let Some(context) = request.context() else {
            let store = self.key_store.as_ref().map(KeyStoreCalls::location);
            let state = self
                .sessions
                .state(self.kms.settings().clone(), store.map(ToString::to_string));
            return Ok(Ok(Reply::Session(state)));
        };
        if let Err(failure) = check(request) {
            return Ok(Err(failure));
        }
        let mut openings = self.sessions.openings();
        let limit = self.sessions.wait_limit(context.wait);
        let until = limit.map(|limit| Instant::now() + limit);
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
        connection: &mut Connection,
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
            let blob = &decrypt.ciphertext_blob;
            match &answered {
                Ok(Reply::Decrypted {
                    key,
                    master_key_arn,
                    ..
                }) => {
                    if let Err(why) = self.cache.keep(user.uid, blob, key, master_key_arn) {
                        audit::not_kept(user, &why);
                    }
                }
                Ok(_) => {}
                Err(failure) => self.cache.refused(blob, failure.kind),
            }
        }
        Ok(match answered {
            Err(failure) if failure.kind == FailureKind::SessionOver => {
                self.kept(request).ok_or(failure)
            }
            answered => answered,
        })
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
            Request::FindKey(request) => store.ok_or_else(none)?.find(sessions, request).await,
            Request::ListKeys(request) => store.ok_or_else(none)?.list(sessions, request).await,
            Request::Session => Err(invalid("a session is no call".into())),
        }
    }

    fn kept(&self, request: &Request) -> Option<Reply> {
        let Request::Decrypt(request) = request else {
            return None;
        };
        let (key, master_key_arn) = self
            .cache
            .find(&request.ciphertext_blob, request.check_value)?;
        Some(Reply::Decrypted {
            key,
            master_key_arn,
            request_id: String::new(),
        })
    }
}

/// Logs each call for the audit, including refused ones.
async fn wait_for_room_in_log(connection: &mut Connection, user: &User) -> Result<(), FrameError> {
    let pause = user.pause_before_call();
    connection.wait(|| turn(user), pause).await?;
    if user.fills_log() && logging::is_backed_up() {
        connection
            .wait_for(|| turn(user), log_to_catch_up())
            .await?;
    }
    Ok(())
}

async fn log_to_catch_up() {
    let until = Instant::now() + LOG_PATIENCE;
    while logging::is_backed_up() && Instant::now() < until {
        sleep(Duration::from_millis(20)).await;
    }
}

fn turn(user: &User) -> Waiting {
    Waiting {
        reason: WaitReason::Turn,
        message: format!(
            "too many concurrent KMS calls by uid {}: this one waits for its turn",
            user.uid
        ),
    }
}

fn unsupported(user: &User, peer: &Peer, frame: &Frame) -> Reply {
    let version = frame.version;
    if user.is_new_version(version) {
        warn!(
            "a client ({peer}) uses protocol version {version}, but this broker supports {} to {PROTOCOL_VERSION}; restart whichever of them is older than the installed release",
            version1::PROTOCOL_VERSION
        );
    }
    Reply::Failed(Failure {
        kind: FailureKind::UnsupportedVersion,
        message: format!(
            "the broker supports protocol versions {} to {PROTOCOL_VERSION}, not {version}, because it is another release; restart it (systemctl restart iam-kms-broker), or this process",
            version1::PROTOCOL_VERSION
        ),
    })
}

fn note_version_1(user: &User, peer: &Peer) {
    if user.is_new_version(version1::PROTOCOL_VERSION) {
        info!(
            "a client ({peer}) still has the plugin of release 0.1.0 loaded, which works as before; the server loads the new one at its next restart"
        );
    }
}

fn has_left(error: &FrameError) -> bool {
    match error {
        FrameError::Closed => true,
        FrameError::Io(error) => matches!(
            error.kind(),
            ErrorKind::TimedOut
                | ErrorKind::ConnectionReset
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
        ),
        _ => false,
    }
}
