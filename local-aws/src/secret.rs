//! Text that must not show: secret access keys, MFA seeds, key material in base64.

use std::fmt;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A secret as text. It is wiped when dropped and has no `Display`; `Debug` shows its name only.
///
/// Serialising shows it: that is how it comes into the state file, and into nothing else.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes `text` over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// A secret of `bytes` random bytes, kept as base64.
    pub fn random(bytes: usize) -> Result<Self, getrandom::Error> {
        let mut random = Zeroizing::new(vec![0; bytes]);
        getrandom::fill(&mut random)?;
        Ok(Self::new(BASE64.encode(&random)))
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The bytes of a secret made by [`Secret::random`]; `None` if it is not base64.
    pub fn decode(&self) -> Option<Zeroizing<Vec<u8>>> {
        BASE64.decode(self.0.as_bytes()).ok().map(Zeroizing::new)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}
