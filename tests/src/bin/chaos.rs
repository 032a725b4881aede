//! `make chaos`: see [`end_to_end_tests::chaos`].
//!
//! `CHAOS_MINUTES` says for how long, `CHAOS_SEED` repeats the choices of another run. Exit status: 0
//! if nothing was lost and nothing hung, 1 if something is wrong, with all that is needed to repeat
//! it.

use std::{process::ExitCode, time::Duration};

use end_to_end_tests::{
    chaos::{Options, run},
    number_from_environment,
};

fn main() -> ExitCode {
    let minutes = number_from_environment("CHAOS_MINUTES").unwrap_or(2);
    let seed = number_from_environment("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("Chaos for {minutes} minutes, CHAOS_SEED={seed}");
    let options = Options {
        duration: Duration::from_secs(minutes * 60),
        seed,
        sabotage: None,
    };
    match run(&options) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{}", failure.report);
            ExitCode::FAILURE
        }
    }
}
