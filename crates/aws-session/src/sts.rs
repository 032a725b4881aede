//! The calls of STS: an MFA code for a session, a role, and whose credentials these are.
//!
//! Sources: <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetSessionToken.html>,
//! <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>.

use aws_sdk_sts::{Client, types};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use nix::unistd::{User, geteuid, gethostname};
use secrecy::SecretString;

use crate::{
    aws_error::Outcome,
    clock::FollowAws,
    config::SessionConfig,
    credentials::Credentials,
    settings::{Service, Settings},
    token_code::TokenCode,
};

/// Longest ARN, in bytes.
const MAX_ARN_BYTES: usize = 2048;

/// Longest name of a role session, in characters.
const MAX_SESSION_NAME_CHARACTERS: usize = 64;

/// Exchanges `token_code` and the source credentials for a session: with `AssumeRole` if the
/// configuration names a role, else with `GetSessionToken`.
pub async fn exchange(
    aws: &Settings,
    config: &SessionConfig,
    serial_number: &str,
    source: &Credentials,
    token_code: &TokenCode,
) -> Outcome {
    let client = Client::new(&aws.sdk_config(Some(source)));
    let code = Some((serial_number, token_code));
    let answer = match &config.role_arn {
        Some(role_arn) => client
            .assume_role()
            .role_arn(role_arn)
            .role_session_name(role_session_name())
            .duration_seconds(config.duration_seconds)
            .serial_number(serial_number)
            .token_code(token_code.expose())
            .customize()
            .interceptor(FollowAws)
            .send()
            .await
            .map(|answer| answer.credentials)
            .map_err(|error| Outcome::of_failure(aws, &error, &source.access_key_id, code)),
        None => client
            .get_session_token()
            .duration_seconds(config.duration_seconds)
            .serial_number(serial_number)
            .token_code(token_code.expose())
            .customize()
            .interceptor(FollowAws)
            .send()
            .await
            .map(|answer| answer.credentials)
            .map_err(|error| Outcome::of_failure(aws, &error, &source.access_key_id, code)),
    };
    match answer.map(|credentials| session_of_answer(aws, credentials.as_ref())) {
        Ok(Ok(session)) => Outcome::Opened(session),
        Ok(Err(why)) => Outcome::Spent(why),
        Err(outcome) => outcome,
    }
}

/// A role that is assumed without a code.
pub struct Role {
    /// ARN of the role.
    pub arn: String,
    /// Name of the session in CloudTrail; `None`: one that contains this host's name.
    pub session_name: Option<String>,
    /// External id that the role's trust policy may require.
    pub external_id: Option<String>,
    /// How long the session lasts; `None`: as long as STS says, one hour.
    pub duration_seconds: Option<i32>,
}

/// Assumes `role` with `source`.
///
/// The error says why AWS refuses, and what to do.
pub async fn assume_role(
    aws: &Settings,
    source: &Credentials,
    role: &Role,
) -> Result<Credentials, String> {
    let client = Client::new(&aws.sdk_config(Some(source)));
    let request = client
        .assume_role()
        .role_arn(&role.arn)
        .role_session_name(role.session_name.clone().unwrap_or_else(role_session_name))
        .set_external_id(role.external_id.clone())
        .set_duration_seconds(role.duration_seconds);
    match request.send().await {
        Ok(answer) => session_of_answer(aws, answer.credentials.as_ref()),
        Err(error) => {
            Err(Outcome::of_failure(aws, &error, &source.access_key_id, None).into_text())
        }
    }
}

/// Assumes the role `role_arn` with the token of a web identity.
///
/// The error says why AWS refuses, and what to do.
pub async fn assume_role_with_web_identity(
    aws: &Settings,
    role_arn: &str,
    session_name: Option<&str>,
    token: &str,
) -> Result<Credentials, String> {
    let client = Client::new(&aws.sdk_config(None));
    let request = client
        .assume_role_with_web_identity()
        .role_arn(role_arn)
        .role_session_name(session_name.map_or_else(role_session_name, str::to_owned))
        .web_identity_token(token);
    match request.send().await {
        Ok(answer) => session_of_answer(aws, answer.credentials.as_ref()),
        Err(error) => Err(Outcome::of_failure(aws, &error, "of the token", None).into_text()),
    }
}

/// Checks the session of an answer: another server than AWS could have answered anything.
fn session_of_answer(
    aws: &Settings,
    credentials: Option<&types::Credentials>,
) -> Result<Credentials, String> {
    let hint = aws.wrong_answer_hint(Service::Sts);
    let Some(credentials) = credentials else {
        return Err(format!("STS answered without credentials; {hint}"));
    };
    let session = Credentials {
        access_key_id: credentials.access_key_id.clone(),
        secret_access_key: SecretString::from(credentials.secret_access_key.as_str()),
        session_token: Some(SecretString::from(credentials.session_token.as_str())),
        expiration_unix_seconds: Some(credentials.expiration.secs()),
    };
    session
        .checked_session(1)
        .map_err(|why| format!("STS answered with a session that {why}, so it is not used; {hint}"))
}

/// Asks AWS for the ARN that `source` belongs to. Needs no permission and no code.
///
/// The error says why AWS does not accept `source`, and what to do.
pub async fn identify(
    aws: &Settings,
    source: &Credentials,
    http_client: SharedHttpClient,
) -> Result<String, String> {
    let client = Client::new(&aws.sdk_config_with(Some(source), http_client));
    let answer = client.get_caller_identity().send().await;
    answer
        .map_err(|error| Outcome::of_failure(aws, &error, &source.access_key_id, None).into_text())?
        .arn
        .filter(|arn| arn.len() <= MAX_ARN_BYTES && arn.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| {
            format!(
                "STS answered without an ARN; {}",
                aws.wrong_answer_hint(Service::Sts)
            )
        })
}

/// A session name that shows this host and user in CloudTrail, in the characters that STS allows.
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
        .take(MAX_SESSION_NAME_CHARACTERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_session_name_is_one_that_sts_accepts() {
        let name = role_session_name();
        assert!(
            name.starts_with("iam-kms-wrapper-") && (2..=64).contains(&name.len()),
            "{name}"
        );
    }
}
