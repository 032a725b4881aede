//! The HTTP client of all calls of AWS, for `object_store`: with the proxy, the CA certificates, the
//! resolver, the time limits and the errors that name the host. And S3's errors, read from its answers.

use std::sync::Arc;

use async_trait::async_trait;
use aws_session::aws_error::{S3Answer, clock_offset_seconds};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector as _, SharedHttpConnector},
    orchestrator::HttpRequest as SdkRequest,
    result::ConnectorError,
};
use aws_smithy_types::body::SdkBody;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use object_store::{
    ClientOptions, CredentialProvider, Result as ObjectResult,
    aws::AwsCredential,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use serde::Deserialize;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// There is no answer.
    #[error("{0}")]
    NoAnswer(String),
    /// The answer is an error.
    #[error("{}", .0.code)]
    Answered(Box<S3Answer>),
}

/// The credentials of one session.
#[derive(Debug)]
pub(crate) struct Fixed(pub Arc<AwsCredential>);

#[async_trait]
impl CredentialProvider for Fixed {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> ObjectResult<Arc<AwsCredential>> {
        Ok(Arc::clone(&self.0))
    }
}

/// Gives `object_store` its client.
#[derive(Debug)]
pub(crate) struct Factory(pub SharedHttpConnector);

impl HttpConnector for Factory {
    fn connect(&self, _: &ClientOptions) -> ObjectResult<HttpClient> {
        Ok(HttpClient::new(Connection(self.0.clone())))
    }
}

#[derive(Debug)]
struct Connection(SharedHttpConnector);

#[async_trait]
impl HttpService for Connection {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let request = http::Request::from_parts(parts, SdkBody::from(body));
        let request = SdkRequest::try_from(request).map_err(|error| no_answer(&error))?;
        let answer = self.0.call(request).await.map_err(unreachable)?;
        let clock_offset_seconds = clock_offset_seconds(&answer);
        let answer = answer
            .try_into_http1x()
            .map_err(|error| no_answer(&error))?;
        let (parts, body) = answer.into_parts();
        if parts.status.is_success() {
            let body = body.map_err(|error| no_answer(&*error));
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)));
        }
        let body = body.collect().await.map_err(|error| no_answer(&*error))?;
        let body = body.to_bytes();
        let mut error = read_error(&body);
        error.status = parts.status.as_u16();
        error.clock_offset_seconds = clock_offset_seconds;
        let region = parts.headers.get("x-amz-bucket-region");
        error.bucket_region = region
            .and_then(|region| region.to_str().ok())
            .map(str::to_owned)
            .or(error.bucket_region);
        if is_about_object(parts.status, &error.code) {
            let body = Full::new(body).map_err(|never| match never {});
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)));
        }
        let error = RequestError::Answered(Box::new(error));
        Err(HttpError::new(HttpErrorKind::Unknown, error))
    }
}

/// Whether `object_store` reads the answer right: there is such an object, or none.
fn is_about_object(status: StatusCode, code: &str) -> bool {
    match status {
        StatusCode::NOT_FOUND => code == "NoSuchKey",
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED | StatusCode::NOT_MODIFIED => true,
        _ => false,
    }
}

/// Reads an error of S3; without a code if the body is not an S3 error.
///
/// Source: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>.
fn read_error(body: &[u8]) -> S3Answer {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Document {
        code: String,
        message: String,
        request_id: String,
        region: Option<String>,
    }
    let text = String::from_utf8_lossy(body);
    let document: Document = quick_xml::de::from_str(&text).unwrap_or_default();
    S3Answer {
        code: document.code,
        message: document.message,
        request_id: document.request_id,
        bucket_region: document.region,
        ..S3Answer::default()
    }
}

fn no_answer(error: &dyn std::error::Error) -> HttpError {
    let text = RequestError::NoAnswer(error.to_string());
    HttpError::new(HttpErrorKind::Unknown, text)
}

/// The client's texts name host and reason.
fn unreachable(error: ConnectorError) -> HttpError {
    let text =
        std::error::Error::source(&error).map_or_else(|| error.to_string(), |it| it.to_string());
    HttpError::new(HttpErrorKind::Unknown, RequestError::NoAnswer(text))
}
