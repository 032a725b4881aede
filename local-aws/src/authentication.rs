//! Who a request is from: SigV4 with a long-term key, or with a session's key and token.

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};

use crate::caller::{Caller, Principal};
use crate::error::{ApiError, ErrorKind};
use crate::operation::Request;
use crate::secret::Secret;
use crate::service::Service;
use crate::session_token::Session;
use crate::signature::Authorization;
use crate::state::State;

/// How far the client's clock may be off.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(15);
const AMZ_DATE_FORMAT: &str = "%Y%m%dT%H%M%SZ";

/// The credentials that a request names, found again on this side.
struct Credentials {
    principal: Principal,
    secret_access_key: Secret,
    session: Option<Session>,
}

/// Tells who `request` is from.
///
/// Errors: MissingAuthenticationToken, IncompleteSignature, UnknownCredentials (no such key, or a
/// token that does not belong to it), SignatureMismatch (also scope and time), ExpiredSession.
pub fn authenticate(
    state: &State,
    request: &Request,
    service: Service,
) -> Result<Caller, ApiError> {
    let authorization = Authorization::of(request)?;
    let credentials = find(state, &authorization.access_key_id, request)?;
    check_signed_headers(&authorization, request)?;
    check_scope(state, &authorization, service)?;
    check_time(state.now(), &authorization)?;
    if !authorization.is_signed_with(&credentials.secret_access_key, request) {
        return Err(mismatch(
            "The request signature we calculated does not match the signature you provided. \
             Check your AWS Secret Access Key and signing method. Consult the service \
             documentation for details.",
        ));
    }
    if credentials
        .session
        .as_ref()
        .is_some_and(|session| session.expiration <= state.now())
    {
        let message = "The security token included in the request is expired";
        return Err(ApiError::new(ErrorKind::ExpiredSession, message));
    }
    Ok(Caller {
        principal: credentials.principal,
        access_key_id: authorization.access_key_id,
        session: credentials.session.map(|session| session.facts),
        source_ip: request.source_ip,
        region: authorization.region,
    })
}

fn find(state: &State, access_key_id: &str, request: &Request) -> Result<Credentials, ApiError> {
    let found = match request.header("x-amz-security-token") {
        Some(token) => find_session(state, access_key_id, token),
        None => find_long_term(state, access_key_id),
    };
    let exists = |found: &Credentials| found.principal.user_id(state).is_some();
    found.filter(exists).ok_or_else(|| {
        let message = "The security token included in the request is invalid.";
        ApiError::new(ErrorKind::UnknownCredentials, message)
    })
}

fn find_long_term(state: &State, access_key_id: &str) -> Option<Credentials> {
    let (name, user) = state
        .users
        .iter()
        .find(|(_, user)| user.access_key_id == access_key_id)?;
    Some(Credentials {
        principal: Principal::User { name: name.clone() },
        secret_access_key: user.secret_access_key.clone(),
        session: None,
    })
}

fn find_session(state: &State, access_key_id: &str, token: &str) -> Option<Credentials> {
    let session = Session::from_token(state, token)?;
    if session.access_key_id != access_key_id {
        return None;
    }
    Some(Credentials {
        principal: session.principal.clone(),
        secret_access_key: session.secret_access_key.clone(),
        session: Some(session),
    })
}

/// The host and every `x-amz-` header must be signed, so that nobody can add or change one.
fn check_signed_headers(authorization: &Authorization, request: &Request) -> Result<(), ApiError> {
    let is_signed = |name: &str| {
        authorization
            .signed_headers
            .iter()
            .any(|signed| signed == name)
    };
    if !is_signed("host") {
        let message = "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.";
        return Err(mismatch(message));
    }
    let mut names = request.headers.keys().map(|name| name.as_str());
    match names.find(|name| name.starts_with("x-amz-") && !is_signed(name)) {
        Some(name) => Err(mismatch(&format!(
            "'{name}' must be a 'SignedHeader' in the AWS Authorization."
        ))),
        None => Ok(()),
    }
}

fn check_scope(
    state: &State,
    authorization: &Authorization,
    service: Service,
) -> Result<(), ApiError> {
    let Authorization {
        date,
        amz_date,
        region,
        ..
    } = authorization;
    let is_valid = match service {
        Service::Sts => *region == state.region,
        Service::Kms => state.has_region(region),
    };
    if !is_valid {
        let message = format!("Credential should be scoped to a valid region, not '{region}'. ");
        return Err(mismatch(&message));
    }
    if authorization.service != service.name() {
        let message = format!(
            "Credential should be scoped to correct service: '{}'. ",
            service.name()
        );
        return Err(mismatch(&message));
    }
    let day = amz_date.get(..8).unwrap_or_default();
    if date != day {
        return Err(mismatch(&format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from \
             HTTP: '{date}' != '{day}', from '{amz_date}'."
        )));
    }
    Ok(())
}

fn check_time(now: Timestamp, authorization: &Authorization) -> Result<(), ApiError> {
    let amz_date = &authorization.amz_date;
    let signed = DateTime::strptime(AMZ_DATE_FORMAT, amz_date)
        .and_then(|date| TimeZone::UTC.to_timestamp(date))
        .map_err(|_| {
            let what = "Date must be in ISO-8601 'basic format'. Got";
            mismatch(&format!(
                "{what} '{amz_date}'. See http://en.wikipedia.org/wiki/ISO_8601"
            ))
        })?;
    let now_text = now.strftime(AMZ_DATE_FORMAT);
    let earliest = now.saturating_sub(TOLERANCE).map_err(ApiError::internal)?;
    if signed < earliest {
        let earliest = earliest.strftime(AMZ_DATE_FORMAT);
        return Err(mismatch(&format!(
            "Signature expired: {amz_date} is now earlier than {earliest} ({now_text} - 15 min.)"
        )));
    }
    let latest = now.saturating_add(TOLERANCE).map_err(ApiError::internal)?;
    if signed > latest {
        let latest = latest.strftime(AMZ_DATE_FORMAT);
        return Err(mismatch(&format!(
            "Signature not yet current: {amz_date} is still later than {latest} ({now_text} + 15 \
             min.)"
        )));
    }
    Ok(())
}

fn mismatch(message: &str) -> ApiError {
    ApiError::new(ErrorKind::SignatureMismatch, message)
}
