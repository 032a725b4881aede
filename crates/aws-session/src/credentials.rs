//! AWS credentials: long-term keys or a session, and the documents that contain them.

use std::fmt;

use aws_credential_types::Credentials as SdkCredentials;
use aws_smithy_types::date_time::DateTime;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::error::Category;
use zeroize::Zeroizing;

use crate::clock::{self, parse_utc, seconds_text, utc_text};

/// Longest access key id, in bytes, according to AWS.
///
/// Source: <https://docs.aws.amazon.com/STS/latest/APIReference/API_Credentials.html>.
const MAX_ACCESS_KEY_ID_BYTES: usize = 128;

/// Longest secret access key, in bytes. AWS's have 40 bytes.
const MAX_SECRET_ACCESS_KEY_BYTES: usize = 512;

/// Longest session token, in bytes. AWS documents no limit; with large policies, tokens have some
/// thousand bytes.
const MAX_SESSION_TOKEN_BYTES: usize = 16 * 1024;

/// A set of AWS credentials: long-term (no token, no expiration) or temporary.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// Access key id. It is not a secret.
    pub access_key_id: String,
    /// Secret access key.
    #[serde(serialize_with = "expose")]
    pub secret_access_key: SecretString,
    /// Session token of temporary credentials.
    #[serde(serialize_with = "expose_option")]
    pub session_token: Option<SecretString>,
    /// When they expire, in seconds since 1970-01-01 UTC; `None`: never.
    pub expiration_unix_seconds: Option<i64>,
}

impl Credentials {
    /// Returns the seconds until they expire, by AWS's time; negative afterwards. `None`: they never
    /// expire.
    pub fn remaining_seconds(&self) -> Option<i64> {
        self.expiration_unix_seconds
            .map(|end| end.saturating_sub(clock::aws_unix_seconds()))
    }

    /// Formats the expiration as RFC 3339 in UTC, or "never".
    pub fn expiration_text(&self) -> String {
        self.expiration_unix_seconds
            .map_or_else(|| "never".into(), utc_text)
    }

    /// Writes the credentials as a session document, in the format of a `credential_process`.
    pub fn document(&self) -> Zeroizing<Vec<u8>> {
        // Large enough from the start: a buffer that grows leaves copies of secrets in memory.
        let mut json = Zeroizing::new(Vec::with_capacity(64 * 1024));
        let document = ProcessCredentials {
            version: 1,
            access_key_id: &self.access_key_id,
            secret_access_key: self.secret_access_key.expose_secret(),
            session_token: self.session_token.as_ref().map(ExposeSecret::expose_secret),
            expiration: self.expiration_text(),
        };
        // Neither the writer nor this document can fail.
        let _ = serde_json::to_writer(&mut *json, &document);
        json.push(b'\n');
        json
    }

    /// Converts to the SDK's type, without the expiration, which the SDK would compare with this host's
    /// clock. Use [`Self::remaining_seconds`] instead.
    pub fn to_sdk(&self) -> SdkCredentials {
        SdkCredentials::new(
            &self.access_key_id,
            self.secret_access_key.expose_secret(),
            self.session_token
                .as_ref()
                .map(|token| token.expose_secret().to_owned()),
            None,
            "iam-kms-wrapper",
        )
    }

    /// Checks that each value is printable ASCII without spaces, and no longer than AWS's are: they
    /// become part of headers, environment variables and log lines.
    ///
    /// The error names the invalid field, never its value.
    pub fn checked(self) -> Result<Self, String> {
        check_value("AccessKeyId", &self.access_key_id, MAX_ACCESS_KEY_ID_BYTES)?;
        let secret = self.secret_access_key.expose_secret();
        check_value("SecretAccessKey", secret, MAX_SECRET_ACCESS_KEY_BYTES)?;
        if let Some(token) = &self.session_token {
            check_value(
                "SessionToken",
                token.expose_secret(),
                MAX_SESSION_TOKEN_BYTES,
            )?;
        }
        Ok(self)
    }

    /// Checks the credentials of a session: as [`Self::checked`] does, and that they expire, but not
    /// within `least_seconds`.
    pub fn checked_session(self, least_seconds: i64) -> Result<Self, String> {
        let session = self.checked()?;
        if session.session_token.is_none() {
            return Err("has no SessionToken".into());
        }
        let end = session.expiration_text();
        match session.remaining_seconds() {
            None => Err("has no Expiration".into()),
            Some(..=0) => Err(format!("expired at {end}")),
            Some(left) if left < least_seconds => Err(format!(
                "expires at {end}, in less than {}",
                seconds_text(least_seconds.unsigned_abs())
            )),
            Some(_) => Ok(session),
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
            "has a space or a non-printable character in its {field}"
        )),
        _ => Ok(()),
    }
}

impl From<&SdkCredentials> for Credentials {
    fn from(credentials: &SdkCredentials) -> Self {
        Self {
            access_key_id: credentials.access_key_id().to_owned(),
            secret_access_key: credentials.secret_access_key().into(),
            session_token: credentials.session_token().map(SecretString::from),
            expiration_unix_seconds: credentials.expiry().map(|end| DateTime::from(end).secs()),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Credentials({}, until {})",
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

/// The output of `aws sts get-session-token`, `aws sts assume-role`, a `credential_process`, or `aws
/// sso get-role-credentials`, whose names start with a lower-case letter.
///
/// Sources: <https://docs.aws.amazon.com/STS/latest/APIReference/API_Credentials.html>,
/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>,
/// <https://docs.aws.amazon.com/singlesignon/latest/PortalAPIReference/API_RoleCredentials.html>.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    /// A document whose fields lie one level lower. (`#[serde(flatten)]` would leave copies of secrets in
    /// memory.)
    #[serde(alias = "credentials", alias = "roleCredentials")]
    credentials: Option<Box<Document>>,
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
    /// In seconds this would be the year 5138. A number that is not smaller is in milliseconds, as in
    /// SSO's documents.
    const LEAST_MILLISECONDS: i64 = 100_000_000_000;

    /// `None`: it is not a time.
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

/// A session document must be valid for at least this long to be accepted, in seconds.
const LEAST_REMAINING_SECONDS: i64 = 60;

/// Reads a session document, and checks that it is complete and does not expire soon.
///
/// The error says what is wrong and never quotes the document.
pub fn parse_document(json: &[u8]) -> Result<Credentials, String> {
    const WHAT: &str = "a session document";
    let mut document: Document =
        serde_json::from_slice(json).map_err(|error| not_a_document(WHAT, error.classify()))?;
    if let Some(inner) = document.credentials.take() {
        document = *inner;
    }
    clock::follow_host();
    present(WHAT, "Expiration", document.expiration.as_ref())?;
    let session = document.read(WHAT)?;
    present(WHAT, "SessionToken", session.session_token.as_ref())?;
    session
        .checked_session(LEAST_REMAINING_SECONDS)
        .map_err(|why| format!("{WHAT} that {why}"))
}

/// Reads the output of a `credential_process`: long-term keys, or a session.
///
/// The error says what is wrong and never quotes the document.
pub fn parse_process_document(json: &[u8]) -> Result<Credentials, String> {
    const WHAT: &str = "a credentials document";
    serde_json::from_slice::<Document>(json)
        .map_err(|error| not_a_document(WHAT, error.classify()))?
        .read(WHAT)
}

impl Document {
    fn read(self, what: &str) -> Result<Credentials, String> {
        let access_key_id = present(what, "AccessKeyId", self.access_key_id)?;
        let expiration = self.expiration.map(|expiration| {
            let seconds = expiration.unix_seconds();
            seconds.ok_or_else(|| format!("{what} whose Expiration is not a time"))
        });
        Ok(Credentials {
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
        Category::Eof => format!("{what} that is cut off"),
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
    fn a_session_document_can_be_read_back() {
        let session = parse_document(format!("{{{CREDENTIALS}}}").as_bytes()).unwrap();
        let again = parse_document(&session.document()).unwrap();
        assert_eq!(again.access_key_id, session.access_key_id);
        assert_eq!(again.secret_access_key.expose_secret(), "s3cret");
        assert_eq!(again.session_token.unwrap().expose_secret(), "t0ken");
        assert_eq!(again.expiration_unix_seconds, Some(4_070_908_800));
    }

    #[test]
    fn an_error_names_the_missing_field_of_a_document() {
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
    fn invalid_values_in_a_document_are_refused() {
        for (value, instead) in [
            ("s3cret", "two words"),
            ("t0ken", "line\\nend"),
            ("t0ken", "nul\\u0000"),
        ] {
            let json = format!("{{{}}}", CREDENTIALS.replace(value, instead));
            let error = parse_document(json.as_bytes()).unwrap_err();
            assert!(error.contains("non-printable character in its"), "{error}");
        }
        for (value, instead, why) in [
            ("ASIAX", "", "has no AccessKeyId"),
            ("s3cret", "", "has no SecretAccessKey"),
            ("2099-01-01T00:00:00+00:00", "", "Expiration is not a time"),
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
            assert_eq!(error, "a session document whose Expiration is not a time");
        }
    }

    #[test]
    fn an_expired_document_is_refused() {
        let json = format!("{{{}}}", CREDENTIALS.replace("2099", "2020"));
        let error = parse_document(json.as_bytes()).unwrap_err();
        assert_eq!(
            error,
            "a session document that expired at 2020-01-01T00:00:00Z"
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
            "Credentials(ASIAX, until 2099-01-01T00:00:00Z)"
        );
    }
}
