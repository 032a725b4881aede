//! Starts a command with an AWS session that a person has opened with an MFA code.
//!
//! [`launch`] is the procedure of `iam-kms-wrapper`, [`code`] that of `iam-kms-wrapper code` and
//! [`manage_key`] that of `kms-manage-key`; the rest are their parts, which `iam-kms-broker` uses too: the configuration ([`config`]), the source credentials
//! ([`credentials`]), the FIFO or terminal ([`channel`]), the trade at STS ([`sts`]), and the loop
//! that leads from a code to a session ([`asking`]).

pub mod asking;
pub mod aws;
pub mod broker;
pub mod channel;
pub mod check;
pub mod clock;
pub mod code;
pub mod command;
pub mod command_line;
pub mod config;
pub mod credentials;
mod dns;
pub mod environment;
pub mod http_client;
mod input_file;
pub mod kms_failure;
pub mod launch;
pub mod listen_fds;
pub mod logging;
pub mod manage_key;
pub mod master_key_id;
pub mod on_abort;
pub mod operator;
pub mod process;
pub mod process_status;
mod root_cause;
pub mod service_credential;
pub mod session;
pub mod signals;
pub mod stored_session;
pub mod sts;
pub mod systemd;
mod variables;
