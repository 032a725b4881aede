//! Chaos: a server that encrypts everything, under load, is killed again and again, with its broker
//! and without, while KMS fails, sessions end, keys rotate and backups run. All committed rows are
//! also kept outside the server, and compared with it after each start.
//!
//! - `schema`: the tables, and the one content that a row of a given generation has.
//! - `shadow`: the committed rows, and what must be in a table, a copy or a backup.
//! - `reading`: what is in a table.
//! - `clients`: the load.
//! - `director`: the lives of the server, and how they end.
//! - `messages`: the few texts of the programs under test that this one knows.
//! - `watch`: what takes too long is reported with the stacks of the processes, then ended.
//! - `world`: what all threads share.

use std::{
    fmt::Write as _,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::{Scene, StoreDirectory};
use director::Director;
use world::World;

mod clients;
mod deck;
mod director;
mod messages;
mod reading;
mod schema;
mod shadow;
mod tally;
mod watch;
mod world;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// For how long new lives of the server begin.
    pub duration: Duration,
    /// Decides what is done, as far as threads and processes let it.
    pub seed: u64,
    /// What is done behind the shadow's back, to prove that it is found.
    pub sabotage: Option<Sabotage>,
}

/// Damage that a run must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// A committed row is removed.
    RemoveRow,
    /// A committed row gets the content of another generation.
    ChangeRow,
    /// The marker is written into a table that is not encrypted.
    WriteMarkerInTheClear,
    /// A statement waits for ever.
    Hang,
}

/// A run that found something wrong.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong, what was done last, and how to repeat it.
    pub report: String,
    /// Where everything was left as it was.
    pub directory: PathBuf,
}

/// The session of MFA lasts this long, so that its end is within what clocks may differ by.
const SESSION_SECONDS: u64 = 300;
/// Lines of the journal in a report. The rest is in its file.
const LAST_ACTIONS: usize = 40;

/// Runs chaos, and returns what it comes down to in plain words.
///
/// # Errors
/// A row is lost or changed, a program hangs or dies, or a log reports damage.
pub fn run(options: &Options) -> Result<String, Box<Failure>> {
    let began = Instant::now();
    let mut scene = Scene::with_aws(&[&format!("--session-lifetime={SESSION_SECONDS}")])
        .with_broker()
        .line("request_timeout_seconds = 4");
    // Half of the runs have one.
    let store = (options.seed.is_multiple_of(2)).then(|| StoreDirectory::new(&scene.sandbox));
    if let Some(store) = &store {
        scene = scene.line(&format!("key_store = {}", store.location()));
    }
    let kept = scene.sandbox.directory("report");
    let world = World::new(&kept, options.sabotage);
    thread::scope(|scope| {
        scope.spawn(|| world.watch.run(|reason| world.fail(reason)));
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut director = Director::new(&world, &mut scene, store.as_ref(), options.seed);
            let result = catch_unwind(AssertUnwindSafe(|| {
                director.run(began + options.duration);
            }));
            director.leave();
            result
        }));
        if let Err(panic) = result.and_then(|result| result) {
            world.fail(world::text_of(&*panic));
        }
        world.watch.end();
    });
    let summary = format!(
        "Chaos, {} seconds, seed {}, MariaDB {}\n{}",
        began.elapsed().as_secs(),
        options.seed,
        world.server_version(),
        world.tally
    );
    let failures = world.failures();
    if failures.is_empty() {
        return Ok(summary + "lost 0, hung 0\n");
    }
    let mut report = String::from("Something is wrong:\n");
    for failure in &failures {
        writeln!(report, "- {failure}").unwrap();
    }
    let actions = fs::read_to_string(world.journal_path()).unwrap_or_default();
    let actions: Vec<_> = actions.lines().collect();
    let last = actions.len().saturating_sub(LAST_ACTIONS);
    let directory = scene.sandbox.keep().to_owned();
    write!(
        report,
        "\nThe last of what was done (all of it: {}):\n  {}\n\n{summary}\n\
         Everything is left in {}: data directory, AWS, logs and stacks in report/.\n\
         Try again with CHAOS_SEED={}\n",
        world.journal_path().display(),
        actions[last..].join("\n  "),
        directory.display(),
        options.seed
    )
    .unwrap();
    fs::write(kept.join("report.txt"), &report).unwrap();
    Err(Box::new(Failure { report, directory }))
}
