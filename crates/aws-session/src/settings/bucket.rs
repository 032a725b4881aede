//! Where a bucket of S3 is found.
//!
//! Sources: <https://docs.aws.amazon.com/general/latest/gr/s3.html>,
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html>, and the suffixes in
//! `partitions.json` of the AWS SDKs.

use aws_smithy_runtime_api::client::http::SharedHttpConnector;

use super::Settings;

/// What the names of hosts end with, by the beginning of the region.
const SUFFIXES: [(&str, &str); 6] = [
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("us-iso-", "c2s.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
];

/// A way to a bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Makes the requests, with the proxy and the CA certificates of all calls of AWS.
    pub connector: SharedHttpConnector,
    /// Where it is.
    pub url: BucketUrl,
}

/// The URL of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUrl {
    /// The endpoint: with the bucket in the host's name, or without the bucket.
    pub endpoint: String,
    /// Whether the host's name has the bucket in it. Otherwise it is the first part of the path.
    pub is_virtual_hosted: bool,
}

impl BucketUrl {
    pub(super) fn is_tls(&self) -> bool {
        self.endpoint.starts_with("https:")
    }
}

/// AWS has the bucket in the host's name, unless it has a dot, which no certificate covers. What else
/// speaks the protocol knows it in the path at least.
pub(super) fn url(settings: &Settings, bucket: &str) -> BucketUrl {
    if let Some(endpoint) = settings.endpoints.s3.as_deref() {
        return BucketUrl {
            endpoint: endpoint.trim_end_matches('/').into(),
            is_virtual_hosted: false,
        };
    }
    let region = settings.region();
    let suffix = SUFFIXES
        .iter()
        .find(|(beginning, _)| region.starts_with(beginning))
        .map_or("amazonaws.com", |(_, suffix)| suffix);
    let fips = if settings.use_fips { "-fips" } else { "" };
    let stack = match settings.use_dual_stack {
        true => ".dualstack",
        false => "",
    };
    let host = format!("s3{fips}{stack}.{region}.{suffix}");
    match bucket.contains('.') {
        true => BucketUrl {
            endpoint: format!("https://{host}"),
            is_virtual_hosted: false,
        },
        false => BucketUrl {
            endpoint: format!("https://{bucket}.{host}"),
            is_virtual_hosted: true,
        },
    }
}
