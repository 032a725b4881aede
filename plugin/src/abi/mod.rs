//! The server's C structures, as its headers declare them.
//!
//! Layouts are compared with the installed headers in `abi/tests.rs`.

mod encryption;
mod plugin;
mod server_owned;
#[cfg(test)]
mod tests;
mod variables;

pub use encryption::*;
pub use plugin::*;
pub use server_owned::ServerOwned;
pub use variables::*;
