//! What the plugin has of the server that it runs in: its log, and what its program exports.

pub mod log;
pub mod symbols;
