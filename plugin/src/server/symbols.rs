//! Functions of the server that are looked up at run time.
//!
//! Service structures are not linked against: their versions differ between servers, and a server
//! refuses a plugin that wants another one.

#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::libc::{RTLD_DEFAULT, dlsym};
use nix::unistd::{getpid, gettid};

use crate::abi::{
    EnumVariable, IntVariable, PluginDeclaration, SystemVariable, VARIABLE_ENUM, VARIABLE_INT,
    VARIABLE_TYPE_MASK, VARIABLE_UNSIGNED, VariableHeader,
};

/// `ER_UNKNOWN_ERROR` of `mysqld_error.h`.
const ER_UNKNOWN_ERROR: c_uint = 1105;

/// `my_printf_error` of `my_sys.h`.
type PrintfError = unsafe extern "C" fn(c_uint, *const c_char, c_ulong, ...);
/// `_current_thd` of the server's `sql_class.h`.
type CurrentThd = unsafe extern "C" fn() -> *mut c_void;

/// `thd_killed` of `plugin.h`.
type ThreadQuestion = unsafe extern "C" fn(*const c_void) -> c_int;

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

/// Whether this thread's statement was killed, or its server is shutting down. False where the thread
/// serves no statement, or the program does not say.
pub fn statement_is_killed() -> bool {
    static FUNCTION: OnceLock<Option<ThreadQuestion>> = OnceLock::new();
    let function = FUNCTION.get_or_init(|| {
        // SAFETY: the server's own function, with the signature of plugin.h; null becomes None.
        unsafe { core::mem::transmute::<*mut c_void, Option<ThreadQuestion>>(find(c"thd_killed")) }
    });
    match (function, current_thread()) {
        (Some(function), Some(thread)) if !thread.is_null() => {
            // SAFETY: not null, and the server's own description of this thread.
            unsafe { function(thread) != 0 }
        }
        _ => false,
    }
}

/// Whether this is the thread that starts the server. It serves no statement.
pub fn is_main_thread() -> bool {
    gettid() == getpid()
}

/// Whether the server is a node of a Galera cluster. False where the program does not say.
pub fn is_cluster_node() -> bool {
    let variable: *const *const c_char = find(c"wsrep_provider").cast_const().cast();
    // SAFETY: what a MariaDB program calls by this name is a `const char *`, set from the options before
    // any plugin is loaded: null, or NUL-terminated.
    let provider = unsafe { text_of(variable) };
    provider.is_some_and(|provider| !provider.is_empty() && provider != c"none")
}

/// # Safety
/// `variable` is null, or points to a string that is null or NUL-terminated, and is not changed meanwhile.
unsafe fn text_of<'a>(variable: *const *const c_char) -> Option<&'a CStr> {
    // SAFETY: as the caller says.
    unsafe {
        let text = *variable.as_ref()?;
        (!text.is_null()).then(|| CStr::from_ptr(text))
    }
}

/// Tells whether the server has yet to say that it is ready for connections. False where the program
/// does not say.
pub fn server_is_starting() -> bool {
    let started = find(c"mysqld_server_started").cast::<u8>();
    // SAFETY: what a MariaDB server calls by this name is a `bool` that lives as long as it does.
    !started.is_null() && unsafe { started.read_volatile() } == 0
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

/// The present value of a global variable of InnoDB, unsigned or the index of an enumeration, by its
/// full name: the server has put the plugin's in front when it started. `None` where InnoDB is not
/// part of the program, or has no such variable.
pub fn innodb_variable(name: &CStr) -> Option<u64> {
    [c"mysql_mandatory_plugins", c"mysql_optional_plugins"]
        .into_iter()
        .find_map(|list| {
            // SAFETY: what a MariaDB server calls by these names are arrays, ended by null, of
            // pointers to what `MARIA_DECLARE_PLUGIN` of plugin.h declares. They are never freed.
            unsafe { read_variable(find(list).cast(), c"InnoDB", name) }
        })
}

/// # Safety
/// `list` is null, or a list of declarations as [`innodb_variable`] says.
unsafe fn read_variable(
    list: *const *const PluginDeclaration,
    plugin: &CStr,
    name: &CStr,
) -> Option<u64> {
    // SAFETY: as the caller says: each list ends with null, or with an entry without `info`.
    unsafe {
        let mut libraries = list;
        while !libraries.is_null() && !(*libraries).is_null() {
            let mut declaration = *libraries;
            while !(*declaration).info.is_null() {
                if is_named((*declaration).name, plugin) {
                    return read_variable_of((*declaration).system_variables, name);
                }
                declaration = declaration.add(1);
            }
            libraries = libraries.add(1);
        }
    }
    None
}

/// # Safety
/// `variables` is null, or a list of variables, ended by null.
unsafe fn read_variable_of(variables: *const *mut SystemVariable, name: &CStr) -> Option<u64> {
    const UNSIGNED: c_int = VARIABLE_INT | VARIABLE_UNSIGNED;
    let mut variables = variables;
    // SAFETY: each variable begins with its header, whose flags tell the type of the rest. The
    // value is the server's, which changes it as a whole while others read it.
    unsafe {
        while !variables.is_null() && !(*variables).is_null() {
            let variable = *variables;
            let header = variable.cast::<VariableHeader>();
            if is_named((*header).name, name) {
                return match (*header).flags & VARIABLE_TYPE_MASK {
                    UNSIGNED => {
                        let storage = (*variable.cast::<IntVariable>()).storage;
                        Some(storage.cast::<c_uint>().read_volatile().into())
                    }
                    VARIABLE_ENUM => {
                        let storage = (*variable.cast::<EnumVariable>()).storage;
                        Some(storage.read_volatile())
                    }
                    _ => None,
                };
            }
            variables = variables.add(1);
        }
    }
    None
}

/// # Safety
/// `text` is null or NUL-terminated.
unsafe fn is_named(text: *const c_char, name: &CStr) -> bool {
    // SAFETY: not null, and the caller says that it ends.
    !text.is_null() && unsafe { CStr::from_ptr(text) } == name
}

/// Tells whether this is mariadb-backup and not a server: it must read keys and never make any.
pub fn is_backup_program() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| !find(c"xtrabackup_backup").is_null())
}

/// The `--incremental-dir` of mariadb-backup: the increment that it is about to apply to a backup.
pub fn incremental_directory() -> Option<PathBuf> {
    let variable: *const *const c_char = find(c"xtrabackup_incremental_dir").cast_const().cast();
    // SAFETY: what mariadb-backup calls by this name is a `char *`, which it has set before it loads
    // plugins and does not change: null, or NUL-terminated.
    let path = unsafe { text_of(variable) };
    path.filter(|path| !path.is_empty())
        .map(|path| OsStr::from_bytes(path.to_bytes()).into())
}
