//! IAM policies: identity policies, key policies, trust policies.
//!
//! What this program does not model (other condition operators and keys, policy variables,
//! `NotPrincipal`) is refused when a policy comes in, and never ignored.
//!
//! Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html>.

mod condition;
mod document;
mod one_or_many;
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const USER: &str = "arn:aws:iam::111122223333:user/mariadb";
    const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/one";

    fn names() -> PrincipalNames {
        PrincipalNames {
            arns: vec![USER.to_owned()],
            account: "111122223333".to_owned(),
            root_arn: "arn:aws:iam::111122223333:root".to_owned(),
            service: None,
        }
    }

    fn context(pairs: &[(&str, &str)]) -> Context {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    fn ask(policy: &Policy, action: &str, pairs: &[(&str, &str)]) -> Verdict {
        policy.ask(&Question {
            action,
            resource: KEY,
            principal: &names(),
            context: &context(pairs),
        })
    }

    fn identity(statement: Value) -> Result<Policy, PolicyError> {
        let policy = json!({ "Version": "2012-10-17", "Statement": statement });
        Policy::parse(&policy.to_string(), PolicyKind::Identity)
    }

    fn key(principal: Value) -> Policy {
        let statement = json!({
            "Effect": "Allow", "Principal": principal, "Action": "kms:*", "Resource": "*",
        });
        let policy = json!({ "Version": "2012-10-17", "Statement": statement });
        Policy::parse(&policy.to_string(), PolicyKind::Key).unwrap()
    }

    /// Whether a statement under this condition allows what comes with this context.
    fn holds(condition: Value, pairs: &[(&str, &str)]) -> bool {
        let statement = json!({
            "Effect": "Allow", "Action": "*", "Resource": "*", "Condition": condition,
        });
        ask(&identity(statement).unwrap(), "kms:Decrypt", pairs).allowed
    }

    #[test]
    fn an_action_matches_by_wildcards_whatever_its_case() {
        for (pattern, allowed) in [
            ("kms:Decrypt", true),
            ("KMS:decrypt", true),
            ("kms:*", true),
            ("*", true),
            ("kms:De?rypt", true),
            ("kms:Decrypt?", false),
            ("kms:Encrypt", false),
            ("sts:*", false),
        ] {
            let statement = json!({ "Effect": "Allow", "Action": [pattern], "Resource": "*" });
            let verdict = ask(&identity(statement).unwrap(), "kms:Decrypt", &[]);
            assert_eq!(verdict.allowed, allowed, "{pattern}");
        }
    }

    #[test]
    fn not_action_and_not_resource_mean_all_others() {
        let statement = json!({ "Effect": "Allow", "NotAction": "kms:Decrypt", "Resource": "*" });
        let policy = identity(statement).unwrap();
        assert!(!ask(&policy, "kms:Decrypt", &[]).allowed);
        assert!(ask(&policy, "kms:Encrypt", &[]).allowed);
        let statement = json!({ "Effect": "Allow", "Action": "*", "NotResource": KEY });
        assert!(!ask(&identity(statement).unwrap(), "kms:Decrypt", &[]).allowed);
    }

    #[test]
    fn a_resource_matches_by_wildcards_and_by_case() {
        for (pattern, allowed) in [
            (KEY, true),
            ("arn:aws:kms:*:111122223333:key/*", true),
            ("arn:aws:kms:us-east-1:111122223333:KEY/one", false),
            ("arn:aws:kms:eu-west-1:111122223333:key/one", false),
        ] {
            let statement = json!({ "Effect": "Allow", "Action": "*", "Resource": pattern });
            let verdict = ask(&identity(statement).unwrap(), "kms:Decrypt", &[]);
            assert_eq!(verdict.allowed, allowed, "{pattern}");
        }
    }

    #[test]
    fn a_principal_by_name_allows_and_one_by_account_delegates() {
        let other = "arn:aws:iam::111122223333:user/other";
        for (principal, allowed, delegated) in [
            (json!("*"), true, false),
            (json!({ "AWS": "*" }), true, false),
            (json!({ "AWS": USER }), true, false),
            (json!({ "AWS": [other, USER] }), true, false),
            (
                json!({ "AWS": "arn:aws:iam::111122223333:root" }),
                false,
                true,
            ),
            (json!({ "AWS": "111122223333" }), false, true),
            (json!({ "AWS": other }), false, false),
            (
                json!({ "AWS": "arn:aws:iam::999999999999:root" }),
                false,
                false,
            ),
            (json!({ "Service": "rds.amazonaws.com" }), false, false),
        ] {
            let verdict = ask(&key(principal.clone()), "kms:Decrypt", &[]);
            assert_eq!(
                (verdict.allowed, verdict.delegated),
                (allowed, delegated),
                "{principal}"
            );
        }
    }

    /// The table of <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html>:
    /// the key is absent for long-term keys, and true or false for temporary ones.
    #[test]
    fn bool_and_bool_if_exists_differ_where_the_mfa_key_is_absent() {
        let key = "aws:multifactorauthpresent";
        let (absent, yes, no) = (&[][..], &[(key, "true")][..], &[(key, "false")][..]);
        let wants =
            |operator: &str, value| json!({ operator: { "aws:MultiFactorAuthPresent": value } });
        for (condition, expected) in [
            (wants("Bool", "true"), [false, true, false]),
            (wants("BoolIfExists", "true"), [true, true, false]),
            (wants("Bool", "false"), [false, false, true]),
            (wants("BoolIfExists", "false"), [true, false, true]),
            (wants("Null", "true"), [true, false, false]),
            (wants("Null", "false"), [false, true, true]),
            (wants("Bool", "True"), [false, true, false]),
        ] {
            let found = [absent, yes, no].map(|pairs| holds(condition.clone(), pairs));
            assert_eq!(found, expected, "{condition}");
        }
        let without_quotes = json!({ "Bool": { "AWS:multifactorauthPRESENT": true } });
        assert!(holds(without_quotes, yes));
    }

    #[test]
    fn addresses_match_networks_of_both_families() {
        let at = |address| [("aws:sourceip", address)];
        let condition =
            |operator: &str, value: &[&str]| json!({ operator: { "aws:SourceIp": value } });
        for (networks, address, within) in [
            (&["127.0.0.0/8"][..], "127.0.0.1", true),
            (&["10.0.0.0/8", "127.0.0.1"], "127.0.0.1", true),
            (&["10.0.0.0/8"], "127.0.0.1", false),
            (&["::1/128"], "::1", true),
            (&["::/0"], "127.0.0.1", false),
        ] {
            assert_eq!(
                holds(condition("IpAddress", networks), &at(address)),
                within,
                "{networks:?}"
            );
            assert_eq!(
                holds(condition("NotIpAddress", networks), &at(address)),
                !within
            );
        }
        assert!(!holds(condition("IpAddress", &["0.0.0.0/0"]), &[]));
        assert!(holds(condition("NotIpAddress", &["0.0.0.0/0"]), &[]));
    }

    #[test]
    fn strings_match_whole_or_by_wildcards() {
        let at = [("aws:principalarn", USER)];
        let condition =
            |operator: &str, value: &str| json!({ operator: { "aws:PrincipalArn": value } });
        assert!(holds(condition("StringEquals", USER), &at));
        assert!(!holds(condition("StringEquals", "arn:aws:iam::*"), &at));
        assert!(holds(condition("StringLike", "arn:aws:iam::*:user/*"), &at));
        assert!(!holds(
            condition("StringLike", "arn:aws:iam::*:role/*"),
            &at
        ));
        assert!(holds(condition("StringLikeIfExists", "x"), &[]));
    }

    #[test]
    fn all_conditions_of_a_statement_must_hold() {
        let condition = json!({
            "Bool": { "aws:MultiFactorAuthPresent": "true" },
            "IpAddress": { "aws:SourceIp": "127.0.0.0/8" },
        });
        let mfa = ("aws:multifactorauthpresent", "true");
        assert!(holds(
            condition.clone(),
            &[mfa, ("aws:sourceip", "127.0.0.1")]
        ));
        assert!(!holds(
            condition.clone(),
            &[mfa, ("aws:sourceip", "10.0.0.1")]
        ));
        assert!(!holds(condition, &[("aws:sourceip", "127.0.0.1")]));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        let statement = |extra: Value| {
            let mut statement = json!({ "Effect": "Allow", "Action": "*", "Resource": "*" });
            for (name, value) in extra.as_object().unwrap() {
                statement[name] = value.clone();
            }
            statement
        };
        for (extra, named) in [
            (
                json!({ "Condition": { "NumericLessThan": { "aws:SourceIp": "1" } } }),
                "NumericLessThan",
            ),
            (
                json!({ "Condition": { "NullIfExists": { "aws:SourceIp": "true" } } }),
                "NullIfExists",
            ),
            (
                json!({ "Condition": { "Bool": { "aws:ViaAWSService": "true" } } }),
                "aws:viaawsservice",
            ),
            (
                json!({ "Condition": { "Bool": { "aws:MultiFactorAuthPresent": "yes" } } }),
                "yes",
            ),
            (
                json!({ "Condition": { "IpAddress": { "aws:SourceIp": "10.0.0.0/33" } } }),
                "10.0.0.0/33",
            ),
            (json!({ "NotPrincipal": "*" }), "NotPrincipal"),
            (json!({ "Principal": "*" }), "principal"),
            (json!({ "Effect": "allow" }), "allow"),
            (json!({ "Action": "Decrypt" }), "vendor"),
            (json!({ "NotAction": "kms:*" }), "NotAction"),
            (json!({ "Resource": "${aws:username}" }), "variables"),
        ] {
            let error = identity(statement(extra.clone())).unwrap_err().to_string();
            assert!(error.contains(named), "{extra}: {error}");
        }
        for (text, kind) in [
            ("", PolicyKind::Key),
            ("{}", PolicyKind::Key),
            (
                r#"{"Version":"2025-01-01","Statement":[]}"#,
                PolicyKind::Key,
            ),
            (
                r#"{"Statement":{"Effect":"Allow","Action":"*"}}"#,
                PolicyKind::Identity,
            ),
            (
                r#"{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}"#,
                PolicyKind::Key,
            ),
            (
                r#"{"Statement":{"Effect":"Allow","Action":"*","Principal":"*"}}"#,
                PolicyKind::Key,
            ),
            (
                r#"{"Statement":{"Effect":"Allow","Action":"*","Principal":"*","Resource":"*"}}"#,
                PolicyKind::Trust,
            ),
        ] {
            assert!(Policy::parse(text, kind).is_err(), "{text}");
        }
    }
}
