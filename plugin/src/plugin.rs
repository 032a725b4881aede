//! The one loaded plugin.

#![forbid(unsafe_code)]

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};

use crate::key_loading;
use crate::key_manager::KeyManager;
use crate::server_log;
use crate::server_symbols::is_backup_program;
use crate::settings::{DYNAMIC, Fixed};

/// Readers of different threads do not disturb each other; the last one that leaves after the
/// plugin is unloaded wipes the keys.
static MANAGER: ArcSwapOption<KeyManager> = ArcSwapOption::const_empty();

/// Returns the key manager while the plugin is loaded.
#[inline]
pub fn manager() -> Guard<Option<Arc<KeyManager>>> {
    MANAGER.load()
}

/// Loads the keys and starts serving them. The reason of a failure goes to the error log.
pub fn start(settings: Fixed) -> bool {
    match prepare(settings) {
        Ok(manager) => {
            MANAGER.store(Some(Arc::new(manager)));
            true
        }
        Err(error) => {
            server_log::error(&error.to_string());
            false
        }
    }
}

fn prepare(settings: Fixed) -> Result<KeyManager, key_loading::StartError> {
    let backup = is_backup_program();
    let manager =
        KeyManager::new(settings, &DYNAMIC, backup).map_err(crate::key_manager::KeyError::from)?;
    key_loading::load_all(&manager, backup)?;
    Ok(manager)
}

/// Stops serving and wipes the keys.
pub fn stop() {
    MANAGER.store(None);
}
