//! Compares the declarations with the headers of the installed server (libmariadbd-dev), or with those in
//! `IAM_KMS_SERVER_HEADERS`, through a C program that prints the size of each structure and the offset of each field.

use core::mem::{offset_of, size_of};
use std::process::Command;

use super::*;

macro_rules! layout {
    ($c:literal, $rust:ty, $($c_field:literal = $field:ident),* $(,)?) => {{
        let mut lines = vec![format!("{} {}", $c, size_of::<$rust>())];
        $(lines.push(format!("{}.{} {}", $c, $c_field, offset_of!($rust, $field)));)*
        lines
    }};
}

fn rust_layouts() -> Vec<String> {
    [
        layout!(
            "struct st_mariadb_encryption",
            EncryptionPlugin,
            "interface_version" = interface_version,
            "get_latest_key_version" = get_latest_key_version,
            "get_key" = get_key,
            "crypt_ctx_size" = crypt_ctx_size,
            "crypt_ctx_init" = crypt_ctx_init,
            "crypt_ctx_update" = crypt_ctx_update,
            "crypt_ctx_finish" = crypt_ctx_finish,
            "encrypted_length" = encrypted_length
        ),
        layout!(
            "struct st_maria_plugin",
            PluginDeclaration,
            "type" = kind,
            "info" = info,
            "name" = name,
            "author" = author,
            "descr" = description,
            "license" = license,
            "init" = init,
            "deinit" = deinit,
            "version" = version,
            "status_vars" = status_variables,
            "system_vars" = system_variables,
            "version_info" = version_info,
            "maturity" = maturity
        ),
        layout!(
            "struct st_mysql_show_var",
            StatusVariable,
            "name" = name,
            "value" = value,
            "type" = kind
        ),
        layout!(
            "struct st_mysql_value",
            Value,
            "value_type" = value_type,
            "val_str" = val_str,
            "val_real" = val_real,
            "val_int" = val_int,
            "is_unsigned" = is_unsigned
        ),
        layout!(
            "STRING_VARIABLE",
            StringVariable,
            "value" = storage,
            "def_val" = default
        ),
        #[cfg(feature = "mock")]
        layout!(
            "BOOL_VARIABLE",
            BoolVariable,
            "value" = storage,
            "def_val" = default
        ),
        layout!(
            "INT_VARIABLE",
            IntVariable,
            "value" = storage,
            "def_val" = default,
            "min_val" = minimum,
            "max_val" = maximum,
            "blk_sz" = block_size
        ),
        layout!(
            "UINT_VARIABLE",
            UnsignedVariable,
            "value" = storage,
            "def_val" = default,
            "min_val" = minimum,
            "max_val" = maximum,
            "blk_sz" = block_size
        ),
        layout!(
            "ENUM_VARIABLE",
            EnumVariable,
            "value" = storage,
            "def_val" = default,
            "typelib" = names
        ),
        layout!(
            "ENUM_VARIABLE",
            VariableHeader,
            "flags" = flags,
            "name" = name,
            "comment" = comment,
            "check" = check,
            "update" = update
        )[1..]
            .to_vec(),
        layout!(
            "TYPELIB",
            TypeLibrary,
            "count" = count,
            "name" = name,
            "type_names" = type_names,
            "type_lengths" = type_lengths
        )[1..]
            .to_vec(),
    ]
    .concat()
}

fn constants() -> Vec<String> {
    [
        (
            "MariaDB_ENCRYPTION_INTERFACE_VERSION",
            ENCRYPTION_INTERFACE_VERSION,
        ),
        (
            "(int) ENCRYPTION_KEY_BUFFER_TOO_SMALL",
            KEY_BUFFER_TOO_SMALL as i32,
        ),
        (
            "(int) ENCRYPTION_KEY_VERSION_INVALID",
            KEY_VERSION_INVALID as i32,
        ),
        ("ENCRYPTION_FLAG_ENCRYPT", FLAG_ENCRYPT),
        ("ENCRYPTION_FLAG_NOPAD", FLAG_NOPAD),
        ("MY_AES_OK", AES_OK),
        ("MY_AES_BAD_DATA", AES_BAD_DATA),
        ("MY_AES_OPENSSL_ERROR", AES_ERROR),
        ("MY_AES_BAD_KEYSIZE", AES_BAD_KEYSIZE),
        ("MariaDB_ENCRYPTION_PLUGIN", ENCRYPTION_PLUGIN),
        (
            "MARIA_PLUGIN_INTERFACE_VERSION >> 8",
            PLUGIN_INTERFACE_VERSION >> 8,
        ),
        ("PLUGIN_LICENSE_BSD", LICENSE_BSD),
        ("MariaDB_PLUGIN_MATURITY_STABLE", MATURITY_STABLE as i32),
        ("SHOW_ULONGLONG", SHOW_ULONGLONG),
        ("SHOW_CHAR", SHOW_CHAR),
        ("SHOW_ARRAY", SHOW_ARRAY),
        ("SHOW_FUNC", SHOW_FUNC),
        ("SHOW_SIMPLE_FUNC", SHOW_SIMPLE_FUNC),
        #[cfg(feature = "mock")]
        ("PLUGIN_VAR_BOOL", VARIABLE_BOOL),
        ("PLUGIN_VAR_INT", VARIABLE_INT),
        ("PLUGIN_VAR_STR", VARIABLE_STRING),
        ("PLUGIN_VAR_ENUM", VARIABLE_ENUM),
        ("PLUGIN_VAR_UNSIGNED", VARIABLE_UNSIGNED),
        ("PLUGIN_VAR_READONLY", VARIABLE_READ_ONLY),
        #[cfg(feature = "mock")]
        ("PLUGIN_VAR_OPCMDARG", VARIABLE_OPTIONAL_ARGUMENT),
        ("MYSQL_VALUE_TYPE_INT", VALUE_TYPE_INT),
    ]
    .map(|(name, value)| format!("{name} {value}"))
    .to_vec()
}

/// Turns the lines that Rust expects into a program that prints the same lines for C.
fn c_program() -> String {
    let prints: String = rust_layouts()
        .iter()
        .chain(&constants())
        .map(|line| {
            let (name, _) = line.rsplit_once(' ').unwrap();
            let value = match name.rsplit_once('.') {
                Some((structure, field)) => format!("offsetof({structure}, {field})"),
                None if name.starts_with("struct ") || name.ends_with("_VARIABLE") => {
                    format!("sizeof({name})")
                }
                None => name.to_owned(),
            };
            format!("printf(\"%s %ld\\n\", \"{name}\", (long) ({value}));\n")
        })
        .collect();
    format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <my_global.h>\n#include <typelib.h>\n\
         #include <mysql/plugin_encryption.h>\n\
         typedef DECLARE_MYSQL_SYSVAR_BASIC(STRING_VARIABLE_, char *);\n\
         typedef __typeof__(mysql_sysvar_STRING_VARIABLE_) STRING_VARIABLE;\n\
         typedef DECLARE_MYSQL_SYSVAR_BASIC(BOOL_VARIABLE_, char);\n\
         typedef __typeof__(mysql_sysvar_BOOL_VARIABLE_) BOOL_VARIABLE;\n\
         typedef DECLARE_MYSQL_SYSVAR_SIMPLE(INT_VARIABLE_, int);\n\
         typedef __typeof__(mysql_sysvar_INT_VARIABLE_) INT_VARIABLE;\n\
         typedef DECLARE_MYSQL_SYSVAR_SIMPLE(UINT_VARIABLE_, unsigned int);\n\
         typedef __typeof__(mysql_sysvar_UINT_VARIABLE_) UINT_VARIABLE;\n\
         typedef DECLARE_MYSQL_SYSVAR_TYPELIB(ENUM_VARIABLE_, unsigned long);\n\
         typedef __typeof__(mysql_sysvar_ENUM_VARIABLE_) ENUM_VARIABLE;\n\
         int main(void) {{\n{prints}return 0; }}\n"
    )
    .replace("typedef DECLARE", "static DECLARE")
}

fn headers() -> String {
    std::env::var("IAM_KMS_SERVER_HEADERS").unwrap_or("/usr/include/mariadb/server".into())
}

#[test]
fn structures_and_constants_match_the_headers() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("layout.c");
    let program = directory.path().join("layout");
    std::fs::write(&source, c_program()).unwrap();
    let compiled = Command::new("cc")
        .args(["-w", &format!("-I{}", headers()), "-o"])
        .args([&program, &source])
        .output()
        .unwrap();
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let printed = Command::new(&program).output().unwrap();
    let expected = [rust_layouts(), constants()].concat().join("\n") + "\n";
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), expected);
}

#[test]
fn hidden_values_is_the_last_field_of_typelib() {
    assert_eq!(offset_of!(TypeLibrary, hidden_values), 32);
    assert_eq!(size_of::<TypeLibrary>(), 40);
}
