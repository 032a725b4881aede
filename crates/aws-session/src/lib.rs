//! An AWS session in exchange for an MFA code: the configuration ([`config`]), the search for the
//! source credentials ([`source_credentials`]), the calls of STS ([`sts`]), and what errors of STS and KMS
//! mean ([`aws_error`]).
//!
//! Nothing here depends on a FIFO, on systemd or on the server.

pub mod aws_error;
pub mod child_output;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod dns;
pub mod http_client;
mod ini;
pub mod input_file;
pub mod interrupt;
pub mod key_store_location;
pub mod master_key_id;
pub mod region;
mod root_cause;
pub mod service_credential;
pub mod settings;
pub mod source_credentials;
pub mod sts;
pub mod thread;
pub mod token_code;
pub mod variables;

pub use root_cause::root_cause;
