//! From a person's code to a session: ask, trade, and ask again where that is the answer.

use std::{
    hash::{BuildHasher, RandomState},
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::{Channel, Event, FifoError, Input, Stage, Wait};
use aws_session::{
    clock::{seconds_text, unix_seconds_now},
    config::{Config, Mfa},
    interrupt::{sleep_until, unless_readable},
    session::Session,
    settings::{self, Settings},
    sts::{self, Outcome},
    token_code::TokenCode,
};
use service::logging::AUDIT;

/// The time step of a TOTP, in seconds (RFC 6238, section 4.1; AWS's virtual devices use it).
const TIME_STEP_SECONDS: u64 = 30;

/// AWS takes a code in its own time step and the next one, so one that has just been typed is good
/// for this long at most.
const CODE_LIFE: Duration = Duration::from_secs(2 * TIME_STEP_SECONDS);

const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Between two calls of STS: whoever writes to the channel cannot have it flooded.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The channel does not work.
    #[error(transparent)]
    Channel(#[from] FifoError),
    /// AWS will not take any code.
    #[error("{0}")]
    Permanent(String),
    /// What was given is no code that AWS takes, and there is nobody to ask again.
    #[error("{0}")]
    Refused(String),
    /// Nobody wrote a code.
    #[error("no MFA code was written within {} (prompt_timeout_seconds)", seconds_text(*.0))]
    DeadlinePassed(u64),
    /// The interrupt descriptor became readable.
    #[error("stopped before there was a session")]
    Interrupted,
}

/// What to do where no code will help before somebody mends something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPermanentFailure {
    /// End: the mistake is in the configuration that this process was started with.
    GiveUp,
    /// Say so and wait on: a session document may still come.
    KeepAsking,
}

/// What a code is traded with.
#[derive(Clone, Copy)]
pub struct CodeExchange<'a> {
    serial_number: &'a str,
    source: &'a Session,
}

impl<'a> CodeExchange<'a> {
    /// `None` where codes are not traded here.
    pub fn new(config: &'a Config, source: Option<&'a Session>) -> Option<Self> {
        match (&config.mfa, source) {
            (Mfa::Here { serial_number }, Some(source)) => Some(Self {
                serial_number,
                source,
            }),
            _ => None,
        }
    }
}

/// Why an input has given no session: the name of the event, and what to do next.
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

/// Asks for codes and trades them.
pub struct MfaPrompt<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// How AWS is called.
    pub aws: &'a Settings,
    /// What codes are traded with; `None`: only session documents are taken.
    pub trade: Option<CodeExchange<'a>>,
    /// What to do where no code will help.
    pub on_permanent_failure: OnPermanentFailure,
    /// Ends the asking when it becomes readable.
    pub interrupt: BorrowedFd<'a>,
    /// Called at least every ten seconds.
    pub alive: &'a dyn Fn(),
}

impl MfaPrompt<'_> {
    /// Waits for a code or a session document until one of them gives a session. Of a channel that
    /// is one line, the first must.
    pub fn session(&self, channel: &mut Channel) -> Result<Session, PromptError> {
        let deadline = self
            .config
            .prompt_timeout
            .map(|timeout| Instant::now() + timeout);
        let wait = Wait {
            interrupt: self.interrupt,
            deadline,
            alive: self.alive,
        };
        let mut spent = SpentCodes::default();
        loop {
            channel.prompt();
            let outcome = match channel.next(&wait)? {
                Event::Interrupted => return Err(PromptError::Interrupted),
                Event::DeadlinePassed => {
                    let seconds = self.config.prompt_timeout.unwrap_or_default().as_secs();
                    return Err(PromptError::DeadlinePassed(seconds));
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
    ) -> Result<Result<Session, Refusal>, PromptError> {
        let instruction = channel.instruction(&self.config.mfa);
        Ok(match input {
            Input::Session(session) => {
                info!(target: AUDIT, event = "session_document_taken", "took a session document");
                Ok(session)
            }
            Input::Refused(why) => Err(Refusal {
                event: "input_refused",
                why: format!("ignored {why}; write {}: {instruction}", self.wanted()),
            }),
            Input::Vanished => Err(Refusal {
                event: "input_vanished",
                why: self.vanished(&instruction),
            }),
            Input::TokenCode(code) => {
                channel.tell(Stage::Asking, "");
                return self.try_code(&code, spent, &mut |why| channel.tell(Stage::Asking, why));
            }
        })
    }

    /// What it may mean that an input has reached somebody else.
    fn vanished(&self, instruction: &str) -> String {
        let fifo = self.config.fifo_or_default().display();
        format!(
            "something was written to {fifo}, but another process read it. That may be a forgotten \
             `cat`, or an attacker who now has your MFA code: find the process (fuser {fifo}), then write \
             {}: {instruction}",
            self.wanted()
        )
    }

    /// Trades the one code that there is.
    pub fn trade_code(&self, code: &TokenCode) -> Result<Session, PromptError> {
        self.try_code(code, &mut SpentCodes::default(), &mut |_| {})?
            .map_err(|refusal| PromptError::Refused(refusal.why))
    }

    fn wanted(&self) -> &'static str {
        match self.trade {
            Some(_) => "the six digits of the MFA device",
            None => "a session document",
        }
    }

    /// A refusal: another code is needed. `delayed` hears why it takes longer.
    fn try_code(
        &self,
        code: &TokenCode,
        spent: &mut SpentCodes,
        delayed: &mut dyn FnMut(&str),
    ) -> Result<Result<Session, Refusal>, PromptError> {
        if spent.contains(code) {
            return Ok(Err(Refusal::of_code(format!(
                "this code has been used; the next one comes in {}",
                seconds_text(seconds_to_next_code())
            ))));
        }
        let Some(trade) = self.trade else {
            return Ok(Err(Refusal::of_code(
                "ignored a code: sessions are opened elsewhere (mfa = elsewhere); write a session document".into(),
            )));
        };
        if spent
            .next_call()
            .is_some_and(|time| sleep_until(time, self.interrupt))
        {
            return Err(PromptError::Interrupted);
        }
        let outcome = self.trade_while_fresh(trade, code, delayed)?;
        if !matches!(outcome, Outcome::Unanswered(_)) {
            spent.add(code);
        }
        let why = match outcome {
            Outcome::Opened(session) => {
                info!(target: AUDIT, event = "code_taken", "AWS has taken the code");
                return Ok(Ok(session));
            }
            Outcome::Permanent(why) if self.on_permanent_failure == OnPermanentFailure::GiveUp => {
                return Err(PromptError::Permanent(why));
            }
            Outcome::Permanent(why) => {
                format!("{why}; waiting for a session document or a new code")
            }
            Outcome::Unanswered(why) => {
                format!("{why}; the code is too old by now, write a new one")
            }
            Outcome::Spent(why) => format!(
                "{why}; write the next code, which comes in {}",
                seconds_text(seconds_to_next_code())
            ),
        };
        Ok(Err(Refusal::of_code(why)))
    }

    /// Sends the code again for as long as AWS has not judged it and could still take it.
    fn trade_while_fresh(
        &self,
        trade: CodeExchange<'_>,
        code: &TokenCode,
        delayed: &mut dyn FnMut(&str),
    ) -> Result<Outcome, PromptError> {
        let too_old = Instant::now() + CODE_LIFE;
        let mut pause = SHORTEST_PAUSE;
        loop {
            (self.alive)();
            let outcome = self.trade_once(trade, code)?;
            let Outcome::Unanswered(why) = &outcome else {
                return Ok(outcome);
            };
            let next = Instant::now() + pause;
            if next >= too_old {
                return Ok(outcome);
            }
            let why = format!(
                "{why}; the code is kept and sent again in {}",
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

    /// One call of STS. Where the process has run out of something, no call was made.
    fn trade_once(
        &self,
        trade: CodeExchange<'_>,
        code: &TokenCode,
    ) -> Result<Outcome, PromptError> {
        let runtime = match settings::runtime() {
            Ok(runtime) => runtime,
            Err(error) => return Ok(Outcome::Unanswered(format!("cannot call STS: {error}"))),
        };
        let call = sts::trade(
            self.aws,
            self.config,
            trade.serial_number,
            trade.source,
            code,
        );
        runtime
            .block_on(unless_readable(self.interrupt, call))
            .ok_or(PromptError::Interrupted)
    }
}

/// Codes that AWS has judged, for as long as somebody might write one of them again. Not the digits,
/// which may be the key to more, but keyed hashes of them.
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

    /// When the next code may be sent; `None`: at once.
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
