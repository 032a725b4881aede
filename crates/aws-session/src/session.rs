//! AWS credentials: the source credentials, the session that a code opens, the session document.

use std::fmt;

use aws_credential_types::Credentials;
use aws_smithy_types::date_time::DateTime;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::error::Category;
use zeroize::Zeroizing;

use crate::clock::{self, parse_utc, seconds_text, utc_text};

/// Longest access key id, in bytes, as AWS has it.
///
/// Source: <https://docs.aws.amazon.com/STS/latest/APIReference/API_Credentials.html>.
const MAX_ACCESS_KEY_ID_BYTES: usize = 128;

/// Longest secret access key, in bytes. AWS's have 40.
const MAX_SECRET_ACCESS_KEY_BYTES: usize = 512;

/// Longest session token, in bytes. AWS names no limit; those of large policies have some thousand.
const MAX_SESSION_TOKEN_BYTES: usize = 16 * 1024;

/// A set of AWS credentials: long-term (no token, no expiration) or temporary.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// Access key id; names the key, opens nothing.
    pub access_key_id: String,
    /// Secret access key.
    #[serde(serialize_with = "expose")]
    pub secret_access_key: SecretString,
    /// Session token of temporary credentials.
    #[serde(serialize_with = "expose_option")]
    pub session_token: Option<SecretString>,
    /// When the credentials end, in seconds since 1970-01-01 UTC; `None`: never.
    pub expiration_unix_seconds: Option<i64>,
}

impl Session {
    /// Seconds until the end, whatever becomes of this host's clock; `None`: there is none. Negative
    /// afterwards.
    pub fn remaining_seconds(&self) -> Option<i64> {
        self.expiration_unix_seconds
            .map(|end| end.saturating_sub(clock::aws_unix_seconds()))
    }

    /// The end as RFC 3339 in UTC, or "never".
    pub fn expiration_text(&self) -> String {
        self.expiration_unix_seconds
            .map_or_else(|| "never".into(), utc_text)
    }

    /// The credentials as a session document, as a `credential_process` prints it.
    pub fn document(&self) -> Zeroizing<Vec<u8>> {
        // With room for all: a buffer that grows leaves copies behind.
        let mut json = Zeroizing::new(Vec::with_capacity(64 * 1024));
        let document = ProcessCredentials {
            version: 1,
            access_key_id: &self.access_key_id,
            secret_access_key: self.secret_access_key.expose_secret(),
            session_token: self.session_token.as_ref().map(ExposeSecret::expose_secret),
            expiration: self.expiration_text(),
        };
        // Neither the writer nor the document can fail.
        let _ = serde_json::to_writer(&mut *json, &document);
        json.push(b'\n');
        json
    }

    /// The same credentials for the AWS SDK, which compares no end with this host's clock: that is for
    /// [`Self::remaining_seconds`].
    pub fn to_sdk(&self) -> Credentials {
        Credentials::new(
            &self.access_key_id,
            self.secret_access_key.expose_secret(),
            self.session_token
                .as_ref()
                .map(|token| token.expose_secret().to_owned()),
            None,
            "iam-kms-wrapper",
        )
    }

    /// Whether requests can be signed with these credentials, and they can be handed over: they
    /// become part of headers, variables and log lines, so each is printable ASCII without spaces,
    /// and no longer than AWS makes it.
    ///
    /// The error names what cannot be used, never its value.
    pub fn check(&self) -> Result<(), String> {
        check_value("AccessKeyId", &self.access_key_id, MAX_ACCESS_KEY_ID_BYTES)?;
        let secret = self.secret_access_key.expose_secret();
        check_value("SecretAccessKey", secret, MAX_SECRET_ACCESS_KEY_BYTES)?;
        match &self.session_token {
            Some(token) => check_value(
                "SessionToken",
                token.expose_secret(),
                MAX_SESSION_TOKEN_BYTES,
            ),
            None => Ok(()),
        }
    }

    /// Checks what should be a session: [`Session::check`], and that it ends, but not within
    /// `least_seconds`.
    pub fn check_open(&self, least_seconds: i64) -> Result<(), String> {
        self.check()?;
        if self.session_token.is_none() {
            return Err("has no SessionToken".into());
        }
        let end = self.expiration_text();
        match self.remaining_seconds() {
            None => Err("has no Expiration".into()),
            Some(..=0) => Err(format!("ended at {end}")),
            Some(left) if left < least_seconds => Err(format!(
                "ends at {end}, in less than {}",
                seconds_text(least_seconds.unsigned_abs())
            )),
            Some(_) => Ok(()),
        }
    }
}

fn check_value(field: &str, value: &str, limit_bytes: usize) -> Result<(), String> {
    match value {
        "" => Err(format!("has no {field}")),
        value if value.len() > limit_bytes => {
            let article = if field.starts_with('A') { "an" } else { "a" };
            Err(format!(
                "has {article} {field} of more than {limit_bytes} bytes"
            ))
        }
        value if !value.bytes().all(|byte| byte.is_ascii_graphic()) => Err(format!(
            "has a space or a character that is not printable in its {field}"
        )),
        _ => Ok(()),
    }
}

impl From<&Credentials> for Session {
    fn from(credentials: &Credentials) -> Self {
        Self {
            access_key_id: credentials.access_key_id().to_owned(),
            secret_access_key: credentials.secret_access_key().into(),
            session_token: credentials.session_token().map(SecretString::from),
            expiration_unix_seconds: credentials.expiry().map(|end| DateTime::from(end).secs()),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Session({}, until {})",
            self.access_key_id,
            self.expiration_text()
        )
    }
}

fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

fn expose_option<S: Serializer>(
    secret: &Option<SecretString>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    secret
        .as_ref()
        .map(ExposeSecret::expose_secret)
        .serialize(serializer)
}

/// Source: <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessCredentials<'a> {
    version: u8,
    access_key_id: &'a str,
    secret_access_key: &'a str,
    session_token: Option<&'a str>,
    expiration: String,
}

/// What `aws sts get-session-token`, `aws sts assume-role` or a `credential_process` print, or `aws sso
/// get-role-credentials`, whose names begin with a small letter.
///
/// Sources: <https://docs.aws.amazon.com/STS/latest/APIReference/API_Credentials.html>,
/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>,
/// <https://docs.aws.amazon.com/singlesignon/latest/PortalAPIReference/API_RoleCredentials.html>.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    #[serde(alias = "credentials", alias = "roleCredentials")]
    credentials: Option<DocumentCredentials>,
    // Not `#[serde(flatten)]`, which would leave copies of the secrets behind.
    #[serde(alias = "accessKeyId")]
    access_key_id: Option<SecretString>,
    #[serde(alias = "secretAccessKey")]
    secret_access_key: Option<SecretString>,
    #[serde(alias = "sessionToken")]
    session_token: Option<SecretString>,
    #[serde(alias = "expiration")]
    expiration: Option<Expiration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DocumentCredentials {
    #[serde(alias = "accessKeyId")]
    access_key_id: Option<SecretString>,
    #[serde(alias = "secretAccessKey")]
    secret_access_key: Option<SecretString>,
    #[serde(alias = "sessionToken")]
    session_token: Option<SecretString>,
    #[serde(alias = "expiration")]
    expiration: Option<Expiration>,
}

/// RFC 3339, or a time since 1970-01-01 UTC.
#[derive(Deserialize)]
#[serde(untagged)]
enum Expiration {
    Text(String),
    Number(i64),
}

impl Expiration {
    /// More seconds than until the year 5138: such a number is of milliseconds, as SSO's are.
    const LEAST_MILLISECONDS: i64 = 100_000_000_000;

    /// `None`: it is no time.
    fn unix_seconds(&self) -> Option<i64> {
        match self {
            Self::Text(text) => parse_utc(text),
            Self::Number(milliseconds) if *milliseconds >= Self::LEAST_MILLISECONDS => {
                Some(milliseconds / 1000)
            }
            Self::Number(seconds) => Some(*seconds),
        }
    }
}

impl Document {
    fn credentials(self) -> DocumentCredentials {
        self.credentials.unwrap_or(DocumentCredentials {
            access_key_id: self.access_key_id,
            secret_access_key: self.secret_access_key,
            session_token: self.session_token,
            expiration: self.expiration,
        })
    }
}

/// Shortest remaining life of a session document that is still worth starting with, in seconds.
const LEAST_REMAINING_SECONDS: i64 = 60;

/// Reads a session document and checks that it is complete and still has some life in it.
///
/// The error says what is wrong and never quotes the document.
pub fn parse_document(json: &[u8]) -> Result<Session, String> {
    const WHAT: &str = "a session document";
    let credentials: DocumentCredentials = serde_json::from_slice(json)
        .map(Document::credentials)
        .map_err(|error| not_a_document(WHAT, error.classify()))?;
    clock::follow_host();
    present(WHAT, "Expiration", credentials.expiration.as_ref())?;
    let session = credentials.session(WHAT)?;
    present(WHAT, "SessionToken", session.session_token.as_ref())?;
    session
        .check_open(LEAST_REMAINING_SECONDS)
        .map_err(|why| format!("{WHAT} that {why}"))?;
    Ok(session)
}

/// What a `credential_process` prints: long-term keys, or a session.
///
/// The error says what is wrong and never quotes the document.
pub fn parse_process_document(json: &[u8]) -> Result<Session, String> {
    const WHAT: &str = "a credentials document";
    serde_json::from_slice::<DocumentCredentials>(json)
        .map_err(|error| not_a_document(WHAT, error.classify()))?
        .session(WHAT)
}

impl DocumentCredentials {
    fn session(self, what: &str) -> Result<Session, String> {
        let access_key_id = present(what, "AccessKeyId", self.access_key_id)?;
        let expiration = self.expiration.map(|expiration| {
            let seconds = expiration.unix_seconds();
            seconds.ok_or_else(|| format!("{what} whose Expiration is no time"))
        });
        Ok(Session {
            access_key_id: access_key_id.expose_secret().to_owned(),
            secret_access_key: present(what, "SecretAccessKey", self.secret_access_key)?,
            session_token: self.session_token,
            expiration_unix_seconds: expiration.transpose()?,
        })
    }
}

fn present<T>(what: &str, field: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("{what} without {field}"))
}

fn not_a_document(what: &str, mistake: Category) -> String {
    match mistake {
        Category::Eof => format!("{what} that breaks off"),
        Category::Syntax | Category::Io => format!("{what} that is not valid JSON"),
        Category::Data => format!("JSON, but not {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = r#""AccessKeyId":"ASIAX","SecretAccessKey":"s3cret","SessionToken":"t0ken","Expiration":"2099-01-01T00:00:00+00:00""#;

    #[test]
    fn documents_of_sts_and_of_credential_process_are_sessions() {
        for json in [
            format!("{{\"Credentials\":{{{CREDENTIALS}}}}}"),
            format!("{{\"Credentials\":{{{CREDENTIALS}}},\"AssumedRoleUser\":{{\"Arn\":\"a\"}}}}"),
            format!("{{\"Version\":1,{CREDENTIALS}}}"),
        ] {
            let session = parse_document(json.as_bytes()).unwrap();
            assert_eq!(session.access_key_id, "ASIAX");
            assert_eq!(session.secret_access_key.expose_secret(), "s3cret");
            assert_eq!(session.session_token.unwrap().expose_secret(), "t0ken");
            assert_eq!(session.expiration_unix_seconds, Some(4_070_908_800));
        }
    }

    #[test]
    fn documents_of_sso_and_times_since_1970_are_sessions() {
        let sso = CREDENTIALS
            .replace("\"A", "\"a")
            .replace("\"SecretA", "\"secretA")
            .replace("\"SessionT", "\"sessionT")
            .replace("\"E", "\"e")
            .replace("\"aSIAX", "\"ASIAX");
        let end = "\"2099-01-01T00:00:00+00:00\"";
        for json in [
            format!(
                "{{\"roleCredentials\":{{{}}}}}",
                sso.replace(end, "4070908800000")
            ),
            format!("{{{}}}", sso.replace(end, "4070908800")),
            format!(
                "{{\"Credentials\":{{{}}}}}",
                CREDENTIALS.replace(end, "4070908800")
            ),
        ] {
            let session = parse_document(json.as_bytes()).unwrap();
            assert_eq!(session.access_key_id, "ASIAX", "{json}");
            assert_eq!(
                session.expiration_unix_seconds,
                Some(4_070_908_800),
                "{json}"
            );
        }
    }

    #[test]
    fn what_is_written_as_a_document_is_read_as_the_same_session() {
        let session = parse_document(format!("{{{CREDENTIALS}}}").as_bytes()).unwrap();
        let again = parse_document(&session.document()).unwrap();
        assert_eq!(again.access_key_id, session.access_key_id);
        assert_eq!(again.secret_access_key.expose_secret(), "s3cret");
        assert_eq!(again.session_token.unwrap().expose_secret(), "t0ken");
        assert_eq!(again.expiration_unix_seconds, Some(4_070_908_800));
    }

    #[test]
    fn an_incomplete_document_is_refused_by_what_it_lacks() {
        for field in [
            "AccessKeyId",
            "SecretAccessKey",
            "SessionToken",
            "Expiration",
        ] {
            let json = format!("{{{}}}", CREDENTIALS.replace(field, "Other"));
            assert_eq!(
                parse_document(json.as_bytes()).unwrap_err(),
                format!("a session document without {field}")
            );
        }
    }

    #[test]
    fn values_that_could_not_be_sent_are_refused() {
        for (value, instead) in [
            ("s3cret", "two words"),
            ("t0ken", "line\\nend"),
            ("t0ken", "nul\\u0000"),
        ] {
            let json = format!("{{{}}}", CREDENTIALS.replace(value, instead));
            let error = parse_document(json.as_bytes()).unwrap_err();
            assert!(error.contains("that is not printable in its"), "{error}");
        }
        for (value, instead, why) in [
            ("ASIAX", "", "has no AccessKeyId"),
            ("s3cret", "", "has no SecretAccessKey"),
            ("2099-01-01T00:00:00+00:00", "", "Expiration is no time"),
            ("t0ken", &"t".repeat(20_000), "a SessionToken of more than"),
            ("ASIAX", &"A".repeat(200_000), "an AccessKeyId of more than"),
        ] {
            let json = format!("{{{}}}", CREDENTIALS.replace(value, instead));
            let error = parse_document(json.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{error}");
            assert!(error.len() < 200, "{error}");
        }
        for end in ["", "tomorrow", "2099-01-01"] {
            let json = CREDENTIALS.replace("2099-01-01T00:00:00+00:00", end);
            let error = parse_document(format!("{{{json}}}").as_bytes()).unwrap_err();
            assert_eq!(error, "a session document whose Expiration is no time");
        }
    }

    #[test]
    fn a_document_at_its_end_is_refused() {
        let json = format!("{{{}}}", CREDENTIALS.replace("2099", "2020"));
        let error = parse_document(json.as_bytes()).unwrap_err();
        assert_eq!(
            error,
            "a session document that ended at 2020-01-01T00:00:00Z"
        );
    }

    #[test]
    fn no_error_quotes_the_document() {
        for json in [
            "{\"secret\"",
            "[]",
            "{\"Credentials\":\"secret\"}",
            "{\"AccessKeyId\":{\"secret\":1}}",
        ] {
            assert!(
                !parse_document(json.as_bytes())
                    .unwrap_err()
                    .contains("secret")
            );
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let session = parse_document(format!("{{{CREDENTIALS}}}").as_bytes()).unwrap();
        assert_eq!(
            format!("{session:?}"),
            "Session(ASIAX, until 2099-01-01T00:00:00Z)"
        );
    }
}
