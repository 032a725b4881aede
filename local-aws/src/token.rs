//! What proves to AWS that a program runs on a machine of its own.

use data_encoding::BASE64URL_NOPAD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::sealing;
use crate::state::State;

/// What a token is good for.
#[derive(Clone, Copy)]
pub enum Purpose {
    /// Reads the instance's metadata.
    Metadata,
    /// Gets a container's credentials.
    Container,
    /// Is given to AssumeRoleWithWebIdentity.
    WebIdentity,
}

impl Purpose {
    fn seal_name(self) -> &'static [u8] {
        match self {
            Self::Metadata => b"metadata token",
            Self::Container => b"container token",
            Self::WebIdentity => b"web identity token",
        }
    }
}

/// What a token says; sealed, so that nobody else can make one.
#[derive(Serialize, Deserialize)]
pub struct Token {
    /// Name of the role.
    pub role: String,
    /// When it ends.
    pub expiration: Timestamp,
}

impl Token {
    /// Makes one for `role` that lasts so long.
    pub fn make(
        state: &State,
        role: &str,
        purpose: Purpose,
        seconds: u32,
    ) -> Result<String, ApiError> {
        let token = Self {
            role: role.to_owned(),
            expiration: state
                .now()
                .checked_add(SignedDuration::from_secs(seconds.into()))
                .map_err(ApiError::internal)?,
        };
        let plaintext = serde_json::to_vec(&token).map_err(ApiError::internal)?;
        sealing::seal(&state.session_token_key, &plaintext, purpose.seal_name())
            .map(|sealed| BASE64URL_NOPAD.encode(&sealed))
            .ok_or_else(|| ApiError::internal("a token cannot be sealed"))
    }

    /// Reads one; `None` if it was not made here for this purpose.
    pub fn read(state: &State, text: &str, purpose: Purpose) -> Option<Self> {
        let sealed = BASE64URL_NOPAD.decode(text.trim().as_bytes()).ok()?;
        let plaintext = sealing::open(&state.session_token_key, &sealed, purpose.seal_name())?;
        serde_json::from_slice(&plaintext).ok()
    }

    /// Whether its time is over.
    pub fn is_over(&self, state: &State) -> bool {
        self.expiration <= state.now()
    }
}

/// What a web identity token proves.
pub enum WebIdentity {
    /// Its bearer may assume this role.
    Role(String),
    /// It is over.
    Expired,
    /// Nobody here has issued it.
    Unknown,
}

/// Reads a token from the file `web-identity-token`.
pub fn web_identity(state: &State, token: &str) -> WebIdentity {
    match Token::read(state, token, Purpose::WebIdentity) {
        None => WebIdentity::Unknown,
        Some(token) if token.is_over(state) => WebIdentity::Expired,
        Some(token) => WebIdentity::Role(token.role),
    }
}
