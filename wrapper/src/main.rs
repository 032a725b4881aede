//! `iam-kms-wrapper`: see the library.

// Not Rust's usual start-up, which sets SIGPIPE to be ignored without keeping what it was: the
// command is to inherit every disposition as it came.
#![no_main]

use std::{alloc::System, ffi::c_int};

use zeroizing_alloc::ZeroAlloc;

/// Overwrites memory when it is freed: codes and credentials pass through buffers of libraries that do
/// not.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// The C entry point.
// SAFETY: the C runtime calls `main` once, and no other symbol of this program has that name; the
// arguments that it passes and we leave out are those of the C calling convention, which allows
// that.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    iam_kms_wrapper::launch::main()
}
