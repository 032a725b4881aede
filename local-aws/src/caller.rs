//! Who makes a call.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::state::State;

/// An identity of the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Principal {
    /// An IAM user, by long-term key or by a session from GetSessionToken.
    User {
        /// The user's name.
        name: String,
    },
    /// A role's session, from AssumeRole.
    AssumedRole {
        /// The role's name.
        role: String,
        /// The session's name.
        session_name: String,
    },
}

/// What a session says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionFacts {
    /// When it was made.
    pub created: Timestamp,
    /// Whether an MFA code was given for it.
    ///
    /// Never for a role's session: an MFA code decides whether the role may be assumed, and the
    /// session's own calls do not carry it. Source:
    /// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_mfa_configure-api-require.html>.
    pub mfa: bool,
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Which identity.
    pub principal: Principal,
    /// The access key it used.
    pub access_key_id: String,
    /// The session, if the key is a temporary one.
    pub session: Option<SessionFacts>,
    /// From where.
    pub source_ip: IpAddr,
    /// The region that it called.
    pub region: String,
}

impl Principal {
    /// The ARN that GetCallerIdentity, messages and the call log show.
    pub fn arn(&self, state: &State) -> String {
        match self {
            Self::User { name } => state.user_arn(name),
            Self::AssumedRole { role, session_name } => state.assumed_role_arn(role, session_name),
        }
    }

    /// The ARN that `aws:PrincipalArn` holds: the user's, or the role's.
    pub fn entity_arn(&self, state: &State) -> String {
        match self {
            Self::User { name } => state.user_arn(name),
            Self::AssumedRole { role, .. } => state.role_arn(role),
        }
    }

    /// The unique id that GetCallerIdentity shows; `None` if the user or role is gone.
    pub fn user_id(&self, state: &State) -> Option<String> {
        match self {
            Self::User { name } => Some(state.users.get(name)?.user_id.clone()),
            Self::AssumedRole { role, session_name } => {
                Some(format!("{}:{session_name}", state.roles.get(role)?.role_id))
            }
        }
    }

    /// The identity policy; `None` if there is none, which allows everything.
    pub fn identity_policy<'a>(&self, state: &'a State) -> Option<&'a str> {
        match self {
            Self::User { name } => state.users.get(name)?.policy.as_deref(),
            Self::AssumedRole { role, .. } => state.roles.get(role)?.policy.as_deref(),
        }
    }
}
