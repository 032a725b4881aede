//! The KMS calls, with retries.
//!
//! Source: <https://docs.aws.amazon.com/kms/latest/APIReference/API_Operations.html>.

use aws_sdk_kms::{
    Client,
    config::{
        Builder,
        retry::{RetryConfig, RetryPartition, TokenBucket},
        timeout::TimeoutConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
    primitives::Blob,
};
use aws_session::{
    aws_error::{incomplete, kms_failure, wrapped_key},
    master_key_id::MasterKeyId,
    settings::{DEFAULT_REGION, OPERATION_GRACE},
};
use broker_api::{Failure, FailureKind};
use key_files::PlaintextKey;

use crate::{DataKeysError, access::Access};

/// With the pauses between them, this takes about a minute at most.
pub(crate) const MAX_ATTEMPTS: u32 = 8;

/// The error code of a DryRun call that would have succeeded.
const DRY_RUN_SUCCESS: &str = "DryRunOperationException";

/// A decrypted data key.
pub(crate) struct Unwrapped {
    /// The plaintext data key.
    pub key: PlaintextKey,
    /// ARN of the master key that wrapped it.
    pub master_key_arn: String,
    /// Whether KMS decrypted it now; otherwise it came from the broker's cache.
    pub is_from_kms: bool,
}

/// KMS in one region.
pub(crate) struct RegionalKms {
    client: Client,
}

impl RegionalKms {
    /// Calls KMS in `region`, or in that of the configuration, the environment or the profile.
    pub fn new(access: &Access, region: Option<&str>) -> Self {
        let aws = access.aws.in_region(region);
        let settings = aws.sdk_config(Some(&access.session));
        let timeout = aws.request_timeout() + OPERATION_GRACE;
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(timeout)
            .operation_timeout(timeout * MAX_ATTEMPTS)
            .connect_timeout(timeout);
        let builder = Builder::from(&settings)
            .retry_config(RetryConfig::standard().with_max_attempts(MAX_ATTEMPTS))
            .retry_partition(throttling_costs_nothing())
            .timeout_config(timeouts.build());
        Self {
            client: Client::from_conf(builder.build()),
        }
    }

    /// Calls KMS in the region of the master key `key`. Also returns that key's ARN.
    pub async fn of_master_key(
        access: &Access,
        key: &MasterKeyId,
    ) -> Result<(Self, String), DataKeysError> {
        let kms = Self::new(access, key.region());
        match kms.master_key_arn(key.as_str()).await {
            Ok(arn) => Ok((kms, arn)),
            Err(failure) => Err(DataKeysError::MasterKey {
                key: key.as_str().into(),
                why: failure.message,
            }),
        }
    }

    /// Returns the region that is called.
    pub fn region(&self) -> &str {
        self.client
            .config()
            .region()
            .map_or(DEFAULT_REGION, AsRef::as_ref)
    }

    async fn master_key_arn(&self, key: &str) -> Result<String, Failure> {
        const OPERATION: &str = "DescribeKey";
        let called = self.client.describe_key().key_id(key).send().await;
        let answer = called.map_err(|error| failure(OPERATION, &error))?;
        match answer.key_metadata().and_then(|metadata| metadata.arn()) {
            Some(arn) => Ok(arn.to_owned()),
            None => Err(incomplete(OPERATION, &answer, "no ARN")),
        }
    }

    /// Decrypts a data key. If `master_key` is given, that one must have wrapped it.
    pub async fn decrypt(
        &self,
        ciphertext_blob: &[u8],
        master_key: Option<&str>,
    ) -> Result<Unwrapped, Failure> {
        const OPERATION: &str = "Decrypt";
        let call = self
            .client
            .decrypt()
            .ciphertext_blob(Blob::new(ciphertext_blob))
            .set_key_id(master_key.map(str::to_owned));
        let called = call.send().await;
        let answer = called.map_err(|error| failure(OPERATION, &error))?;
        let plaintext = answer.plaintext().map(AsRef::as_ref).unwrap_or_default();
        Ok(Unwrapped {
            key: PlaintextKey::new(plaintext)
                .map_err(|error| incomplete(OPERATION, &answer, &error.to_string()))?,
            master_key_arn: answer.key_id().unwrap_or_default().to_owned(),
            is_from_kms: true,
        })
    }

    /// Wraps a wrapped data key under another master key of this region, given by its ARN. The data
    /// key does not leave KMS.
    pub async fn re_encrypt(
        &self,
        ciphertext_blob: &[u8],
        master_key_arn: &str,
    ) -> Result<Vec<u8>, Failure> {
        const OPERATION: &str = "ReEncrypt";
        let call = self
            .client
            .re_encrypt()
            .ciphertext_blob(Blob::new(ciphertext_blob))
            .destination_key_id(master_key_arn);
        let called = call.send().await;
        let answer = called.map_err(|error| failure(OPERATION, &error))?;
        let blob = answer.ciphertext_blob().map(AsRef::as_ref);
        checked(OPERATION, &answer, blob, answer.key_id(), master_key_arn)
    }

    /// Wraps a data key under a master key of this region, given by its ARN.
    pub async fn encrypt(
        &self,
        key: &PlaintextKey,
        master_key_arn: &str,
    ) -> Result<Vec<u8>, Failure> {
        const OPERATION: &str = "Encrypt";
        let call = self
            .client
            .encrypt()
            .plaintext(Blob::new(key.expose()))
            .key_id(master_key_arn);
        let called = call.send().await;
        let answer = called.map_err(|error| failure(OPERATION, &error))?;
        let blob = answer.ciphertext_blob().map(AsRef::as_ref);
        checked(OPERATION, &answer, blob, answer.key_id(), master_key_arn)
    }

    /// Asks whether [`Self::re_encrypt`] would succeed.
    pub async fn try_re_encrypt(
        &self,
        ciphertext_blob: &[u8],
        master_key_arn: &str,
    ) -> Result<(), Failure> {
        let call = self
            .client
            .re_encrypt()
            .ciphertext_blob(Blob::new(ciphertext_blob))
            .destination_key_id(master_key_arn)
            .dry_run(true);
        tried("ReEncrypt", call.send().await)
    }

    /// Asks whether [`Self::encrypt`] would succeed. The data key is not sent.
    pub async fn try_encrypt(&self, master_key_arn: &str) -> Result<(), Failure> {
        let call = self
            .client
            .encrypt()
            .plaintext(Blob::new([0; 16]))
            .key_id(master_key_arn)
            .dry_run(true);
        tried("Encrypt", call.send().await)
    }
}

/// The SDK stops retrying after 100 retries of all calls together. In a run with many keys, as many can be throttled, and
/// each only needs to be repeated. What else fails is most likely an outage, which should end the run soon.
fn throttling_costs_nothing() -> RetryPartition {
    let bucket = TokenBucket::builder().throttling_retry_cost(0).build();
    RetryPartition::custom("kms-data-keys")
        .token_bucket(bucket)
        .build()
}

/// Returns the new wrapped key, if the right master key wrapped it.
fn checked(
    operation: &str,
    answer: &impl RequestId,
    blob: Option<&[u8]>,
    named: Option<&str>,
    wanted: &str,
) -> Result<Vec<u8>, Failure> {
    if named != Some(wanted) {
        return Err(incomplete(operation, answer, "another master key"));
    }
    wrapped_key(operation, answer, blob)
}

fn tried<T, E>(operation: &str, called: Result<T, SdkError<E>>) -> Result<(), Failure>
where
    E: ProvideErrorMetadata + RequestId + std::error::Error + 'static,
{
    match called {
        Err(error) if error.code() == Some(DRY_RUN_SUCCESS) => Ok(()),
        Err(error) => Err(failure(operation, &error)),
        Ok(_) => Err(Failure {
            kind: FailureKind::Other,
            message: format!("KMS {operation} does not support DryRun"),
        }),
    }
}

fn failure<E>(operation: &str, error: &SdkError<E>) -> Failure
where
    E: ProvideErrorMetadata + RequestId + std::error::Error + 'static,
{
    kms_failure(operation, error, || Failure {
        kind: FailureKind::SessionOver,
        message: "the session has expired; run the command again with a new one".into(),
    })
}
