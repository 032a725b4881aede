//! STS and KMS on 127.0.0.1, as strict as AWS where it matters to a program that trades an MFA code
//! for a session and unwraps data keys with it.
//!
//! One request goes this way: [`server`] (sockets, TLS) → [`exchange`] (what is asked, faults on
//! demand, the answer) → [`authentication`] (SigV4, sessions) → [`sts`] or [`kms`] (the operations,
//! which ask [`authorization`]) → [`trail`] (the call log). All that lasts is one file,
//! [`store`], so that the operator's commands ([`cli`]) and a running server see the same state.

pub mod authentication;
pub mod authorization;
pub mod caller;
pub mod cli;
pub mod constraint;
pub mod credential_files;
pub mod error;
pub mod exchange;
pub mod fault;
pub mod identifier;
pub mod kms;
pub mod machine;
pub mod mfa;
pub mod operation;
pub mod policy;
pub mod reply;
pub mod sealing;
pub mod secret;
pub mod server;
pub mod service;
pub mod session_token;
pub mod signature;
pub mod state;
pub mod store;
pub mod sts;
pub mod token;
pub mod trail;
