//! Holds the AWS session and calls KMS for MariaDB's `aws_key_management` plugin.
//!
//! Next to the launcher, it is the only process that calls AWS. It listens on a Unix socket
//! (`listener`), speaks the protocol of `broker-api` with each peer (`conversation`, `connection`,
//! `peer`), gives each user of the socket a fair share (`users`), makes the KMS calls (`kms_calls`),
//! caches the data keys for the time without a session (`key_cache`), keeps the wrapped keys in the key store (`key_store_calls`), logs all calls for audits
//! (`audit`), and gets a new session when one has ended (`session_manager`). If `iam-kms-wrapper`
//! starts it, it takes over the session and exits with the server (`lifetime`). If it is started with
//! `--config`, it prompts for a code itself.

mod audit;
pub mod command_line;
mod connection;
mod conversation;
mod key_cache;
mod key_store_calls;
mod kms_calls;
mod lifetime;
mod listener;
mod peer;
mod peer_groups;
mod process;
mod session_manager;
mod users;

use std::{
    io,
    os::fd::BorrowedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use aws_session::{
    clock,
    config::{Config, ConfigError, Mfa},
    credentials::Credentials,
    settings::{Reader, Settings, SettingsError},
    source_credentials::{self, CredentialsError, Finder},
};
use broker_api::FrameError;
use clap::Parser;
use service::{
    handover::{self, Handover, Started},
    listen_fds, logging,
    process::check_own_program,
    signals::Signals,
    stored_session, systemd,
    usage::show_usage,
};
use tokio::{net::UnixListener, runtime::Runtime};
use tracing::{error, info, warn};

use command_line::CommandLine;
use conversation::Service;
use key_cache::KeyCache;
use key_store_calls::KeyStoreCalls;
use kms_calls::KmsCalls;
use lifetime::Lifetime;
use listener::{Listener, ListenerError};
use peer::Admission;
use session_manager::{Role, SessionManager};
use users::Users;

const PROGRAM: &str = "iam-kms-broker";

/// Exit code of a failure, as for `iam-kms-wrapper`.
const FAILURE: u8 = 125;

/// Threads for a key store in a directory.
const MAX_STORE_THREADS: usize = 32;

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
    #[error("cannot read the hand-over from iam-kms-wrapper: {0}")]
    Handover(FrameError),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error("{0} has ended because of a bug; please report it with the preceding log lines")]
    Defect(&'static str),
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
            .and_then(run_alone),
        None => run_for_wrapper(),
    };
    let status = match ended {
        Ok(()) => ExitCode::SUCCESS,
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
        server_pid,
    } = Handover::read(&mut io::stdin().lock()).map_err(RunError::Handover)?;
    clock::restore(clock);
    logging::use_format(config.log_format);
    warn_of_readable_program();
    let prepared = Lifetime::of_server(server_pid)
        .map_err(|error| RunError::System("watch the server", error))
        .and_then(|lifetime| {
            let aws = Settings::read(&config.session, Reader::Service)?;
            Ok((lifetime, Prepared::new(&config, aws, None)?))
        });
    let started: Started = match &prepared {
        Ok(_) => Ok(()),
        Err(failure) => Err(failure.to_string()),
    };
    handover::answer(&mut io::stdout().lock(), &started).map_err(RunError::Handover)?;
    let (lifetime, prepared) = prepared?;
    process::close_standard_streams()
        .map_err(|error| RunError::System("close standard input and output", error))?;
    // SIGTERM goes to every process of the unit, but the server still needs the broker while it shuts
    // down.
    drop(signals);
    prepared.serve(config, source, Some(session), Role::OfServer, &lifetime)
}

/// Runs as a service of its own, or started by hand.
fn run_alone(config: Config) -> Result<(), RunError> {
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
        source => source?,
    };
    let kept =
        kept.and_then(|taken| stored_session::reuse(&config.session, source.as_ref(), taken.file));
    if let Some(session) = &kept {
        info!(
            event = "session_open",
            access_key_id = session.access_key_id,
            expiration = session.expiration_text(),
            "session {} is open until {} (kept by systemd, so no code is asked for)",
            session.access_key_id,
            session.expiration_text()
        );
    }
    let session = kept.or_else(|| source.clone().filter(|_| config.session.mfa == Mfa::Off));
    let prepared = match Prepared::new(&config, aws, Some(signals.descriptor())) {
        Err(RunError::Credentials(CredentialsError::Interrupted)) => return Ok(()),
        prepared => prepared?,
    };
    // Without waiting for a session: units that need one wait for it themselves.
    systemd::ready();
    let lifetime = Lifetime::UntilSignal(signals);
    prepared.serve(config, source, session, Role::Service, &lifetime)
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
    users: Users,
    listener: Listener,
}

impl Prepared {
    fn new(
        config: &Config,
        aws: Settings,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<Self, RunError> {
        // This thread serves all connections and calls.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // A file server that does not answer keeps the threads that wait for it.
            .max_blocking_threads(MAX_STORE_THREADS)
            .build()
            .map_err(|error| RunError::System("start the AWS SDK", error))?;
        let users = Users::new(process::max_connections());
        let key_store = match &config.broker.key_store {
            None => None,
            Some(location) => {
                let own = source_credentials::of_key_store(config, &aws, interrupt)?;
                Some(KeyStoreCalls::new(location.clone(), aws.clone(), own))
            }
        };
        Ok(Self {
            key_store,
            kms: KmsCalls::new(&aws),
            aws,
            runtime,
            users,
            listener: Listener::bind(&config.broker.socket, config.broker.socket_gid)?,
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
            users,
            listener,
        } = self;
        let cache = KeyCache::new(config.broker.key_cache);
        let admission = Admission::new(config.broker.socket_gid);
        let sessions = SessionManager::new(config, aws, source, session, role)
            .map_err(|error| RunError::System("make an event", error))?;
        let service = Arc::new(Service {
            sessions: Arc::new(sessions),
            kms,
            key_store,
            cache,
            admission,
            users,
        });
        let socket = listener
            .acceptor()
            .map_err(|error| RunError::System("accept connections", error))?;
        info!("listening on {}", listener.path().display());
        let (thread, thread_ended) = service
            .sessions
            .start()
            .map_err(|error| RunError::System("start the thread that gets sessions", error))?;
        let serving = async {
            let socket = UnixListener::from_std(socket)
                .map_err(|error| RunError::System("accept connections", error))?;
            tokio::select! {
                ended = lifetime.wait() => {
                    ended.map_err(|error| RunError::System("wait for the end", error))
                }
                _ = thread_ended => Err(RunError::Defect("the thread that gets sessions")),
                () = service.accept(&socket) => Ok(()),
                () = service.check_key_store() => Err(RunError::Defect("the check of the key store")),
            }
        };
        // Even after a panic, the rest of this function runs.
        let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(serving)))
            .unwrap_or(Err(RunError::Defect("the thread that serves clients")));
        // First, so that the next broker can take over the path.
        drop(listener);
        service
            .sessions
            .stop()
            .map_err(|error| RunError::System("stop", error))?;
        // A panic has been reported already.
        let _ = thread.join();
        // This also drops the connections and their buffers. A file server may not answer for ever.
        runtime.shutdown_timeout(LOG_PATIENCE);
        service.cache.wipe();
        ended
    }
}
