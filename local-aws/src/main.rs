//! The `local-aws` program; see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    local_aws::cli::main()
}
