//! What people and scripts need of a user, as files in the state directory.

use crate::state::{State, User};
use crate::store::{Store, StoreError};

/// Writes the files of every user: the first one's in the state directory itself, the others'
/// under `users/NAME/`, and all of them as profiles of the directory's `credentials`.
pub fn write_all(store: &Store, state: &State) -> Result<(), StoreError> {
    for (name, user) in &state.users {
        if *name == state.first_user {
            write_user(store, state, name, user, "")?;
        } else {
            let prefix = format!("users/{name}/");
            store.make_directory(&prefix)?;
            write_user(store, state, name, user, &prefix)?;
            store.write(
                &format!("{prefix}credentials"),
                profile("default", user).as_bytes(),
            )?;
        }
    }
    let profiles: String = state
        .users
        .iter()
        .map(|(name, user)| match *name == state.first_user {
            true => profile("default", user),
            false => profile(name, user),
        })
        .collect();
    store.write("credentials", profiles.as_bytes())
}

fn write_user(
    store: &Store,
    state: &State,
    name: &str,
    user: &User,
    prefix: &str,
) -> Result<(), StoreError> {
    let environment = format!(
        "AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\n",
        user.access_key_id,
        user.secret_access_key.expose()
    );
    let serial_number = format!("{}\n", state.mfa_serial_number(name));
    let seed = format!("{}\n", user.mfa_seed.expose());
    store.write(&format!("{prefix}env"), environment.as_bytes())?;
    store.write(&format!("{prefix}mfa-serial"), serial_number.as_bytes())?;
    store.write(&format!("{prefix}mfa-seed"), seed.as_bytes())
}

/// A profile of AWS's shared credentials file.
fn profile(name: &str, user: &User) -> String {
    format!(
        "[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        user.access_key_id,
        user.secret_access_key.expose()
    )
}
