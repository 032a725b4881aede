//! The KMS calls, one attempt each.
//!
//! Source: <https://docs.aws.amazon.com/kms/latest/APIReference/API_Operations.html>.

use std::sync::Arc;

use aws_sdk_kms::{Client, config::Builder, operation::RequestId, primitives::Blob};
use aws_session::{
    aws_error::{incomplete, kms_failure, wrapped_key},
    credentials::Credentials,
    settings::{Service, Settings},
};
use broker_api::{
    Decrypt, Failure, FailureKind, GenerateDataKey, KmsSettings, Reply, Request, version1,
};
use key_files::{MAX_CIPHERTEXT_BYTES, PlaintextKey};
use parking_lot::Mutex;

use crate::session_manager::SessionManager;

const GENERATE: &str = "GenerateDataKeyWithoutPlaintext";

/// Longest id of a master key, and longest ARN, in bytes.
const MAX_MASTER_KEY_BYTES: usize = 2048;

/// Longest request id that is passed on, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Calls KMS with the open session, in the region and at the endpoint of the configuration.
pub(crate) struct KmsCalls {
    builder: Builder,
    settings: KmsSettings,
    /// The client of the last session.
    client: Mutex<Option<(Arc<Credentials>, Client)>>,
}

impl KmsCalls {
    /// Calls KMS with these settings.
    pub fn new(aws: &Settings) -> Self {
        let request_timeout = aws.request_timeout().as_millis();
        Self {
            builder: Builder::from(&aws.sdk_config(None)),
            settings: KmsSettings {
                region: aws.region().into(),
                endpoint_url: aws.endpoint_url(Service::Kms).map(str::to_owned),
                request_timeout_milliseconds: u64::try_from(request_timeout).unwrap_or(u64::MAX),
            },
            client: Mutex::new(None),
        }
    }

    /// Returns what clients may know of the configuration.
    pub fn settings(&self) -> &KmsSettings {
        &self.settings
    }

    /// Unwraps a data key. The request must have been checked.
    pub async fn decrypt(
        &self,
        sessions: &SessionManager,
        request: &Decrypt,
    ) -> Result<Reply, Failure> {
        let session = sessions.session()?;
        decrypt(&self.client(&session), request, || sessions.ended(&session)).await
    }

    /// Makes a wrapped data key. The request must have been checked.
    pub async fn generate(
        &self,
        sessions: &SessionManager,
        request: &GenerateDataKey,
    ) -> Result<Reply, Failure> {
        let session = sessions.session()?;
        generate(&self.client(&session), request, || sessions.ended(&session)).await
    }

    fn client(&self, session: &Arc<Credentials>) -> Client {
        let mut kept = self.client.lock();
        if let Some((of, client)) = &*kept
            && Arc::ptr_eq(of, session)
        {
            return client.clone();
        }
        let config = self.builder.clone().credentials_provider(session.to_sdk());
        let client = Client::from_conf(config.build());
        *kept = Some((Arc::clone(session), client.clone()));
        client
    }

    /// Refuses a request of version 1 for another region or endpoint than the broker's. (In version 1,
    /// the client chose them.) Its time limit is ignored.
    pub fn check_options(&self, request: &version1::Request) -> Result<(), Failure> {
        let Some(options) = request.options() else {
            return Ok(());
        };
        let region = &self.settings.region;
        if !options.region.is_empty() && options.region != *region {
            return Err(invalid(format!(
                "aws_key_management_region is not {region}, the region in which the broker calls KMS; remove the variable, or set region in the broker's configuration and restart it"
            )));
        }
        let is_same =
            |url: &String| url.trim_end_matches('/') == options.endpoint_url.trim_end_matches('/');
        if !options.endpoint_url.is_empty()
            && !self.settings.endpoint_url.as_ref().is_some_and(is_same)
        {
            return Err(invalid(
                "aws_key_management_endpoint_url is not the endpoint at which the broker calls KMS; remove the variable, or set AWS_ENDPOINT_URL_KMS in the broker's environment and restart it".into(),
            ));
        }
        Ok(())
    }
}

/// Refuses a request that KMS would not accept, before it costs anything.
pub(crate) fn check(request: &Request) -> Result<(), Failure> {
    if let Request::MakeKey(request) = request {
        return check(&Request::GenerateDataKey(request.generate.clone()));
    }
    let why = match request {
        Request::FindKey(_) | Request::ListKeys(_) => return Ok(()),
        Request::Decrypt(request)
            if !(1..=MAX_CIPHERTEXT_BYTES).contains(&request.ciphertext_blob.len()) =>
        {
            "a wrapped key must have 1 to 6144 bytes"
        }
        Request::GenerateDataKey(request) if !matches!(request.key_bytes, 16 | 32) => {
            "a data key must have 16 or 32 bytes"
        }
        Request::GenerateDataKey(request)
            if !(1..=MAX_MASTER_KEY_BYTES).contains(&request.master_key_id.len()) =>
        {
            "a master key id must have 1 to 2048 characters"
        }
        _ => return Ok(()),
    };
    Err(invalid(why.into()))
}

async fn decrypt(
    client: &Client,
    request: &Decrypt,
    session_over: impl FnOnce() -> Failure,
) -> Result<Reply, Failure> {
    let answer = client
        .decrypt()
        .ciphertext_blob(Blob::new(request.ciphertext_blob.as_slice()))
        .send()
        .await
        .map_err(|error| kms_failure("Decrypt", &error, session_over))?;
    let plaintext = answer.plaintext().map(AsRef::as_ref).unwrap_or_default();
    Ok(Reply::Decrypted {
        key: PlaintextKey::new(plaintext)
            .map_err(|error| incomplete("Decrypt", &answer, &error.to_string()))?,
        master_key_arn: beginning(answer.key_id(), MAX_MASTER_KEY_BYTES),
        request_id: beginning(answer.request_id(), MAX_REQUEST_ID_BYTES),
    })
}

async fn generate(
    client: &Client,
    request: &GenerateDataKey,
    session_over: impl FnOnce() -> Failure,
) -> Result<Reply, Failure> {
    let answer = client
        .generate_data_key_without_plaintext()
        .key_id(&request.master_key_id)
        .number_of_bytes(request.key_bytes.into())
        .send()
        .await
        .map_err(|error| kms_failure(GENERATE, &error, session_over))?;
    let ciphertext_blob = answer.ciphertext_blob().map(AsRef::as_ref);
    Ok(Reply::Generated {
        ciphertext_blob: wrapped_key(GENERATE, &answer, ciphertext_blob)?,
        master_key_arn: beginning(answer.key_id(), MAX_MASTER_KEY_BYTES),
        request_id: beginning(answer.request_id(), MAX_REQUEST_ID_BYTES),
    })
}

/// Shortens a text so that it fits into a frame and a log line.
fn beginning(text: Option<&str>, most_bytes: usize) -> String {
    let text = text.unwrap_or_default();
    let printable = text.chars().filter(char::is_ascii_graphic);
    printable.take(most_bytes).collect()
}

pub(crate) fn invalid(message: String) -> Failure {
    Failure {
        kind: FailureKind::InvalidRequest,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_truncated_and_filtered() {
        assert_eq!(beginning(Some("arn"), 10), "arn");
        assert_eq!(beginning(Some(&"a".repeat(5000)), 2048).len(), 2048);
        assert_eq!(beginning(None, 10), "");
        assert_eq!(beginning(Some("a\nb\u{2028}c"), 10), "abc");
    }
}
