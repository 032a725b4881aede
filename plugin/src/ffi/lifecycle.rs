//! Loads and unloads the plugin.

use core::ffi::{c_int, c_void};

use super::{guard, system_variables};
use crate::plugin;

/// `init`: a non-zero result refuses to load the plugin.
///
/// # Safety
/// The server calls it once on loading, after it has set the system variables and before it calls anything else
/// of the plugin.
pub unsafe extern "C" fn init(_plugin: *mut c_void) -> c_int {
    guard(1, || {
        // SAFETY: the server has set the variables and does not change them during init.
        let settings = unsafe { system_variables::read_all() };
        c_int::from(!plugin::start(settings))
    })
}

/// `deinit`.
pub extern "C" fn deinit(_plugin: *mut c_void) -> c_int {
    guard(0, || {
        plugin::stop();
        0
    })
}
