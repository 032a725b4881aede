//! The output for a command line that clap does not accept.

/// Prints clap's message and returns the exit code: 0 for `--help` and `--version`, 125 for a wrong
/// command line.
pub fn show_usage(usage: &clap::Error) -> u8 {
    // If this fails, the message is lost.
    let _ = usage.print();
    if usage.use_stderr() { 125 } else { 0 }
}
