//! Does the same work for many keys, several at a time.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::lock::lock;
use crate::server::log;

/// How many keys are processed at a time. 1,000 keys at 20 ms for each KMS call take less than a second, and the
/// broker still has room for other clients.
pub const WORKERS: usize = 32;
/// How often the calling thread runs `report` while there is no result.
const INTERVAL: Duration = Duration::from_millis(100);

/// Does `work` for each of `items` in worker threads, [`WORKERS`] at a time. Returns the items that were not started.
///
/// The calling thread passes each result to `report`, and `None` every 100 ms while there is no result. Once
/// `report` has returned false, no further item is started, and the second argument of `work` becomes true.
pub fn for_each<T: Send, R: Send>(
    items: Vec<T>,
    work: impl Fn(T, &AtomicBool) -> R + Sync,
    mut report: impl FnMut(Option<R>) -> bool,
) -> Vec<T> {
    let workers = WORKERS.min(items.len());
    let queue = Mutex::new(VecDeque::from(items));
    let is_stopped = AtomicBool::new(false);
    let next = || (!is_stopped.load(Ordering::Relaxed)).then(|| lock(&queue).pop_front())?;
    let (results, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let mut started = 0;
        while started < workers {
            let (next, work, is_stopped) = (&next, &work, &is_stopped);
            let results = results.clone();
            let worker = move || {
                while let Some(item) = next() {
                    if results.send(work(item, is_stopped)).is_err() {
                        return;
                    }
                }
            };
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, worker) {
                log::warning(&format!(
                    "only {started} of {workers} threads could be started to call KMS, which is slower: {error}; raise the limit (TasksMax= in the server's unit, ulimit -u)"
                ));
                break;
            }
            started += 1;
        }
        drop(results);
        // If no thread could be started, this one does all the work.
        while started == 0
            && let Some(item) = next()
        {
            if !report(Some(work(item, &is_stopped))) {
                is_stopped.store(true, Ordering::Relaxed);
            }
        }
        loop {
            let should_continue = match receiver.recv_timeout(INTERVAL) {
                Ok(result) => report(Some(result)),
                Err(RecvTimeoutError::Timeout) => report(None),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if !should_continue {
                is_stopped.store(true, Ordering::Relaxed);
            }
        }
    });
    std::mem::take(&mut *lock(&queue)).into()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn all_items_are_processed_by_all_workers_at_once() {
        let together = Barrier::new(WORKERS);
        let mut results = Vec::new();
        let left = for_each(
            (0..2 * WORKERS).collect(),
            |item, _| {
                // Returns only when all workers have arrived.
                together.wait();
                item
            },
            |result| {
                results.extend(result);
                true
            },
        );
        assert!(left.is_empty());
        results.sort_unstable();
        assert_eq!(results, (0..2 * WORKERS).collect::<Vec<_>>());
    }

    #[test]
    fn after_a_stop_nothing_is_started_and_the_work_in_progress_is_told() {
        let mut done = 0;
        let left = for_each(
            (0..10 * WORKERS).collect(),
            |_, is_stopped| {
                while !is_stopped.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            },
            |result| {
                done += usize::from(result.is_some());
                false
            },
        );
        assert_eq!((done, left.len()), (WORKERS, 9 * WORKERS));
    }
}
