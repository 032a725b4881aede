//! Functions of the server that are looked up at run time.
//!
//! Service structures are not linked against: their versions differ between servers, and a server
//! refuses a plugin that wants another one.

#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::sync::OnceLock;

use nix::libc::{RTLD_DEFAULT, dlsym};

/// `ER_UNKNOWN_ERROR` of `mysqld_error.h`.
const ER_UNKNOWN_ERROR: c_uint = 1105;

/// `my_printf_error` of `my_sys.h`.
type PrintfError = unsafe extern "C" fn(c_uint, *const c_char, c_ulong, ...);
/// `_current_thd` of the server's `sql_class.h`.
type CurrentThd = unsafe extern "C" fn() -> *mut c_void;

/// `thd_sql_command` of `plugin.h`.
type SqlCommand = unsafe extern "C" fn(*const c_void) -> c_int;

/// `SQLCOM_CREATE_TABLE` of the server's `sql_cmd.h`.
const CREATE_TABLE: c_int = 1;
/// `SQLCOM_ALTER_TABLE`.
const ALTER_TABLE: c_int = 3;
/// `SQLCOM_SET_OPTION`.
const SET_OPTION: c_int = 31;

/// Looks a symbol of the running program up. Null if it has none of that name.
fn find(name: &CStr) -> *mut c_void {
    // SAFETY: the name is NUL-terminated, and the look-up runs no code of the program.
    unsafe { dlsym(RTLD_DEFAULT, name.as_ptr()) }
}

/// Gives `text` to the server with the `ME_…` flags of `my_sys.h`: to the client, or to the error
/// log. Returns false where the program has no such function, as a unit test has not, or shows
/// nothing of it, as mariadb-backup.
pub fn print(text: &CStr, flags: c_ulong) -> bool {
    if is_backup_program() {
        return false;
    }
    static FUNCTION: OnceLock<Option<PrintfError>> = OnceLock::new();
    let function = FUNCTION.get_or_init(|| {
        // SAFETY: a program that has this symbol is a MariaDB program, where it has had this
        // signature since 5.5; null becomes None.
        unsafe {
            core::mem::transmute::<*mut c_void, Option<PrintfError>>(find(c"my_printf_error"))
        }
    });
    let Some(function) = function else {
        return false;
    };
    // SAFETY: the format takes one NUL-terminated string, which is what it gets; the function
    // copies it into a buffer of its own.
    unsafe { function(ER_UNKNOWN_ERROR, c"%s".as_ptr(), flags, text.as_ptr()) };
    true
}

/// Tells whether this thread serves a statement, to whose client an error can be told. True where
/// the program does not say.
pub fn thread_has_client() -> bool {
    current_thread().is_none_or(|thread| !thread.is_null())
}

/// Tells whether this thread's statement can bring a new key id into use: it makes or changes a
/// table, or sets `innodb_default_encryption_key_id`. Whoever else wants a key has data of it. True
/// where the program does not say.
pub fn statement_may_name_new_key() -> bool {
    static FUNCTION: OnceLock<Option<SqlCommand>> = OnceLock::new();
    let function = FUNCTION.get_or_init(|| {
        // SAFETY: the server's own function, with the signature of plugin.h; null becomes None.
        unsafe { core::mem::transmute::<*mut c_void, Option<SqlCommand>>(find(c"thd_sql_command")) }
    });
    match (current_thread(), function) {
        (Some(thread), Some(function)) => {
            // SAFETY: not null, and the server's own description of this thread.
            let command = || unsafe { function(thread) };
            !thread.is_null() && matches!(command(), CREATE_TABLE | ALTER_TABLE | SET_OPTION)
        }
        _ => true,
    }
}

/// The server's description of this thread: null outside of statements, `None` where the program
/// does not say.
fn current_thread() -> Option<*mut c_void> {
    static FUNCTION: OnceLock<Option<CurrentThd>> = OnceLock::new();
    let function = FUNCTION.get_or_init(|| {
        // SAFETY: as above: the server's own function, without arguments; null becomes None.
        unsafe { core::mem::transmute::<*mut c_void, Option<CurrentThd>>(find(c"_current_thd")) }
    });
    // SAFETY: the function reads a thread-local of the server and nothing else.
    function.map(|function| unsafe { function() })
}

/// Tells whether this is mariadb-backup and not a server: it must read keys and never make any.
pub fn is_backup_program() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| !find(c"xtrabackup_backup").is_null())
}
