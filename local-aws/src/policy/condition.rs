//! The `Condition` element.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use wildmatch::WildMatch;

use super::one_or_many::OneOrMany;
use super::{Context, PolicyKind};

/// Condition keys that requests here carry, in lower case.
const KEYS: [&str; 5] = [
    "aws:multifactorauthpresent",
    "aws:principalaccount",
    "aws:principalarn",
    "aws:sourceip",
    "kms:calleraccount",
];
/// Condition keys of S3, which only [`PolicyKind::Identity`] and [`PolicyKind::Bucket`] may have: no request here
/// carries them.
const S3_KEYS: [&str; 3] = [
    "s3:if-none-match",
    "s3:objectcreationoperation",
    "s3:prefix",
];
/// The same for a bucket alone; requests to AWS do carry it.
const SECURE_TRANSPORT: &str = "aws:securetransport";
/// The start of the keys that carry the encryption context's pairs.
const ENCRYPTION_CONTEXT: &str = "kms:encryptioncontext:";

/// A `Condition` element as it is written: operator, key, values.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Written(BTreeMap<String, BTreeMap<String, OneOrMany<Value>>>);

/// One test: operator, key, values.
#[derive(Debug)]
pub struct Condition {
    test: Test,
    if_exists: bool,
    /// In lower case: the case of keys does not count.
    key: String,
}

#[derive(Debug)]
enum Test {
    Bool(Vec<bool>),
    StringEquals(Vec<String>),
    StringLike(Vec<WildMatch>),
    IpAddress(Vec<IpNet>),
    NotIpAddress(Vec<IpNet>),
    Null(Vec<bool>),
}

impl Written {
    /// The tests, all of which must hold; or what this program does not know of them.
    pub fn parse(&self, kind: PolicyKind) -> Result<Vec<Condition>, String> {
        let tests = self.0.iter().flat_map(|(operator, keys)| {
            keys.iter()
                .map(move |(key, values)| Condition::parse(kind, operator, key, &values.0))
        });
        tests.collect()
    }
}

impl Condition {
    fn parse(
        kind: PolicyKind,
        operator: &str,
        key: &str,
        values: &[Value],
    ) -> Result<Self, String> {
        let key = key.to_ascii_lowercase();
        let is_known = match kind {
            _ if KEYS.contains(&key.as_str()) || key.starts_with(ENCRYPTION_CONTEXT) => true,
            PolicyKind::Identity => S3_KEYS.contains(&key.as_str()),
            PolicyKind::Bucket => S3_KEYS.contains(&key.as_str()) || key == SECURE_TRANSPORT,
            PolicyKind::Key | PolicyKind::Trust => false,
        };
        if !is_known {
            let known = KEYS.join(", ");
            return Err(format!(
                "local-aws does not know the condition key {key}; it knows {known} and \
                 {ENCRYPTION_CONTEXT}NAME"
            ));
        }
        let values: Vec<String> = values.iter().map(text).collect::<Result<_, _>>()?;
        let (name, if_exists) = match operator.strip_suffix("IfExists") {
            Some(name) if name != "Null" => (name, true),
            _ => (operator, false),
        };
        let test = match name {
            "Bool" => Test::Bool(parse_all(&values, parse_bool)?),
            "StringEquals" => Test::StringEquals(values),
            "StringLike" => {
                Test::StringLike(values.iter().map(|value| WildMatch::new(value)).collect())
            }
            "IpAddress" => Test::IpAddress(parse_all(&values, parse_network)?),
            "NotIpAddress" => Test::NotIpAddress(parse_all(&values, parse_network)?),
            "Null" => Test::Null(parse_all(&values, parse_bool)?),
            _ => {
                return Err(format!(
                    "local-aws does not know the condition operator {operator}; it knows Bool, \
                     StringEquals, StringLike, IpAddress, NotIpAddress, each also with IfExists, \
                     and Null"
                ));
            }
        };
        Ok(Self {
            test,
            if_exists,
            key,
        })
    }

    /// Whether the test holds. One on a key that the request does not carry fails, but for
    /// `…IfExists` and, being negated, `NotIpAddress`.
    pub fn holds(&self, context: &Context) -> bool {
        let value = context.get(&self.key);
        if let Test::Null(expected) = &self.test {
            return expected.contains(&value.is_none());
        }
        let Some(value) = value else {
            return self.if_exists || matches!(self.test, Test::NotIpAddress(_));
        };
        match &self.test {
            Test::Bool(expected) => parse_bool(value).is_ok_and(|value| expected.contains(&value)),
            Test::StringEquals(expected) => expected.contains(value),
            Test::StringLike(patterns) => patterns.iter().any(|pattern| pattern.matches(value)),
            Test::IpAddress(networks) => is_within(value, networks),
            Test::NotIpAddress(networks) => !is_within(value, networks),
            Test::Null(expected) => !expected.contains(&true),
        }
    }
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        _ => Err(format!("{value} is no value for a condition")),
    }
}

fn parse_all<T>(values: &[String], parse: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    values.iter().map(|value| parse(value)).collect()
}

fn parse_bool(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{value} is neither true nor false")),
    }
}

/// A network, or a single address.
fn parse_network(value: &str) -> Result<IpNet, String> {
    value
        .parse::<IpNet>()
        .or_else(|_| value.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("{value} is no IP address or network"))
}

fn is_within(address: &str, networks: &[IpNet]) -> bool {
    address
        .parse::<IpAddr>()
        .is_ok_and(|address| networks.iter().any(|network| network.contains(&address)))
}
