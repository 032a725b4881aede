//! `iam-kms-console`: see the library.

#![forbid(unsafe_code)]

use std::{alloc::System, process::ExitCode};

use zeroizing_alloc::ZeroAlloc;

/// Wipes memory when it is freed: codes pass through the buffers of libraries.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    iam_kms_console::main()
}
