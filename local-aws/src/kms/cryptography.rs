//! The operations that use a key: Encrypt, Decrypt, ReEncrypt and the two that make data keys.

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::Call;
use super::blob::{self, EncryptionContext};
use crate::constraint::{Violations, required};
use crate::error::{ApiError, ErrorKind};
use crate::identifier::base64;
use crate::policy::Context;

const MAX_PLAINTEXT_BYTES: usize = 4096;
const MAX_CIPHERTEXT_BYTES: usize = 6144;
const MAX_DATA_KEY_BYTES: u32 = 1024;

/// The one encryption algorithm of symmetric keys.
#[derive(Clone, Copy, Default, Deserialize, serde::Serialize)]
pub enum Algorithm {
    /// AES-256-GCM.
    #[default]
    #[serde(rename = "SYMMETRIC_DEFAULT")]
    SymmetricDefault,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Encrypt {
    key_id: Option<String>,
    plaintext: Option<Zeroizing<String>>,
    #[serde(default)]
    encryption_context: EncryptionContext,
    #[serde(default)]
    encryption_algorithm: Algorithm,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Decrypt {
    ciphertext_blob: Option<String>,
    key_id: Option<String>,
    #[serde(default)]
    encryption_context: EncryptionContext,
    #[serde(default)]
    encryption_algorithm: Algorithm,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct ReEncrypt {
    ciphertext_blob: Option<String>,
    source_key_id: Option<String>,
    #[serde(default)]
    source_encryption_context: EncryptionContext,
    #[serde(default)]
    source_encryption_algorithm: Algorithm,
    destination_key_id: Option<String>,
    #[serde(default)]
    destination_encryption_context: EncryptionContext,
    #[serde(default)]
    destination_encryption_algorithm: Algorithm,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct GenerateDataKey {
    key_id: Option<String>,
    key_spec: Option<DataKeySpec>,
    number_of_bytes: Option<u32>,
    #[serde(default)]
    encryption_context: EncryptionContext,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Clone, Copy, Deserialize)]
enum DataKeySpec {
    #[serde(rename = "AES_128")]
    Aes128,
    #[serde(rename = "AES_256")]
    Aes256,
}

/// A data key, plain and wrapped.
struct DataKey {
    master_key_arn: String,
    plaintext: Zeroizing<Vec<u8>>,
    ciphertext: Vec<u8>,
}

impl Call<'_> {
    pub(super) fn encrypt(&mut self, request: Encrypt) -> Result<Value, ApiError> {
        let plaintext = required("plaintext", request.plaintext)?;
        let plaintext = Zeroizing::new(decode("plaintext", &plaintext)?);
        let mut violations = Violations::default();
        violations.check_blob("plaintext", &plaintext, MAX_PLAINTEXT_BYTES);
        violations.into_result()?;
        let key_id = self.find("keyId", request.key_id)?;
        let context = request.encryption_context;
        self.authorize("kms:Encrypt", key_id, condition_keys(&context))?;
        self.check_usable(key_id)?;
        let blob = blob::encrypt(key_id, self.key(key_id)?, &plaintext, &context)?;
        check_not_dry(request.dry_run)?;
        Ok(json!({
            "CiphertextBlob": base64(&blob),
            "KeyId": self.state.key_arn(key_id),
            "EncryptionAlgorithm": request.encryption_algorithm,
        }))
    }

    pub(super) fn decrypt(&mut self, request: Decrypt) -> Result<Value, ApiError> {
        let blob = ciphertext(request.ciphertext_blob)?;
        let key_id = self.source_key("keyId", &blob, request.key_id)?;
        let context = request.encryption_context;
        self.authorize("kms:Decrypt", key_id, condition_keys(&context))?;
        self.check_usable(key_id)?;
        let plaintext = blob::decrypt(key_id, self.key(key_id)?, &blob, &context)?;
        check_not_dry(request.dry_run)?;
        Ok(json!({
            "KeyId": self.state.key_arn(key_id),
            "Plaintext": base64(&plaintext),
            "EncryptionAlgorithm": request.encryption_algorithm,
        }))
    }

    pub(super) fn re_encrypt(&mut self, request: ReEncrypt) -> Result<Value, ApiError> {
        let blob = ciphertext(request.ciphertext_blob)?;
        let source = self.source_key("sourceKeyId", &blob, request.source_key_id)?;
        let destination = self.find("destinationKeyId", request.destination_key_id)?;
        let source_context = request.source_encryption_context;
        let destination_context = request.destination_encryption_context;
        self.authorize("kms:ReEncryptFrom", source, condition_keys(&source_context))?;
        self.authorize(
            "kms:ReEncryptTo",
            destination,
            condition_keys(&destination_context),
        )?;
        self.check_usable(source)?;
        self.check_usable(destination)?;
        let plaintext = blob::decrypt(source, self.key(source)?, &blob, &source_context)?;
        let key = self.key(destination)?;
        let blob = blob::encrypt(destination, key, &plaintext, &destination_context)?;
        check_not_dry(request.dry_run)?;
        Ok(json!({
            "CiphertextBlob": base64(&blob),
            "SourceKeyId": self.state.key_arn(source),
            "KeyId": self.state.key_arn(destination),
            "SourceEncryptionAlgorithm": request.source_encryption_algorithm,
            "DestinationEncryptionAlgorithm": request.destination_encryption_algorithm,
        }))
    }

    pub(super) fn generate_data_key(
        &mut self,
        request: GenerateDataKey,
    ) -> Result<Value, ApiError> {
        let data_key = self.new_data_key("kms:GenerateDataKey", request)?;
        Ok(json!({
            "CiphertextBlob": base64(&data_key.ciphertext),
            "Plaintext": base64(&data_key.plaintext),
            "KeyId": data_key.master_key_arn,
        }))
    }

    pub(super) fn generate_data_key_without_plaintext(
        &mut self,
        request: GenerateDataKey,
    ) -> Result<Value, ApiError> {
        let data_key = self.new_data_key("kms:GenerateDataKeyWithoutPlaintext", request)?;
        Ok(json!({
            "CiphertextBlob": base64(&data_key.ciphertext),
            "KeyId": data_key.master_key_arn,
        }))
    }

    fn new_data_key(
        &mut self,
        action: &str,
        request: GenerateDataKey,
    ) -> Result<DataKey, ApiError> {
        let length = data_key_bytes(request.key_spec, request.number_of_bytes)?;
        let key_id = self.find("keyId", request.key_id)?;
        let context = request.encryption_context;
        self.authorize(action, key_id, condition_keys(&context))?;
        self.check_usable(key_id)?;
        check_not_dry(request.dry_run)?;
        let mut plaintext = Zeroizing::new(vec![0; length]);
        getrandom::fill(&mut plaintext).map_err(ApiError::internal)?;
        let ciphertext = blob::encrypt(key_id, self.key(key_id)?, &plaintext, &context)?;
        Ok(DataKey {
            master_key_arn: self.state.key_arn(key_id),
            plaintext,
            ciphertext,
        })
    }

    /// The key that `blob` names, which must be `asked` if that is given.
    fn source_key(
        &self,
        member: &str,
        blob: &[u8],
        asked: Option<String>,
    ) -> Result<Uuid, ApiError> {
        let named = blob::key_id(blob)?;
        if asked.is_some() && self.find(member, asked)? != named {
            let message = "The key ID in the request does not identify a CMK that can perform \
                           this operation.";
            return Err(ApiError::kms("IncorrectKeyException", message));
        }
        if !self.exists(named) || self.key(named)?.place.region != self.caller.region {
            let message = "The ciphertext refers to a customer master key that does not exist, \
                           does not exist in this region, or you are not allowed to access.";
            return Err(ApiError::new(ErrorKind::AccessDenied, message));
        }
        Ok(named)
    }
}

fn data_key_bytes(spec: Option<DataKeySpec>, number: Option<u32>) -> Result<usize, ApiError> {
    let number = match (spec, number) {
        (Some(DataKeySpec::Aes128), None) => 16,
        (Some(DataKeySpec::Aes256), None) => 32,
        (None, Some(number)) => number,
        _ => {
            let message = "Please specify either number of bytes or key spec.";
            return Err(ApiError::new(ErrorKind::Validation, message));
        }
    };
    let mut violations = Violations::default();
    violations.check_range("numberOfBytes", number, 1, MAX_DATA_KEY_BYTES);
    violations.into_result()?;
    usize::try_from(number).map_err(ApiError::internal)
}

/// What would have succeeded is refused all the same where that was asked for.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/testing-permissions.html>.
fn check_not_dry(dry_run: bool) -> Result<(), ApiError> {
    match dry_run {
        false => Ok(()),
        true => Err(ApiError::kms(
            "DryRunOperationException",
            "The request would have succeeded, but the DryRun option is set.",
        )),
    }
}

fn ciphertext(blob: Option<String>) -> Result<Vec<u8>, ApiError> {
    let blob = decode("ciphertextBlob", &required("ciphertextBlob", blob)?)?;
    let mut violations = Violations::default();
    violations.check_blob("ciphertextBlob", &blob, MAX_CIPHERTEXT_BYTES);
    violations.into_result()?;
    Ok(blob)
}

fn decode(member: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    BASE64.decode(text.as_bytes()).map_err(|_| {
        ApiError::new(
            ErrorKind::Serialization,
            format!("'{member}' is not base64"),
        )
    })
}

/// The condition keys `kms:EncryptionContext:NAME`.
fn condition_keys(context: &EncryptionContext) -> Context {
    let key = |name: &String| format!("kms:encryptioncontext:{}", name.to_ascii_lowercase());
    context
        .iter()
        .map(|(name, value)| (key(name), value.clone()))
        .collect()
}
