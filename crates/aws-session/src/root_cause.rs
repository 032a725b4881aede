//! The reason in a chain of errors.

/// Returns the innermost reason of an error: "Connection refused", not "dispatch failure".
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
