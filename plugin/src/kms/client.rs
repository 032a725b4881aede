//! KMS calls through the broker. They are counted, logged, and retried where that may help.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use broker_api::client::{BrokerClient, ClientError, Patience};
use broker_api::{
    Decrypt, Failure, FailureKind, FindKey, GenerateDataKey, GetKey, KeyContext, KmsSettings,
    ListKeys, MakeKey, Numbering, Reply, Request, SessionState, WaitPolicy,
};
use key_files::check_value::CheckValue;
use key_files::key_name::KeyName;
use key_files::{PlaintextKey, WrappedKey};

use crate::kms::counters::{Counters, FailureClass, Outcome};
use crate::kms::waiting::WaitMonitor;
use crate::server::log;
use crate::settings::{GlobalSettings, LogLevel, StartupSettings};

/// The time limit of a KMS call until the broker reports its own.
const DEFAULT_REQUEST_TIMEOUT_MILLISECONDS: u64 = 10_000;
/// How much longer the broker may take than the time limit of the KMS call itself.
const BROKER_MARGIN: Duration = Duration::from_secs(2);
/// How long a server that is waiting for a session also waits for a broker that has gone away. A package
/// upgrade restarts the broker, but a broken broker must not block the server for ever.
const BROKER_RETURN_PATIENCE: Duration = Duration::from_secs(10 * 60);
const BROKER_RETURN_PAUSE: Duration = Duration::from_secs(1);
const STATUS_PATIENCE: Duration = Duration::from_millis(200);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// KMS or the broker refused the request or failed.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// The broker did not answer.
    #[error(transparent)]
    Broker(#[from] ClientError),
    /// The statement was killed, or the server is shutting down.
    #[error("the statement was killed or the server is shutting down: {0}")]
    Interrupted(String),
    /// The reply does not belong to the request.
    #[error("the broker's reply does not match the request; see the broker's log")]
    WrongReply,
}

impl KmsError {
    /// Whether the same call may succeed a little later without anyone's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Failed(failure) => failure.kind.is_retryable(),
            Self::Broker(error) => error.is_retryable(),
            Self::WrongReply | Self::Interrupted(_) => false,
        }
    }

    /// Whether the call failed without a request leaving this host, so that another attempt costs nothing.
    pub fn is_local(&self) -> bool {
        self.needs_operator() || matches!(self, Self::Broker(error) if !error.is_retryable())
    }

    /// Whether every call fails until somebody enters an MFA code.
    pub fn needs_operator(&self) -> bool {
        match self {
            Self::Failed(failure) => failure.kind == FailureKind::SessionOver,
            Self::Interrupted(_) => true,
            _ => false,
        }
    }

    /// Whether KMS refuses this wrapped key, and not only this call.
    pub fn refuses_key(&self) -> bool {
        matches!(self, Self::Failed(failure) if failure.kind.refuses_key())
    }

    /// Whether KMS refuses every key of the same master key, as while that is disabled.
    pub fn refuses_master_key(&self) -> bool {
        matches!(self, Self::Failed(failure) if failure.kind == FailureKind::KeyUnusable)
    }

    /// How the status variables count this failure.
    fn class(&self) -> FailureClass {
        match self {
            Self::Failed(failure) => match failure.kind {
                FailureKind::SessionOver => FailureClass::SessionOver,
                FailureKind::AccessDenied => FailureClass::AccessDenied,
                FailureKind::KeyUnusable => FailureClass::KeyUnusable,
                FailureKind::NotFound => FailureClass::NotFound,
                FailureKind::InvalidCiphertext => FailureClass::InvalidCiphertext,
                FailureKind::NotAuthenticated => FailureClass::NotAuthenticated,
                FailureKind::Throttled => FailureClass::Throttled,
                FailureKind::Unavailable => FailureClass::Unavailable,
                FailureKind::InvalidRequest
                | FailureKind::Other
                | FailureKind::UnsupportedVersion => FailureClass::Other,
            },
            Self::Broker(_) => FailureClass::NoBroker,
            Self::Interrupted(_) => FailureClass::Interrupted,
            Self::WrongReply => FailureClass::Other,
        }
    }
}

/// Calls KMS.
pub struct KmsClient {
    broker: BrokerClient,
    settings: StartupSettings,
    /// Time limit of a KMS call, as the broker reports it.
    request_timeout_milliseconds: AtomicU64,
    /// Whether the broker gets the keys from a key server, as it reports.
    has_key_server: AtomicBool,
    /// Whether the broker has a key store, as it reports.
    has_key_store: AtomicBool,
    dynamic: &'static GlobalSettings,
    #[cfg(feature = "mock")]
    mock: bool,
    counters: Counters,
    waits: WaitMonitor,
}

/// How long a call may take.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// Whether the broker may wait for somebody to open a session.
    pub wait: WaitPolicy,
    /// When the call ends, whatever KMS does; `None`: only its own time limit counts.
    pub deadline: Option<Instant>,
    /// Whether to retry after this failure.
    pub may_retry: &'a dyn Fn(&KmsError) -> bool,
    /// Whether nobody needs the answer any more.
    pub is_interrupted: &'a dyn Fn() -> bool,
}

impl Limits<'_> {
    /// What a request says of the key that it is for. Numbers that are not known are 0.
    fn context(&self, key_id: u32, key_version: u32) -> KeyContext {
        KeyContext {
            key_id,
            key_version,
            wait: self.wait,
        }
    }
}

/// A data key that KMS has decrypted.
pub struct Unwrapped {
    /// The plaintext data key.
    pub key: PlaintextKey,
    /// ARN of the master key that wrapped it.
    pub master_key_arn: String,
}

/// A new data key, encrypted by KMS.
pub struct Generated {
    /// What goes into the key file.
    pub ciphertext_blob: Vec<u8>,
    /// ARN of the master key.
    pub master_key_arn: String,
}

impl KmsClient {
    /// Creates a client, which connects on its first call.
    pub fn new(settings: &StartupSettings, dynamic: &'static GlobalSettings) -> Self {
        Self {
            broker: BrokerClient::new(&settings.broker_socket),
            settings: settings.clone(),
            request_timeout_milliseconds: AtomicU64::new(DEFAULT_REQUEST_TIMEOUT_MILLISECONDS),
            has_key_server: AtomicBool::new(false),
            has_key_store: AtomicBool::new(false),
            dynamic,
            #[cfg(feature = "mock")]
            mock: settings.mock,
            counters: Counters::default(),
            waits: WaitMonitor::default(),
        }
    }

    /// Decrypts a key version. If the wrapped key is empty, a key server keeps it and is asked for the key.
    ///
    /// `check_value` lets the broker find the key in its cache even if the key has been rewrapped since. The
    /// caller must compare the key with it.
    pub fn decrypt(
        &self,
        ciphertext_blob: Vec<u8>,
        check_value: Option<CheckValue>,
        (key_id, key_version): (u32, u32),
        limits: &Limits<'_>,
    ) -> Result<Unwrapped, KmsError> {
        let context = limits.context(key_id, key_version);
        let request = match ciphertext_blob.is_empty() {
            true => Request::GetKey(GetKey { context }),
            false => Request::Decrypt(Decrypt {
                ciphertext_blob,
                check_value: check_value.map(CheckValue::to_bytes),
                context,
            }),
        };
        match self.call(&request, limits)? {
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

    /// Makes KMS generate and encrypt a new data key of `key_bytes` bytes.
    pub fn generate(
        &self,
        master_key_id: String,
        key_bytes: u8,
        key_id: u32,
        limits: &Limits<'_>,
    ) -> Result<Generated, KmsError> {
        let request = Request::GenerateDataKey(GenerateDataKey {
            master_key_id,
            key_bytes,
            context: limits.context(key_id, 0),
        });
        match self.call(&request, limits)? {
            Reply::Generated {
                ciphertext_blob,
                master_key_arn,
                ..
            } => Ok(Generated {
                ciphertext_blob,
                master_key_arn,
            }),
            _ => Err(KmsError::WrongReply),
        }
    }

    /// Where the broker's key store is; `None` if it has none. Asks each time: the broker may have been
    /// restarted with another configuration.
    pub fn key_store(&self, limits: &Limits<'_>) -> Result<Option<String>, KmsError> {
        let state = self.session_within(self.patience(limits))?;
        Ok(state.key_store)
    }

    /// Whether the broker gets the keys from a key server, so that there are no key files. Known once it has been asked
    /// for its key store.
    pub fn has_key_server(&self) -> bool {
        self.has_key_server.load(Ordering::Relaxed)
    }

    /// Whether the broker has a key store, as of the last time that it was asked.
    pub fn has_key_store(&self) -> bool {
        self.has_key_store.load(Ordering::Relaxed)
    }

    /// Finds a version of a key in the key store, or its highest version.
    pub fn find_key(
        &self,
        key_id: u32,
        version: Option<u32>,
        limits: &Limits<'_>,
    ) -> Result<Option<WrappedKey>, KmsError> {
        let request = Request::FindKey(FindKey {
            version,
            context: limits.context(key_id, version.unwrap_or(0)),
        });
        match self.call(&request, limits)? {
            Reply::Stored { key: None, .. } => Ok(None),
            Reply::Stored { key: Some(key), .. }
                if is_answer(&key, key_id) && version.is_none_or(|it| it == key.name.version) =>
            {
                Ok(Some(key))
            }
            _ => Err(KmsError::WrongReply),
        }
    }

    /// Makes a key in the key store. Returns whether it is new: with [`Numbering::First`], the key store may
    /// have had the key already.
    pub fn make_key(
        &self,
        master_key_id: String,
        key_bytes: u8,
        (key_id, numbering): (u32, Numbering),
        limits: &Limits<'_>,
    ) -> Result<(WrappedKey, bool), KmsError> {
        let request = Request::MakeKey(MakeKey {
            generate: GenerateDataKey {
                master_key_id,
                key_bytes,
                context: limits.context(key_id, 0),
            },
            numbering,
        });
        match self.call(&request, limits)? {
            Reply::Stored {
                key: Some(key),
                is_new,
                ..
            } if is_answer(&key, key_id) => Ok((key, is_new)),
            _ => Err(KmsError::WrongReply),
        }
    }

    /// Lists names and check values of all keys in the key store.
    pub fn list_keys(&self, limits: &Limits<'_>) -> Result<Vec<(KeyName, CheckValue)>, KmsError> {
        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let context = limits.context(0, 0);
            let request = Request::ListKeys(ListKeys { after, context });
            let Reply::KeyList { keys, next } = self.call(&request, limits)? else {
                return Err(KmsError::WrongReply);
            };
            listed.extend(keys);
            if next.is_none() {
                return Ok(listed);
            }
            // A list that does not go on would never end.
            if next <= after {
                return Err(KmsError::WrongReply);
            }
            after = next;
        }
    }

    /// Counts the calls, for the status variables.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Keeps track of calls that wait for a session.
    pub fn waits(&self) -> &WaitMonitor {
        &self.waits
    }

    /// Asks the broker for the state of its session, without a call to KMS. Times out soon, because SHOW
    /// STATUS must not hang.
    pub fn session(&self) -> Result<SessionState, KmsError> {
        self.session_within(STATUS_PATIENCE.into())
    }

    /// Checks that a broker answers and understands this plugin. Warns about variables that differ from the
    /// broker's configuration.
    pub fn check_broker(&self) -> Result<(), KmsError> {
        let state = self.session_within(self.call_patience().into())?;
        for warning in without_effect(&self.settings, &state.kms) {
            log::warning(&warning);
        }
        Ok(())
    }

    /// How long the broker may stay silent during a KMS call: a little longer than its own time limit.
    pub fn call_patience(&self) -> Duration {
        let milliseconds = self.request_timeout_milliseconds.load(Ordering::Relaxed);
        Duration::from_millis(milliseconds).saturating_add(BROKER_MARGIN)
    }

    fn patience<'a>(&self, limits: &Limits<'a>) -> Patience<'a> {
        Patience {
            silence: self.call_patience(),
            deadline: limits.deadline,
            is_interrupted: limits.is_interrupted,
        }
    }

    fn session_within(&self, patience: Patience<'_>) -> Result<SessionState, KmsError> {
        match self
            .ask(&Request::Session, patience)
            .map_err(no_answer("Session"))?
        {
            Reply::Session(state) => {
                self.has_key_server
                    .store(state.has_key_server, Ordering::Relaxed);
                self.has_key_store
                    .store(state.key_store.is_some(), Ordering::Relaxed);
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

    fn call(&self, request: &Request, limits: &Limits<'_>) -> Result<Reply, KmsError> {
        let name = request.call().map_or("", |(name, _)| name);
        let mut pause = FIRST_PAUSE;
        loop {
            match self.call_once(name, request, limits) {
                Err(error) if error.is_retryable() && (limits.may_retry)(&error) => {
                    // Half of the pause is random, so that many threads do not retry at the same moment.
                    let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                    let is_late = |end| Instant::now() + jittered >= end;
                    if limits.deadline.is_some_and(is_late) || (limits.is_interrupted)() {
                        return Err(error);
                    }
                    self.counters.count_retry();
                    self.log(LogLevel::Warn, || format!("retrying {name}: {error}"));
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
            Ok(Reply::Waiting(waiting)) => Err(KmsError::Interrupted(waiting.message)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(no_answer(name)(error)),
        };
        if let Err(KmsError::Broker(ClientError::TimedOut { .. })) = &result {
            // The broker may have been restarted with a different time limit. If it does not answer, the
            // known limit stays.
            let _ = self.session();
        }
        let duration = start.elapsed();
        self.counters.count(outcome(&result), duration);
        let microseconds = duration.as_micros();
        match &result {
            Ok(reply) => self.log(LogLevel::Info, || {
                format!("{name} took {microseconds} us{}", request_of(reply))
            }),
            Err(error) => self.log(LogLevel::Error, || {
                format!("{name} took {microseconds} us and failed: {error}")
            }),
        }
        result
    }

    /// Asks the broker. A starting server that is waiting for a session also waits while the broker is being
    /// restarted.
    fn ask_through_restarts(
        &self,
        request: &Request,
        limits: &Limits<'_>,
    ) -> Result<Reply, ClientError> {
        let mut gone_since: Option<Instant> = None;
        loop {
            let error = match self.ask(request, self.patience(limits)) {
                Err(error) if error.is_absence() && self.waits.is_start_waiting() => error,
                answered => return answered,
            };
            let now = Instant::now();
            // Counted from the last time that the broker reported a wait.
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

fn no_answer(name: &str) -> impl Fn(ClientError) -> KmsError {
    move |error| match error {
        ClientError::Interrupted => KmsError::Interrupted(format!("no answer to {name} so far")),
        error => error.into(),
    }
}

fn is_answer(key: &WrappedKey, id: u32) -> bool {
    (key.is_valid() || key.is_on_key_server()) && key.name.id == id
}

/// Returns a warning for each variable that the stock plugin used for its own KMS calls and that is set to
/// something other than what the broker uses.
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

fn outcome(result: &Result<Reply, KmsError>) -> Outcome {
    match result {
        Ok(Reply::Decrypted { request_id, .. } | Reply::Generated { request_id, .. })
            if !request_id.is_empty() =>
        {
            Outcome::ByKms
        }
        Ok(Reply::Stored { is_new: true, .. }) => Outcome::ByKms,
        Ok(_) => Outcome::WithoutKms,
        Err(error) => Outcome::Failed(error.class()),
    }
}

fn request_of(reply: &Reply) -> String {
    match reply {
        Reply::Decrypted { request_id, .. } if request_id.is_empty() => {
            " (from the broker's cache)".into()
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

    fn broker_settings() -> KmsSettings {
        KmsSettings {
            region: "us-east-1".into(),
            endpoint_url: Some("http://127.0.0.1:4566".into()),
            request_timeout_milliseconds: 10_000,
        }
    }

    #[test]
    fn variables_that_match_the_broker_or_are_unset_give_no_warning() {
        let settings = StartupSettings {
            region: "us-east-1".into(),
            endpoint_url: "http://127.0.0.1:4566/".into(),
            request_timeout_milliseconds: 10_000,
            ..StartupSettings::default()
        };
        assert!(without_effect(&settings, &broker_settings()).is_empty());
        assert!(without_effect(&StartupSettings::default(), &broker_settings()).is_empty());
    }

    #[test]
    fn a_warning_names_each_variable_without_effect_and_what_to_set_instead() {
        let settings = StartupSettings {
            region: "eu-west-1".into(),
            endpoint_url: "http://127.0.0.1:1".into(),
            request_timeout_milliseconds: 500,
            ..StartupSettings::default()
        };
        let warnings = without_effect(&settings, &broker_settings());
        let prefixes = [
            "aws_key_management_region has no effect: the broker calls KMS in us-east-1; set region in",
            "aws_key_management_endpoint_url has no effect: the broker calls KMS at http://127.0.0.1:4566; set AWS_ENDPOINT_URL_KMS in",
            "aws_key_management_request_timeout has no effect: the broker's time limit is 10000 ms; set request_timeout_seconds in",
        ];
        assert_eq!(warnings.len(), prefixes.len());
        for (warning, prefix) in warnings.iter().zip(prefixes) {
            assert!(warning.starts_with(prefix), "{warning}");
        }
    }
}
