//! Answers in the two protocols: XML for STS, JSON 1.1 for KMS.
//!
//! Source: <https://smithy.io/2.0/aws/protocols/>.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, DATE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use quick_xml::escape::escape;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::operation::Operation;
use crate::service::Service;

const JSON: &str = "application/x-amz-json-1.1";
const XML: &str = "text/xml";
const HTML: &str = "text/html";
const XML_NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
const CAPTIVE_PORTAL: &str = "<!DOCTYPE html><html><head><title>Welcome</title></head><body>\
    <h1>Sign in to use this network</h1></body></html>";

/// What is answered.
pub enum Answer {
    /// The operation's result or error.
    Outcome(Result<Value, ApiError>),
    /// A page that no AWS service sends.
    CaptivePortal,
    /// Nothing in the body.
    Empty,
}

/// Renders an answer.
pub fn render(
    operation: &Operation,
    answer: &Answer,
    request_id: &str,
    now: Timestamp,
) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match (answer, operation.service) {
        (Answer::CaptivePortal, _) => (200, HTML, CAPTIVE_PORTAL.to_owned()),
        (Answer::Empty, Service::Sts) => (200, XML, String::new()),
        (Answer::Empty, Service::Kms) => (200, JSON, String::new()),
        (Answer::Outcome(Ok(value)), Service::Sts) => {
            (200, XML, sts_result(&operation.name, value, request_id))
        }
        (Answer::Outcome(Ok(Value::Null)), Service::Kms) => (200, JSON, String::new()),
        (Answer::Outcome(Ok(value)), Service::Kms) => (200, JSON, value.to_string()),
        (Answer::Outcome(Err(error)), service) => {
            let (code, status) = error.kind.code_and_status(service);
            match service {
                Service::Sts => (
                    status,
                    XML,
                    sts_error(code, status, &error.message, request_id),
                ),
                Service::Kms => (status, JSON, kms_error(code, &error.message)),
            }
        }
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let date = DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&now)
        .unwrap_or_default();
    for (name, value) in [
        (DATE, date.as_str()),
        (HeaderName::from_static("x-amzn-requestid"), request_id),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

fn sts_result(operation: &str, value: &Value, request_id: &str) -> String {
    format!(
        "<{operation}Response xmlns=\"{XML_NAMESPACE}\">\n  <{operation}Result>{}</{operation}Result>\n  \
         <ResponseMetadata>\n    <RequestId>{request_id}</RequestId>\n  </ResponseMetadata>\n\
         </{operation}Response>\n",
        elements(value)
    )
}

fn sts_error(code: &str, status: u16, message: &str, request_id: &str) -> String {
    let error = json!({
        "Type": if status < 500 { "Sender" } else { "Receiver" },
        "Code": code,
        "Message": message,
    });
    format!(
        "<ErrorResponse xmlns=\"{XML_NAMESPACE}\">\n  <Error>{}</Error>\n  \
         <RequestId>{request_id}</RequestId>\n</ErrorResponse>\n",
        elements(&error)
    )
}

/// KMS leaves the message out where it has none.
fn kms_error(code: &str, message: &str) -> String {
    match message {
        "" => json!({ "__type": code }),
        _ => json!({ "__type": code, "message": message }),
    }
    .to_string()
}

/// An object's members as XML elements.
fn elements(value: &Value) -> String {
    match value {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| format!("<{name}>{}</{name}>", elements(value)))
            .collect(),
        Value::String(text) => escape(text).into_owned(),
        other => escape(other.to_string()).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_break_out_of_its_element() {
        let xml = sts_error("ValidationError", 400, "Value '<a>&' is wrong", "id");
        assert!(
            xml.contains("<Message>Value &apos;&lt;a&gt;&amp;&apos; is wrong</Message>"),
            "{xml}"
        );
    }

    #[test]
    fn an_error_without_a_message_has_no_message() {
        assert_eq!(
            kms_error("InvalidCiphertextException", ""),
            r#"{"__type":"InvalidCiphertextException"}"#
        );
    }
}
