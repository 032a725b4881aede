//! Who enters a code, from where and why: what an operator's program says beside the code, for the audit.
//!
//! Anyone who may write to the FIFO can write anything here. What AWS has proven is in CloudTrail: the user of
//! the MFA device. The note adds the person at this host and the reason, which AWS does not know.

use std::{env, fmt, fs, net::IpAddr};

use nix::unistd::{Uid, User, getuid};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use aws_session::{credentials::Credentials, token_code::TokenCode};

/// Longest reason, in bytes. A document with the longest note fits into a pipe in one piece.
const MAX_REASON_BYTES: usize = 256;

/// Longest name of an operator, and longest address, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// The audit user id of processes that no login has started. Source: loginuid in proc(5).
const NO_LOGIN: u32 = u32::MAX;

/// What is said beside a code or a session document. Each text is printable and short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Note {
    /// The user who logged in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The address that they logged in from with ssh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Why, in the operator's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The members of a document that concern this module. Others are those of a session document.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Members {
    /// The MFA code.
    pub token_code: Option<SecretString>,
    operator: Option<String>,
    from: Option<String>,
    reason: Option<String>,
}

impl Members {
    /// Checks the note. The error names the invalid member, never its value.
    pub fn note(self) -> Result<Note, String> {
        Ok(Note {
            operator: checked("Operator", self.operator, MAX_NAME_BYTES)?,
            from: checked("From", self.from, MAX_NAME_BYTES)?,
            reason: checked("Reason", self.reason, MAX_REASON_BYTES)?,
        })
    }
}

impl Note {
    /// Returns the note of the login session that this process belongs to.
    pub fn of_login(reason: Option<&str>) -> Self {
        let ssh = env::var("SSH_CONNECTION").unwrap_or_default();
        let address: Option<IpAddr> = ssh
            .split_whitespace()
            .next()
            .and_then(|text| text.parse().ok());
        Self {
            operator: checked("Operator", Some(login_name()), MAX_NAME_BYTES).unwrap_or_default(),
            from: address.map(|address| address.to_string()),
            reason: reason.map(str::to_owned),
        }
    }

    /// Writes a code with this note, as the FIFO takes it.
    pub fn document_of_code(&self, code: &TokenCode) -> Zeroizing<Vec<u8>> {
        let mut value = Zeroizing::new(Vec::with_capacity(code.expose().len() + 2));
        value.push(b'"');
        value.extend(code.expose().bytes());
        value.push(b'"');
        self.document("TokenCode", &value)
    }

    /// Writes a session with this note, as the FIFO takes it.
    pub fn document_of_session(&self, session: &Credentials) -> Zeroizing<Vec<u8>> {
        self.document("Credentials", session.document().trim_ascii_end())
    }

    /// The note is written by hand into one buffer with the secret, which is copied nowhere else.
    fn document(&self, member: &str, value: &[u8]) -> Zeroizing<Vec<u8>> {
        // A note is always serialisable.
        let note = serde_json::to_vec(self).unwrap_or_else(|_| b"{}".to_vec());
        let members = note.strip_suffix(b"}").unwrap_or(b"{");
        let separator: &[u8] = if members == b"{" { b"" } else { b"," };
        let mut document = Zeroizing::new(Vec::with_capacity(
            note.len() + member.len() + value.len() + 8,
        ));
        for part in [
            members,
            separator,
            b"\"",
            member.as_bytes(),
            b"\":",
            value,
            b"}\n",
        ] {
            document.extend_from_slice(part);
        }
        document
    }
}

/// Completes a sentence, as ", entered by alice from 192.0.2.7: the reason".
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operator) = &self.operator {
            write!(f, ", entered by {operator}")?;
        }
        if let Some(from) = &self.from {
            write!(f, " from {from}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// Checks the reason of a command line. The error completes "the reason …".
pub fn check_reason(text: &str) -> Result<String, String> {
    match checked("reason", Some(text.to_owned()), MAX_REASON_BYTES)? {
        Some(reason) => Ok(reason),
        None => Err("the reason is empty".into()),
    }
}

/// An empty text counts as none.
fn checked(name: &str, text: Option<String>, limit_bytes: usize) -> Result<Option<String>, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if text.len() > limit_bytes {
        return Err(format!("a {name} of more than {limit_bytes} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("a {name} with control characters"));
    }
    Ok(Some(text))
}

/// The name of the user who logged in, whatever su and sudo have done since; else of the user that sudo was
/// called by, or of this process.
fn login_name() -> String {
    let of_login = fs::read_to_string("/proc/self/loginuid")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|uid| *uid != NO_LOGIN);
    let of_sudo = || env::var("SUDO_UID").ok()?.parse().ok();
    let uid = of_login.or_else(of_sudo).map_or_else(getuid, Uid::from_raw);
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Note {
        Note {
            operator: Some("alice".into()),
            from: None,
            reason: Some("ticket \"4711\"".into()),
        }
    }

    #[test]
    fn a_document_holds_the_note_and_the_code() {
        let code = TokenCode::new(b"111676").unwrap();
        assert_eq!(
            String::from_utf8_lossy(&example().document_of_code(&code)),
            "{\"Operator\":\"alice\",\"Reason\":\"ticket \\\"4711\\\"\",\"TokenCode\":\"111676\"}\n"
        );
        assert_eq!(
            String::from_utf8_lossy(&Note::default().document_of_code(&code)),
            "{\"TokenCode\":\"111676\"}\n"
        );
    }

    #[test]
    fn long_and_unprintable_texts_are_refused_without_being_shown() {
        for (text, expected) in [
            ("x".repeat(257), "a Reason of more than 256 bytes"),
            ("a\nb".into(), "a Reason with control characters"),
        ] {
            let members = Members {
                token_code: None,
                operator: None,
                from: None,
                reason: Some(text),
            };
            assert_eq!(members.note(), Err(expected.into()));
        }
    }

    #[test]
    fn a_message_says_who_from_where_and_why() {
        let mut note = example();
        assert_eq!(note.to_string(), ", entered by alice: ticket \"4711\"");
        note.from = Some("192.0.2.7".into());
        note.reason = None;
        assert_eq!(note.to_string(), ", entered by alice from 192.0.2.7");
        assert_eq!(Note::default().to_string(), "");
    }

    #[test]
    fn the_reason_of_a_command_line_is_a_text() {
        assert_eq!(check_reason("ticket 4711"), Ok("ticket 4711".into()));
        let longest = "x".repeat(MAX_REASON_BYTES);
        assert_eq!(check_reason(&longest), Ok(longest));
        assert!(check_reason("").is_err());
        assert!(check_reason("a\u{7}").is_err());
    }

    #[test]
    fn a_login_has_a_name() {
        assert!(Note::of_login(None).operator.is_some());
    }
}
