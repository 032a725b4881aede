//! The storage in which the server keeps the values of the system variables.

use core::ffi::{c_char, c_int, c_uint, c_ulong};
use core::ptr::null_mut;

use crate::abi::ServerOwned;

pub static MASTER_KEY_ID: ServerOwned<*mut c_char> = ServerOwned::new(null_mut());
pub static REGION: ServerOwned<*mut c_char> = ServerOwned::new(null_mut());
pub static ENDPOINT_URL: ServerOwned<*mut c_char> = ServerOwned::new(null_mut());
pub static KEYFILE_DIR: ServerOwned<*mut c_char> = ServerOwned::new(null_mut());
pub static BROKER_SOCKET: ServerOwned<*mut c_char> = ServerOwned::new(null_mut());
pub static OFFLINE_KEYS: ServerOwned<*mut c_char> = ServerOwned::new(null_mut());
pub static OFFLINE_FILEKEY: ServerOwned<*mut c_char> = ServerOwned::new(null_mut());
pub static OFFLINE_DIGEST: ServerOwned<c_ulong> = ServerOwned::new(0);
pub static OFFLINE_USE_PBKDF2: ServerOwned<c_uint> = ServerOwned::new(0);
pub static KEY_SPEC: ServerOwned<c_ulong> = ServerOwned::new(0);
pub static ENCRYPTION_ALGORITHM: ServerOwned<c_ulong> = ServerOwned::new(0);
pub static LOG_LEVEL: ServerOwned<c_ulong> = ServerOwned::new(0);
pub static REQUEST_TIMEOUT: ServerOwned<c_int> = ServerOwned::new(0);
pub static ROTATE_KEY: ServerOwned<c_int> = ServerOwned::new(0);
#[cfg(feature = "mock")]
pub static MOCK: ServerOwned<c_char> = ServerOwned::new(0);
