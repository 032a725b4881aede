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

    /// Reads such a name. The error completes "must be …".
    pub fn parse(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-/:".contains(c);
        let is_word = text.len() <= 2048 && text.chars().all(allowed);
        let is_good = match text.split(':').collect::<Vec<_>>()[..] {
            ["arn", _, "kms", region, _, resource] => {
                is_region(region)
                    && (resource.starts_with("key/") || resource.starts_with("alias/"))
            }
            [name] => name.starts_with("alias/") || is_id(name),
            _ => false,
        };
        if is_word && is_good {
            return Ok(Self(text.into()));
        }
        let hint = match is_word && !text.is_empty() && !text.contains(['/', ':']) {
            true => format!(" (did you mean alias/{text}?)"),
            false => String::new(),
        };
        Err(format!("{}{hint}", Self::EXPECTED))
    }

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
        Self::parse(text).map_err(|expected| format!("must be {expected}"))
    }
}

/// Whether a word is the id of a key: a UUID, or that of a multi-Region key. KMS takes any other word for an id, too, and
/// does not find it.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/concepts.html#key-id-key-id>.
fn is_id(word: &str) -> bool {
    let is_hex = |part: &str| part.chars().all(|c| c.is_ascii_hexdigit());
    let lengths = word.split('-').map(str::len);
    word.starts_with("mrk-") || lengths.eq([8, 4, 4, 4, 12]) && word.split('-').all(is_hex)
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
            let why = text.parse::<MasterKeyId>().unwrap_err();
            assert!(!why.contains("did you mean"), "{text}: {why}");
        }
    }

    #[test]
    fn an_alias_without_its_prefix_is_refused_with_the_alias() {
        for text in [
            "mariadb",
            "my_key-1",
            "1234abcd-12ab-34cd-56ef",
            "1234abcd-12ab-34cd-56ef-1234567890ag",
        ] {
            let why = text.parse::<MasterKeyId>().unwrap_err();
            assert!(
                why.ends_with(&format!("(did you mean alias/{text}?)")),
                "{text}: {why}"
            );
        }
    }
}
