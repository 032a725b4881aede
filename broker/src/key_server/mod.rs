//! The key server: gives data keys over TLS to the brokers of other hosts.
//!
//! A client names a key by id and version. It never sends a wrapped key and never gets one, and its name space of the key
//! store is that of its section in the configuration. What it may do is decided in `clients` (who it is) and in
//! `requests` (which request); everything that is not allowed there is refused, and logged with the reason.

mod clients;
pub(crate) mod requests;
mod stored_keys;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_session::config::{Config, KeyServerConfig};
use broker_api::{Failure, FailureKind, FrameError, Reply, Request, WaitReason, Waiting};
use mutual_tls::{Guest, HANDSHAKE_TIMEOUT, Host, ServerTls, TlsFilesError};
use nix::sys::socket::{Backlog, listen};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SemaphorePermit},
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tracing::info;

use crate::{
    audit::{self, Caller},
    aws_calls::AwsCalls,
    connection::Connection,
    conversation::{CertificateSource, has_left, wait_for_log},
    kms_calls::invalid,
    overview::Record,
    users::{User, UserId, Users},
};
use clients::{Admitted, Clients};
use requests::{MAX_REQUEST_BYTES, refusal, with_master_key};
use stored_keys::StoredKeys;

/// Requests that are worked on at the same time, of all clients. Each needs 15 KB.
const MAX_ATTEMPTS: usize = 256;

/// Connections that wait to be accepted: a fleet starts at once. The kernel allows as many by default
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Pause before a client that makes too many requests is told so.
const THROTTLE_PAUSE: Duration = Duration::from_millis(100);

/// The key server.
pub(crate) struct KeyServer {
    clients: Arc<Clients>,
    keys: StoredKeys,
    aws: Arc<AwsCalls>,
    record: Arc<Record>,
    users: Arc<Users>,
    /// For the log lines about hosts without a certificate of the authority, which cost nothing.
    strangers: Arc<User>,
    /// For those about hosts that have one and are no clients: strangers must not hide a certificate that was stolen.
    refused: Arc<User>,
    attempts: Semaphore,
    /// The master key for new keys.
    master_key_id: Option<String>,
}

/// Why the broker cannot be a key server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyServerError {
    #[error(transparent)]
    Files(#[from] TlsFilesError),
    #[error("cannot listen on {address} (tls_listen): {source}")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(
        "tls_listen is set, but only a broker that runs as a service of its own (iam-kms-broker --config=FILE) can be a key server"
    )]
    NoService,
}

/// The parts whose creation can fail.
pub(crate) struct Prepared {
    clients: Arc<Clients>,
    listener: StdListener,
    master_key_id: Option<String>,
}

impl Prepared {
    /// Reads the certificates and listens. `path` is the configuration file.
    pub fn new(
        key_server: &KeyServerConfig,
        config: &Config,
        path: Option<&Path>,
    ) -> Result<Self, KeyServerError> {
        let path = path.ok_or(KeyServerError::NoService)?;
        let address = key_server.listen;
        let clients = Clients::new(key_server.clone(), path)?;
        let bind = || {
            let listener = StdListener::bind(address)?;
            listener.set_nonblocking(true)?;
            // Again, because the standard library lets 128 wait.
            listen(&listener, Backlog::new(BACKLOG)?)?;
            Ok(listener)
        };
        Ok(Self {
            clients: Arc::new(clients),
            listener: bind().map_err(|source| KeyServerError::Bind { address, source })?,
            master_key_id: config
                .master_key_id
                .as_ref()
                .map(|id| id.as_str().to_owned()),
        })
    }

    /// Returns the source of the current certificate, for metrics and the overview.
    pub fn certificate(&self) -> CertificateSource {
        let clients = Arc::clone(&self.clients);
        Box::new(move || clients.certificate_end())
    }

    /// Serves clients as long as it is polled.
    ///
    /// Errors: the socket cannot be used.
    pub async fn serve(
        self,
        aws: Arc<AwsCalls>,
        record: Arc<Record>,
        users: Arc<Users>,
    ) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        info!("listening for database hosts on {}", listener.local_addr()?);
        let server = Arc::new(KeyServer {
            clients: self.clients,
            keys: StoredKeys::new(Arc::clone(&aws)),
            aws,
            record,
            users,
            strangers: Arc::new(User::stranger()),
            refused: Arc::new(User::stranger()),
            attempts: Semaphore::new(MAX_ATTEMPTS),
            master_key_id: self.master_key_id,
        });
        tokio::select! {
            () = mutual_tls::accept(&listener, &server) => {}
            () = server.clients.watch_files() => {}
        }
        Ok(())
    }
}

impl Host for KeyServer {
    fn tls(&self) -> Arc<ServerTls> {
        self.clients.tls()
    }

    fn refuse(&self, address: SocketAddr, why: &str) {
        refuse(&self.strangers, &Caller::host(None, address), why);
    }

    /// Serves a host if it is a client.
    ///
    /// Thousands of connections are open at the same time. What each keeps for its whole life is small; what is large is
    /// on the heap, and only as long as it is needed.
    async fn serve(self: Arc<Self>, guest: Guest) {
        let Guest {
            stream,
            chain,
            address,
            handshake,
        } = guest;
        let mut connection = Connection::new(stream, MAX_REQUEST_BYTES);
        let admitted = match self.clients.admit(&chain) {
            Ok(admitted) => admitted,
            Err(why) => {
                refuse(&self.refused, &Caller::host(None, address), &why);
                return Box::pin(tell(&mut connection, FailureKind::AccessDenied, why)).await;
            }
        };
        let name = admitted.client.name.clone();
        let caller = Caller::host(Some(&name), address);
        let user = self.users.get(&UserId::Client(name.as_str().into()));
        let connected = match self.users.admit(&user) {
            Ok(connected) => connected,
            Err(limit) => {
                let why = format!("this client has {limit} connections, the most that it may have");
                refuse(&user, &caller, &why);
                return Box::pin(tell(&mut connection, FailureKind::Throttled, why)).await;
            }
        };
        drop(handshake);
        let conversation = self.converse(&mut connection, &admitted, connected.user(), &caller);
        tokio::select! {
            ended = conversation => {
                if let Err(error) = ended
                    && !has_left(&error)
                {
                    refuse(&user, &caller, &error.to_string());
                }
            }
            why = self.clients.until_revoked(&chain, &admitted) => {
                let why = format!("the connection is closed, because {why}");
                refuse(&user, &caller, &why);
            }
        }
    }
}

impl KeyServer {
    /// Answers requests until the client disconnects, which is an error as well, or sends something invalid.
    async fn converse(
        &self,
        connection: &mut Connection<Box<TlsStream<TcpStream>>>,
        admitted: &Admitted,
        user: &User,
        caller: &Caller<'_>,
    ) -> Result<(), FrameError> {
        loop {
            let request = requests::read(connection, &user.frames).await?;
            let permit = match self.throttle(user) {
                Ok(permit) => permit,
                Err(failure) => {
                    refuse(user, caller, &failure.message);
                    sleep(THROTTLE_PAUSE).await;
                    connection.reply(Reply::Failed(failure)).await?;
                    continue;
                }
            };
            wait_for_log(connection, user).await?;
            let start = Instant::now();
            let answered = match refusal(&admitted.client, self.master_key_id(), &request) {
                Some(refusal) => {
                    // The audit of calls has only those for a key.
                    if request.call().is_none() {
                        refuse(user, caller, &refusal.message);
                    }
                    Err(refusal)
                }
                None => {
                    let slow = || Waiting {
                        reason: WaitReason::KeyStore,
                        message: "the key server has no answer yet".into(),
                    };
                    let attempt = async {
                        if let Some(reply) = self.at_hand(admitted, &request) {
                            return Ok(reply);
                        }
                        // Closed never.
                        let _permit = self.attempts.acquire().await;
                        Box::pin(self.attempt(admitted, user, &request)).await
                    };
                    connection.wait_for(slow, attempt).await?
                }
            };
            drop(permit);
            audit::answered(caller, &request, &answered);
            self.record
                .answered(&user.id, &request, &answered, start.elapsed());
            connection
                .reply(answered.unwrap_or_else(Reply::Failed))
                .await?;
        }
    }

    /// Counts a request, as long as it is under way.
    fn throttle<'a>(&self, user: &'a User) -> Result<SemaphorePermit<'a>, Failure> {
        let throttled = |message: String| Failure {
            kind: FailureKind::Throttled,
            message,
        };
        if !user.may_ask_now() {
            return Err(throttled("this client makes too many requests".into()));
        }
        user.calls.try_acquire().map_err(|_| {
            let limit = user.limits.calls;
            throttled(format!(
                "this client has {limit} requests in flight, the most that it may have"
            ))
        })
    }

    fn master_key_id(&self) -> Option<&str> {
        self.master_key_id.as_deref()
    }

    /// What is answered without AWS and the key store, however many requests wait for these.
    fn at_hand(&self, admitted: &Admitted, request: &Request) -> Option<Reply> {
        match request {
            Request::Session => {
                let settings = self.aws.kms.settings().clone();
                Some(Reply::Session(self.aws.sessions.state(settings, None)))
            }
            Request::GetKey(request) => {
                let space = &admitted.client.name_space;
                self.keys.in_memory(space, &request.context)
            }
            _ => None,
        }
    }

    async fn attempt(
        &self,
        admitted: &Admitted,
        user: &User,
        request: &Request,
    ) -> Result<Reply, Failure> {
        let space = admitted.client.name_space.as_str();
        match request {
            Request::GetKey(request) => self.keys.get(space, user, &request.context).await,
            Request::FindKey(request) => self.keys.find(space, request).await,
            Request::MakeKey(make) => {
                let make = with_master_key(self.master_key_id(), make);
                self.keys.make(space, &make).await
            }
            Request::ListKeys(request) => {
                let mut listed = self.keys.list(space, request).await?;
                if let Reply::KeyList { keys, .. } = &mut listed {
                    keys.retain(|(name, _)| admitted.client.key_ids.contains(name.id));
                }
                Ok(listed)
            }
            // The first is at hand.
            Request::Session
            | Request::Decrypt(_)
            | Request::GenerateDataKey(_)
            | Request::Overview
            | Request::Events { .. } => Err(invalid("not a request to a key server".into())),
        }
    }
}

/// Logs a refusal, unless there were too many.
fn refuse(user: &User, caller: &Caller<'_>, why: &str) {
    if let Some(suppressed) = user.may_log() {
        audit::host_refused(caller, suppressed, why);
    }
}

/// Answers the first request of a host that is not served with the reason.
async fn tell(
    connection: &mut Connection<Box<TlsStream<TcpStream>>>,
    kind: FailureKind,
    why: String,
) {
    let message = format!("this host is not served: {why}");
    let told = async {
        let version = connection.begin().await?;
        connection.finish(version).await?;
        connection
            .reply(Reply::Failed(Failure { kind, message }))
            .await
    };
    // The log has the reason too.
    let _ = timeout(HANDSHAKE_TIMEOUT, told).await;
}
