//! Which key a `KeyId` means: an id, a key's ARN, an alias or an alias's ARN.

use uuid::Uuid;

use super::Call;
use crate::constraint::{Violations, required};
use crate::error::ApiError;
use crate::state::Place;

impl Call<'_> {
    /// Finds the key of an operation that also takes aliases.
    ///
    /// Errors: ValidationException, NotFoundException.
    pub(super) fn find(&self, member: &str, key_id: Option<String>) -> Result<Uuid, ApiError> {
        let key_id = checked(member, key_id)?;
        match self.place_of(&key_id)? {
            (place, alias) if alias.starts_with("alias/") => {
                let arn = place.arn(alias);
                self.find_alias(&arn).ok_or_else(|| {
                    if place.account == self.state.account {
                        not_found(format!("Alias {arn} is not found."))
                    } else {
                        does_not_exist(&arn)
                    }
                })
            }
            (place, resource) => self.find_key(&place, resource, &key_id),
        }
    }

    /// Finds the key of an operation that takes no aliases, nor keys of other accounts.
    pub(super) fn find_without_alias(
        &self,
        member: &str,
        key_id: Option<String>,
    ) -> Result<Uuid, ApiError> {
        let key_id = checked(member, key_id)?;
        match self.place_of(&key_id)? {
            (place, _) if place.account != self.state.account => Err(does_not_exist(&key_id)),
            (place, resource) => self.find_key(&place, resource, &key_id),
        }
    }

    /// Whether there is such a key, and it was not deleted.
    pub(super) fn exists(&self, key_id: Uuid) -> bool {
        let now = self.state.now();
        let key = self.state.keys.get(&key_id);
        key.is_some_and(|key| key.deletion.is_none_or(|deletion| now < deletion))
    }

    /// Where a key or alias is, and its name there: `key/…` without `key/`, or `alias/…`. What is no
    /// ARN is of this account. All are in the region that is called.
    fn place_of<'a>(&self, text: &'a str) -> Result<(Place, &'a str), ApiError> {
        if !text.starts_with("arn:") {
            return Ok((self.state.place_in(&self.caller.region), text));
        }
        match text.splitn(6, ':').collect::<Vec<_>>()[..] {
            ["arn", "aws", "kms", region, account, resource] => {
                if region != self.caller.region {
                    return Err(not_found(format!("Invalid arn {region}")));
                }
                let place = Place {
                    region: region.to_owned(),
                    account: account.to_owned(),
                };
                match resource.strip_prefix("key/") {
                    Some(id) => Ok((place, id)),
                    None if resource.starts_with("alias/") => Ok((place, resource)),
                    None => Err(invalid_arn(text)),
                }
            }
            _ => Err(invalid_arn(text)),
        }
    }

    fn find_alias(&self, arn: &str) -> Option<Uuid> {
        let alias = self.state.aliases.get(arn)?;
        self.exists(alias.key_id).then_some(alias.key_id)
    }

    fn find_key(&self, place: &Place, id: &str, asked: &str) -> Result<Uuid, ApiError> {
        let parsed = id.parse::<Uuid>().ok();
        // UUIDs have other forms, too, which are no key ids.
        match parsed.filter(|key_id| key_id.to_string() == id) {
            None => Err(not_found(format!("Invalid keyId '{asked}'"))),
            Some(key_id) if self.exists(key_id) && self.key(key_id)?.place == *place => Ok(key_id),
            Some(_) => Err(does_not_exist(&place.arn(&format!("key/{id}")))),
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

fn does_not_exist(arn: &str) -> ApiError {
    not_found(format!("Key '{arn}' does not exist"))
}

fn not_found(message: String) -> ApiError {
    ApiError::kms("NotFoundException", message)
}
