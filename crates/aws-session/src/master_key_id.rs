//! The name of a master key.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::region::is_region;

/// The id, ARN, alias (`alias/NAME`) or alias ARN of a master key.
///
/// Source: KeyId in <https://docs.aws.amazon.com/kms/latest/APIReference/API_DescribeKey.html>.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterKeyId(String);

impl MasterKeyId {
    /// What [`Self::from_str`] accepts.
    pub const EXPECTED: &str = "the id or ARN of a KMS key, or an alias such as alias/mariadb";

    /// Returns the text, for KMS.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the region if it is an ARN.
    pub fn region(&self) -> Option<&str> {
        self.0.strip_prefix("arn:")?.split(':').nth(2)
    }

    /// Whether it is an alias, which EnableKey and DisableKey do not accept.
    pub fn is_alias(&self) -> bool {
        let resource = self.0.rsplit(':').next().unwrap_or_default();
        resource.starts_with("alias/")
    }
}

impl FromStr for MasterKeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-/:".contains(c);
        let is_good = match text.split(':').collect::<Vec<_>>()[..] {
            ["arn", _, "kms", region, _, resource] => {
                is_region(region)
                    && (resource.starts_with("key/") || resource.starts_with("alias/"))
            }
            [name] => !name.is_empty() && (name.starts_with("alias/") || !name.contains('/')),
            _ => false,
        };
        if is_good && text.len() <= 2048 && text.chars().all(allowed) {
            return Ok(Self(text.into()));
        }
        Err(format!("must be {}", Self::EXPECTED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_by_id_arn_or_alias() {
        for (text, region, is_alias) in [
            ("1234abcd-12ab-34cd-56ef-1234567890ab", None, false),
            ("mrk-1234abcd12ab34cd56ef1234567890ab", None, false),
            (
                "arn:aws-cn:kms:cn-north-1:111122223333:key/1234",
                Some("cn-north-1"),
                false,
            ),
            ("alias/mariadb", None, true),
            (
                "arn:aws:kms:us-east-1:111122223333:alias/a/b",
                Some("us-east-1"),
                true,
            ),
        ] {
            let key: MasterKeyId = text.parse().unwrap();
            assert_eq!(
                (key.as_str(), key.region(), key.is_alias()),
                (text, region, is_alias)
            );
        }
    }

    #[test]
    fn invalid_key_names_are_refused() {
        for text in [
            "",
            "key/1234",
            "alias/a b",
            "arn:aws:iam::111122223333:user/mariadb",
            "arn:aws:kms:US EAST:111122223333:key/1234",
            "arn:aws:kms:us-east-1:111122223333:1234",
            "arn:aws:kms:us-east-1:key/1234",
        ] {
            assert!(text.parse::<MasterKeyId>().is_err(), "{text}");
        }
    }
}
