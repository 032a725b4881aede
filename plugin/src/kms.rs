//! KMS calls through the broker: counted, logged, and repeated where that may help.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use broker_api::{
    Decrypt, Failure, FailureKind, GenerateDataKey, KmsOptions, MayWait, Reply, Request,
    SessionState,
};
use broker_client::{BrokerClient, BrokerError};
use key_store::PlaintextKey;

use crate::server_log;
use crate::settings::{Dynamic, Fixed, LogLevel};
use crate::waiting::Waits;

/// What the broker may take beyond the time limit of the KMS call itself.
const BROKER_MARGIN: Duration = Duration::from_secs(2);
const STATUS_PATIENCE: Duration = Duration::from_millis(200);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// KMS or the broker refused or could not do it.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// The broker gave no answer.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The statement was killed, or the server told to end.
    #[error("given up while waiting for a person: {0}")]
    GivenUp(String),
    /// The broker answered another question.
    #[error("the broker answered something else than it was asked; see its log")]
    WrongReply,
}

impl KmsError {
    /// Tells whether the same call may succeed a little later by itself.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Failed(failure) => failure.kind.is_retryable(),
            Self::Broker(error) => error.is_retryable(),
            Self::WrongReply | Self::GivenUp(_) => false,
        }
    }

    /// Tells whether it cost nothing to find out, because nobody beyond this host was asked.
    pub fn is_local(&self) -> bool {
        self.is_for_a_person() || matches!(self, Self::Broker(BrokerError::NoBroker { .. }))
    }

    /// Tells whether every call fails until a person has written a code.
    pub fn is_for_a_person(&self) -> bool {
        match self {
            Self::Failed(failure) => failure.kind == FailureKind::SessionOver,
            Self::GivenUp(_) => true,
            _ => false,
        }
    }
}

/// Numbers for the status variables.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls made, repetitions included.
    pub calls: AtomicU64,
    /// Calls that failed.
    pub failures: AtomicU64,
    /// Calls that repeated a failed one.
    pub retries: AtomicU64,
    latency_microseconds: AtomicU64,
}

impl Counters {
    /// Mean duration of a call in microseconds, 0 before the first.
    pub fn mean_latency_microseconds(&self) -> u64 {
        let calls = self.calls.load(Ordering::Relaxed);
        self.latency_microseconds
            .load(Ordering::Relaxed)
            .checked_div(calls)
            .unwrap_or(0)
    }
}

/// Calls KMS.
pub struct Kms {
    broker: BrokerClient,
    options: KmsOptions,
    call_patience: Duration,
    dynamic: &'static Dynamic,
    #[cfg(feature = "mock")]
    mock: bool,
    /// For the status variables.
    pub counters: Counters,
    /// The calls that waited for a person.
    pub waits: Waits,
}

/// What a call is for.
#[derive(Debug, Clone, Copy)]
pub struct Purpose {
    /// Key id.
    pub key_id: u32,
    /// Key version; 0 before a new one is stored.
    pub key_version: u32,
    /// How long a person may be waited for.
    pub may_wait: MayWait,
}

/// A key that KMS has unwrapped.
pub struct Unwrapped {
    /// The data key in the clear.
    pub key: PlaintextKey,
    /// ARN of the master key that wrapped it.
    pub master_key_arn: String,
}

/// A new key, wrapped.
pub struct WrappedKey {
    /// What goes into the key file.
    pub ciphertext_blob: Vec<u8>,
    /// ARN of the master key.
    pub master_key_arn: String,
}

impl Kms {
    /// Connects at the first call.
    pub fn new(settings: &Fixed, dynamic: &'static Dynamic) -> Self {
        Self {
            broker: BrokerClient::new(&settings.broker_socket),
            options: KmsOptions {
                region: settings.region.clone(),
                endpoint_url: settings.endpoint_url.clone(),
                request_timeout_milliseconds: settings.request_timeout_milliseconds,
                ..KmsOptions::default()
            },
            call_patience: settings.request_timeout() + BROKER_MARGIN,
            dynamic,
            #[cfg(feature = "mock")]
            mock: settings.mock,
            counters: Counters::default(),
            waits: Waits::default(),
        }
    }

    fn options(&self, purpose: Purpose) -> KmsOptions {
        KmsOptions {
            may_wait: purpose.may_wait,
            key_id: purpose.key_id,
            key_version: purpose.key_version,
            ..self.options.clone()
        }
    }

    /// Unwraps a key; repeats the call as long as `may_retry` says so.
    pub fn decrypt(
        &self,
        ciphertext_blob: Vec<u8>,
        purpose: Purpose,
        may_retry: impl Fn(&KmsError) -> bool,
    ) -> Result<Unwrapped, KmsError> {
        let request = Request::Decrypt(Decrypt {
            ciphertext_blob,
            options: self.options(purpose),
        });
        match self.call("Decrypt", &request, may_retry)? {
            Reply::Decrypted {
                key,
                master_key_arn,
                ..
            } => Ok(Unwrapped {
                key,
                master_key_arn,
            }),
            _ => Err(KmsError::WrongReply),
        }
    }

    /// Has a new key of `key_bytes` made and wrapped; repeats the call as long as `may_retry` says
    /// so.
    pub fn generate(
        &self,
        master_key_id: String,
        key_bytes: u8,
        purpose: Purpose,
        may_retry: impl Fn(&KmsError) -> bool,
    ) -> Result<WrappedKey, KmsError> {
        let request = Request::GenerateDataKey(GenerateDataKey {
            master_key_id,
            key_bytes,
            options: self.options(purpose),
        });
        match self.call("GenerateDataKeyWithoutPlaintext", &request, may_retry)? {
            Reply::Generated {
                ciphertext_blob,
                master_key_arn,
                ..
            } => Ok(WrappedKey {
                ciphertext_blob,
                master_key_arn,
            }),
            _ => Err(KmsError::WrongReply),
        }
    }

    /// Asks the broker how the session stands; KMS is not called. For SHOW STATUS, which must not
    /// hang on a broker that does.
    pub fn session(&self) -> Result<SessionState, KmsError> {
        self.session_within(STATUS_PATIENCE)
    }

    /// Finds out whether there is a broker that speaks the same protocol.
    pub fn check_broker(&self) -> Result<(), KmsError> {
        self.session_within(self.call_patience).map(drop)
    }

    fn session_within(&self, patience: Duration) -> Result<SessionState, KmsError> {
        match self.ask(&Request::Session, patience)? {
            Reply::Session(state) => Ok(state),
            _ => Err(KmsError::WrongReply),
        }
    }

    fn call(
        &self,
        name: &str,
        request: &Request,
        may_retry: impl Fn(&KmsError) -> bool,
    ) -> Result<Reply, KmsError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.call_once(name, request) {
                Err(error) if error.is_retryable() && may_retry(&error) => {
                    self.counters.retries.fetch_add(1, Ordering::Relaxed);
                    self.log(LogLevel::Warn, || format!("{name} is tried again: {error}"));
                    // Half of it at random, so that many threads do not come back at once.
                    std::thread::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn call_once(&self, name: &str, request: &Request) -> Result<Reply, KmsError> {
        let start = Instant::now();
        let result = match self.ask(request, self.call_patience) {
            Ok(Reply::Failed(failure)) => Err(KmsError::Failed(failure)),
            Ok(Reply::Waiting(why)) => Err(KmsError::GivenUp(why)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(error.into()),
        };
        let microseconds = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        self.counters
            .latency_microseconds
            .fetch_add(microseconds, Ordering::Relaxed);
        match &result {
            Ok(reply) => self.log(LogLevel::Info, || {
                format!("{name} took {microseconds} us{}", request_of(reply))
            }),
            Err(error) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                self.log(LogLevel::Error, || {
                    format!("{name} took {microseconds} us and failed: {error}")
                });
            }
        }
        result
    }

    fn ask(&self, request: &Request, patience: Duration) -> Result<Reply, BrokerError> {
        #[cfg(feature = "mock")]
        if self.mock {
            return Ok(crate::mock::answer(request));
        }
        let waiting = |why: &str| self.waits.go_on(why);
        self.broker.request(request, patience, waiting)
    }

    fn log(&self, level: LogLevel, text: impl FnOnce() -> String) {
        if self.dynamic.logs(level) {
            match level {
                LogLevel::Error | LogLevel::Warn => server_log::warning(&text()),
                _ => server_log::note(&text()),
            }
        }
    }
}

fn request_of(reply: &Reply) -> String {
    match reply {
        Reply::Decrypted { request_id, .. } if request_id.is_empty() => {
            " (kept by the broker)".into()
        }
        Reply::Decrypted { request_id, .. } | Reply::Generated { request_id, .. } => {
            format!(" (request {request_id})")
        }
        _ => String::new(),
    }
}
