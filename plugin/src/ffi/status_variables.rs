//! Status variables as the server asks for them.

use core::cell::RefCell;
use core::ffi::{c_int, c_void};
use std::ffi::CString;

use super::guard;
use crate::abi::{
    SHOW_ARRAY, SHOW_BUFFER_BYTES, SHOW_CHAR, SHOW_ULONGLONG, StatusFunction, StatusVariable,
};
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

/// An array of variables for the server, with the names and values that its entries point to.
struct Rows {
    entries: Vec<StatusVariable>,
    _named: Vec<(CString, ShownValue)>,
}

enum ShownValue {
    Number(u64),
    Text(CString),
}

thread_local! {
    /// The rows that this thread's query reads. The server reads all of them before it asks again in this thread.
    static ROWS: RefCell<Option<Rows>> = const { RefCell::new(None) };
}

/// Fills in the variables of single keys, as an array.
///
/// # Safety
/// `variable` is null or writable. The caller reads the array before it calls this function again in the same thread.
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
        let rows = rows(of_keys());
        ROWS.with_borrow_mut(|kept| {
            let kept = kept.insert(rows);
            // SAFETY: not null, and the server passes its own copy of the variable for this call to fill in.
            unsafe {
                (*variable).kind = SHOW_ARRAY;
                (*variable).value = kept.entries.as_mut_ptr().cast();
            }
        });
        0
    })
}

/// Lays the variables out as the server reads them. One with a NUL, of which there is none, would be left out.
fn rows(variables: Vec<(String, Value)>) -> Rows {
    let shown = |(name, value)| {
        let value = match value {
            Value::Number(number) => ShownValue::Number(number),
            Value::Text(text) => ShownValue::Text(CString::new(text).ok()?),
        };
        Some((CString::new::<String>(name).ok()?, value))
    };
    let named: Vec<_> = variables.into_iter().filter_map(shown).collect();
    let entry = |(name, value): &(CString, ShownValue)| {
        let (pointer, kind): (*const c_void, c_int) = match value {
            ShownValue::Number(number) => (core::ptr::from_ref(number).cast(), SHOW_ULONGLONG),
            ShownValue::Text(text) => (text.as_ptr().cast(), SHOW_CHAR),
        };
        StatusVariable {
            name: name.as_ptr(),
            value: pointer.cast_mut(),
            kind,
        }
    };
    let mut entries: Vec<_> = named.iter().map(entry).collect();
    entries.push(StatusVariable::END);
    Rows {
        entries,
        _named: named,
    }
}
