//! The loaded plugin, of which there is at most one.

#![allow(unsafe_code)]

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::libc::_exit;

use crate::keys::aria_recovery;
use crate::keys::error::KeyError;
use crate::keys::loading;
use crate::keys::manager::{KeyManager, Program};
use crate::keys::offline;
use crate::lock::lock;
use crate::server::log;
use crate::server::symbols::{incremental_directory, is_backup_program, server_is_starting};
use crate::settings::{GLOBAL_SETTINGS, StartupSettings};

/// Null while the plugin is not loaded.
static MANAGER: AtomicPtr<KeyManager> = AtomicPtr::new(null_mut());

/// Managers of plugins that were unloaded. They are never freed, because threads may still be using one, and
/// counting those would cost more than the millions of look-ups themselves. Their keys are wiped. Servers unload
/// plugins at shutdown.
static RETIRED: Mutex<Vec<&'static KeyManager>> = Mutex::new(Vec::new());

/// Returns the key manager while the plugin is loaded.
#[inline]
pub fn manager() -> Option<&'static KeyManager> {
    // SAFETY: null, or a KeyManager that `start` completed before it stored the address, and that is never freed.
    unsafe { MANAGER.load(Ordering::Acquire).as_ref() }
}

/// Loads the keys and starts serving them. On failure, the reason goes to the error log, and to the client of an
/// INSTALL statement.
pub fn start(settings: StartupSettings) -> bool {
    let datadir = settings.datadir.clone();
    match prepare(settings) {
        Ok(manager) => {
            end_if_aria_would_lose_rows(&datadir, Some(&manager));
            MANAGER.store(Box::into_raw(Box::new(manager)), Ordering::Release);
            load_the_rest();
            true
        }
        Err(error) => {
            let reason = error.to_string();
            log::error(&reason);
            log::client_error(&reason);
            end_if_aria_would_lose_rows(&datadir, None);
            false
        }
    }
}

/// Ends a starting server whose recovery of Aria, which comes next, would lose rows.
fn end_if_aria_would_lose_rows(datadir: &Path, manager: Option<&KeyManager>) {
    if is_backup_program() || !server_is_starting() {
        return;
    }
    if let Some(reason) = aria_recovery::reason_to_stop(datadir, manager) {
        log::error(&reason);
        // SAFETY: any thread may call it. It skips the destructors of a server that has not opened its files
        // yet, which is harmless.
        unsafe { _exit(1) }
    }
}

fn prepare(settings: StartupSettings) -> Result<KeyManager, loading::StartError> {
    #[cfg(feature = "mock")]
    if settings.mock {
        log::warning(crate::kms::mock::WARNING);
    }
    let program = match is_backup_program() {
        true => Program::Backup,
        false => Program::Server,
    };
    if settings.keyfile_dir.is_relative()
        && settings.offline_keys().is_none()
        && !settings.keyfile_dir.as_os_str().is_empty()
    {
        log::warning(&format!(
            "aws_key_management_keyfile_dir = '{}' is a relative path, which means another directory for mariadb-backup --prepare; set an absolute path",
            settings.keyfile_dir.display()
        ));
    }
    let manager = KeyManager::new(settings, &GLOBAL_SETTINGS, program).map_err(KeyError::from)?;
    if let Some(path) = manager.offline_keys() {
        offline::load(&manager, path)?;
        return Ok(manager);
    }
    loading::load_all(&manager, program)?;
    if let Some(increment) = incremental_directory() {
        loading::load_increment(&manager, &increment)?;
    }
    Ok(manager)
}

/// A thread that loads keys in the background until it is told to stop.
struct Background {
    is_stopped: Mutex<bool>,
    stopped: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

static BACKGROUND: Background = Background {
    is_stopped: Mutex::new(false),
    stopped: Condvar::new(),
    thread: Mutex::new(None),
};

impl Background {
    /// Sleeps for `pause`. Returns false as soon as the thread must stop.
    fn wait(&self, pause: Duration) -> bool {
        let is_stopped = lock(&self.is_stopped);
        let waited = self
            .stopped
            .wait_timeout_while(is_stopped, pause, |is_stopped| !*is_stopped);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn set_stopped(&self, is_stopped: bool) {
        *lock(&self.is_stopped) = is_stopped;
        self.stopped.notify_all();
    }
}

/// Starts the thread if there are keys to load.
fn load_the_rest() {
    let Some(manager) = manager().filter(|manager| !manager.unloaded().is_empty()) else {
        return;
    };
    if is_backup_program() {
        return;
    }
    BACKGROUND.set_stopped(false);
    let work = || loading::load_the_rest(manager, |pause| BACKGROUND.wait(pause));
    match thread::Builder::new()
        .name("aws-kms-keys".into())
        .spawn(work)
    {
        Ok(thread) => *lock(&BACKGROUND.thread) = Some(thread),
        Err(error) => log::warning(&format!(
            "cannot start a thread that retries loading keys: {error}; each key will be loaded on first use"
        )),
    }
}

/// Stops serving and wipes the keys.
pub fn stop() {
    BACKGROUND.set_stopped(true);
    if let Some(thread) = lock(&BACKGROUND.thread).take() {
        // A panic in the thread has already been reported.
        let _ = thread.join();
    }
    let manager = manager();
    MANAGER.store(null_mut(), Ordering::Release);
    if let Some(manager) = manager {
        manager.stop();
        lock(&RETIRED).push(manager);
    }
}
