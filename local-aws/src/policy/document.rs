//! A policy document: how it is written, checked and asked.

use serde::Deserialize;
use wildmatch::WildMatch;

use super::condition::{self, Condition};
use super::one_or_many::OneOrMany;
use super::principal::{Match, Principal};
use super::{Question, Verdict};

/// Longest key policy in bytes. Source: the KMS API reference, PutKeyPolicy.
pub const MAX_POLICY_BYTES: usize = 32_768;

/// Why a policy is refused, in the words of MalformedPolicyDocumentException.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(pub String);

/// What a policy is attached to, which decides the elements it must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyKind {
    /// To a user or role: no principal, but resources.
    Identity,
    /// To a KMS key: principals and resources.
    Key,
    /// To a role, as who may assume it: principals, but no resources.
    Trust,
    /// To a bucket of S3: principals and resources. Only `simulate` takes it.
    Bucket,
}

/// A policy that has been checked.
#[derive(Debug)]
pub struct Policy {
    statements: Vec<Statement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct WrittenPolicy {
    version: Option<String>,
    #[serde(rename = "Id")]
    _id: Option<String>,
    statement: OneOrMany<WrittenStatement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct WrittenStatement {
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    effect: Effect,
    principal: Option<Principal>,
    action: Option<OneOrMany<String>>,
    not_action: Option<OneOrMany<String>>,
    resource: Option<OneOrMany<String>>,
    not_resource: Option<OneOrMany<String>>,
    #[serde(default)]
    condition: condition::Written,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Debug)]
struct Statement {
    effect: Effect,
    principal: Option<Principal>,
    actions: Patterns,
    resources: Patterns,
    conditions: Vec<Condition>,
}

/// Wildcard patterns of an element, or of its `Not…` form.
#[derive(Debug)]
struct Patterns {
    patterns: Vec<WildMatch>,
    negated: bool,
}

impl Policy {
    /// Reads and checks a policy of this kind.
    pub fn parse(text: &str, kind: PolicyKind) -> Result<Self, PolicyError> {
        if text.len() > MAX_POLICY_BYTES {
            return Err(PolicyError(format!(
                "The policy has more than {MAX_POLICY_BYTES} bytes"
            )));
        }
        if text.contains("${") {
            return Err(PolicyError(
                "local-aws does not know policy variables".to_owned(),
            ));
        }
        let written: WrittenPolicy = serde_json::from_str(text)
            .map_err(|error| PolicyError(format!("Syntax errors in policy: {error}")))?;
        match written.version.as_deref() {
            None | Some("2012-10-17" | "2008-10-17") => {}
            Some(version) => {
                return Err(PolicyError(format!("Invalid policy version {version}")));
            }
        }
        let statements = written.statement.0.into_iter();
        let statements = statements.map(|statement| Statement::check(statement, kind));
        Ok(Self {
            statements: statements
                .collect::<Result<_, String>>()
                .map_err(PolicyError)?,
        })
    }

    /// What this policy says to `question`.
    pub fn ask(&self, question: &Question<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for statement in self
            .statements
            .iter()
            .filter(|statement| statement.applies(question))
        {
            match (statement.effect, statement.means(question)) {
                (_, Match::No) => {}
                (Effect::Deny, _) => verdict.denied = true,
                (Effect::Allow, Match::Direct) => verdict.allowed = true,
                (Effect::Allow, Match::Account) => verdict.delegated = true,
            }
        }
        verdict
    }

    /// The principals that the policy names: `*`, account numbers and ARNs.
    pub fn principals(&self) -> impl Iterator<Item = &str> {
        self.statements
            .iter()
            .filter_map(|statement| statement.principal.as_ref())
            .flat_map(Principal::aws)
    }
}

impl Statement {
    fn check(written: WrittenStatement, kind: PolicyKind) -> Result<Self, String> {
        let has_resource = written.resource.is_some() || written.not_resource.is_some();
        match (kind, written.principal.is_some(), has_resource) {
            (PolicyKind::Identity, true, _) => {
                return Err("Policy document should not specify a principal.".to_owned());
            }
            (PolicyKind::Identity | PolicyKind::Key | PolicyKind::Bucket, _, false) => {
                return Err("Policy statement must contain resources.".to_owned());
            }
            (PolicyKind::Trust, _, true) => return Err("Has prohibited field Resource".to_owned()),
            (PolicyKind::Key | PolicyKind::Trust | PolicyKind::Bucket, false, _) => {
                return Err("Policy document must contain principals.".to_owned());
            }
            _ => {}
        }
        if let Some(principal) = &written.principal {
            principal.check()?;
        }
        let everything = Some(OneOrMany(vec!["*".to_owned()]));
        let resource = if has_resource {
            written.resource
        } else {
            everything
        };
        Ok(Self {
            effect: written.effect,
            principal: written.principal,
            actions: Patterns::new(
                "Action",
                written.action,
                written.not_action,
                normalized_action,
            )?,
            resources: Patterns::new("Resource", resource, written.not_resource, |text| {
                Ok(text.to_owned())
            })?,
            conditions: written.condition.parse(kind)?,
        })
    }

    fn applies(&self, question: &Question<'_>) -> bool {
        self.actions.matches(&question.action.to_ascii_lowercase())
            && self.resources.matches(question.resource)
            && self
                .conditions
                .iter()
                .all(|condition| condition.holds(question.context))
    }

    /// How the statement means the caller: that of an identity policy means whom it is attached to.
    fn means(&self, question: &Question<'_>) -> Match {
        match &self.principal {
            Some(principal) => principal.matches(question.principal),
            None => Match::Direct,
        }
    }
}

/// Actions match whatever their case.
fn normalized_action(text: &str) -> Result<String, String> {
    match text == "*" || text.contains(':') {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("Actions/Conditions must be prefaced by a vendor.".to_owned()),
    }
}

impl Patterns {
    fn new(
        element: &str,
        positive: Option<OneOrMany<String>>,
        negative: Option<OneOrMany<String>>,
        normalized: fn(&str) -> Result<String, String>,
    ) -> Result<Self, String> {
        let (texts, negated) = match (positive, negative) {
            (Some(texts), None) => (texts, false),
            (None, Some(texts)) => (texts, true),
            _ => {
                return Err(format!(
                    "Policy statement must contain either {element} or Not{element}."
                ));
            }
        };
        let texts = texts.0.iter();
        let patterns = texts.map(|text| Ok(WildMatch::new(&normalized(text)?)));
        Ok(Self {
            patterns: patterns.collect::<Result<_, String>>()?,
            negated,
        })
    }

    fn matches(&self, text: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(text)) != self.negated
    }
}
