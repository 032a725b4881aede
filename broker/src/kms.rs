//! The KMS calls, one try each.
//!
//! Source: <https://docs.aws.amazon.com/kms/latest/APIReference/API_Operations.html>.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_sdk_kms::{
    Client,
    config::{Builder, Region},
    operation::RequestId,
    primitives::Blob,
};
use aws_smithy_types::timeout::TimeoutConfig;
use broker_api::{Decrypt, Failure, FailureKind, GenerateDataKey, KmsOptions, Reply, Request};
use iam_kms_wrapper::{
    aws,
    config::is_region,
    kms_failure::{failure, incomplete, wrapped_key},
    session::Session,
};
use key_store::{MAX_CIPHERTEXT_BYTES, PlaintextKey};
use tokio::runtime::Handle;

use crate::{keeper::Keeper, key_cache::KeyCache};

/// Calls KMS with the session that is open.
pub(crate) struct Kms {
    runtime: Handle,
    clients: Mutex<Clients>,
    cache: KeyCache,
}

/// Clients of one session, by region and endpoint: they hold its connections.
#[derive(Default)]
struct Clients {
    session: Option<Arc<Session>>,
    by_target: HashMap<(String, String), Client>,
}

/// Regions and endpoints that peers have named, before the least is forgotten.
const MAX_CLIENTS: usize = 16;

impl Kms {
    pub fn new(runtime: Handle, cache: KeyCache) -> Self {
        Self {
            runtime,
            clients: Mutex::default(),
            cache,
        }
    }

    /// Does what `request` asks of KMS.
    pub fn answer(&self, keeper: &Keeper, request: &Request) -> Result<Reply, Failure> {
        match request {
            Request::Session => Ok(Reply::Session(keeper.state())),
            Request::Decrypt(request) => self.decrypt(keeper, request),
            Request::GenerateDataKey(request) => self.generate_data_key(keeper, request),
        }
    }

    /// Unwraps a data key; one that was unwrapped before, without a session and a request id.
    fn decrypt(&self, keeper: &Keeper, request: &Decrypt) -> Result<Reply, Failure> {
        let ciphertext_blob = &request.ciphertext_blob;
        if !(1..=MAX_CIPHERTEXT_BYTES).contains(&ciphertext_blob.len()) {
            return Err(invalid("a wrapped key must have 1 to 6144 bytes"));
        }
        let answered = self.call_decrypt(keeper, request);
        match &answered {
            Ok(Reply::Decrypted {
                key,
                master_key_arn,
                ..
            }) => self.cache.keep(ciphertext_blob, key, master_key_arn),
            Err(failure) if failure.kind == FailureKind::SessionOver => {
                if let Some((key, master_key_arn)) = self.cache.find(ciphertext_blob) {
                    return Ok(Reply::Decrypted {
                        key,
                        master_key_arn,
                        request_id: String::new(),
                    });
                }
            }
            Err(failure) => self.cache.refused(ciphertext_blob, failure.kind),
            Ok(_) => {}
        }
        answered
    }

    fn call_decrypt(&self, keeper: &Keeper, request: &Decrypt) -> Result<Reply, Failure> {
        let (session, client) = self.client(keeper, &request.options)?;
        let blob = Blob::new(request.ciphertext_blob.as_slice());
        let call = client
            .decrypt()
            .ciphertext_blob(blob)
            .customize()
            .config_override(timeouts(keeper, &request.options))
            .send();
        let answer = self
            .runtime
            .block_on(call)
            .map_err(|error| failure("Decrypt", &error, || keeper.ended(&session)))?;
        let plaintext = answer.plaintext().map(AsRef::as_ref).unwrap_or_default();
        Ok(Reply::Decrypted {
            key: PlaintextKey::new(plaintext)
                .map_err(|error| incomplete("Decrypt", &answer, &error.to_string()))?,
            master_key_arn: answer.key_id().unwrap_or_default().into(),
            request_id: answer.request_id().unwrap_or_default().into(),
        })
    }

    /// Makes a wrapped data key.
    fn generate_data_key(
        &self,
        keeper: &Keeper,
        request: &GenerateDataKey,
    ) -> Result<Reply, Failure> {
        if !matches!(request.key_bytes, 16 | 32) {
            return Err(invalid("a data key must have 16 or 32 bytes"));
        }
        if !(1..=2048).contains(&request.master_key_id.len()) {
            return Err(invalid("a master key id must have 1 to 2048 characters"));
        }
        let (session, client) = self.client(keeper, &request.options)?;
        let call = client
            .generate_data_key_without_plaintext()
            .key_id(&request.master_key_id)
            .number_of_bytes(request.key_bytes.into())
            .customize()
            .config_override(timeouts(keeper, &request.options))
            .send();
        const OPERATION: &str = "GenerateDataKeyWithoutPlaintext";
        let answer = self
            .runtime
            .block_on(call)
            .map_err(|error| failure(OPERATION, &error, || keeper.ended(&session)))?;
        let ciphertext_blob = answer.ciphertext_blob().map(AsRef::as_ref);
        Ok(Reply::Generated {
            ciphertext_blob: wrapped_key(OPERATION, &answer, ciphertext_blob)?,
            master_key_arn: answer.key_id().unwrap_or_default().into(),
            request_id: answer.request_id().unwrap_or_default().into(),
        })
    }

    /// A client of the open session for the peer's region and endpoint.
    fn client(
        &self,
        keeper: &Keeper,
        options: &KmsOptions,
    ) -> Result<(Arc<Session>, Client), Failure> {
        check_options(options)?;
        let session = keeper.session()?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = clients
            .session
            .as_ref()
            .is_some_and(|old| Arc::ptr_eq(old, &session));
        if !is_same || clients.by_target.len() >= MAX_CLIENTS {
            *clients = Clients {
                session: Some(Arc::clone(&session)),
                ..Clients::default()
            };
        }
        let target = (options.region.clone(), options.endpoint_url.clone());
        let client = clients
            .by_target
            .entry(target)
            .or_insert_with(|| self.new_client(keeper, &session, options))
            .clone();
        Ok((session, client))
    }

    fn new_client(&self, keeper: &Keeper, session: &Session, options: &KmsOptions) -> Client {
        let settings = self
            .runtime
            .block_on(aws::load(keeper.config(), Some(session)));
        let mut builder = Builder::from(&settings);
        if !options.region.is_empty() {
            builder = builder.region(Region::new(options.region.clone()));
        }
        if !options.endpoint_url.is_empty() {
            builder = builder.endpoint_url(&options.endpoint_url);
        }
        Client::from_conf(builder.build())
    }
}

fn check_options(options: &KmsOptions) -> Result<(), Failure> {
    if !options.region.is_empty() && !is_region(&options.region) {
        return Err(invalid(
            "aws_key_management_region is no AWS region, such as us-east-1",
        ));
    }
    let url = options.endpoint_url.as_str();
    let is_url = url.starts_with("https://") || url.starts_with("http://");
    if !url.is_empty()
        && (!is_url || url.len() > 2048 || !url.chars().all(|c| c.is_ascii_graphic()))
    {
        return Err(invalid(
            "aws_key_management_endpoint_url is no URL, such as https://kms.us-east-1.amazonaws.com",
        ));
    }
    Ok(())
}

fn timeouts(keeper: &Keeper, options: &KmsOptions) -> Builder {
    let timeout = match options.request_timeout_milliseconds {
        0 => keeper.config().request_timeout,
        milliseconds => Duration::from_millis(milliseconds.into()),
    };
    let timeouts = TimeoutConfig::builder()
        .operation_timeout(timeout)
        .connect_timeout(timeout);
    Builder::default().timeout_config(timeouts.build())
}

fn invalid(why: &str) -> Failure {
    Failure {
        kind: FailureKind::InvalidRequest,
        message: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_would_lead_to_another_host_is_refused() {
        let with_region = |region: &str| KmsOptions {
            region: region.into(),
            ..KmsOptions::default()
        };
        assert!(check_options(&with_region("us-east-1")).is_ok());
        assert!(check_options(&with_region("")).is_ok());
        for region in ["x.evil.example", "us-east-1/", "US-EAST-1", &"a".repeat(64)] {
            assert!(check_options(&with_region(region)).is_err(), "{region}");
        }
    }

    #[test]
    fn what_is_no_url_is_no_endpoint() {
        let with_url = |url: &str| KmsOptions {
            endpoint_url: url.into(),
            ..KmsOptions::default()
        };
        assert!(check_options(&with_url("http://127.0.0.1:4566")).is_ok());
        for url in ["kms", "file:///etc/passwd", "http://a b", "https://\u{e9}"] {
            assert!(check_options(&with_url(url)).is_err(), "{url}");
        }
    }
}
