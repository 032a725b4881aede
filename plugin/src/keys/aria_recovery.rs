//! Protects Aria tables after a crash. Aria's recovery marks a table that it cannot decrypt as crashed and
//! continues. The next start, with all keys, does not read the log again, and committed rows are lost. MariaDB
//! runs this recovery even if the encryption plugin could not start, `FORCE` or not, so the only protection is
//! to end the program.

#![forbid(unsafe_code)]

use std::path::Path;

use data_files::scan::SYSTEM_KEY_ID;
use data_files::usage;
use key_files::key_name::KeyName;

use crate::keys::manager::KeyManager;

/// Returns why the server must not continue without a plugin or with the keys of `manager`: an Aria table needs
/// a version of key 1 that is not loaded. `None` if there is no such table.
pub fn reason_to_stop(datadir: &Path, manager: Option<&KeyManager>) -> Option<String> {
    if manager.is_some_and(has_all_versions) {
        return None;
    }
    let keyring = manager
        .map(|manager| &manager.keyring)
        .filter(|keyring| keyring.latest_version(SYSTEM_KEY_ID).is_some());
    let unreadable = match keyring {
        Some(keyring) => {
            let has_version = |version| keyring.contains(SYSTEM_KEY_ID, version);
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
        "the server ends here: {reason}, and Aria's recovery would lose rows that were committed before a crash. Fix what the preceding lines report and start the server again. If the key is lost for good, first move the table's files away"
    ))
}

/// Whether all versions of key 1 in key files and manifest are loaded. Offline keys always are.
fn has_all_versions(manager: &KeyManager) -> bool {
    let is_loaded = |name: &KeyName| manager.keyring.contains(name.id, name.version);
    manager.offline_keys().is_some()
        || manager
            .known_versions(SYSTEM_KEY_ID)
            .is_ok_and(|known| known.iter().all(is_loaded))
}
