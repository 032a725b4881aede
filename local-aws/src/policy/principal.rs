//! The `Principal` element.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::one_or_many::OneOrMany;

/// The names by which a policy may mean a caller.
pub struct PrincipalNames {
    /// The caller itself: the user's ARN, or the role's and the session's.
    pub arns: Vec<String>,
    /// The account's number.
    pub account: String,
    /// The ARN of the account's root.
    pub root_arn: String,
    /// The AWS service that calls, such as `ec2.amazonaws.com`; `None` for a user or role.
    pub service: Option<String>,
}

impl PrincipalNames {
    /// Those of an AWS service, which belongs to no account.
    pub fn of_service(name: &str) -> Self {
        Self {
            arns: Vec::new(),
            account: String::new(),
            root_arn: String::new(),
            service: Some(name.to_owned()),
        }
    }
}

/// How a `Principal` element means a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It does not.
    No,
    /// By the account, which decides by identity policies.
    Account,
    /// By name, or with everyone.
    Direct,
}

/// A `Principal` element.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Principal {
    /// `"*"`
    Text(String),
    /// `{"AWS": …, "Service": …}`
    ByType(BTreeMap<String, OneOrMany<String>>),
}

impl Principal {
    /// How this element means the caller of these names.
    pub fn matches(&self, names: &PrincipalNames) -> Match {
        let mut best = match self
            .services()
            .any(|text| Some(text) == names.service.as_deref())
        {
            true => Match::Direct,
            false => Match::No,
        };
        for text in self.aws() {
            if text == "*" || names.arns.iter().any(|arn| arn == text) {
                return Match::Direct;
            }
            if text == names.account || text == names.root_arn {
                best = Match::Account;
            }
        }
        best
    }

    /// What is wrong with this element's form, if anything is.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Text(text) if text == "*" => Ok(()),
            Self::Text(text) => Err(format!("Invalid principal in policy: {text}")),
            Self::ByType(types) => types.keys().try_for_each(|name| match name.as_str() {
                "AWS" | "Service" => Ok(()),
                _ => Err(format!(
                    "local-aws knows no principals of the type \"{name}\""
                )),
            }),
        }
    }

    /// The principals of this account: `*`, account numbers and ARNs.
    pub fn aws(&self) -> impl Iterator<Item = &str> {
        let texts = match self {
            Self::Text(text) => std::slice::from_ref(text),
            Self::ByType(_) => self.of_type("AWS"),
        };
        texts.iter().map(String::as_str)
    }

    /// The names of AWS's services.
    fn services(&self) -> impl Iterator<Item = &str> {
        self.of_type("Service").iter().map(String::as_str)
    }

    fn of_type(&self, name: &str) -> &[String] {
        match self {
            Self::Text(_) => &[],
            Self::ByType(types) => types.get(name).map_or(&[], |texts| &texts.0),
        }
    }
}
