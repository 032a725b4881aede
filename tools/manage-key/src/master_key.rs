//! The KMS calls for the master key itself.
//!
//! Sources: <https://docs.aws.amazon.com/kms/latest/APIReference/API_DescribeKey.html>,
//! <https://docs.aws.amazon.com/kms/latest/APIReference/API_EnableKey.html>,
//! <https://docs.aws.amazon.com/kms/latest/APIReference/API_DisableKey.html>.

use std::{
    io,
    os::fd::BorrowedFd,
    thread,
    time::{Duration, Instant},
};

use aws_sdk_kms::{
    Client,
    operation::RequestId,
    types::{KeyMetadata, KeyState},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use broker_api::{Failure, FailureKind};
use tokio::runtime::Runtime;

use aws_session::{
    aws_error::kms_failure,
    clock::{unix_seconds_now, utc_text},
    credentials::Credentials,
    interrupt::{sleep_until, unless_readable},
    master_key_id::MasterKeyId,
    settings::{self, Settings},
    sts,
};

/// A change of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It can be used.
    Enable,
    /// Nobody may use it.
    Disable,
}

impl Change {
    /// Returns the operation of KMS.
    pub fn operation(self) -> &'static str {
        match self {
            Self::Enable => "EnableKey",
            Self::Disable => "DisableKey",
        }
    }

    /// Returns the resulting state.
    pub fn state(self) -> KeyState {
        match self {
            Self::Enable => KeyState::Enabled,
            Self::Disable => KeyState::Disabled,
        }
    }
}

/// Why a call failed.
#[derive(Debug)]
pub enum CallError {
    /// The interrupt descriptor became readable.
    Interrupted,
    /// KMS refused it, or could not be reached.
    Failed(Failure),
}

/// What KMS says of the key.
pub struct Description {
    /// ARN of the key, even if it was named by an alias.
    pub arn: String,
    /// Whether it can be used, or why not.
    pub state: KeyState,
    deletion_unix_seconds: Option<i64>,
}

impl Description {
    fn of(metadata: KeyMetadata) -> Self {
        Self {
            arn: metadata.arn.unwrap_or(metadata.key_id),
            state: metadata.key_state.unwrap_or_else(|| "unknown".into()),
            deletion_unix_seconds: metadata.deletion_date.map(|date| date.secs()),
        }
    }

    /// Returns when the key will be deleted, as RFC 3339 in UTC, if its deletion is scheduled.
    pub fn deletion_text(&self) -> Option<String> {
        self.deletion_unix_seconds.map(utc_text)
    }

    /// Returns the ARN if the key can be changed; else why not, and what to do.
    pub fn changeable(self) -> Result<String, String> {
        match (&self.state, self.advice()) {
            (
                KeyState::PendingDeletion
                | KeyState::PendingReplicaDeletion
                | KeyState::PendingImport,
                Some(advice),
            ) => Err(format!(
                "{} is {} and nothing was changed: {advice}",
                self.arn,
                self.state.as_str()
            )),
            _ => Ok(self.arn),
        }
    }

    /// Says what to do about a key that is neither enabled nor disabled.
    ///
    /// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html>.
    pub fn advice(&self) -> Option<String> {
        let arn = &self.arn;
        match &self.state {
            KeyState::Enabled | KeyState::Disabled => None,
            KeyState::PendingDeletion | KeyState::PendingReplicaDeletion => Some(format!(
                "it will be deleted{}; to keep it, run aws kms cancel-key-deletion --key-id {arn} and then enable it",
                self.deletion_text()
                    .map_or_else(String::new, |date| format!(" at {date}"))
            )),
            KeyState::PendingImport => Some(format!(
                "its key material is missing; import it (aws kms import-key-material --key-id {arn})"
            )),
            KeyState::Unavailable => Some(
                "its custom key store is not connected; connect it (aws kms connect-custom-key-store)"
                    .into(),
            ),
            _ => Some("KMS is still working on it; try again in a minute".into()),
        }
    }
}

/// A change that KMS has accepted.
pub struct AcceptedChange {
    /// The id of the call in CloudTrail.
    pub request_id: String,
    /// When, in seconds since 1970-01-01 UTC by this host's clock.
    pub unix_seconds: i64,
}

/// The master key, with a session.
pub struct MasterKey<'a> {
    runtime: Runtime,
    client: Client,
    /// Shared with STS, because it holds the CA certificates.
    http_client: SharedHttpClient,
    aws: &'a Settings,
    session: &'a Credentials,
    interrupt: Option<BorrowedFd<'a>>,
}

impl<'a> MasterKey<'a> {
    /// Calls go to the region of `key` if it names one, else to that of `aws`. They fail with
    /// [`CallError::Interrupted`] when `interrupt` becomes readable.
    pub fn open(
        aws: &'a Settings,
        session: &'a Credentials,
        key: &MasterKeyId,
        interrupt: Option<BorrowedFd<'a>>,
    ) -> io::Result<Self> {
        let runtime = settings::runtime()?;
        let http_client = aws.http_client();
        let of_key = aws.in_region(key.region());
        let client = Client::new(&of_key.sdk_config_with(Some(session), http_client.clone()));
        Ok(Self {
            runtime,
            client,
            http_client,
            aws,
            session,
            interrupt,
        })
    }

    /// Returns the caller's ARN and the description of `key`.
    pub fn look(&self, key: &str) -> (String, Result<Description, CallError>) {
        let both = async {
            tokio::join!(
                sts::identify(self.aws, self.session, self.http_client.clone()),
                self.describing(key)
            )
        };
        match self.run(both) {
            Some((caller, description)) => (
                caller.unwrap_or_else(|why| format!("an unknown caller ({why})")),
                description.map_err(CallError::Failed),
            ),
            None => (String::new(), Err(CallError::Interrupted)),
        }
    }

    /// Describes `key`.
    pub fn describe(&self, key: &str) -> Result<Description, CallError> {
        self.run(self.describing(key))
            .ok_or(CallError::Interrupted)?
            .map_err(CallError::Failed)
    }

    /// Requests `change` of the key with this id or ARN.
    pub fn change(&self, key: &str, change: Change) -> Result<AcceptedChange, CallError> {
        let call = async {
            let session_over = || self.session_over();
            match change {
                Change::Enable => {
                    let answer = self.client.enable_key().key_id(key).send().await;
                    answer
                        .map(|answer| answer.request_id().map(str::to_owned))
                        .map_err(|error| kms_failure(change.operation(), &error, session_over))
                }
                Change::Disable => {
                    let answer = self.client.disable_key().key_id(key).send().await;
                    answer
                        .map(|answer| answer.request_id().map(str::to_owned))
                        .map_err(|error| kms_failure(change.operation(), &error, session_over))
                }
            }
        };
        let request_id = self
            .run(call)
            .ok_or(CallError::Interrupted)?
            .map_err(CallError::Failed)?;
        Ok(AcceptedChange {
            request_id: request_id.unwrap_or_else(|| "unknown".into()),
            unix_seconds: unix_seconds_now(),
        })
    }

    /// Waits. Returns true if interrupted.
    pub fn pause(&self, duration: Duration) -> bool {
        match self.interrupt {
            Some(interrupt) => sleep_until(Instant::now() + duration, interrupt),
            None => {
                thread::sleep(duration);
                false
            }
        }
    }

    async fn describing(&self, key: &str) -> Result<Description, Failure> {
        let answer = self.client.describe_key().key_id(key).send().await;
        let answer =
            answer.map_err(|error| kms_failure("DescribeKey", &error, || self.session_over()))?;
        answer
            .key_metadata
            .map(Description::of)
            .ok_or_else(|| Failure {
                kind: FailureKind::Other,
                message: "KMS DescribeKey answered without KeyMetadata".into(),
            })
    }

    fn run<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        match self.interrupt {
            Some(interrupt) => self.runtime.block_on(unless_readable(interrupt, call)),
            None => Some(self.runtime.block_on(call)),
        }
    }

    fn session_over(&self) -> Failure {
        Failure {
            kind: FailureKind::SessionOver,
            message: format!("the session ended at {}", self.session.expiration_text()),
        }
    }
}
