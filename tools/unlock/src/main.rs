//! `iam-kms-unlock`: see the library.

use std::{alloc::System, process::exit};

use zeroizing_alloc::ZeroAlloc;

/// Wipes memory when it is freed, because codes and credentials pass through buffers of libraries that
/// do not.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() {
    exit(iam_kms_unlock::main());
}
