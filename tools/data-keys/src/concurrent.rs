//! Work on all key files, several at a time, with a progress bar.

use futures_util::{StreamExt, stream};
use tracing::error;

use crate::progress::Progress;

/// Far below the request quota of KMS.
const AT_ONCE: usize = 16;

/// Does `work` for each of `keys` and passes the results to `done`, in order. Logs the errors, which
/// must name the file or the key, and returns their number.
pub(crate) async fn each<K, T>(
    keys: &[K],
    work: impl AsyncFn(&K) -> Result<T, String>,
    mut done: impl FnMut(&K, T),
) -> usize {
    let progress = Progress::of_keys(keys.len());
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
