//! The broker, its session and AWS: taken away by [`super::disturbances`], and brought back here.

use std::{
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{
        Signal::{SIGCONT, SIGKILL, SIGTERM},
        kill,
    },
    unistd::Pid,
};

use super::Director;
use crate::{
    Process,
    chaos::{SESSION_SECONDS, messages},
    inspection::listener,
    write_fifo,
};

/// For what AWS, the broker and a code take together.
pub(in crate::chaos) const RECOVERY_BOUND: Duration = Duration::from_secs(150);
/// AWS's clock may be that much ahead for the sake of codes; a session's end comes on top of it, and
/// from 900 on AWS refuses signatures.
const MOST_SECONDS_AHEAD: u64 = 400;
/// After that, a code that has led to nothing is followed by another.
pub(in crate::chaos) const CODE_PATIENCE: Duration = Duration::from_secs(15);
/// A session with less left is not begun a life with.
const LEAST_SECONDS_LEFT: u64 = 150;

impl Director<'_> {
    /// Whether a broker listens.
    pub(in crate::chaos) fn broker_is_there(&self) -> bool {
        UnixStream::connect(&self.scene.configuration.broker_socket).is_ok()
    }

    /// The broker that listens, be it a service or of the launcher.
    pub(in crate::chaos) fn broker_pid(&self) -> Pid {
        listener(&self.scene.configuration.broker_socket)
    }

    /// Starts the broker as a service, and opens a session.
    pub(in crate::chaos) fn start_service(&mut self) {
        self.world.note("start the broker");
        let broker = Process::start(&mut self.scene.broker_command());
        self.world.watch.follow("broker", broker.pid());
        self.service = Some(broker);
        self.open_session();
        self.world.tally.count("broker", "started as a service");
    }

    /// Ends the service in an orderly way, if there is one.
    pub(in crate::chaos) fn stop_service(&mut self) {
        let Some(mut broker) = self.service.take() else {
            return;
        };
        self.world.note("stop the broker");
        let _under_way = self.begin("the end of the broker");
        self.world.watch.forget("broker");
        broker.signal(SIGTERM);
        let (status, output) = broker.finish();
        assert!(status.success(), "the broker: {status}\n{output}");
        self.keep_log("broker", &output);
    }

    /// Kills whatever broker there is.
    pub(in crate::chaos) fn kill_broker(&mut self) {
        self.world.note("kill -9 of the broker");
        let socket = self.scene.configuration.broker_socket.clone();
        match self.service.take() {
            Some(mut broker) => {
                self.world.watch.forget("broker");
                broker.signal(SIGKILL);
                let (_, output) = broker.finish();
                self.keep_log("broker", &output);
            }
            None => kill(self.broker_pid(), SIGKILL).unwrap(),
        }
        self.world
            .wait_until(|| UnixStream::connect(&socket).is_err());
        self.world.tally.count("broker", "killed");
    }

    /// Writes a code, or a session document, to whoever awaits it.
    pub(in crate::chaos) fn write_code(&mut self) {
        self.world.note("write a code");
        let aws = &mut self.scene.aws;
        aws.set_clock("0");
        let by_document =
            aws.next_code_ahead_seconds() > MOST_SECONDS_AHEAD || self.random.u8(0..6) == 0;
        let (input, what) = if by_document {
            (aws.session_document_without_code(), "session documents")
        } else {
            (aws.code(), "codes")
        };
        write_fifo(self.scene.fifo(), input.as_bytes());
        self.session_opened = Instant::now();
        self.world.tally.count("codes", what);
    }

    /// The same until the broker has the session. On a busy machine AWS may have taken a code whose
    /// answer came too late: then another one is needed.
    fn open_session(&mut self) {
        let opened = |director: &Self| {
            let log = director.session_log();
            log.matches(messages::SESSION_OPEN).count()
        };
        let before = opened(self);
        self.write_code();
        while opened(self) == before {
            let end = Instant::now() + CODE_PATIENCE;
            self.world
                .wait_until(|| opened(self) > before || Instant::now() >= end);
            if opened(self) == before && self.awaits_code() {
                self.write_code();
            }
        }
        self.world.wait_until(|| !self.awaits_code());
    }

    /// What the broker has said: a launcher's writes where its server does.
    fn session_log(&self) -> String {
        let process = self.service.as_ref().or(self.server.as_ref());
        process.map(Process::output).unwrap_or_default()
    }

    /// Whether the broker, or the launcher, awaits a code.
    pub(in crate::chaos) fn awaits_code(&self) -> bool {
        self.scene.fifo().exists()
    }

    /// Makes everything that was taken away be there again: AWS without faults, its key enabled, a
    /// broker with a session.
    pub(in crate::chaos) fn mend(&mut self) {
        let _under_way = self.world.watch.begin("mending", RECOVERY_BOUND);
        self.end_faults();
        if !self.broker_is_there() {
            self.kill_what_is_left_of_service();
            self.start_service();
        }
        if self.awaits_code() {
            self.open_session();
        }
    }

    /// A service with a session that lasts for another life.
    pub(in crate::chaos) fn ensure_service(&mut self) {
        let is_short = self.session_opened.elapsed()
            > Duration::from_secs(SESSION_SECONDS - LEAST_SECONDS_LEFT);
        if is_short {
            self.stop_service();
        }
        self.mend();
    }

    fn kill_what_is_left_of_service(&mut self) {
        if let Some(mut broker) = self.service.take() {
            let (status, output) = broker.finish();
            panic!("the broker has ended by itself: {status}\n{output}");
        }
    }

    /// Lets a broker that was stopped by a signal go on.
    pub(in crate::chaos) fn continue_broker(&mut self) {
        if let Some(pid) = self.stopped_broker.take() {
            // It may have been killed meanwhile.
            let _ = kill(pid, SIGCONT);
        }
    }

    /// Whether the present session ends before long, so that what needs KMS may fail.
    pub(in crate::chaos) fn session_ends_soon(&self) -> bool {
        self.session_opened.elapsed() > Duration::from_secs(SESSION_SECONDS - 20)
    }
}
