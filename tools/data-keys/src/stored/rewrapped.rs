//! What `rewrap` adds to the key store: the new form of each key, beside the old one, which stays.

use aws_session::key_store_location::KeyStoreLocation;
use key_files::{WrappedKey, check_value::CheckValue, key_name::KeyName};
use key_store::{Form, KeyStore, Put, Versions};

use crate::{DataKeysError, regional_kms::Unwrapped, stored::failed};

/// The key store, and what was found in it.
pub(crate) struct Rewrapped {
    store: KeyStore,
    versions: Versions,
}

impl Rewrapped {
    /// Nothing is known of the store before [`Self::list`].
    pub fn new(store: KeyStore) -> Self {
        Self {
            store,
            versions: Versions::new(),
        }
    }

    /// Where it is.
    pub fn location(&self) -> &KeyStoreLocation {
        self.store.location()
    }

    /// Looks what is there now: id and version of each key.
    pub async fn list(&mut self) -> Result<Vec<(u32, u32)>, DataKeysError> {
        self.versions = self.store.list().await?;
        Ok(self.versions.keys().copied().collect())
    }

    /// Reads the latest form of a key; `None`: it is not there.
    pub async fn find(&self, id: u32, version: u32) -> Result<Option<WrappedKey>, String> {
        let Some(forms) = self.versions.get(&(id, version)) else {
            return Ok(None);
        };
        let found = self.store.latest_form(id, version, forms.latest).await;
        found.map_err(failed(format_args!("{id}/{version}")))
    }

    /// Puts the new form of a key there, unless its latest form is under the new master key already. A key that
    /// is not in the store is left to `push`.
    pub async fn put(
        &self,
        name: &KeyName,
        unwrapped: &Unwrapped,
        new: &[u8],
        master_key_arn: &str,
    ) -> Result<(), String> {
        let Some(there) = self.find(name.id, name.version).await? else {
            return Ok(());
        };
        if there.check_value != CheckValue::of(&unwrapped.key) {
            return Err(format!(
                "{}/{} in the key store {} is another key than {name}",
                name.id,
                name.version,
                self.location()
            ));
        }
        if there.master_key_arn == master_key_arn {
            return self.share(name.id, name.version).await;
        }
        let key = WrappedKey {
            master_key_arn: master_key_arn.into(),
            ciphertext_blob: new.into(),
            ..there
        };
        self.add(&key).await
    }

    /// Finishes what a run that was killed may have left undone for the latest form of a key.
    pub async fn share(&self, id: u32, version: u32) -> Result<(), String> {
        let forms = self.versions.get(&(id, version));
        let latest = forms.map_or(0, |forms| forms.latest);
        let shared = self.store.share_form(id, version, latest);
        shared.await.map_err(failed(format_args!("{id}/{version}")))
    }

    /// Adds a form of a key after the latest one.
    pub async fn add(&self, key: &WrappedKey) -> Result<(), String> {
        let forms = self.versions.get(&key.name.number());
        let latest = forms.map_or(0, |forms| forms.latest);
        // Another run may have added a form since.
        for form in latest.saturating_add(1)..=Form::MAX {
            let put = self.store.put_form(key, form).await;
            match put.map_err(failed(key.name))? {
                Put::New => break,
                Put::Exists(other)
                    if (other.check_value, &other.master_key_arn)
                        == (key.check_value, &key.master_key_arn) =>
                {
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
        let mut stored = Rewrapped::new(store);
        stored.list().await.unwrap();
        let unwrapped = Unwrapped {
            key: PlaintextKey::new(&[byte; 16]).unwrap(),
            master_key_arn: OLD.into(),
            is_from_kms: true,
        };
        stored
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
        let done = crate::block_on(async {
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
        done.unwrap();
    }
}
