//! Manages the session: notices its end and gets the next one through the code channel.
//!
//! Its own thread waits for codes, calls STS and notifies systemd. Callers that need the session never
//! wait for these.

use std::{
    io,
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aws_session::{
    clock::{self, utc_text},
    config::{Config, Mfa},
    credentials::Credentials,
    interrupt::sleep_until,
    settings::Settings,
    source_credentials::{CredentialsError, Finder},
};
use broker_api::{Failure, FailureKind, KmsSettings, SessionPhase, SessionState, WaitPolicy};
use code_channel::{
    Channel,
    mfa_prompt::{MfaPrompt, OnPermanentFailure, PromptError},
    writing_command,
};
use nix::sys::eventfd::EventFd;
use parking_lot::{Condvar, Mutex};
use service::{logging::AUDIT, stored_session, systemd};
use tokio::sync::{oneshot, watch};
use tracing::{error, info};

/// Sessions that need no code, such as those of an instance role, are renewed this long before their
/// end, when AWS offers the next one; or half-way to the end if less is left.
const RENEW_AHEAD_SECONDS: i64 = 300;

/// Pause between attempts to create the FIFO, or to renew a session without a code. It doubles each
/// time.
const FIRST_RETRY_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(30);

/// How often the same failure is logged while it lasts.
const FAILURE_INTERVAL: Duration = Duration::from_secs(3600);

/// Longest wait before the clock is checked again, because the host may have been suspended.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// For whom the session is managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// For one server, whose launcher started the broker.
    OfServer,
    /// For all admitted peers, as a unit of its own.
    Service,
}

/// The session and its state.
pub(crate) struct SessionManager {
    config: Config,
    aws: Settings,
    role: Role,
    source: Option<Credentials>,
    state: Mutex<State>,
    /// Notified when the session has changed, or it is time to stop.
    changed: Condvar,
    /// Notifies requests that wait for a session.
    opened: watch::Sender<()>,
    /// Readable when it is time to stop.
    stop: EventFd,
}

struct State {
    session: Option<Arc<Credentials>>,
    /// A session that has ended, which has not been logged yet.
    closed: Option<Arc<Credentials>>,
    /// When the session is renewed; `None`: never, or there is none.
    renewal_unix_seconds: Option<i64>,
    /// End of the current or last session.
    expiration_unix_seconds: Option<i64>,
    /// The FIFO that waits for a code.
    fifo: Option<PathBuf>,
    /// Why there is no session, after a failure.
    failure: Option<String>,
}

impl State {
    /// With this session, or with none yet.
    fn of(session: Option<Credentials>, mfa: &Mfa) -> Self {
        let of_session = session.as_ref();
        Self {
            expiration_unix_seconds: of_session.and_then(|it| it.expiration_unix_seconds),
            renewal_unix_seconds: of_session.and_then(|it| renewal(mfa, it)),
            session: session.map(Arc::new),
            closed: None,
            fifo: None,
            failure: None,
        }
    }

    fn close(&mut self) {
        if let Some(session) = self.session.take() {
            self.closed = Some(session);
        }
    }
}

impl SessionManager {
    /// Manages `session`. If there is none, prompts for one immediately.
    ///
    /// Errors: no descriptors are left.
    pub fn new(
        config: Config,
        aws: Settings,
        source: Option<Credentials>,
        session: Option<Credentials>,
        role: Role,
    ) -> io::Result<Self> {
        let state = State::of(session, &config.session.mfa);
        Ok(Self {
            config,
            aws,
            role,
            source,
            state: Mutex::new(state),
            changed: Condvar::new(),
            opened: watch::Sender::new(()),
            stop: EventFd::new()?,
        })
    }

    /// Returns the open session, or the failure that says where to enter a code.
    pub fn session(&self) -> Result<Arc<Credentials>, Failure> {
        let mut state = self.state.lock();
        let session = state.session.as_ref();
        if session.is_some_and(|session| is_over(session)) {
            state.close();
            self.changed.notify_all();
        }
        state
            .session
            .clone()
            .ok_or_else(|| self.session_over(&state))
    }

    /// Ends `session` because KMS says that it has expired, whatever the clock says.
    pub fn ended(&self, session: &Arc<Credentials>) -> Failure {
        let mut state = self.state.lock();
        let present = state.session.as_ref();
        if present.is_some_and(|present| Arc::ptr_eq(present, session)) {
            state.close();
            self.changed.notify_all();
        }
        self.session_over(&state)
    }

    /// Returns how long a request may wait for a session; `None`: without limit.
    pub fn wait_limit(&self, wait: WaitPolicy) -> Option<Duration> {
        wait.limit(self.config.broker.reprompt_wait)
    }

    /// Returns a receiver that is notified of each session that is opened from now on.
    pub fn openings(&self) -> watch::Receiver<()> {
        self.opened.subscribe()
    }

    /// Returns the state of the session, for clients.
    pub fn state(&self, kms: KmsSettings, key_store: Option<String>) -> SessionState {
        // Called because it notices the end.
        let open = self.session().is_ok();
        let state = self.state.lock();
        SessionState {
            phase: match (&state.failure, open) {
                (_, true) => SessionPhase::Open,
                (Some(_), false) => SessionPhase::Failed,
                (None, false) => SessionPhase::AwaitingCode,
            },
            expiration_unix_seconds: state.expiration_unix_seconds,
            fifo: state.fifo.as_ref().map(|path| path.display().to_string()),
            kms,
            key_store,
            has_key_server: false,
        }
    }

    /// Starts the thread. The receiver completes when the thread has ended.
    ///
    /// Errors: no thread can be started.
    pub fn start(self: &Arc<Self>) -> io::Result<(JoinHandle<()>, oneshot::Receiver<()>)> {
        let manager = Arc::clone(self);
        watched_thread("session", move || manager.run())
    }

    /// Ends the thread.
    pub fn stop(&self) -> io::Result<()> {
        self.stop.write(1)?;
        // With the lock, so that the thread is not between its check and its wait.
        let _state = self.state.lock();
        self.changed.notify_all();
        Ok(())
    }

    /// Gets a new session whenever there is none, until it is time to stop.
    fn run(&self) {
        let mut pause = FIRST_RETRY_PAUSE;
        let mut ended: Option<Arc<Credentials>> = None;
        let mut logged: Option<(String, Instant)> = None;
        while self.wait_for_end() {
            ended = self.report_closed().or(ended);
            match self.renew(ended.as_deref()) {
                Ok(session) => {
                    pause = FIRST_RETRY_PAUSE;
                    logged = None;
                    self.open(session);
                }
                Err(PromptError::Interrupted) => return,
                Err(failure) => {
                    let failure = failure.to_string();
                    let is_logged = logged.as_ref().is_some_and(|(last, at)| {
                        *last == failure && at.elapsed() < FAILURE_INTERVAL
                    });
                    // Each attempt until the pause no longer grows.
                    if !is_logged || pause < LONGEST_RETRY_PAUSE {
                        error!(
                            "cannot get a new AWS session: {failure}; trying again in {} s",
                            pause.as_secs()
                        );
                        logged = Some((failure.clone(), Instant::now()));
                    }
                    ended = self.note_failure(failure).or(ended);
                    if sleep_until(Instant::now() + pause, self.stop.as_fd()) {
                        return;
                    }
                    pause = (pause * 2).min(LONGEST_RETRY_PAUSE);
                }
            }
        }
    }

    /// Records why there is no new session. If the last one is over, says so, and returns it if that is news.
    fn note_failure(&self, failure: String) -> Option<Arc<Credentials>> {
        let over = {
            let mut state = self.state.lock();
            state.failure = Some(failure);
            let session = state.session.as_ref();
            if session.is_some_and(|session| is_over(session)) {
                state.close();
            }
            match state.session {
                Some(_) => return None,
                None => self.session_over(&state).message,
            }
        };
        self.show_status(&over);
        self.report_closed()
    }

    /// Returns true when a new session is needed, false when it is time to stop.
    fn wait_for_end(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if sleep_until(Instant::now(), self.stop.as_fd()) {
                return false;
            }
            if state.session.is_none() {
                return true;
            }
            let remaining = state
                .renewal_unix_seconds
                .map(|due| due.saturating_sub(clock::aws_unix_seconds()));
            if remaining.is_some_and(|seconds| seconds <= 0) {
                return true;
            }
            let pause = remaining.map_or(CLOCK_CHECK, |seconds| {
                Duration::from_secs(seconds.unsigned_abs()).min(CLOCK_CHECK)
            });
            self.changed.wait_for(&mut state, pause);
        }
    }

    /// Gets a session that is not `ended`, which AWS may have ended before its time.
    fn renew(&self, ended: Option<&Credentials>) -> Result<Credentials, PromptError> {
        if self.config.session.mfa == Mfa::Off {
            // Instances and containers do not report AWS's time.
            clock::follow_host();
            let finder = Finder {
                config: &self.config.session,
                aws: &self.aws,
                interrupt: Some(self.stop.as_fd()),
            };
            let found = finder.find().map_err(|error| match error {
                CredentialsError::Interrupted => PromptError::Interrupted,
                error => PromptError::Permanent(error.to_string()),
            })?;
            return match ended {
                Some(ended) if ended.access_key_id == found.access_key_id => {
                    Err(PromptError::Permanent(format!(
                        "the AWS credentials found ({}) have expired; provide new ones",
                        found.access_key_id
                    )))
                }
                _ => Ok(found),
            };
        }
        let prompt = MfaPrompt {
            config: &self.config.session,
            aws: &self.aws,
            source: self.source.as_ref(),
            // The configured limit applies only to a start, for which somebody waits.
            timeout: None,
            on_permanent_failure: OnPermanentFailure::KeepAsking,
            reason: None,
            interrupt: self.stop.as_fd(),
            announce: &|channel| self.announce(channel),
            alive: &|| {},
        };
        prompt.session(|| Channel::fifo(&self.config.fifo))
    }

    fn announce(&self, channel: &Channel) {
        let message = {
            let mut state = self.state.lock();
            state.close();
            state.fifo = channel.fifo_path();
            state.failure = None;
            self.session_over(&state).message
        };
        self.report_closed();
        info!(event = "prompt", "{message}");
        self.show_status(&message);
    }

    /// Logs the end of a session, if one has ended, and returns it.
    fn report_closed(&self) -> Option<Arc<Credentials>> {
        let session = self.state.lock().closed.take()?;
        if self.config.session.mfa != Mfa::Off {
            stored_session::forget();
        }
        info!(
            target: AUDIT,
            event = "session_end",
            access_key_id = session.access_key_id,
            "session {} is over",
            session.access_key_id
        );
        Some(session)
    }

    /// The status line of a server's unit belongs to the server.
    fn show_status(&self, status: &str) {
        if self.role == Role::Service {
            systemd::status(status);
        }
    }

    fn open(&self, session: Credentials) {
        let (access_key_id, expiration) =
            (session.access_key_id.clone(), session.expiration_text());
        let opened = format!("session {access_key_id} is open until {expiration}");
        self.report_closed();
        stored_session::keep(&self.config.session, self.source.as_ref(), &session);
        *self.state.lock() = State::of(Some(session), &self.config.session.mfa);
        self.opened.send_replace(());
        // Logged last, so that it is true when somebody reads it.
        info!(
            event = "session_open",
            access_key_id, expiration, "{opened}"
        );
        self.show_status(&opened);
    }

    fn session_over(&self, state: &State) -> Failure {
        let over = match state.expiration_unix_seconds {
            Some(end) => format!("the AWS session ended at {}", utc_text(end)),
            None => "there is no AWS session yet".into(),
        };
        let command = writing_command(&self.config.fifo.path, &self.config.session.mfa);
        let next = match (&state.failure, &self.config.session.mfa) {
            (Some(failure), _) => format!(", and no new one can be opened: {failure}"),
            (None, Mfa::Here { serial_number }) => {
                format!("; enter an MFA code of {serial_number}: {command}")
            }
            (None, Mfa::Elsewhere) => {
                format!("; enter a session document: {command}")
            }
            (None, Mfa::Off) => "; a new one is being fetched".into(),
        };
        Failure {
            kind: FailureKind::SessionOver,
            message: format!("{over}{next}"),
        }
    }
}

/// Starts a thread. The receiver completes when it ends, even by a panic.
fn watched_thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<(JoinHandle<()>, oneshot::Receiver<()>)> {
    let (ended, has_ended) = oneshot::channel();
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        let _dropped_at_the_end: oneshot::Sender<()> = ended;
        work();
    })?;
    Ok((thread, has_ended))
}

/// Returns when `session` is renewed. Until AWS has the next session, it returns the same one again. So
/// each attempt comes after half of the remaining time, and there are never many in a row.
fn renewal(mfa: &Mfa, session: &Credentials) -> Option<i64> {
    let end = session.expiration_unix_seconds?;
    if *mfa != Mfa::Off {
        return Some(end);
    }
    let now = clock::aws_unix_seconds();
    let half_way = now.saturating_add(end.saturating_sub(now).max(2) / 2);
    Some(half_way.max(end.saturating_sub(RENEW_AHEAD_SECONDS)))
}

fn is_over(session: &Credentials) -> bool {
    session
        .remaining_seconds()
        .is_some_and(|seconds| seconds <= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds_to_renewal(mfa: &Mfa, remaining_seconds: i64) -> i64 {
        let now = clock::aws_unix_seconds();
        let session = Credentials {
            access_key_id: "ASIAX".into(),
            secret_access_key: "secret".into(),
            session_token: None,
            expiration_unix_seconds: Some(now + remaining_seconds),
        };
        renewal(mfa, &session).unwrap() - now
    }

    #[test]
    fn sessions_without_a_code_are_renewed_before_their_end_and_not_in_a_loop() {
        for (remaining, expected) in [
            (21_600, 21_300),
            (900, 600),
            (400, 200),
            (300, 150),
            (2, 1),
            (1, 1),
            (-5, 1),
        ] {
            let seconds = seconds_to_renewal(&Mfa::Off, remaining);
            assert!(
                (expected..=expected + 1).contains(&seconds),
                "{remaining}: {seconds}"
            );
        }
    }

    #[test]
    fn the_end_of_a_thread_by_a_panic_is_noticed() {
        let work = || std::panic::resume_unwind(Box::new("as by a panic"));
        let (thread, ended) = watched_thread("test", work).unwrap();
        assert!(ended.blocking_recv().is_err());
        assert!(thread.join().is_err());
    }

    #[test]
    fn sessions_with_a_code_are_used_until_their_end() {
        assert!((900..=901).contains(&seconds_to_renewal(&Mfa::Elsewhere, 900)));
    }
}
