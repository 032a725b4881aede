//! Holds the AWS session and calls KMS for MariaDB's `aws_key_management` plugin.
//!
//! The only process beside the server that talks to AWS. It listens at a Unix socket
//! (`listener`), speaks the protocol of `broker-api` with each peer (`conversation`, `connection`,
//! `peer`), gives each user of the socket a fair share (`users`), performs KMS calls (`kms`), keeps
//! what they unwrapped for the time without a session (`key_cache`), tells an audit of them (`audit`),
//! and gets a new session when one has ended (`session_manager`).
//! Started by `iam-kms-wrapper` it takes the session over from there and lives as long as the
//! server (`lifetime`); started with `--config` it asks for a code itself.

mod audit;
pub mod command_line;
mod connection;
mod conversation;
mod key_cache;
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
    source_credentials::{CredentialsError, Finder},
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
use kms_calls::KmsCalls;
use lifetime::Lifetime;
use listener::{Listener, ListenerError};
use peer::Admission;
use session_manager::{Role, SessionManager};
use users::Users;

const PROGRAM: &str = "iam-kms-broker";

/// Our own failure, as for `iam-kms-wrapper`.
const FAILURE: u8 = 125;

/// How long the end waits for the last lines of the log to be written.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Why the broker does not run.
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
    #[error("{0} has ended by a defect: please report it with the lines before this one")]
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

/// Takes everything over from `iam-kms-wrapper` and tells it when the socket listens.
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
            Ok((lifetime, Prepared::new(&config, aws)?))
        });
    let started: Started = match &prepared {
        Ok(_) => Ok(()),
        Err(failure) => Err(failure.to_string()),
    };
    handover::answer(&mut io::stdout().lock(), &started).map_err(RunError::Handover)?;
    let (lifetime, prepared) = prepared?;
    process::close_standard_streams()
        .map_err(|error| RunError::System("close standard input and output", error))?;
    // SIGTERM goes to every process of the unit; the server still needs us while it shuts down.
    drop(signals);
    prepared.serve(config, source, Some(session), Role::OfServer, &lifetime)
}

/// As a service of its own, or started by hand.
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
    let prepared = Prepared::new(&config, aws)?;
    // Not only once there is a session: what is ordered after us waits for that by itself.
    systemd::ready();
    let lifetime = Lifetime::UntilSignal(signals);
    prepared.serve(config, source, session, Role::Service, &lifetime)
}

fn warn_of_readable_program() {
    if let Err(exposure) = check_own_program() {
        warn!("{exposure}");
    }
}

/// The log gets its thread here: with `--handover`, the process has forked for the last time.
fn prepare_process() -> Result<Signals, RunError> {
    process::harden()
        .map_err(|error| RunError::System("turn core dumps and new privileges off", error))?;
    // Before the first thread, which inherits that they are held.
    let signals = Signals::hold().map_err(|error| RunError::System("hold signals", error))?;
    logging::write_in_background(PROGRAM)
        .map_err(|error| RunError::System("start the thread of the log", error))?;
    Ok(signals)
}

/// What can fail before the first peer is served.
struct Prepared {
    runtime: Runtime,
    aws: Settings,
    kms: KmsCalls,
    users: Users,
    listener: Listener,
}

impl Prepared {
    fn new(config: &Config, aws: Settings) -> Result<Self, RunError> {
        // One thread, this one, for all connections and calls.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| RunError::System("start the AWS SDK", error))?;
        let users = Users::new(process::max_connections());
        Ok(Self {
            kms: KmsCalls::new(&aws),
            aws,
            runtime,
            users,
            listener: Listener::bind(&config.broker.socket, config.broker.socket_gid)?,
        })
    }

    /// Serves peers and manages the session until `lifetime` is over. Then everything secret is
    /// overwritten.
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
            cache,
            admission,
            users,
        });
        let socket = listener
            .acceptor()
            .map_err(|error| RunError::System("accept connections", error))?;
        info!("listening at {}", listener.path().display());
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
            }
        };
        // Whatever happens, what follows is done.
        let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(serving)))
            .unwrap_or(Err(RunError::Defect("the thread that serves clients")));
        // First of all, so that the next broker can take the path over.
        drop(listener);
        service
            .sessions
            .stop()
            .map_err(|error| RunError::System("stop", error))?;
        // Its panic has been reported.
        let _ = thread.join();
        // With the connections of peers and to KMS, and what is in their buffers.
        drop(runtime);
        service.cache.wipe();
        ended
    }
}
