//! The command that runs while the key is enabled. Signals are passed on to it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, waitid};
use tracing::warn;

use super::{
    End, ManageError,
    signals::{Number, Received, Signals, send, send_to_group},
};
use service::{command::Command, environment};

/// Runs `command` and waits until it ends. Signals to this process are passed on to the command, which
/// decides what they do.
pub(super) fn run(command: &Command, signals: &Signals) -> Result<End, ManageError> {
    // These were meant for the prompt, which could not be stopped.
    while signals.stop_received().is_some() {}
    let child = command.start(&environment::for_command(), signals.inherited_mask())?;
    let status = Pid::from_raw(child.as_raw())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
        .and_then(|child| wait(child, signals))
        .map_err(|error| ManageError::System("wait for COMMAND", error))?;
    Ok(match (status.terminating_signal(), status.exit_status()) {
        (Some(number), _) => End::Signal(Number::new(number)),
        (None, code) => End::Code(code.unwrap_or(125)),
    })
}

/// The child's process id is not reused until its status is read.
fn wait(child: Pid, signals: &Signals) -> io::Result<WaitIdStatus> {
    let child: OwnedFd = pidfd_open(child, PidfdFlags::empty())?;
    while !wait_for_end(child.as_fd(), signals)? {
        while let Some(received) = signals.received() {
            forward(child.as_fd(), received);
        }
        while let Some(received) = signals.stop_received() {
            refuse_to_stop(received);
        }
    }
    loop {
        match waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns true if the command has ended, false for a signal.
fn wait_for_end(child: BorrowedFd<'_>, signals: &Signals) -> io::Result<bool> {
    let mut descriptors = [child, signals.descriptor(), signals.stop_descriptor()]
        .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
    match poll(&mut descriptors, PollTimeout::NONE) {
        Ok(_) => Ok(descriptors[0].any() == Some(true)),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The command gets signals of the terminal's keys itself, because it is in the same process group.
/// (SIGHUP of a closed terminal goes only to the leader of the session, which may be this process.)
fn forward(child: BorrowedFd<'_>, received: Received) {
    let number = received.number;
    let is_of_keys = number.is(Signal::SIGINT) || number.is(Signal::SIGQUIT);
    if received.is_of_kernel && is_of_keys {
        return;
    }
    if let Err(error) = send(child, number) {
        warn!("cannot pass {number} on to the command: {error}");
    }
}

/// A stopped command would leave the key enabled until somebody remembers it. So a command that the
/// terminal has stopped is continued, unless it needs the terminal and would only be stopped again.
fn refuse_to_stop(received: Received) {
    let number = received.number;
    if !received.is_of_kernel {
        return warn!("{number} is not passed on: the key is enabled until the command ends");
    }
    if !number.is(Signal::SIGTSTP) {
        return warn!(
            "the command was stopped ({number}) because it used the terminal from the background. The key stays enabled until the command ends: bring it to the foreground (fg) and continue it (kill -CONT), or end it"
        );
    }
    warn!("the command was continued: the key is enabled until it ends");
    if let Err(error) = send_to_group(Number::CONT) {
        warn!("cannot continue the command: {error}; send it SIGCONT");
    }
}
