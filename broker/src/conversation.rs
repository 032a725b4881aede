//! Accepts peers and answers them, each in its own task.

use std::{
    io::{self, ErrorKind},
    os::unix::net::UnixListener as StdListener,
    sync::Arc,
    time::{Duration, Instant},
};

use broker_api::{
    CertificateEnd, Failure, FailureKind, FrameError, MAX_FRAME_BYTES, MAX_PAGE_EVENTS, Overview,
    PROTOCOL_VERSION, Reply, Request, decode, version1,
};
use service::logging;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tracing::{info, warn};

use crate::{
    audit::{self, Caller},
    aws_calls::{AwsCalls, turn},
    connection::{Connection, Frame},
    listener::Listener,
    overview::Record,
    peer::{Peer, Scope},
    upstream::Upstream,
    users::{User, UserId, Users},
};

/// Pause after a failure to accept, so that existing connections have time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long calls of a user who makes many of them wait for a log that is behind. After that, events
/// are dropped and counted.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// What answers the requests.
pub(crate) enum Backend {
    /// KMS and the key store, with the session of this broker.
    Aws(Arc<AwsCalls>),
    /// Key servers.
    Upstream(Arc<Upstream>),
}

/// Returns the present certificate: it changes with its file.
pub(crate) type CertificateSource = Box<dyn Fn() -> CertificateEnd + Send + Sync>;

/// The state that all conversations share.
pub(crate) struct Service {
    pub backend: Backend,
    pub record: Arc<Record>,
    /// Returns the certificate of the key server, if this is one.
    pub certificate: Option<CertificateSource>,
    pub users: Arc<Users>,
}

impl Backend {
    /// Refuses what only version 1 could ask for, and is not configured.
    fn check_options(&self, request: &version1::Request) -> Result<(), Failure> {
        match self {
            Self::Aws(aws) => aws.kms.check_options(request),
            // The key servers decide.
            Self::Upstream(_) => Ok(()),
        }
    }
}

impl Service {
    /// Accepts peers at `listener`, whose acceptor is `socket`, as long as it is polled.
    ///
    /// Errors: the socket cannot be used.
    pub async fn listen(
        self: &Arc<Self>,
        listener: &mut Listener,
        mut socket: StdListener,
        scope: Scope,
    ) -> io::Result<()> {
        let gid = listener.gid();
        loop {
            let accepting = UnixListener::from_std(socket)?;
            socket = tokio::select! {
                () = self.accept(&accepting, gid, scope) => return Ok(()),
                again = listener.bound_again() => again,
            };
        }
    }

    async fn accept(self: &Arc<Self>, socket: &UnixListener, gid: Option<u32>, scope: Scope) {
        let mut has_failed = false;
        loop {
            match socket.accept().await {
                Ok((stream, _)) => {
                    has_failed = false;
                    self.admit(stream, gid, scope);
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

    fn admit(self: &Arc<Self>, stream: UnixStream, gid: Option<u32>, scope: Scope) {
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => return warn!("cannot identify a peer: {error}"),
        };
        let user = self.users.get(&UserId::Uid(peer.uid));
        if let Err(why) = peer.check(gid) {
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
            if let Err(error) = service.converse(stream, &peer, user, scope).await
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
        scope: Scope,
    ) -> Result<(), FrameError> {
        let mut connection = Connection::new(stream, MAX_FRAME_BYTES);
        loop {
            let version = connection.begin().await?;
            let reading = user.frames.acquire().await;
            let frame = connection.finish(version).await?;
            drop(reading);
            // Whatever it asks for: each request takes time of a thread that serves others too.
            let pause = user.pause_before_request();
            if !matches!(frame.version, version1::PROTOCOL_VERSION | PROTOCOL_VERSION) {
                sleep(pause).await;
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
                    let refusal = self.backend.check_options(&request).err();
                    (request.into(), refusal)
                }
                _ => continue,
            };
            drop(frame);
            match request.call() {
                Some(_) => {
                    if !pause.is_zero() {
                        connection.wait_for(|| turn(user), sleep(pause)).await?;
                    }
                    // The audit has each call, including refused ones.
                    wait_for_log(&mut connection, user).await?;
                }
                None => sleep(pause).await,
            }
            let refusal = refusal.or_else(|| scope.check(&request).err());
            let start = Instant::now();
            let answered = match refusal {
                Some(refusal) => Err(refusal),
                None => match &self.backend {
                    Backend::Aws(aws) if is_report(&request) => Ok(self.report(aws, &request)),
                    Backend::Aws(aws) => {
                        Box::pin(aws.answer(&mut connection, user, &request)).await?
                    }
                    Backend::Upstream(upstream) => {
                        Box::pin(upstream.answer(&mut connection, user, request.clone())).await?
                    }
                },
            };
            if scope.records(&request) {
                audit::answered(&Caller::from(peer), &request, &answered);
                self.record
                    .answered(&user.id, &request, &answered, start.elapsed());
            }
            connection
                .reply(answered.unwrap_or_else(Reply::Failed))
                .await?;
        }
    }

    /// Returns what the broker has done.
    pub fn overview(&self, aws: &AwsCalls) -> Overview {
        let certificates = self.certificate.iter().map(|source| source()).collect();
        let connections = self.users.connections();
        self.record
            .overview(aws.session_state(), certificates, &connections)
    }

    /// Answers a request for what the broker has done.
    fn report(&self, aws: &AwsCalls, request: &Request) -> Reply {
        match request {
            Request::Events { before } => Reply::Events(logging::recent(*before, MAX_PAGE_EVENTS)),
            _ => Reply::Overview(Box::new(self.overview(aws))),
        }
    }
}

fn is_report(request: &Request) -> bool {
    matches!(request, Request::Overview | Request::Events { .. })
}

/// Lets a user who makes many calls wait until the log of all calls has been written.
pub(crate) async fn wait_for_log<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    user: &User,
) -> Result<(), FrameError> {
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

/// Whether the peer has disconnected, or was silent until the connection was closed.
pub(crate) fn has_left(error: &FrameError) -> bool {
    let is_timeout = matches!(error, FrameError::Io(error) if error.kind() == ErrorKind::TimedOut);
    is_timeout || error.is_disconnect()
}
