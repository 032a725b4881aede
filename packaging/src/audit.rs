//! The reference of the audit for the documentation, from the tables in `service::audit_events`.

use service::audit_events::{EVENTS, FIELDS};

/// Renders a Markdown table with a row for each event.
pub fn table_of_events() -> String {
    let mut table = String::from("| event | when | further fields |\n|---|---|---|\n");
    for event in EVENTS {
        let fields: Vec<_> = event
            .fields
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        table += &format!(
            "| `{}` | {} | {} |\n",
            event.name,
            event.when,
            fields.join(", ")
        );
    }
    table
}

/// Renders a Markdown table with a row for each field.
pub fn table_of_fields() -> String {
    let mut table = String::from("| field | type | meaning |\n|---|---|---|\n");
    for field in FIELDS {
        let kind = if field.is_number { "number" } else { "text" };
        table += &format!("| `{}` | {kind} | {} |\n", field.name, field.meaning);
    }
    table
}
