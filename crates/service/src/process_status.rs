//! The signal and capability masks of this process, from /proc.
//!
//! Source: proc_pid_status(5). (The system calls would take `unsafe`.)

use std::fs;

/// Returns the mask in `field`, such as "SigIgn": bit n-1 for signal n, bit n for capability n. 0 if it
/// cannot be read.
pub fn mask(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_by_their_whole_name() {
        // Rust's start-up has every test program ignore SIGPIPE, signal 13.
        assert_eq!(mask("SigIgn") >> 12 & 1, 1);
        assert_eq!(mask("SigIg"), 0);
        assert_eq!(mask("NoSuchField"), 0);
    }
}
