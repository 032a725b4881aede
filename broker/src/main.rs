//! `iam-kms-broker`: see the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    iam_kms_broker::main()
}
