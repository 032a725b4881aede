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
use crate::keys::inspection;
use crate::keys::loading;
use crate::keys::manager::{KeyManager, Program};
use crate::keys::offline;
use crate::lock::lock;
use crate::server::symbols::{
    incremental_directory, is_backup_program, missing_symbols, server_is_starting,
};
use crate::server::{binary_log, log};
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
            work_in_background();
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
    if program == Program::Server {
        missing_symbols().for_each(|told| log::warning(&told));
        if let Some(told) = binary_log::warning(&settings.datadir) {
            log::warning(&told);
        }
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

/// The threads that work in the background until they are told to stop.
struct Background {
    is_stopped: Mutex<bool>,
    stopped: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

static BACKGROUND: Background = Background {
    is_stopped: Mutex::new(false),
    stopped: Condvar::new(),
    threads: Mutex::new(Vec::new()),
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

    /// Starts a thread. If that fails, the error log says what follows.
    fn spawn(&self, name: &str, otherwise: &str, work: impl FnOnce() + Send + 'static) {
        match thread::Builder::new().name(name.into()).spawn(work) {
            Ok(thread) => lock(&self.threads).push(thread),
            Err(error) => {
                log::warning(&format!("cannot start thread {name}: {error}; {otherwise}"))
            }
        }
    }

    fn set_stopped(&self, is_stopped: bool) {
        *lock(&self.is_stopped) = is_stopped;
        self.stopped.notify_all();
    }
}

/// Starts what a server with key files does besides its statements: retry keys that could not be loaded, and
/// inspect the key files.
fn work_in_background() {
    let Some(manager) = manager() else {
        return;
    };
    if is_backup_program() || manager.offline_keys().is_some() {
        return;
    }
    BACKGROUND.set_stopped(false);
    if !manager.unloaded().is_empty() {
        BACKGROUND.spawn(
            "aws-kms-keys",
            "each key will be loaded on first use",
            || {
                loading::load_the_rest(manager, |pause| BACKGROUND.wait(pause));
            },
        );
    }
    BACKGROUND.spawn(
        "aws-kms-watch",
        "missing key files will go unnoticed",
        || {
            inspection::inspect_repeatedly(manager, |pause| BACKGROUND.wait(pause));
        },
    );
}

/// Stops serving and wipes the keys.
pub fn stop() {
    BACKGROUND.set_stopped(true);
    for thread in std::mem::take(&mut *lock(&BACKGROUND.threads)) {
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
