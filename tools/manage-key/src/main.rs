//! `kms-manage-key`: see the library.

use std::{alloc::System, process::exit};

use zeroizing_alloc::ZeroAlloc;

/// Wipes memory when it is freed, because codes and credentials pass through buffers of libraries that
/// do not.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

// A panic between EnableKey and DisableKey would leave the key enabled.
#[cfg(not(panic = "unwind"))]
compile_error!("kms-manage-key must be built with panic = \"unwind\"");

fn main() {
    exit(kms_manage_key::main());
}
