//! The declarations that the server looks up in the library.

#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::ptr::null_mut;

use super::{crypt, keys, lifecycle, status_variables, storage, system_variables};
use crate::abi::{
    CheckFunction, ENCRYPTION_INTERFACE_VERSION, ENCRYPTION_PLUGIN, EncryptionPlugin, EnumVariable,
    IntVariable, LICENSE_BSD, MATURITY_STABLE, PLUGIN_INTERFACE_VERSION, PluginDeclaration,
    SHOW_FUNC, SHOW_SIMPLE_FUNC, ServerOwned, StatusFunction, StatusVariable, StringVariable,
    SystemVariable, TypeLibrary, UnsignedVariable, UpdateFunction, VARIABLE_ENUM, VARIABLE_INT,
    VARIABLE_READ_ONLY, VARIABLE_STRING, VARIABLE_UNSIGNED, VariableHeader,
};
use crate::settings::{ALGORITHM_NAMES, DIGEST_NAMES, KEY_SPECS, LOG_LEVELS};
use crate::status::{OF_KEYS, VARIABLES};

const VERSION_INFO: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    };

const DEFAULT_SOCKET: &CStr = c"/run/iam-kms-wrapper/broker.sock";

const fn header(
    flags: c_int,
    name: &'static CStr,
    comment: &'static CStr,
    check: Option<CheckFunction>,
    update: Option<UpdateFunction>,
) -> VariableHeader {
    VariableHeader {
        flags,
        name: name.as_ptr(),
        comment: comment.as_ptr(),
        check,
        update,
    }
}

static MASTER_KEY_ID: ServerOwned<StringVariable> = ServerOwned::new(StringVariable {
    header: header(
        VARIABLE_STRING,
        c"master_key_id",
        c"AWS KMS master key that encrypts new data keys: its id, ARN, alias (alias/...) or alias ARN. If empty, no new data keys can be made",
        None,
        Some(system_variables::update_master_key_id),
    ),
    storage: storage::MASTER_KEY_ID.address(),
    default: c"".as_ptr(),
});

const fn read_only_string(
    name: &'static CStr,
    comment: &'static CStr,
    storage: &'static ServerOwned<*mut c_char>,
    default: &'static CStr,
) -> StringVariable {
    StringVariable {
        header: header(
            VARIABLE_STRING | VARIABLE_READ_ONLY,
            name,
            comment,
            None,
            None,
        ),
        storage: storage.address(),
        default: default.as_ptr(),
    }
}

static REGION: ServerOwned<StringVariable> = ServerOwned::new(read_only_string(
    c"region",
    c"Has no effect: the broker uses region in its configuration. The plugin warns at start if the two differ",
    &storage::REGION,
    c"",
));
static ENDPOINT_URL: ServerOwned<StringVariable> = ServerOwned::new(read_only_string(
    c"endpoint_url",
    c"Has no effect: the broker uses AWS_ENDPOINT_URL_KMS in its environment. The plugin warns at start if the two differ",
    &storage::ENDPOINT_URL,
    c"",
));
static KEYFILE_DIR: ServerOwned<StringVariable> = ServerOwned::new(read_only_string(
    c"keyfile_dir",
    c"Directory of the key files. If empty, the data directory",
    &storage::KEYFILE_DIR,
    c"",
));
static BROKER_SOCKET: ServerOwned<StringVariable> = ServerOwned::new(read_only_string(
    c"broker_socket",
    c"Unix socket of iam-kms-broker, which calls KMS for the plugin",
    &storage::BROKER_SOCKET,
    DEFAULT_SOCKET,
));
static OFFLINE_KEYS: ServerOwned<StringVariable> = ServerOwned::new(read_only_string(
    c"offline_keys",
    c"File with data keys in the format of file_key_management, as kms-data-keys exports them. The plugin serves them without broker and KMS and makes none. If empty, the plugin uses key files and KMS",
    &storage::OFFLINE_KEYS,
    c"",
));
static OFFLINE_FILEKEY: ServerOwned<StringVariable> = ServerOwned::new(read_only_string(
    c"offline_filekey",
    c"FILE: followed by the path of the file with the password for aws_key_management_offline_keys. If empty, that file is not encrypted",
    &storage::OFFLINE_FILEKEY,
    c"",
));

static DIGEST_POINTERS: ServerOwned<[*const c_char; 6]> = ServerOwned::new(names(DIGEST_NAMES));
static DIGEST_TYPE: ServerOwned<TypeLibrary> =
    ServerOwned::new(type_library(5, DIGEST_POINTERS.address().cast()));
static OFFLINE_DIGEST: ServerOwned<EnumVariable> = ServerOwned::new(EnumVariable {
    header: header(
        VARIABLE_ENUM | VARIABLE_READ_ONLY,
        c"offline_digest",
        c"Digest for decrypting aws_key_management_offline_keys, like file_key_management_digest: the -md of openssl enc",
        None,
        None,
    ),
    storage: storage::OFFLINE_DIGEST.address(),
    default: 0,
    names: DIGEST_TYPE.address(),
});
static OFFLINE_USE_PBKDF2: ServerOwned<UnsignedVariable> = ServerOwned::new(UnsignedVariable {
    header: header(
        VARIABLE_INT | VARIABLE_UNSIGNED | VARIABLE_READ_ONLY,
        c"offline_use_pbkdf2",
        c"Number of PBKDF2 iterations for decrypting aws_key_management_offline_keys, like file_key_management_use_pbkdf2: the -iter of openssl enc. 0 means no PBKDF2",
        None,
        None,
    ),
    storage: storage::OFFLINE_USE_PBKDF2.address(),
    default: 0,
    minimum: 0,
    maximum: c_uint::MAX,
    block_size: 0,
});

/// Returns pointers to `N` names for a `TYPELIB`, followed by null.
const fn names<const N: usize, const END: usize>(
    names: [&'static CStr; N],
) -> [*const c_char; END] {
    let mut pointers = [core::ptr::null(); END];
    let mut index = 0;
    while index < N {
        pointers[index] = names[index].as_ptr();
        index += 1;
    }
    pointers
}

const fn type_library(count: usize, names: *mut *const c_char) -> TypeLibrary {
    TypeLibrary {
        count: count as _,
        name: c"".as_ptr(),
        type_names: names,
        type_lengths: null_mut(),
        hidden_values: null_mut(),
    }
}

static KEY_SPEC_NAMES: ServerOwned<[*const c_char; 3]> = ServerOwned::new(names(KEY_SPECS));
static KEY_SPEC_TYPE: ServerOwned<TypeLibrary> =
    ServerOwned::new(type_library(2, KEY_SPEC_NAMES.address().cast()));
static KEY_SPEC: ServerOwned<EnumVariable> = ServerOwned::new(EnumVariable {
    header: header(
        VARIABLE_ENUM,
        c"key_spec",
        c"Length of new data keys: AES_128 or AES_256",
        None,
        Some(system_variables::update_key_spec),
    ),
    storage: storage::KEY_SPEC.address(),
    default: 0,
    names: KEY_SPEC_TYPE.address(),
});

static ALGORITHM_POINTERS: ServerOwned<[*const c_char; 3]> =
    ServerOwned::new(names(ALGORITHM_NAMES));
static ALGORITHM_TYPE: ServerOwned<TypeLibrary> =
    ServerOwned::new(type_library(2, ALGORITHM_POINTERS.address().cast()));
static ENCRYPTION_ALGORITHM: ServerOwned<EnumVariable> = ServerOwned::new(EnumVariable {
    header: header(
        VARIABLE_ENUM,
        c"encryption_algorithm",
        c"Algorithm of new key versions: AES_CBC, as in MariaDB's own aws_key_management, or AES_CTR, which is faster. Existing versions keep their algorithm",
        None,
        Some(system_variables::update_encryption_algorithm),
    ),
    storage: storage::ENCRYPTION_ALGORITHM.address(),
    default: 0,
    names: ALGORITHM_TYPE.address(),
});

static LOG_LEVEL_NAMES: ServerOwned<[*const c_char; 8]> = ServerOwned::new(names(LOG_LEVELS));
static LOG_LEVEL_TYPE: ServerOwned<TypeLibrary> =
    ServerOwned::new(type_library(7, LOG_LEVEL_NAMES.address().cast()));
static LOG_LEVEL: ServerOwned<EnumVariable> = ServerOwned::new(EnumVariable {
    header: header(
        VARIABLE_ENUM,
        c"log_level",
        c"How much of the KMS traffic goes to the error log: Off, Fatal, Error, Warn, Info, Debug or Trace. The plugin's own errors always go there",
        None,
        Some(system_variables::update_log_level),
    ),
    storage: storage::LOG_LEVEL.address(),
    default: 0,
    names: LOG_LEVEL_TYPE.address(),
});

static REQUEST_TIMEOUT: ServerOwned<IntVariable> = ServerOwned::new(IntVariable {
    header: header(
        VARIABLE_INT | VARIABLE_READ_ONLY,
        c"request_timeout",
        c"Has no effect: the broker uses request_timeout_seconds in its configuration. The plugin warns at start if the two differ",
        None,
        None,
    ),
    storage: storage::REQUEST_TIMEOUT.address(),
    default: 0,
    minimum: 0,
    maximum: c_int::MAX,
    block_size: 1,
});

static ROTATE_KEY: ServerOwned<IntVariable> = ServerOwned::new(IntVariable {
    header: header(
        VARIABLE_INT,
        c"rotate_key",
        c"SET GLOBAL this to a key id to make a new version of that key, or to -1 to make one of every key",
        Some(system_variables::check_rotate_key),
        Some(system_variables::update_rotate_key),
    ),
    storage: storage::ROTATE_KEY.address(),
    default: 0,
    minimum: -1,
    maximum: c_int::MAX,
    block_size: 1,
});

#[cfg(feature = "mock")]
static MOCK: ServerOwned<crate::abi::BoolVariable> = ServerOwned::new(crate::abi::BoolVariable {
    header: header(
        crate::abi::VARIABLE_BOOL
            | crate::abi::VARIABLE_OPTIONAL_ARGUMENT
            | VARIABLE_READ_ONLY,
        c"mock",
        c"For tests only: the plugin uses neither broker nor AWS KMS, and the key files contain the data keys in plain text",
        None,
        None,
    ),
    storage: storage::MOCK.address(),
    default: 0,
});

const VARIABLE_COUNT: usize = 14 + cfg!(feature = "mock") as usize;

static SYSTEM_VARIABLES: ServerOwned<[*mut SystemVariable; VARIABLE_COUNT + 1]> =
    ServerOwned::new([
        MASTER_KEY_ID.address().cast(),
        KEY_SPEC.address().cast(),
        LOG_LEVEL.address().cast(),
        ROTATE_KEY.address().cast(),
        REQUEST_TIMEOUT.address().cast(),
        REGION.address().cast(),
        ENDPOINT_URL.address().cast(),
        KEYFILE_DIR.address().cast(),
        BROKER_SOCKET.address().cast(),
        OFFLINE_KEYS.address().cast(),
        OFFLINE_FILEKEY.address().cast(),
        OFFLINE_DIGEST.address().cast(),
        OFFLINE_USE_PBKDF2.address().cast(),
        ENCRYPTION_ALGORITHM.address().cast(),
        #[cfg(feature = "mock")]
        MOCK.address().cast(),
        null_mut(),
    ]);

/// One entry for each variable, one for those of single keys, and the end.
const STATUS_COUNT: usize = VARIABLES.len() + 2;

static STATUS_VARIABLES: ServerOwned<[StatusVariable; STATUS_COUNT]> =
    ServerOwned::new(status_variables());

const fn status_variables() -> [StatusVariable; STATUS_COUNT] {
    let mut variables = [StatusVariable::END; STATUS_COUNT];
    let mut index = 0;
    while index < VARIABLES.len() {
        let (name, _) = VARIABLES[index];
        variables[index] = StatusVariable {
            name: name.as_ptr(),
            value: status_variables::FUNCTIONS[index] as *mut c_void,
            kind: SHOW_SIMPLE_FUNC,
        };
        index += 1;
    }
    let show_keys: StatusFunction = status_variables::show_keys;
    variables[index] = StatusVariable {
        name: OF_KEYS.as_ptr(),
        value: show_keys as *mut c_void,
        kind: SHOW_FUNC,
    };
    variables
}

static ENCRYPTION: ServerOwned<EncryptionPlugin> = ServerOwned::new(EncryptionPlugin {
    interface_version: ENCRYPTION_INTERFACE_VERSION,
    get_latest_key_version: keys::get_latest_key_version,
    get_key: keys::get_key,
    crypt_ctx_size: crypt::crypt_ctx_size,
    crypt_ctx_init: crypt::crypt_ctx_init,
    crypt_ctx_update: crypt::crypt_ctx_update,
    crypt_ctx_finish: crypt::crypt_ctx_finish,
    encrypted_length: crypt::encrypted_length,
});

/// Version of the plugin interface that this library implements.
// SAFETY: the server reserves this name for plugins, and looks it up in this library only.
#[unsafe(no_mangle)]
pub static _maria_plugin_interface_version_: ServerOwned<c_int> =
    ServerOwned::new(PLUGIN_INTERFACE_VERSION);

/// Size of an entry of [`_maria_plugin_declarations_`].
// SAFETY: the server reserves this name for plugins, and looks it up in this library only.
#[unsafe(no_mangle)]
pub static _maria_sizeof_struct_st_plugin_: ServerOwned<c_int> =
    ServerOwned::new(size_of::<PluginDeclaration>() as c_int);

/// The plugins in this library; the last entry is empty.
// SAFETY: the server reserves this name for plugins, and looks it up in this library only.
#[unsafe(no_mangle)]
pub static _maria_plugin_declarations_: ServerOwned<[PluginDeclaration; 2]> = ServerOwned::new([
    PluginDeclaration {
        kind: ENCRYPTION_PLUGIN,
        info: ENCRYPTION.address().cast(),
        name: c"aws_key_management".as_ptr(),
        author: c"The iam-kms-wrapper project".as_ptr(),
        description: c"Data-at-rest encryption with data keys wrapped by AWS KMS".as_ptr(),
        license: LICENSE_BSD,
        init: Some(lifecycle::init),
        deinit: Some(lifecycle::deinit),
        version: 0x0001,
        status_variables: STATUS_VARIABLES.address().cast(),
        system_variables: SYSTEM_VARIABLES.address().cast(),
        version_info: VERSION_INFO.as_ptr(),
        maturity: MATURITY_STABLE,
    },
    PluginDeclaration::END,
]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_socket_matches_the_broker_api() {
        assert_eq!(DEFAULT_SOCKET.to_str(), Ok(broker_api::DEFAULT_SOCKET));
    }

    #[test]
    fn the_version_matches_the_package() {
        assert_eq!(VERSION_INFO.to_str(), Ok(env!("CARGO_PKG_VERSION")));
    }
}
