//! Whether a caller may do something: explicit denials first, then the resource's policy, then the
//! caller's own.
//!
//! Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html>,
//! and for keys of other accounts
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic-cross-account.html>.

use crate::caller::{Caller, Principal};
use crate::error::{ApiError, ErrorKind};
use crate::policy::{Context, Policy, PolicyError, PolicyKind, PrincipalNames, Question, Verdict};
use crate::state::State;

/// Something to be done to a resource.
pub struct Access<'a> {
    /// The action, such as `kms:Decrypt`.
    pub action: &'a str,
    /// The resource's ARN, or `*`.
    pub resource: &'a str,
    /// The resource's own policy; `None` if it has none, and identity policies decide.
    pub resource_policy: Option<(&'a str, PolicyKind)>,
    /// What the request context has besides the caller's own, keys in lower case.
    pub context: Context,
}

/// Why it may not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The caller's own policy denies it.
    ExplicitByIdentity,
    /// The resource's policy denies it.
    ExplicitByResource,
    /// The caller's own policy does not allow it.
    NotAllowedByIdentity,
    /// The resource's policy neither allows it nor leaves it to the account.
    NotAllowedByResource,
}

/// Decides; `Err(AccessDenied)` in the words of KMS if it may not be done.
pub fn authorize(state: &State, caller: &Caller, access: Access<'_>) -> Result<(), ApiError> {
    let Access {
        action, resource, ..
    } = access;
    match decide(state, caller, access)? {
        None => Ok(()),
        Some(denial) => Err(ApiError::new(
            ErrorKind::AccessDenied,
            format!(
                "User: {} is not authorized to perform: {action} on resource: {resource} {}",
                caller.principal.arn(state),
                denial.reason(action)
            ),
        )),
    }
}

/// Decides; `None` if it may be done.
pub fn decide(
    state: &State,
    caller: &Caller,
    access: Access<'_>,
) -> Result<Option<Denial>, ApiError> {
    let names = principal_names(state, &caller.principal);
    let context = context(state, caller, access.context);
    let question = Question {
        action: access.action,
        resource: access.resource,
        principal: &names,
        context: &context,
    };
    let identity = match caller.principal.identity_policy(state) {
        Some(text) => parse_stored(text, PolicyKind::Identity)?.ask(&question),
        None => Verdict {
            allowed: true,
            ..Verdict::default()
        },
    };
    let resource = match access.resource_policy {
        Some((text, kind)) => parse_stored(text, kind)?.ask(&question),
        None => Verdict {
            delegated: true,
            ..Verdict::default()
        },
    };
    let is_ours = access.resource == "*" || account_of(access.resource) == Some(&state.account);
    Ok(combine(identity, resource, is_ours))
}

/// Whether the role's trust policy lets an AWS service, such as `ec2.amazonaws.com`, assume it.
pub fn trusts_service(state: &State, role: &str, service: &str) -> Result<bool, ApiError> {
    let Some(trust_policy) = state.roles.get(role).map(|role| &role.trust_policy) else {
        return Ok(false);
    };
    let verdict = parse_stored(trust_policy, PolicyKind::Trust)?.ask(&Question {
        action: "sts:AssumeRole",
        resource: &state.role_arn(role),
        principal: &PrincipalNames::of_service(service),
        context: &Context::new(),
    });
    Ok(verdict.allowed && !verdict.denied)
}

/// The account that an ARN names.
fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4)
}

/// What the resource's policy allows is enough in its own account only; in another, the caller's own
/// policy must allow it, too.
fn combine(identity: Verdict, resource: Verdict, is_ours: bool) -> Option<Denial> {
    match (identity, resource) {
        (Verdict { denied: true, .. }, _) => Some(Denial::ExplicitByIdentity),
        (_, Verdict { denied: true, .. }) => Some(Denial::ExplicitByResource),
        (_, Verdict { allowed: true, .. }) if is_ours => None,
        (Verdict { allowed: false, .. }, Verdict { allowed: true, .. }) => {
            Some(Denial::NotAllowedByIdentity)
        }
        (_, Verdict { allowed: true, .. }) => None,
        (
            _,
            Verdict {
                delegated: false, ..
            },
        ) => Some(Denial::NotAllowedByResource),
        (Verdict { allowed: true, .. }, _) => None,
        _ => Some(Denial::NotAllowedByIdentity),
    }
}

impl Denial {
    fn reason(self, action: &str) -> String {
        match self {
            Self::ExplicitByIdentity => "with an explicit deny in an identity-based policy".into(),
            Self::ExplicitByResource => "with an explicit deny in a resource-based policy".into(),
            Self::NotAllowedByIdentity => {
                format!("because no identity-based policy allows the {action} action")
            }
            Self::NotAllowedByResource => {
                format!("because no resource-based policy allows the {action} action")
            }
        }
    }
}

/// Reads a policy that someone wants to put, and checks that the users and roles it names exist.
pub fn parse_new(state: &State, text: &str, kind: PolicyKind) -> Result<(), PolicyError> {
    let policy = Policy::parse(text, kind)?;
    let unknown = policy
        .principals()
        .find(|principal| !is_known(state, principal));
    match unknown {
        None => Ok(()),
        Some(principal) => Err(PolicyError(format!(
            "Policy contains a statement with one or more invalid principals: {principal}"
        ))),
    }
}

fn is_known(state: &State, principal: &str) -> bool {
    if principal == "*" || is_account(principal) {
        return true;
    }
    let Some((account, resource)) = principal
        .strip_prefix("arn:aws:iam::")
        .and_then(|rest| rest.split_once(':'))
    else {
        return is_assumed_role(state, principal);
    };
    match resource.split_once('/') {
        None => is_account(account) && resource == "root",
        Some(("user", name)) => account == state.account && state.users.contains_key(name),
        Some(("role", name)) => account == state.account && state.roles.contains_key(name),
        Some(_) => false,
    }
}

fn is_assumed_role(state: &State, principal: &str) -> bool {
    let prefix = format!("arn:aws:sts::{}:assumed-role/", state.account);
    principal
        .strip_prefix(&prefix)
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(role, _)| state.roles.contains_key(role))
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A policy in the state was checked when it came in.
fn parse_stored(text: &str, kind: PolicyKind) -> Result<Policy, ApiError> {
    Policy::parse(text, kind)
        .map_err(|error| ApiError::internal(format!("a stored policy is malformed: {error}")))
}

fn principal_names(state: &State, principal: &Principal) -> PrincipalNames {
    PrincipalNames {
        arns: vec![principal.entity_arn(state), principal.arn(state)],
        account: state.account.clone(),
        root_arn: state.root_arn(),
        service: None,
    }
}

/// The request context. `aws:MultiFactorAuthPresent` is there for temporary credentials only.
///
/// Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html>.
fn context(state: &State, caller: &Caller, mut context: Context) -> Context {
    let mut set = |key: &str, value: String| {
        context.entry(key.to_owned()).or_insert(value);
    };
    set("aws:principalaccount", state.account.clone());
    set("aws:principalarn", caller.principal.entity_arn(state));
    set("aws:sourceip", caller.source_ip.to_string());
    set("kms:calleraccount", state.account.clone());
    if let Some(session) = &caller.session {
        set("aws:multifactorauthpresent", session.mfa.to_string());
    }
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Verdict = Verdict {
        allowed: true,
        denied: false,
        delegated: false,
    };
    const DELEGATED: Verdict = Verdict {
        allowed: false,
        denied: false,
        delegated: true,
    };
    const DENIED: Verdict = Verdict {
        allowed: true,
        denied: true,
        delegated: true,
    };
    const NOTHING: Verdict = Verdict {
        allowed: false,
        denied: false,
        delegated: false,
    };

    #[test]
    fn a_denial_wins_and_an_allowance_is_needed() {
        let by_identity = Some(Denial::NotAllowedByIdentity);
        let by_resource = Some(Denial::NotAllowedByResource);
        for (identity, resource, in_account, across) in [
            (ALLOWED, DELEGATED, None, None),
            (ALLOWED, ALLOWED, None, None),
            (NOTHING, ALLOWED, None, by_identity),
            (ALLOWED, NOTHING, by_resource, by_resource),
            (NOTHING, DELEGATED, by_identity, by_identity),
            (NOTHING, NOTHING, by_resource, by_resource),
            (
                ALLOWED,
                DENIED,
                Some(Denial::ExplicitByResource),
                Some(Denial::ExplicitByResource),
            ),
            (
                DENIED,
                ALLOWED,
                Some(Denial::ExplicitByIdentity),
                Some(Denial::ExplicitByIdentity),
            ),
        ] {
            for (is_ours, expected) in [(true, in_account), (false, across)] {
                assert_eq!(
                    combine(identity, resource, is_ours),
                    expected,
                    "{identity:?} {resource:?} {is_ours}"
                );
            }
        }
    }

    #[test]
    fn a_policy_may_name_only_those_who_exist() {
        let state = State::new("111122223333", "us-east-1", "mariadb").unwrap();
        let parse = |principal: &str| {
            let text = format!(
                r#"{{"Statement":{{"Effect":"Allow","Action":"*","Resource":"*","Principal":{{"AWS":"{principal}"}}}}}}"#
            );
            parse_new(&state, &text, PolicyKind::Key)
        };
        for known in [
            "*",
            "111122223333",
            "999999999999",
            "arn:aws:iam::111122223333:root",
            "arn:aws:iam::111122223333:user/mariadb",
        ] {
            assert_eq!(parse(known), Ok(()), "{known}");
        }
        for unknown in [
            "arn:aws:iam::111122223333:user/nobody",
            "arn:aws:iam::111122223333:role/mariadb",
            "arn:aws:iam::999999999999:user/mariadb",
            "arn:aws:sts::111122223333:assumed-role/none/session",
            "mariadb",
        ] {
            let error = parse(unknown).unwrap_err().to_string();
            assert!(error.ends_with(unknown), "{error}");
        }
    }
}
