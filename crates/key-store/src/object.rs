//! The content of an object: a wrapped key and what is known of it, in JSON.
//!
//! ```json
//! {"format":1,"id":20,"version":3,"algorithm":"AES_CBC","bits":128,
//!  "check_value":"8d1f0a3c5b7e9d2f4a6c8e0b1d3f5a7c",
//!  "master_key":"arn:aws:kms:eu-west-1:111122223333:key/1a2b","wrapped_key":"AQIDAH…"}
//! ```
//!
//! None of it is secret: the key opens only in KMS.

use base64::{Engine, prelude::BASE64_STANDARD};
use key_files::{
    WrappedKey,
    key_name::{Algorithm, KeyName},
};
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

/// Longest object that is read, in bytes. The longest wrapped key has 8 KiB in base64.
pub(crate) const MAX_BYTES: u64 = 32 * 1024;

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    id: u32,
    version: u32,
    algorithm: String,
    bits: u16,
    check_value: String,
    master_key: String,
    wrapped_key: String,
}

pub(crate) fn format(key: &WrappedKey) -> Vec<u8> {
    let document = Document {
        format: FORMAT,
        id: key.name.id,
        version: key.name.version,
        algorithm: key.name.algorithm.to_string(),
        bits: key.bits,
        check_value: key.check_value.to_string(),
        master_key: key.master_key_arn.clone(),
        wrapped_key: BASE64_STANDARD.encode(&key.ciphertext_blob),
    };
    // Numbers and texts: this cannot fail.
    let mut json = serde_json::to_vec(&document).unwrap_or_default();
    json.push(b'\n');
    json
}

/// The error completes "… cannot be used: …".
pub(crate) fn parse(json: &[u8]) -> Result<WrappedKey, String> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let not_ours = || "it is not an object of a key store".to_owned();
    let Head { format } = serde_json::from_slice(json).map_err(|_| not_ours())?;
    if format != FORMAT {
        return Err(format!(
            "it has format {format}, which is that of a later release; this release reads format {FORMAT}"
        ));
    }
    let document: Document = serde_json::from_slice(json).map_err(|_| not_ours())?;
    let algorithm = Algorithm::by_name(&document.algorithm).ok_or("its algorithm is not known")?;
    let ciphertext_blob = BASE64_STANDARD
        .decode(&document.wrapped_key)
        .map_err(|_| "its wrapped key is invalid")?;
    let key = WrappedKey {
        name: KeyName {
            id: document.id,
            version: document.version,
            algorithm,
        },
        bits: document.bits,
        check_value: document
            .check_value
            .parse()
            .map_err(|_| "its check value is invalid")?,
        master_key_arn: document.master_key,
        ciphertext_blob,
    };
    key.is_valid().then_some(key).ok_or_else(not_ours)
}
