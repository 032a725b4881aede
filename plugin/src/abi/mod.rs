//! The server's C structures, as its headers declare them. `abi/tests.rs` compares the layouts with the installed
//! headers.

mod encryption;
mod plugin;
mod server_owned;
#[cfg(test)]
#[cfg(feature = "server-headers")]
mod tests;
mod variables;

pub use encryption::*;
pub use plugin::*;
pub use server_owned::ServerOwned;
pub use variables::*;
