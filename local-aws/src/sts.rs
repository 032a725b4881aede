//! STS: sessions for MFA codes and roles.
//!
//! Source: <https://docs.aws.amazon.com/STS/latest/APIReference/>.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::authorization::{self, Access, Denial};
use crate::caller::{Caller, Principal};
use crate::constraint::{Violations, required};
use crate::error::{ApiError, ErrorKind};
use crate::identifier::is_name_byte;
use crate::mfa;
use crate::operation::{Operation, malformed_request};
use crate::policy::{Context, PolicyKind};
use crate::session_token::Session;
use crate::state::State;
use crate::token::{self, WebIdentity};

/// The operations there are.
pub const OPERATIONS: [&str; 4] = [
    "AssumeRole",
    UNSIGNED,
    "GetCallerIdentity",
    "GetSessionToken",
];

/// The operation that is called without a key.
pub const UNSIGNED: &str = "AssumeRoleWithWebIdentity";

const MIN_SESSION_SECONDS: u32 = 900;
const MAX_SESSION_SECONDS: u32 = 129_600;
const DEFAULT_SESSION_SECONDS: u32 = 43_200;
/// The longest that any role's sessions may last.
const MAX_ROLE_SESSION_SECONDS: u32 = 43_200;
/// How long the sessions of a role last that was made without another maximum: the roles here.
const ROLE_SESSION_SECONDS: u32 = 3_600;

/// Calls the operation. `session_lifetime_seconds` overrides how long new sessions last.
pub fn call(
    state: &mut State,
    caller: &Caller,
    operation: &Operation,
    session_lifetime_seconds: Option<u32>,
) -> Result<Value, ApiError> {
    let parameters = operation.parameters.clone()?;
    match operation.name.as_str() {
        "GetSessionToken" => {
            get_session_token(state, caller, parse(parameters)?, session_lifetime_seconds)
        }
        "AssumeRole" => assume_role(state, caller, parse(parameters)?, session_lifetime_seconds),
        "GetCallerIdentity" => {
            let NoParameters {} = parse(parameters)?;
            get_caller_identity(state, caller)
        }
        _ => Err(operation.unknown()),
    }
}

/// Calls [`UNSIGNED`], as [`call`] does the others.
pub fn call_unsigned(
    state: &State,
    operation: &Operation,
    session_lifetime_seconds: Option<u32>,
) -> Result<Value, ApiError> {
    let request: AssumeRoleWithWebIdentity = parse(operation.parameters.clone()?)?;
    let (seconds, role_arn, session_name) = role_session(
        request.role_arn,
        request.role_session_name,
        request.duration_seconds.as_deref(),
        Violations::default(),
    )?;
    let token_text = required("webIdentityToken", request.web_identity_token)?;
    let refused = |kind, message: &str| Err(ApiError::new(kind, message));
    let role = match token::web_identity(state, &token_text) {
        WebIdentity::Role(role) => role,
        WebIdentity::Expired => {
            return refused(ErrorKind::ExpiredIdentityToken, "Token expired");
        }
        WebIdentity::Unknown => {
            let message = "The web identity token that was passed could not be validated";
            return refused(ErrorKind::InvalidIdentityToken, message);
        }
    };
    if !state.roles.contains_key(&role) || state.role_arn(&role) != role_arn {
        return Err(denied(
            "Not authorized to perform sts:AssumeRoleWithWebIdentity",
        ));
    }
    give_role_session(
        state,
        role,
        session_name,
        session_lifetime_seconds.unwrap_or(seconds),
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParameters {}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct GetSessionToken {
    duration_seconds: Option<String>,
    serial_number: Option<String>,
    token_code: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct AssumeRole {
    role_arn: Option<String>,
    role_session_name: Option<String>,
    duration_seconds: Option<String>,
    serial_number: Option<String>,
    token_code: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct AssumeRoleWithWebIdentity {
    duration_seconds: Option<String>,
    role_arn: Option<String>,
    role_session_name: Option<String>,
    web_identity_token: Option<String>,
}

fn get_session_token(
    state: &mut State,
    caller: &Caller,
    request: GetSessionToken,
    session_lifetime_seconds: Option<u32>,
) -> Result<Value, ApiError> {
    let seconds = parse_seconds(request.duration_seconds.as_deref(), DEFAULT_SESSION_SECONDS)?;
    let (serial_number, code) = (
        request.serial_number.as_deref(),
        request.token_code.as_deref(),
    );
    let mut violations = Violations::default();
    violations.check_range(
        "durationSeconds",
        seconds,
        MIN_SESSION_SECONDS,
        MAX_SESSION_SECONDS,
    );
    check_mfa_parameters(&mut violations, serial_number, code);
    violations.into_result()?;
    if caller.session.is_some() {
        return Err(denied(
            "Cannot call GetSessionToken with session credentials",
        ));
    }
    let mfa = mfa::take_code(state, &caller.principal, serial_number, code)?;
    let seconds = session_lifetime_seconds.unwrap_or(seconds);
    let session = Session::new(state, caller.principal.clone(), mfa, seconds)?;
    Ok(json!({ "Credentials": credentials(state, &session)? }))
}

fn assume_role(
    state: &mut State,
    caller: &Caller,
    request: AssumeRole,
    session_lifetime_seconds: Option<u32>,
) -> Result<Value, ApiError> {
    let (serial_number, code) = (
        request.serial_number.as_deref(),
        request.token_code.as_deref(),
    );
    let mut violations = Violations::default();
    check_mfa_parameters(&mut violations, serial_number, code);
    let (seconds, role_arn, session_name) = role_session(
        request.role_arn,
        request.role_session_name,
        request.duration_seconds.as_deref(),
        violations,
    )?;
    let mfa = mfa::take_code(state, &caller.principal, serial_number, code)?;
    let role = authorize_assume_role(state, caller, &role_arn, mfa)?;
    give_role_session(
        state,
        role,
        session_name,
        session_lifetime_seconds.unwrap_or(seconds),
    )
}

/// Checks how long, of which role and by which name a session is wanted; `violations` are those of
/// the other parameters.
fn role_session(
    role_arn: Option<String>,
    session_name: Option<String>,
    seconds: Option<&str>,
    mut violations: Violations,
) -> Result<(u32, String, String), ApiError> {
    let seconds = parse_seconds(seconds, ROLE_SESSION_SECONDS)?;
    let role_arn = required("roleArn", role_arn)?;
    let session_name = required("roleSessionName", session_name)?;
    violations.check_length("roleArn", &role_arn, 20, 2048);
    violations.check_length("roleSessionName", &session_name, 2, 64);
    violations.check_pattern(
        "roleSessionName",
        &session_name,
        "[\\w+=,.@-]*",
        is_name_byte,
    );
    violations.check_range(
        "durationSeconds",
        seconds,
        MIN_SESSION_SECONDS,
        MAX_ROLE_SESSION_SECONDS,
    );
    violations.into_result()?;
    if seconds > ROLE_SESSION_SECONDS {
        let message =
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        return Err(ApiError::new(ErrorKind::Validation, message));
    }
    Ok((seconds, role_arn, session_name))
}

fn give_role_session(
    state: &State,
    role: String,
    session_name: String,
    seconds: u32,
) -> Result<Value, ApiError> {
    let principal = Principal::AssumedRole { role, session_name };
    let assumed_role_user = json!({
        "AssumedRoleId": principal.user_id(state),
        "Arn": principal.arn(state),
    });
    let session = Session::new(state, principal, false, seconds)?;
    Ok(json!({
        "Credentials": credentials(state, &session)?,
        "AssumedRoleUser": assumed_role_user,
    }))
}

/// Asks the role's trust policy; the role's name if it may be assumed. A role that does not exist
/// is denied like one that may not be assumed.
fn authorize_assume_role(
    state: &State,
    caller: &Caller,
    role_arn: &str,
    mfa: bool,
) -> Result<String, ApiError> {
    let role = state
        .roles
        .iter()
        .find(|(name, _)| state.role_arn(name) == role_arn);
    let denial = match role {
        None => Some(Denial::NotAllowedByResource),
        Some((_, role)) => {
            let mut context = Context::new();
            if mfa {
                context.insert("aws:multifactorauthpresent".to_owned(), "true".to_owned());
            }
            let access = Access {
                action: "sts:AssumeRole",
                resource: role_arn,
                resource_policy: Some((&role.trust_policy, PolicyKind::Trust)),
                context,
            };
            authorization::decide(state, caller, access)?
        }
    };
    match (role, denial) {
        (Some((name, _)), None) => Ok(name.clone()),
        _ => Err(denied(&format!(
            "User: {} is not authorized to perform: sts:AssumeRole on resource: {role_arn}",
            caller.principal.arn(state)
        ))),
    }
}

fn get_caller_identity(state: &State, caller: &Caller) -> Result<Value, ApiError> {
    let user_id = caller.principal.user_id(state);
    Ok(json!({
        "Arn": caller.principal.arn(state),
        "UserId": user_id.ok_or_else(|| ApiError::internal("the caller has no id"))?,
        "Account": state.account,
    }))
}

fn credentials(state: &State, session: &Session) -> Result<Value, ApiError> {
    Ok(json!({
        "AccessKeyId": session.access_key_id,
        "SecretAccessKey": session.secret_access_key.expose(),
        "SessionToken": session.token(state)?,
        "Expiration": session.expiration.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }))
}

fn check_mfa_parameters(
    violations: &mut Violations,
    serial_number: Option<&str>,
    token_code: Option<&str>,
) {
    if let Some(serial_number) = serial_number {
        violations.check_length("serialNumber", serial_number, 9, 256);
        violations.check_pattern("serialNumber", serial_number, "[\\w+=/:,.@-]*", |byte| {
            is_name_byte(byte) || b"/:".contains(&byte)
        });
    }
    if let Some(code) = token_code {
        violations.check_length("tokenCode", code, 6, 6);
        violations.check_pattern("tokenCode", code, "[\\d]*", |byte| byte.is_ascii_digit());
    }
}

fn parse_seconds(text: Option<&str>, default: u32) -> Result<u32, ApiError> {
    match text {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| {
            let message = format!("'{text}' at 'durationSeconds' is no number of seconds");
            ApiError::new(ErrorKind::Serialization, message)
        }),
    }
}

/// Parameters that this program does not know are refused: to ignore a session policy, say, would
/// give out more than was asked for.
fn parse<T: DeserializeOwned>(parameters: Map<String, Value>) -> Result<T, ApiError> {
    serde_json::from_value(Value::Object(parameters))
        .map_err(|error| malformed_request(ErrorKind::Validation, &error))
}

fn denied(message: &str) -> ApiError {
    ApiError::new(ErrorKind::AccessDenied, message)
}
