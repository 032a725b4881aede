//! The operations on keys themselves: making, naming, describing, switching, policies, deletion.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Call, OfKey, cryptography::Algorithm};
use crate::authorization::{self, Access};
use crate::constraint::{Violations, required};
use crate::error::ApiError;
use crate::identifier::is_alias_name;
use crate::policy::{Context, PolicyKind};
use crate::state::{Alias, Key, default_key_policy};

const MAX_DESCRIPTION_CHARACTERS: usize = 8192;
const HOURS_A_DAY: i64 = 24;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct CreateKey {
    #[serde(default)]
    description: String,
    policy: Option<String>,
    #[serde(default)]
    bypass_policy_lockout_safety_check: bool,
    #[serde(rename = "KeyUsage", default)]
    _key_usage: KeyUsage,
    #[serde(rename = "KeySpec", alias = "CustomerMasterKeySpec", default)]
    _key_spec: Algorithm,
    #[serde(rename = "Origin", default)]
    _origin: Origin,
}

#[derive(Default, Deserialize)]
enum KeyUsage {
    #[default]
    #[serde(rename = "ENCRYPT_DECRYPT")]
    EncryptDecrypt,
}

#[derive(Default, Deserialize)]
enum Origin {
    #[default]
    #[serde(rename = "AWS_KMS")]
    AwsKms,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct CreateAlias {
    alias_name: Option<String>,
    target_key_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct GetKeyPolicy {
    key_id: Option<String>,
    policy_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct PutKeyPolicy {
    key_id: Option<String>,
    policy_name: Option<String>,
    policy: Option<String>,
    #[serde(default)]
    bypass_policy_lockout_safety_check: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct ScheduleKeyDeletion {
    key_id: Option<String>,
    pending_window_in_days: Option<u32>,
}

impl Call<'_> {
    pub(super) fn create_key(&mut self, request: CreateKey) -> Result<Value, ApiError> {
        let description = request.description;
        let mut violations = Violations::default();
        violations.check_length("description", &description, 0, MAX_DESCRIPTION_CHARACTERS);
        violations.into_result()?;
        self.authorize_by_identity("kms:CreateKey", "*")?;
        let key_id = Uuid::new_v4();
        let place = self.state.place_in(&self.caller.region);
        let policy = match request.policy {
            None => default_key_policy(&place.account),
            Some(policy) => {
                let bypass = request.bypass_policy_lockout_safety_check;
                self.check_policy(key_id, &policy, bypass)?;
                policy
            }
        };
        let key =
            Key::new(place, self.state.now(), description, policy).map_err(ApiError::internal)?;
        self.state.keys.insert(key_id, key);
        self.key_arns.push(self.state.key_arn(key_id));
        Ok(json!({ "KeyMetadata": self.metadata(key_id)? }))
    }

    pub(super) fn create_alias(&mut self, request: CreateAlias) -> Result<Value, ApiError> {
        let name = required("aliasName", request.alias_name)?;
        check_alias_name(&name)?;
        let key_id = self.find_without_alias("targetKeyId", request.target_key_id)?;
        let arn = self.state.place_in(&self.caller.region).arn(&name);
        self.authorize_by_identity("kms:CreateAlias", &arn)?;
        self.authorize("kms:CreateAlias", key_id, Context::new())?;
        if self.state.aliases.contains_key(&arn) {
            let message = format!("An alias with the name {arn} already exists");
            return Err(ApiError::kms("AlreadyExistsException", message));
        }
        self.check_not_pending_deletion(key_id)?;
        let created = self.state.now();
        self.state.aliases.insert(arn, Alias { key_id, created });
        Ok(Value::Null)
    }

    pub(super) fn list_aliases(&mut self, request: OfKey) -> Result<Value, ApiError> {
        self.authorize_by_identity("kms:ListAliases", "*")?;
        let of_key = match request.key_id {
            None => None,
            some => Some(self.find_without_alias("keyId", some)?),
        };
        let here = self.state.place_in(&self.caller.region).arn("");
        let aliases = self.state.aliases.iter();
        let asked = aliases.filter(|(_, alias)| of_key.is_none_or(|key_id| alias.key_id == key_id));
        let aliases: Vec<Value> = asked
            .filter_map(|(arn, alias)| Some((arn, arn.strip_prefix(&here)?, alias)))
            .map(|(arn, name, alias)| {
                json!({
                    "AliasName": name,
                    "AliasArn": arn,
                    "TargetKeyId": alias.key_id,
                    "CreationDate": seconds(alias.created),
                    "LastUpdatedDate": seconds(alias.created),
                })
            })
            .collect();
        Ok(json!({ "Aliases": aliases, "Truncated": false }))
    }

    pub(super) fn describe_key(&mut self, request: OfKey) -> Result<Value, ApiError> {
        let key_id = self.find("keyId", request.key_id)?;
        self.authorize("kms:DescribeKey", key_id, Context::new())?;
        Ok(json!({ "KeyMetadata": self.metadata(key_id)? }))
    }

    pub(super) fn set_enabled(
        &mut self,
        action: &str,
        request: OfKey,
        enabled: bool,
    ) -> Result<Value, ApiError> {
        let key_id = self.find_without_alias("keyId", request.key_id)?;
        self.authorize(action, key_id, Context::new())?;
        self.check_not_pending_deletion(key_id)?;
        let now = self.state.now();
        let effective = now
            .checked_add(self.key_state_delay)
            .map_err(ApiError::internal)?;
        self.key_mut(key_id)?.set_enabled(enabled, now, effective);
        Ok(Value::Null)
    }

    pub(super) fn get_key_policy(&mut self, request: GetKeyPolicy) -> Result<Value, ApiError> {
        check_policy_name(request.policy_name.as_deref())?;
        let key_id = self.find_without_alias("keyId", request.key_id)?;
        self.authorize("kms:GetKeyPolicy", key_id, Context::new())?;
        Ok(json!({ "Policy": self.key(key_id)?.policy, "PolicyName": "default" }))
    }

    pub(super) fn put_key_policy(&mut self, request: PutKeyPolicy) -> Result<Value, ApiError> {
        check_policy_name(request.policy_name.as_deref())?;
        let policy = required("policy", request.policy)?;
        let key_id = self.find_without_alias("keyId", request.key_id)?;
        self.authorize("kms:PutKeyPolicy", key_id, Context::new())?;
        self.check_policy(key_id, &policy, request.bypass_policy_lockout_safety_check)?;
        self.key_mut(key_id)?.policy = policy;
        Ok(Value::Null)
    }

    pub(super) fn schedule_key_deletion(
        &mut self,
        request: ScheduleKeyDeletion,
    ) -> Result<Value, ApiError> {
        let days = request.pending_window_in_days.unwrap_or(30);
        let mut violations = Violations::default();
        violations.check_range("pendingWindowInDays", days, 7, 30);
        violations.into_result()?;
        let key_id = self.find_without_alias("keyId", request.key_id)?;
        self.authorize("kms:ScheduleKeyDeletion", key_id, Context::new())?;
        self.check_not_pending_deletion(key_id)?;
        let window = SignedDuration::from_hours(HOURS_A_DAY * i64::from(days));
        let deletion = self
            .state
            .now()
            .checked_add(window)
            .map_err(ApiError::internal)?;
        self.key_mut(key_id)?.deletion = Some(deletion);
        Ok(json!({
            "KeyId": self.state.key_arn(key_id),
            "DeletionDate": seconds(deletion),
            "KeyState": "PendingDeletion",
            "PendingWindowInDays": days,
        }))
    }

    pub(super) fn cancel_key_deletion(&mut self, request: OfKey) -> Result<Value, ApiError> {
        let key_id = self.find_without_alias("keyId", request.key_id)?;
        self.authorize("kms:CancelKeyDeletion", key_id, Context::new())?;
        let arn = self.state.key_arn(key_id);
        let now = self.state.now();
        let key = self.key_mut(key_id)?;
        if key.deletion.take().is_none() {
            let message = format!("{arn} is not pending deletion.");
            return Err(ApiError::kms("KMSInvalidStateException", message));
        }
        // As AWS does: a key that was to be deleted is not used again unless someone enables it.
        key.set_enabled(false, now, now);
        Ok(json!({ "KeyId": arn }))
    }

    /// Errors: MalformedPolicyDocumentException, also if the policy would lock the caller out.
    fn check_policy(&self, key_id: Uuid, policy: &str, bypass: bool) -> Result<(), ApiError> {
        authorization::parse_new(self.state, policy, PolicyKind::Key)
            .map_err(|error| malformed_policy(&error.to_string()))?;
        let access = Access {
            action: "kms:PutKeyPolicy",
            resource: &self.state.key_arn(key_id),
            resource_policy: Some((policy, PolicyKind::Key)),
            context: Context::new(),
        };
        if !bypass && authorization::decide(self.state, self.caller, access)?.is_some() {
            let message =
                "The new key policy will not allow you to update the key policy in the future.";
            return Err(malformed_policy(message));
        }
        Ok(())
    }

    fn metadata(&self, key_id: Uuid) -> Result<Value, ApiError> {
        let key = self.key(key_id)?;
        let enabled = key.is_enabled(self.state.now());
        let mut metadata = json!({
            "AWSAccountId": key.place.account,
            "KeyId": key_id,
            "Arn": self.state.key_arn(key_id),
            "CreationDate": seconds(key.created),
            "Enabled": enabled && key.deletion.is_none(),
            "Description": key.description,
            "KeyUsage": "ENCRYPT_DECRYPT",
            "KeyState": key_state(key, enabled),
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
            "KeySpec": "SYMMETRIC_DEFAULT",
            "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
            "MultiRegion": false,
        });
        if let Some(deletion) = key.deletion {
            metadata["DeletionDate"] = seconds(deletion);
        }
        Ok(metadata)
    }
}

fn key_state(key: &Key, enabled: bool) -> &'static str {
    match (key.deletion, enabled) {
        (Some(_), _) => "PendingDeletion",
        (None, true) => "Enabled",
        (None, false) => "Disabled",
    }
}

/// A time as AWS's JSON carries it: seconds since 1970, with a fraction.
fn seconds(time: Timestamp) -> Value {
    json!(time.as_duration().as_secs_f64())
}

fn check_alias_name(name: &str) -> Result<(), ApiError> {
    match is_alias_name(name) {
        true => Ok(()),
        false => {
            let message = format!(
                "Alias must start with the prefix \"alias/\", must not start with \"alias/aws/\" \
                 and may hold letters, digits, '/', '_' and '-' only, but is '{name}'"
            );
            Err(ApiError::kms("InvalidAliasNameException", message))
        }
    }
}

fn check_policy_name(name: Option<&str>) -> Result<(), ApiError> {
    match name {
        None | Some("default") => Ok(()),
        Some(_) => Err(ApiError::kms("NotFoundException", "No such policy exists")),
    }
}

fn malformed_policy(message: &str) -> ApiError {
    ApiError::kms("MalformedPolicyDocumentException", message)
}
