//! What an error of STS, KMS or S3 means, and the words for it: what happened, and what to do.
//!
//! Sources: <https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html>,
//! <https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html>, the errors of each
//! operation there, and <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>.

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId;
use broker_api::{Failure, FailureKind};
use key_files::MAX_CIPHERTEXT_BYTES;
use visible_text::escape;

use crate::{
    clock::{self, seconds_text, unix_seconds_now},
    credentials::Credentials,
    root_cause::root_cause,
    settings::{Service, Settings},
    token_code::TokenCode,
};

/// Longest error code that is shown.
const MAX_CODE_CHARACTERS: usize = 64;

/// Longest text of AWS that is shown.
const MAX_MESSAGE_CHARACTERS: usize = 400;

/// What an error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    WrongCode,
    WrongSerialNumber,
    ClockSkew,
    WrongRegion,
    BadAccessKey,
    Expired,
    AccessDenied,
    KeyDisabled,
    KeyState,
    WrongKeyType,
    KeyNotFound,
    NoBucket,
    InvalidCiphertext,
    Throttled,
    Unavailable,
    InvalidRequest,
    Other,
}

impl Meaning {
    fn of(status: u16, code: &str, message: &str) -> Self {
        let says = |text| message.contains(text);
        match code {
            "AccessDenied" if says("invalid MFA one time pass code") => Self::WrongCode,
            "AccessDenied" if says("MultiFactorAuthentication failed") => Self::WrongSerialNumber,
            "AccessDenied" | "AccessDeniedException" | "AllAccessDisabled" => Self::AccessDenied,
            "SignatureDoesNotMatch" | "InvalidSignatureException"
                if says("Signature expired") || says("Signature not yet current") =>
            {
                Self::ClockSkew
            }
            "RequestExpired" | "RequestTimeTooSkewed" => Self::ClockSkew,
            "SignatureDoesNotMatch" | "InvalidSignatureException"
                if says("Credential should be scoped to a valid region") =>
            {
                Self::WrongRegion
            }
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect" => {
                Self::WrongRegion
            }
            "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "InvalidToken"
            | "UnrecognizedClientException"
            | "SignatureDoesNotMatch"
            | "InvalidSignatureException"
            | "IncompleteSignature"
            | "MissingAuthenticationToken" => Self::BadAccessKey,
            "ExpiredToken" | "ExpiredTokenException" => Self::Expired,
            "DisabledException" => Self::KeyDisabled,
            "KMSInvalidStateException" => Self::KeyState,
            "InvalidKeyUsageException" | "InvalidGrantTokenException" => Self::WrongKeyType,
            "NotFoundException" => Self::KeyNotFound,
            "NoSuchBucket" => Self::NoBucket,
            "InvalidCiphertextException" | "IncorrectKeyException" => Self::InvalidCiphertext,
            "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "TooManyRequestsException"
            | "LimitExceededException"
            | "SlowDown" => Self::Throttled,
            "DependencyTimeoutException"
            | "KeyUnavailableException"
            | "KMSInternalException"
            | "RequestTimeout" => Self::Unavailable,
            "ValidationError" | "ValidationException" | "InvalidArnException" => {
                Self::InvalidRequest
            }
            _ if status == 429 => Self::Throttled,
            _ if status >= 500 => Self::Unavailable,
            _ => Self::Other,
        }
    }

    /// Its kind for clients of the broker, and what to do about it; empty: nothing in particular.
    fn kind_and_advice(self) -> (FailureKind, &'static str) {
        use FailureKind as Kind;
        match self {
            Self::WrongCode => (Kind::AccessDenied, ""),
            Self::WrongSerialNumber => (
                Kind::AccessDenied,
                "correct the serial number (kms_mfa_id in the configuration, or --mfa-serial)",
            ),
            Self::ClockSkew => (Kind::NotAuthenticated, "set the clock (timedatectl)"),
            Self::WrongRegion => (
                Kind::NotAuthenticated,
                "check the region (AWS_REGION, or region in the configuration)",
            ),
            Self::BadAccessKey => (
                Kind::NotAuthenticated,
                "check that it exists and is active, that the secret key belongs to it, and that the region is enabled for its account",
            ),
            Self::Expired => (Kind::SessionOver, ""),
            Self::AccessDenied => (
                Kind::AccessDenied,
                "check the account and region of the master key, and in its key policy the user or role, aws:MultiFactorAuthPresent and aws:SourceIp",
            ),
            Self::KeyDisabled => (
                Kind::KeyUnusable,
                "enable the master key (aws kms enable-key)",
            ),
            Self::KeyState => (
                Kind::KeyUnusable,
                "check the master key (kms-manage-key status): cancel its deletion (aws kms cancel-key-deletion) or import its material",
            ),
            Self::WrongKeyType => (
                Kind::KeyUnusable,
                "use a symmetric encryption key as the master key",
            ),
            Self::KeyNotFound => (
                Kind::NotFound,
                "check the id of the master key (aws_key_management_master_key_id, or master_key_id) and the region",
            ),
            Self::NoBucket => (
                Kind::NotFound,
                "check the bucket's name in key_store, or make the bucket",
            ),
            Self::InvalidCiphertext => (
                Kind::InvalidCiphertext,
                "the key file is damaged or was not made by KMS; restore it from a backup of the key files",
            ),
            Self::Throttled => (Kind::Throttled, ""),
            Self::Unavailable => (Kind::Unavailable, ""),
            Self::InvalidRequest => (Kind::InvalidRequest, ""),
            Self::Other => (Kind::Other, ""),
        }
    }
}

/// A call that failed.
enum CallError {
    /// No answer: the network, TLS or a time-out.
    NoAnswer(String),
    /// An answer that does not come from AWS.
    NotAws { status: u16 },
    /// An answer that ended too early, or did not end.
    Unread { status: u16, why: String },
    /// An error that AWS has answered.
    Refused(Refusal),
}

struct Refusal {
    meaning: Meaning,
    status: u16,
    code: String,
    message: String,
    /// How far this host's clock is ahead of AWS's.
    clock_offset_seconds: Option<i64>,
}

impl CallError {
    fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let status = error
            .raw_response()
            .map_or(0, |answer| answer.status().as_u16());
        let service_error = error.as_service_error();
        if let Some(code) = service_error.and_then(ProvideErrorMetadata::code) {
            let message = service_error
                .and_then(ProvideErrorMetadata::message)
                .unwrap_or_default();
            return Self::Refused(Refusal {
                meaning: Meaning::of(status, code, message),
                status,
                code: printable(code, MAX_CODE_CHARACTERS),
                message: message.into(),
                clock_offset_seconds: error.raw_response().and_then(clock_offset_seconds),
            });
        }
        match error {
            SdkError::ResponseError(answer) if answer.raw().body().bytes().is_none() => {
                let why = root_cause(error);
                Self::Unread { status, why }
            }
            SdkError::ResponseError(_) | SdkError::ServiceError(_) => Self::NotAws { status },
            other => Self::NoAnswer(no_answer(other)),
        }
    }
}

impl Refusal {
    fn clock_text(&self) -> String {
        let off = self.clock_offset_seconds.map_or_else(
            || "this host's clock differs from AWS's".into(),
            offset_text,
        );
        format!("{off}, so AWS refuses its requests")
    }
}

fn no_answer<E>(error: &SdkError<E, HttpResponse>) -> String
where
    E: std::error::Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => "no answer in time (request_timeout_seconds)".into(),
        other => root_cause(other),
    }
}

/// The result of an MFA code. The texts say what happened; the caller adds what it does next.
#[derive(Debug)]
pub enum Outcome {
    /// The code opened a session.
    Opened(Credentials),
    /// AWS has judged the code and will not accept it again: ask for another one.
    Spent(String),
    /// AWS has not judged the code: it may be sent again.
    Unanswered(String),
    /// No code can help until somebody corrects this.
    Permanent(String),
}

impl Outcome {
    /// Reads the failure of a call of STS, which was signed with `access_key_id`, and to which a code
    /// may have been sent.
    pub(crate) fn of_failure<E>(
        aws: &Settings,
        error: &SdkError<E, HttpResponse>,
        access_key_id: &str,
        code: Option<(&str, &TokenCode)>,
    ) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let hint = aws.wrong_answer_hint(Service::Sts);
        let refusal = match CallError::of(error) {
            CallError::NoAnswer(why) => {
                let sts = aws.name(Service::Sts);
                return Self::Unanswered(format!("cannot reach {sts}: {why}"));
            }
            CallError::NotAws { status } if status >= 500 => {
                return Self::Unanswered(format!("STS failed with HTTP status {status}; {hint}"));
            }
            CallError::NotAws { status } => return Self::Spent(not_aws("STS's", status, &hint)),
            CallError::Unread { status, why } => return Self::Spent(unread("STS", status, &why)),
            CallError::Refused(refusal) => refusal,
        };
        let Refusal {
            meaning,
            status,
            code: error_code,
            message,
            ..
        } = &refusal;
        let (_, advice) = meaning.kind_and_advice();
        match meaning {
            Meaning::WrongCode => Self::Spent(
                "AWS refused the code: mistyped, used before, or of another device".into(),
            ),
            Meaning::WrongSerialNumber => Self::Permanent(format!(
                "AWS does not know the MFA device {} for this user; {advice}",
                code.map_or("", |(serial_number, _)| serial_number)
            )),
            Meaning::ClockSkew => Self::Unanswered(format!("{}; {advice}", refusal.clock_text())),
            Meaning::BadAccessKey => Self::Permanent(format!(
                "AWS does not accept the access key {access_key_id} ({error_code}); {advice}"
            )),
            Meaning::Expired => Self::Permanent(
                "the source credentials have expired; start again with fresh ones".into(),
            ),
            Meaning::Throttled | Meaning::Unavailable => Self::Unanswered(format!(
                "STS cannot answer now: {error_code} (HTTP status {status})"
            )),
            _ => {
                let message = without_code(message, code.map(|(_, code)| code));
                let region = match meaning {
                    Meaning::WrongRegion => format!("; {advice}"),
                    _ => String::new(),
                };
                Self::Permanent(format!(
                    "STS refused the request: {error_code}: {message}{region}"
                ))
            }
        }
    }

    /// What happened in a call without a code.
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Opened(session) => format!("session {}", session.access_key_id),
            Self::Spent(text) | Self::Unanswered(text) | Self::Permanent(text) => text,
        }
    }
}

/// The text of AWS, shortened, on one line, and without the code.
fn without_code(message: &str, token_code: Option<&TokenCode>) -> String {
    let message = match token_code {
        Some(code) => message.replace(code.expose(), "[code]"),
        None => message.into(),
    };
    printable(&message, MAX_MESSAGE_CHARACTERS)
}

/// Reads the failure of a call of KMS. If KMS says that the session has expired, `session_over` gives
/// the failure.
pub fn kms_failure<E>(
    operation: &str,
    error: &SdkError<E, HttpResponse>,
    session_over: impl FnOnce() -> Failure,
) -> Failure
where
    E: ProvideErrorMetadata + RequestId + std::error::Error + 'static,
{
    let failed = format!("KMS {operation}{} failed", request(error));
    let unavailable = |why: String| Failure {
        kind: FailureKind::Unavailable,
        message: format!("{failed}: {why}"),
    };
    let refusal = match CallError::of(error) {
        CallError::NoAnswer(why) => return unavailable(format!("cannot reach it: {why}")),
        CallError::NotAws { status } => {
            let hint =
                "check the endpoint URL, if one is set, and what is between this host and AWS";
            return unavailable(not_aws("KMS's", status, hint));
        }
        CallError::Unread { status, why } => return unavailable(unread("KMS", status, &why)),
        CallError::Refused(refusal) => refusal,
    };
    let (_, advice) = refusal.meaning.kind_and_advice();
    refused(&failed, &refusal, advice, session_over)
}

/// An error that S3 has answered.
#[derive(Debug, Clone, Default)]
pub struct S3Answer {
    /// HTTP status.
    pub status: u16,
    /// What S3 calls the error, such as `NoSuchBucket`; empty if the answer is not of S3.
    pub code: String,
    /// What S3 says about it.
    pub message: String,
    /// S3's request id.
    pub request_id: String,
    /// The region of the bucket, if S3 tells it.
    pub bucket_region: Option<String>,
    /// How far this host's clock is ahead of S3's.
    pub clock_offset_seconds: Option<i64>,
}

/// Reads what S3 has answered to a request that `failed`, which names the key store. If S3 says that
/// the session has expired, `session_over` gives the failure.
pub fn s3_failure(
    failed: &str,
    answer: S3Answer,
    session_over: impl FnOnce() -> Failure,
) -> Failure {
    let S3Answer {
        status,
        code,
        message,
        request_id,
        bucket_region,
        clock_offset_seconds,
    } = answer;
    let failed = match request_id.as_str() {
        "" => failed.into(),
        id => format!("{failed} (request {})", printable(id, MAX_CODE_CHARACTERS)),
    };
    if code.is_empty() {
        let hint = "check the endpoint URL, if one is set, and what is between this host and the key store";
        return Failure {
            kind: FailureKind::Unavailable,
            message: format!("{failed}: {}", not_aws("S3's", status, hint)),
        };
    }
    let refusal = Refusal {
        meaning: Meaning::of(status, &code, &message),
        status,
        code: printable(&code, MAX_CODE_CHARACTERS),
        message,
        clock_offset_seconds,
    };
    let advice = match (refusal.meaning, bucket_region) {
        (Meaning::AccessDenied, _) => {
            "allow s3:ListBucket, s3:GetObject and s3:PutObject (examples/policies/iam/key-store.json), to a session with MFA".into()
        }
        (Meaning::WrongRegion, Some(region)) => format!(
            "the bucket is in {}: KMS and the key store are called in one region (region in the configuration)",
            printable(&region, MAX_CODE_CHARACTERS)
        ),
        (meaning, _) => meaning.kind_and_advice().1.into(),
    };
    refused(&failed, &refusal, &advice, session_over)
}

fn refused(
    failed: &str,
    refusal: &Refusal,
    advice: &str,
    session_over: impl FnOnce() -> Failure,
) -> Failure {
    let (kind, _) = refusal.meaning.kind_and_advice();
    let mut message = format!("{failed}: {}", refusal.code);
    if kind == FailureKind::SessionOver {
        let over = session_over();
        return Failure {
            message: format!("{}; {message}", over.message),
            ..over
        };
    }
    let what = match refusal.meaning {
        Meaning::BadAccessKey => "AWS does not accept the access key".into(),
        Meaning::ClockSkew => refusal.clock_text(),
        _ => String::new(),
    };
    // What AWS says is the longest part. It comes last, because the end of a message may be cut off.
    let said = match printable(&refusal.message, MAX_MESSAGE_CHARACTERS) {
        said if said.is_empty() => said,
        said => format!("AWS says: {said}"),
    };
    for part in [what.as_str(), advice, &said] {
        if !part.is_empty() {
            message += &format!("; {part}");
        }
    }
    Failure { kind, message }
}

/// The failure of an answer of KMS that lacks something.
pub fn incomplete(operation: &str, answer: &impl RequestId, why: &str) -> Failure {
    Failure {
        kind: FailureKind::Other,
        message: format!("KMS {operation}{} answered with {why}", request(answer)),
    }
}

/// The wrapped key of an answer of KMS, 1 to [`MAX_CIPHERTEXT_BYTES`] bytes.
pub fn wrapped_key(
    operation: &str,
    answer: &impl RequestId,
    ciphertext_blob: Option<&[u8]>,
) -> Result<Vec<u8>, Failure> {
    let blob = ciphertext_blob.unwrap_or_default();
    match blob.len() {
        1..=MAX_CIPHERTEXT_BYTES => Ok(blob.into()),
        bytes => {
            let why = format!("a wrapped key of {bytes} bytes");
            Err(incomplete(operation, answer, &why))
        }
    }
}

/// The id of the request, for AWS's support and CloudTrail. It comes early in a message, because the
/// end may be cut off.
fn request(answer: &impl RequestId) -> String {
    answer
        .request_id()
        .map(|id| format!(" (request {})", printable(id, MAX_CODE_CHARACTERS)))
        .unwrap_or_default()
}

/// The answer to a call that AWS must refuse, because nobody has its access key: how many seconds this
/// host's clock is ahead of the service's. The error says why it is not an answer of AWS.
pub fn clock_offset<T, E>(
    aws: &Settings,
    service: Service,
    answer: &Result<T, SdkError<E, HttpResponse>>,
) -> Result<i64, String>
where
    E: std::error::Error + 'static,
{
    let hint = aws.wrong_answer_hint(service);
    let Err(error) = answer else {
        return Err(not_aws("AWS's", 200, &hint));
    };
    let Some(answer) = error.raw_response() else {
        return Err(no_answer(error));
    };
    let has_request_id = answer.headers().contains_key("x-amzn-requestid");
    clock_offset_seconds(answer)
        .filter(|_| has_request_id)
        .ok_or_else(|| not_aws("AWS's", answer.status().as_u16(), &hint))
}

/// How many seconds this host's clock is ahead of AWS's, by the Date header of an answer.
pub fn clock_offset_seconds(answer: &HttpResponse) -> Option<i64> {
    Some(unix_seconds_now() - clock::date_of(answer)?)
}

/// How far this host's clock is off.
pub fn offset_text(ahead_seconds: i64) -> String {
    let direction = match ahead_seconds > 0 {
        true => "ahead of",
        false => "behind",
    };
    let seconds = seconds_text(ahead_seconds.unsigned_abs());
    format!("this host's clock is {seconds} {direction} AWS's")
}

fn unread(of: &str, status: u16, why: &str) -> String {
    format!("the answer of {of} (HTTP status {status}) could not be read to its end: {why}")
}

fn not_aws(whose: &str, status: u16, hint: &str) -> String {
    format!("the answer (HTTP status {status}) is not {whose}; {hint}")
}

/// The first `limit` characters, on one line.
fn printable(text: &str, limit: usize) -> String {
    escape(text).chars().take(limit).collect()
}

#[cfg(test)]
mod tests {
    use aws_sdk_sts::operation::get_session_token::GetSessionTokenError;
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;

    /// The failure that the plugin gets if KMS answers with this error.
    fn failure_of(code: &str, said: &str, date: Option<&'static str>) -> Failure {
        let metadata = ErrorMetadata::builder().code(code).message(said).build();
        let mut answer = HttpResponse::new(400.try_into().unwrap(), SdkBody::empty());
        answer.headers_mut().insert("x-amzn-requestid", "8a6f");
        if let Some(date) = date {
            answer.headers_mut().insert("date", date);
        }
        let error = SdkError::service_error(GetSessionTokenError::generic(metadata), answer);
        kms_failure("Decrypt", &error, || Failure {
            kind: FailureKind::SessionOver,
            message: "the session is over".into(),
        })
    }

    #[test]
    fn errors_of_sts_are_distinguished() {
        for (status, code, message, meaning) in [
            (
                403,
                "AccessDenied",
                "MultiFactorAuthentication failed with invalid MFA one time pass code. ",
                Meaning::WrongCode,
            ),
            (
                403,
                "AccessDenied",
                "MultiFactorAuthentication failed, unable to validate MFA code.  Please verify your MFA serial number is valid and associated with this user.",
                Meaning::WrongSerialNumber,
            ),
            (
                403,
                "AccessDenied",
                "User: arn is not authorized to perform: sts:AssumeRole",
                Meaning::AccessDenied,
            ),
            (
                403,
                "SignatureDoesNotMatch",
                "Signature expired: 20260101T000000Z is now earlier than 20260101T001500Z",
                Meaning::ClockSkew,
            ),
            (
                403,
                "SignatureDoesNotMatch",
                "Signature not yet current: 20260101T000000Z",
                Meaning::ClockSkew,
            ),
            (
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match",
                Meaning::BadAccessKey,
            ),
            (
                403,
                "SignatureDoesNotMatch",
                "Credential should be scoped to a valid region, not 'eu-west-1'. ",
                Meaning::WrongRegion,
            ),
            (
                403,
                "InvalidClientTokenId",
                "The security token included in the request is invalid.",
                Meaning::BadAccessKey,
            ),
            (
                403,
                "ExpiredToken",
                "The security token included in the request is expired",
                Meaning::Expired,
            ),
            (400, "Throttling", "Rate exceeded", Meaning::Throttled),
            (503, "ServiceUnavailable", "", Meaning::Unavailable),
            (500, "InternalFailure", "", Meaning::Unavailable),
            (
                400,
                "ValidationError",
                "1 validation error detected",
                Meaning::InvalidRequest,
            ),
        ] {
            assert_eq!(
                Meaning::of(status, code, message),
                meaning,
                "{code}: {message}"
            );
        }
    }

    #[test]
    fn a_code_in_an_error_of_aws_is_not_shown() {
        let code = TokenCode::new(b"111676").unwrap();
        assert_eq!(
            without_code("Value '111676' at 'tokenCode'", Some(&code)),
            "Value '[code]' at 'tokenCode'"
        );
    }

    #[test]
    fn a_clock_offset_is_shown_with_its_direction() {
        assert_eq!(
            offset_text(3600),
            "this host's clock is 3600 seconds ahead of AWS's"
        );
        assert_eq!(
            offset_text(-1),
            "this host's clock is 1 second behind AWS's"
        );
    }

    #[test]
    fn the_request_id_and_the_advice_come_before_what_may_be_cut_off() {
        let message = failure_of("AccessDeniedException", &"said\n".repeat(1000), None).message;
        let beginning = "KMS Decrypt (request 8a6f) failed: AccessDeniedException; check the account and region";
        assert!(message.starts_with(beginning), "{message}");
        assert!(message.contains("AWS says: said\\nsaid\\n"), "{message}");
        assert!(message.len() < 700, "{message}");
    }

    #[test]
    fn kms_errors_distinguish_wrong_region_clock_and_key() {
        let code = "InvalidSignatureException";
        for (said, expected) in [
            (
                "Credential should be scoped to a valid region, not 'us-east-1a'. ",
                "; check the region (AWS_REGION",
            ),
            (
                "Signature expired: 20260101T000000Z is now earlier than",
                "ahead of AWS's, so AWS refuses its requests; set the clock (timedatectl)",
            ),
            (
                "The request signature we calculated does not match",
                "; AWS does not accept the access key; check that it exists",
            ),
        ] {
            let failure = failure_of(code, said, Some("Thu, 01 Jan 2026 00:00:00 GMT"));
            assert_eq!(failure.kind, FailureKind::NotAuthenticated);
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }

    #[test]
    fn both_names_of_an_expired_token_end_the_session_and_name_the_request() {
        for code in ["ExpiredToken", "ExpiredTokenException"] {
            let failure = failure_of(code, "", None);
            assert_eq!(failure.kind, FailureKind::SessionOver);
            assert_eq!(
                failure.message,
                format!("the session is over; KMS Decrypt (request 8a6f) failed: {code}")
            );
        }
    }

    #[test]
    fn a_bad_access_key_is_not_a_refusal_of_the_master_key() {
        for code in [
            "InvalidSignatureException",
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "IncompleteSignature",
            "MissingAuthenticationToken",
        ] {
            let kind = Meaning::of(400, code, "").kind_and_advice().0;
            assert_eq!(kind, FailureKind::NotAuthenticated);
        }
        let denied = Meaning::of(400, "AccessDeniedException", "")
            .kind_and_advice()
            .0;
        assert_eq!(denied, FailureKind::AccessDenied);
    }

    #[test]
    fn only_temporary_errors_are_retryable() {
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
            let kind = Meaning::of(status, code, "").kind_and_advice().0;
            assert_eq!(kind.is_retryable(), retryable, "{code}");
        }
    }
}
