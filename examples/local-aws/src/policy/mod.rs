//! IAM policies: identity policies, key policies, trust policies.
//!
//! What this program does not model (other condition operators and keys, policy variables,
//! `NotPrincipal`) is refused when a policy comes in, and never ignored.
//!
//! Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html>.

mod condition;
mod document;
mod principal;

use std::collections::BTreeMap;

pub use document::{Policy, PolicyError, PolicyKind};
pub use principal::PrincipalNames;

/// The request context: condition keys in lower case and their values.
pub type Context = BTreeMap<String, String>;

/// What a policy is asked.
pub struct Question<'a> {
    /// The action, such as `kms:Decrypt`.
    pub action: &'a str,
    /// The ARN of the resource, or `*`.
    pub resource: &'a str,
    /// Who asks.
    pub principal: &'a PrincipalNames,
    /// The request context.
    pub context: &'a Context,
}

/// What a policy says to a question.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// A statement denies it.
    pub denied: bool,
    /// A statement allows it to this principal.
    pub allowed: bool,
    /// A statement leaves it to the account, whose identity policies decide.
    pub delegated: bool,
}
