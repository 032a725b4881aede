//! What `rewrap` adds to the key store: the new form of each key, beside the old one, which stays.

use key_files::{WrappedKey, check_value::CheckValue, key_name::KeyName};
use key_store::{KeyStore, Put, Versions};

use crate::regional_kms::Unwrapped;

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
        let number = (name.id, name.version);
        let Some(&first) = self.versions.get(&number) else {
            return Ok(());
        };
        let mut form = first;
        let text = |error: key_store::StoreError| error.to_string();
        let mut there = self
            .store
            .get(name.id, name.version, form)
            .await
            .map_err(text)?;
        while let Some(key) = there {
            let check_value = CheckValue::of(&unwrapped.key);
            if form == 0 && key.check_value != check_value {
                return Err(format!(
                    "{}/{} in the key store {} is another key than {name}",
                    name.id,
                    name.version,
                    self.store.location()
                ));
            }
            if key.master_key_arn == master_key_arn {
                return Ok(());
            }
            form += 1;
            let key = WrappedKey {
                master_key_arn: master_key_arn.into(),
                ciphertext_blob: new.into(),
                ..key
            };
            there = match self.store.put_form(&key, form).await.map_err(text)? {
                Put::New => return Ok(()),
                Put::Exists(other) => Some(other),
            };
        }
        Ok(())
    }
}
