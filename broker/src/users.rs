//! Limits for each user of the socket and each client of a key server: connections, concurrent KMS calls, calls per
//! second, log lines. Whatever one user does, there is room for the others.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// The limits of one user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    connections: usize,
    /// Concurrent calls.
    pub calls: usize,
    /// Frames that are read concurrently. The bytes of others stay in the kernel, so that slow senders on many
    /// connections cost no memory.
    frames: usize,
    /// Requests of any kind: the log must be able to record each call for audits.
    request_rate: Rate,
}

/// A user of this host. A server opens a connection for each statement that waits for KMS. When it loads its keys, it
/// makes half as many calls at a time; further ones wait.
const OF_HOST: Limits = Limits {
    connections: 1024,
    calls: 64,
    frames: 64,
    request_rate: Rate {
        burst: 10_000,
        interval: Duration::from_millis(1),
    },
};

/// A client of a key server: its broker has a few connections for all its processes ([`crate::upstream`]), and a start
/// needs two calls for each key.
const OF_CLIENT: Limits = Limits {
    connections: 32,
    calls: 16,
    frames: 8,
    request_rate: Rate {
        burst: 5_000,
        interval: Duration::from_millis(10),
    },
};

/// Calls of one user for which a log that is behind has room, whatever the others do.
const EVENTS: Rate = Rate {
    burst: 1_000,
    interval: Duration::from_millis(100),
};

/// Log lines about errors of one user.
const NOTICES: Rate = Rate {
    burst: 20,
    interval: Duration::from_secs(10),
};

/// Users that are remembered. Of those without a connection, only the latest.
const MAX_IDLE_USERS: usize = 1024;

/// All users that have connected.
pub(crate) struct Users {
    /// The total number of connections.
    max_connections: usize,
    by_id: Mutex<HashMap<UserId, Arc<User>>>,
}

/// Who a user is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum UserId {
    /// A user of this host.
    Uid(u32),
    /// A client of the key server, by the name of its section.
    Client(Arc<str>),
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Client(name) => write!(f, "client {name}"),
        }
    }
}

/// One user.
pub(crate) struct User {
    pub id: UserId,
    pub limits: Limits,
    /// Permits to read a frame.
    pub frames: Semaphore,
    /// Permits to call KMS.
    pub calls: Semaphore,
    connections: AtomicUsize,
    request_rate: Mutex<Bucket>,
    events: Mutex<Bucket>,
    notices: Mutex<Notices>,
    /// Protocol versions that have been logged.
    versions: Mutex<HashSet<u8>>,
}

struct Notices {
    bucket: Bucket,
    suppressed: u64,
}

/// A counted connection, until it is dropped.
pub(crate) struct Admitted(Arc<User>);

impl Admitted {
    pub fn user(&self) -> &User {
        &self.0
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Users {
    pub fn new(max_connections: usize) -> Self {
        Self {
            max_connections,
            by_id: Mutex::default(),
        }
    }

    /// Returns the user.
    pub fn get(&self, id: &UserId) -> Arc<User> {
        let mut users = self.by_id.lock();
        if users.len() >= MAX_IDLE_USERS && !users.contains_key(id) {
            users.retain(|_, user| user.connections.load(Ordering::Relaxed) > 0);
        }
        let user = users
            .entry(id.clone())
            .or_insert_with(|| Arc::new(User::new(id.clone())));
        Arc::clone(user)
    }

    /// Counts a new connection of `user`. The error is the limit that has been reached.
    ///
    /// A user may have as many connections as are left for all others, so that some are always left.
    pub fn admit(&self, user: &Arc<User>) -> Result<Admitted, usize> {
        let taken: usize = self
            .by_id
            .lock()
            .values()
            .map(|user| user.connections.load(Ordering::Relaxed))
            .sum();
        let left = self.max_connections.saturating_sub(taken);
        let limit = user.limits.connections.min(left);
        if user.connections.load(Ordering::Relaxed) >= limit {
            return Err(limit);
        }
        user.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Admitted(Arc::clone(user)))
    }

    /// Returns the number of connections of each user that has some.
    pub fn connections(&self) -> HashMap<UserId, usize> {
        let users = self.by_id.lock();
        let counts = users
            .iter()
            .map(|(id, user)| (id.clone(), user.connections.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

impl User {
    fn new(id: UserId) -> Self {
        let now = Instant::now();
        let limits = match id {
            UserId::Uid(_) => OF_HOST,
            UserId::Client(_) => OF_CLIENT,
        };
        Self {
            id,
            limits,
            frames: Semaphore::new(limits.frames),
            calls: Semaphore::new(limits.calls),
            connections: AtomicUsize::new(0),
            request_rate: Mutex::new(Bucket::full(limits.request_rate, now)),
            events: Mutex::new(Bucket::full(EVENTS, now)),
            notices: Mutex::new(Notices {
                bucket: Bucket::full(NOTICES, now),
                suppressed: 0,
            }),
            versions: Mutex::default(),
        }
    }

    /// All hosts of a kind that are no clients of the key server.
    pub fn stranger() -> Self {
        Self::new(UserId::Client("".into()))
    }

    /// Counts a request, and returns how long it must wait.
    pub fn pause_before_request(&self) -> Duration {
        self.request_rate.lock().take(Instant::now())
    }

    /// Counts a request if it need not wait.
    pub fn may_ask_now(&self) -> bool {
        self.request_rate.lock().try_take(Instant::now())
    }

    /// Counts the event of a call, and returns whether this user has so many that the call should wait
    /// for a log that is behind.
    pub fn fills_log(&self) -> bool {
        !self.events.lock().try_take(Instant::now())
    }

    /// Returns whether to log an error of this user: `None` if enough has been logged for now, else the
    /// number of errors that were not logged since the last one.
    pub fn may_log(&self) -> Option<u64> {
        let mut notices = self.notices.lock();
        if notices.bucket.try_take(Instant::now()) {
            return Some(std::mem::take(&mut notices.suppressed));
        }
        notices.suppressed += 1;
        None
    }

    /// Returns whether this user uses this protocol version for the first time.
    pub fn is_new_version(&self, version: u8) -> bool {
        self.versions.lock().insert(version)
    }
}

/// A rate limit: a burst, and then one for each interval.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u32,
    interval: Duration,
}

/// The state of a rate limit.
struct Bucket {
    rate: Rate,
    /// When the whole burst will be available again.
    full_at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// Takes one, even if it becomes available only later; further ones wait for longer.
    fn take(&mut self, now: Instant) -> Duration {
        self.full_at = self.full_at.max(now) + self.rate.interval;
        let burst = self.rate.interval * self.rate.burst;
        (self.full_at - now).saturating_sub(burst)
    }

    /// Takes one if it is available now.
    fn try_take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at;
        if self.take(now).is_zero() {
            return true;
        }
        self.full_at = full_at;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(users: &Users, uid: u32, count: usize) -> (Vec<Admitted>, Option<usize>) {
        let user = users.get(&UserId::Uid(uid));
        let mut admitted = Vec::new();
        for _ in 0..count {
            match users.admit(&user) {
                Ok(one) => admitted.push(one),
                Err(limit) => return (admitted, Some(limit)),
            }
        }
        (admitted, None)
    }

    #[test]
    fn a_new_user_can_always_connect() {
        let users = Users::new(1000);
        let mut all = Vec::new();
        for (uid, expected) in [(1, 500), (2, 250), (3, 125), (4, 63)] {
            let (admitted, limit) = connect(&users, uid, 1000);
            assert_eq!((admitted.len(), limit.is_some()), (expected, true), "{uid}");
            all.push(admitted);
        }
        all.remove(0);
        assert!(connect(&users, 4, 100).0.len() == 100);
    }

    #[test]
    fn a_burst_is_followed_by_one_each_interval() {
        let start = Instant::now();
        let rate = Rate {
            burst: 3,
            interval: Duration::from_secs(2),
        };
        let mut bucket = Bucket::full(rate, start);
        let pauses: Vec<_> = (0..5).map(|_| bucket.take(start).as_secs()).collect();
        assert_eq!(pauses, [0, 0, 0, 2, 4]);
        let later = start + Duration::from_secs(100);
        assert_eq!(bucket.take(later).as_secs(), 0);
    }

    #[test]
    fn suppressed_log_lines_are_counted() {
        let user = User::new(UserId::Uid(1));
        let logged = (0..100).filter(|_| user.may_log().is_some()).count();
        assert_eq!(logged, 20);
        assert_eq!(user.notices.lock().suppressed, 80);
    }

    #[test]
    fn old_users_are_forgotten_when_there_are_many() {
        let users = Users::new(1000);
        let (_kept, _) = connect(&users, 0, 1);
        for uid in 1..10_000 {
            users.get(&UserId::Uid(uid));
        }
        assert!(users.by_id.lock().len() <= MAX_IDLE_USERS);
        assert!(users.by_id.lock().contains_key(&UserId::Uid(0)));
    }
}
