//! The prompt for an MFA code: asks for a code, exchanges it for a session, and asks again after a
//! wrong one.

use std::{
    hash::{BuildHasher, RandomState},
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::{Channel, Event, FifoError, Input, Stage, Wait, note::Note, wanted};
use aws_session::{
    aws_error::Outcome,
    clock::{seconds_text, unix_seconds_now},
    config::{Mfa, SessionConfig},
    credentials::Credentials,
    interrupt::{sleep_until, unless_readable},
    settings::{self, Settings},
    sts,
    token_code::TokenCode,
};
use service::logging::AUDIT;

/// The time step of a TOTP, in seconds (RFC 6238, section 4.1; AWS's virtual devices use it).
const TIME_STEP_SECONDS: u64 = 30;

/// AWS accepts a code in its own time step and the next one, so a code is valid for this long at most.
const CODE_LIFE: Duration = Duration::from_secs(2 * TIME_STEP_SECONDS);

const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Pause between two calls of STS, so that nobody can flood it through the channel.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The channel does not work.
    #[error(transparent)]
    Channel(#[from] FifoError),
    /// No code can succeed.
    #[error("{0}")]
    Permanent(String),
    /// The only input did not give a session.
    #[error("{0}")]
    Refused(String),
    /// Nobody entered a code in time.
    #[error("no {what} was entered within {} (prompt_timeout_seconds)", seconds_text(*.seconds))]
    DeadlinePassed {
        /// What was awaited.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The interrupt descriptor became readable.
    #[error("stopped before there was a session")]
    Interrupted,
}

/// What to do when no code can succeed until somebody corrects something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPermanentFailure {
    /// Stop: the mistake is in the configuration of this process.
    GiveUp,
    /// Report it and keep waiting: somebody may enter a session document.
    KeepAsking,
}

/// Why an input did not give a session: the name of the event, and what to do next.
struct Refusal {
    event: &'static str,
    why: String,
}

impl Refusal {
    fn of_code(why: String) -> Self {
        Self {
            event: "code_refused",
            why,
        }
    }
}

/// Prompts for codes and exchanges them for a session.
pub struct MfaPrompt<'a> {
    /// How a session is opened.
    pub config: &'a SessionConfig,
    /// How AWS is called.
    pub aws: &'a Settings,
    /// The source credentials; `None` if sessions are opened on another machine.
    pub source: Option<&'a Credentials>,
    /// How long to wait; `None`: without limit.
    pub timeout: Option<Duration>,
    /// What to do when no code can help.
    pub on_permanent_failure: OnPermanentFailure,
    /// The operator's reason, where the code does not come through the FIFO, whose writer gives its own.
    pub reason: Option<&'a str>,
    /// Stops the prompt when it becomes readable.
    pub interrupt: BorrowedFd<'a>,
    /// Called once the channel is open, to say what to write there.
    pub announce: &'a dyn Fn(&Channel),
    /// Called at least every ten seconds.
    pub alive: &'a dyn Fn(),
}

impl MfaPrompt<'_> {
    /// Returns the session that the configuration asks for: the source credentials if `mfa = false`.
    /// Otherwise opens the channel with `open` and waits until a code or a session document gives
    /// one. If the channel is a single line, there is no second attempt.
    pub fn session(
        &self,
        open: impl FnOnce() -> Result<Channel, FifoError>,
    ) -> Result<Credentials, PromptError> {
        if let (Mfa::Off, Some(source)) = (&self.config.mfa, self.source) {
            return Ok(source.clone());
        }
        let mut channel = open()?;
        channel.tell(Stage::Awaited, &wanted(&self.config.mfa));
        (self.announce)(&channel);
        self.wait(&mut channel)
    }

    fn wait(&self, channel: &mut Channel) -> Result<Credentials, PromptError> {
        let wait = Wait {
            interrupt: self.interrupt,
            deadline: self.timeout.map(|timeout| Instant::now() + timeout),
            alive: self.alive,
        };
        let mut spent = SpentCodes::default();
        loop {
            channel.prompt();
            let outcome = match channel.next(&wait)? {
                Event::Interrupted => return Err(PromptError::Interrupted),
                Event::DeadlinePassed => {
                    let seconds = self.timeout.unwrap_or_default().as_secs();
                    let what = match self.config.mfa {
                        Mfa::Here { .. } => "MFA code",
                        _ => "session document",
                    };
                    return Err(PromptError::DeadlinePassed { what, seconds });
                }
                Event::Input(input) => self.try_input(input, &mut spent, channel),
            };
            match outcome {
                Ok(Ok(session)) => {
                    let end = session.expiration_text();
                    channel.tell(Stage::Accepted, &format!("the session is open until {end}"));
                    return Ok(session);
                }
                Ok(Err(Refusal { event, why })) => {
                    channel.tell(Stage::Refused, &why);
                    if channel.is_line() {
                        return Err(PromptError::Refused(why));
                    }
                    warn!(event, "{why}");
                }
                // AWS may have taken the code, so there is no outcome to tell.
                Err(PromptError::Interrupted) => return Err(PromptError::Interrupted),
                Err(failure) => {
                    channel.tell(Stage::Refused, &failure.to_string());
                    return Err(failure);
                }
            }
        }
    }

    fn try_input(
        &self,
        input: Input,
        spent: &mut SpentCodes,
        channel: &mut Channel,
    ) -> Result<Result<Credentials, Refusal>, PromptError> {
        let instruction = channel.instruction(&self.config.mfa);
        Ok(match input {
            Input::Session(session, note) => {
                let note = self.note(note, channel);
                info!(
                    target: AUDIT,
                    event = "session_document_taken",
                    access_key_id = session.access_key_id,
                    expiration = session.expiration_text(),
                    operator = note.operator,
                    from = note.from,
                    reason = note.reason,
                    "took a session document{note}"
                );
                Ok(session)
            }
            Input::Refused(why) => Err(Refusal {
                event: "input_refused",
                why: format!("ignored {why}; enter {}: {instruction}", self.wanted()),
            }),
            Input::Vanished => Err(Refusal {
                event: "input_vanished",
                why: self.vanished(channel, &instruction),
            }),
            Input::TokenCode(code, note) => {
                channel.tell(Stage::Asking, "");
                let note = self.note(note, channel);
                let delayed = &mut |why: &str| channel.tell(Stage::Asking, why);
                return self.try_code(&code, &note, spent, delayed);
            }
        })
    }

    /// What the writer to the FIFO says of itself, or what is known of this process's own login.
    fn note(&self, written: Note, channel: &Channel) -> Note {
        match channel.fifo_path() {
            Some(_) => written,
            None => Note::of_login(self.reason),
        }
    }

    /// Explains that another process has read the input.
    fn vanished(&self, channel: &Channel, instruction: &str) -> String {
        let fifo = channel.fifo_path().unwrap_or_default();
        let fifo = fifo.display();
        format!(
            "something was written to {fifo}, but another process read it. That may be a forgotten \
             `cat`, or an attacker who now has your MFA code: find the process (fuser {fifo}), then enter \
             {}: {instruction}",
            self.wanted()
        )
    }

    /// The device and the credentials that codes are exchanged with; `None`: only session documents
    /// are accepted.
    fn exchange(&self) -> Option<(&str, &Credentials)> {
        match &self.config.mfa {
            Mfa::Here { serial_number } => Some((serial_number, self.source?)),
            _ => None,
        }
    }

    /// Exchanges one code, without a second attempt.
    pub fn exchange_code(&self, code: &TokenCode) -> Result<Credentials, PromptError> {
        let note = Note::of_login(self.reason);
        self.try_code(code, &note, &mut SpentCodes::default(), &mut |_| {})?
            .map_err(|refusal| PromptError::Refused(refusal.why))
    }

    fn wanted(&self) -> &'static str {
        match self.exchange() {
            Some(_) => "the six digits of the MFA device",
            None => "a session document",
        }
    }

    /// Exchanges a code. A refusal means that another code is needed. `delayed` is told why it takes
    /// longer.
    fn try_code(
        &self,
        code: &TokenCode,
        note: &Note,
        spent: &mut SpentCodes,
        delayed: &mut dyn FnMut(&str),
    ) -> Result<Result<Credentials, Refusal>, PromptError> {
        if spent.contains(code) {
            return Ok(Err(Refusal::of_code(format!(
                "this code has been used; the next one appears in {}",
                seconds_text(seconds_to_next_code())
            ))));
        }
        let Some(exchange) = self.exchange() else {
            return Ok(Err(Refusal::of_code(
                "ignored a code: this host accepts only session documents (mfa = elsewhere)".into(),
            )));
        };
        if spent
            .next_call()
            .is_some_and(|time| sleep_until(time, self.interrupt))
        {
            return Err(PromptError::Interrupted);
        }
        let outcome = self.exchange_while_fresh(exchange, code, delayed)?;
        if !matches!(outcome, Outcome::Unanswered(_)) {
            spent.add(code);
        }
        self.judged(outcome, exchange.0, note)
    }

    /// What follows from the outcome of a code.
    fn judged(
        &self,
        outcome: Outcome,
        mfa_device: &str,
        note: &Note,
    ) -> Result<Result<Credentials, Refusal>, PromptError> {
        let why = match outcome {
            Outcome::Opened(session) => {
                info!(
                    target: AUDIT,
                    event = "code_taken",
                    mfa_device,
                    access_key_id = session.access_key_id,
                    expiration = session.expiration_text(),
                    operator = note.operator,
                    from = note.from,
                    reason = note.reason,
                    "AWS accepted the code{note}"
                );
                return Ok(Ok(session));
            }
            Outcome::Permanent(why) if self.on_permanent_failure == OnPermanentFailure::GiveUp => {
                return Err(PromptError::Permanent(why));
            }
            Outcome::Permanent(why) => {
                format!("{why}; waiting for a session document or a new code")
            }
            Outcome::Unanswered(why) => {
                format!("{why}; the code has expired; enter a new one")
            }
            Outcome::Spent(why) => format!(
                "{why}; enter the next code, which appears in {}",
                seconds_text(seconds_to_next_code())
            ),
        };
        Ok(Err(Refusal::of_code(why)))
    }

    /// Sends the code again as long as AWS has not judged it and could still accept it.
    fn exchange_while_fresh(
        &self,
        exchange: (&str, &Credentials),
        code: &TokenCode,
        delayed: &mut dyn FnMut(&str),
    ) -> Result<Outcome, PromptError> {
        let too_old = Instant::now() + CODE_LIFE;
        let mut pause = SHORTEST_PAUSE;
        loop {
            (self.alive)();
            let outcome = self.exchange_once(exchange, code)?;
            let Outcome::Unanswered(why) = &outcome else {
                return Ok(outcome);
            };
            let next = Instant::now() + pause;
            if next >= too_old {
                return Ok(outcome);
            }
            let why = format!(
                "{why}; the code will be sent again in {}",
                seconds_text(pause.as_secs())
            );
            info!("{why}");
            delayed(&why);
            if sleep_until(next, self.interrupt) {
                return Err(PromptError::Interrupted);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Makes one call of STS. If a resource of the process has run out, there is no call.
    fn exchange_once(
        &self,
        (serial_number, source): (&str, &Credentials),
        code: &TokenCode,
    ) -> Result<Outcome, PromptError> {
        let runtime = match settings::runtime() {
            Ok(runtime) => runtime,
            Err(error) => return Ok(Outcome::Unanswered(format!("cannot call STS: {error}"))),
        };
        let call = sts::exchange(self.aws, self.config, serial_number, source, code);
        runtime
            .block_on(unless_readable(self.interrupt, call))
            .ok_or(PromptError::Interrupted)
    }
}

/// Codes that AWS has judged, as long as somebody might enter one of them again. Only keyed hashes are
/// kept, because the digits are a secret.
#[derive(Default)]
struct SpentCodes {
    key: RandomState,
    hashes: Vec<(u64, Instant)>,
}

impl SpentCodes {
    fn hash(&self, code: &TokenCode) -> u64 {
        self.key.hash_one(code.expose())
    }

    fn contains(&self, code: &TokenCode) -> bool {
        let hash = self.hash(code);
        self.hashes
            .iter()
            .any(|(spent, when)| *spent == hash && when.elapsed() < 2 * CODE_LIFE)
    }

    /// When the next code may be sent; `None`: now.
    fn next_call(&self) -> Option<Instant> {
        self.hashes.last().map(|(_, when)| *when + SHORTEST_PAUSE)
    }

    fn add(&mut self, code: &TokenCode) {
        self.hashes
            .retain(|(_, when)| when.elapsed() < 2 * CODE_LIFE);
        self.hashes.push((self.hash(code), Instant::now()));
    }
}

fn seconds_to_next_code() -> u64 {
    TIME_STEP_SECONDS - unix_seconds_now().unsigned_abs() % TIME_STEP_SECONDS
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        net::TcpListener,
        os::fd::{AsFd, OwnedFd},
        path::PathBuf,
        process::Command,
        sync::mpsc,
        thread,
    };

    use aws_session::{
        config::{Config, FifoAccess, FifoConfig},
        credentials::parse_document,
        settings::Reader,
    };
    use nix::unistd::pipe;

    use super::*;
    use crate::writer::{self, FifoWriter};

    const DOCUMENT: &[u8] = br#"{"AccessKeyId":"ASIAX","SecretAccessKey":"s","SessionToken":"t","Expiration":"2096-10-02T07:06:40Z"}"#;

    fn here() -> Mfa {
        Mfa::Here {
            serial_number: "GAHT12345678".into(),
        }
    }

    fn code(digits: &[u8]) -> TokenCode {
        TokenCode::new(digits).unwrap()
    }

    struct Scene {
        directory: tempfile::TempDir,
        config: SessionConfig,
        aws: Settings,
        source: Credentials,
        interrupt: OwnedFd,
        _interrupter: OwnedFd,
    }

    impl Scene {
        fn new(mfa: Mfa) -> Self {
            let mut config = Config::without_file().unwrap().session;
            config.mfa = mfa;
            config.region = Some("eu-west-1".into());
            let (interrupt, interrupter) = pipe().unwrap();
            Self {
                directory: tempfile::tempdir().unwrap(),
                aws: Settings::read(&config, Reader::Service).unwrap(),
                config,
                source: parse_document(DOCUMENT).unwrap(),
                interrupt,
                _interrupter: interrupter,
            }
        }

        fn prompt(&self) -> MfaPrompt<'_> {
            MfaPrompt {
                config: &self.config,
                aws: &self.aws,
                source: Some(&self.source),
                timeout: Some(Duration::from_secs(10)),
                on_permanent_failure: OnPermanentFailure::KeepAsking,
                reason: Some("ticket 4711"),
                interrupt: self.interrupt.as_fd(),
                announce: &|_| {},
                alive: &|| {},
            }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("mfa")
        }

        fn fifo(&self) -> Result<Channel, FifoError> {
            Channel::fifo(&FifoConfig {
                path: self.path(),
                is_configured: true,
                access: FifoAccess {
                    mode: 0o600,
                    gid: None,
                },
                prompt_timeout: None,
            })
        }
    }

    #[test]
    fn where_sessions_come_from_elsewhere_a_code_is_refused_and_a_document_opens_one() {
        let scene = Scene::new(Mfa::Elsewhere);
        let (announced, waits) = mpsc::channel();
        let path = scene.path();
        let operator = thread::spawn(move || {
            waits.recv().unwrap();
            let mut writer = FifoWriter::find(&path).unwrap();
            let (never, _open) = pipe().unwrap();
            let mut give = |bytes| writer.give(bytes, never.as_fd(), |_| {}).unwrap();
            [give(b"111676\n"), give(DOCUMENT)]
        });
        let session = MfaPrompt {
            announce: &|_| announced.send(()).unwrap(),
            ..scene.prompt()
        }
        .session(|| scene.fifo());
        assert_eq!(session.unwrap().access_key_id, "ASIAX");
        let why = "ignored a code: this host accepts only session documents (mfa = elsewhere)";
        let [refused, accepted] = operator.join().unwrap();
        assert_eq!(refused, writer::Outcome::Refused(why.into()));
        assert_eq!(
            accepted,
            writer::Outcome::Accepted("the session is open until 2096-10-02T07:06:40Z".into())
        );
    }

    #[test]
    fn the_prompt_ends_at_its_deadline_and_without_mfa_there_is_none() {
        let scene = Scene::new(here());
        let prompt = MfaPrompt {
            timeout: Some(Duration::ZERO),
            ..scene.prompt()
        };
        let ended = prompt.session(|| scene.fifo());
        assert!(matches!(
            ended,
            Err(PromptError::DeadlinePassed { seconds: 0, .. })
        ));
        let scene = Scene::new(Mfa::Off);
        let session = scene.prompt().session(|| Err(FifoError::InputClosed));
        assert_eq!(session.unwrap().access_key_id, "ASIAX");
    }

    #[test]
    fn the_writer_of_a_fifo_gives_its_own_note() {
        let scene = Scene::new(here());
        let written = Note {
            operator: Some("alice".into()),
            ..Note::default()
        };
        let note = |channel: &Channel| scene.prompt().note(written.clone(), channel);
        assert_eq!(note(&scene.fifo().unwrap()), written);
        assert_eq!(note(&Channel::line()).reason.unwrap(), "ticket 4711");
    }

    #[test]
    fn what_is_wanted_is_said_when_an_input_was_read_by_another_process() {
        let scene = Scene::new(here());
        let why = scene.prompt().vanished(&scene.fifo().unwrap(), "so");
        let read = format!(
            "something was written to {}, but another",
            scene.path().display()
        );
        assert!(why.starts_with(&read), "{why}");
        assert!(
            why.ends_with("then enter the six digits of the MFA device: so"),
            "{why}"
        );
        let scene = Scene::new(Mfa::Elsewhere);
        assert_eq!(scene.prompt().wanted(), "a session document");
    }

    #[test]
    fn who_must_correct_something_first_decides_whether_a_permanent_failure_ends_the_prompt() {
        let scene = Scene::new(here());
        let outcome = |on_permanent_failure, outcome| {
            let prompt = MfaPrompt {
                on_permanent_failure,
                ..scene.prompt()
            };
            match prompt.judged(outcome, "GAHT12345678", &Note::default()) {
                Ok(Ok(session)) => session.access_key_id,
                Ok(Err(refusal)) => refusal.why,
                Err(error) => format!("ended: {error}"),
            }
        };
        let permanent = || Outcome::Permanent("no such device".into());
        assert_eq!(
            outcome(OnPermanentFailure::GiveUp, permanent()),
            "ended: no such device"
        );
        assert_eq!(
            outcome(OnPermanentFailure::KeepAsking, permanent()),
            "no such device; waiting for a session document or a new code"
        );
        let spent = Outcome::Spent("a wrong code".into());
        let why = outcome(OnPermanentFailure::GiveUp, spent);
        assert!(why.starts_with("a wrong code; enter the next code, which appears in "));
        let opened = Outcome::Opened(scene.source.clone());
        assert_eq!(outcome(OnPermanentFailure::GiveUp, opened), "ASIAX");
    }

    /// In the process that calls STS, where the environment says that nothing is.
    const CALLS: &str = "IAM_KMS_TEST_CALLS";

    #[test]
    fn a_code_that_aws_has_not_judged_is_sent_again_after_a_pause_that_grows() {
        if env::var_os(CALLS).is_none() {
            let closed = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            let calls = Command::new(env::current_exe().unwrap())
                .args(["--exact", "mfa_prompt::tests::a_code_that_aws_has_not_judged_is_sent_again_after_a_pause_that_grows"])
                .env("AWS_ENDPOINT_URL_STS", format!("http://{closed}"))
                .env("NO_PROXY", "127.0.0.1")
                .env(CALLS, "")
                .output()
                .unwrap();
            let output = String::from_utf8_lossy(&calls.stdout);
            assert!(
                calls.status.success() && output.contains("1 passed"),
                "{output}"
            );
            return;
        }
        let scene = Scene::new(here());
        let (interrupt, interrupter) = pipe().unwrap();
        let prompt = MfaPrompt {
            interrupt: interrupt.as_fd(),
            ..scene.prompt()
        };
        let mut interrupter = Some(interrupter);
        let mut said = Vec::new();
        let exchange = prompt.exchange().unwrap();
        let outcome = prompt.exchange_while_fresh(exchange, &code(b"111676"), &mut |why| {
            said.push((why.to_owned(), Instant::now()));
            if said.len() == 2 {
                interrupter = None;
            }
        });
        assert!(matches!(outcome, Err(PromptError::Interrupted)), "{said:?}");
        let [(first, before), (second, after)] = said.try_into().unwrap();
        assert!(
            first.ends_with("the code will be sent again in 1 second"),
            "{first}"
        );
        assert!(
            second.ends_with("the code will be sent again in 2 seconds"),
            "{second}"
        );
        assert!(after - before >= SHORTEST_PAUSE);
    }

    #[test]
    fn a_code_is_spent_for_as_long_as_somebody_might_enter_it_again() {
        let (one, other) = (code(b"111676"), code(b"111677"));
        let mut spent = SpentCodes::default();
        assert!(!spent.contains(&one) && spent.next_call().is_none());
        let before = Instant::now();
        spent.add(&one);
        assert!(spent.contains(&one) && !spent.contains(&other));
        assert!(spent.next_call().unwrap() >= before + SHORTEST_PAUSE);
        spent.add(&other);
        assert!(spent.contains(&one) && spent.contains(&other));
        let mut pass = |seconds| {
            for (_, when) in &mut spent.hashes {
                *when = when.checked_sub(Duration::from_secs(seconds)).unwrap();
            }
            spent.contains(&one) || spent.contains(&other)
        };
        assert!(pass(90) && !pass(30));
        spent.add(&one);
        assert_eq!(spent.hashes.len(), 1);
    }

    #[test]
    fn the_next_code_appears_at_the_next_time_step() {
        loop {
            let now = unix_seconds_now();
            let seconds = seconds_to_next_code();
            if unix_seconds_now() == now {
                assert!((1..=30).contains(&seconds), "{seconds}");
                assert_eq!((now.unsigned_abs() + seconds) % 30, 0);
                return;
            }
        }
    }
}
