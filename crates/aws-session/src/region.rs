//! AWS regions.

/// Whether `text` can be an AWS region. It becomes part of a host name, so it is held to what a host
/// name label may be: 1 to 63 lower-case letters, digits and hyphens.
pub fn is_region(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(allowed)
}
