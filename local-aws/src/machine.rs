//! What AWS gives to the programs of its own machines: sessions of a role, for no key and no code.
//!
//! The instance metadata service, version 2, and the container credentials endpoint, at the server's
//! own address. Sources:
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>,
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Response, StatusCode};
use jiff::Timestamp;
use serde_json::json;

use crate::authorization;
use crate::caller::Principal;
use crate::error::ApiError;
use crate::exchange::Exchange;
use crate::operation::Request;
use crate::session_token::Session;
use crate::state::State;
use crate::store::StoreError;
use crate::token::{Purpose, Token};

/// The file with the token of the container credentials endpoint.
const CONTAINER_TOKEN_FILE: &str = "container-token";
/// The file with the token for AssumeRoleWithWebIdentity.
const WEB_IDENTITY_TOKEN_FILE: &str = "web-identity-token";

const CONTAINER_PATH: &str = "/container-credentials";
const METADATA_TOKEN_PATH: &str = "/latest/api/token";
const METADATA_ROLE_PATH: &str = "/latest/meta-data/iam/security-credentials/";

/// How long a role's credentials last on an instance: about six hours.
const SESSION_SECONDS: u32 = 21_600;
/// The longest life of a metadata token, and the life of the tokens in files.
const MAX_TOKEN_SECONDS: u32 = 21_600;

/// Writes the tokens for the machine's role to their files.
pub fn write_tokens(exchange: &Exchange) -> Result<(), StoreError> {
    let Some(role) = &exchange.machine_role else {
        return Ok(());
    };
    for (purpose, file) in [
        (Purpose::Container, CONTAINER_TOKEN_FILE),
        (Purpose::WebIdentity, WEB_IDENTITY_TOKEN_FILE),
    ] {
        let make = |state: &mut State| Token::make(state, role, purpose, MAX_TOKEN_SECONDS);
        // The reason is on standard error; without the file, nobody gets in.
        if let Ok(token) = exchange.store.transaction(make)? {
            exchange.store.write(file, token.as_bytes())?;
        }
    }
    Ok(())
}

/// Answers a request of a machine's program; 404 where there is nothing of that name.
pub fn answer(exchange: &Exchange, request: &Request) -> Response<Full<Bytes>> {
    let answer = exchange
        .store
        .transaction(|state| respond(exchange, state, request));
    let (status, body) = match answer {
        Ok(Ok(body)) => (StatusCode::OK, body),
        Ok(Err(status)) => (status, String::new()),
        Err(error) => {
            ApiError::internal(error);
            (StatusCode::INTERNAL_SERVER_ERROR, String::new())
        }
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    if request.method == Method::PUT
        && let Some(ttl) = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds")
    {
        let headers = response.headers_mut();
        headers.insert("x-aws-ec2-metadata-token-ttl-seconds", ttl.clone());
    }
    response
}

fn respond(exchange: &Exchange, state: &State, request: &Request) -> Result<String, StatusCode> {
    let role = exchange
        .machine_role
        .as_ref()
        .filter(|role| state.roles.contains_key(*role))
        .ok_or(StatusCode::NOT_FOUND)?;
    let path = request.uri.path();
    match (&request.method, path.strip_prefix(METADATA_ROLE_PATH)) {
        (&Method::PUT, None) if path == METADATA_TOKEN_PATH => metadata_token(state, role, request),
        (&Method::GET, Some(name)) => {
            let token = request.header("x-aws-ec2-metadata-token");
            check_token(state, token, Purpose::Metadata)?;
            match name {
                "" => Ok(role.clone()),
                name if name == role => instance_credentials(exchange, state, role),
                _ => Err(StatusCode::NOT_FOUND),
            }
        }
        (&Method::GET, None) if path == CONTAINER_PATH => {
            let token = request.header("authorization");
            check_token(state, token, Purpose::Container)?;
            credentials(exchange, state, role)
        }
        _ => Err(StatusCode::NOT_FOUND),
    }
}

/// Not through a proxy: AWS keeps the tokens from those who can have a server fetch a URL for them.
fn metadata_token(state: &State, role: &str, request: &Request) -> Result<String, StatusCode> {
    if request.headers.contains_key("x-forwarded-for") {
        return Err(StatusCode::FORBIDDEN);
    }
    let seconds = request
        .header("x-aws-ec2-metadata-token-ttl-seconds")
        .and_then(|text| text.parse().ok())
        .filter(|seconds| (1..=MAX_TOKEN_SECONDS).contains(seconds))
        .ok_or(StatusCode::BAD_REQUEST)?;
    Token::make(state, role, Purpose::Metadata, seconds)
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

fn check_token(state: &State, token: Option<&str>, purpose: Purpose) -> Result<(), StatusCode> {
    token
        .and_then(|text| Token::read(state, text, purpose))
        .filter(|token| !token.is_over(state))
        .map(|_| ())
        .ok_or(StatusCode::UNAUTHORIZED)
}

/// EC2 assumes the role for its instance, if the trust policy lets it. A refusal is a document, too.
fn instance_credentials(
    exchange: &Exchange,
    state: &State,
    role: &str,
) -> Result<String, StatusCode> {
    match authorization::trusts_service(state, role, "ec2.amazonaws.com") {
        Ok(true) => credentials(exchange, state, role),
        Ok(false) => Ok(json!({
            "Code": "AssumeRoleUnauthorizedAccess",
            "Message": format!("EC2 cannot assume the role {role}."),
            "LastUpdated": timestamp(state.now()),
        })
        .to_string()),
        Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn timestamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn credentials(exchange: &Exchange, state: &State, role: &str) -> Result<String, StatusCode> {
    let seconds = exchange.session_lifetime_seconds.unwrap_or(SESSION_SECONDS);
    let principal = Principal::AssumedRole {
        role: role.to_owned(),
        session_name: "machine".to_owned(),
    };
    Session::new(state, principal, false, seconds)
        .and_then(|session| {
            let document = json!({
                "Code": "Success",
                "Type": "AWS-HMAC",
                "LastUpdated": timestamp(session.facts.created),
                "RoleArn": state.role_arn(role),
                "AccessKeyId": session.access_key_id,
                "SecretAccessKey": session.secret_access_key.expose(),
                "Token": session.token(state)?,
                "Expiration": timestamp(session.expiration),
            });
            Ok(document.to_string())
        })
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
