//! New versions of keys that use AES_CTR where that is not safe.

#![forbid(unsafe_code)]

use key_files::key_name::{Algorithm, KeyName};

use crate::keys::manager::{KeyManager, SYSTEM_IDS};
use crate::kms::client::Limits;
use crate::server::log;

impl KeyManager {
    /// Makes an AES_CBC version of a key whose latest version is `latest`, if that uses AES_CTR and must not: of the system
    /// keys, as they may be after a migration from file_key_management, because MariaDB reuses IVs in the redo log,
    /// temporary tables and Aria; of keys of page-compressed tables; and of all keys if there is a key store, because
    /// servers that share it encrypt different pages with the same key.
    ///
    /// Returns the new version. If it cannot be made, the error log says so, and the server uses the old one: its data
    /// could not be read at all otherwise.
    pub(super) fn replace_ctr(&self, latest: &KeyName, limits: &Limits<'_>) -> Option<u32> {
        if latest.algorithm != Algorithm::AesCtr {
            return None;
        }
        let (id, version) = latest.number();
        let because = if SYSTEM_IDS.contains(&id) {
            format!(
                "for what MariaDB encrypts with this key. The redo log keeps using version {version} until the server starts with another innodb_log_file_size (SET GLOBAL is not enough)"
            )
        } else if self.is_page_compressed(id) {
            "for page-compressed tables, which it encrypts".into()
        } else if self.kms.has_key_store() {
            "for keys of a key store, which servers may share".into()
        } else {
            return None;
        };
        match self.make_next(id, limits) {
            Ok(made) => {
                log::warning(&format!(
                    "key {id} now has version {}, which uses AES_CBC, because AES_CTR is not safe {because}",
                    made.version
                ));
                Some(made.version)
            }
            Err(error) => {
                log::error(&format!(
                    "key {id} uses AES_CTR, which is not safe for the system keys, for page-compressed tables and for keys of a key store, and no AES_CBC version could be made: {error}"
                ));
                None
            }
        }
    }
}
