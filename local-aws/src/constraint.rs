//! The constraints of request parameters, and AWS's way to say which ones were not kept.

use crate::error::{ApiError, ErrorKind};

/// What the call log shows in the place of a value that must not be kept.
pub const HIDDEN: &str = "HIDDEN_DUE_TO_SECURITY_REASONS";

/// Collects every violated constraint of one request.
#[derive(Default)]
pub struct Violations {
    answered: Vec<String>,
    logged: Vec<String>,
}

impl Violations {
    /// Notes that `value` of the member `name` does not keep `constraint`, unless `kept`.
    pub fn check(&mut self, kept: bool, name: &str, value: &str, constraint: &str) {
        let shown = if name == "tokenCode" { HIDDEN } else { value };
        self.push(
            kept,
            name,
            &format!("Value '{value}'"),
            &format!("Value '{shown}'"),
            constraint,
        );
    }

    /// As [`Violations::check`] for a value that AWS does not repeat.
    pub fn check_unshown(&mut self, kept: bool, name: &str, constraint: &str) {
        self.push(kept, name, "Value", "Value", constraint);
    }

    /// Checks a length in characters or, for a blob, in bytes.
    pub fn check_length(&mut self, name: &str, value: &str, minimum: usize, maximum: usize) {
        let length = value.chars().count();
        self.check(length >= minimum, name, value, &at_least("length", minimum));
        self.check(length <= maximum, name, value, &at_most("length", maximum));
    }

    /// Checks the length of a blob in bytes.
    pub fn check_blob(&mut self, name: &str, value: &[u8], maximum: usize) {
        self.check_unshown(!value.is_empty(), name, &at_least("length", 1));
        self.check_unshown(value.len() <= maximum, name, &at_most("length", maximum));
    }

    /// Checks a number.
    pub fn check_range(&mut self, name: &str, value: u32, minimum: u32, maximum: u32) {
        let shown = value.to_string();
        self.check(value >= minimum, name, &shown, &at_least("value", minimum));
        self.check(value <= maximum, name, &shown, &at_most("value", maximum));
    }

    /// Checks that every byte is of AWS's regular expression `pattern`.
    pub fn check_pattern(&mut self, name: &str, value: &str, pattern: &str, is: fn(u8) -> bool) {
        let constraint = format!("Member must satisfy regular expression pattern: {pattern}");
        self.check(value.bytes().all(is), name, value, &constraint);
    }

    /// The error that names all violations, if there is one.
    pub fn into_result(self) -> Result<(), ApiError> {
        if self.answered.is_empty() {
            return Ok(());
        }
        let error = ApiError::new(ErrorKind::Validation, sentence(&self.answered));
        Err(error.logged_as(sentence(&self.logged)))
    }

    fn push(&mut self, kept: bool, name: &str, answered: &str, logged: &str, constraint: &str) {
        if !kept {
            let rest = format!("at '{name}' failed to satisfy constraint: {constraint}");
            self.answered.push(format!("{answered} {rest}"));
            self.logged.push(format!("{logged} {rest}"));
        }
    }
}

/// Returns the member, or the error that it is missing.
pub fn required<T>(name: &str, value: Option<T>) -> Result<T, ApiError> {
    value.ok_or_else(|| {
        let missing =
            format!("Value at '{name}' failed to satisfy constraint: Member must not be null");
        ApiError::new(ErrorKind::Validation, sentence(&[missing]))
    })
}

fn at_least(what: &str, minimum: impl std::fmt::Display) -> String {
    format!("Member must have {what} greater than or equal to {minimum}")
}

fn at_most(what: &str, maximum: impl std::fmt::Display) -> String {
    format!("Member must have {what} less than or equal to {maximum}")
}

fn sentence(violations: &[String]) -> String {
    let count = violations.len();
    let plural = if count == 1 { "" } else { "s" };
    format!(
        "{count} validation error{plural} detected: {}",
        violations.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_violation_reads_as_aws_words_it() {
        let mut violations = Violations::default();
        violations.check_range("durationSeconds", 100, 900, 129_600);
        assert_eq!(
            violations.into_result().unwrap_err().message,
            "1 validation error detected: Value '100' at 'durationSeconds' failed to satisfy \
             constraint: Member must have value greater than or equal to 900"
        );
    }

    #[test]
    fn a_token_code_is_answered_but_not_logged() {
        let mut violations = Violations::default();
        violations.check_length("tokenCode", "12345", 6, 6);
        violations.check_length("serialNumber", "short", 9, 256);
        let error = violations.into_result().unwrap_err();
        assert!(
            error
                .message
                .starts_with("2 validation errors detected: Value '12345' at")
        );
        assert!(!error.logged_message().contains("12345"));
        assert!(error.logged_message().contains("'short'"));
    }

    #[test]
    fn a_missing_member_is_named() {
        assert_eq!(
            required::<String>("keyId", None).unwrap_err().message,
            "1 validation error detected: Value at 'keyId' failed to satisfy constraint: Member \
             must not be null"
        );
    }
}
