//! The MFA code.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Six digits of an MFA device, wiped when dropped and never printed.
///
/// Boxed, because moving a value leaves copies on the stack.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TokenCode(Box<[u8]>);

impl TokenCode {
    /// Accepts exactly six ASCII digits.
    pub fn new(digits: &[u8]) -> Option<Self> {
        Self::is_code(digits).then(|| Self(digits.into()))
    }

    /// Whether `digits` are a code.
    pub fn is_code(digits: &[u8]) -> bool {
        digits.len() == 6 && digits.iter().all(u8::is_ascii_digit)
    }

    /// Returns the digits and a line end, as every FIFO takes them.
    pub fn line(&self) -> Zeroizing<Vec<u8>> {
        let mut line = Zeroizing::new(Vec::with_capacity(self.0.len() + 1));
        line.extend_from_slice(&self.0);
        line.push(b'\n');
        line
    }

    /// Returns the digits, for the request to STS.
    pub fn expose(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for TokenCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenCode")
    }
}
