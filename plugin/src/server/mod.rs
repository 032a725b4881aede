//! The server that the plugin runs in: its log and the symbols that its program exports.

pub mod binary_log;
pub mod log;
pub mod symbols;
