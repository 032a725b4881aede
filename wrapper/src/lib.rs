//! Starts a command with an AWS session that a person has opened with an MFA code.

#![forbid(unsafe_code)]

pub mod channel;
pub mod config;
pub mod session;
