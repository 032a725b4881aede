//! `/metrics` for Prometheus, in the text format of OpenMetrics.
//!
//! Source: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::{
    convert::Infallible,
    io,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_session::config::Listen;
use broker_api::SessionPhase;
use local_http::{
    Bytes, Full, Incoming, Limits, LocalListener, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
    plain,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, text::encode},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    aws_calls::AwsCalls,
    conversation::Service,
    listener::{Listener, ListenerError},
    overview::{BUCKETS_SECONDS, Durations},
};

/// The path that is served.
const PATH: &str = "/metrics";

const LIMITS: Limits = Limits {
    connections: 8,
    transfer: Duration::from_secs(5),
    patience: Duration::from_secs(5),
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where metrics are served, bound.
pub(crate) enum MetricsListener {
    Socket(Listener),
    Loopback(LocalListener),
}

impl MetricsListener {
    /// Binds it. `gid` is the group that may use a socket.
    pub fn bind(listen: &Listen, gid: Option<u32>) -> Result<Self, ListenerError> {
        match listen {
            Listen::Socket(path) => Ok(Self::Socket(Listener::bind(path, gid)?)),
            Listen::Loopback(address) => {
                let failed = |source| ListenerError::BindMetrics {
                    address: *address,
                    source,
                };
                let socket = TcpListener::bind(address).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                Ok(Self::Loopback(LocalListener::Loopback(socket)))
            }
        }
    }

    /// Serves as long as it is polled. Errors: the socket cannot be used at all.
    pub async fn serve(
        &mut self,
        service: &Arc<Service>,
        aws: &Arc<AwsCalls>,
    ) -> io::Result<Infallible> {
        let (service, aws) = (Arc::clone(service), Arc::clone(aws));
        let answer = move |request| {
            let response = respond(&request, &service, &aws);
            async move { response }
        };
        match self {
            Self::Loopback(listener) => local_http::serve(listener, LIMITS, answer).await,
            Self::Socket(listener) => {
                let mut socket = listener.acceptor()?;
                loop {
                    let accepting = LocalListener::Unix(socket);
                    socket = tokio::select! {
                        served = local_http::serve(&accepting, LIMITS, answer.clone()) => return served,
                        again = listener.bound_again() => again,
                    };
                }
            }
        }
    }
}

fn respond(
    request: &Request<Incoming>,
    service: &Service,
    aws: &AwsCalls,
) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "only /metrics is here\n");
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is possible\n");
    }
    let mut response = plain(StatusCode::OK, text(service, aws));
    let kind = HeaderValue::from_static(OPEN_METRICS);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A name of each metric, without `iam_kms_broker_`, and its help. `docs/src/metrics.md` lists them.
const METRICS: [(&str, &str); 12] = [
    ("session_open", "1 if a session is open, else 0"),
    (
        "session_expiration_timestamp_seconds",
        "When the present or last session ends; absent if there was none, or it does not expire",
    ),
    (
        "code_awaited",
        "1 if an MFA code or a session document is awaited, else 0",
    ),
    (
        "requests_waiting",
        "Requests that wait for a session, such as those of a server that starts",
    ),
    (
        "calls",
        "Calls to KMS and to the key store, by operation and result",
    ),
    (
        "call_duration_seconds",
        "How long calls took, the wait for a session and for other calls included",
    ),
    (
        "last_success_timestamp_seconds",
        "When a call last succeeded",
    ),
    ("last_failure_timestamp_seconds", "When a call last failed"),
    (
        "client_connections",
        "Connections by client: `uid N` of this host, or `client NAME` of a key server",
    ),
    (
        "certificate_expiration_timestamp_seconds",
        "When the certificate in `file` ends, on a key server",
    ),
    (
        "keys_served",
        "Key versions that were served since the start; a new key that is in no key store is not counted before a server reads it again",
    ),
    ("start_timestamp_seconds", "When the broker started"),
];

fn help(name: &str) -> &'static str {
    let found = METRICS.iter().find(|(known, _)| *known == name);
    found.map_or("", |(_, help)| help)
}

type Labels<const N: usize> = [(&'static str, String); N];

/// The metrics of now.
fn text(service: &Service, aws: &AwsCalls) -> String {
    let mut registry = Registry::with_prefix("iam_kms_broker");
    let mut gauge = |name: &str, value: Option<i64>| {
        if let Some(value) = value {
            let gauge: Gauge = Gauge::default();
            gauge.set(value);
            registry.register(name, help(name), gauge);
        }
    };
    let overview = service.overview(aws);
    let session = overview.session;
    let is_open = session.phase == SessionPhase::Open;
    gauge("session_open", Some(is_open.into()));
    gauge(
        "code_awaited",
        Some((session.phase == SessionPhase::AwaitingCode).into()),
    );
    let waiting = aws.waiting.load(Ordering::Relaxed);
    gauge("requests_waiting", i64::try_from(waiting).ok());
    gauge(
        "session_expiration_timestamp_seconds",
        session.expiration_unix_seconds,
    );
    gauge(
        "last_success_timestamp_seconds",
        overview.last_success_unix_seconds,
    );
    gauge(
        "last_failure_timestamp_seconds",
        overview.last_failure.map(|(time, _)| time),
    );
    gauge("start_timestamp_seconds", Some(overview.start_unix_seconds));
    gauge("keys_served", i64::try_from(overview.keys_served).ok());

    let calls = Family::<Labels<2>, Counter<u64, AtomicU64>>::default();
    for call in overview.calls {
        let labels = [("operation", call.operation), ("result", call.result)];
        calls.get_or_create(&labels).inc_by(call.count);
    }
    // A counter that appears with its first call does not increase, and an alert would miss it.
    if !overview.certificates.is_empty() {
        for operation in ["GetKey", "FindKey", "MakeKey"] {
            let labels = [
                ("operation", operation.into()),
                ("result", "session_over".into()),
            ];
            drop(calls.get_or_create(&labels));
        }
    }
    registry.register("calls", help("calls"), calls);

    let connections = Family::<Labels<1>, Gauge>::default();
    for (id, count) in service.users.connections() {
        let labels = [("client", id.to_string())];
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        connections.get_or_create(&labels).set(count);
    }
    let name = "client_connections";
    registry.register(name, help(name), connections);

    let certificates = Family::<Labels<1>, Gauge>::default();
    for certificate in overview.certificates {
        let labels = [("file", certificate.file)];
        let end = certificate.expiration_unix_seconds;
        certificates.get_or_create(&labels).set(end);
    }
    let name = "certificate_expiration_timestamp_seconds";
    registry.register(name, help(name), certificates);

    let durations = service.record.durations().into_iter().collect();
    registry.register_collector(Box::new(CallDurations(durations)));
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct CallDurations(Vec<(&'static str, Durations)>);

impl Collector for CallDurations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = "call_duration_seconds";
        let mut metric =
            encoder.encode_descriptor(name, help(name), None, MetricType::Histogram)?;
        for (operation, durations) in &self.0 {
            let labels = [("operation", *operation)];
            let mut family = metric.encode_family(&labels)?;
            let bounds = BUCKETS_SECONDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(durations.counts).collect();
            let count = durations.counts.iter().sum();
            family.encode_histogram::<NoLabelSet>(durations.sum_seconds, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_each_metric() {
        let page = include_str!("../../docs/src/metrics.md");
        for (name, help) in METRICS {
            let is_listed = |name: &str| page.contains(&format!("| `{name}` | {help} |\n"));
            assert!(
                is_listed(name) || is_listed(&format!("{name}_total")),
                "{name}"
            );
        }
    }
}
