//! The errors that STS and KMS answer with, in AWS's codes, HTTP statuses and words.
//!
//! Sources: the "Common errors" and operation pages of the STS and KMS API references.

use std::io::Write;

use crate::service::Service;

/// What kind of error it is. The two services name the common ones differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No `Authorization` header.
    MissingAuthenticationToken,
    /// An `Authorization` header that lacks a part.
    IncompleteSignature,
    /// An access key or session token that nobody was given.
    UnknownCredentials,
    /// A wrong signature, scope or time.
    SignatureMismatch,
    /// A session that is over.
    ExpiredSession,
    /// A web identity token that nobody here has issued.
    InvalidIdentityToken,
    /// A web identity token that is over.
    ExpiredIdentityToken,
    /// A policy does not allow it.
    AccessDenied,
    /// A parameter outside its constraints.
    Validation,
    /// A body that is not of the protocol's form.
    Serialization,
    /// An operation that the service does not have.
    UnknownOperation,
    /// Too many calls.
    Throttling,
    /// The service failed.
    Internal,
    /// The service is down.
    Unavailable,
    /// An error that only KMS has, by its code.
    Kms(&'static str),
}

impl ErrorKind {
    /// The error code and the HTTP status by which `service` answers this kind.
    pub fn code_and_status(self, service: Service) -> (&'static str, u16) {
        use ErrorKind as K;
        use Service::{Kms, Sts};
        match (self, service) {
            (K::MissingAuthenticationToken, Sts) => ("MissingAuthenticationToken", 403),
            (K::MissingAuthenticationToken, Kms) => ("MissingAuthenticationTokenException", 400),
            (K::IncompleteSignature, Sts) => ("IncompleteSignature", 400),
            (K::IncompleteSignature, Kms) => ("IncompleteSignatureException", 400),
            (K::UnknownCredentials, Sts) => ("InvalidClientTokenId", 403),
            (K::UnknownCredentials, Kms) => ("UnrecognizedClientException", 400),
            (K::SignatureMismatch, Sts) => ("SignatureDoesNotMatch", 403),
            (K::SignatureMismatch, Kms) => ("InvalidSignatureException", 400),
            (K::ExpiredSession, Sts) => ("ExpiredToken", 403),
            (K::ExpiredSession, Kms) => ("ExpiredTokenException", 400),
            (K::InvalidIdentityToken, _) => ("InvalidIdentityToken", 400),
            (K::ExpiredIdentityToken, _) => ("ExpiredTokenException", 400),
            (K::AccessDenied, Sts) => ("AccessDenied", 403),
            (K::AccessDenied, Kms) => ("AccessDeniedException", 400),
            (K::Validation, Sts) => ("ValidationError", 400),
            (K::Validation, Kms) => ("ValidationException", 400),
            (K::Serialization, Sts) => ("MalformedQueryString", 400),
            (K::Serialization, Kms) => ("SerializationException", 400),
            (K::UnknownOperation, Sts) => ("InvalidAction", 400),
            (K::UnknownOperation, Kms) => ("UnknownOperationException", 400),
            (K::Throttling, Sts) => ("Throttling", 400),
            (K::Throttling, Kms) => ("ThrottlingException", 400),
            (K::Internal, Sts) => ("InternalFailure", 500),
            (K::Internal, Kms) => ("KMSInternalException", 500),
            (K::Unavailable, Sts) => ("ServiceUnavailable", 503),
            (K::Unavailable, Kms) => ("ServiceUnavailableException", 503),
            (K::Kms(code @ "DryRunOperationException"), _) => (code, 412),
            (K::Kms(code), _) => (code, 400),
        }
    }
}

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// What kind of error.
    pub kind: ErrorKind,
    /// AWS's message, as the caller gets it. It may repeat a code or a plaintext that was sent.
    pub message: String,
    logged_message: Option<String>,
}

impl ApiError {
    /// An error whose message may also be logged.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            logged_message: None,
        }
    }

    /// An error that only KMS has, by its code.
    pub fn kms(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Kms(code), message)
    }

    /// A failure of this program or of its state, told to the operator on standard error.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        complain(format_args!("internal failure: {what}"));
        Self::new(
            ErrorKind::Internal,
            "The request processing has failed because of an internal error",
        )
    }

    /// The same error with another message for the call log, which must show less.
    pub fn logged_as(mut self, message: impl Into<String>) -> Self {
        self.logged_message = Some(message.into());
        self
    }

    /// What the call log says of it.
    pub fn logged_message(&self) -> &str {
        self.logged_message.as_deref().unwrap_or(&self.message)
    }
}

/// Tells the operator on standard error. That nobody reads there must not stop the server.
pub fn complain(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "local-aws: {what}");
}
