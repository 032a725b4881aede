//! Holds the AWS session and calls KMS for MariaDB's `aws_key_management` plugin.
//!
//! Next to the launcher, it is the only process that calls AWS. It listens on a Unix socket
//! (`listener`), speaks the protocol of `broker-api` with each peer (`conversation`, `connection`,
//! `peer`), gives each user of the socket a fair share (`users`), makes the KMS calls (`aws_calls`,
//! `kms_calls`), caches the data keys for the time without a session (`key_cache`), keeps the wrapped
//! keys in the key store (`key_store_calls`), logs all calls for audits (`audit`), counts them for
//! monitoring (`overview`, `metrics`), and gets a new session when one has ended (`session_manager`). If
//! `iam-kms-wrapper` starts it, it takes over the session and exits with the server (`lifetime`). If it
//! is started with `--config`, it prompts for a code itself.
//!
//! As a `key_server`, it gives data keys over TLS to the brokers of other hosts. A broker that has an `upstream` is the
//! client of one, and makes no calls to AWS.
//!
//! No panic poisons a lock of `parking_lot`. What each protects is consistent at every unlock, even after one.

mod audit;
mod aws_calls;
pub mod command_line;
mod connection;
mod conversation;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod key_cache;
mod key_server;
mod key_store_calls;
mod kms_calls;
mod lifetime;
mod listener;
mod metrics;
mod overview;
mod peer;
mod peer_groups;
mod process;
mod session_manager;
mod upstream;
mod users;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use aws_session::{
    clock,
    config::{Config, ConfigError, Mfa, UpstreamConfig},
    credentials::Credentials,
    settings::{Reader, Settings, SettingsError},
    source_credentials::{self, CredentialsError, Finder},
};
use broker_api::FrameError;
use clap::Parser;
use futures_util::future::OptionFuture;
use service::{
    handover::{self, Handover, Started},
    listen_fds, logging,
    process::check_own_program,
    signals::Signals,
    stored_session, systemd,
    usage::show_usage,
};
use tokio::runtime::{Builder, Runtime};
use tracing::{error, info, warn};

use aws_calls::AwsCalls;
use command_line::CommandLine;
use conversation::{Backend, Service};
use key_cache::KeyCache;
use key_server::KeyServerError;
use key_store_calls::KeyStoreCalls;
use kms_calls::KmsCalls;
use lifetime::Lifetime;
use listener::{Listener, ListenerError};
use metrics::MetricsListener;
use overview::{KEPT_EVENTS, Record};
use peer::Scope;
use session_manager::{Role, SessionManager};
use upstream::{Upstream, UpstreamError};
use users::Users;

const PROGRAM: &str = "iam-kms-broker";

/// Exit code of a failure, as for `iam-kms-wrapper`.
const FAILURE: u8 = 125;

/// Threads for a key store in a directory. With more, most of their time would go into waking each other.
const MAX_STORE_THREADS: usize = 4;

/// How long to wait at the end for the last log lines to be written.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Why the broker cannot run.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Listener(#[from] ListenerError),
    #[error(transparent)]
    KeyServer(#[from] KeyServerError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("cannot read the hand-over from iam-kms-wrapper: {0}")]
    Handover(FrameError),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error("{0} has ended because of a bug; please report it with the preceding log lines")]
    Defect(&'static str),
    /// The launcher has been told the reason, and reports it.
    #[error("see the message of iam-kms-wrapper")]
    Told,
}

/// Runs the program.
pub fn main() -> ExitCode {
    logging::init(PROGRAM);
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(usage) => return show_usage(&usage).into(),
    };
    let ended = match command_line.config {
        Some(path) => Config::read(&path)
            .map_err(RunError::from)
            .and_then(|config| match config.broker.upstream.clone() {
                Some(upstream) => run_with_upstream(upstream, &config),
                None => run_alone(config, &path),
            }),
        None => run_for_wrapper(),
    };
    let status = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Told) => ExitCode::from(FAILURE),
        Err(failure) => {
            error!("{failure}");
            ExitCode::from(FAILURE)
        }
    };
    logging::flush(LOG_PATIENCE);
    status
}

/// Takes over from `iam-kms-wrapper`, and tells it when the socket listens.
fn run_for_wrapper() -> Result<(), RunError> {
    process::close_inherited_descriptors()
        .map_err(|error| RunError::System("close the server's descriptors", error))?;
    process::leave_parent()
        .map_err(|error| RunError::System("leave the server's process group", error))?;
    let signals = prepare_process()?;
    let Handover {
        config,
        session,
        clock,
        source,
        key_store_credentials,
        server_pid,
    } = Handover::read(&mut io::stdin().lock()).map_err(RunError::Handover)?;
    clock::restore(clock);
    logging::use_format(config.log_format);
    warn_of_readable_program();
    let prepared = Lifetime::of_server(server_pid)
        .map_err(|error| RunError::System("watch the server", error))
        .and_then(|lifetime| {
            let aws = Settings::read(&config.session, Reader::Service)?;
            let prepared = Prepared::new(&config, aws, key_store_credentials, None)?;
            Ok((lifetime, prepared))
        });
    let started: Started = match &prepared {
        Ok(_) => Ok(()),
        Err(failure) => Err(failure.to_string()),
    };
    handover::answer(&mut io::stdout().lock(), &started).map_err(RunError::Handover)?;
    let (lifetime, prepared) = prepared.map_err(|_| RunError::Told)?;
    process::close_standard_streams()
        .map_err(|error| RunError::System("close standard input and output", error))?;
    // SIGTERM goes to every process of the unit, but the server still needs the broker while it shuts
    // down.
    drop(signals);
    prepared.serve(config, source, Some(session), Role::OfServer, &lifetime)
}

/// Runs as a service of its own, or started by hand.
fn run_alone(config: Config, path: &Path) -> Result<(), RunError> {
    logging::use_format(config.log_format);
    let signals = prepare_process()?;
    warn_of_readable_program();
    let kept = listen_fds::take(stored_session::NAME)
        .map_err(|error| RunError::System("take the kept session out of LISTEN_FDS", error))?;
    let aws = Settings::read(&config.session, Reader::Service)?;
    let finder = Finder {
        config: &config.session,
        aws: &aws,
        interrupt: Some(signals.descriptor()),
    };
    let source = match finder.find_for_mfa() {
        Err(CredentialsError::Interrupted) => return Ok(()),
        // At boot, the network or the instance's role may come later, and a server without a broker would give up. The
        // session manager tries again, and says why it must.
        Err(CredentialsError::Source { .. } | CredentialsError::NoneToUse(_))
            if config.session.mfa == Mfa::Off =>
        {
            None
        }
        source => source?,
    };
    let kept =
        kept.and_then(|taken| stored_session::reuse(&config.session, source.as_ref(), taken.file));
    let how = match &kept {
        Some(_) => " (kept by systemd, so no code is asked for)",
        None => "",
    };
    let session = kept.or_else(|| source.clone().filter(|_| config.session.mfa == Mfa::Off));
    if let Some(session) = &session {
        let (access_key_id, expiration) = (&session.access_key_id, session.expiration_text());
        let opened = format!("session {access_key_id} is open until {expiration}");
        info!(
            event = "session_open",
            access_key_id, expiration, "{opened}{how}"
        );
        systemd::status(&opened);
    }
    let interrupt = Some(signals.descriptor());
    let of_key_store = match source_credentials::of_key_store(&config, &aws, interrupt) {
        Err(CredentialsError::Interrupted) => return Ok(()),
        found => found?,
    };
    let prepared = Prepared::new(&config, aws, of_key_store, Some(path))?;
    // Without waiting for a session: units that need one wait for it themselves.
    systemd::ready();
    let lifetime = Lifetime::UntilSignal(signals);
    prepared.serve(config, source, session, Role::Service, &lifetime)
}

/// Runs as its own service, on a host that gets its keys from key servers.
fn run_with_upstream(upstream: UpstreamConfig, config: &Config) -> Result<(), RunError> {
    logging::use_format(config.log_format);
    let signals = prepare_process()?;
    warn_of_readable_program();
    let runtime = runtime(false)?;
    let upstream = Arc::new(Upstream::new(upstream, config)?);
    let mut listener = Listener::bind(&config.broker.socket, config.broker.socket_gid)?;
    let status = format!("gets its keys from {}", upstream.names());
    let service = Arc::new(Service {
        backend: Backend::Upstream(Arc::clone(&upstream)),
        record: Arc::new(Record::new()),
        certificate: None,
        users: Arc::new(Users::new(process::max_connections())),
    });
    let socket = listener
        .acceptor()
        .map_err(|error| RunError::System("accept connections", error))?;
    info!("listening on {}; {status}", listener.path().display());
    systemd::ready();
    systemd::status(&status);
    let lifetime = Lifetime::UntilSignal(signals);
    let serving = async {
        tokio::select! {
            ended = lifetime.wait() => {
                ended.map_err(|error| RunError::System("wait for the end", error))
            }
            served = service.listen(&mut listener, socket, Scope::Keys) => {
                served.map_err(|error| RunError::System("accept connections", error))
            }
            () = upstream.watch_files() => Ok(()),
            () = upstream.watch_state() => Ok(()),
        }
    };
    // Even after a panic, the socket is removed.
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(serving)))
        .unwrap_or(Err(RunError::Defect("the thread that serves clients")));
    drop(listener);
    runtime.shutdown_timeout(LOG_PATIENCE);
    ended
}

/// What serves connections and calls: this thread, or on a key server, which has many clients, one for each processor.
fn runtime(is_key_server: bool) -> Result<Runtime, RunError> {
    let failed = |error| RunError::System("start the threads that serve clients", error);
    let mut builder = if is_key_server {
        Builder::new_multi_thread()
    } else {
        Builder::new_current_thread()
    };
    builder
        .enable_all()
        // A file server that does not answer keeps the threads that wait for it.
        .max_blocking_threads(MAX_STORE_THREADS)
        .thread_keep_alive(Duration::MAX);
    // Tokio panics if it cannot start a thread for each processor. Later it panics if there is work for the threads of the
    // key store while none exists and none can be started, so the first one is started here, and stays.
    let started = || {
        let runtime = builder.build()?;
        runtime.spawn_blocking(|| ());
        Ok(runtime)
    };
    catch_unwind(AssertUnwindSafe(started))
        .unwrap_or_else(|_| Err(io::Error::other("the system starts no further threads")))
        .map_err(failed)
}

fn warn_of_readable_program() {
    if let Err(exposure) = check_own_program() {
        warn!("{exposure}");
    }
}

/// Starts the thread of the log. With `--handover`, the process has forked for the last time before.
fn prepare_process() -> Result<Signals, RunError> {
    process::harden()
        .map_err(|error| RunError::System("turn core dumps and new privileges off", error))?;
    // Before the first thread, so that it inherits the blocked signals.
    let signals = Signals::hold().map_err(|error| RunError::System("hold signals", error))?;
    logging::keep_recent(KEPT_EVENTS);
    logging::write_in_background(PROGRAM)
        .map_err(|error| RunError::System("start the thread of the log", error))?;
    Ok(signals)
}

/// The parts whose creation can fail, before the first peer is served.
struct Prepared {
    runtime: Runtime,
    aws: Settings,
    kms: KmsCalls,
    key_store: Option<KeyStoreCalls>,
    key_server: Option<key_server::Prepared>,
    users: Arc<Users>,
    listener: Listener,
    overview_listener: Option<Listener>,
    metrics: Option<MetricsListener>,
}

impl Prepared {
    fn new(
        config: &Config,
        aws: Settings,
        key_store_credentials: Option<Credentials>,
        path: Option<&Path>,
    ) -> Result<Self, RunError> {
        let runtime = runtime(config.broker.key_server.is_some())?;
        let users = Arc::new(Users::new(process::max_connections()));
        let key_server = match &config.broker.key_server {
            None => None,
            Some(key_server) => Some(key_server::Prepared::new(key_server, config, path)?),
        };
        let key_store = config.broker.key_store.as_ref().map(|location| {
            KeyStoreCalls::new(location.clone(), aws.clone(), key_store_credentials)
        });
        let broker = &config.broker;
        let group = broker.overview_gid;
        let overview_listener = match &broker.overview_socket {
            Some(path) => Some(Listener::bind(path, group)?),
            None => None,
        };
        let metrics = match &broker.metrics_listen {
            Some(listen) => Some(MetricsListener::bind(listen, group)?),
            None => None,
        };
        Ok(Self {
            overview_listener,
            metrics,
            key_server,
            key_store,
            kms: KmsCalls::new(&aws),
            aws,
            runtime,
            users,
            listener: Listener::bind(&broker.socket, broker.socket_gid)?,
        })
    }

    /// Serves peers and manages the session until `lifetime` is over, and then wipes all secrets.
    fn serve(
        self,
        config: Config,
        source: Option<Credentials>,
        session: Option<Credentials>,
        role: Role,
        lifetime: &Lifetime,
    ) -> Result<(), RunError> {
        let Self {
            runtime,
            aws,
            kms,
            key_store,
            key_server,
            users,
            mut listener,
            mut overview_listener,
            mut metrics,
        } = self;
        let is_key_server = key_server.is_some();
        let cache = KeyCache::new(config.broker.key_cache);
        let record = Arc::new(Record::new());
        let sessions = SessionManager::new(config, aws, source, session, role)
            .map_err(|error| RunError::System("make an event", error))?;
        let aws = Arc::new(AwsCalls {
            sessions: Arc::new(sessions),
            kms,
            key_store,
            cache,
            waiting: AtomicUsize::new(0),
        });
        let service = Arc::new(Service {
            backend: Backend::Aws(Arc::clone(&aws)),
            record: Arc::clone(&record),
            certificate: key_server.as_ref().map(key_server::Prepared::certificate),
            users: Arc::clone(&users),
        });
        let failed = |error| RunError::System("accept connections", error);
        let socket = listener.acceptor().map_err(failed)?;
        let overview_socket = match &overview_listener {
            Some(listener) => Some(listener.acceptor().map_err(failed)?),
            None => None,
        };
        info!("listening on {}", listener.path().display());
        let (thread, thread_ended) = aws
            .sessions
            .start()
            .map_err(|error| RunError::System("start the thread that gets sessions", error))?;
        let serving = async {
            let overview = overview_listener
                .as_mut()
                .zip(overview_socket)
                .map(|(listener, socket)| service.listen(listener, socket, Scope::Overview));
            let metrics = metrics.as_mut().map(|it| it.serve(&service, &aws));
            let hosts = key_server.map(|it| it.serve(Arc::clone(&aws), record, users));
            // What is not configured ends at once as None, which matches no pattern and is not polled again.
            tokio::select! {
                ended = lifetime.wait() => {
                    ended.map_err(|error| RunError::System("wait for the end", error))
                }
                _ = thread_ended => Err(RunError::Defect("the thread that gets sessions")),
                served = service.listen(&mut listener, socket, Scope::Keys) => {
                    served.map_err(failed)
                }
                Some(served) = OptionFuture::from(overview) => served.map_err(failed),
                Some(Err(error)) = OptionFuture::from(metrics) => {
                    Err(RunError::System("serve metrics", error))
                }
                Some(served) = OptionFuture::from(hosts) => {
                    served.map_err(|error| RunError::System("serve database hosts", error))
                }
                () = aws.check_key_store(is_key_server) => {
                    Err(RunError::Defect("the check of the key store"))
                }
            }
        };
        // Even after a panic, the rest of this function runs.
        let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(serving)))
            .unwrap_or(Err(RunError::Defect("the thread that serves clients")));
        // First, so that the next broker can take over the paths.
        drop((listener, overview_listener, metrics));
        aws.sessions
            .stop()
            .map_err(|error| RunError::System("stop", error))?;
        // A panic has been reported already.
        let _ = thread.join();
        // This also drops the connections and their buffers. A file server may not answer for ever.
        runtime.shutdown_timeout(LOG_PATIENCE);
        aws.cache.wipe();
        ended
    }
}
