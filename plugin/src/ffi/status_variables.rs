//! Status variables as the server asks for them.

use core::ffi::{c_int, c_void};

use super::guard;
use crate::abi::{SHOW_BUFFER_BYTES, SHOW_CHAR, SHOW_ULONGLONG, StatusFunction, StatusVariable};
use crate::status::{VARIABLES, Value};

/// The functions for [`VARIABLES`], in the same order.
pub const FUNCTIONS: [StatusFunction; VARIABLES.len()] = [
    show::<0>, show::<1>, show::<2>, show::<3>, show::<4>, show::<5>, show::<6>, show::<7>,
    show::<8>, show::<9>, show::<10>, show::<11>,
];

/// Fills in one variable.
///
/// # Safety
/// `variable` is null or writable; `buffer` is null or writable for [`SHOW_BUFFER_BYTES`].
unsafe extern "C" fn show<const INDEX: usize>(
    _thd: *mut c_void,
    variable: *mut StatusVariable,
    buffer: *mut c_void,
    _status: *mut c_void,
    _scope: c_int,
) -> c_int {
    guard(1, || {
        if variable.is_null() || buffer.is_null() {
            return 1;
        }
        let (_, value) = VARIABLES[INDEX];
        let kind = match value() {
            Value::Number(number) => {
                // SAFETY: the buffer is not null and longer than a number, and this needs no alignment.
                unsafe { buffer.cast::<u64>().write_unaligned(number) };
                SHOW_ULONGLONG
            }
            Value::Text(text) => {
                // SAFETY: the buffer is not null, and the server makes it SHOW_BUFFER_BYTES long.
                unsafe { write_text(&text, buffer.cast()) };
                SHOW_CHAR
            }
        };
        // SAFETY: not null, and the server passes its own copy of the variable for this call to fill in.
        unsafe {
            (*variable).kind = kind;
            (*variable).value = buffer;
        }
        0
    })
}

/// Writes as much of the text as fits, followed by a NUL.
///
/// # Safety
/// `buffer` is writable for [`SHOW_BUFFER_BYTES`].
unsafe fn write_text(text: &str, buffer: *mut u8) {
    let length = text.floor_char_boundary(SHOW_BUFFER_BYTES - 1);
    // SAFETY: `length` leaves room for the NUL, and the server's buffer does not overlap the text.
    unsafe {
        core::ptr::copy_nonoverlapping(text.as_ptr(), buffer, length);
        buffer.add(length).write(0);
    }
}
