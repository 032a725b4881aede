//! Keys for the server.

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
        match manager.keyring.latest_version(key_id) {
            Some(version) => return version,
            None if manager.is_dispensable(key_id) => return KEY_VERSION_INVALID,
            None => {}
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
/// `key_length` is writable; unless `key` is null it is readable too and tells how many bytes may
/// be written to `key`.
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
        let data_key = match manager.keyring.key(key_id, version) {
            Some(data_key) => Some(data_key),
            None => match manager.ensure_loaded(key_id, version) {
                Ok(()) => manager.keyring.key(key_id, version),
                Err(reason) => {
                    log::client_error(&reason);
                    None
                }
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
    let length_bytes = data_key.length_bytes();
    if key_length.is_null() {
        return KEY_BUFFER_TOO_SMALL;
    }
    let room = (!key.is_null()).then(|| {
        // SAFETY: not null, and with a buffer it tells the buffer's size.
        unsafe { key_length.read() as usize }
    });
    // SAFETY: not null.
    unsafe { key_length.write(length_bytes as c_uint) };
    match room {
        None => 0,
        Some(room) if room < length_bytes => KEY_BUFFER_TOO_SMALL,
        Some(_) => {
            // SAFETY: not null, with room for the key, and nobody else looks at it meanwhile. The memory may
            // be uninitialised; it is only written to, and any byte is a valid u8.
            let buffer = unsafe { core::slice::from_raw_parts_mut(key, length_bytes) };
            if data_key.copy_to(buffer) {
                0
            } else {
                KEY_VERSION_INVALID
            }
        }
    }
}
