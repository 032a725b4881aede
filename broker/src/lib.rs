//! Holds the AWS session and calls KMS for MariaDB's `aws_key_management` plugin.
//!
//! The only process beside the server that talks to AWS. It listens at a Unix socket
//! (`listener`), speaks the protocol of `broker-api` with each peer (`conversation`),
//! performs KMS calls (`kms`), keeps what they unwrapped for the time without a session
//! (`key_cache`), tells an audit of them (`audit`), and gets a new session when one has ended
//! (`keeper`).
//! Started by `iam-kms-wrapper` it takes the session over from there and lives as long as the
//! server (`server`); started with `--config` it asks for a code itself.

#![forbid(unsafe_code)]

mod audit;
pub mod command_line;
mod conversation;
mod keeper;
mod key_cache;
mod kms;
mod listener;
mod process;
mod server;

use std::{io, os::fd::AsFd, process::ExitCode, sync::Arc, thread};

use broker_api::{FrameError, read_frame, write_frame};
use clap::Parser;
use iam_kms_wrapper::{
    broker::{Handover, Started},
    command_line::show_usage,
    config::{Config, ConfigError, Mfa},
    credentials::{self, CredentialsError},
    listen_fds, logging,
    signals::Signals,
    stored_session, systemd,
};
use tracing::{error, info};

use command_line::CommandLine;
use conversation::Service;
use keeper::{Keeper, Role};
use key_cache::KeyCache;
use kms::Kms;
use listener::{Admission, Listener, ListenerError};
use nix::sys::eventfd::EventFd;
use server::Server;

const PROGRAM: &str = "iam-kms-broker";

/// Our own failure, as for `iam-kms-wrapper`.
const FAILURE: u8 = 125;

/// Why the broker does not run.
#[derive(Debug, thiserror::Error)]
enum BrokerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Listener(#[from] ListenerError),
    #[error("cannot read the hand-over from iam-kms-wrapper: {0}")]
    Handover(FrameError),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
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
            .map_err(BrokerError::from)
            .and_then(run_alone),
        None => run_for_wrapper(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure}");
            ExitCode::from(FAILURE)
        }
    }
}

/// Takes everything over from `iam-kms-wrapper` and tells it when the socket listens.
fn run_for_wrapper() -> Result<(), BrokerError> {
    process::close_inherited_descriptors()
        .map_err(|error| BrokerError::System("close the server's descriptors", error))?;
    process::leave_parent()
        .map_err(|error| BrokerError::System("leave the server's process group", error))?;
    let signals = prepare_process()?;
    let Handover {
        config,
        session,
        source,
        server_pid,
    } = read_frame(&mut io::stdin().lock()).map_err(BrokerError::Handover)?;
    logging::use_format(config.log_format);
    let listener = Server::open(server_pid)
        .map_err(|error| BrokerError::System("watch the server", error))
        .and_then(|server| {
            Ok((
                server,
                Listener::bind(&config.broker_socket, config.broker_socket_gid)?,
            ))
        });
    let started: Started = match &listener {
        Ok(_) => Ok(()),
        Err(failure) => Err(failure.to_string()),
    };
    write_frame(&mut io::stdout().lock(), &started).map_err(BrokerError::Handover)?;
    let (server, listener) = listener?;
    process::close_standard_streams()
        .map_err(|error| BrokerError::System("close standard input and output", error))?;
    // SIGTERM goes to every process of the unit; the server still needs us while it shuts down.
    drop(signals);
    let keeper = Keeper::new(config, source, Some(session), Role::OfServer);
    serve(keeper, listener, || server.wait())
}

/// As a service of its own, or started by hand.
fn run_alone(config: Config) -> Result<(), BrokerError> {
    logging::use_format(config.log_format);
    let signals = prepare_process()?;
    let kept = listen_fds::take(stored_session::NAME)
        .map_err(|error| BrokerError::System("take the kept session out of LISTEN_FDS", error))?;
    let source = credentials::find_for_mfa(&config)?;
    let kept = kept.and_then(|taken| stored_session::reuse(&config, taken.file));
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
    let session = kept.or_else(|| source.clone().filter(|_| config.mfa == Mfa::Off));
    let listener = Listener::bind(&config.broker_socket, config.broker_socket_gid)?;
    // Not only once there is a session: what is ordered after us waits for that by itself.
    systemd::ready();
    let keeper = Keeper::new(config, source, session, Role::Service);
    serve(keeper, listener, || server::wait_for_signal(&signals))
}

fn prepare_process() -> Result<Signals, BrokerError> {
    process::harden()
        .map_err(|error| BrokerError::System("turn core dumps and new privileges off", error))?;
    Signals::hold().map_err(|error| BrokerError::System("hold signals", error))
}

/// Serves peers and keeps the session until `wait_for_end` returns.
fn serve(
    keeper: Keeper,
    listener: Listener,
    wait_for_end: impl FnOnce() -> io::Result<()>,
) -> Result<(), BrokerError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| BrokerError::System("start the AWS SDK", error))?;
    let stop =
        EventFd::new().map_err(|error| BrokerError::System("make an event", error.into()))?;
    let socket = listener
        .acceptor()
        .map_err(|error| BrokerError::System("accept", error))?;
    let cache = KeyCache::new(keeper.config().key_cache);
    let kms = Kms::new(runtime.handle().clone(), cache);
    let admission = Admission::new(keeper.config().broker_socket_gid);
    let service = Arc::new(Service::new(keeper, kms, admission));
    info!("listening at {}", listener.path().display());
    let ended = thread::scope(|scope| {
        scope.spawn(|| service.keeper.run(stop.as_fd()));
        let accepting = Arc::clone(&service);
        // Not of this scope: it accepts until the process ends.
        thread::spawn(move || accepting.accept(&socket));
        let ended = wait_for_end().map_err(|error| BrokerError::System("wait for the end", error));
        stop.write(1)
            .map_err(|error| BrokerError::System("stop", error.into()))?;
        service.keeper.wake();
        ended
    });
    // Peers may be in the middle of a call; it ends with the process, not with a panic.
    std::mem::forget(runtime);
    ended
}
