//! The README, whose chapters the tests follow.

const README: &str = include_str!("../../../README.md");

/// What stands below a heading, up to the next one.
pub fn chapter(heading: &str) -> &'static str {
    let (_, after) = README.split_once(&format!("\n{heading}\n")).unwrap();
    after.split_once("\n#").unwrap().0
}
