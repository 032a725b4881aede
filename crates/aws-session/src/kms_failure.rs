//! What the failures of KMS mean, and what a person should do about each.
//!
//! Source: <https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html>, and the errors
//! of each operation there.

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId;
use broker_api::{Failure, FailureKind};
use key_store::MAX_CIPHERTEXT_BYTES;
use visible_text::escape;

use crate::root_cause::root_cause;

/// The failure of an answer that lacks what it must have.
pub fn incomplete(operation: &str, answer: &impl RequestId, why: &str) -> Failure {
    Failure {
        kind: FailureKind::Other,
        message: format!("KMS {operation}{} answered with {why}", request(answer)),
    }
}

/// The wrapped key of an answer, 1 to [`MAX_CIPHERTEXT_BYTES`] bytes.
pub fn wrapped_key(
    operation: &str,
    answer: &impl RequestId,
    ciphertext_blob: Option<&[u8]>,
) -> Result<Vec<u8>, Failure> {
    let blob = ciphertext_blob.unwrap_or_default();
    match blob.len() {
        1..=MAX_CIPHERTEXT_BYTES => Ok(blob.into()),
        _ => {
            let why = "a wrapped key of no or too many bytes";
            Err(incomplete(operation, answer, why))
        }
    }
}

/// Names the request for AWS's support and call log. Near the beginning of a message, whose end
/// may be cut off.
fn request(answer: &impl RequestId) -> String {
    answer
        .request_id()
        .map(|id| format!(" (request {})", printable(id, 64)))
        .unwrap_or_default()
}

/// The first `limit` characters of what the other side said, on one line.
fn printable(text: &str, limit: usize) -> String {
    escape(text).chars().take(limit).collect()
}

/// Reads the failure of a call. `session_over` is asked where KMS says that the session has ended.
pub fn failure<E>(
    operation: &str,
    error: &SdkError<E, HttpResponse>,
    session_over: impl FnOnce() -> Failure,
) -> Failure
where
    E: ProvideErrorMetadata + RequestId + std::error::Error + 'static,
{
    let failed = format!("KMS {operation}{} failed", request(error));
    let service_error = error.as_service_error();
    let status = error
        .raw_response()
        .map_or(0, |answer| answer.status().as_u16());
    let Some(code) = service_error.and_then(ProvideErrorMetadata::code) else {
        return Failure {
            kind: FailureKind::Unavailable,
            message: format!("{failed}: {}", no_answer(error, status)),
        };
    };
    let (kind, advice) = meaning(code, status);
    if kind == FailureKind::SessionOver {
        let over = session_over();
        return Failure {
            message: format!("{}; {failed}: {code}", over.message),
            ..over
        };
    }
    let said = service_error
        .and_then(ProvideErrorMetadata::message)
        .unwrap_or_default();
    // Of another region than the endpoint's: neither clock nor key is wrong.
    let advice = match said.contains("Credential should be scoped to a valid region") {
        true => "check the region (AWS_REGION, or region in the configuration)",
        false => advice,
    };
    let advice = match advice {
        "" => String::new(),
        advice => format!("; {advice}"),
    };
    // What AWS says is the longest part and comes last.
    let said = match printable(said, 400) {
        said if said.is_empty() => said,
        said => format!("; AWS says: {said}"),
    };
    Failure {
        kind,
        message: format!("{failed}: {code}{advice}{said}"),
    }
}

fn no_answer<E>(error: &SdkError<E, HttpResponse>, status: u16) -> String
where
    E: std::error::Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => "no answer in time".into(),
        SdkError::ResponseError(_) | SdkError::ServiceError(_) => {
            format!(
                "the answer (HTTP status {status}) is not KMS's; check the endpoint URL, if one is set, and what stands between this host and AWS"
            )
        }
        other => format!("cannot reach it: {}", root_cause(other)),
    }
}

/// What an error code of KMS means, and what a person should do about it.
fn meaning(code: &str, status: u16) -> (FailureKind, &'static str) {
    use FailureKind as Kind;
    match code {
        "ExpiredTokenException" | "ExpiredToken" => (Kind::SessionOver, ""),
        "AccessDeniedException" => (
            Kind::AccessDenied,
            "check account and region of the master key, and in its key policy the user or role, aws:MultiFactorAuthPresent and aws:SourceIp",
        ),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationToken" => (
            Kind::NotAuthenticated,
            "check this host's clock and the user's access key",
        ),
        "DisabledException" => (
            Kind::KeyUnusable,
            "enable the master key (aws kms enable-key)",
        ),
        "KMSInvalidStateException" => (
            Kind::KeyUnusable,
            "cancel the deletion of the master key and enable it (aws kms cancel-key-deletion, aws kms enable-key)",
        ),
        "InvalidKeyUsageException" | "InvalidGrantTokenException" => (
            Kind::KeyUnusable,
            "the master key must be a symmetric encryption key",
        ),
        "NotFoundException" => (
            Kind::NotFound,
            "check the id of the master key (aws_key_management_master_key_id, or master_key_id) and the region",
        ),
        "InvalidCiphertextException" | "IncorrectKeyException" => (
            Kind::InvalidCiphertext,
            "the wrapped key is damaged or no key of KMS; restore its file from a backup of the key files",
        ),
        "ThrottlingException" | "LimitExceededException" => (Kind::Throttled, ""),
        "DependencyTimeoutException" | "KeyUnavailableException" | "KMSInternalException" => {
            (Kind::Unavailable, "")
        }
        "ValidationException" | "InvalidArnException" => (Kind::InvalidRequest, ""),
        _ if status >= 500 => (Kind::Unavailable, ""),
        _ if status == 429 => (Kind::Throttled, ""),
        _ => (Kind::Other, ""),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_sts::operation::get_session_token::GetSessionTokenError;
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;

    /// The failure that the plugin gets when KMS answers with this error.
    fn failure_of(code: &str, said: &str) -> Failure {
        let metadata = ErrorMetadata::builder().code(code).message(said).build();
        let mut answer = HttpResponse::new(400.try_into().unwrap(), SdkBody::empty());
        answer.headers_mut().insert("x-amzn-requestid", "8a6f");
        let error = SdkError::service_error(GetSessionTokenError::generic(metadata), answer);
        failure("Decrypt", &error, || Failure {
            kind: FailureKind::SessionOver,
            message: "the session is over".into(),
        })
    }

    #[test]
    fn the_request_id_and_the_advice_come_before_what_may_be_cut_off() {
        let message = failure_of("AccessDeniedException", &"said\n".repeat(1000)).message;
        let beginning =
            "KMS Decrypt (request 8a6f) failed: AccessDeniedException; check account and region";
        assert!(message.starts_with(beginning), "{message}");
        assert!(message.contains("AWS says: said\\nsaid\\n"), "{message}");
        assert!(message.len() < 700, "{message}");
    }

    #[test]
    fn a_wrong_region_is_not_taken_for_a_wrong_clock() {
        let said = "Credential should be scoped to a valid region, not 'us-east-1a'. ";
        let message = failure_of("InvalidSignatureException", said).message;
        assert!(
            message.contains("; check the region (AWS_REGION"),
            "{message}"
        );
        assert!(!message.contains("clock"), "{message}");
    }

    #[test]
    fn the_end_of_the_session_is_told_with_the_request_too() {
        let failure = failure_of("ExpiredTokenException", "");
        assert_eq!(failure.kind, FailureKind::SessionOver);
        assert_eq!(
            failure.message,
            "the session is over; KMS Decrypt (request 8a6f) failed: ExpiredTokenException"
        );
    }

    #[test]
    fn a_wrong_clock_or_access_key_is_no_refusal_of_the_key() {
        for code in [
            "InvalidSignatureException",
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "IncompleteSignature",
            "MissingAuthenticationToken",
        ] {
            assert_eq!(meaning(code, 400).0, FailureKind::NotAuthenticated);
        }
        let denied = meaning("AccessDeniedException", 400).0;
        assert_eq!(denied, FailureKind::AccessDenied);
    }

    #[test]
    fn both_names_of_an_expired_token_end_the_session() {
        for code in ["ExpiredToken", "ExpiredTokenException"] {
            assert_eq!(meaning(code, 400).0, FailureKind::SessionOver);
        }
    }

    #[test]
    fn only_what_may_pass_by_itself_is_retryable() {
        for (code, status, retryable) in [
            ("ThrottlingException", 400, true),
            ("DependencyTimeoutException", 503, true),
            ("KeyUnavailableException", 500, true),
            ("KMSInternalException", 500, true),
            ("ServiceUnavailable", 503, true),
            ("DisabledException", 409, false),
            ("AccessDeniedException", 400, false),
            ("InvalidCiphertextException", 400, false),
            ("NotFoundException", 400, false),
            ("SomethingNew", 400, false),
        ] {
            assert_eq!(meaning(code, status).0.is_retryable(), retryable, "{code}");
        }
    }
}
