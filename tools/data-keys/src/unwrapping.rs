//! Decryption of key files: at KMS, or through a running broker.

use std::{cell::Cell, path::PathBuf, sync::Arc, time::Duration};

use broker_api::{
    Decrypt, Failure, FailureKind, GetKey, KeyContext, Reply, Request, SessionState, WaitPolicy,
    WaitReason, Waiting, client::BrokerClient,
};
use clap::Args;
use key_files::{
    key_directory::{KeyDirectory, Listing},
    key_name::KeyName,
};

use crate::{
    DataKeysError,
    access::{Access, AccessArguments},
    regional_kms::{MAX_ATTEMPTS, RegionalKms, Unwrapped},
};

/// How much longer than the time limit of a KMS call a broker may take, and how long it may take to
/// report that limit.
pub(crate) const BROKER_MARGIN: Duration = Duration::from_secs(10);
/// How long it may take if it has not reported the limit.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(60);

/// Pauses before a retry: they double, as those of the SDK do.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(20);
/// Retries of one run, not counting throttled calls; as many as the SDK makes.
const MAX_RETRIES: u32 = 100;

/// Who decrypts the keys.
#[derive(Debug, Args)]
pub(crate) struct UnwrapperArguments {
    #[command(flatten)]
    pub access: AccessArguments,

    /// Ask a running broker; this needs no code
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub broker_socket: Option<PathBuf>,
}

/// Why a key was not decrypted.
pub(crate) struct NotUnwrapped {
    pub problem: Problem,
    /// Names the file, and says why and what to do.
    pub message: String,
}

/// What that says about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The master key is disabled, pending deletion or of the wrong kind.
    MasterKeyUnusable,
    /// The file cannot be used, or KMS does not decrypt it.
    Failed,
    /// Nothing: nobody has looked at it, because the file may not be read, or nobody answered, or wants another code
    /// or access key first.
    NotChecked,
}

impl Problem {
    fn of(kind: FailureKind) -> Self {
        match kind {
            FailureKind::KeyUnusable => Self::MasterKeyUnusable,
            FailureKind::SessionOver
            | FailureKind::NotAuthenticated
            | FailureKind::Throttled
            | FailureKind::Unavailable
            | FailureKind::UnsupportedVersion => Self::NotChecked,
            FailureKind::AccessDenied
            | FailureKind::NotFound
            | FailureKind::InvalidCiphertext
            | FailureKind::InvalidRequest
            | FailureKind::Other => Self::Failed,
        }
    }
}

impl From<Failure> for NotUnwrapped {
    fn from(failure: Failure) -> Self {
        Self {
            problem: Problem::of(failure.kind),
            message: failure.message,
        }
    }
}

/// Who decrypts the keys.
pub(crate) enum Unwrapper {
    /// KMS itself.
    RegionalKms(RegionalKms),
    /// A broker.
    Broker(Broker),
}

/// A running broker, asked for one key after another.
pub(crate) struct Broker {
    client: Arc<BrokerClient>,
    /// The time limit for a key.
    patience: Duration,
    /// Whether it gets its keys from a key server; `None`: it does not answer.
    has_key_server: Option<bool>,
    retries_left: Cell<u32>,
}

impl UnwrapperArguments {
    /// Gets the credentials, or connects to the broker at the first call.
    pub fn open(&self) -> Result<Unwrapper, DataKeysError> {
        Ok(self.open_with_access()?.0)
    }

    /// The same, and the credentials, if there is no broker.
    pub fn open_with_access(&self) -> Result<(Unwrapper, Option<Access>), DataKeysError> {
        match &self.broker_socket {
            Some(socket) => {
                let broker = Broker::new(BrokerClient::new(socket));
                Ok((Unwrapper::Broker(broker), None))
            }
            None => {
                let access = self.access.open()?;
                let kms = RegionalKms::new(&access, None);
                Ok((Unwrapper::RegionalKms(kms), Some(access)))
            }
        }
    }
}

impl Unwrapper {
    /// Decrypts a key file. The error names the file and says why it failed and what to do.
    pub async fn unwrap(
        &self,
        directory: &KeyDirectory,
        name: &KeyName,
    ) -> Result<Unwrapped, String> {
        let unwrapped = self.try_unwrap(directory, name).await;
        unwrapped.map_err(|not| not.message)
    }

    /// The same, and what a failure says about the key.
    pub async fn try_unwrap(
        &self,
        directory: &KeyDirectory,
        name: &KeyName,
    ) -> Result<Unwrapped, NotUnwrapped> {
        let blob = directory.read(name).map_err(|error| NotUnwrapped {
            problem: match error.is_denied() {
                true => Problem::NotChecked,
                false => Problem::Failed,
            },
            message: error.to_string(),
        })?;
        let unwrapped = match self {
            Self::RegionalKms(kms) => kms.decrypt(&blob, None).await.map_err(Into::into),
            Self::Broker(broker) => {
                let request = Request::Decrypt(Decrypt {
                    ciphertext_blob: blob,
                    check_value: None,
                    context: context(name),
                });
                broker.ask(request).await
            }
        };
        unwrapped.map_err(|not: NotUnwrapped| NotUnwrapped {
            message: failed(directory, name, &not.message),
            ..not
        })
    }

    /// The broker, if this host gets its keys from a key server, so that there need be no key files. A host without any may
    /// be one if its broker does not answer.
    pub fn of_key_server(&self, listing: &Listing) -> Option<&Broker> {
        match self {
            Self::Broker(broker) => broker
                .has_key_server
                .unwrap_or(listing.keys.is_empty())
                .then_some(broker),
            Self::RegionalKms(_) => None,
        }
    }
}

fn context(name: &KeyName) -> KeyContext {
    KeyContext {
        key_id: name.id,
        key_version: name.version,
        // No tool takes a key away from the server.
        wait: WaitPolicy::Monitor,
    }
}

impl Broker {
    /// Learns its time limit. (If it cannot be reached, the first key shows it.)
    fn new(client: BrokerClient) -> Self {
        let state = match client.request(&Request::Session, BROKER_MARGIN, |_| false) {
            Ok(Reply::Session(state)) => Some(state),
            _ => None,
        };
        let limit = |state: &SessionState| {
            let limit = Duration::from_millis(state.kms.request_timeout_milliseconds);
            limit.saturating_add(BROKER_MARGIN)
        };
        Self {
            client: Arc::new(client),
            patience: state.as_ref().map_or(DEFAULT_PATIENCE, limit),
            has_key_server: state.map(|state| state.has_key_server),
            retries_left: Cell::new(MAX_RETRIES),
        }
    }

    /// Gets a key from the key server. The error names the key.
    pub async fn get(&self, name: &KeyName) -> Result<Unwrapped, NotUnwrapped> {
        let context = context(name);
        let got = self.ask(Request::GetKey(GetKey { context })).await;
        got.map_err(|not| NotUnwrapped {
            message: format!("{name}: {}", not.message),
            ..not
        })
    }

    /// Retries what may succeed a little later, as [`RegionalKms`] does: the broker itself calls KMS once.
    async fn ask(&self, request: Request) -> Result<Unwrapped, NotUnwrapped> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..MAX_ATTEMPTS {
            match self.ask_once(request.clone()).await? {
                Err(failure) if self.may_retry(failure.kind) => tokio::time::sleep(pause).await,
                answer => return Ok(answer?),
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
        Ok(self.ask_once(request).await??)
    }

    /// An outage uses up the retries of the whole run, so that it ends soon.
    fn may_retry(&self, kind: FailureKind) -> bool {
        let left = match kind {
            FailureKind::Throttled => return true,
            _ if !kind.is_retryable() => return false,
            _ => self.retries_left.get(),
        };
        self.retries_left.set(left.saturating_sub(1));
        left > 0
    }

    /// The client blocks, so each request has its own thread. The outer error is that of the broker, the inner one that
    /// of KMS or of the key server.
    async fn ask_once(&self, request: Request) -> Result<Result<Unwrapped, Failure>, NotUnwrapped> {
        let (client, patience) = (Arc::clone(&self.client), self.patience);
        // Nobody waits for a code here, but for a turn, and for a key server.
        let may_wait = |waiting: &Waiting| waiting.reason != WaitReason::Session;
        let asked =
            tokio::task::spawn_blocking(move || client.request(&request, patience, may_wait));
        let no_answer = |message: String| NotUnwrapped {
            problem: Problem::NotChecked,
            message,
        };
        match asked.await.map_err(|error| no_answer(error.to_string()))? {
            Ok(Reply::Decrypted {
                key,
                master_key_arn,
                request_id,
            }) => Ok(Ok(Unwrapped {
                key,
                master_key_arn,
                is_from_kms: !request_id.is_empty(),
            })),
            Ok(Reply::Failed(failure)) => Ok(Err(failure)),
            Ok(_) => Err(no_answer(
                "the broker gave an unexpected answer; see its log".into(),
            )),
            Err(error) => Err(no_answer(error.to_string())),
        }
    }
}

/// Formats a failure with the name of the file.
pub(crate) fn failed(directory: &KeyDirectory, name: &KeyName, message: &str) -> String {
    let path = directory.path_of(name);
    format!("key file '{}': {message}", path.display())
}
