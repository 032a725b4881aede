//! What `rewrap` adds to the key store: the new form of each key, beside the old one, which stays.

use key_files::{WrappedKey, check_value::CheckValue, key_name::KeyName};
use key_store::{Form, KeyStore, Put, Versions};

use crate::{regional_kms::Unwrapped, stored::text};

/// The key store, as it was found.
pub(crate) struct Rewrapped {
    pub store: KeyStore,
    pub versions: Versions,
}

impl Rewrapped {
    /// Puts the new form of a key there, unless its latest form is under the new master key already. A key that
    /// is not in the store is left to `push`.
    pub async fn put(
        &self,
        name: &KeyName,
        unwrapped: &Unwrapped,
        new: &[u8],
        master_key_arn: &str,
    ) -> Result<(), String> {
        let Some(&latest) = self.versions.get(&(name.id, name.version)) else {
            return Ok(());
        };
        let found = self.store.latest_form(name.id, name.version, latest).await;
        let Some(there) = found.map_err(text)? else {
            return Ok(());
        };
        if there.check_value != CheckValue::of(&unwrapped.key) {
            return Err(format!(
                "{}/{} in the key store {} is another key than {name}",
                name.id,
                name.version,
                self.store.location()
            ));
        }
        let is_done = |there: &WrappedKey| there.master_key_arn == master_key_arn;
        if is_done(&there) {
            return Ok(());
        }
        let key = WrappedKey {
            master_key_arn: master_key_arn.into(),
            ciphertext_blob: new.into(),
            ..there
        };
        // Another run may have added a form since.
        for form in latest.saturating_add(1)..=Form::MAX {
            match self.store.put_form(&key, form).await.map_err(text)? {
                Put::New => break,
                Put::Exists(other) if other.check_value == key.check_value && is_done(&other) => {
                    break;
                }
                Put::Exists(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aws_session::{
        config::Config,
        key_store_location::KeyStoreLocation,
        settings::{Reader, Settings},
    };
    use key_files::{PlaintextKey, key_name::Algorithm};

    use super::*;

    const OLD: &str = "arn:aws:kms:eu-west-1:111122223333:key/01d";
    const NEW: &str = "arn:aws:kms:eu-west-1:111122223333:key/2e3";

    fn wrapped(byte: u8) -> WrappedKey {
        WrappedKey {
            name: KeyName {
                id: 7,
                version: 1,
                algorithm: Algorithm::AesCbc,
            },
            bits: 128,
            check_value: CheckValue::of(&PlaintextKey::new(&[byte; 16]).unwrap()),
            master_key_arn: OLD.into(),
            ciphertext_blob: vec![byte; 184],
        }
    }

    async fn put(store: KeyStore, byte: u8) -> Result<(), String> {
        let versions = store.list().await.unwrap();
        let unwrapped = Unwrapped {
            key: PlaintextKey::new(&[byte; 16]).unwrap(),
            master_key_arn: OLD.into(),
            is_from_kms: true,
        };
        Rewrapped { store, versions }
            .put(&wrapped(byte).name, &unwrapped, &[byte; 90], NEW)
            .await
    }

    /// Who may add objects may add a later form of anything.
    #[test]
    fn a_later_form_of_somebody_else_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let location = KeyStoreLocation::Directory(directory.path().into());
        let config = Config::without_file().unwrap();
        let settings = Settings::read(&config.session, Reader::Service).unwrap();
        let open = || KeyStore::open(&location, &settings, None).unwrap();
        crate::runtime().unwrap().block_on(async {
            let store = open();
            store.init().await.unwrap();
            store.put(&wrapped(1)).await.unwrap();
            store.put_form(&wrapped(2), 1).await.unwrap();
            std::fs::write(directory.path().join("7/1.2"), "garbage").unwrap();
            put(open(), 1).await.unwrap();
            let new = WrappedKey {
                master_key_arn: NEW.into(),
                ciphertext_blob: vec![1; 90],
                ..wrapped(1)
            };
            assert_eq!(store.find(7, Some(1)).await.unwrap(), Some(new));
            // Again: nothing is left to do.
            let before = store.list().await.unwrap();
            put(open(), 1).await.unwrap();
            assert_eq!(store.list().await.unwrap(), before);
            let another = put(open(), 2).await.unwrap_err();
            assert!(another.contains("is another key than"), "{another}");
        });
    }
}
