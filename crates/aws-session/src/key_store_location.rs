//! Where a key store lies.

use std::{
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Longest prefix in a bucket, in bytes. Object names have at most 1024; ours need some forty.
const MAX_PREFIX_BYTES: usize = 512;

/// The place of a key store: `s3://BUCKET/PREFIX` or `file:///PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyStoreLocation {
    /// A bucket of S3, or of what speaks its protocol.
    S3 {
        /// The bucket's name, 3 to 63 characters.
        bucket: String,
        /// What its objects' names begin with, without a slash at either end; may be empty.
        prefix: String,
    },
    /// A directory, such as the mount point of a file server.
    Directory(PathBuf),
}

impl KeyStoreLocation {
    /// What [`Self::from_str`] accepts.
    pub const EXPECTED: &str = "s3://BUCKET/PREFIX or file:///PATH";

    /// The file that shows that a directory is a key store. It is no key: ids are numbers.
    pub const PROBE: &str = "conditional-put-check";

    /// Says that this is a directory without [`Self::PROBE`], and what to do.
    pub fn without_probe(&self) -> String {
        format!(
            "the key store {self} is not mounted, or was never made one: it has no file {}; if it is new and empty, kms-data-keys push --init makes it one",
            Self::PROBE
        )
    }

    /// The place of a part of this store.
    #[must_use]
    pub fn name_space(&self, name: &str) -> Self {
        match self {
            Self::S3 { bucket, prefix } => Self::S3 {
                bucket: bucket.clone(),
                prefix: match prefix.as_str() {
                    "" => name.into(),
                    prefix => format!("{prefix}/{name}"),
                },
            },
            Self::Directory(path) => Self::Directory(path.join(name)),
        }
    }
}

impl FromStr for KeyStoreLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("must be {}", Self::EXPECTED);
        if let Some(path) = text.strip_prefix("file://") {
            let path = Path::new(path);
            let is_plain = path
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            let is_good = path.is_absolute() && is_plain;
            return match path.file_name() {
                Some(name) if is_good && is_reserved(name.as_bytes()) => Err(format!(
                    "{}, and PATH must not end with # and a number",
                    refused()
                )),
                Some(_) if is_good => Ok(Self::Directory(path.into())),
                _ => Err(refused()),
            };
        }
        let rest = text.strip_prefix("s3://").ok_or_else(refused)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        match is_bucket(bucket) && is_prefix(prefix) {
            true => Ok(Self::S3 {
                bucket: bucket.into(),
                prefix: prefix.into(),
            }),
            false => Err(refused()),
        }
    }
}

impl fmt::Display for KeyStoreLocation {
    /// As in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// Whether a directory is called as `object_store` calls files that it has not finished: it lists none of these.
fn is_reserved(name: &[u8]) -> bool {
    let mut parts = name.splitn(2, |&byte| byte == b'#').skip(1);
    parts.any(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// Source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>.
fn is_bucket(name: &str) -> bool {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.starts_with(is_end)
        && name.ends_with(is_end)
        && name.chars().all(|c| is_end(c) || ".-".contains(c))
        && !name.contains("..")
}

/// Only characters that need no escape anywhere.
///
/// Source: "Safe characters" in
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html>.
fn is_prefix(prefix: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let is_segment = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(allowed);
    prefix.len() <= MAX_PREFIX_BYTES && (prefix.is_empty() || prefix.split('/').all(is_segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_bucket_with_a_prefix_or_a_directory() {
        for (text, shown) in [
            ("s3://keys-of-db/prod/db1", "s3://keys-of-db/prod/db1"),
            ("s3://keys.example.com/prod/", "s3://keys.example.com/prod"),
            ("s3://keys", "s3://keys"),
            ("s3://keys/", "s3://keys"),
            ("file:///mnt/keys", "file:///mnt/keys"),
            ("file:///mnt/#1/keys#", "file:///mnt/#1/keys#"),
        ] {
            let location: KeyStoreLocation = text.parse().unwrap();
            assert_eq!(location.to_string(), shown);
        }
    }

    #[test]
    fn other_locations_are_refused() {
        for text in [
            "",
            "keys",
            "https://keys.s3.amazonaws.com/prod",
            "s3://",
            "s3://Keys/prod",
            "s3://ab/prod",
            "s3://-keys/prod",
            "s3://ke..ys/prod",
            "s3://keys//prod",
            "s3://keys/a b",
            "s3://keys/../prod",
            "s3://keys/%2e%2e",
            "file://",
            "file:///",
            "file://mnt/keys",
            "file:///mnt/../keys",
            "file:///mnt/keys#1",
        ] {
            assert!(text.parse::<KeyStoreLocation>().is_err(), "{text}");
        }
    }
}
