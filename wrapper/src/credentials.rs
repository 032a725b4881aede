//! The source credentials: found before a code is asked for.

use std::{
    env,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::{
    aws,
    config::{Config, Mfa},
    session::Session,
};

/// Variable with the directory of the service's credentials (`LoadCredential=` in systemd.exec(5)).
pub const DIRECTORY_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Name of ours there.
const FILE_NAME: &str = "aws-credentials";

/// Longest credential, in bytes: some profiles with session tokens.
const MAX_FILE_BYTES: usize = 64 * 1024;

/// Why there are no usable source credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// None were found.
    #[error(
        "found no AWS credentials to trade the code with: {0}; set LoadCredential=aws-credentials:FILE in the unit, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile (or mfa = elsewhere if sessions are opened on another machine)"
    )]
    NotFound(String),
    /// The service's credential is damaged.
    #[error(
        "cannot use the AWS credentials in {path}: {why}; it must be an AWS credentials file with aws_access_key_id and aws_secret_access_key in [{section}]",
        path = path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The section that the configuration chooses.
        section: String,
        /// Why.
        why: String,
    },
    /// None were found to be used as they are.
    #[error(
        "found no AWS credentials to use as they are (mfa = false): {0}; give this host a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    NoneToUse(String),
    /// Temporary ones, which `GetSessionToken` does not take.
    #[error(
        "the AWS credentials found are temporary ({0}), but GetSessionToken takes long-term keys only; set role_arn, or mfa = false to use them as they are"
    )]
    Temporary(String),
    /// They are over.
    #[error("the AWS credentials found ({0}) ended at {1}; start again with fresh ones")]
    Expired(String, String),
    /// The SDK could not be started.
    #[error("cannot look for AWS credentials: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Finds what `mfa` asks for: credentials that a code can be traded with, or ones to be used as they
/// are, or none.
pub fn find_for_mfa(config: &Config) -> Result<Option<Session>, CredentialsError> {
    match config.mfa {
        Mfa::Here { .. } => find_tradable(config).map(Some),
        Mfa::Off => find(config).map(Some),
        Mfa::Elsewhere => Ok(None),
    }
}

/// Finds the source credentials: the service's credential, or else as the Go program and the AWS
/// CLI would.
pub fn find(config: &Config) -> Result<Session, CredentialsError> {
    let session = match (file_of_service(), &config.profile, from_environment()) {
        (Some(path), profile, _) => from_file(path, profile.as_deref().unwrap_or("default"))?,
        (None, None, Some(session)) => session,
        _ => aws::runtime()?
            .block_on(aws::find_credentials(config))
            .map_err(|why| match config.mfa {
                Mfa::Off => CredentialsError::NoneToUse(why),
                _ => CredentialsError::NotFound(why),
            })?,
    };
    match session.remaining_seconds() {
        Some(left) if left <= 0 => Err(CredentialsError::Expired(
            session.access_key_id.clone(),
            session.expiration_text(),
        )),
        _ => Ok(session),
    }
}

/// Long-term ones, unless a role is to be assumed.
fn find_tradable(config: &Config) -> Result<Session, CredentialsError> {
    let session = find(config)?;
    if session.session_token.is_some() && config.role_arn.is_none() {
        return Err(CredentialsError::Temporary(session.access_key_id));
    }
    Ok(session)
}

/// Where systemd has put our credential for the service, if it has.
pub fn file_of_service() -> Option<PathBuf> {
    let path = Path::new(&env::var_os(DIRECTORY_VARIABLE)?).join(FILE_NAME);
    // What cannot be looked at is there, and has its own message.
    (!matches!(path.try_exists(), Ok(false))).then_some(path)
}

/// Whether the service has our credential and no other.
pub fn is_ours_alone() -> bool {
    let entries = file_of_service().and_then(|path| path.parent()?.read_dir().ok());
    entries.is_some_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == FILE_NAME))
    })
}

fn from_file(path: PathBuf, section: &str) -> Result<Session, CredentialsError> {
    read_file(&path)
        .and_then(|text| parse_file(&text, section))
        .map_err(|why| CredentialsError::File {
            path,
            section: section.into(),
            why,
        })
}

fn read_file(path: &Path) -> Result<Zeroizing<String>, String> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES + 1));
    let most = u64::try_from(MAX_FILE_BYTES + 1).unwrap_or(u64::MAX);
    File::open(path)
        .and_then(|file| file.take(most).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    if text.len() > MAX_FILE_BYTES {
        return Err(format!("it is longer than {MAX_FILE_BYTES} bytes"));
    }
    Ok(text)
}

/// Reads one section, without the SDK and with no copy but those that are kept.
///
/// Source: <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>.
fn parse_file(text: &str, section: &str) -> Result<Session, String> {
    let value = |key| match value_in(text, section, key) {
        Some("") => Err(format!("its {key} is empty")),
        Some(value) if value.contains(char::is_whitespace) => Err(format!("its {key} is no key")),
        value => Ok(value),
    };
    let needed = |key| value(key)?.ok_or_else(|| format!("it has no {key} in [{section}]"));
    Ok(Session {
        access_key_id: needed("aws_access_key_id")?.into(),
        secret_access_key: needed("aws_secret_access_key")?.into(),
        session_token: value("aws_session_token")?.map(SecretString::from),
        expiration_unix_seconds: None,
    })
}

fn value_in<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let name = |line: &'a str| line.strip_prefix('[')?.strip_suffix(']').map(str::trim);
    text.lines()
        .map(str::trim)
        .skip_while(|line| name(line) != Some(section))
        .skip(1)
        .take_while(|line| name(line).is_none())
        .filter_map(|line| line.split_once('='))
        .find_map(|(known, value)| (known.trim() == key).then(|| value.trim()))
}

/// Without the SDK too: a process that waits for days should not carry it. The second
/// names are those that the Go program's SDK read.
fn from_environment() -> Option<Session> {
    let variable = |names: [&str; 2]| {
        names
            .into_iter()
            .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    };
    Some(Session {
        access_key_id: variable(["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"])?,
        secret_access_key: SecretString::from(variable([
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SECRET_KEY",
        ])?),
        session_token: variable(["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"])
            .map(SecretString::from),
        expiration_unix_seconds: None,
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    const FILE: &str = "# both\n[default]\naws_access_key_id = AKIAONE\naws_secret_access_key=one/+=\n\n\
        [ other ]\r\naws_secret_access_key = two\r\n; aws_access_key_id = AKIANO\r\naws_access_key_id=AKIATWO\r\n\
        aws_session_token = token==\r\n";

    #[test]
    fn each_section_has_its_own_key() {
        let one = parse_file(FILE, "default").unwrap();
        assert_eq!(one.access_key_id, "AKIAONE");
        assert_eq!(one.secret_access_key.expose_secret(), "one/+=");
        assert!(one.session_token.is_none());
        let two = parse_file(FILE, "other").unwrap();
        assert_eq!(two.access_key_id, "AKIATWO");
        assert_eq!(two.secret_access_key.expose_secret(), "two");
        assert_eq!(two.session_token.unwrap().expose_secret(), "token==");
    }

    #[test]
    fn what_is_missing_or_no_key_is_named_and_never_quoted() {
        for (text, why) in [
            ("", "it has no aws_access_key_id in [default]"),
            (
                "[other]\naws_access_key_id = a",
                "it has no aws_access_key_id in [default]",
            ),
            (
                "[default]\naws_access_key_id = a",
                "it has no aws_secret_access_key in [default]",
            ),
            (
                "[default]\naws_access_key_id =",
                "its aws_access_key_id is empty",
            ),
            (
                "[default]\naws_access_key_id = a\naws_secret_access_key = b # mine",
                "its aws_secret_access_key is no key",
            ),
        ] {
            assert_eq!(parse_file(text, "default").unwrap_err(), why);
        }
    }
}
