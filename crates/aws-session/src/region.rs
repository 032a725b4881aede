//! AWS regions.

/// Whether `text` can be an AWS region: 1 to 63 lower-case letters, digits and hyphens, because it
/// becomes a label of a host name.
pub fn is_region(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(allowed)
}
