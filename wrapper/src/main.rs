//! `iam-kms-wrapper`: see the library.

// Not Rust's usual start-up, which sets SIGPIPE to be ignored without keeping what it was: the
// command is to inherit every disposition as it came.
#![no_main]

use std::ffi::c_int;

/// The C entry point.
// SAFETY: the C runtime calls `main` once, and no other symbol of this program has that name; the
// arguments that it passes and we leave out are those of the C calling convention, which allows
// that.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    iam_kms_wrapper::launch::main()
}

/// `base` to the power of `exponent`: all that the AWS SDK takes from the C library's libm, in one
/// place, of which the launcher is never in need. Without it, libm would lie in memory for as long
/// as the code is awaited, a tenth of the whole.
// SAFETY: the signature is that of C's `pow` (ISO C 7.12.7.4), and so is what it returns; the
// linker takes the first definition that it finds, and no other symbol of this program has that
// name.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn pow(base: f64, exponent: f64) -> f64 {
    libm::pow(base, exponent)
}
