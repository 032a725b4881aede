//! Why a key store cannot be used, in words.

use std::{error::Error, io, time::Duration};

use aws_session::{
    aws_error::{S3Answer, s3_failure},
    clock::seconds_text,
    key_store_location::KeyStoreLocation,
};
use broker_api::{Failure, FailureKind};
use object_store::Error as ObjectError;

use crate::connection::RequestError;

/// Why a request to a key store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It does not answer, or not in time; or the disk fails.
    #[error("the key store {location} cannot {what}: {why}")]
    NoAnswer {
        /// The store.
        location: KeyStoreLocation,
        /// What it cannot.
        what: &'static str,
        /// Why not.
        why: String,
        /// Whether this user may not do it.
        is_denied: bool,
    },
    /// S3 has answered with an error.
    #[error("{}", .0.failure(|| Failure { kind: FailureKind::SessionOver, message: "the AWS session is over".into() }).message)]
    Refused(Box<Refused>),
    /// It puts an object although there is one of that name.
    #[error(
        "the key store {0} overwrites an object although it is told not to (If-None-Match): two servers could make one key version with two keys, so no key is made; use a store that supports conditional writes, as S3 does"
    )]
    Unconditional(KeyStoreLocation),
    /// A directory that was never made a store, or whose file server is not mounted.
    #[error("{}", .0.without_probe())]
    NoStore(KeyStoreLocation),
    /// A directory that is to become a store, and does not exist.
    #[error(
        "cannot make {0} a key store: there is no such directory; mount the file server, or make the directory"
    )]
    NoDirectory(KeyStoreLocation),
    /// A directory that is to become a store.
    #[error("cannot make {0} a key store: it is not an empty directory")]
    NotEmpty(KeyStoreLocation),
    /// An object is not what its name says.
    #[error("{object} in the key store {location} cannot be used: {why}")]
    Invalid {
        /// The store.
        location: KeyStoreLocation,
        /// The object.
        object: String,
        /// Why not.
        why: String,
    },
    /// It has more objects than can be listed.
    #[error(
        "the key store {0} has more than {1} objects; give each server or cluster a prefix of its own"
    )]
    TooMany(KeyStoreLocation, usize),
}

/// An error that S3 has answered.
#[derive(Debug)]
pub struct Refused {
    failed: String,
    answer: S3Answer,
}

impl Refused {
    fn failure(&self, session_over: impl FnOnce() -> Failure) -> Failure {
        s3_failure(&self.failed, self.answer.clone(), session_over)
    }
}

impl StoreError {
    pub(crate) fn new(location: &KeyStoreLocation, what: &'static str, error: ObjectError) -> Self {
        let chain = std::iter::successors(Some(&error as &(dyn Error + 'static)), |&error| {
            error.source()
        });
        let mut why = String::new();
        let mut is_denied = false;
        for error in chain {
            is_denied |= error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
            match error.downcast_ref::<RequestError>() {
                Some(RequestError::Answered(answer)) => {
                    return Self::Refused(Box::new(Refused {
                        failed: format!("the key store {location} cannot {what}"),
                        answer: (**answer).clone(),
                    }));
                }
                Some(RequestError::NoAnswer(text)) => {
                    why.clone_from(text);
                    break;
                }
                // The innermost reason is the shortest.
                None => why = error.to_string(),
            }
        }
        Self::NoAnswer {
            location: location.clone(),
            what,
            why,
            is_denied,
        }
    }

    /// For clients of the broker. If S3 says that the session has expired, `session_over` gives the
    /// failure.
    pub fn failure(&self, session_over: impl FnOnce() -> Failure) -> Failure {
        let kind = match self {
            Self::Refused(refused) => return refused.failure(session_over),
            Self::NoAnswer { .. } => FailureKind::Unavailable,
            Self::NoStore(_) | Self::NoDirectory(_) | Self::NotEmpty(_) => FailureKind::NotFound,
            Self::Unconditional(_) | Self::Invalid { .. } | Self::TooMany(..) => FailureKind::Other,
        };
        Failure {
            kind,
            message: self.to_string(),
        }
    }

    /// Whether the store works, and only this request is denied.
    pub fn is_denied(&self) -> bool {
        matches!(
            self,
            Self::NoAnswer {
                is_denied: true,
                ..
            }
        ) || self.kind() == FailureKind::AccessDenied
    }

    /// Whether the same request may succeed a little later, or may have been carried out.
    pub fn is_transient(&self) -> bool {
        self.kind().is_retryable()
    }

    fn kind(&self) -> FailureKind {
        let session_over = || Failure {
            kind: FailureKind::SessionOver,
            message: String::new(),
        };
        self.failure(session_over).kind
    }
}

/// The failure of a request that took too long.
pub(crate) fn no_answer(limit: Duration) -> ObjectError {
    let why = format!(
        "no answer within {} (request_timeout_seconds)",
        seconds_text(limit.as_secs())
    );
    ObjectError::Generic {
        store: "key store",
        source: Box::new(RequestError::NoAnswer(why)),
    }
}
