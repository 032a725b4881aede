//! System variables: reads them at the start and applies SET GLOBAL.

use core::ffi::{CStr, c_char, c_int, c_longlong, c_ulong, c_void};
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::sync::Mutex;

use key_files::key_name::is_valid_number;
use offline_keys::derivation::Derivation;

use super::guard;
use super::storage;
use crate::abi::{SystemVariable, VALUE_TYPE_INT, Value};
use crate::keys::rotation::{self, Target, rotate};
use crate::lock::lock;
use crate::plugin;
use crate::server::log;
use crate::settings::{GLOBAL_SETTINGS, GlobalSettings, StartupSettings, digest};

/// Reads all variables, which the server sets before init.
///
/// # Safety
/// The server does not write to them during the call.
pub unsafe fn read_all() -> StartupSettings {
    // SAFETY: nobody writes to the storage during the call, and the server has put null or a C string into each
    // string, and an index of the names into each enumeration.
    unsafe {
        GLOBAL_SETTINGS.set_master_key_id(&text(storage::MASTER_KEY_ID.address().read()));
        GLOBAL_SETTINGS.set_key_spec(storage::KEY_SPEC.address().read() as usize);
        GLOBAL_SETTINGS.set_algorithm(storage::ENCRYPTION_ALGORITHM.address().read() as usize);
        GLOBAL_SETTINGS.set_log_level(storage::LOG_LEVEL.address().read() as usize);
        if storage::ROTATE_KEY.address().replace(0) != 0 {
            log::warning(
                "aws_key_management_rotate_key does nothing when the server starts; use SET GLOBAL while it runs",
            );
        }
        let socket = bytes(storage::BROKER_SOCKET.address().read());
        StartupSettings {
            region: text(storage::REGION.address().read()),
            endpoint_url: text(storage::ENDPOINT_URL.address().read()),
            request_timeout_milliseconds: storage::REQUEST_TIMEOUT
                .address()
                .read()
                .try_into()
                .unwrap_or(0),
            keyfile_dir: OsString::from_vec(bytes(storage::KEYFILE_DIR.address().read())).into(),
            // A server runs in its data directory, and mariadb-backup in the data directory or the backup.
            datadir: ".".into(),
            broker_socket: if socket.is_empty() {
                broker_api::DEFAULT_SOCKET.into()
            } else {
                OsString::from_vec(socket).into()
            },
            offline_keys: OsString::from_vec(bytes(storage::OFFLINE_KEYS.address().read())).into(),
            offline_filekey: OsString::from_vec(bytes(storage::OFFLINE_FILEKEY.address().read()))
                .into(),
            offline_derivation: Derivation {
                digest: digest(storage::OFFLINE_DIGEST.address().read() as usize),
                pbkdf2_iterations: storage::OFFLINE_USE_PBKDF2.address().read(),
            },
            #[cfg(feature = "mock")]
            mock: storage::MOCK.address().read() != 0,
        }
    }
}

/// # Safety
/// `string` is null or NUL-terminated.
unsafe fn bytes(string: *const c_char) -> Vec<u8> {
    if string.is_null() {
        return Vec::new();
    }
    // SAFETY: not null, and therefore NUL-terminated.
    unsafe { CStr::from_ptr(string) }.to_bytes().to_vec()
}

/// # Safety
/// `string` is null or NUL-terminated.
unsafe fn text(string: *const c_char) -> String {
    // SAFETY: `bytes` takes null or a NUL-terminated string, as this function does.
    String::from_utf8_lossy(&unsafe { bytes(string) }).into_owned()
}

/// `update` of `master_key_id`.
///
/// # Safety
/// The server calls it under its lock, with the variable's storage and the checked value: null or a C string
/// that lives as long as the statement.
pub unsafe extern "C" fn update_master_key_id(
    _thd: *mut c_void,
    _variable: *mut SystemVariable,
    storage: *mut c_void,
    save: *const c_void,
) {
    /// The string that the server's pointer points to. The server reads it under the lock that it holds during
    /// this call, so the previous string can be freed as soon as the pointer has changed.
    static SHOWN: Mutex<Option<CString>> = Mutex::new(None);

    guard((), || {
        // SAFETY: for a string variable, the server saves a pointer that is null or points to a C string.
        let value = unsafe { bytes(save.cast::<*const c_char>().read()) };
        GLOBAL_SETTINGS.set_master_key_id(&String::from_utf8_lossy(&value));
        let mut kept = lock(&SHOWN);
        // A C string contains no NUL, so this cannot fail.
        let shown = CString::new(value).unwrap_or_default();
        let before = kept.take();
        // The string on the heap no longer moves.
        let shown = kept.insert(shown).as_ptr();
        // SAFETY: the storage of a string variable is a pointer, and the server's lock keeps others away.
        unsafe { storage.cast::<*const c_char>().write(shown) };
        drop(before);
    });
}

/// `update` of an enumeration: stores the value for SHOW VARIABLES and passes it to `set`.
///
/// # Safety
/// The server calls it with the variable's storage and an index of its names.
unsafe fn update_enum(storage: *mut c_void, save: *const c_void, set: fn(&GlobalSettings, usize)) {
    guard((), || {
        // SAFETY: for an enumeration, the server saves an index as an unsigned long.
        let index = unsafe { save.cast::<c_ulong>().read() };
        // SAFETY: the storage of an enumeration is an unsigned long.
        unsafe { storage.cast::<c_ulong>().write(index) };
        set(&GLOBAL_SETTINGS, index as usize);
    });
}

macro_rules! enum_update {
    ($(#[$doc:meta])* $name:ident, $set:path) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As for [`update_enum`].
        pub unsafe extern "C" fn $name(
            _thd: *mut c_void,
            _variable: *mut SystemVariable,
            storage: *mut c_void,
            save: *const c_void,
        ) {
            // SAFETY: the server passes storage and value of this enumeration.
            unsafe { update_enum(storage, save, $set) };
        }
    };
}

enum_update!(
    /// `update` of `key_spec`.
    update_key_spec, GlobalSettings::set_key_spec
);
enum_update!(
    /// `update` of `encryption_algorithm`.
    update_encryption_algorithm, GlobalSettings::set_algorithm
);
enum_update!(
    /// `update` of `log_level`.
    update_log_level, GlobalSettings::set_log_level
);

/// `check` of `rotate_key`, which performs the rotation. The server calls `update` under
/// `LOCK_global_system_variables`, which every new connection needs, so a KMS call there would block them all.
/// The drawback: if a SET of several variables fails because of another variable, the rotation stays.
///
/// # Safety
/// The server passes room for the checked value in `save`, and the right side of the SET in `value`.
pub unsafe extern "C" fn check_rotate_key(
    _thd: *mut c_void,
    _variable: *mut SystemVariable,
    save: *mut c_void,
    value: *mut Value,
) -> c_int {
    guard(1, || {
        let mut number: c_longlong = 0;
        // SAFETY: the server passes its own structure, whose functions plugin.h declares so.
        let (refused, is_unsigned) = unsafe {
            let refused = ((*value).value_type)(value) != VALUE_TYPE_INT
                || ((*value).val_int)(value, &mut number) != 0;
            (refused, ((*value).is_unsigned)(value) != 0)
        };
        // ~0 is a large number that fills all bits, as -1 does.
        if refused || (is_unsigned && number < 0) {
            return 1;
        }
        let target = match number {
            -1 => Some(Target::All),
            0 => None,
            number => match u32::try_from(number) {
                // Key ids go beyond the range of the variable, which the server checks in option files only.
                Ok(id) if is_valid_number(id) => Some(Target::Id(id)),
                _ => return 1,
            },
        };
        // The variable always shows 0.
        // SAFETY: the server makes `save` large enough for a variable of any type.
        unsafe { save.cast::<c_int>().write(0) };
        if let Some(target) = target {
            rotate_and_report(target);
        }
        0
    })
}

/// `update` of `rotate_key`: the variable stays 0.
pub extern "C" fn update_rotate_key(
    _thd: *mut c_void,
    _variable: *mut SystemVariable,
    _storage: *mut c_void,
    _save: *const c_void,
) {
}

fn rotate_and_report(target: Target) {
    let Some(manager) = plugin::manager() else {
        return log::client_warning("no key was rotated: the plugin is not loaded");
    };
    match rotate(manager, target) {
        Err(error) => {
            log::error(&format!("no key was rotated: {error}"));
            log::client_warning(&format!("no key was rotated: {error}"));
        }
        Ok(rotated) => {
            let failed = rotated.failed.iter();
            let failed = failed.map(|(id, reason)| format!("key {id} was not rotated: {reason}"));
            for text in rotated.not_tried.into_iter().chain(failed) {
                log::error(&text);
                log::client_warning(&text);
            }
            // The note comes first: the statement keeps only max_error_count (by default 64) of them.
            if !rotated.made.is_empty() {
                log::client_note(rotation::NOTE);
            }
            for name in &rotated.made {
                log::client_note(&format!("key {} now has version {}", name.id, name.version));
            }
        }
    }
}
