//! Connections to `iam-kms-broker`, for the plugin and the operator's tools.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, send,
    setsockopt, socket,
    sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout},
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;
use trusted_directory::DirectoryError;

use crate::{
    FrameError, Reply, Request, Waiting, read_frame, read_frame_of, version1, write_frame,
    write_frame_of,
};

/// Connections that are kept for the next request; more may be in use.
const MAX_IDLE: usize = 8;

/// No broker has a longer time limit. Keeps the deadline within what an `Instant` can hold.
const LONGEST_SILENCE: Duration = Duration::from_secs(30 * 86_400);

/// How long a broker may take to show its release.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);

/// Why the broker gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens.
    #[error(
        "no broker at '{}': {source}; start it (systemctl start iam-kms-broker), or start the server under iam-kms-wrapper with handoff = broker; if it runs, set its socket (aws_key_management_broker_socket, --broker-socket)", socket.display()
    )]
    NoBroker {
        /// The socket.
        socket: PathBuf,
        /// Why it could not be reached.
        source: io::Error,
    },
    /// This user may not connect.
    #[error(
        "user {user} may not use the broker at '{}': {source}; set broker_socket_group in its configuration to a group of that user, restart the broker, and restart this process{}", socket.display(), confined(policy.as_deref())
    )]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
        /// Our user.
        user: u32,
        /// How AppArmor or SELinux confines this process, if either does.
        policy: Option<String>,
        /// What the kernel says.
        source: io::Error,
    },
    /// Other users could replace the socket.
    #[error(
        "will not use the broker at '{}': {source}, and could replace the socket; give the directory to root or the broker's user, mode 0755", socket.display()
    )]
    UntrustedDirectory {
        /// The socket.
        socket: PathBuf,
        /// Which users.
        source: DirectoryError,
    },
    /// Another user listens on the socket.
    #[error(
        "will not use the broker at '{}': user {user} listens there, which is neither root, nor the user of this process, nor the owner of the directory; find out which process that is", socket.display()
    )]
    UntrustedListener {
        /// The socket.
        socket: PathBuf,
        /// Who listens.
        user: u32,
    },
    /// The broker did not answer in time.
    #[error("the broker at '{}' did not answer within {milliseconds} ms; see its log", socket.display())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// The time it had.
        milliseconds: u128,
    },
    /// The broker understands the messages of release 0.1.0 only.
    #[error("the broker at '{}' is of an older release than this program; restart it with 'systemctl restart iam-kms-broker', or restart the server if iam-kms-wrapper started it", socket.display())]
    OlderRelease {
        /// The socket.
        socket: PathBuf,
    },
    /// The caller no longer wants the answer.
    #[error("interrupted")]
    Interrupted,
    /// The broker closed the connection, or its answer is not a message.
    #[error("talking to the broker at '{}' failed: {source}; see its log", socket.display())]
    Conversation {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        source: FrameError,
    },
}

impl ClientError {
    /// Returns whether the broker may answer the same request a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            Self::Conversation { source, .. } => {
                matches!(source, FrameError::Closed | FrameError::Io(_))
            }
            Self::NoBroker { .. }
            | Self::NotAllowed { .. }
            | Self::UntrustedDirectory { .. }
            | Self::UntrustedListener { .. }
            | Self::OlderRelease { .. }
            | Self::Interrupted => false,
        }
    }

    /// Returns whether the broker is missing, as during a restart. A broker that has just started does
    /// not admit its group at first.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::NoBroker { .. } | Self::NotAllowed { .. } => true,
            Self::Conversation { source, .. } => source.is_disconnect(),
            _ => false,
        }
    }
}

/// The AppArmor profile or SELinux domain in `label`, the contents of `/proc/self/attr/current` (proc(5)). `None` if it
/// confines nothing.
fn policy(label: &str) -> Option<String> {
    let label = label.trim_end_matches(['\0', '\n']);
    // SELinux: user, role, type, level. AppArmor: profile and mode.
    let name = label.split(':').nth(2).unwrap_or(label);
    (!name.is_empty() && !name.starts_with("unconfined")).then(|| name.to_owned())
}

fn confined(policy: Option<&str>) -> String {
    policy.map_or_else(String::new, |policy| {
        format!(
            ". Or the policy that confines this process, {policy}, denies it: run iam-kms-wrapper --check"
        )
    })
}

/// How often a call checks whether its answer is still wanted.
const INTERRUPT_CHECK: Duration = Duration::from_millis(200);

/// How long to wait for an answer.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// How long the broker may be silent. It sends a message now and then while a request waits.
    pub silence: Duration,
    /// When to stop waiting even if the broker is not silent; `None`: never.
    pub deadline: Option<Instant>,
    /// Whether the answer is no longer wanted. Called several times a second.
    pub is_interrupted: &'a dyn Fn() -> bool,
}

impl Patience<'_> {
    fn until(&self) -> Instant {
        let silence = Instant::now() + self.silence.min(LONGEST_SILENCE);
        self.deadline
            .map_or(silence, |deadline| deadline.min(silence))
    }
}

impl From<Duration> for Patience<'static> {
    fn from(silence: Duration) -> Self {
        Self {
            silence,
            deadline: None,
            is_interrupted: &|| false,
        }
    }
}

/// Talks to the broker at one socket, from any number of threads.
pub struct BrokerClient {
    socket: PathBuf,
    idle: Mutex<Vec<OwnedFd>>,
}

impl BrokerClient {
    /// Does not connect yet.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Sends one request and waits for its answer. `should_continue` gets each [`Waiting`] of the
    /// broker, and returns false to give up, which returns that as the answer.
    ///
    /// A kept connection may lead to a broker that has ended. The request is then sent again over a new
    /// connection.
    ///
    /// Errors: the broker is missing, untrusted, of an older release, or silent for longer than
    /// `patience`.
    pub fn request<'a>(
        &self,
        request: &Request,
        patience: impl Into<Patience<'a>>,
        should_continue: impl Fn(&Waiting) -> bool,
    ) -> Result<Reply, ClientError> {
        let patience = patience.into();
        let start = Instant::now();
        let until = patience.until();
        let kept = self.idle().pop();
        if let Some(connection) = kept {
            match self.exchange(connection, request, until, patience, &should_continue) {
                Err(FrameError::Io(error)) if is_timeout(&error) => {
                    return Err(self.timed_out(start));
                }
                Err(FrameError::Io(error)) if is_interruption(&error) => {
                    return Err(ClientError::Interrupted);
                }
                Err(_) => {}
                Ok(reply) => return Ok(reply),
            }
        }
        let connection = self.connect(start, until)?;
        let asked = self.exchange(connection, request, until, patience, &should_continue);
        asked.map_err(|error| match error {
            FrameError::Io(error) if is_timeout(&error) => self.timed_out(start),
            FrameError::Io(error) if is_interruption(&error) => ClientError::Interrupted,
            source if source.is_disconnect() && self.is_of_older_release() => {
                ClientError::OlderRelease {
                    socket: self.socket.clone(),
                }
            }
            source => ClientError::Conversation {
                socket: self.socket.clone(),
                source,
            },
        })
    }

    fn exchange(
        &self,
        connection: OwnedFd,
        request: &Request,
        until: Instant,
        patience: Patience<'_>,
        should_continue: impl Fn(&Waiting) -> bool,
    ) -> Result<Reply, FrameError> {
        let mut stream = TimedStream {
            descriptor: connection,
            until,
            is_interrupted: patience.is_interrupted,
        };
        write_frame(&mut stream, request)?;
        let reply = loop {
            match read_frame(&mut stream)? {
                // Closes the connection, which cancels the waiting request.
                Reply::Waiting(waiting) if !should_continue(&waiting) => {
                    return Ok(Reply::Waiting(waiting));
                }
                Reply::Waiting(_) => stream.until = patience.until(),
                reply => break reply,
            }
        };
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(stream.descriptor);
        }
        Ok(reply)
    }

    /// A broker of release 0.1.0 closes the connection when it does not understand a request: it answers
    /// version 1 and closes on version 2. No other broker does both.
    fn is_of_older_release(&self) -> bool {
        let start = Instant::now();
        let until = start + RELEASE_PATIENCE;
        let Ok(descriptor) = self.connect(start, until) else {
            return false;
        };
        let mut stream = TimedStream {
            descriptor,
            until,
            is_interrupted: &|| false,
        };
        let old = version1::PROTOCOL_VERSION;
        let answers_version_1 = write_frame_of(old, &mut stream, &version1::Request::Session)
            .and_then(|()| read_frame_of::<version1::Reply>(old, &mut stream))
            .is_ok();
        let mut understands_version_2 = || {
            write_frame(&mut stream, &Request::Session)
                .and_then(|()| read_frame::<Reply>(&mut stream))
        };
        answers_version_1 && understands_version_2().is_err_and(|error| error.is_disconnect())
    }

    fn connect(&self, start: Instant, until: Instant) -> Result<OwnedFd, ClientError> {
        let patience = until.saturating_duration_since(Instant::now());
        let descriptor = open_connection(&self.socket, patience).map_err(|error| {
            let socket = self.socket.clone();
            match error {
                Errno::EAGAIN => self.timed_out(start),
                Errno::EACCES | Errno::EPERM => ClientError::NotAllowed {
                    socket,
                    user: geteuid().as_raw(),
                    policy: fs::read_to_string("/proc/self/attr/current")
                        .ok()
                        .and_then(|label| policy(&label)),
                    source: error.into(),
                },
                error => ClientError::NoBroker {
                    socket,
                    source: error.into(),
                },
            }
        })?;
        self.check_listener(&descriptor)?;
        Ok(descriptor)
    }

    /// Checks that a trusted user listens. Anybody else could choose the data keys.
    fn check_listener(&self, connection: &OwnedFd) -> Result<(), ClientError> {
        let socket = || self.socket.clone();
        let directory = self.socket.parent().unwrap_or(Path::new("/"));
        let owner = directory.metadata().map(|metadata| metadata.uid()).ok();
        trusted_directory::check(directory, owner).map_err(|source| {
            ClientError::UntrustedDirectory {
                socket: socket(),
                source,
            }
        })?;
        let credentials =
            getsockopt(connection, PeerCredentials).map_err(|error| ClientError::NoBroker {
                socket: socket(),
                source: error.into(),
            })?;
        let user = credentials.uid();
        match may_listen(user, geteuid().as_raw(), owner) {
            true => Ok(()),
            false => Err(ClientError::UntrustedListener {
                socket: socket(),
                user,
            }),
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<OwnedFd>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timed_out(&self, start: Instant) -> ClientError {
        ClientError::TimedOut {
            socket: self.socket.clone(),
            milliseconds: start.elapsed().as_millis(),
        }
    }
}

/// Whether `user` may be the broker for a process of user `own`: root, the same user, and the owner of the
/// socket's directory.
fn may_listen(user: u32, own: u32, owner: Option<u32>) -> bool {
    user == 0 || user == own || Some(user) == owner
}

fn open_connection(path: &Path, patience: Duration) -> nix::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    setsockopt(&descriptor, SendTimeout, &time_value(patience))?;
    connect(descriptor.as_raw_fd(), &address)?;
    Ok(descriptor)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn is_interruption(error: &io::Error) -> bool {
    error.kind() == INTERRUPTION
}

/// The error of [`TimedStream`] for an interruption. The kernel returns no such error for a Unix socket.
const INTERRUPTION: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// Zero would mean no limit at all.
fn time_value(duration: Duration) -> TimeVal {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    TimeVal::microseconds(microseconds.max(1))
}

/// A socket whose reads and writes share one deadline.
struct TimedStream<'a> {
    descriptor: OwnedFd,
    until: Instant,
    is_interrupted: &'a dyn Fn() -> bool,
}

impl TimedStream<'_> {
    fn remaining(&self) -> io::Result<Duration> {
        let remaining = self.until.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(remaining)
    }
}

impl Read for TimedStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let pause = self.remaining()?.min(INTERRUPT_CHECK);
            setsockopt(&self.descriptor, ReceiveTimeout, &time_value(pause))?;
            match recv(self.descriptor.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(Errno::EAGAIN) if (self.is_interrupted)() => return Err(INTERRUPTION.into()),
                Err(Errno::EAGAIN) => {}
                received => return Ok(received?),
            }
        }
    }
}

impl Write for TimedStream<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let remaining = time_value(self.remaining()?);
        setsockopt(&self.descriptor, SendTimeout, &remaining)?;
        // SIGPIPE would end the whole program.
        match send(self.descriptor.as_raw_fd(), buffer, MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EINPROGRESS) => Err(io::ErrorKind::TimedOut.into()),
            sent => Ok(sent?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
