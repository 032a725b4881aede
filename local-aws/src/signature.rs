//! AWS Signature Version 4, from the verifier's side.
//!
//! Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>.

use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::error::{ApiError, ErrorKind};
use crate::operation::Request;
use crate::secret::Secret;

/// The only algorithm.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What canonical queries leave unescaped: RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The parts of an `Authorization` header and the time it was made for.
pub struct Authorization {
    /// The access key.
    pub access_key_id: String,
    /// The credential scope's date, `YYYYMMDD`.
    pub date: String,
    /// The credential scope's region.
    pub region: String,
    /// The credential scope's service.
    pub service: String,
    /// The names of the signed headers, in order.
    pub signed_headers: Vec<String>,
    /// The `X-Amz-Date` header, `YYYYMMDD'T'HHMMSS'Z'` by convention, as it came.
    pub amz_date: String,
    signature: String,
}

impl Authorization {
    /// Reads the headers. Errors: MissingAuthenticationToken, IncompleteSignature.
    pub fn of(request: &Request) -> Result<Self, ApiError> {
        let Some(header) = request.header("authorization") else {
            let message = "Request is missing Authentication Token";
            return Err(ApiError::new(
                ErrorKind::MissingAuthenticationToken,
                message,
            ));
        };
        let parameters = header.strip_prefix(ALGORITHM).ok_or_else(|| {
            incomplete(
                &format!("Unsupported AWS 'algorithm', use {ALGORITHM}."),
                header,
            )
        })?;
        let credential = parameter(parameters, "Credential");
        let signature = parameter(parameters, "Signature");
        let signed_headers = parameter(parameters, "SignedHeaders");
        let amz_date = request.header("x-amz-date");
        let (Some(credential), Some(signature), Some(signed_headers), Some(amz_date)) =
            (credential, signature, signed_headers, amz_date)
        else {
            return Err(missing_parts(
                &[
                    (credential.is_none(), "'Credential' parameter"),
                    (signature.is_none(), "'Signature' parameter"),
                    (signed_headers.is_none(), "'SignedHeaders' parameter"),
                    (
                        amz_date.is_none(),
                        "existence of either a 'X-Amz-Date' or a 'Date' header",
                    ),
                ],
                header,
            ));
        };
        let [access_key_id, date, region, service, "aws4_request"] =
            credential.split('/').collect::<Vec<_>>()[..]
        else {
            let what = "Credential must have exactly 5 slash-delimited elements, e.g. \
                        keyid/date/region/service/term.";
            return Err(incomplete(what, header));
        };
        Ok(Self {
            access_key_id: access_key_id.to_owned(),
            date: date.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            signed_headers: signed_headers.split(';').map(str::to_owned).collect(),
            amz_date: amz_date.to_owned(),
            signature: signature.to_owned(),
        })
    }

    /// Whether `secret` made the signature over `request`.
    pub fn is_signed_with(&self, secret: &Secret, request: &Request) -> bool {
        let expected = self.expected_signature(secret, request);
        expected.is_some_and(|expected| expected.as_bytes().ct_eq(self.signature.as_bytes()).into())
    }

    /// `None` if a signed header is not there or is not text.
    fn expected_signature(&self, secret: &Secret, request: &Request) -> Option<String> {
        let canonical_request = self.canonical_request(request)?;
        let scope = format!(
            "{}/{}/{}/aws4_request",
            self.date, self.region, self.service
        );
        let hash = HEXLOWER.encode(&Sha256::digest(canonical_request));
        let string_to_sign = format!("{ALGORITHM}\n{}\n{scope}\n{hash}", self.amz_date);
        let key = Zeroizing::new(format!("AWS4{}", secret.expose()));
        let mut key = hmac(key.as_bytes(), &self.date)?;
        for part in [&self.region, &self.service, "aws4_request"] {
            key = hmac(&*key, part)?;
        }
        Some(HEXLOWER.encode(&*hmac(&*key, &string_to_sign)?))
    }

    fn canonical_request(&self, request: &Request) -> Option<String> {
        let mut canonical = format!(
            "{}\n{}\n{}\n",
            request.method,
            request.uri.path(),
            canonical_query(request.uri.query().unwrap_or_default())
        );
        for name in &self.signed_headers {
            canonical += &format!("{name}:{}\n", canonical_values(request, name)?);
        }
        let payload_hash = HEXLOWER.encode(&Sha256::digest(&request.body));
        Some(format!(
            "{canonical}\n{}\n{payload_hash}",
            self.signed_headers.join(";")
        ))
    }
}

/// The values of a header, each trimmed and with runs of spaces made one.
fn canonical_values(request: &Request, name: &str) -> Option<String> {
    let mut values = Vec::new();
    for value in request.headers.get_all(name) {
        values.push(
            value
                .to_str()
                .ok()?
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
        );
    }
    (!values.is_empty()).then(|| values.join(","))
}

/// The parameters of a query, unescaped, escaped again and sorted.
fn canonical_query(query: &str) -> String {
    let mut parameters: Vec<(String, String)> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .map(|(name, value)| (escape_again(name), escape_again(value)))
        .collect();
    parameters.sort();
    let pairs: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

fn escape_again(text: &str) -> String {
    let decoded: Vec<u8> = percent_decode_str(text).collect();
    percent_encode(&decoded, ESCAPED).to_string()
}

fn hmac(key: &[u8], message: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(message.as_bytes());
    Some(Zeroizing::new(mac.finalize().into_bytes().into()))
}

/// The value of `name=value` among parameters parted by commas.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    parameters
        .split(',')
        .filter_map(|parameter| parameter.trim().split_once('='))
        .find_map(|(key, value)| (key == name && !value.is_empty()).then_some(value))
}

fn missing_parts(parts: &[(bool, &str)], header: &str) -> ApiError {
    let sentences: Vec<String> = parts
        .iter()
        .filter(|(missing, _)| *missing)
        .map(|(_, part)| format!("Authorization header requires {part}."))
        .collect();
    incomplete(&sentences.join(" "), header)
}

/// AWS repeats the header as a hash.
fn incomplete(what: &str, header: &str) -> ApiError {
    let hash = BASE64.encode(&Sha256::digest(header));
    let header = format!("(Hashed with SHA-256 and encoded with Base64) Authorization={hash}");
    ApiError::new(ErrorKind::IncompleteSignature, format!("{what} {header}"))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use hyper::header::HeaderMap;
    use hyper::{Method, Uri};

    use super::*;

    /// Key, scope and time of AWS's published test suite for this algorithm.
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn request(path_and_query: &str, signature: &str) -> Request {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature={signature}"
        );
        let mut headers = HeaderMap::new();
        headers.insert("host", "example.amazonaws.com".parse().unwrap());
        headers.insert("x-amz-date", "20150830T123600Z".parse().unwrap());
        headers.insert("authorization", authorization.parse().unwrap());
        Request {
            method: Method::GET,
            uri: path_and_query.parse::<Uri>().unwrap(),
            headers,
            body: Default::default(),
            source_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }

    fn is_accepted(request: &Request) -> bool {
        let authorization = Authorization::of(request).unwrap();
        authorization.is_signed_with(&Secret::new(SECRET.into()), request)
    }

    /// `get-vanilla` and `get-vanilla-query-order-key-case`.
    const VECTORS: [(&str, &str); 2] = [
        (
            "/",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "/?Param2=value2&Param1=value1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
    ];

    #[test]
    fn the_signatures_of_the_published_test_suite_are_accepted() {
        for (path, signature) in VECTORS {
            assert!(is_accepted(&request(path, signature)), "{path}");
        }
    }

    #[test]
    fn any_change_to_what_is_signed_is_refused() {
        let (path, signature) = VECTORS[1];
        let signed = || request(path, signature);
        let mut requests = vec![
            request("/?Param2=value2&Param1=value2", signature),
            request(path, &signature.replace('b', "c")),
            request(path, &signature[..63]),
        ];
        for (name, value) in [("host", "example.com"), ("x-amz-date", "20150830T123601Z")] {
            let mut changed = signed();
            changed.headers.insert(name, value.parse().unwrap());
            requests.push(changed);
        }
        let mut changed = signed();
        changed.method = Method::POST;
        requests.push(changed);
        let mut changed = signed();
        changed.body = "x".into();
        requests.push(changed);
        let mut changed = signed();
        changed
            .headers
            .append("host", "example.com".parse().unwrap());
        requests.push(changed);
        for (number, request) in requests.iter().enumerate() {
            assert!(!is_accepted(request), "change {number}");
        }
    }

    #[test]
    fn an_authorization_header_names_what_it_lacks() {
        let mut request = request("/", "00");
        request.headers.insert(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=A/b".parse().unwrap(),
        );
        request.headers.remove("x-amz-date");
        let error = Authorization::of(&request).map(|_| ()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::IncompleteSignature);
        assert!(
            error.message.starts_with(
                "Authorization header requires 'Signature' parameter. Authorization header \
                 requires 'SignedHeaders' parameter. Authorization header requires existence of \
                 either a 'X-Amz-Date' or a 'Date' header. (Hashed"
            ),
            "{}",
            error.message
        );
    }
}
