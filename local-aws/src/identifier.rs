//! The identifiers that AWS gives to what it makes, and their random parts.

use data_encoding::{BASE32_NOPAD, BASE64};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Bytes of a virtual MFA device's seed; AWS shows them as 64 base32 characters.
const MFA_SEED_BYTES: usize = 40;

/// An access key id: `prefix` (`AKIA` long-term, `ASIA` temporary) and 16 characters.
pub fn access_key_id(prefix: &str) -> Result<String, getrandom::Error> {
    Ok(format!("{prefix}{}", random_base32(10)?.as_str()))
}

/// The unique id of a user (`AIDA`) or role (`AROA`): the prefix and 16 characters.
pub fn unique_id(prefix: &str) -> Result<String, getrandom::Error> {
    access_key_id(prefix)
}

/// A secret access key: 40 characters of base64.
pub fn secret_access_key() -> Result<Secret, getrandom::Error> {
    Secret::random(30)
}

/// The seed of a virtual MFA device in base32, as `oathtool --totp -b` takes it.
pub fn mfa_seed() -> Result<Secret, getrandom::Error> {
    Ok(Secret::new(random_base32(MFA_SEED_BYTES)?.to_string()))
}

/// Whether `name` may name a user, a role or a role session: 1 to 64 characters `[\w+=,.@-]`.
///
/// Source: <https://docs.aws.amazon.com/IAM/latest/APIReference/API_User.html>. Names of dots only
/// are left out because a user's name is also a directory's.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(is_name_byte)
        && name.bytes().any(|byte| byte != b'.')
}

/// Whether `byte` belongs to `[\w+=,.@-]`.
pub fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte)
}

/// Base64 as AWS's JSON carries blobs.
pub fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

fn random_base32(bytes: usize) -> Result<Zeroizing<String>, getrandom::Error> {
    let mut random = Zeroizing::new(vec![0; bytes]);
    getrandom::fill(&mut random)?;
    Ok(Zeroizing::new(BASE32_NOPAD.encode(&random)))
}

/// Whether `text` is a name that a KMS alias may have: `alias/` and letters, digits, `/`, `_`, `-`.
///
/// Source: AliasName in <https://docs.aws.amazon.com/kms/latest/APIReference/API_CreateAlias.html>.
pub fn is_alias_name(text: &str) -> bool {
    let is_alias_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-".contains(&byte);
    text.len() <= 256
        && text.strip_prefix("alias/").is_some_and(|rest| {
            !rest.is_empty() && !rest.starts_with("aws/") && rest.bytes().all(is_alias_byte)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_have_the_lengths_that_aws_gives_them() {
        let id = access_key_id("AKIA").unwrap();
        assert!(id.starts_with("AKIA"), "{id}");
        assert_eq!(id.len(), 20);
        assert_eq!(secret_access_key().unwrap().expose().len(), 40);
        assert_eq!(mfa_seed().unwrap().expose().len(), 64);
    }

    #[test]
    fn names_cannot_leave_their_directory() {
        for name in ["mariadb", "a.b", "x+=,.@-_9"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
