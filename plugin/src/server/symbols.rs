//! Functions and variables of the server, looked up at run time.
//!
//! The plugin does not link against service structures: their versions differ between servers, and a server refuses
//! a plugin that demands another version.

#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use data_files::log_lists::LogList;
use nix::libc::{RTLD_DEFAULT, dlsym};
use nix::unistd::{getpid, gettid};

/// `ER_UNKNOWN_ERROR` of `mysqld_error.h`.
const ER_UNKNOWN_ERROR: c_uint = 1105;

/// `my_printf_error` of `my_sys.h`.
type PrintfError = unsafe extern "C" fn(c_uint, *const c_char, c_ulong, ...);
/// `_current_thd` of the server's `sql_class.h`.
type CurrentThd = unsafe extern "C" fn() -> *mut c_void;

/// `thd_killed` of `plugin.h`.
type ThreadQuestion = unsafe extern "C" fn(*const c_void) -> c_int;
/// `thd_alloc` of `mysql/service_thd_alloc.h`.
type ThreadAlloc = unsafe extern "C" fn(*const c_void, usize) -> *mut c_void;

/// Returns the address of a symbol of the running program; null if there is none.
fn find(name: &CStr) -> *mut c_void {
    // SAFETY: the name is NUL-terminated, and the look-up runs none of the program's code.
    unsafe { dlsym(RTLD_DEFAULT, name.as_ptr()) }
}

/// What the plugin looks up in every server, and what it does without.
const LOOKED_UP: [(&CStr, &str); 8] = [
    (c"my_printf_error", "messages go to standard error only"),
    (c"_current_thd", "errors go to the error log only"),
    (
        c"thd_killed",
        "KILL does not end a statement that waits for KMS",
    ),
    (c"thd_alloc", "there are no status variables of single keys"),
    (
        c"mysqld_server_started",
        "the plugin does not wait for a session while the server starts",
    ),
    (
        c"opt_bin_logname",
        "binary logs outside the data directory do not prove that key 1 is lost",
    ),
    (
        c"opt_relay_logname",
        "relay logs outside the data directory do not prove that key 1 is lost",
    ),
    (
        c"wsrep_provider",
        "a node of a Galera cluster is not recognised",
    ),
];

/// Returns a message for each symbol that this program, a server, does not export.
pub fn missing_symbols() -> impl Iterator<Item = String> {
    let missing = LOOKED_UP.iter().filter(|(name, _)| find(name).is_null());
    missing.map(|(name, consequence)| {
        format!(
            "this server does not export '{}': {consequence}. This version of MariaDB is not known to this plugin; \
             please report it",
            name.to_string_lossy()
        )
    })
}

/// Passes `text` to the server with the `ME_…` flags of `my_sys.h`: for the client or the error log. Returns false
/// if the program has no such function, like a unit test, or does not show the text, like mariadb-backup.
pub fn print(text: &CStr, flags: c_ulong) -> bool {
    if is_backup_program() {
        return false;
    }
    static FUNCTION: OnceLock<Option<PrintfError>> = OnceLock::new();
    let function = FUNCTION.get_or_init(|| {
        // SAFETY: a program with this symbol is a MariaDB program, where it has had this signature since 5.5.
        // Null becomes None.
        unsafe {
            core::mem::transmute::<*mut c_void, Option<PrintfError>>(find(c"my_printf_error"))
        }
    });
    let Some(function) = function else {
        return false;
    };
    // SAFETY: the format takes one NUL-terminated string, which `text` is. The function copies it.
    unsafe { function(ER_UNKNOWN_ERROR, c"%s".as_ptr(), flags, text.as_ptr()) };
    true
}

/// Whether this thread serves a statement, whose client can get an error. True if the program does not say.
pub fn thread_has_client() -> bool {
    current_thread().is_none_or(|thread| !thread.is_null())
}

/// Whether this thread's statement was killed or the server is shutting down. False if the thread serves no
/// statement or the program does not say.
pub fn statement_is_killed() -> bool {
    static FUNCTION: OnceLock<Option<ThreadQuestion>> = OnceLock::new();
    let function = FUNCTION.get_or_init(|| {
        // SAFETY: the server's function of this name has the signature that plugin.h declares. Null becomes None.
        unsafe { core::mem::transmute::<*mut c_void, Option<ThreadQuestion>>(find(c"thd_killed")) }
    });
    match (function, current_thread()) {
        (Some(function), Some(thread)) if !thread.is_null() => {
            // SAFETY: the server's structure for this thread, which lives as long as the statement.
            unsafe { function(thread) != 0 }
        }
        _ => false,
    }
}

/// Allocates memory that lives as long as this thread's statement, aligned for any number or pointer. Null if there is no
/// memory, no statement, or the program does not say.
pub fn allocate_for_statement(bytes: usize) -> *mut c_void {
    static FUNCTION: OnceLock<Option<ThreadAlloc>> = OnceLock::new();
    let function = FUNCTION.get_or_init(|| {
        // SAFETY: the server's function of this name has the signature that the header declares. Null becomes None.
        unsafe { core::mem::transmute::<*mut c_void, Option<ThreadAlloc>>(find(c"thd_alloc")) }
    });
    match (function, current_thread()) {
        (Some(function), Some(thread)) if !thread.is_null() => {
            // SAFETY: the server's structure for this thread, which allocates for it alone.
            unsafe { function(thread, bytes) }
        }
        _ => core::ptr::null_mut(),
    }
}

/// Whether this is the main thread, which starts the server and serves no statement.
pub fn is_main_thread() -> bool {
    gettid() == getpid()
}

/// Whether the server is a node of a Galera cluster. False if the program does not say.
pub fn is_cluster_node() -> bool {
    static VARIABLE: OnceLock<Option<&'static AtomicPtr<c_char>>> = OnceLock::new();
    let variable = VARIABLE.get_or_init(|| {
        // SAFETY: in a MariaDB program, this is a `const char *` that lives as long as the program. Null becomes None.
        unsafe { find(c"wsrep_provider").cast::<AtomicPtr<c_char>>().as_ref() }
    });
    let provider = variable.map(|variable| variable.load(Ordering::Relaxed).cast_const());
    // SAFETY: it is null or NUL-terminated, and set from the options before any plugin is loaded.
    let provider = provider.and_then(|provider| unsafe { text_of(&provider) });
    provider.is_some_and(|provider| !provider.is_empty() && provider != c"none")
}

/// Where the options place the lists of binary logs and relay logs. Empty if the program does not say.
pub fn log_lists() -> Vec<LogList> {
    // SAFETY: in a MariaDB program, this is a `char *` that is null or NUL-terminated. It is set from the options before
    // plugins are loaded, and what it points to lives as long as the program.
    let path = |name| unsafe { path_in(name) };
    let named = |variable| path(variable).map(|index| LogList::named(&index));
    // Also where another list is named: that option may be new, and the logs older.
    let beside = |variable| path(variable).map(|logs| LogList::beside(&logs));
    let master_info_file = path(c"master_info_file").unwrap_or_else(|| "master.info".into());
    let with_connections = |list: LogList| list.with_connections(&master_info_file);
    [
        named(c"opt_binlog_index_name"),
        beside(c"opt_bin_logname"),
        named(c"opt_relaylog_index_name").map(with_connections),
        beside(c"opt_relay_logname").map(with_connections),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns the path in a variable of the program; `None` if it is empty or there is no such variable.
///
/// # Safety
/// The variable is a string that is null or NUL-terminated and does not change during the call.
unsafe fn path_in(name: &CStr) -> Option<PathBuf> {
    // SAFETY: the caller vouches for the variable, and null means that there is none.
    let path = unsafe { text_of(find(name).cast_const().cast()) }?;
    (!path.is_empty()).then(|| OsStr::from_bytes(path.to_bytes()).into())
}

/// # Safety
/// `variable` is null, or points to a string that is null or NUL-terminated and does not change during `'a`.
unsafe fn text_of<'a>(variable: *const *const c_char) -> Option<&'a CStr> {
    // SAFETY: neither pointer is null where it is followed, and the caller vouches for the string.
    unsafe {
        let text = *variable.as_ref()?;
        (!text.is_null()).then(|| CStr::from_ptr(text))
    }
}

/// Whether the server is starting and not yet ready for connections. False if the program does not say.
pub fn server_is_starting() -> bool {
    static STARTED: OnceLock<Option<&'static AtomicU8>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let started = find(c"mysqld_server_started").cast::<AtomicU8>();
        // SAFETY: in a MariaDB server, this is a `bool` that lives as long as the program, and null becomes None. It
        // is only read, as one byte, while the server may write it.
        unsafe { started.as_ref() }
    });
    started.is_some_and(|started| started.load(Ordering::Relaxed) == 0)
}

/// Returns the server's structure for this thread: null outside statements, `None` if the program does not say.
fn current_thread() -> Option<*mut c_void> {
    static FUNCTION: OnceLock<Option<CurrentThd>> = OnceLock::new();
    let function = FUNCTION.get_or_init(|| {
        // SAFETY: the server's function of this name takes no arguments. Null becomes None.
        unsafe { core::mem::transmute::<*mut c_void, Option<CurrentThd>>(find(c"_current_thd")) }
    });
    // SAFETY: the function only reads a thread-local of the server.
    function.map(|function| unsafe { function() })
}

/// Whether this program is mariadb-backup, which must only read keys, and not a server.
pub fn is_backup_program() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| !find(c"xtrabackup_backup").is_null())
}

/// Returns the `--incremental-dir` of mariadb-backup: the increment that it is about to apply to a backup.
pub fn incremental_directory() -> Option<PathBuf> {
    // SAFETY: in mariadb-backup, this is a `char *` that is null or NUL-terminated. It is set before plugins are
    // loaded and does not change.
    unsafe { path_in(c"xtrabackup_incremental_dir") }
}
