//! `plugin_encryption.h`, `service_encryption.h` and the return codes of `service_my_crypt.h`.

use core::ffi::{c_int, c_uchar, c_uint, c_void};

/// `MariaDB_ENCRYPTION_INTERFACE_VERSION`.
pub const ENCRYPTION_INTERFACE_VERSION: c_int = 0x0300;
/// `ENCRYPTION_KEY_VERSION_INVALID`: no such key or version.
pub const KEY_VERSION_INVALID: c_uint = c_uint::MAX;
/// `ENCRYPTION_KEY_BUFFER_TOO_SMALL`.
pub const KEY_BUFFER_TOO_SMALL: c_uint = 100;
/// `ENCRYPTION_FLAG_ENCRYPT`; without it, data is decrypted.
pub const FLAG_ENCRYPT: c_int = 1;
/// `ENCRYPTION_FLAG_NOPAD`.
pub const FLAG_NOPAD: c_int = 2;

/// `MY_AES_OK`.
pub const AES_OK: c_int = 0;
/// `MY_AES_BAD_DATA`.
pub const AES_BAD_DATA: c_int = -100;
/// `MY_AES_OPENSSL_ERROR`: the call was invalid.
pub const AES_ERROR: c_int = -101;
/// `MY_AES_BAD_KEYSIZE`.
pub const AES_BAD_KEYSIZE: c_int = -102;

/// `st_mariadb_encryption`: the functions of an encryption plugin.
#[repr(C)]
pub struct EncryptionPlugin {
    /// [`ENCRYPTION_INTERFACE_VERSION`].
    pub interface_version: c_int,
    /// Returns the latest version of a key, or [`KEY_VERSION_INVALID`].
    pub get_latest_key_version: unsafe extern "C" fn(key_id: c_uint) -> c_uint,
    /// Copies a key, or reports its length when `key` is null.
    pub get_key: unsafe extern "C" fn(
        key_id: c_uint,
        version: c_uint,
        key: *mut c_uchar,
        key_length: *mut c_uint,
    ) -> c_uint,
    /// Returns how many bytes the caller must reserve for a context.
    pub crypt_ctx_size: unsafe extern "C" fn(key_id: c_uint, key_version: c_uint) -> c_uint,
    /// Starts an encryption or decryption.
    pub crypt_ctx_init: unsafe extern "C" fn(
        ctx: *mut c_void,
        key: *const c_uchar,
        klen: c_uint,
        iv: *const c_uchar,
        ivlen: c_uint,
        flags: c_int,
        key_id: c_uint,
        key_version: c_uint,
    ) -> c_int,
    /// Processes a piece of the data.
    pub crypt_ctx_update: unsafe extern "C" fn(
        ctx: *mut c_void,
        src: *const c_uchar,
        slen: c_uint,
        dst: *mut c_uchar,
        dlen: *mut c_uint,
    ) -> c_int,
    /// Writes the remaining bytes and ends the context.
    pub crypt_ctx_finish:
        unsafe extern "C" fn(ctx: *mut c_void, dst: *mut c_uchar, dlen: *mut c_uint) -> c_int,
    /// Returns the length of `slen` bytes once encrypted, including padding.
    pub encrypted_length:
        unsafe extern "C" fn(slen: c_uint, key_id: c_uint, key_version: c_uint) -> c_uint,
}
