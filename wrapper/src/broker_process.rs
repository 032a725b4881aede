//! Starts `iam-kms-broker` and hands the session over to it.

use std::{
    env,
    ffi::OsStr,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aws_session::{
    config::{BrokerConfig, Listen},
    interrupt::sleep_until,
};
use broker_api::FrameError;
use nix::errno::Errno;
use service::{
    command::{CommandError, find_program},
    environment::{Variables, without_secrets},
    handover::{self, Handover},
    socket_path::{self, SocketPathError, has_listener},
};

const PROGRAM: &str = "iam-kms-broker";

const METRICS: &str = "metrics_listen";

/// The broker only binds a socket before it answers.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a broker of an earlier server may take to notice that its server has gone.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerStartError {
    /// The program is missing.
    #[error("cannot start the broker: {}", why_not_found(.0))]
    Program(CommandError),
    /// The socket cannot be made there.
    #[error(transparent)]
    SocketPath(#[from] SocketPathError),
    /// There is one already.
    #[error(
        "another broker listens on {path}; stop its server first, or set broker_socket to another path",
        path = path.display()
    )]
    AlreadyThere {
        /// The socket.
        path: PathBuf,
    },
    /// Another process has the overview's socket or the address of the metrics.
    #[error(
        "{at} ({key}) is in use; stop the process that listens there, or set {key} to another one"
    )]
    InUse {
        /// The path or address.
        at: String,
        /// The key of the configuration.
        key: &'static str,
    },
    /// Metrics cannot be served at this address.
    #[error("cannot serve metrics on {address} (metrics_listen): {source}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It cannot be started or talked to.
    #[error("cannot start the broker {path}: {source}", path = path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended or was silent.
    #[error("the broker {path} did not come up: {source}", path = path.display())]
    Silent {
        /// The program.
        path: PathBuf,
        /// Why.
        source: FrameError,
    },
    /// It says why it cannot run.
    #[error("{0}")]
    Refused(String),
}

/// A broker that can be started.
pub struct Broker {
    program: PathBuf,
}

impl Broker {
    /// Finds the program (beside our own, or in `PATH`) and checks that it can listen wherever the configuration says.
    pub fn find(config: &BrokerConfig) -> Result<Self, BrokerStartError> {
        let program = find_beside_us()
            .map_or_else(|| find_program(OsStr::new(PROGRAM)), Ok)
            .map_err(BrokerStartError::Program)?;
        socket_path::check(&config.socket)?;
        wait_for_predecessor(&config.socket)?;
        if let Some(path) = &config.overview_socket {
            check_socket(path, "overview_socket")?;
        }
        match &config.metrics_listen {
            Some(Listen::Socket(path)) => check_socket(path, METRICS)?,
            Some(Listen::Loopback(address)) => check_address(*address)?,
            None => {}
        }
        Ok(Self { program })
    }

    /// The program's path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts it, gives it `handover` and returns when its socket listens.
    pub fn start(
        &self,
        handover: &Handover,
        environment: Variables,
    ) -> Result<(), BrokerStartError> {
        let failed = |source| BrokerStartError::Start {
            path: self.program.clone(),
            source,
        };
        let silent = |source| BrokerStartError::Silent {
            path: self.program.clone(),
            source,
        };
        let mut child = Command::new(&self.program)
            .arg("--handover")
            .env_clear()
            .envs(without_secrets(environment))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        handover.write(&mut stdin).map_err(silent)?;
        drop(stdin);
        if !sleep_until(Instant::now() + START_TIMEOUT, stdout.as_fd()) {
            return Err(silent(FrameError::Io(io::ErrorKind::TimedOut.into())));
        }
        let started = handover::read_answer(&mut stdout).map_err(silent)?;
        // What we started ended when the broker left us for init; the server is not to inherit it.
        match child.wait() {
            // Where our parent has us ignore SIGCHLD, the kernel has taken it away already.
            Err(error) if error.raw_os_error() != Some(Errno::ECHILD as i32) => {
                return Err(failed(error));
            }
            _ => {}
        }
        started.map_err(BrokerStartError::Refused)
    }
}

/// The advice of [`CommandError::NotFound`] is for a command that somebody has chosen.
fn why_not_found(error: &CommandError) -> String {
    match error {
        CommandError::NotFound(_) => {
            "there is no iam-kms-broker beside iam-kms-wrapper or in PATH; install it there".into()
        }
        error => error.to_string(),
    }
}

fn find_beside_us() -> Option<PathBuf> {
    let beside = env::current_exe().ok()?.with_file_name(PROGRAM);
    find_program(beside.as_os_str()).ok()
}

fn check_socket(path: &Path, key: &'static str) -> Result<(), BrokerStartError> {
    socket_path::check(path)?;
    let in_use = || BrokerStartError::InUse {
        at: path.display().to_string(),
        key,
    };
    wait_until_free(|| Ok(has_listener(path).then(in_use)))
}

fn check_address(address: SocketAddr) -> Result<(), BrokerStartError> {
    wait_until_free(|| match TcpListener::bind(address) {
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Ok(Some(BrokerStartError::InUse {
                at: address.to_string(),
                key: METRICS,
            }))
        }
        Err(source) => Err(BrokerStartError::Metrics { address, source }),
    })
}

fn wait_for_predecessor(socket: &Path) -> Result<(), BrokerStartError> {
    let already_there = || BrokerStartError::AlreadyThere {
        path: socket.into(),
    };
    wait_until_free(|| Ok(has_listener(socket).then(already_there)))
}

/// Waits until `occupant` finds nothing, for as long as a predecessor may take to go.
fn wait_until_free(
    occupant: impl Fn() -> Result<Option<BrokerStartError>, BrokerStartError>,
) -> Result<(), BrokerStartError> {
    let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
    while let Some(occupied) = occupant()? {
        if Instant::now() > deadline {
            return Err(occupied);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
