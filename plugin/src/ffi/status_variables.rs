//! Status variables as the server asks for them.

use core::ffi::{c_int, c_void};
use std::ffi::CString;

use super::guard;
use crate::abi::{
    SHOW_ARRAY, SHOW_BUFFER_BYTES, SHOW_CHAR, SHOW_ULONGLONG, ServerOwned, StatusFunction,
    StatusVariable,
};
use crate::server::symbols::allocate_for_statement;
use crate::status::{VARIABLES, Value, of_keys};

/// The functions for [`VARIABLES`], in the same order.
pub const FUNCTIONS: [StatusFunction; VARIABLES.len()] = [
    show::<0>, show::<1>, show::<2>, show::<3>, show::<4>, show::<5>, show::<6>, show::<7>,
    show::<8>, show::<9>, show::<10>, show::<11>, show::<12>, show::<13>, show::<14>, show::<15>,
    show::<16>, show::<17>, show::<18>, show::<19>, show::<20>, show::<21>, show::<22>, show::<23>,
    show::<24>, show::<25>, show::<26>, show::<27>, show::<28>, show::<29>, show::<30>, show::<31>,
    show::<32>, show::<33>, show::<34>, show::<35>, show::<36>, show::<37>, show::<38>, show::<39>,
    show::<40>,
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
        // The server looks at the variable, whatever comes of this call.
        // SAFETY: not null; the variable is the server's own copy for this call to fill in, and its buffer is
        // SHOW_BUFFER_BYTES long.
        unsafe {
            write_text("", buffer.cast());
            (*variable).kind = SHOW_CHAR;
            (*variable).value = buffer;
        }
        let (_, value) = VARIABLES[INDEX];
        match value() {
            // SAFETY: as above. The buffer is longer than a number, and this needs no alignment.
            Value::Number(number) => unsafe {
                buffer.cast::<u64>().write_unaligned(number);
                (*variable).kind = SHOW_ULONGLONG;
            },
            // SAFETY: as above.
            Value::Text(text) => unsafe { write_text(&text, buffer.cast()) },
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

/// The array of a server without keys.
static NO_ROWS: ServerOwned<[StatusVariable; 1]> = ServerOwned::new([StatusVariable::END]);

/// Fills in the variables of single keys, as an array in memory of the statement: while the server reads it, a stored
/// function of the statement may have the server ask again, in the same thread. `_thd` may be of another connection, into
/// whose memory this thread must not write: `performance_schema.status_by_thread` asks for each.
///
/// # Safety
/// `variable` is null or writable.
pub unsafe extern "C" fn show_keys(
    _thd: *mut c_void,
    variable: *mut StatusVariable,
    _buffer: *mut c_void,
    _status: *mut c_void,
    _scope: c_int,
) -> c_int {
    guard(1, || {
        if variable.is_null() {
            return 1;
        }
        // SAFETY: not null, and the server passes its own copy of the variable for this call to fill in.
        let variable = unsafe { &mut *variable };
        // The server looks at the variable, whatever comes of this call.
        variable.kind = SHOW_ARRAY;
        variable.value = NO_ROWS.address().cast();
        // SAFETY: that memory is long and aligned enough.
        if let Some(rows) = unsafe { lay_out(of_keys(), allocate_for_statement) } {
            variable.value = rows;
        }
        0
    })
}

/// Copies the variables into memory of `allocate`, as the server reads them. `None`: there is no memory.
///
/// # Safety
/// `allocate` returns null or memory of as many bytes as asked, aligned for a `u64`.
pub(super) unsafe fn lay_out(
    variables: Vec<(String, Value)>,
    allocate: impl Fn(usize) -> *mut c_void,
) -> Option<*mut c_void> {
    // SAFETY: as the caller says.
    let copy_text = |text: String| unsafe {
        // No name or value contains a NUL.
        let text = CString::new(text).unwrap_or_default();
        copy(text.as_bytes_with_nul(), &allocate)
    };
    let mut rows = Vec::with_capacity(variables.len() + 1);
    for (name, value) in variables {
        let (value, kind) = match value {
            // SAFETY: as the caller says.
            Value::Number(number) => (unsafe { copy(&[number], &allocate) }, SHOW_ULONGLONG),
            Value::Text(text) => (copy_text(text), SHOW_CHAR),
        };
        rows.push(StatusVariable {
            name: copy_text(name)?.cast(),
            value: value?,
            kind,
        });
    }
    rows.push(StatusVariable::END);
    // SAFETY: as the caller says.
    unsafe { copy(&rows, &allocate) }
}

/// # Safety
/// As for [`lay_out`]; a `T` needs no greater alignment than a `u64`.
unsafe fn copy<T: Copy>(
    values: &[T],
    allocate: &impl Fn(usize) -> *mut c_void,
) -> Option<*mut c_void> {
    let place = allocate(size_of_val(values));
    if place.is_null() {
        return None;
    }
    // SAFETY: the new memory is as long as the values, and aligned.
    unsafe { core::ptr::copy_nonoverlapping(values.as_ptr(), place.cast(), values.len()) };
    Some(place)
}
