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
    /// The URL of the bucket `bucket` itself.
    pub fn of(&self, bucket: &str) -> String {
        match self.is_virtual_hosted {
            true => self.endpoint.clone(),
            false => format!("{}/{bucket}", self.endpoint),
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, settings::Reader};

    #[test]
    fn a_bucket_of_aws_is_in_the_name_of_the_host_unless_it_has_a_dot() {
        let config = Config::without_file().unwrap();
        let mut settings = Settings::read(&config.session, Reader::Service).unwrap();
        let mut urls = Vec::new();
        for (region, fips, dual_stack, bucket) in [
            ("eu-west-1", false, false, "keys"),
            ("us-gov-west-1", true, true, "keys"),
            ("cn-north-1", false, false, "keys.example"),
            ("eusc-de-east-1", false, true, "keys"),
        ] {
            settings.region = Some(region.into());
            (settings.use_fips, settings.use_dual_stack) = (fips, dual_stack);
            urls.push(url(&settings, bucket).of(bucket));
        }
        assert_eq!(
            urls,
            [
                "https://keys.s3.eu-west-1.amazonaws.com",
                "https://keys.s3-fips.dualstack.us-gov-west-1.amazonaws.com",
                "https://s3.cn-north-1.amazonaws.com.cn/keys.example",
                "https://keys.s3.dualstack.eusc-de-east-1.amazonaws.eu",
            ]
        );
        settings.endpoints.s3 = Some("http://127.0.0.1:9000/".into());
        let own = url(&settings, "keys");
        assert_eq!(own.of("keys"), "http://127.0.0.1:9000/keys");
    }
}
