//! The command that runs while the key is enabled: signals go on to it, and its end is awaited.

use std::{
    io::{self, PipeReader},
    os::fd::AsFd,
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tracing::warn;

use super::{End, ManageError};
use crate::{command::Command, environment, signals::Signals};

/// Runs `command` and waits for its end, which no signal of ours brings about but by its own doing.
pub(super) fn run(command: &Command, signals: &Signals) -> Result<End, ManageError> {
    let child = command.start(&environment::for_command(), signals.inherited_mask())?;
    let status =
        wait(child, signals).map_err(|error| ManageError::System("wait for COMMAND", error))?;
    Ok(match status {
        WaitStatus::Signaled(_, signal, _) => End::Signal(signal),
        WaitStatus::Exited(_, code) => End::Code(code),
        // Not without WUNTRACED or ptrace(2).
        _ => End::Code(125),
    })
}

/// The waiting is a thread's: it works also where our parent has us ignore SIGCHLD.
fn wait(child: Pid, signals: &Signals) -> io::Result<WaitStatus> {
    let (ended, open_until_end) = io::pipe()?;
    let waiter = thread::Builder::new().spawn(move || {
        let status = waitpid(child, None);
        drop(open_until_end);
        status
    })?;
    while !wait_for_end(&ended, signals)? {
        forward(child, signals);
    }
    let status = waiter.join().map_err(|_| io::ErrorKind::Other)?;
    Ok(status?)
}

/// True for the end of the command, false for signals.
fn wait_for_end(ended: &PipeReader, signals: &Signals) -> io::Result<bool> {
    let mut descriptors = [
        PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.descriptor(), PollFlags::POLLIN),
    ];
    match poll(&mut descriptors, PollTimeout::NONE) {
        Ok(_) => Ok(descriptors[0].any() == Some(true)),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What the terminal's keys send, the command gets by itself: it is in our process group. (That the
/// terminal has gone, only the leader of the session is told, and that may be us.)
fn forward(child: Pid, signals: &Signals) {
    while let Some(received) = signals.receive() {
        let is_of_keys = matches!(received.signal, Signal::SIGINT | Signal::SIGQUIT);
        if received.is_of_kernel && is_of_keys {
            continue;
        }
        if let Err(error) = kill(child, received.signal) {
            warn!("cannot pass {} on to the command: {error}", received.signal);
        }
    }
}
