//! Connections to `iam-kms-broker`, for the plugin and the operator's tools.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use broker_api::{FrameError, Reply, Request, read_frame, write_frame};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket,
    sockopt::{ReceiveTimeout, SendTimeout},
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Connections that are kept for the next request; more may be in use.
const MAX_IDLE: usize = 8;

/// Why the broker gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Nothing listens.
    #[error(
        "no broker at '{}': {source}; start the server under iam-kms-wrapper with handoff = \"broker\", or start the iam-kms-broker service, or name another socket (aws_key_management_broker_socket, --broker-socket)", socket.display()
    )]
    NoBroker {
        /// The socket.
        socket: PathBuf,
        /// Why it could not be reached.
        source: io::Error,
    },
    /// The broker is there and did not answer in time.
    #[error("the broker at '{}' did not answer within {milliseconds} ms; see its log", socket.display())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// The time it had.
        milliseconds: u128,
    },
    /// The broker answered rubbish or closed the connection.
    #[error("talking to the broker at '{}' failed: {source}; see its log", socket.display())]
    Conversation {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        source: FrameError,
    },
}

impl BrokerError {
    /// Tells whether the broker may answer the same request a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoBroker { .. } => false,
            Self::TimedOut { .. } => true,
            Self::Conversation { source, .. } => {
                matches!(source, FrameError::Closed | FrameError::Io(_))
            }
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

    /// Sends one request and waits for its answer, for `patience` in all; where the broker says that
    /// it waits for a person, anew each time that it does. `waiting` gets what it says, and returns
    /// false to give up.
    ///
    /// A connection that was kept may be one to a broker that is no more: then the request goes
    /// out once again over a new one.
    pub fn request(
        &self,
        request: &Request,
        patience: Duration,
        waiting: impl Fn(&str) -> bool,
    ) -> Result<Reply, BrokerError> {
        let until = Instant::now() + patience;
        let kept = self.idle().pop();
        if let Some(connection) = kept {
            match self.exchange(connection, request, until, patience, &waiting) {
                Err(FrameError::Io(error)) if is_timeout(&error) => {
                    return Err(self.timed_out(patience));
                }
                Err(_) => {}
                Ok(reply) => return Ok(reply),
            }
        }
        match self.connect(until.saturating_duration_since(Instant::now())) {
            Ok(connection) => self
                .exchange(connection, request, until, patience, &waiting)
                .map_err(|error| self.explain(error, patience)),
            Err(Errno::EAGAIN) => Err(self.timed_out(patience)),
            Err(error) => Err(BrokerError::NoBroker {
                socket: self.socket.clone(),
                source: error.into(),
            }),
        }
    }

    fn exchange(
        &self,
        connection: OwnedFd,
        request: &Request,
        until: Instant,
        patience: Duration,
        waiting: impl Fn(&str) -> bool,
    ) -> Result<Reply, FrameError> {
        let mut stream = TimedStream {
            descriptor: connection,
            until,
        };
        write_frame(&mut stream, request)?;
        let reply = loop {
            match read_frame(&mut stream)? {
                // What waits there is left behind with the connection.
                Reply::Waiting(why) if !waiting(&why) => return Ok(Reply::Waiting(why)),
                Reply::Waiting(_) => stream.until = Instant::now() + patience,
                reply => break reply,
            }
        };
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(stream.descriptor);
        }
        Ok(reply)
    }

    fn connect(&self, patience: Duration) -> nix::Result<OwnedFd> {
        let address = UnixAddr::new(&self.socket)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        setsockopt(&descriptor, SendTimeout, &time_value(patience))?;
        connect(descriptor.as_raw_fd(), &address)?;
        Ok(descriptor)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<OwnedFd>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn explain(&self, error: FrameError, patience: Duration) -> BrokerError {
        match error {
            FrameError::Io(error) if is_timeout(&error) => self.timed_out(patience),
            source => BrokerError::Conversation {
                socket: self.socket.clone(),
                source,
            },
        }
    }

    fn timed_out(&self, patience: Duration) -> BrokerError {
        BrokerError::TimedOut {
            socket: self.socket.clone(),
            milliseconds: patience.as_millis(),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Zero would mean no limit at all.
fn time_value(duration: Duration) -> TimeVal {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    TimeVal::microseconds(microseconds.max(1))
}

/// A socket whose reads and writes end at one point in time, however many there are.
struct TimedStream {
    descriptor: OwnedFd,
    until: Instant,
}

impl TimedStream {
    fn remaining(&self) -> io::Result<TimeVal> {
        let remaining = self.until.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(time_value(remaining))
    }
}

impl Read for TimedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        setsockopt(&self.descriptor, ReceiveTimeout, &self.remaining()?)?;
        Ok(recv(
            self.descriptor.as_raw_fd(),
            buffer,
            MsgFlags::empty(),
        )?)
    }
}

impl Write for TimedStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        setsockopt(&self.descriptor, SendTimeout, &self.remaining()?)?;
        // A broker that has gone must not end the whole program with SIGPIPE.
        match send(self.descriptor.as_raw_fd(), buffer, MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EINPROGRESS) => Err(io::ErrorKind::TimedOut.into()),
            sent => Ok(sent?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(any(test, feature = "test-broker"))]
pub mod test_broker;
#[cfg(test)]
mod tests;
