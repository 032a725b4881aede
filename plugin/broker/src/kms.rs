//! The KMS calls, one try each, and what their failures mean.
//!
//! Source: <https://docs.aws.amazon.com/kms/latest/APIReference/API_Operations.html>.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_sdk_kms::{
    Client,
    config::{Builder, Region},
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
    primitives::Blob,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::timeout::TimeoutConfig;
use broker_protocol::{
    Decrypt, Failure, FailureKind, GenerateDataKey, KmsOptions, MAX_CIPHERTEXT_BYTES, PlaintextKey,
    Reply, Request,
};
use iam_kms_wrapper::{
    aws::{self, root_cause},
    config::is_region,
    session::Session,
};
use tokio::runtime::Handle;

use crate::{keeper::Keeper, key_cache::KeyCache};

/// Calls KMS with the session that is open.
pub(crate) struct Kms {
    runtime: Handle,
    clients: Mutex<Clients>,
    cache: KeyCache,
}

/// Clients of one session, by region and endpoint: they hold its connections.
#[derive(Default)]
struct Clients {
    session: Option<Arc<Session>>,
    by_target: HashMap<(String, String), Client>,
}

/// Regions and endpoints that peers have named, before the least is forgotten.
const MAX_CLIENTS: usize = 16;

impl Kms {
    pub fn new(runtime: Handle, cache: KeyCache) -> Self {
        Self {
            runtime,
            clients: Mutex::default(),
            cache,
        }
    }

    /// Does what `request` asks of KMS.
    pub fn answer(&self, keeper: &Keeper, request: &Request) -> Result<Reply, Failure> {
        match request {
            Request::Session => Ok(Reply::Session(keeper.state())),
            Request::Decrypt(request) => self.decrypt(keeper, request),
            Request::GenerateDataKey(request) => self.generate_data_key(keeper, request),
        }
    }

    /// Unwraps a data key; one that was unwrapped before, without a session and a request id.
    fn decrypt(&self, keeper: &Keeper, request: &Decrypt) -> Result<Reply, Failure> {
        let ciphertext_blob = &request.ciphertext_blob;
        if !(1..=MAX_CIPHERTEXT_BYTES).contains(&ciphertext_blob.len()) {
            return Err(invalid("a wrapped key must have 1 to 6144 bytes"));
        }
        let answered = self.call_decrypt(keeper, request);
        match &answered {
            Ok(Reply::Decrypted {
                key,
                master_key_arn,
                ..
            }) => self.cache.keep(ciphertext_blob, key, master_key_arn),
            Err(failure) if failure.kind == FailureKind::SessionOver => {
                if let Some((key, master_key_arn)) = self.cache.find(ciphertext_blob) {
                    return Ok(Reply::Decrypted {
                        key,
                        master_key_arn,
                        request_id: String::new(),
                    });
                }
            }
            Err(failure) => self.cache.refused(ciphertext_blob, failure.kind),
            Ok(_) => {}
        }
        answered
    }

    fn call_decrypt(&self, keeper: &Keeper, request: &Decrypt) -> Result<Reply, Failure> {
        let (session, client) = self.client(keeper, &request.options)?;
        let blob = Blob::new(request.ciphertext_blob.as_slice());
        let call = client
            .decrypt()
            .ciphertext_blob(blob)
            .customize()
            .config_override(timeouts(keeper, &request.options))
            .send();
        let answer = self
            .runtime
            .block_on(call)
            .map_err(|error| failure("Decrypt", &error, || keeper.ended(&session)))?;
        let plaintext = answer.plaintext().map(AsRef::as_ref).unwrap_or_default();
        Ok(Reply::Decrypted {
            key: PlaintextKey::new(plaintext)
                .map_err(|error| incomplete("Decrypt", &answer, &error.to_string()))?,
            master_key_arn: answer.key_id().unwrap_or_default().into(),
            request_id: answer.request_id().unwrap_or_default().into(),
        })
    }

    /// Makes a wrapped data key.
    fn generate_data_key(
        &self,
        keeper: &Keeper,
        request: &GenerateDataKey,
    ) -> Result<Reply, Failure> {
        if !matches!(request.key_bytes, 16 | 32) {
            return Err(invalid("a data key must have 16 or 32 bytes"));
        }
        if !(1..=2048).contains(&request.master_key_id.len()) {
            return Err(invalid("a master key id must have 1 to 2048 characters"));
        }
        let (session, client) = self.client(keeper, &request.options)?;
        let call = client
            .generate_data_key_without_plaintext()
            .key_id(&request.master_key_id)
            .number_of_bytes(request.key_bytes.into())
            .customize()
            .config_override(timeouts(keeper, &request.options))
            .send();
        const OPERATION: &str = "GenerateDataKeyWithoutPlaintext";
        let answer = self
            .runtime
            .block_on(call)
            .map_err(|error| failure(OPERATION, &error, || keeper.ended(&session)))?;
        let ciphertext_blob = answer
            .ciphertext_blob()
            .map(AsRef::as_ref)
            .unwrap_or_default();
        if !(1..=MAX_CIPHERTEXT_BYTES).contains(&ciphertext_blob.len()) {
            return Err(incomplete(
                OPERATION,
                &answer,
                "a wrapped key of no or too many bytes",
            ));
        }
        Ok(Reply::Generated {
            ciphertext_blob: ciphertext_blob.into(),
            master_key_arn: answer.key_id().unwrap_or_default().into(),
            request_id: answer.request_id().unwrap_or_default().into(),
        })
    }

    /// A client of the open session for the peer's region and endpoint.
    fn client(
        &self,
        keeper: &Keeper,
        options: &KmsOptions,
    ) -> Result<(Arc<Session>, Client), Failure> {
        check_options(options)?;
        let session = keeper.session()?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = clients
            .session
            .as_ref()
            .is_some_and(|old| Arc::ptr_eq(old, &session));
        if !is_same || clients.by_target.len() >= MAX_CLIENTS {
            *clients = Clients {
                session: Some(Arc::clone(&session)),
                ..Clients::default()
            };
        }
        let target = (options.region.clone(), options.endpoint_url.clone());
        let client = clients
            .by_target
            .entry(target)
            .or_insert_with(|| self.new_client(keeper, &session, options))
            .clone();
        Ok((session, client))
    }

    fn new_client(&self, keeper: &Keeper, session: &Session, options: &KmsOptions) -> Client {
        let settings = self
            .runtime
            .block_on(aws::load(keeper.config(), Some(session)));
        let mut builder = Builder::from(&settings);
        if !options.region.is_empty() {
            builder = builder.region(Region::new(options.region.clone()));
        }
        if !options.endpoint_url.is_empty() {
            builder = builder.endpoint_url(&options.endpoint_url);
        }
        Client::from_conf(builder.build())
    }
}

fn check_options(options: &KmsOptions) -> Result<(), Failure> {
    if !options.region.is_empty() && !is_region(&options.region) {
        return Err(invalid(
            "aws_key_management_region is no AWS region, such as us-east-1",
        ));
    }
    let url = options.endpoint_url.as_str();
    let is_url = url.starts_with("https://") || url.starts_with("http://");
    if !url.is_empty()
        && (!is_url || url.len() > 2048 || !url.chars().all(|c| c.is_ascii_graphic()))
    {
        return Err(invalid(
            "aws_key_management_endpoint_url is no URL, such as https://kms.us-east-1.amazonaws.com",
        ));
    }
    Ok(())
}

fn timeouts(keeper: &Keeper, options: &KmsOptions) -> Builder {
    let timeout = match options.request_timeout_milliseconds {
        0 => keeper.config().request_timeout,
        milliseconds => Duration::from_millis(milliseconds.into()),
    };
    let timeouts = TimeoutConfig::builder()
        .operation_timeout(timeout)
        .connect_timeout(timeout);
    Builder::default().timeout_config(timeouts.build())
}

fn invalid(why: &str) -> Failure {
    Failure {
        kind: FailureKind::InvalidRequest,
        message: why.to_owned(),
    }
}

fn incomplete(operation: &str, answer: &impl RequestId, why: &str) -> Failure {
    Failure {
        kind: FailureKind::Other,
        message: format!("KMS {operation}{} answered with {why}", request(answer)),
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
    text.chars()
        .filter(|c| !c.is_control())
        .take(limit)
        .collect()
}

/// Reads the failure of a call. `session_over` is asked where KMS says that the session has ended.
fn failure<E>(
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
                "the answer (HTTP status {status}) is not KMS's; look for a proxy or a wrong endpoint URL"
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
            Kind::AccessDenied,
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
            "check aws_key_management_master_key_id and the region",
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
    use aws_sdk_kms::operation::decrypt::DecryptError;
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;

    /// The failure that the plugin gets when KMS answers with this error.
    fn failure_of(code: &str, said: &str) -> Failure {
        let metadata = ErrorMetadata::builder().code(code).message(said).build();
        let mut answer = HttpResponse::new(400.try_into().unwrap(), SdkBody::empty());
        answer.headers_mut().insert("x-amzn-requestid", "8a6f");
        let error = SdkError::service_error(DecryptError::generic(metadata), answer);
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
        assert!(message.contains("AWS says: saidsaid"), "{message}");
        assert!(message.len() < 700, "{message}");
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

    #[test]
    fn a_region_that_would_lead_to_another_host_is_refused() {
        let with_region = |region: &str| KmsOptions {
            region: region.into(),
            ..KmsOptions::default()
        };
        assert!(check_options(&with_region("us-east-1")).is_ok());
        assert!(check_options(&with_region("")).is_ok());
        for region in ["x.evil.example", "us-east-1/", "US-EAST-1", &"a".repeat(64)] {
            assert!(check_options(&with_region(region)).is_err(), "{region}");
        }
    }

    #[test]
    fn what_is_no_url_is_no_endpoint() {
        let with_url = |url: &str| KmsOptions {
            endpoint_url: url.into(),
            ..KmsOptions::default()
        };
        assert!(check_options(&with_url("http://127.0.0.1:4566")).is_ok());
        for url in ["kms", "file:///etc/passwd", "http://a b", "https://\u{e9}"] {
            assert!(check_options(&with_url(url)).is_err(), "{url}");
        }
    }
}
