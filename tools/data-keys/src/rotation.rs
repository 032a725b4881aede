//! `rotation`: how far InnoDB has re-encrypted its tablespaces after a rotation, as the running server tells.

mod progress;
mod server;

use std::{
    ffi::OsString,
    io::{IsTerminal, stderr},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use tracing::{info, warn};

use crate::{
    DataKeysError, Outcome, print, print_json,
    progress::Progress,
    textfile::{Metrics, TextfileArguments},
};
use progress::{KeyProgress, Rotation};

/// Time between two questions to the server.
const INTERVAL: Duration = Duration::from_secs(2);
/// Without a terminal, `--watch` reports this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Show how far InnoDB has re-encrypted after a rotation
#[derive(Debug, Args)]
#[command(after_help = "\
Asks the running server through the mariadb client, with its option files; the
account needs the privilege PROCESS. Arguments after -- go to the client, such
as -- --defaults-file=FILE or -- --socket=PATH.

Exit status: 0 if nothing is left to re-encrypt or it is under way, 1 if the
server's settings prevent it, 125 if the server does not answer.")]
pub(crate) struct Arguments {
    /// Show a progress bar until nothing is left to re-encrypt
    #[arg(long)]
    watch: bool,

    /// Print the table as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    textfile: TextfileArguments,

    /// Options for the mariadb client
    #[arg(last = true, value_name = "CLIENT OPTION")]
    client_options: Vec<OsString>,
}

/// Prints the table; with `--watch`, after the work.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, DataKeysError> {
    let ask = || server::ask(&arguments.client_options);
    let mut rotation = ask()?;
    if arguments.watch {
        rotation = watch(rotation, ask)?;
    }
    let printed = match arguments.json {
        true => print_json(&rotation.as_json()),
        false => print(&rotation.report()),
    };
    let written = printed.and(metrics(&rotation).write(arguments.textfile.path()));
    let outcome = match rotation.why_stuck() {
        None => Outcome::Good,
        Some(reason) => {
            warn!("{reason}");
            Outcome::Bad
        }
    };
    outcome.despite(written)
}

/// Asks again and again until nothing is left to do or it cannot go on.
fn watch(
    first: Rotation,
    ask: impl Fn() -> Result<Rotation, DataKeysError>,
) -> Result<Rotation, DataKeysError> {
    let (started, at_first) = (Instant::now(), first.pages_left());
    let bar = Progress::new(
        first.pages(),
        "{bar:40} {percent}% of {len} pages re-encrypted, {msg}",
    );
    let (mut now, mut reported) = (first, Instant::now());
    while now.pages_left() > 0 && now.why_stuck().is_none() {
        let done = at_first.saturating_sub(now.pages_left());
        let left = now.time_left(done, started.elapsed());
        let done = now.pages() - now.pages_left();
        bar.show(done, now.pages(), left.clone());
        if !stderr().is_terminal() && reported.elapsed() >= REPORT_INTERVAL {
            reported = Instant::now();
            info!("{done} of {} pages re-encrypted, {left}", now.pages());
        }
        thread::sleep(INTERVAL);
        now = ask()?;
    }
    Ok(now)
}

fn metrics(rotation: &Rotation) -> Metrics {
    let mut metrics = Metrics::new("rotation");
    let keys = rotation.keys();
    let mut gauge = |name, help, of: fn(&KeyProgress) -> u64| {
        let samples = keys.iter().map(|key| (key.id.to_string(), of(key)));
        metrics.gauge(name, help, "key_id", samples);
    };
    gauge(
        "latest_version",
        "The version that new data is encrypted with.",
        |key| key.latest_version.into(),
    );
    gauge(
        "oldest_version",
        "The oldest version that a tablespace still uses.",
        |key| key.oldest_version.into(),
    );
    gauge(
        "tablespaces_left",
        "Tablespaces that InnoDB will still re-encrypt.",
        |key| key.tablespaces_left,
    );
    gauge(
        "pages_left",
        "Pages, at most, that InnoDB will still re-encrypt.",
        |key| key.pages_left,
    );
    gauge(
        "tablespaces_kept",
        "Tablespaces under an old version that InnoDB leaves there because of its settings.",
        |key| key.tablespaces_kept,
    );
    metrics
}
