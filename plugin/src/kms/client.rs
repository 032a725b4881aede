//! KMS calls through the broker: counted, logged, and repeated where that may help.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use broker_api::client::{BrokerClient, ClientError, Patience};
use broker_api::{
    Decrypt, Failure, FailureKind, GenerateDataKey, KeyContext, KmsSettings, Reply, Request,
    SessionState, WaitPolicy,
};
use key_store::PlaintextKey;
use key_store::check_value::CheckValue;

use crate::kms::waiting::WaitMonitor;
use crate::server::log;
use crate::settings::{GlobalSettings, LogLevel, StartupSettings};

/// The time limit of a KMS call, until the broker has told its own.
const DEFAULT_REQUEST_TIMEOUT_MILLISECONDS: u64 = 10_000;
/// What the broker may take beyond the time limit of the KMS call itself.
const BROKER_MARGIN: Duration = Duration::from_secs(2);
/// How long a server that waits for a session waits for a broker that is gone: a package upgrade
/// restarts it, and a defect should not stop a server for ever.
const BROKER_RETURN_PATIENCE: Duration = Duration::from_secs(10 * 60);
const BROKER_RETURN_PAUSE: Duration = Duration::from_secs(1);
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
    Broker(#[from] ClientError),
    /// The statement was killed, or the server told to end.
    #[error("the statement was killed or the server is shutting down: {0}")]
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
        self.is_for_a_person() || matches!(self, Self::Broker(error) if !error.is_retryable())
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
pub struct KmsClient {
    broker: BrokerClient,
    settings: StartupSettings,
    /// Time limit of a KMS call, as the broker has it.
    request_timeout_milliseconds: AtomicU64,
    dynamic: &'static GlobalSettings,
    #[cfg(feature = "mock")]
    mock: bool,
    /// For the status variables.
    pub counters: Counters,
    /// The calls that waited for a person.
    pub waits: WaitMonitor,
}

/// How long a call may go on.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// Whether the broker may wait for somebody to open a session.
    pub wait: WaitPolicy,
    /// When the call ends, whatever KMS does; `None`: only its own time limit counts.
    pub deadline: Option<Instant>,
    /// Whether to repeat a call that failed like this.
    pub may_retry: &'a dyn Fn(&KmsError) -> bool,
    /// Whether nobody wants the answer any more.
    pub is_interrupted: &'a dyn Fn() -> bool,
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

impl KmsClient {
    /// Connects at the first call.
    pub fn new(settings: &StartupSettings, dynamic: &'static GlobalSettings) -> Self {
        Self {
            broker: BrokerClient::new(&settings.broker_socket),
            settings: settings.clone(),
            request_timeout_milliseconds: AtomicU64::new(DEFAULT_REQUEST_TIMEOUT_MILLISECONDS),
            dynamic,
            #[cfg(feature = "mock")]
            mock: settings.mock,
            counters: Counters::default(),
            waits: WaitMonitor::default(),
        }
    }

    /// Unwraps a version of a key.
    ///
    /// With `check_value` the broker finds a key that it has kept, however it is wrapped now; whether
    /// the key is that one is for the caller to compare.
    pub fn decrypt(
        &self,
        ciphertext_blob: Vec<u8>,
        check_value: Option<CheckValue>,
        (key_id, key_version): (u32, u32),
        limits: &Limits<'_>,
    ) -> Result<Unwrapped, KmsError> {
        let request = Request::Decrypt(Decrypt {
            ciphertext_blob,
            check_value: check_value.map(CheckValue::to_bytes),
            context: KeyContext {
                key_id,
                key_version,
                wait: limits.wait,
            },
        });
        match self.call("Decrypt", &request, limits)? {
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

    /// Has a new version of a key made and wrapped, of `key_bytes`.
    pub fn generate(
        &self,
        master_key_id: String,
        key_bytes: u8,
        key_id: u32,
        limits: &Limits<'_>,
    ) -> Result<WrappedKey, KmsError> {
        let request = Request::GenerateDataKey(GenerateDataKey {
            master_key_id,
            key_bytes,
            context: KeyContext {
                key_id,
                key_version: 0,
                wait: limits.wait,
            },
        });
        match self.call("GenerateDataKeyWithoutPlaintext", &request, limits)? {
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

    /// Asks the broker for the state of the session; KMS is not called. For SHOW STATUS, which must
    /// not hang on a broker that does.
    pub fn session(&self) -> Result<SessionState, KmsError> {
        self.session_within(STATUS_PATIENCE)
    }

    /// Checks that there is a broker that understands this plugin, and warns of variables that it
    /// does not follow.
    pub fn check_broker(&self) -> Result<(), KmsError> {
        let state = self.session_within(self.call_patience())?;
        for warning in without_effect(&self.settings, &state.kms) {
            log::warning(&warning);
        }
        Ok(())
    }

    /// The longest silence of the broker during a call of KMS: somewhat longer than its own time
    /// limit.
    pub fn call_patience(&self) -> Duration {
        let milliseconds = self.request_timeout_milliseconds.load(Ordering::Relaxed);
        Duration::from_millis(milliseconds).saturating_add(BROKER_MARGIN)
    }

    fn session_within(&self, patience: Duration) -> Result<SessionState, KmsError> {
        match self.ask(&Request::Session, patience.into())? {
            Reply::Session(state) => {
                let milliseconds = state.kms.request_timeout_milliseconds;
                if milliseconds > 0 {
                    self.request_timeout_milliseconds
                        .store(milliseconds, Ordering::Relaxed);
                }
                Ok(state)
            }
            Reply::Failed(failure) => Err(KmsError::Failed(failure)),
            _ => Err(KmsError::WrongReply),
        }
    }

    fn call(&self, name: &str, request: &Request, limits: &Limits<'_>) -> Result<Reply, KmsError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.call_once(name, request, limits) {
                Err(error) if error.is_retryable() && (limits.may_retry)(&error) => {
                    // Half of it at random, so that many threads do not come back at once.
                    let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                    let is_late = |end| Instant::now() + jittered >= end;
                    if limits.deadline.is_some_and(is_late) || (limits.is_interrupted)() {
                        return Err(error);
                    }
                    self.counters.retries.fetch_add(1, Ordering::Relaxed);
                    self.log(LogLevel::Warn, || format!("{name} is tried again: {error}"));
                    std::thread::sleep(jittered);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn call_once(
        &self,
        name: &str,
        request: &Request,
        limits: &Limits<'_>,
    ) -> Result<Reply, KmsError> {
        let start = Instant::now();
        let result = match self.ask_through_restarts(request, limits) {
            Ok(Reply::Failed(failure)) => Err(KmsError::Failed(failure)),
            Ok(Reply::Waiting(waiting)) => Err(KmsError::GivenUp(waiting.message)),
            Ok(reply) => Ok(reply),
            Err(ClientError::Interrupted) => Err(KmsError::GivenUp(format!(
                "KMS had not answered {name} yet"
            ))),
            Err(error) => Err(error.into()),
        };
        if let Err(KmsError::Broker(ClientError::TimedOut { .. })) = &result {
            // It may have been restarted with another time limit. If it does not answer, that stays.
            let _ = self.session();
        }
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

    /// While a starting server waits for a session, it waits for a broker that is restarted too.
    fn ask_through_restarts(
        &self,
        request: &Request,
        limits: &Limits<'_>,
    ) -> Result<Reply, ClientError> {
        let mut gone_since: Option<Instant> = None;
        loop {
            let patience = Patience {
                silence: self.call_patience(),
                deadline: limits.deadline,
                is_interrupted: limits.is_interrupted,
            };
            let error = match self.ask(request, patience) {
                Err(error) if error.is_absence() && self.waits.is_start_waiting() => error,
                answered => return answered,
            };
            let now = Instant::now();
            // Since it last said that it waits.
            let since = gone_since.max(self.waits.last()).unwrap_or(now);
            gone_since = Some(since);
            if now - since >= BROKER_RETURN_PATIENCE || (limits.is_interrupted)() {
                return Err(error);
            }
            self.waits.note_gone(&error);
            std::thread::sleep(BROKER_RETURN_PAUSE);
        }
    }

    fn ask(&self, request: &Request, patience: Patience<'_>) -> Result<Reply, ClientError> {
        #[cfg(feature = "mock")]
        if self.mock {
            return Ok(crate::kms::mock::answer(request));
        }
        self.broker.request(request, patience, |waiting| {
            self.waits.note(waiting);
            !(patience.is_interrupted)()
        })
    }

    fn log(&self, level: LogLevel, text: impl FnOnce() -> String) {
        if self.dynamic.logs(level) {
            match level {
                LogLevel::Error | LogLevel::Warn => log::warning(&text()),
                _ => log::note(&text()),
            }
        }
    }
}

/// The variables that were for a plugin which calls KMS itself, where they are set and the broker does
/// something else.
fn without_effect(settings: &StartupSettings, kms: &KmsSettings) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |variable: &str, what_the_broker_does: String, instead: &str| {
        warnings.push(format!(
            "aws_key_management_{variable} has no effect: {what_the_broker_does}; set {instead} and restart the broker, or remove the variable"
        ));
    };
    if !settings.region.is_empty() && settings.region != kms.region {
        warn(
            "region",
            format!("the broker calls KMS in {}", kms.region),
            "region in the broker's configuration",
        );
    }
    let endpoint_url = kms.endpoint_url.as_deref().unwrap_or_default();
    let wanted = settings.endpoint_url.trim_end_matches('/');
    if !wanted.is_empty() && wanted != endpoint_url.trim_end_matches('/') {
        let endpoint_url = kms.endpoint_url.as_deref().unwrap_or("AWS's own endpoint");
        warn(
            "endpoint_url",
            format!("the broker calls KMS at {endpoint_url}"),
            "AWS_ENDPOINT_URL_KMS in the broker's environment",
        );
    }
    let wanted = u64::from(settings.request_timeout_milliseconds);
    if wanted > 0 && wanted != kms.request_timeout_milliseconds {
        warn(
            "request_timeout",
            format!(
                "the broker's time limit is {} ms",
                kms.request_timeout_milliseconds
            ),
            "request_timeout_seconds in the broker's configuration",
        );
    }
    warnings
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of_broker() -> KmsSettings {
        KmsSettings {
            region: "us-east-1".into(),
            endpoint_url: Some("http://127.0.0.1:4566".into()),
            request_timeout_milliseconds: 10_000,
        }
    }

    #[test]
    fn variables_that_agree_with_the_broker_or_are_not_set_are_fine() {
        let settings = StartupSettings {
            region: "us-east-1".into(),
            endpoint_url: "http://127.0.0.1:4566/".into(),
            request_timeout_milliseconds: 10_000,
            ..StartupSettings::default()
        };
        assert!(without_effect(&settings, &of_broker()).is_empty());
        assert!(without_effect(&StartupSettings::default(), &of_broker()).is_empty());
    }

    #[test]
    fn variables_without_effect_are_named_with_what_to_set_instead() {
        let settings = StartupSettings {
            region: "eu-west-1".into(),
            endpoint_url: "http://127.0.0.1:1".into(),
            request_timeout_milliseconds: 500,
            ..StartupSettings::default()
        };
        let warnings = without_effect(&settings, &of_broker());
        let beginnings = [
            "aws_key_management_region has no effect: the broker calls KMS in us-east-1; set region in",
            "aws_key_management_endpoint_url has no effect: the broker calls KMS at http://127.0.0.1:4566; set AWS_ENDPOINT_URL_KMS in",
            "aws_key_management_request_timeout has no effect: the broker's time limit is 10000 ms; set request_timeout_seconds in",
        ];
        assert_eq!(warnings.len(), beginnings.len());
        for (warning, beginning) in warnings.iter().zip(beginnings) {
            assert!(warning.starts_with(beginning), "{warning}");
        }
    }
}
