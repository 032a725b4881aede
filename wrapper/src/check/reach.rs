//! Asks STS and KMS where a start would ask them, with a key that nobody has.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use aws_sdk_sts::config::{Intercept, interceptors::BeforeTransmitInterceptorContextRef};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        http::HttpConnector as _, orchestrator::HttpRequest, runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{body::SdkBody, config_bag::ConfigBag};
use secrecy::SecretString;

use aws_session::{
    aws_error::{clock_offset, clock_offset_seconds},
    credentials::Credentials,
    root_cause,
    settings::{Service, Settings, runtime},
};

/// What a service of AWS answers to nobody in particular.
pub(super) struct Answer {
    /// Where it was asked.
    pub url: String,
    /// How far this host's clock is ahead of the service's; the error says what came instead.
    pub clock_offset_seconds: Result<i64, String>,
}

/// Asks `service` for something that needs no permission.
pub(super) fn reach(aws: &Settings, service: Service) -> io::Result<Answer> {
    let nobody = Credentials {
        access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
        secret_access_key: SecretString::from("none"),
        session_token: None,
        expiration_unix_seconds: None,
    };
    let (settings, asked) = (aws.sdk_config(Some(&nobody)), Asked::default());
    let asking = async {
        match service {
            Service::Sts => {
                let config = aws_sdk_sts::config::Builder::from(&settings);
                let client =
                    aws_sdk_sts::Client::from_conf(config.interceptor(asked.clone()).build());
                let answer = client.get_caller_identity().send().await;
                clock_offset(aws, service, &answer)
            }
            Service::Kms => {
                let config = aws_sdk_kms::config::Builder::from(&settings);
                let client =
                    aws_sdk_kms::Client::from_conf(config.interceptor(asked.clone()).build());
                let answer = client.list_aliases().limit(1).send().await;
                clock_offset(aws, service, &answer)
            }
        }
    };
    let clock_offset_seconds = runtime()?.block_on(asking);
    Ok(Answer {
        url: asked.url().unwrap_or_else(|| aws.name(service)),
        clock_offset_seconds,
    })
}

/// Asks for a bucket of S3 without any credentials, which tells no more than whether it is there. The error is a
/// whole message, because the service may have been reached.
pub(super) fn reach_bucket(aws: &Settings, bucket: &str) -> io::Result<Answer> {
    let place = aws.bucket(bucket);
    let url = place.url.of(bucket);
    let mut request = HttpRequest::new(SdkBody::empty());
    let asking = async {
        request
            .set_uri(format!("{url}?list-type=2&max-keys=0"))
            .map_err(|error| format!("cannot reach {url}: {error}"))?;
        let called = place.connector.call(request).await;
        let answer =
            called.map_err(|error| format!("cannot reach {url}: {}", root_cause(&error)))?;
        let region = answer.headers().get("x-amz-bucket-region");
        match (answer.status().as_u16(), region) {
            (404, _) => Err(format!("{url}: there is no such bucket; check key_store")),
            (300..400, Some(region)) => Err(format!(
                "{url}: the bucket is in {region}; KMS and the key store are called in one region (region in the configuration)"
            )),
            (status, _) => clock_offset_seconds(&answer)
                .ok_or_else(|| format!("{url}: the answer (HTTP status {status}) is not S3's")),
        }
    };
    let clock_offset_seconds = runtime()?.block_on(asking);
    Ok(Answer {
        url,
        clock_offset_seconds,
    })
}

/// Notes the URL of a request.
#[derive(Debug, Clone, Default)]
struct Asked(Arc<Mutex<Option<String>>>);

impl Asked {
    fn url(&self) -> Option<String> {
        let url = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        url.as_ref().map(|url| url.trim_end_matches('/').to_owned())
    }
}

impl Intercept for Asked {
    fn name(&self) -> &'static str {
        "asked"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let mut url = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *url = Some(context.request().uri().into());
        Ok(())
    }
}
