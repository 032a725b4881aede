//! A page that shows a broker's session, keys and audit, and takes an MFA code.
//!
//! A process of its own without keys and without credentials: it asks the broker over the socket that serves
//! no keys (`view`), and writes the code to the FIFO as `iam-kms-wrapper code` does (`codes`). The page works
//! without JavaScript (`page`); `site` decides which requests are answered, and `operators` whose over TLS.

#![forbid(unsafe_code)]

mod codes;
pub mod command_line;
mod operators;
mod page;
mod rate;
mod site;
mod view;

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use clap::Parser;
use local_http::{Limits, LocalListener};
use mutual_tls::TlsFilesError;
use service::{
    logging, process,
    socket_path::{self, SocketFile, SocketPathError, has_listener},
    usage::show_usage,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use command_line::{CommandLine, Listen};
use operators::Operators;
use site::{Site, Visitor};

const PROGRAM: &str = "iam-kms-console";

/// Exit code of a failure, as for the other programs.
const FAILURE: u8 = 125;

/// A connection waits for AWS while a code is being judged.
const LIMITS: Limits = Limits {
    connections: 16,
    transfer: Duration::from_secs(10),
    patience: Duration::from_secs(120),
};

#[derive(Debug, thiserror::Error)]
enum ConsoleError {
    #[error(transparent)]
    Path(#[from] SocketPathError),
    #[error(transparent)]
    Certificates(#[from] TlsFilesError),
    #[error("another process listens on {path}; stop it first", path = .0.display())]
    Busy(PathBuf),
    #[error("cannot listen on {0}: {1}")]
    Bind(String, io::Error),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

/// Runs the program.
pub fn main() -> ExitCode {
    logging::init(PROGRAM);
    let command_line = CommandLine::try_parse().and_then(|line| {
        let (overview_socket, fifo) = (line.overview_socket.clone(), line.fifo.clone());
        Ok((line.listen()?, overview_socket, fifo))
    });
    let (listen, overview_socket, fifo) = match command_line {
        Ok(command_line) => command_line,
        Err(usage) => return show_usage(&usage).into(),
    };
    match run(listen, &overview_socket, &fifo) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure}");
            ExitCode::from(FAILURE)
        }
    }
}

fn run(place: Listen, overview_socket: &Path, fifo: &Path) -> Result<(), ConsoleError> {
    process::protect().map_err(|error| ConsoleError::System("protect this process", error))?;
    let site = Site::new(overview_socket, fifo);
    let routes = site
        .map_err(|error| ConsoleError::System("start", error))?
        .routes();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(LIMITS.connections + 1)
        .build()
        .map_err(|error| ConsoleError::System("start", error))?;
    let ended = runtime.block_on(async {
        let failed = |error| ConsoleError::System("wait for signals", error);
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        tokio::select! {
            ended = serve(place, routes) => ended,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    });
    // A code may still be judged, which nobody waits for any more.
    runtime.shutdown_background();
    ended
}

/// Serves the page as long as it is polled.
async fn serve(place: Listen, routes: Router) -> Result<(), ConsoleError> {
    let shown = match &place {
        Listen::Socket(path) => path.display().to_string(),
        Listen::Loopback(address) => format!("http://{address}/"),
        Listen::Tls(address, _) => format!("https://{address}/"),
    };
    let failed = |error| ConsoleError::Bind(shown.clone(), error);
    // Removed when this is no longer polled.
    let _file;
    let listener = match place {
        Listen::Socket(path) => {
            socket_path::check(&path)?;
            if has_listener(&path) {
                return Err(ConsoleError::Busy(path));
            }
            let socket = bind_socket(&path).map_err(failed)?;
            _file = SocketFile::of_bound(&path).map_err(failed)?;
            LocalListener::Unix(socket)
        }
        Listen::Loopback(address) => LocalListener::Loopback(bind_port(address).map_err(failed)?),
        Listen::Tls(address, tls) => {
            let operators = Operators::new(tls.files(), tls.operators, routes)?;
            let socket = bind_port(address).map_err(failed)?;
            info!("the page is at {shown}");
            return Arc::new(operators).serve(socket).await.map_err(failed);
        }
    };
    info!("the page is at {shown}");
    let visitor = Visitor {
        operator: PROGRAM.into(),
        from: None,
        scheme: "http",
    };
    let answer = move |request| {
        let (routes, visitor) = (routes.clone(), visitor.clone());
        async move { site::answer(&routes, visitor, request).await }
    };
    match local_http::serve(&listener, LIMITS, answer).await {
        Ok(never) => match never {},
        Err(error) => Err(failed(error)),
    }
}

fn bind_port(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Binds `path` for this user and its group. What a console that was killed has left there is replaced.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
