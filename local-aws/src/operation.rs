//! What a request asks for: the service, the operation and its parameters.

use std::net::IpAddr;

use hyper::body::Bytes;
use hyper::header::HeaderMap;
use hyper::{Method, Uri};
use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorKind};
use crate::service::Service;

/// One HTTP request, whole.
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path and query as they were sent.
    pub uri: Uri,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The client's address.
    pub source_ip: IpAddr,
}

impl Request {
    /// The value of a header that occurs once and is text; `None` otherwise.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    }
}

/// What a request asks for.
pub struct Operation {
    /// Of which service.
    pub service: Service,
    /// The operation's name, empty if the request names none.
    pub name: String,
    /// The parameters, or what is wrong with their form. Answered only to callers who are known.
    pub parameters: Result<Map<String, Value>, ApiError>,
}

impl Operation {
    /// Reads the operation out of `request`: `X-Amz-Target` and JSON for KMS, else a form in the
    /// body (POST) or the query (GET) for STS.
    ///
    /// Source: <https://smithy.io/2.0/aws/protocols/>.
    pub fn of(request: &Request) -> Self {
        match request.headers.contains_key("x-amz-target") {
            true => Self::kms(request),
            false => Self::sts(request),
        }
    }

    fn kms(request: &Request) -> Self {
        let target = request.header("x-amz-target").unwrap_or_default();
        let name = target.strip_prefix("TrentService.").unwrap_or_default();
        let parameters = serde_json::from_slice(&request.body)
            .map_err(|error| malformed_request(ErrorKind::Serialization, &error));
        Self {
            service: Service::Kms,
            name: name.to_owned(),
            parameters,
        }
    }

    fn sts(request: &Request) -> Self {
        let form = match request.method {
            Method::GET => request.uri.query().unwrap_or_default().as_bytes(),
            _ => &request.body,
        };
        let mut parameters: Map<String, Value> = form_urlencoded::parse(form)
            .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())))
            .collect();
        let mut take = |name| match parameters.remove(name) {
            Some(Value::String(value)) => value,
            _ => String::new(),
        };
        let (name, version) = (take("Action"), take("Version"));
        let parameters = match version.as_str() {
            "2011-06-15" => Ok(parameters),
            _ => Err(unknown_action(&name, &version)),
        };
        Self {
            service: Service::Sts,
            name,
            parameters,
        }
    }

    /// The error that the service has no such operation.
    pub fn unknown(&self) -> ApiError {
        match self.service {
            Service::Sts => unknown_action(&self.name, "2011-06-15"),
            Service::Kms => ApiError::new(ErrorKind::UnknownOperation, ""),
        }
    }
}

/// The error that a request's parameters are not those of the operation. What is wrong with them may
/// repeat a secret, so that only the caller is told.
pub fn malformed_request(kind: ErrorKind, error: &serde_json::Error) -> ApiError {
    ApiError::new(kind, format!("local-aws: {error}")).logged_as("The request is malformed")
}

fn unknown_action(name: &str, version: &str) -> ApiError {
    ApiError::new(
        ErrorKind::UnknownOperation,
        format!("Could not find operation {name} for version {version}"),
    )
}
