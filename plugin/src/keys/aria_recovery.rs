//! Aria after a crash. Its recovery takes a table that it cannot decrypt for crashed, and goes on; the next
//! start, with all keys, no longer looks into its log, and what was committed is lost. MariaDB recovers Aria
//! also when the encryption plugin could not start, with `FORCE` too, so that only ending the program helps.

#![forbid(unsafe_code)]

use std::path::Path;

use data_files::scan::SYSTEM_KEY_ID;
use data_files::usage;
use key_store::key_name::KeyName;

use crate::keys::manager::KeyManager;

/// Why the server must not go on without a plugin, or with this one: an Aria table needs a version of key 1 that
/// is not loaded. `None` if there is no such table.
pub fn danger(datadir: &Path, manager: Option<&KeyManager>) -> Option<String> {
    if manager.is_some_and(has_all_versions) {
        return None;
    }
    let datadir = match datadir.as_os_str().is_empty() {
        true => Path::new("."),
        false => datadir,
    };
    let keyring = manager
        .map(|manager| &manager.keyring)
        .filter(|keyring| keyring.latest_version(SYSTEM_KEY_ID).is_some());
    let unreadable = match keyring {
        Some(keyring) => {
            let has_version = |version| keyring.key(SYSTEM_KEY_ID, version).is_some();
            usage::find_unreadable_aria(datadir, Some(&has_version))
        }
        None => usage::find_unreadable_aria(datadir, None),
    };
    let reason = match unreadable {
        Ok(unreadable) => {
            let unreadable = unreadable?;
            let key = match unreadable.key_version {
                Some(version) => format!("version {version} of key 1"),
                None => "key 1".into(),
            };
            format!(
                "the Aria table '{}' is encrypted with {key}, which is not loaded",
                unreadable.table.display()
            )
        }
        Err(unclear) => {
            format!("key 1 is not loaded with all its versions, and this plugin {unclear}")
        }
    };
    Some(format!(
        "the server ends here: {reason}, and Aria's recovery would lose what was committed before a crash. Mend what the lines before this one say and start again; if the key is lost for good, move the files of the table away first"
    ))
}

/// Whether everything that key files and manifest know of key 1 is loaded. Offline keys all are.
fn has_all_versions(manager: &KeyManager) -> bool {
    let is_loaded = |name: &KeyName| manager.keyring.key(name.id, name.version).is_some();
    manager.settings.offline_keys().is_some()
        || manager
            .known_versions(SYSTEM_KEY_ID)
            .is_ok_and(|known| known.iter().all(is_loaded))
}
