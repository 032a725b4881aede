//! KMS: symmetric keys, what is encrypted under them, and who may use them.
//!
//! Source: <https://docs.aws.amazon.com/kms/latest/APIReference/>.

mod blob;
mod cryptography;
mod lookup;
mod management;

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::authorization::{self, Access};
use crate::caller::Caller;
use crate::error::{ApiError, ErrorKind};
use crate::operation::{Operation, malformed_request};
use crate::policy::{Context, PolicyKind};
use crate::state::{Key, State};

/// The operations there are.
pub const OPERATIONS: [&str; 15] = [
    "CancelKeyDeletion",
    "CreateAlias",
    "CreateKey",
    "Decrypt",
    "DescribeKey",
    "DisableKey",
    "EnableKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "GetKeyPolicy",
    "ListAliases",
    "PutKeyPolicy",
    "ReEncrypt",
    "ScheduleKeyDeletion",
];

/// Calls the operation. The ARNs of the keys that it came to use are added to `key_arns`;
/// EnableKey and DisableKey take effect after `key_state_delay`.
pub fn call(
    state: &mut State,
    caller: &Caller,
    operation: &Operation,
    key_state_delay: Duration,
    key_arns: &mut Vec<String>,
) -> Result<Value, ApiError> {
    Call {
        state,
        caller,
        key_state_delay,
        key_arns,
    }
    .perform(operation)
}

struct Call<'a> {
    state: &'a mut State,
    caller: &'a Caller,
    key_state_delay: Duration,
    key_arns: &'a mut Vec<String>,
}

/// A request member `KeyId` alone.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct OfKey {
    key_id: Option<String>,
}

impl Call<'_> {
    fn perform(&mut self, operation: &Operation) -> Result<Value, ApiError> {
        let body = Value::Object(operation.parameters.clone()?);
        match operation.name.as_str() {
            "CancelKeyDeletion" => self.cancel_key_deletion(parse(body)?),
            "CreateAlias" => self.create_alias(parse(body)?),
            "CreateKey" => self.create_key(parse(body)?),
            "Decrypt" => self.decrypt(parse(body)?),
            "DescribeKey" => self.describe_key(parse(body)?),
            "DisableKey" => self.set_enabled("kms:DisableKey", parse(body)?, false),
            "EnableKey" => self.set_enabled("kms:EnableKey", parse(body)?, true),
            "Encrypt" => self.encrypt(parse(body)?),
            "GenerateDataKey" => self.generate_data_key(parse(body)?),
            "GenerateDataKeyWithoutPlaintext" => {
                self.generate_data_key_without_plaintext(parse(body)?)
            }
            "GetKeyPolicy" => self.get_key_policy(parse(body)?),
            "ListAliases" => self.list_aliases(parse(body)?),
            "PutKeyPolicy" => self.put_key_policy(parse(body)?),
            "ReEncrypt" => self.re_encrypt(parse(body)?),
            "ScheduleKeyDeletion" => self.schedule_key_deletion(parse(body)?),
            _ => Err(operation.unknown()),
        }
    }

    /// Asks the key's policy whether the caller may do `action`, and notes the key for the log.
    fn authorize(&mut self, action: &str, key_id: Uuid, context: Context) -> Result<(), ApiError> {
        let arn = self.state.key_arn(key_id);
        self.key_arns.push(arn.clone());
        let policy = &self.key(key_id)?.policy;
        let access = Access {
            action,
            resource: &arn,
            resource_policy: Some((policy, PolicyKind::Key)),
            context,
        };
        authorization::authorize(self.state, self.caller, access)
    }

    /// Asks the caller's own policy about something that has no policy of its own.
    fn authorize_by_identity(&self, action: &str, resource: &str) -> Result<(), ApiError> {
        let access = Access {
            action,
            resource,
            resource_policy: None,
            context: Context::new(),
        };
        authorization::authorize(self.state, self.caller, access)
    }

    /// A key that was found before.
    fn key(&self, key_id: Uuid) -> Result<&Key, ApiError> {
        self.state
            .keys
            .get(&key_id)
            .ok_or_else(|| ApiError::internal("a key went away"))
    }

    fn key_mut(&mut self, key_id: Uuid) -> Result<&mut Key, ApiError> {
        self.state
            .keys
            .get_mut(&key_id)
            .ok_or_else(|| ApiError::internal("a key went away"))
    }

    /// Errors: KMSInvalidStateException if the key's deletion is scheduled.
    fn check_not_pending_deletion(&self, key_id: Uuid) -> Result<(), ApiError> {
        match self.key(key_id)?.deletion {
            None => Ok(()),
            Some(_) => {
                let message = format!("{} is pending deletion.", self.state.key_arn(key_id));
                Err(ApiError::kms("KMSInvalidStateException", message))
            }
        }
    }

    /// Errors: DisabledException besides those of a pending deletion.
    fn check_usable(&self, key_id: Uuid) -> Result<(), ApiError> {
        self.check_not_pending_deletion(key_id)?;
        match self.key(key_id)?.is_enabled(self.state.now()) {
            true => Ok(()),
            false => {
                let message = format!("{} is disabled.", self.state.key_arn(key_id));
                Err(ApiError::kms("DisabledException", message))
            }
        }
    }
}

/// Members that this program does not know are refused, never ignored.
fn parse<T: DeserializeOwned>(body: Value) -> Result<T, ApiError> {
    serde_json::from_value(body)
        .map_err(|error| malformed_request(ErrorKind::Serialization, &error))
}
