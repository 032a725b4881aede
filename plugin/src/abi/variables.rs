//! System variables of `plugin.h`, and `TYPELIB` of `typelib.h`.

use core::ffi::{c_char, c_double, c_int, c_longlong, c_uint, c_ulong, c_void};

/// `PLUGIN_VAR_BOOL`.
#[cfg(feature = "mock")]
pub const VARIABLE_BOOL: c_int = 0x0001;
/// `PLUGIN_VAR_INT`.
pub const VARIABLE_INT: c_int = 0x0002;
/// `PLUGIN_VAR_STR`.
pub const VARIABLE_STRING: c_int = 0x0005;
/// `PLUGIN_VAR_ENUM`.
pub const VARIABLE_ENUM: c_int = 0x0006;
/// `PLUGIN_VAR_UNSIGNED`.
pub const VARIABLE_UNSIGNED: c_int = 0x0080;
/// `PLUGIN_VAR_READONLY`.
pub const VARIABLE_READ_ONLY: c_int = 0x0200;
/// `PLUGIN_VAR_OPCMDARG`: the option's value may be left out.
#[cfg(feature = "mock")]
pub const VARIABLE_OPTIONAL_ARGUMENT: c_int = 0x2000;
/// `MYSQL_VALUE_TYPE_INT`.
pub const VALUE_TYPE_INT: c_int = 2;

/// `st_mysql_sys_var`: one of the structures below. The header says which.
pub enum SystemVariable {}

/// `mysql_var_check_func`: reads and checks the value of a SET, without the server's locks.
pub type CheckFunction = unsafe extern "C" fn(
    thd: *mut c_void,
    variable: *mut SystemVariable,
    save: *mut c_void,
    value: *mut Value,
) -> c_int;

/// `mysql_var_update_func`: applies the checked value, under
/// `LOCK_global_system_variables`.
pub type UpdateFunction = unsafe extern "C" fn(
    thd: *mut c_void,
    variable: *mut SystemVariable,
    storage: *mut c_void,
    save: *const c_void,
);

/// `MYSQL_PLUGIN_VAR_HEADER`.
#[repr(C)]
pub struct VariableHeader {
    /// Kind and options.
    pub flags: c_int,
    /// Name without the plugin's prefix.
    pub name: *const c_char,
    /// Text of `--help --verbose`.
    pub comment: *const c_char,
    /// Replaces the server's check of a SET.
    pub check: Option<CheckFunction>,
    /// Replaces the server's assignment.
    pub update: Option<UpdateFunction>,
}

/// `DECLARE_MYSQL_SYSVAR_BASIC` of `char *`.
#[repr(C)]
pub struct StringVariable {
    /// The common part.
    pub header: VariableHeader,
    /// Where the server keeps the value.
    pub storage: *mut *mut c_char,
    /// The default.
    pub default: *const c_char,
}

/// `DECLARE_MYSQL_SYSVAR_BASIC` of `char`, used as a boolean.
#[cfg(feature = "mock")]
#[repr(C)]
pub struct BoolVariable {
    /// The common part.
    pub header: VariableHeader,
    /// Where the server keeps the value, 0 or 1.
    pub storage: *mut c_char,
    /// The default.
    pub default: c_char,
}

/// `DECLARE_MYSQL_SYSVAR_SIMPLE` of `int`.
#[repr(C)]
pub struct IntVariable {
    /// The common part.
    pub header: VariableHeader,
    /// Where the server keeps the value.
    pub storage: *mut c_int,
    /// The default.
    pub default: c_int,
    /// The smallest value.
    pub minimum: c_int,
    /// The largest value.
    pub maximum: c_int,
    /// Values are multiples of this.
    pub block_size: c_int,
}

/// `DECLARE_MYSQL_SYSVAR_SIMPLE` of `unsigned int`.
#[repr(C)]
pub struct UnsignedVariable {
    /// The common part.
    pub header: VariableHeader,
    /// Where the server keeps the value.
    pub storage: *mut c_uint,
    /// The default.
    pub default: c_uint,
    /// The smallest value.
    pub minimum: c_uint,
    /// The largest value.
    pub maximum: c_uint,
    /// Values are multiples of this; 0 and 1 allow any value.
    pub block_size: c_uint,
}

/// `DECLARE_MYSQL_SYSVAR_TYPELIB` of `unsigned long`.
#[repr(C)]
pub struct EnumVariable {
    /// The common part.
    pub header: VariableHeader,
    /// Where the server keeps the value, an index of `names`.
    pub storage: *mut c_ulong,
    /// The default.
    pub default: c_ulong,
    /// The names.
    pub names: *mut TypeLibrary,
}

/// `TYPELIB`, with the field that 11.8 added: older servers do not read it.
#[repr(C)]
pub struct TypeLibrary {
    /// Number of names.
    pub count: c_uint,
    /// Name of the set, unused.
    pub name: *const c_char,
    /// The names, ended by null.
    pub type_names: *mut *const c_char,
    /// Their lengths, or null for NUL-terminated names.
    pub type_lengths: *mut c_uint,
    /// Names that are not shown; null for none.
    pub hidden_values: *mut c_uint,
}

/// `st_mysql_value`: the right side of a SET.
#[repr(C)]
pub struct Value {
    /// `MYSQL_VALUE_TYPE_…`.
    pub value_type: unsafe extern "C" fn(*mut Value) -> c_int,
    /// The value as text.
    pub val_str: unsafe extern "C" fn(*mut Value, *mut c_char, *mut c_int) -> *const c_char,
    /// The value as a floating-point number; returns non-zero for NULL.
    pub val_real: unsafe extern "C" fn(*mut Value, *mut c_double) -> c_int,
    /// The value as an integer; returns non-zero for NULL.
    pub val_int: unsafe extern "C" fn(*mut Value, *mut c_longlong) -> c_int,
    /// Whether the integer is unsigned.
    pub is_unsigned: unsafe extern "C" fn(*mut Value) -> c_int,
}
