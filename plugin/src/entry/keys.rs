//! Keys for the server.

use core::ffi::{c_uchar, c_uint};

use super::guard;
use crate::abi::{KEY_BUFFER_TOO_SMALL, KEY_VERSION_INVALID};
use crate::keyring::DataKey;
use crate::{plugin, server_log};

/// `get_latest_key_version`.
pub extern "C" fn get_latest_key_version(key_id: c_uint) -> c_uint {
    guard(KEY_VERSION_INVALID, || {
        let manager = plugin::manager();
        let Some(manager) = manager.as_deref() else {
            return KEY_VERSION_INVALID;
        };
        match manager.latest_version(key_id) {
            Ok(version) => version,
            Err(reason) => {
                server_log::client_error(&reason);
                KEY_VERSION_INVALID
            }
        }
    })
}

/// `get_key`.
///
/// # Safety
/// `key_length` is writable; unless `key` is null it is readable too and tells how many bytes may
/// be written to `key`.
pub unsafe extern "C" fn get_key(
    key_id: c_uint,
    version: c_uint,
    key: *mut c_uchar,
    key_length: *mut c_uint,
) -> c_uint {
    guard(KEY_VERSION_INVALID, || {
        let manager = plugin::manager();
        let Some(manager) = manager.as_deref() else {
            return KEY_VERSION_INVALID;
        };
        let data_key = match manager.keyring.key(key_id, version) {
            Some(data_key) => Some(data_key),
            None => match manager.ensure_loaded(key_id, version) {
                Ok(()) => manager.keyring.key(key_id, version),
                Err(_logged) => None,
            },
        };
        match data_key {
            // SAFETY: the caller's promise.
            Some(data_key) => unsafe { give(data_key, key, key_length) },
            None => KEY_VERSION_INVALID,
        }
    })
}

/// Copies the key, or tells its length.
///
/// # Safety
/// As for [`get_key`].
unsafe fn give(data_key: &DataKey, key: *mut c_uchar, key_length: *mut c_uint) -> c_uint {
    let bytes = data_key.expose();
    if key_length.is_null() {
        return KEY_BUFFER_TOO_SMALL;
    }
    let room = (!key.is_null()).then(|| {
        // SAFETY: not null, and with a buffer it tells the buffer's size.
        unsafe { key_length.read() as usize }
    });
    // SAFETY: not null.
    unsafe { key_length.write(bytes.len() as c_uint) };
    match room {
        None => 0,
        Some(room) if room < bytes.len() => KEY_BUFFER_TOO_SMALL,
        Some(_) => {
            // SAFETY: not null, with room for the key, which lies in memory of our own.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), key, bytes.len()) };
            0
        }
    }
}
