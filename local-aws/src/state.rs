//! What lasts: the account, its users and roles, the KMS keys, the faults and the clock.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::fault::Fault;
use crate::identifier;
use crate::sealing;
use crate::secret::Secret;

/// Everything that the state directory holds for the server.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// The account's number, 12 digits.
    pub account: String,
    /// The region of STS, and of the first key.
    pub region: String,
    /// Users by name.
    pub users: BTreeMap<String, User>,
    /// The name of the user whose credentials are the default profile.
    pub first_user: String,
    /// Roles by name.
    pub roles: BTreeMap<String, Role>,
    /// KMS keys by their id.
    pub keys: BTreeMap<Uuid, Key>,
    /// KMS aliases by ARN.
    pub aliases: BTreeMap<String, Alias>,
    /// Seals session tokens.
    pub session_token_key: Secret,
    /// Standing faults.
    pub faults: Vec<Fault>,
    /// How far the server's clock is ahead of the system's.
    pub clock_offset_seconds: i64,
}

/// An IAM user with a long-term access key and a virtual MFA device.
#[derive(Serialize, Deserialize)]
pub struct User {
    /// `AIDA…`.
    pub user_id: String,
    /// `AKIA…`.
    pub access_key_id: String,
    /// The key's secret.
    pub secret_access_key: Secret,
    /// The MFA device's seed in base32.
    pub mfa_seed: Secret,
    /// The last TOTP step whose code was taken; no code of it or before it is taken again.
    pub last_mfa_step: Option<u64>,
    /// The identity policy; `None` allows everything.
    pub policy: Option<String>,
}

/// An IAM role.
#[derive(Serialize, Deserialize)]
pub struct Role {
    /// `AROA…`.
    pub role_id: String,
    /// Who may assume it.
    pub trust_policy: String,
    /// The identity policy; `None` allows everything.
    pub policy: Option<String>,
}

/// Where a key or an alias is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its region.
    pub region: String,
    /// The account that owns it, 12 digits.
    pub account: String,
}

impl Place {
    /// The ARN of a KMS resource there: `key/…` or `alias/…`.
    pub fn arn(&self, resource: &str) -> String {
        format!("arn:aws:kms:{}:{}:{resource}", self.region, self.account)
    }
}

/// A symmetric KMS key.
#[derive(Serialize, Deserialize)]
pub struct Key {
    /// Where it is.
    pub place: Place,
    /// When it was made.
    pub created: Timestamp,
    /// Free text.
    pub description: String,
    /// The key policy as it was put.
    pub policy: String,
    /// Whether it may be used, once the last change has taken effect.
    pub enabled: bool,
    /// The state before the last change, and until when it counts.
    #[serde(default)]
    pub before: Option<StateBefore>,
    /// When it will be gone, if its deletion is scheduled.
    pub deletion: Option<Timestamp>,
    /// 256 bits for AES-GCM.
    pub material: Secret,
}

/// What a key was, until a change takes effect.
#[derive(Serialize, Deserialize)]
pub struct StateBefore {
    /// Whether it might be used.
    pub enabled: bool,
    /// When that is over.
    pub until: Timestamp,
}

/// Another name for a key.
#[derive(Serialize, Deserialize)]
pub struct Alias {
    /// The key.
    pub key_id: Uuid,
    /// When it was made.
    pub created: Timestamp,
}

impl State {
    /// An account with one user and one key named `alias/mariadb`.
    pub fn new(account: &str, region: &str, user: &str) -> Result<Self, getrandom::Error> {
        let mut state = Self {
            account: account.to_owned(),
            region: region.to_owned(),
            users: BTreeMap::from([(user.to_owned(), User::new(None)?)]),
            first_user: user.to_owned(),
            roles: BTreeMap::new(),
            keys: BTreeMap::new(),
            aliases: BTreeMap::new(),
            session_token_key: Secret::random(sealing::KEY_BYTES)?,
            faults: Vec::new(),
            clock_offset_seconds: 0,
        };
        let home = state.place_in(region);
        state.add_key(home, None, Some("alias/mariadb"))?;
        Ok(state)
    }

    /// Makes a key, with a name if that is given, and returns its ARN. Without a policy it gets the
    /// one that AWS gives.
    pub fn add_key(
        &mut self,
        place: Place,
        policy: Option<String>,
        alias: Option<&str>,
    ) -> Result<String, getrandom::Error> {
        let (key_id, created) = (Uuid::new_v4(), self.now());
        let policy = policy.unwrap_or_else(|| default_key_policy(&place.account));
        if let Some(alias) = alias {
            self.aliases
                .insert(place.arn(alias), Alias { key_id, created });
        }
        self.keys
            .insert(key_id, Key::new(place, created, String::new(), policy)?);
        Ok(self.key_arn(key_id))
    }

    /// Where what this account makes in `region` is.
    pub fn place_in(&self, region: &str) -> Place {
        Place {
            region: region.to_owned(),
            account: self.account.clone(),
        }
    }

    /// Whether there is anything in `region`.
    pub fn has_region(&self, region: &str) -> bool {
        region == self.region || self.keys.values().any(|key| key.place.region == region)
    }

    /// The time on the server's clock.
    pub fn now(&self) -> Timestamp {
        let offset = SignedDuration::from_secs(self.clock_offset_seconds);
        let now = Timestamp::now();
        now.saturating_add(offset).unwrap_or(now)
    }

    /// The ARN that stands for the whole account in policies.
    pub fn root_arn(&self) -> String {
        self.iam_arn("root")
    }

    /// The ARN of a user.
    pub fn user_arn(&self, name: &str) -> String {
        self.iam_arn(&format!("user/{name}"))
    }

    /// The serial number of a user's MFA device.
    pub fn mfa_serial_number(&self, user: &str) -> String {
        self.iam_arn(&format!("mfa/{user}"))
    }

    /// The ARN of a role.
    pub fn role_arn(&self, name: &str) -> String {
        self.iam_arn(&format!("role/{name}"))
    }

    /// The ARN of a role's session.
    pub fn assumed_role_arn(&self, role: &str, session: &str) -> String {
        format!(
            "arn:aws:sts::{}:assumed-role/{role}/{session}",
            self.account
        )
    }

    /// The ARN of a KMS key.
    pub fn key_arn(&self, key_id: Uuid) -> String {
        let resource = format!("key/{key_id}");
        match self.keys.get(&key_id) {
            Some(key) => key.place.arn(&resource),
            None => self.place_in(&self.region).arn(&resource),
        }
    }

    fn iam_arn(&self, resource: &str) -> String {
        format!("arn:aws:iam::{}:{resource}", self.account)
    }
}

impl User {
    /// A user with a new access key and MFA device.
    pub fn new(policy: Option<String>) -> Result<Self, getrandom::Error> {
        Ok(Self {
            user_id: identifier::unique_id("AIDA")?,
            access_key_id: identifier::access_key_id("AKIA")?,
            secret_access_key: identifier::secret_access_key()?,
            mfa_seed: identifier::mfa_seed()?,
            last_mfa_step: None,
            policy,
        })
    }
}

impl Role {
    /// A role with a new id.
    pub fn new(trust_policy: String, policy: Option<String>) -> Result<Self, getrandom::Error> {
        Ok(Self {
            role_id: identifier::unique_id("AROA")?,
            trust_policy,
            policy,
        })
    }
}

/// The key policy that AWS gives to a key made without one: it leaves all to IAM policies.
pub fn default_key_policy(account: &str) -> String {
    serde_json::json!({
        "Version": "2012-10-17",
        "Id": "key-default-1",
        "Statement": [{
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": { "AWS": format!("arn:aws:iam::{account}:root") },
            "Action": "kms:*",
            "Resource": "*",
        }],
    })
    .to_string()
}

impl Key {
    /// An enabled key with new material.
    pub fn new(
        place: Place,
        created: Timestamp,
        description: String,
        policy: String,
    ) -> Result<Self, getrandom::Error> {
        let material = Secret::random(sealing::KEY_BYTES)?;
        Ok(Self {
            place,
            created,
            description,
            policy,
            enabled: true,
            before: None,
            deletion: None,
            material,
        })
    }

    /// Whether it may be used at `time`.
    pub fn is_enabled(&self, time: Timestamp) -> bool {
        match &self.before {
            Some(before) if time < before.until => before.enabled,
            _ => self.enabled,
        }
    }

    /// Enables or disables it at `time`, with effect from `effective` on.
    pub fn set_enabled(&mut self, enabled: bool, time: Timestamp, effective: Timestamp) {
        self.before = Some(StateBefore {
            enabled: self.is_enabled(time),
            until: effective,
        });
        self.enabled = enabled;
    }
}
