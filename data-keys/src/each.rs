//! The same work for each key file: several at once, a progress bar for whoever waits.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use key_files::key_name::KeyName;
use tracing::error;

/// Far from what KMS takes in a second.
const AT_ONCE: usize = 16;

/// What takes no longer needs no bar.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Does `work` for each of `keys`; `done` gets the results in their order. Returns how many failed,
/// each of which has been told: the error of `work` names the file.
pub(crate) async fn each<T>(
    keys: &[KeyName],
    work: impl AsyncFn(&KeyName) -> Result<T, String>,
    mut done: impl FnMut(&KeyName, T),
) -> usize {
    let started = Instant::now();
    let bar = ProgressBar::with_draw_target(
        Some(u64::try_from(keys.len()).unwrap_or(u64::MAX)),
        ProgressDrawTarget::hidden(),
    );
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos} of {len} data keys, {eta} left")
    {
        bar.set_style(style);
    }
    let mut results = std::pin::pin!(
        stream::iter(keys)
            .map(async |key| (key, work(key).await))
            .buffered(AT_ONCE)
    );
    let mut failed = 0;
    while let Some((key, result)) = results.next().await {
        match result {
            Ok(result) => bar.suspend(|| done(key, result)),
            Err(why) => {
                failed += 1;
                bar.suspend(|| error!("{why}"));
            }
        }
        bar.inc(1);
        if bar.is_hidden() && started.elapsed() >= SHOWN_AFTER {
            // Draws nothing where standard error is no terminal.
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.tick();
        }
    }
    bar.finish_and_clear();
    failed
}
