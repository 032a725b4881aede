//! Session tokens: the session itself, sealed, so that the server need not remember any.

use data_encoding::BASE64;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::caller::{Principal, SessionFacts};
use crate::error::ApiError;
use crate::identifier;
use crate::sealing;
use crate::secret::Secret;
use crate::state::State;

/// Temporary credentials and what they stand for.
#[derive(Serialize, Deserialize)]
pub struct Session {
    /// `ASIA…`.
    pub access_key_id: String,
    /// The key's secret.
    pub secret_access_key: Secret,
    /// Whose.
    pub principal: Principal,
    /// What it says of itself.
    pub facts: SessionFacts,
    /// From when on it is refused.
    pub expiration: Timestamp,
}

impl Session {
    /// New credentials for `principal` that last `seconds` from now.
    pub fn new(
        state: &State,
        principal: Principal,
        mfa: bool,
        seconds: u32,
    ) -> Result<Self, ApiError> {
        let created = state.now();
        let expiration = created
            .checked_add(SignedDuration::from_secs(seconds.into()))
            .map_err(ApiError::internal)?;
        Ok(Self {
            access_key_id: identifier::access_key_id("ASIA").map_err(ApiError::internal)?,
            secret_access_key: identifier::secret_access_key().map_err(ApiError::internal)?,
            principal,
            facts: SessionFacts { created, mfa },
            expiration,
        })
    }

    /// The session token.
    pub fn token(&self, state: &State) -> Result<String, ApiError> {
        let plaintext = Zeroizing::new(serde_json::to_vec(self).map_err(ApiError::internal)?);
        sealing::seal(&state.session_token_key, &plaintext, b"session token")
            .map(|sealed| BASE64.encode(&sealed))
            .ok_or_else(|| ApiError::internal("the session token cannot be sealed"))
    }

    /// The session that a token is of; `None` if this account never gave that token out.
    pub fn from_token(state: &State, token: &str) -> Option<Self> {
        let sealed = BASE64.decode(token.as_bytes()).ok()?;
        let plaintext = sealing::open(&state.session_token_key, &sealed, b"session token")?;
        serde_json::from_slice(&plaintext).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_opaque_and_cannot_be_changed() {
        let state = State::new("111122223333", "us-east-1", "mariadb").unwrap();
        let principal = Principal::User {
            name: "mariadb".into(),
        };
        let session = Session::new(&state, principal.clone(), true, 900).unwrap();
        let token = session.token(&state).unwrap();
        assert_eq!(
            Session::from_token(&state, &token).unwrap().principal,
            principal
        );
        let mut bytes = BASE64.decode(token.as_bytes()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("mariadb"));
        for position in 0..bytes.len() {
            bytes[position] ^= 1;
            assert!(
                Session::from_token(&state, &BASE64.encode(&bytes)).is_none(),
                "{position}"
            );
            bytes[position] ^= 1;
        }
    }

    #[test]
    fn a_token_of_another_account_is_unknown() {
        let state = State::new("111122223333", "us-east-1", "mariadb").unwrap();
        let other = State::new("111122223333", "us-east-1", "mariadb").unwrap();
        let principal = Principal::User {
            name: "mariadb".into(),
        };
        let token = Session::new(&other, principal, true, 900)
            .unwrap()
            .token(&other)
            .unwrap();
        assert!(Session::from_token(&state, &token).is_none());
    }
}
