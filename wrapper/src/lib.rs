//! Starts a command with an AWS session that somebody has opened with an MFA code.
//!
//! [`launch`] is the procedure of `iam-kms-wrapper`, [`code`] that of `iam-kms-wrapper code`, [`setup`] that
//! of `iam-kms-wrapper setup`, [`audit`] that of `iam-kms-wrapper audit`, [`check`] that of `iam-kms-wrapper --check`.

pub mod audit;
mod broker_process;
pub mod check;
pub mod code;
pub mod command_line;
pub mod launch;
pub mod setup;
