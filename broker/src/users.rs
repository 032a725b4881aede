//! Limits for each user of the socket: connections, concurrent KMS calls, calls per second, log lines.
//! Whatever one user does, there is room for the others.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

/// Connections of one user. A server opens one for each statement that waits for KMS.
const MAX_CONNECTIONS: usize = 1024;

/// Concurrent KMS calls of one user; further ones wait. A server that loads its keys makes half as
/// many.
const MAX_CALLS: usize = 64;

/// Frames of one user that are read concurrently. The bytes of others stay in the kernel, so that slow
/// senders on many connections cost no memory.
const MAX_FRAMES: usize = 64;

/// KMS calls of one user: a burst, and then a rate per second. The log must be able to record each of
/// them for audits.
const CALLS: Rate = Rate {
    burst: 10_000,
    interval: Duration::from_millis(1),
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
    by_uid: Mutex<HashMap<u32, Arc<User>>>,
}

/// One user.
pub(crate) struct User {
    pub uid: u32,
    /// Permits to read a frame.
    pub frames: Semaphore,
    /// Permits to call KMS.
    pub calls: Semaphore,
    connections: AtomicUsize,
    call_rate: Mutex<Bucket>,
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
            by_uid: Mutex::default(),
        }
    }

    /// Returns the user with this number.
    pub fn get(&self, uid: u32) -> Arc<User> {
        let mut users = self.by_uid();
        if users.len() >= MAX_IDLE_USERS && !users.contains_key(&uid) {
            users.retain(|_, user| user.connections.load(Ordering::Relaxed) > 0);
        }
        let user = users.entry(uid).or_insert_with(|| Arc::new(User::new(uid)));
        Arc::clone(user)
    }

    /// Counts a new connection of `user`. The error is the limit that has been reached.
    ///
    /// A user may have as many connections as are left for all others, so that some are always left.
    pub fn admit(&self, user: &Arc<User>) -> Result<Admitted, usize> {
        let taken: usize = self
            .by_uid()
            .values()
            .map(|user| user.connections.load(Ordering::Relaxed))
            .sum();
        let limit = MAX_CONNECTIONS.min(self.max_connections.saturating_sub(taken));
        if user.connections.load(Ordering::Relaxed) >= limit {
            return Err(limit);
        }
        user.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Admitted(Arc::clone(user)))
    }

    fn by_uid(&self) -> MutexGuard<'_, HashMap<u32, Arc<User>>> {
        lock(&self.by_uid)
    }
}

impl User {
    fn new(uid: u32) -> Self {
        let now = Instant::now();
        Self {
            uid,
            frames: Semaphore::new(MAX_FRAMES),
            calls: Semaphore::new(MAX_CALLS),
            connections: AtomicUsize::new(0),
            call_rate: Mutex::new(Bucket::full(CALLS, now)),
            events: Mutex::new(Bucket::full(EVENTS, now)),
            notices: Mutex::new(Notices {
                bucket: Bucket::full(NOTICES, now),
                suppressed: 0,
            }),
            versions: Mutex::default(),
        }
    }

    /// Counts a KMS call, and returns how long it must wait.
    pub fn pause_before_call(&self) -> Duration {
        lock(&self.call_rate).take(Instant::now())
    }

    /// Counts the event of a call, and returns whether this user has so many that the call should wait
    /// for a log that is behind.
    pub fn fills_log(&self) -> bool {
        !lock(&self.events).try_take(Instant::now())
    }

    /// Returns whether to log an error of this user: `None` if enough has been logged for now, else the
    /// number of errors that were not logged since the last one.
    pub fn may_log(&self) -> Option<u64> {
        let mut notices = lock(&self.notices);
        if notices.bucket.try_take(Instant::now()) {
            return Some(std::mem::take(&mut notices.suppressed));
        }
        notices.suppressed += 1;
        None
    }

    /// Returns whether this user uses this protocol version for the first time.
    pub fn is_new_version(&self, version: u8) -> bool {
        lock(&self.versions).insert(version)
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

/// The locked data is consistent at every unlock, even after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(users: &Users, uid: u32, count: usize) -> (Vec<Admitted>, Option<usize>) {
        let user = users.get(uid);
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
        let user = User::new(1);
        let logged = (0..100).filter(|_| user.may_log().is_some()).count();
        assert_eq!(logged, 20);
        assert_eq!(lock(&user.notices).suppressed, 80);
    }

    #[test]
    fn old_users_are_forgotten_when_there_are_many() {
        let users = Users::new(1000);
        let (_kept, _) = connect(&users, 0, 1);
        for uid in 1..10_000 {
            users.get(uid);
        }
        assert!(users.by_uid().len() <= MAX_IDLE_USERS);
        assert!(users.by_uid().contains_key(&0));
    }
}
