//! The plugin declaration and status variables of `plugin.h`.

use core::ffi::{c_char, c_int, c_uint, c_void};

use super::SystemVariable;

/// `MARIA_PLUGIN_INTERFACE_VERSION`. Servers check only its major half.
pub const PLUGIN_INTERFACE_VERSION: c_int = 0x010f;
/// `MariaDB_ENCRYPTION_PLUGIN`.
pub const ENCRYPTION_PLUGIN: c_int = 9;
/// `PLUGIN_LICENSE_BSD`: the header's closest match for MIT OR Apache-2.0.
pub const LICENSE_BSD: c_int = 2;
/// `MariaDB_PLUGIN_MATURITY_STABLE`, which even a server with `plugin_maturity=stable` accepts.
pub const MATURITY_STABLE: c_uint = 5;

/// `st_maria_plugin`.
#[repr(C)]
pub struct PluginDeclaration {
    /// [`ENCRYPTION_PLUGIN`].
    pub kind: c_int,
    /// The [`super::EncryptionPlugin`].
    pub info: *mut c_void,
    /// Name of the plugin.
    pub name: *const c_char,
    /// Shown in `INFORMATION_SCHEMA.PLUGINS`.
    pub author: *const c_char,
    /// Shown in `INFORMATION_SCHEMA.PLUGINS`.
    pub description: *const c_char,
    /// [`LICENSE_BSD`].
    pub license: c_int,
    /// Called on loading; non-zero refuses to load.
    pub init: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    /// Called on unloading.
    pub deinit: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    /// Major version in the upper byte, minor in the lower.
    pub version: c_uint,
    /// Status variables; the last entry has no name.
    pub status_variables: *mut StatusVariable,
    /// System variables; the last entry is null.
    pub system_variables: *mut *mut SystemVariable,
    /// Version as text.
    pub version_info: *const c_char,
    /// [`MATURITY_STABLE`].
    pub maturity: c_uint,
}

impl PluginDeclaration {
    /// The entry that ends the list of declarations.
    pub const END: Self = Self {
        kind: 0,
        info: core::ptr::null_mut(),
        name: core::ptr::null(),
        author: core::ptr::null(),
        description: core::ptr::null(),
        license: 0,
        init: None,
        deinit: None,
        version: 0,
        status_variables: core::ptr::null_mut(),
        system_variables: core::ptr::null_mut(),
        version_info: core::ptr::null(),
        maturity: 0,
    };
}

/// `SHOW_ULONGLONG` of `enum_mysql_show_type`.
pub const SHOW_ULONGLONG: c_int = 4;
/// `SHOW_CHAR`: the value points to the text itself.
pub const SHOW_CHAR: c_int = 5;
/// `SHOW_ARRAY`: the value points to more variables, the last of which has no name. Their names follow the name of the
/// array and `_`.
pub const SHOW_ARRAY: c_int = 7;
/// `SHOW_FUNC`: called for every query, because the result may be an array.
pub const SHOW_FUNC: c_int = 8;
/// `SHOW_SIMPLE_FUNC`: called only if the query asks for this variable.
pub const SHOW_SIMPLE_FUNC: c_int = 13;
/// Size of the buffer that a status function may fill: `SHOW_VAR_FUNC_BUFF_SIZE` of the oldest supported
/// server. Newer servers provide twice as much.
pub const SHOW_BUFFER_BYTES: usize = 1024;

/// `st_mysql_show_var`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct StatusVariable {
    /// Name as `SHOW STATUS` shows it.
    pub name: *const c_char,
    /// The value, or the [`StatusFunction`] that returns it.
    pub value: *mut c_void,
    /// `enum_mysql_show_type`.
    pub kind: c_int,
}

impl StatusVariable {
    /// The entry that ends a list of variables.
    pub const END: Self = Self {
        name: core::ptr::null(),
        value: core::ptr::null_mut(),
        kind: 0,
    };
}

/// `mysql_show_var_func`: fills in the variable, and writes its value into the buffer.
pub type StatusFunction = unsafe extern "C" fn(
    thd: *mut c_void,
    variable: *mut StatusVariable,
    buffer: *mut c_void,
    status: *mut c_void,
    scope: c_int,
) -> c_int;
