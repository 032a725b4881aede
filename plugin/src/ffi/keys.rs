//! Serves data keys to the server.

use core::ffi::{c_uchar, c_uint};

use super::guard;
use crate::abi::{KEY_BUFFER_TOO_SMALL, KEY_VERSION_INVALID};
use crate::keys::keyring::DataKey;
use crate::plugin;
use crate::server::log;

/// `get_latest_key_version`.
pub extern "C" fn get_latest_key_version(key_id: c_uint) -> c_uint {
    guard(KEY_VERSION_INVALID, || {
        let Some(manager) = plugin::manager() else {
            return KEY_VERSION_INVALID;
        };
        if manager.is_dispensable(key_id) {
            return KEY_VERSION_INVALID;
        }
        match manager.latest_version(key_id) {
            Ok(version) => version,
            Err(reason) => {
                log::client_error(&reason);
                KEY_VERSION_INVALID
            }
        }
    })
}

/// `get_key`.
///
/// # Safety
/// `key_length` is null or writable. Unless `key` is null, `key_length` is also readable and says how many bytes
/// may be written to `key`.
pub unsafe extern "C" fn get_key(
    key_id: c_uint,
    version: c_uint,
    key: *mut c_uchar,
    key_length: *mut c_uint,
) -> c_uint {
    guard(KEY_VERSION_INVALID, || {
        let Some(manager) = plugin::manager() else {
            return KEY_VERSION_INVALID;
        };
        match manager.key(key_id, version) {
            // SAFETY: `get_key` demands the same of both pointers.
            Ok(data_key) => unsafe { give(data_key, key, key_length) },
            Err(reason) => {
                log::client_error(&reason);
                KEY_VERSION_INVALID
            }
        }
    })
}

/// Copies the key, or reports its length.
///
/// # Safety
/// As for [`get_key`].
unsafe fn give(data_key: &DataKey, key: *mut c_uchar, key_length: *mut c_uint) -> c_uint {
    let length_bytes = data_key.key.length_bytes();
    if key_length.is_null() {
        return KEY_BUFFER_TOO_SMALL;
    }
    let room = (!key.is_null()).then(|| {
        // SAFETY: not null, and readable because `key` is not null.
        unsafe { key_length.read() as usize }
    });
    // SAFETY: not null, and the server reserves it for the length.
    unsafe { key_length.write(length_bytes as c_uint) };
    match room {
        None => 0,
        Some(room) if room < length_bytes => KEY_BUFFER_TOO_SMALL,
        Some(_) => {
            // SAFETY: not null, long enough for the key, and used by nobody else during the call. The memory
            // may be uninitialised, but it is only written to, and any byte is a valid u8.
            let buffer = unsafe { core::slice::from_raw_parts_mut(key, length_bytes) };
            if data_key.key.copy_to(buffer) {
                0
            } else {
                KEY_VERSION_INVALID
            }
        }
    }
}
