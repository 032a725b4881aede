//! The services of AWS that this program plays.

/// The two services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Security Token Service: AWS's query protocol.
    Sts,
    /// Key Management Service: AWS's JSON 1.1 protocol.
    Kms,
}

impl Service {
    /// The name in credential scopes, and the prefix of actions in policies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sts => "sts",
            Self::Kms => "kms",
        }
    }
}
