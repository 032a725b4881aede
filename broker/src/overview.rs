//! What the broker has done since it started: for `/metrics`, and for programs that ask for an overview.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use aws_session::clock::unix_seconds_now;
use broker_api::{
    CallCount, CertificateEnd, ClientState, Failure, FailureKind, KeyContext, MAX_OVERVIEW_CLIENTS,
    MAX_OVERVIEW_KEYS, Overview, Reply, Request, ServedKey, SessionState,
};
use parking_lot::Mutex;

use crate::users::UserId;

/// Events of the audit that are kept in memory.
pub(crate) const KEPT_EVENTS: usize = 200;

/// Clients that are remembered, and key versions. Of more, those that were not seen for longest are forgotten.
const MAX_CLIENTS: usize = 1024;
const MAX_KEYS: usize = 65_536;

/// Longest name of a client that is shown, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Longest message of a failure that is shown, in bytes.
const MAX_FAILURE_BYTES: usize = 1024;

/// Upper bounds of the histogram of call durations, in seconds.
pub(crate) const BUCKETS_SECONDS: [f64; 10] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The record.
pub(crate) struct Record {
    start_unix_seconds: i64,
    content: Mutex<Content>,
}

struct Content {
    calls: BTreeMap<(&'static str, &'static str), u64>,
    durations: BTreeMap<&'static str, Durations>,
    last_success_unix_seconds: Option<i64>,
    last_failure: Option<(i64, String)>,
    /// The calls of each user.
    clients: LastSeen<UserId, u64>,
    /// The versions that were served, by key id and version.
    keys: LastSeen<(u32, u32), ()>,
}

/// The latest of what was seen, in order: a user of the socket decides how many there are and how often they are
/// asked for, and neither must cost the others time.
struct LastSeen<K, V> {
    /// The time of the last time, in Unix seconds, and what is kept.
    by_key: BTreeMap<K, (i64, V)>,
    by_time: BTreeSet<(i64, Reverse<K>)>,
    most: usize,
}

impl<K: Clone + Ord, V: Default> LastSeen<K, V> {
    fn new(most: usize) -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_time: BTreeSet::new(),
            most,
        }
    }

    /// Counts `key` as seen at this time, and returns what is kept of it. Of too many, the one that was not seen for
    /// longest is forgotten.
    fn see(&mut self, key: &K, unix_seconds: i64) -> &mut V {
        if let Some((last, _)) = self.by_key.get(key) {
            self.by_time.remove(&(*last, Reverse(key.clone())));
        } else if self.by_key.len() >= self.most
            && let Some((_, Reverse(oldest))) = self.by_time.pop_first()
        {
            self.by_key.remove(&oldest);
        }
        self.by_time.insert((unix_seconds, Reverse(key.clone())));
        let (last, kept) = self.by_key.entry(key.clone()).or_default();
        *last = unix_seconds;
        kept
    }

    /// The latest first; of the same second, in the order of the keys.
    fn latest(&self) -> impl Iterator<Item = (&K, i64, &V)> {
        let keys = self.by_time.iter().rev().map(|(_, Reverse(key))| key);
        keys.filter_map(|key| {
            let (last, kept) = self.by_key.get(key)?;
            Some((key, *last, kept))
        })
    }

    fn len(&self) -> usize {
        self.by_key.len()
    }
}

/// How long the calls of an operation took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durations {
    /// Calls in each of [`BUCKETS_SECONDS`], and above the last one.
    pub counts: [u64; BUCKETS_SECONDS.len() + 1],
    /// Their sum, in seconds.
    pub sum_seconds: f64,
}

impl Record {
    pub fn new() -> Self {
        Self {
            start_unix_seconds: unix_seconds_now(),
            content: Mutex::new(Content {
                calls: BTreeMap::new(),
                durations: BTreeMap::new(),
                last_success_unix_seconds: None,
                last_failure: None,
                clients: LastSeen::new(MAX_CLIENTS),
                keys: LastSeen::new(MAX_KEYS),
            }),
        }
    }

    /// Records a call of a user that took `duration`, waiting for a session and for others included.
    pub fn answered(
        &self,
        id: &UserId,
        request: &Request,
        answered: &Result<Reply, Failure>,
        duration: Duration,
    ) {
        let Some((operation, context)) = request.call() else {
            return;
        };
        let now = unix_seconds_now();
        let mut content = self.content.lock();
        *content
            .calls
            .entry((operation, result(answered)))
            .or_default() += 1;
        content
            .durations
            .entry(operation)
            .or_default()
            .add(duration);
        *content.clients.see(id, now) += 1;
        match answered {
            Ok(reply) => {
                content.last_success_unix_seconds = Some(now);
                if let Some(key) = served(reply, context) {
                    content.keys.see(&key, now);
                }
            }
            Err(failure) => {
                let message = beginning(&failure.message, MAX_FAILURE_BYTES);
                content.last_failure = Some((now, message));
            }
        }
    }

    /// Returns how long the calls of each operation took.
    pub fn durations(&self) -> BTreeMap<&'static str, Durations> {
        self.content.lock().durations.clone()
    }

    /// Returns what a client may see. `connections` has those of each user.
    pub fn overview(
        &self,
        session: SessionState,
        certificates: Vec<CertificateEnd>,
        connections: &HashMap<UserId, usize>,
    ) -> Overview {
        let content = self.content.lock();
        let clients = content.clients.latest().take(MAX_OVERVIEW_CLIENTS);
        let clients = clients
            .map(|(id, last, calls)| ClientState {
                name: beginning(&id.to_string(), MAX_NAME_BYTES),
                connections: connections
                    .get(id)
                    .map_or(0, |count| u32::try_from(*count).unwrap_or(u32::MAX)),
                calls: *calls,
                last_call_unix_seconds: last,
            })
            .collect();
        let keys = content.keys.latest().take(MAX_OVERVIEW_KEYS);
        let keys = keys
            .map(|(&(key_id, key_version), last, ())| ServedKey {
                key_id,
                key_version,
                last_served_unix_seconds: last,
            })
            .collect();
        Overview {
            session,
            start_unix_seconds: self.start_unix_seconds,
            calls: content
                .calls
                .iter()
                .map(|((operation, result), count)| CallCount {
                    operation: (*operation).into(),
                    result: (*result).into(),
                    count: *count,
                })
                .collect(),
            last_success_unix_seconds: content.last_success_unix_seconds,
            last_failure: content.last_failure.clone(),
            clients_seen: u64::try_from(content.clients.len()).unwrap_or(u64::MAX),
            clients,
            certificates,
            keys_served: u64::try_from(content.keys.len()).unwrap_or(u64::MAX),
            keys,
        }
    }
}

impl Durations {
    fn add(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.sum_seconds += seconds;
        let bucket = BUCKETS_SECONDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
    }
}

fn result(answered: &Result<Reply, Failure>) -> &'static str {
    match answered {
        Ok(Reply::Decrypted { request_id, .. }) if request_id.is_empty() => "cached",
        Ok(_) => "ok",
        Err(failure) => match failure.kind {
            FailureKind::SessionOver => "session_over",
            FailureKind::AccessDenied => "access_denied",
            FailureKind::KeyUnusable => "key_unusable",
            FailureKind::NotFound => "not_found",
            FailureKind::InvalidCiphertext => "invalid_ciphertext",
            FailureKind::Throttled => "throttled",
            FailureKind::Unavailable => "unavailable",
            FailureKind::InvalidRequest => "invalid_request",
            FailureKind::Other => "other",
            FailureKind::NotAuthenticated => "not_authenticated",
            FailureKind::UnsupportedVersion => "unsupported_version",
        },
    }
}

/// Id and version of the key that a reply serves, where they are known.
fn served(reply: &Reply, context: &KeyContext) -> Option<(u32, u32)> {
    match reply {
        Reply::Decrypted { .. } => Some((context.key_id, context.key_version)),
        Reply::Stored { key: Some(key), .. } => Some(key.name.number()),
        _ => None,
    }
    .filter(|(id, version)| *id != 0 && *version != 0)
}

fn beginning(text: &str, most_bytes: usize) -> String {
    text.get(..text.floor_char_boundary(most_bytes))
        .unwrap_or_default()
        .into()
}

#[cfg(test)]
mod tests {
    use broker_api::{
        AuditEvent, Decrypt, KmsSettings, MAX_EVENT_MESSAGE_BYTES, MAX_PAGE_EVENTS, SessionPhase,
        encode,
    };
    use key_files::PlaintextKey;

    use super::*;

    fn decrypt(key_id: u32, key_version: u32) -> Request {
        Request::Decrypt(Decrypt {
            ciphertext_blob: vec![1],
            check_value: None,
            context: KeyContext {
                key_id,
                key_version,
                ..KeyContext::default()
            },
        })
    }

    fn client(number: u32) -> UserId {
        UserId::Client(format!("{number}{}", "x".repeat(200)).into())
    }

    fn decrypted(request_id: &str) -> Result<Reply, Failure> {
        Ok(Reply::Decrypted {
            key: PlaintextKey::new(&[0; 16]).unwrap(),
            master_key_arn: String::new(),
            request_id: request_id.into(),
        })
    }

    fn session() -> SessionState {
        SessionState {
            phase: SessionPhase::Open,
            expiration_unix_seconds: Some(i64::MAX),
            fifo: Some("/".repeat(107)),
            kms: KmsSettings::default(),
            key_store: Some("s3://bucket/prefix".into()),
            has_key_server: false,
        }
    }

    #[test]
    fn calls_are_counted_by_operation_and_result() {
        let record = Record::new();
        let duration = Duration::from_millis(20);
        record.answered(&UserId::Uid(27), &decrypt(1, 1), &decrypted("r"), duration);
        record.answered(&UserId::Uid(27), &decrypt(1, 1), &decrypted(""), duration);
        let failure = Failure {
            kind: FailureKind::Throttled,
            message: "ü".repeat(1000),
        };
        record.answered(
            &UserId::Uid(28),
            &decrypt(1, 2),
            &Err(failure),
            Duration::from_secs(60),
        );
        record.answered(
            &UserId::Uid(28),
            &Request::Session,
            &Ok(Reply::Session(session())),
            duration,
        );
        let overview = record.overview(session(), Vec::new(), &HashMap::new());
        let counted = ["cached", "ok", "throttled"].map(|result| CallCount {
            operation: "Decrypt".into(),
            result: result.into(),
            count: 1,
        });
        assert_eq!(overview.calls, counted);
        let durations = &record.durations()["Decrypt"];
        assert_eq!(durations.counts, [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert!((60.03..60.05).contains(&durations.sum_seconds));
        assert_eq!(overview.keys_served, 1);
    }

    #[test]
    fn what_was_not_seen_for_longest_is_forgotten_and_the_latest_comes_first() {
        let mut seen = LastSeen::<u32, u32>::new(3);
        // The clock may be set back.
        for (key, time) in [(1, 10), (2, 11), (3, 12), (1, 13), (3, 9), (4, 13)] {
            *seen.see(&key, time) += 1;
        }
        let latest: Vec<_> = seen.latest().collect();
        assert_eq!(latest, [(&1, 13, &2), (&4, 13, &1), (&2, 11, &1)]);
        assert_eq!((seen.len(), seen.by_time.len()), (3, 3));
    }

    #[test]
    fn an_overview_fits_into_a_frame_whatever_has_been_done() {
        let record = Record::new();
        for number in 1..3000 {
            let request = decrypt(u32::MAX - number, u32::MAX);
            record.answered(&client(number), &request, &decrypted("r"), Duration::ZERO);
            let failure = Failure {
                kind: FailureKind::UnsupportedVersion,
                message: "x".repeat(10_000),
            };
            record.answered(&UserId::Uid(1), &request, &Err(failure), Duration::ZERO);
        }
        let certificates = vec![CertificateEnd {
            file: "/".repeat(1024),
            expiration_unix_seconds: i64::MAX,
        }];
        let overview = record.overview(session(), certificates, &HashMap::new());
        assert_eq!(overview.clients.len(), MAX_OVERVIEW_CLIENTS);
        assert_eq!(overview.keys.len(), MAX_OVERVIEW_KEYS);
        encode(2, &Reply::Overview(Box::new(overview))).unwrap();
        assert!(record.content.lock().clients.len() <= MAX_CLIENTS);
        let longest = AuditEvent {
            number: u64::MAX,
            unix_seconds: i64::MAX,
            name: "session_document_taken".into(),
            message: "x".repeat(MAX_EVENT_MESSAGE_BYTES),
        };
        encode(2, &Reply::Events(vec![longest; MAX_PAGE_EVENTS])).unwrap();
    }
}
