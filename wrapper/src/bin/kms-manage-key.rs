//! `kms-manage-key`: see [`iam_kms_wrapper::manage_key`].

#[path = "../pow.rs"]
mod pow;

use std::{alloc::System, process::exit};

use zeroizing_alloc::ZeroAlloc;

/// Overwrites memory when it is freed: codes and credentials pass through buffers of libraries that do
/// not.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

// A panic between EnableKey and DisableKey would leave the key enabled.
#[cfg(not(panic = "unwind"))]
compile_error!("kms-manage-key must be built with panic = \"unwind\"");

fn main() {
    exit(iam_kms_wrapper::manage_key::main());
}
