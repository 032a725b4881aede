//! The command's environment: no source credentials, and the session if it is handed over there.

use std::{env, ffi::OsString};

use secrecy::ExposeSecret;

use crate::{credentials, session::Session};

const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
const CREDENTIAL_EXPIRATION: &str = "AWS_CREDENTIAL_EXPIRATION";

/// Variables that hold credentials themselves.
///
/// Source: <https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html>, and the older
/// names that SDKs still read.
const SECRETS: [&str; 9] = [
    ACCESS_KEY_ID,
    SECRET_ACCESS_KEY,
    SESSION_TOKEN,
    CREDENTIAL_EXPIRATION,
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_DELEGATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
];

/// Variables that lead to credentials.
const SOURCES: [&str; 12] = [
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CREDENTIAL_PROFILES_FILE",
    "AWS_CREDENTIAL_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
];

/// Names and values, with duplicates as the process got them.
pub type Variables = Vec<(OsString, OsString)>;

/// `variables` without the credentials themselves. For the broker, which may need to find others.
pub fn without_secrets(mut variables: Variables) -> Variables {
    variables.retain(|(name, _)| !is_in(&SECRETS, name));
    variables
}

/// `variables` without anything of the source credentials.
fn without_credentials(variables: Variables) -> Variables {
    let mut variables = without_secrets(variables);
    variables.retain(|(name, _)| !is_in(&SOURCES, name));
    variables
}

/// This process's own variables without anything of the source credentials, the service's
/// credential too. For a command that we start.
pub fn for_command() -> Variables {
    let mut variables = without_credentials(env::vars_os().collect());
    if credentials::file_of_service().is_some() {
        variables.retain(|(name, _)| name != credentials::DIRECTORY_VARIABLE);
    }
    variables
}

/// Adds the session under the names that every SDK reads.
pub fn add_session(variables: &mut Variables, session: &Session) {
    let mut add = |name: &str, value: &str| variables.push((name.into(), value.into()));
    add(ACCESS_KEY_ID, &session.access_key_id);
    add(SECRET_ACCESS_KEY, session.secret_access_key.expose_secret());
    if let Some(token) = &session.session_token {
        add(SESSION_TOKEN, token.expose_secret());
    }
    if session.expiration_unix_seconds.is_some() {
        add(CREDENTIAL_EXPIRATION, &session.expiration_text());
    }
}

/// Says which descriptors systemd passes to the command, by their names from descriptor 3 on;
/// `LISTEN_PID` is right as it is, since exec keeps the process.
pub fn set_passed_descriptors(variables: &mut Variables, names: &[String]) {
    variables.retain(|(name, _)| !is_in(&["LISTEN_FDS", "LISTEN_FDNAMES"], name));
    if names.is_empty() {
        return variables.retain(|(name, _)| name != "LISTEN_PID");
    }
    variables.push(("LISTEN_FDS".into(), names.len().to_string().into()));
    variables.push(("LISTEN_FDNAMES".into(), names.join(":").into()));
}

/// Whether the environment itself names a region.
pub fn has_region(variables: &Variables) -> bool {
    let names = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    variables.iter().any(|(name, _)| is_in(&names, name))
}

/// Adds the region that was known from a configuration which the command does not see.
pub fn add_region(variables: &mut Variables, region: String) {
    variables.push(("AWS_REGION".into(), region.into()));
}

fn is_in(names: &[&str], name: &OsString) -> bool {
    names.iter().any(|known| name == known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(names: &[&str]) -> Variables {
        names
            .iter()
            .map(|name| ((*name).into(), "value".into()))
            .collect()
    }

    fn session() -> Session {
        Session {
            access_key_id: "ASIAX".into(),
            secret_access_key: "secret".into(),
            session_token: Some("token".into()),
            expiration_unix_seconds: Some(0),
        }
    }

    #[test]
    fn nothing_of_the_source_credentials_is_left_not_even_duplicates() {
        let mut all = variables(&SECRETS);
        all.extend(variables(&SOURCES));
        all.extend(variables(&SECRETS));
        all.extend(variables(&[
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "AWS_ENDPOINT_URL",
            "PATH",
            "PATH",
        ]));
        let left = without_credentials(all);
        let expected = [
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "AWS_ENDPOINT_URL",
            "PATH",
            "PATH",
        ];
        assert_eq!(left, variables(&expected));
    }

    #[test]
    fn the_session_is_added_once_under_the_standard_names() {
        let mut left = without_credentials(variables(&SECRETS));
        add_session(&mut left, &session());
        let text: Vec<_> = left
            .iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        assert_eq!(
            text,
            [
                "AWS_ACCESS_KEY_ID=ASIAX",
                "AWS_SECRET_ACCESS_KEY=secret",
                "AWS_SESSION_TOKEN=token",
                "AWS_CREDENTIAL_EXPIRATION=1970-01-01T00:00:00Z",
            ]
        );
    }

    #[test]
    fn a_region_of_the_environment_is_noticed() {
        assert!(!has_region(&variables(&["PATH", "AWS_ENDPOINT_URL"])));
        for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
            assert!(has_region(&variables(&["PATH", name])));
        }
        let mut added = variables(&["PATH"]);
        add_region(&mut added, "eu-west-1".into());
        assert!(has_region(&added));
    }
}
