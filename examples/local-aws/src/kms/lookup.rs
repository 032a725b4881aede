//! Which key a `KeyId` means: an id, a key's ARN, an alias or an alias's ARN.

use uuid::Uuid;

use super::Call;
use crate::constraint::{Violations, required};
use crate::error::ApiError;

impl Call<'_> {
    /// Finds the key of an operation that also takes aliases.
    ///
    /// Errors: ValidationException, NotFoundException.
    pub(super) fn find(&self, member: &str, key_id: Option<String>) -> Result<Uuid, ApiError> {
        let key_id = checked(member, key_id)?;
        let resource = self.resource_of_arn(&key_id)?;
        match resource.unwrap_or(&key_id) {
            alias if alias.starts_with("alias/") => self.find_alias(alias),
            resource => self.find_key(resource, &key_id),
        }
    }

    /// Finds the key of an operation that takes no aliases.
    pub(super) fn find_without_alias(
        &self,
        member: &str,
        key_id: Option<String>,
    ) -> Result<Uuid, ApiError> {
        let key_id = checked(member, key_id)?;
        let resource = self.resource_of_arn(&key_id)?;
        self.find_key(resource.unwrap_or(&key_id), &key_id)
    }

    /// Whether there is such a key, and it was not deleted.
    pub(super) fn exists(&self, key_id: Uuid) -> bool {
        let now = self.state.now();
        let key = self.state.keys.get(&key_id);
        key.is_some_and(|key| key.deletion.is_none_or(|deletion| now < deletion))
    }

    /// The resource of an ARN of this account and region: `key/…` without `key/`, or `alias/…`.
    /// `None` if it is no ARN.
    fn resource_of_arn<'a>(&self, text: &'a str) -> Result<Option<&'a str>, ApiError> {
        if !text.starts_with("arn:") {
            return Ok(None);
        }
        match text.splitn(6, ':').collect::<Vec<_>>()[..] {
            ["arn", "aws", "kms", region, account, resource] => {
                if region != self.state.region {
                    return Err(not_found(format!("Invalid arn {region}")));
                }
                if account != self.state.account {
                    return Err(not_found(format!("Key '{text}' does not exist")));
                }
                match resource.strip_prefix("key/") {
                    Some(id) => Ok(Some(id)),
                    None if resource.starts_with("alias/") => Ok(Some(resource)),
                    None => Err(invalid_arn(text)),
                }
            }
            _ => Err(invalid_arn(text)),
        }
    }

    fn find_alias(&self, name: &str) -> Result<Uuid, ApiError> {
        let alias = self
            .state
            .aliases
            .get(name)
            .filter(|alias| self.exists(alias.key_id));
        alias
            .map(|alias| alias.key_id)
            .ok_or_else(|| not_found(format!("Alias {} is not found.", self.state.kms_arn(name))))
    }

    fn find_key(&self, id: &str, asked: &str) -> Result<Uuid, ApiError> {
        let parsed = id.parse::<Uuid>().ok();
        // UUIDs have other forms, too, which are no key ids.
        match parsed.filter(|key_id| key_id.to_string() == id) {
            None => Err(not_found(format!("Invalid keyId '{asked}'"))),
            Some(key_id) if self.exists(key_id) => Ok(key_id),
            Some(key_id) => {
                let arn = self.state.key_arn(key_id);
                Err(not_found(format!("Key '{arn}' does not exist")))
            }
        }
    }
}

fn checked(member: &str, key_id: Option<String>) -> Result<String, ApiError> {
    let key_id = required(member, key_id)?;
    let mut violations = Violations::default();
    violations.check_length(member, &key_id, 1, 2048);
    violations.into_result()?;
    Ok(key_id)
}

fn invalid_arn(text: &str) -> ApiError {
    ApiError::kms("InvalidArnException", format!("Invalid arn '{text}'"))
}

fn not_found(message: String) -> ApiError {
    ApiError::kms("NotFoundException", message)
}
