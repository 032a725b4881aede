//! The same work for each key file: several at once, a progress bar for whoever waits.

use futures_util::{StreamExt, stream};
use key_store::key_name::KeyName;
use tracing::error;

use crate::progress::Progress;

/// Far from what KMS takes in a second.
const AT_ONCE: usize = 16;

/// Does `work` for each of `keys`; `done` gets the results in their order. Returns how many failed,
/// each of which has been told: the error of `work` names the file.
pub(crate) async fn each<T>(
    keys: &[KeyName],
    work: impl AsyncFn(&KeyName) -> Result<T, String>,
    mut done: impl FnMut(&KeyName, T),
) -> usize {
    let total = u64::try_from(keys.len()).unwrap_or(u64::MAX);
    let progress = Progress::new(total, "{bar:40} {pos} of {len} data keys, {eta} left");
    let mut results = std::pin::pin!(
        stream::iter(keys)
            .map(async |key| (key, work(key).await))
            .buffered(AT_ONCE)
    );
    let mut failed = 0;
    while let Some((key, result)) = results.next().await {
        match result {
            Ok(result) => progress.suspend(|| done(key, result)),
            Err(why) => {
                failed += 1;
                progress.suspend(|| error!("{why}"));
            }
        }
        progress.add(1);
    }
    failed
}
