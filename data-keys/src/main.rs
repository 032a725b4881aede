//! `kms-data-keys`: see the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    kms_data_keys::main()
}
