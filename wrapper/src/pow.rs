//! The C library's `pow`, for programs that are to do without libm.

use std::ffi::c_double;

/// `base` to the power of `exponent`: all that the AWS SDK takes from the C library's libm, in one
/// place, of which these programs are hardly in need. Without it, libm would lie in their memory, a
/// tenth of the whole.
// SAFETY: the signature is that of C's `pow` (ISO C 7.12.7.4), and so is what it returns; the
// linker takes the first definition that it finds, and no other symbol of these programs has that
// name.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn pow(base: c_double, exponent: c_double) -> c_double {
    libm::pow(base, exponent)
}
