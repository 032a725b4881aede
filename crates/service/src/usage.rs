//! What becomes of a command line that clap does not take.

/// Prints what clap has to say; returns the exit code. `--help` and `--version` are no failure; a
/// wrong command line is one of ours.
pub fn show_usage(usage: &clap::Error) -> u8 {
    // Without standard output or error there is nobody to tell.
    let _ = usage.print();
    if usage.use_stderr() { 125 } else { 0 }
}
