//! Tests status variables in a process in which no plugin is loaded.

use aws_key_management::server::log;
use aws_key_management::status::{VARIABLES, Value};

fn value(name: &str) -> Value {
    let name = format!("Aws_key_management_{name}");
    let found = VARIABLES
        .iter()
        .find(|(known, _)| known.to_bytes() == name.as_bytes());
    found.map_or(Value::Text("no such variable".into()), |(_, value)| value())
}

#[test]
fn without_a_plugin_every_variable_has_a_value_and_the_last_error_has_a_time() {
    assert_eq!(value("session_state"), Value::Text("no broker".into()));
    assert_eq!(value("session_expiration"), Value::Text(String::new()));
    assert_eq!(value("keys_loaded"), Value::Number(0));
    assert_eq!(value("kms_mean_latency_microseconds"), Value::Number(0));
    assert_eq!(value("last_error"), Value::Text(String::new()));
    assert_eq!(value("last_error_time"), Value::Text(String::new()));

    log::error("a reason");
    assert_eq!(value("last_error"), Value::Text("a reason".into()));
    let Value::Text(time) = value("last_error_time") else {
        panic!("a time is text");
    };
    assert_eq!(time.len(), "2026-01-31 12:00:00".len());
}
