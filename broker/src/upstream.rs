//! Asks key servers, in place of KMS, for the processes of this host. Nothing here has a credential of AWS or a wrapped
//! key: a key server is asked for a key by its id and version, and looks for it in its own key store.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use aws_session::{
    config::{Config, ServerAddress, UpstreamConfig},
    dns::Resolver,
};
use broker_api::{
    Decrypt, Failure, FailureKind, FrameError, GetKey, HEADER_BYTES, Header, KmsSettings,
    PROTOCOL_VERSION, Reply, Request, SessionPhase, SessionState, WAITING_INTERVAL, WaitReason,
    Waiting, decode, encode,
};
use mutual_tls::{ClientTls, TlsFilesError, WatchedFiles, reason};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::{Mutex as AsyncMutex, Notify, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    aws_calls::turn,
    connection::{Connection, in_time},
    kms_calls::invalid,
    users::User,
};

/// Requests to the key servers at the same time, each over its own connection; the rest wait. Many hosts may start at
/// once, and each connection costs the key server a handshake and memory (`make bench-key-server`).
const MAX_REQUESTS: usize = 4;

/// How long a connection may take, with the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How much longer than one of its calls a key server may take for an answer.
const GRACE: Duration = Duration::from_secs(2);

/// How much longer a request may take while the key server says that it is still at it.
const MAX_WAITS: u32 = 4;

/// Longest message of a key server that is passed on, in characters.
const MAX_MESSAGE_CHARACTERS: usize = 1000;

/// How long a server that did not answer is tried only after the others.
const DOWN_TIME: Duration = Duration::from_secs(5);

/// A key server closes an idle connection after a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);

/// How long to wait for the state of a session. The server's statements wait for it, `SHOW STATUS` above all.
const STATE_PATIENCE: Duration = Duration::from_millis(150);

/// How long an answer counts.
const STATE_LIFETIME: Duration = Duration::from_secs(90);

/// Pause before a request that waits is sent again. It doubles each time, because many hosts that wait for KMS would keep
/// it overloaded.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The same for a request that waits for a session only. It is sent again to renew its message, and the audit of the key
/// server has each attempt.
const SESSION_PAUSE: Duration = Duration::from_secs(300);

/// How often the same fault of a server is logged.
const FAULT_INTERVAL: Duration = Duration::from_secs(60);

/// The key servers of the configuration.
pub(crate) struct Upstream {
    servers: Vec<Server>,
    tls: Arc<WatchedFiles<ClientTls>>,
    /// The server that answered last.
    preferred: AtomicUsize,
    requests: Semaphore,
    request_timeout: Duration,
    reprompt_wait: Duration,
    /// What is known to keep each server from serving this host: it has no session, or is silent.
    obstacles: watch::Sender<Vec<Option<Fault>>>,
    /// Locked by the one request that asks for the states, of all that wait.
    asking: AsyncMutex<()>,
    trouble: Mutex<Trouble>,
    /// Has the state of the session asked for.
    state_wanted: Notify,
    /// The last answer, and when it came; `None`: no server has answered.
    last_state: watch::Sender<Option<(SessionState, Instant)>>,
}

struct Server {
    address: ServerAddress,
    name: ServerName<'static>,
    idle: Mutex<Vec<(Stream, Instant)>>,
    down_since: Mutex<Option<Instant>>,
}

type Stream = TlsStream<TcpStream>;

/// Why a server has not served a request that it may serve later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NoSession,
    /// It does not answer.
    Silence,
    /// It answers, and KMS or its key store fails, or it has too many requests.
    Failed(FailureKind),
}

/// Why no server has served a request.
struct Unserved {
    failure: Failure,
    /// The fault of each server; none, if the request is refused.
    faults: Vec<(usize, Fault)>,
}

impl Unserved {
    /// Whether a code is all that is missing, at those servers that answer.
    fn needs_session(&self) -> bool {
        let faults = || self.faults.iter().map(|(_, fault)| fault);
        faults().any(|it| *it == Fault::NoSession) && !faults().any(|it| is_hidden(*it))
    }
}

/// Whether only another request shows that this has passed. The state of the session shows the rest.
fn is_hidden(fault: Fault) -> bool {
    matches!(fault, Fault::Failed(_))
}

/// What has been logged of requests that no server could serve.
#[derive(Default)]
struct Trouble {
    /// When each fault was last logged, by the index of its server. Its message may differ each time.
    logged: Vec<((usize, Fault), Instant)>,
    /// Whether the end of it is to be logged.
    is_open: bool,
}

impl Trouble {
    /// Whether one of the faults has not been logged for a while.
    fn is_due(&mut self, faults: &[(usize, Fault)]) -> bool {
        self.logged.retain(|(_, at)| at.elapsed() < FAULT_INTERVAL);
        let is_logged = |fault| self.logged.iter().any(|(logged, _)| logged == fault);
        if faults.iter().all(is_logged) {
            return false;
        }
        let now = Instant::now();
        self.logged.retain(|(logged, _)| !faults.contains(logged));
        self.logged.extend(faults.iter().map(|&fault| (fault, now)));
        self.is_open = true;
        true
    }

    /// Whether the end of it is to be logged, now that a server has answered. If it is silent again, that is logged again.
    fn ends(&mut self, index: usize) -> bool {
        let ended = (index, Fault::Silence);
        self.logged.retain(|&(logged, _)| logged != ended);
        std::mem::take(&mut self.is_open)
    }
}

/// Why the key servers cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error(transparent)]
    Files(#[from] TlsFilesError),
    #[error("{0} in upstream is not a DNS name or an IP address with a port")]
    Name(ServerAddress),
}

impl Upstream {
    /// Reads the certificates. Connects only when there is a request.
    pub fn new(upstream: UpstreamConfig, config: &Config) -> Result<Self, UpstreamError> {
        let servers = upstream.servers.into_iter().map(|address| {
            let name = ServerName::try_from(address.host.clone())
                .map_err(|_| UpstreamError::Name(address.clone()))?;
            Ok(Server {
                name,
                address,
                idle: Mutex::default(),
                down_since: Mutex::default(),
            })
        });
        let servers: Vec<_> = servers.collect::<Result<_, UpstreamError>>()?;
        Ok(Self {
            obstacles: watch::Sender::new(vec![None; servers.len()]),
            servers,
            tls: Arc::new(WatchedFiles::read(upstream.tls, ClientTls::new)?),
            preferred: AtomicUsize::new(0),
            requests: Semaphore::new(MAX_REQUESTS),
            request_timeout: config.session.request_timeout,
            reprompt_wait: config.broker.reprompt_wait,
            asking: AsyncMutex::default(),
            trouble: Mutex::default(),
            state_wanted: Notify::new(),
            last_state: watch::Sender::new(None),
        })
    }

    /// The key servers that the keys come from, for people.
    pub fn names(&self) -> String {
        let servers: Vec<_> = self
            .servers
            .iter()
            .map(|it| it.address.to_string())
            .collect();
        format!("the key server {}", servers.join(" or "))
    }

    /// Which key store this is, for people.
    pub fn location(&self) -> String {
        format!("of {}", self.names())
    }

    /// Reads the certificates again when they change, as long as it is polled.
    pub async fn watch_files(&self) {
        let tls = Arc::clone(&self.tls);
        mutual_tls::watch(
            move || tls.refresh(),
            || {
                for server in &self.servers {
                    server.idle.lock().clear();
                }
            },
        )
        .await;
    }

    /// Answers a request of this host. If no key server has a session or answers, and the peer may wait, waits for one.
    /// Fails if the peer disconnects.
    pub async fn answer(
        &self,
        connection: &mut Connection<UnixStream>,
        user: &User,
        request: Request,
    ) -> Result<Result<Reply, Failure>, FrameError> {
        let wait = request.call().map(|(_, context)| context.wait);
        let request = match translate(request) {
            Ok(request) => request,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let Some(wait) = wait else {
            return Ok(Ok(Reply::Session(self.state().await)));
        };
        let limit = wait.limit(self.reprompt_wait);
        let until = limit.map(|limit| Instant::now() + limit);
        let mut pause = FIRST_PAUSE;
        loop {
            let permit = connection
                .wait_for(|| turn(user), user.calls.acquire())
                .await?;
            let asked = connection
                .wait_for(|| self.slow(), self.ask(&request))
                .await?;
            drop(permit);
            let unserved = match asked {
                Err(unserved) if may_pass(unserved.failure.kind) => unserved,
                answered => return Ok(answered.map_err(|unserved| unserved.failure)),
            };
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Err(unserved.failure));
            }
            let waiting = || Waiting {
                reason: WaitReason::Session,
                message: unserved.failure.message.clone(),
            };
            connection.reply(Reply::Waiting(waiting())).await?;
            let limit = jittered(if unserved.needs_session() {
                pause = FIRST_PAUSE;
                SESSION_PAUSE
            } else {
                let present = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                present
            });
            let limit = left.map_or(limit, |left| left.min(limit));
            let changed = timeout(limit, self.wait_for_change(&unserved.faults));
            // In both cases, the loop tries again.
            let _ = connection.wait_for(waiting, changed).await?;
        }
    }

    fn slow(&self) -> Waiting {
        Waiting {
            reason: WaitReason::KeyStore,
            message: format!("the key store {} has not answered yet", self.location()),
        }
    }

    /// Asks the servers in turn until one has an answer.
    async fn ask(&self, request: &Request) -> Result<Reply, Unserved> {
        // Closed never.
        let _permit = self.requests.acquire().await;
        let mut session_over = None;
        let mut failures = Vec::new();
        let mut faults = Vec::new();
        for index in self.order() {
            let Some(server) = self.servers.get(index) else {
                continue;
            };
            let address = &server.address;
            let answered = server
                .ask(&self.tls.current(), request, self.request_timeout + GRACE)
                .await;
            match answered {
                Ok(Reply::Failed(failure)) => {
                    let failure = Failure {
                        kind: failure.kind,
                        message: format!("key server {address}: {}", shown(&failure.message)),
                    };
                    match failure.kind {
                        FailureKind::SessionOver => {
                            session_over.get_or_insert(failure);
                            faults.push((index, Fault::NoSession));
                        }
                        kind if kind.is_retryable() => {
                            failures.push(failure.message);
                            faults.push((index, Fault::Failed(kind)));
                        }
                        _ => {
                            return Err(Unserved {
                                failure,
                                faults: Vec::new(),
                            });
                        }
                    }
                }
                Ok(reply) => {
                    self.note_answer(index, &failures);
                    return Ok(reply);
                }
                Err(why) => {
                    failures.push(format!("key server {address}: {why}"));
                    faults.push((index, Fault::Silence));
                }
            }
        }
        for &(index, fault) in &faults {
            if !is_hidden(fault) {
                self.note_obstacle(index, Some(fault));
            }
        }
        let message = match session_over {
            Some(failure) if failures.is_empty() => return Err(Unserved { failure, faults }),
            Some(failure) => format!("{}; {}", failure.message, failures.join("; ")),
            None => format!(
                "no key server could serve the request: {}",
                failures.join("; ")
            ),
        };
        if self.trouble.lock().is_due(&faults) {
            warn!(event = "upstream_failed", "{message}");
        }
        Err(Unserved {
            // Also where one has no session: another one may have one, and answer a moment later.
            failure: Failure {
                kind: FailureKind::Unavailable,
                message,
            },
            faults,
        })
    }

    fn note_answer(&self, index: usize, failures: &[String]) {
        let Some(server) = self.servers.get(index) else {
            return;
        };
        // It may be from the key cache of a server without a session.
        self.note_end(index, Fault::Silence);
        if self.trouble.lock().ends(index) {
            info!(event = "upstream", "key server {} answers", server.address);
        }
        if self.preferred.swap(index, Ordering::Relaxed) != index {
            let why = match failures {
                [] => String::new(),
                failures => format!(", because {}", failures.join("; ")),
            };
            info!(
                event = "upstream",
                "key server {} is asked from now on{why}", server.address
            );
        }
    }

    /// The server that answered last comes first; those that did not answer a moment ago come last.
    fn order(&self) -> Vec<usize> {
        let count = self.servers.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut order: Vec<_> = (0..count).map(|step| (first + step) % count).collect();
        order.sort_by_key(|&index| self.servers.get(index).is_some_and(Server::is_down));
        order
    }

    /// Waits until a server no longer has the fault that a request has met, if the state of its session shows that. However
    /// many requests wait, each server is asked once a second.
    async fn wait_for_change(&self, faults: &[(usize, Fault)]) {
        let mut obstacles = self.obstacles.subscribe();
        let changed = obstacles.wait_for(|obstacles| {
            faults.iter().any(|&(index, fault)| {
                !is_hidden(fault) && obstacles.get(index) != Some(&Some(fault))
            })
        });
        let ask = async {
            let _asking = self.asking.lock().await;
            loop {
                sleep(jittered(WAITING_INTERVAL)).await;
                self.ask_states().await;
            }
        };
        tokio::select! {
            // The sender lives as long as this.
            _ = changed => {}
            () = ask => {}
        }
    }

    /// Notes that a server does not have this fault.
    fn note_end(&self, index: usize, fault: Fault) {
        self.obstacles
            .send_if_modified(|obstacles| match obstacles.get_mut(index) {
                Some(known) if *known == Some(fault) => known.take().is_some(),
                _ => false,
            });
    }

    fn note_obstacle(&self, index: usize, obstacle: Option<Fault>) {
        self.obstacles
            .send_if_modified(|obstacles| match obstacles.get_mut(index) {
                Some(known) => std::mem::replace(known, obstacle) != obstacle,
                None => false,
            });
    }

    /// Asks for the state of the session when somebody wants it, as long as it is polled. By itself, because an answer may
    /// take longer than anybody waits for it.
    pub async fn watch_state(&self) {
        loop {
            self.state_wanted.notified().await;
            let asked = self.ask_states().await;
            self.last_state
                .send_replace(asked.map(|state| (state, Instant::now())));
        }
    }

    /// The state of the session, as the plugin asks for it: the last one that is known, if none comes at once.
    async fn state(&self) -> SessionState {
        let mut answers = self.last_state.subscribe();
        self.state_wanted.notify_one();
        // In both cases, the last one is taken.
        let _ = timeout(STATE_PATIENCE, answers.changed()).await;
        let state = match answers.borrow().clone() {
            Some((state, at)) if at.elapsed() < STATE_LIFETIME => state,
            _ => SessionState {
                phase: SessionPhase::Failed,
                expiration_unix_seconds: None,
                fifo: None,
                kms: KmsSettings::default(),
                key_store: None,
                has_key_server: true,
            },
        };
        let request_timeout = self.request_timeout.as_millis();
        SessionState {
            // A path on another host would mislead.
            fifo: None,
            kms: KmsSettings {
                request_timeout_milliseconds: u64::try_from(request_timeout).unwrap_or(u64::MAX),
                ..state.kms
            },
            key_store: Some(self.location()),
            has_key_server: true,
            ..state
        }
    }

    /// The state of the first server that has a session, or else of the first that answers.
    async fn ask_states(&self) -> Option<SessionState> {
        let patience = CONNECT_TIMEOUT + self.request_timeout;
        let mut answered = None;
        for index in self.order() {
            let server = self.servers.get(index)?;
            let asked = server
                .ask(&self.tls.current(), &Request::Session, patience)
                .await;
            match asked {
                Ok(Reply::Session(state)) if state.phase == SessionPhase::Open => {
                    self.note_obstacle(index, None);
                    return Some(state);
                }
                Ok(Reply::Session(state)) => {
                    self.note_obstacle(index, Some(Fault::NoSession));
                    answered.get_or_insert(state);
                }
                Ok(Reply::Failed(failure)) if failure.kind.is_retryable() => {}
                // It refuses this host, and answers a request that waits with the reason.
                Ok(_) => self.note_obstacle(index, None),
                Err(_) => self.note_obstacle(index, Some(Fault::Silence)),
            }
        }
        answered
    }
}

impl Server {
    fn is_down(&self) -> bool {
        self.down_since
            .lock()
            .is_some_and(|since| since.elapsed() < DOWN_TIME)
    }

    /// Sends a request and waits for its answer, however often the server says that it is still at it.
    async fn ask(
        &self,
        tls: &ClientTls,
        request: &Request,
        patience: Duration,
    ) -> Result<Reply, String> {
        let kept = {
            let mut idle = self.idle.lock();
            idle.retain(|(_, since)| since.elapsed() < IDLE_TIMEOUT);
            idle.pop()
        };
        if let Some((stream, _)) = kept {
            // The server may have closed it, or have been restarted.
            if let Ok(reply) = self.exchange(stream, request, patience).await {
                return Ok(reply);
            }
        }
        let asked = async {
            let stream = self.connect(tls).await?;
            self.exchange(stream, request, patience)
                .await
                .map_err(|error| match error {
                    FrameError::Io(error) => reason(error),
                    error => error.to_string(),
                })
        };
        let asked = asked.await;
        *self.down_since.lock() = asked.is_err().then(Instant::now);
        asked
    }

    async fn connect(&self, tls: &ClientTls) -> Result<Stream, String> {
        let begun = Instant::now();
        let addresses = timeout(CONNECT_TIMEOUT, Resolver.resolve(&self.address.host))
            .await
            .unwrap_or_else(|_| Err("the name service did not answer in time".into()))?;
        let left = CONNECT_TIMEOUT.saturating_sub(begun.elapsed());
        let connected = in_time(left, async {
            let stream = self.connect_to_any(&addresses, left).await?;
            // A request is one small packet, and so is its answer.
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::clone(&tls.config));
            connector.connect(self.name.clone(), stream).await
        });
        connected.await.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => "no answer in time".into(),
            _ => reason(error),
        })
    }

    /// Connects to the first of the addresses that takes the connection. One that is silent, such as that of an IPv6 that
    /// is filtered, takes its share of the time only.
    async fn connect_to_any(&self, addresses: &[IpAddr], limit: Duration) -> io::Result<TcpStream> {
        let share = limit / addresses.len().max(1) as u32;
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        for &address in addresses {
            match in_time(share, TcpStream::connect((address, self.address.port))).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn exchange(
        &self,
        mut stream: Stream,
        request: &Request,
        patience: Duration,
    ) -> Result<Reply, FrameError> {
        let frame = encode(PROTOCOL_VERSION, request)?;
        in_time(patience, async {
            stream.write_all(&frame).await?;
            stream.flush().await
        })
        .await?;
        let until = Instant::now() + patience * MAX_WAITS;
        loop {
            let mut header = [0; HEADER_BYTES];
            in_time(patience, stream.read_exact(&mut header)).await?;
            let header = Header::parse(header);
            if header.version != PROTOCOL_VERSION {
                return Err(FrameError::Version(header.version));
            }
            let mut body = Zeroizing::new(vec![0; header.checked_body_bytes()?]);
            in_time(patience, stream.read_exact(&mut body)).await?;
            match decode(&body)? {
                Reply::Waiting(_) if Instant::now() < until => {}
                Reply::Waiting(_) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
                reply => {
                    let mut idle = self.idle.lock();
                    if idle.len() < MAX_REQUESTS {
                        idle.push((stream, Instant::now()));
                    }
                    return Ok(reply);
                }
            }
        }
    }
}

/// What a key server is asked. It never waits for a code, whatever the request says: this broker waits, so that another
/// server may be asked.
fn translate(request: Request) -> Result<Request, Failure> {
    let why = match request {
        // Of a key file that is still here: the key server has it too, under the same number.
        Request::Decrypt(Decrypt { context, .. })
            if context.key_id != 0 && context.key_version != 0 =>
        {
            return Ok(Request::GetKey(GetKey { context }));
        }
        Request::Decrypt(_) => "which unwraps only keys of its own key store, by their numbers",
        Request::GenerateDataKey(_) => {
            "and the plugin that is loaded cannot make keys there; restart the server, which then loads the installed one"
        }
        Request::Overview | Request::Events { .. } => "and has no overview; ask on the key server",
        request @ (Request::GetKey(_)
        | Request::FindKey(_)
        | Request::ListKeys(_)
        | Request::MakeKey(_)
        | Request::Session) => return Ok(request),
    };
    Err(invalid(format!(
        "this host gets its keys from a key server (upstream), {why}"
    )))
}

/// A message of a key server as it may go into logs: on one line, and not without end.
fn shown(message: &str) -> String {
    let beginning: String = message.chars().take(MAX_MESSAGE_CHARACTERS).collect();
    visible_text::escape(&beginning)
}

/// Hosts that wait for the same server do not ask it at the same moment.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + f64::from(std::process::id() % 1000) / 2000.0)
}

/// Whether a start can wait for it to pass: somebody enters a code, or a server is back.
fn may_pass(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::SessionOver | FailureKind::Unavailable)
}

#[cfg(test)]
mod tests {
    use broker_api::{GenerateDataKey, KeyContext, WaitPolicy};

    use super::*;

    fn decrypt(key_id: u32, key_version: u32) -> Request {
        Request::Decrypt(Decrypt {
            ciphertext_blob: vec![1, 2, 3],
            check_value: Some([7; 16]),
            context: KeyContext {
                key_id,
                key_version,
                wait: WaitPolicy::Never,
            },
        })
    }

    #[test]
    fn a_wrapped_key_never_leaves_this_host() {
        let context = KeyContext {
            key_id: 5,
            key_version: 2,
            wait: WaitPolicy::Never,
        };
        let expected = Request::GetKey(GetKey { context });
        assert_eq!(translate(decrypt(5, 2)), Ok(expected));
        // A plugin that says nothing of the key.
        assert!(translate(decrypt(0, 0)).is_err());
        assert!(translate(decrypt(5, 0)).is_err());
        let generate = Request::GenerateDataKey(GenerateDataKey {
            master_key_id: "alias/mariadb".into(),
            key_bytes: 16,
            context,
        });
        assert!(translate(generate).is_err());
    }

    #[test]
    fn a_message_of_a_key_server_is_one_line_and_has_an_end() {
        assert!(!shown("a\nb").contains('\n'));
        assert!(shown(&"a".repeat(100_000)).len() <= MAX_MESSAGE_CHARACTERS);
    }
}
