//! The environment of the command: without the source credentials, and with the session if it is handed
//! over this way.

use std::{env, ffi::OsString, os::unix::ffi::OsStrExt};

use secrecy::ExposeSecret;

use aws_session::{credentials::Credentials, service_credential, variables::REGION};

const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
const CREDENTIAL_EXPIRATION: &str = "AWS_CREDENTIAL_EXPIRATION";

/// Variables that contain credentials.
///
/// Source: <https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html>, and the older
/// names that SDKs still read.
const SECRETS: [&str; 8] = [
    ACCESS_KEY_ID,
    SECRET_ACCESS_KEY,
    SESSION_TOKEN,
    CREDENTIAL_EXPIRATION,
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_DELEGATION_TOKEN",
];

/// The `AWS_…` variables that the command may inherit: where AWS is and how it is called, but nothing
/// that is a credential or leads to one. New variables of AWS are not passed on until they are listed
/// here.
///
/// Source: <https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html>.
const PASSED_ON: [&str; 19] = [
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_CA_BUNDLE",
    "AWS_MAX_ATTEMPTS",
    "AWS_RETRY_MODE",
    "AWS_DEFAULTS_MODE",
    "AWS_SDK_UA_APP_ID",
    "AWS_DEFAULT_OUTPUT",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_V1_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_METADATA_SERVICE_TIMEOUT",
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
];

/// Prefix of the endpoints of single services, such as `AWS_ENDPOINT_URL_KMS`.
const ENDPOINT_OF_SERVICE: &[u8] = b"AWS_ENDPOINT_URL_";

/// Names and values, with duplicates as in the environment.
pub type Variables = Vec<(OsString, OsString)>;

/// Removes the credentials from `variables`, for the broker, which may need to find others.
pub fn without_secrets(mut variables: Variables) -> Variables {
    variables.retain(|(name, _)| !is_in(&SECRETS, name));
    variables
}

/// Removes the variables of AWS that must not be passed on.
fn without_credentials(mut variables: Variables) -> Variables {
    variables.retain(|(name, _)| {
        let name_bytes = name.as_bytes();
        !name_bytes.starts_with(b"AWS_")
            || name_bytes.starts_with(ENDPOINT_OF_SERVICE)
            || is_in(&PASSED_ON, name)
    });
    variables
}

/// Returns the variables of this process without those of the source credentials, for the command.
/// `$CREDENTIALS_DIRECTORY` stays if it contains more than our credential: the rest belongs to the
/// command.
pub fn for_command() -> Variables {
    let mut variables = without_credentials(env::vars_os().collect());
    if service_credential::is_alone() {
        variables.retain(|(name, _)| name != service_credential::DIRECTORY_VARIABLE);
    }
    variables
}

/// Adds the session under the names that all SDKs read.
pub fn add_session(variables: &mut Variables, session: &Credentials) {
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

/// Sets the descriptors that systemd passes to the command, by their names from descriptor 3 on.
/// `LISTEN_PID` stays valid, because exec keeps the process id.
pub fn set_passed_descriptors(variables: &mut Variables, names: &[String]) {
    variables.retain(|(name, _)| !is_in(&["LISTEN_FDS", "LISTEN_FDNAMES"], name));
    if names.is_empty() {
        return variables.retain(|(name, _)| name != "LISTEN_PID");
    }
    variables.push(("LISTEN_FDS".into(), names.len().to_string().into()));
    variables.push(("LISTEN_FDNAMES".into(), names.join(":").into()));
}

/// Whether the environment names a region. An empty variable counts as unset.
pub fn has_region(variables: &Variables) -> bool {
    let is_region =
        |(name, value): &(OsString, OsString)| is_in(&REGION, name) && !value.is_empty();
    variables.iter().any(is_region)
}

/// Adds the region from the configuration, which the command does not read.
pub fn add_region(variables: &mut Variables, region: String) {
    variables.retain(|(name, _)| name != "AWS_REGION");
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

    fn session() -> Credentials {
        Credentials {
            access_key_id: "ASIAX".into(),
            secret_access_key: "secret".into(),
            session_token: Some("token".into()),
            expiration_unix_seconds: Some(0),
        }
    }

    #[test]
    fn only_listed_aws_variables_are_passed_on() {
        let kept = [
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_KMS",
            "PATH",
            "PATH",
            "AWSOME",
        ];
        let mut all = variables(&SECRETS);
        all.extend(variables(&["AWS_", "AWS_PROFILE", "AWS_NEWER_THAN_THIS"]));
        all.extend(variables(&SECRETS));
        all.extend(variables(&kept));
        assert_eq!(without_credentials(all), variables(&kept));
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
    fn a_region_in_the_environment_is_detected() {
        assert!(!has_region(&variables(&["PATH", "AWS_ENDPOINT_URL"])));
        for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
            assert!(has_region(&variables(&["PATH", name])));
        }
        let mut added = variables(&["PATH"]);
        add_region(&mut added, "eu-west-1".into());
        assert!(has_region(&added));
    }
}
