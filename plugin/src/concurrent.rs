//! The same work for many keys, several at a time.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::server::log;

/// KMS calls at a time: 1,000 keys at 20 ms a call take less than a second, and the broker has room
/// for other clients.
pub const WORKERS: usize = 32;
/// How often the calling thread hears that nothing has ended.
const INTERVAL: Duration = Duration::from_millis(100);

/// Does `work` for each of `items` in threads of their own, [`WORKERS`] at a time. Returns those that were
/// not begun.
///
/// The calling thread hears of each result, and every 100 ms of none, by `report`. No further item is begun
/// after that has returned false, and `work` is told so by its second argument.
pub fn for_each<T: Send, R: Send>(
    items: Vec<T>,
    work: impl Fn(T, &AtomicBool) -> R + Sync,
    mut report: impl FnMut(Option<R>) -> bool,
) -> Vec<T> {
    let workers = WORKERS.min(items.len());
    let queue = Mutex::new(VecDeque::from(items));
    let is_stopped = AtomicBool::new(false);
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        (!is_stopped.load(Ordering::Relaxed)).then(|| queue.pop_front())?
    };
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
                    "working with {started} threads, because no more can be started: {error}"
                ));
                break;
            }
            started += 1;
        }
        drop(results);
        // Without any thread this one does it all.
        while started == 0
            && let Some(item) = next()
        {
            if !report(Some(work(item, &is_stopped))) {
                is_stopped.store(true, Ordering::Relaxed);
            }
        }
        loop {
            let goes_on = match receiver.recv_timeout(INTERVAL) {
                Ok(result) => report(Some(result)),
                Err(RecvTimeoutError::Timeout) => report(None),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if !goes_on {
                is_stopped.store(true, Ordering::Relaxed);
            }
        }
    });
    queue
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .into()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn all_items_are_done_and_as_many_at_a_time_as_there_are_workers() {
        let together = Barrier::new(WORKERS);
        let mut results = Vec::new();
        let left = for_each(
            (0..2 * WORKERS).collect(),
            |item, _| {
                // Returns only when all workers are here.
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
    fn nothing_is_begun_after_a_stop_and_the_work_in_progress_hears_of_it() {
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
