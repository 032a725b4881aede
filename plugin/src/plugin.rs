//! The one loaded plugin.

#![allow(unsafe_code)]

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::key_loading;
use crate::key_manager::KeyManager;
use crate::offline;
use crate::server_log;
use crate::server_symbols::{incremental_directory, is_backup_program};
use crate::settings::{DYNAMIC, Fixed};

/// Null while the plugin is not loaded.
static MANAGER: AtomicPtr<KeyManager> = AtomicPtr::new(null_mut());

/// Managers of before the plugin was unloaded. They are never freed, because threads may be in one
/// then and counting them would cost each of millions of look-ups more than the look-up itself. What
/// matters, the keys, is wiped. Servers unload at shutdown.
static RETIRED: Mutex<Vec<&'static KeyManager>> = Mutex::new(Vec::new());

/// Returns the key manager while the plugin is loaded.
#[inline]
pub fn manager() -> Option<&'static KeyManager> {
    // SAFETY: null, or a KeyManager from `start` that is never freed and was complete before its
    // address was stored.
    unsafe { MANAGER.load(Ordering::Acquire).as_ref() }
}

/// Loads the keys and starts serving them. The reason of a failure goes to the error log, and to
/// the client of an INSTALL.
pub fn start(settings: Fixed) -> bool {
    match prepare(settings) {
        Ok(manager) => {
            MANAGER.store(Box::into_raw(Box::new(manager)), Ordering::Release);
            true
        }
        Err(error) => {
            let reason = error.to_string();
            server_log::error(&reason);
            server_log::client_error(&reason);
            false
        }
    }
}

fn prepare(settings: Fixed) -> Result<KeyManager, key_loading::StartError> {
    #[cfg(feature = "mock")]
    if settings.mock {
        server_log::warning(crate::mock::WARNING);
    }
    let backup = is_backup_program();
    let manager =
        KeyManager::new(settings, &DYNAMIC, backup).map_err(crate::key_manager::KeyError::from)?;
    if let Some(path) = manager.settings.offline_keys() {
        offline::load(&manager, path)?;
        return Ok(manager);
    }
    key_loading::load_all(&manager, backup)?;
    if let Some(increment) = incremental_directory() {
        key_loading::load_increment(&manager, &increment)?;
    }
    Ok(manager)
}

/// Stops serving and wipes the keys.
pub fn stop() {
    let manager = manager();
    MANAGER.store(null_mut(), Ordering::Release);
    if let Some(manager) = manager {
        manager.keyring.wipe();
        let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(manager);
    }
}
