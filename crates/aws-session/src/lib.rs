//! An AWS session in exchange for an MFA code: the configuration ([`config`]), the source credentials
//! ([`credentials`]), the calls of STS ([`sts`]), and what failures of STS and KMS mean ([`kms_failure`]).
//!
//! Nothing here knows of a FIFO, of systemd or of the server.

pub mod clock;
pub mod config;
pub mod credentials;
mod dns;
pub mod http_client;
pub mod input_file;
pub mod interrupt;
pub mod kms_failure;
pub mod master_key_id;
pub mod region;
mod root_cause;
pub mod service_credential;
pub mod session;
pub mod settings;
pub mod sts;
pub mod token_code;
pub mod variables;
