//! AWS's environment variables. An empty one counts as unset, as in the AWS CLI. An unusable value is
//! refused, with the name of the variable, before a code is asked for.

use std::{env, os::unix::ffi::OsStrExt};

/// Longest value, in bytes. A session token has about a thousand.
const MAX_BYTES: usize = 32 * 1024;

/// Names of the access key id. The SDK of the Go program uses the second one.
pub const ACCESS_KEY_ID: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"];

/// Names of the credentials file. MariaDB's manual and old AWS SDKs use the second one.
pub const CREDENTIALS_FILE: [&str; 2] = [
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CREDENTIAL_PROFILES_FILE",
];

/// Names of the region.
pub const REGION: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];

/// Variables without the prefix `AWS_` that are read as well.
const OTHERS: [&str; 7] = [
    "CREDENTIALS_DIRECTORY",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Variables that go into HTTP headers and must be printable ASCII.
const IN_HEADERS: [&str; 8] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_ACCESS_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_EXECUTION_ENV",
];

/// A variable that cannot be used. Its value is never shown, because it may be a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the environment variable {name} {why}; correct it or unset it")]
pub struct VariableError {
    name: String,
    why: String,
}

impl VariableError {
    /// `why` completes the sentence "the variable NAME …".
    pub fn new(name: &str, why: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            why: why.into(),
        }
    }
}

/// Returns the value of a variable; `None`: it is unset or empty.
///
/// After [`check`], no variable is ignored because of its value.
pub fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns the first of `names` that is set, and its value.
pub fn first(names: &[&'static str]) -> Option<(&'static str, String)> {
    names
        .iter()
        .find_map(|name| text(name).map(|value| (*name, value)))
}

/// Returns whether a variable is `true`; `None`: it is unset.
///
/// Errors: it is neither `true` nor `false`.
pub fn boolean(name: &str) -> Result<Option<bool>, VariableError> {
    text(name)
        .map(|value| {
            parse_boolean(&value)
                .ok_or_else(|| VariableError::new(name, "is neither true nor false"))
        })
        .transpose()
}

/// Parses `true` or `false`, in upper or lower case.
pub fn parse_boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// Checks every variable that this project or the AWS SDK reads: `AWS_…`, and those of proxies and CA
/// certificates.
///
/// Errors: the first one that is not UTF-8, is too long, or contains an invalid character.
pub fn check() -> Result<(), VariableError> {
    for (name, value) in env::vars_os() {
        let is_read = name.as_bytes().starts_with(b"AWS_") || OTHERS.iter().any(|it| name == *it);
        if is_read {
            let name = name.to_string_lossy();
            check_value(&name, value.as_bytes()).map_err(|why| VariableError::new(&name, why))?;
        }
    }
    Ok(())
}

fn check_value(name: &str, value: &[u8]) -> Result<(), String> {
    if value.len() > MAX_BYTES {
        return Err(format!("is longer than {MAX_BYTES} bytes"));
    }
    let text = std::str::from_utf8(value).map_err(|_| "is not UTF-8 text")?;
    if text.contains(['\r', '\n']) {
        return Err("contains a line break (from a file with Windows line ends?)".into());
    }
    if text.starts_with('\u{feff}') {
        return Err("begins with a byte order mark".into());
    }
    if text.chars().any(char::is_control) {
        return Err("contains a control character".into());
    }
    // A list of hosts may contain spaces anywhere.
    if text.trim() != text && !name.eq_ignore_ascii_case("no_proxy") {
        return Err("begins or ends with a space".into());
    }
    if IN_HEADERS.contains(&name) && !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err("contains a character that is not ASCII".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_values_are_refused_and_never_quoted() {
        for (value, why) in [
            (&b"AKIA\r"[..], "line end"),
            (b"AK\nIA", "line end"),
            (b"AK\0IA", "control character"),
            (b" AKIA", "space"),
            (b"\xff\xfe", "UTF-8"),
            ("\u{feff}AKIA".as_bytes(), "byte order mark"),
            ("AKI\u{c4}".as_bytes(), "ASCII"),
            (&[b'a'; MAX_BYTES + 1], "longer than"),
        ] {
            let said = check_value("AWS_ACCESS_KEY_ID", value).unwrap_err();
            assert!(said.contains(why), "{said}");
            assert!(!said.contains("AK"), "{said}");
        }
        assert_eq!(check_value("AWS_ACCESS_KEY_ID", b""), Ok(()));
        assert_eq!(check_value("NO_PROXY", b" localhost, .example "), Ok(()));
        assert_eq!(check_value("AWS_PROFILE", "J\u{e4}ger".as_bytes()), Ok(()));
    }
}
