//! Trades an MFA code for a session, and reads STS's answers.
//!
//! Sources: <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetSessionToken.html>,
//! <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>,
//! <https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html>.

use aws_sdk_sts::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::Credentials,
};
use aws_smithy_runtime_api::client::{http::SharedHttpClient, orchestrator::HttpResponse};
use nix::unistd::{User, geteuid, gethostname};
use secrecy::SecretString;

use crate::{
    clock::{self, FollowAws, seconds_text, unix_seconds_now},
    config::Config,
    root_cause::root_cause,
    session::Session,
    settings::{Service, Settings},
    token_code::TokenCode,
};

/// What became of a code. The texts say what happened; the caller adds what it does next.
#[derive(Debug)]
pub enum Outcome {
    /// The code was good.
    Opened(Session),
    /// AWS has seen the code and will not take it again: ask for another.
    Spent(String),
    /// AWS has not judged the code: it may be sent again.
    Unanswered(String),
    /// No code will do before somebody mends this.
    Permanent(String),
}

impl Outcome {
    /// What happened, where no code was sent.
    fn into_text(self) -> String {
        match self {
            Self::Opened(session) => format!("session {}", session.access_key_id),
            Self::Spent(text) | Self::Unanswered(text) | Self::Permanent(text) => text,
        }
    }
}

/// Sends `token_code` to STS with the source credentials: `AssumeRole` where the configuration
/// names a role, else `GetSessionToken`.
pub async fn trade(
    aws: &Settings,
    config: &Config,
    serial_number: &str,
    source: &Session,
    token_code: &TokenCode,
) -> Outcome {
    let client = Client::new(&aws.sdk_config(Some(source)));
    let answer = match &config.role_arn {
        Some(role_arn) => {
            let request = client
                .assume_role()
                .role_arn(role_arn)
                .role_session_name(role_session_name())
                .duration_seconds(config.session_duration_seconds)
                .serial_number(serial_number)
                .token_code(token_code.expose());
            request
                .customize()
                .interceptor(FollowAws)
                .send()
                .await
                .map(|answer| answer.credentials)
                .map_err(|error| refusal(aws, &error))
        }
        None => {
            let request = client
                .get_session_token()
                .duration_seconds(config.session_duration_seconds)
                .serial_number(serial_number)
                .token_code(token_code.expose());
            request
                .customize()
                .interceptor(FollowAws)
                .send()
                .await
                .map(|answer| answer.credentials)
                .map_err(|error| refusal(aws, &error))
        }
    };
    match answer {
        Ok(credentials) => match session_of_answer(aws, credentials.as_ref()) {
            Ok(session) => Outcome::Opened(session),
            Err(why) => Outcome::Spent(why),
        },
        Err(refusal) => refusal.judge(serial_number, &source.access_key_id, Some(token_code)),
    }
}

/// A role that is assumed without a code.
pub struct Role {
    /// ARN of the role.
    pub arn: String,
    /// Name of the session in CloudTrail; `None`: one with this host's name in it.
    pub session_name: Option<String>,
    /// External id that the role's trust policy may want.
    pub external_id: Option<String>,
}

/// Assumes `role` with `source`.
///
/// The error says why AWS does not let us, and what to do.
pub async fn assume_role(aws: &Settings, source: &Session, role: &Role) -> Result<Session, String> {
    let client = Client::new(&aws.sdk_config(Some(source)));
    let request = client
        .assume_role()
        .role_arn(&role.arn)
        .role_session_name(role.session_name.clone().unwrap_or_else(role_session_name))
        .set_external_id(role.external_id.clone());
    match request.send().await {
        Ok(answer) => session_of_answer(aws, answer.credentials.as_ref()),
        Err(error) => Err(refusal(aws, &error)
            .judge("", &source.access_key_id, None)
            .into_text()),
    }
}

/// Assumes the role `role_arn` with the token of a web identity.
///
/// The error says why AWS does not let us, and what to do.
pub async fn assume_role_with_web_identity(
    aws: &Settings,
    role_arn: &str,
    session_name: Option<&str>,
    token: &str,
) -> Result<Session, String> {
    let client = Client::new(&aws.sdk_config(None));
    let request = client
        .assume_role_with_web_identity()
        .role_arn(role_arn)
        .role_session_name(session_name.map_or_else(role_session_name, str::to_owned))
        .web_identity_token(token);
    match request.send().await {
        Ok(answer) => session_of_answer(aws, answer.credentials.as_ref()),
        Err(error) => Err(refusal(aws, &error)
            .judge("", "of the token", None)
            .into_text()),
    }
}

/// The session of an answer, if it can be used: whoever answers in STS's place can send anything.
fn session_of_answer(aws: &Settings, credentials: Option<&Credentials>) -> Result<Session, String> {
    let hint = aws.wrong_answer_hint(Service::Sts);
    let Some(credentials) = credentials else {
        return Err(format!("STS answered without credentials; {hint}"));
    };
    let session = Session {
        access_key_id: credentials.access_key_id.clone(),
        secret_access_key: SecretString::from(credentials.secret_access_key.as_str()),
        session_token: Some(SecretString::from(credentials.session_token.as_str())),
        expiration_unix_seconds: Some(credentials.expiration.secs()),
    };
    match session.check_open(1) {
        Ok(()) => Ok(session),
        Err(why) => Err(format!(
            "STS answered with a session that {why}, so it is not used; {hint}"
        )),
    }
}

/// Asks AWS whom `source` belongs to: the ARN. Needs no permission and spends no code.
///
/// The error says why AWS does not take `source`, and what to do.
pub async fn identify(
    aws: &Settings,
    source: &Session,
    http_client: SharedHttpClient,
) -> Result<String, String> {
    let client = Client::new(&aws.sdk_config_with(Some(source), http_client));
    let answer = client.get_caller_identity().send().await;
    answer
        .map_err(|error| refusal(aws, &error).judge("", &source.access_key_id, None))
        .map_err(Outcome::into_text)?
        .arn
        .filter(|arn| arn.len() <= MAX_ARN_BYTES && arn.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| {
            format!(
                "STS answered without a name; {}",
                aws.wrong_answer_hint(Service::Sts)
            )
        })
}

/// Why an answer to a key that nobody has is not AWS's; otherwise how many seconds this host's clock is
/// ahead of the service's. Any refusal of AWS is an answer.
pub fn clock_offset<T, E>(
    aws: &Settings,
    service: Service,
    answer: &Result<T, SdkError<E, HttpResponse>>,
) -> Result<i64, String>
where
    E: std::error::Error + 'static,
{
    let Err(error) = answer else {
        return Err(not_aws("AWS's", 200, &aws.wrong_answer_hint(service)));
    };
    let Some(answer) = error.raw_response() else {
        return Err(no_answer(aws, error));
    };
    let has_request_id = answer.headers().contains_key("x-amzn-requestid");
    clock_offset_seconds(answer)
        .filter(|_| has_request_id)
        .ok_or_else(|| {
            not_aws(
                "AWS's",
                answer.status().as_u16(),
                &aws.wrong_answer_hint(service),
            )
        })
}

/// Longest error code that is shown.
const MAX_ERROR_CODE_CHARACTERS: usize = 64;

/// Longest ARN, in bytes.
const MAX_ARN_BYTES: usize = 2048;

/// Tells the reader of CloudTrail which host and user it was, in the characters that STS allows.
fn role_session_name() -> String {
    let host = gethostname().unwrap_or_default();
    let user = User::from_uid(geteuid())
        .ok()
        .flatten()
        .map_or_else(String::new, |user| user.name);
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(c);
    let name = format!("iam-kms-wrapper-{user}@{}", host.display());
    name.chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .take(64)
        .collect()
}

/// What is worth knowing of a failed call, whichever operation it was.
enum Refusal {
    /// No answer: refused, reset, no such host, no certificate, silence.
    NoAnswer(String),
    /// An answer that is none of STS's.
    Garbage { status: u16, hint: String },
    /// An error of STS.
    Service {
        status: u16,
        code: String,
        message: String,
        clock_offset_seconds: Option<i64>,
    },
}

fn refusal<E>(aws: &Settings, error: &SdkError<E, HttpResponse>) -> Refusal
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let garbage = |answer: &HttpResponse| Refusal::Garbage {
        status: answer.status().as_u16(),
        hint: aws.wrong_answer_hint(Service::Sts),
    };
    match error {
        SdkError::ResponseError(context) => garbage(context.raw()),
        SdkError::ServiceError(context) => match context.err().code() {
            Some(code) => Refusal::Service {
                status: context.raw().status().as_u16(),
                code: code
                    .chars()
                    .filter(char::is_ascii_graphic)
                    .take(MAX_ERROR_CODE_CHARACTERS)
                    .collect(),
                message: context.err().message().unwrap_or_default().into(),
                clock_offset_seconds: clock_offset_seconds(context.raw()),
            },
            None => garbage(context.raw()),
        },
        other => Refusal::NoAnswer(format!(
            "cannot reach {}: {}",
            aws.name(Service::Sts),
            no_answer(aws, other)
        )),
    }
}

fn no_answer<E>(aws: &Settings, error: &SdkError<E, HttpResponse>) -> String
where
    E: std::error::Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => format!(
            "no answer within {} (request_timeout_seconds)",
            seconds_text(aws.request_timeout().as_secs())
        ),
        other => root_cause(other),
    }
}

fn not_aws(whose: &str, status: u16, hint: &str) -> String {
    format!("the answer (HTTP status {status}) is not {whose}; {hint}")
}

/// How many seconds this host's clock is ahead of STS's, by the answer's Date header.
fn clock_offset_seconds(answer: &HttpResponse) -> Option<i64> {
    Some(unix_seconds_now() - clock::date_of(answer)?)
}

impl Refusal {
    fn judge(
        self,
        serial_number: &str,
        access_key_id: &str,
        token_code: Option<&TokenCode>,
    ) -> Outcome {
        match self {
            Self::NoAnswer(why) => Outcome::Unanswered(why),
            Self::Garbage {
                status: status @ 500..,
                hint,
            } => Outcome::Unanswered(format!("STS failed with HTTP status {status}; {hint}")),
            Self::Garbage { status, hint } => Outcome::Spent(not_aws("STS's", status, &hint)),
            Self::Service {
                status,
                code,
                message,
                clock_offset_seconds,
            } => match Meaning::of(status, &code, &message) {
                Meaning::WrongCode => Outcome::Spent(
                    "AWS refused the code: mistyped, or used before, or of another device".into(),
                ),
                Meaning::WrongSerial => Outcome::Permanent(format!(
                    "AWS does not know the MFA device {serial_number} for this user; correct kms_mfa_id in the configuration"
                )),
                Meaning::ClockSkew => Outcome::Unanswered(skew_text(clock_offset_seconds)),
                Meaning::BadKey => Outcome::Permanent(format!(
                    "AWS does not accept the access key {access_key_id} ({code}); check that it exists and is active, and that the secret key is its own"
                )),
                Meaning::ExpiredKey => Outcome::Permanent(
                    "the source credentials have expired; start again with fresh ones".into(),
                ),
                Meaning::Busy => Outcome::Unanswered(format!(
                    "STS cannot answer now: {code} (HTTP status {status})"
                )),
                Meaning::Other => Outcome::Permanent(format!(
                    "STS refused the request: {code}: {}",
                    presentable(&message, token_code)
                )),
            },
        }
    }
}

/// What an error of STS means.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    WrongCode,
    WrongSerial,
    ClockSkew,
    BadKey,
    ExpiredKey,
    Busy,
    Other,
}

impl Meaning {
    fn of(status: u16, code: &str, message: &str) -> Self {
        let says = |text| message.contains(text);
        match code {
            "AccessDenied" if says("invalid MFA one time pass code") => Self::WrongCode,
            "AccessDenied" if says("MultiFactorAuthentication failed") => Self::WrongSerial,
            "SignatureDoesNotMatch" | "InvalidSignatureException"
                if says("Signature expired") || says("Signature not yet current") =>
            {
                Self::ClockSkew
            }
            // Of another region or service than the endpoint's: the key is not what is wrong.
            "SignatureDoesNotMatch" if says("Credential should be scoped") => Self::Other,
            "RequestExpired" | "RequestTimeTooSkewed" => Self::ClockSkew,
            "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "SignatureDoesNotMatch"
            | "InvalidSignatureException" => Self::BadKey,
            "ExpiredToken" | "ExpiredTokenException" => Self::ExpiredKey,
            "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "TooManyRequestsException" => Self::Busy,
            _ if status >= 500 || status == 429 => Self::Busy,
            _ => Self::Other,
        }
    }
}

fn skew_text(clock_offset_seconds: Option<i64>) -> String {
    let off = clock_offset_seconds.map_or_else(
        || "this host's clock differs from AWS's".into(),
        offset_text,
    );
    format!("{off}, so AWS refuses its requests; set the clock (timedatectl)")
}

/// How far this host's clock is off.
pub fn offset_text(ahead_seconds: i64) -> String {
    let direction = if ahead_seconds > 0 {
        "ahead of"
    } else {
        "behind"
    };
    let seconds = ahead_seconds.unsigned_abs();
    format!("this host's clock is {seconds} seconds {direction} AWS's")
}

/// AWS's own words, bounded, on one line, and without the code.
fn presentable(message: &str, token_code: Option<&TokenCode>) -> String {
    let message = match token_code {
        Some(code) => message.replace(code.expose(), "[code]"),
        None => message.into(),
    };
    message.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sts_says_is_told_apart() {
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
                Meaning::WrongSerial,
            ),
            (
                403,
                "AccessDenied",
                "User: arn is not authorized to perform: sts:AssumeRole",
                Meaning::Other,
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
                Meaning::BadKey,
            ),
            (
                403,
                "SignatureDoesNotMatch",
                "Credential should be scoped to a valid region, not 'eu-west-1'. ",
                Meaning::Other,
            ),
            (
                403,
                "InvalidClientTokenId",
                "The security token included in the request is invalid.",
                Meaning::BadKey,
            ),
            (
                403,
                "ExpiredToken",
                "The security token included in the request is expired",
                Meaning::ExpiredKey,
            ),
            (400, "Throttling", "Rate exceeded", Meaning::Busy),
            (503, "ServiceUnavailable", "", Meaning::Busy),
            (500, "InternalFailure", "", Meaning::Busy),
            (
                400,
                "ValidationError",
                "1 validation error detected",
                Meaning::Other,
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
    fn the_skew_is_told_with_its_direction() {
        assert!(skew_text(Some(3600)).contains("is 3600 seconds ahead of AWS's"));
        assert!(skew_text(Some(-60)).contains("is 60 seconds behind AWS's"));
    }

    #[test]
    fn a_code_that_aws_echoes_is_not_shown() {
        let code = TokenCode::new(b"111676").unwrap();
        assert_eq!(
            presentable("Value '111676' at 'tokenCode'", Some(&code)),
            "Value '[code]' at 'tokenCode'"
        );
    }

    #[test]
    fn a_role_session_name_is_one_that_sts_accepts() {
        let name = role_session_name();
        assert!(
            name.starts_with("iam-kms-wrapper-") && (2..=64).contains(&name.len()),
            "{name}"
        );
    }
}
