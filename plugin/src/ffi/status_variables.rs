//! Status variables for the server.

use core::ffi::{c_int, c_void};

use super::guard;
use crate::abi::{SHOW_BUFFER_BYTES, SHOW_CHAR, SHOW_ULONGLONG, StatusFunction, StatusVariable};
use crate::status::{VARIABLES, Value};

/// The functions for [`VARIABLES`], in their order.
pub const FUNCTIONS: [StatusFunction; VARIABLES.len()] = [
    show::<0>, show::<1>, show::<2>, show::<3>, show::<4>, show::<5>, show::<6>, show::<7>,
    show::<8>, show::<9>, show::<10>, show::<11>,
];

/// Tells the value of one variable.
///
/// # Safety
/// `variable` is writable, and `buffer` for [`SHOW_BUFFER_BYTES`].
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
                // SAFETY: the buffer holds more than a number, at an alignment not known.
                unsafe { buffer.cast::<u64>().write_unaligned(number) };
                SHOW_ULONGLONG
            }
            Value::Text(text) => {
                // SAFETY: the caller's promise.
                unsafe { write_text(&text, buffer.cast()) };
                SHOW_CHAR
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            (*variable).kind = kind;
            (*variable).value = buffer;
        }
        0
    })
}

/// Writes as much of the text as fits, and a NUL.
///
/// # Safety
/// `buffer` is writable for [`SHOW_BUFFER_BYTES`].
unsafe fn write_text(text: &str, buffer: *mut u8) {
    let length = text.floor_char_boundary(SHOW_BUFFER_BYTES - 1);
    // SAFETY: the text and its NUL fit, as just measured, and a String is no buffer of the server.
    unsafe {
        core::ptr::copy_nonoverlapping(text.as_ptr(), buffer, length);
        buffer.add(length).write(0);
    }
}
