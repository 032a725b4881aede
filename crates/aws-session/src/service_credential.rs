//! Our credential for the service, where systemd has put it (`LoadCredential=` in systemd.exec(5)).

use std::{
    env,
    path::{Path, PathBuf},
};

/// Variable with the directory of the service's credentials.
pub const DIRECTORY_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Name of ours there.
const FILE_NAME: &str = "aws-credentials";

/// Its file, if there is one.
pub fn file() -> Option<PathBuf> {
    let path = Path::new(&env::var_os(DIRECTORY_VARIABLE)?).join(FILE_NAME);
    // What cannot be looked at is there, and has its own message.
    (!matches!(path.try_exists(), Ok(false))).then_some(path)
}

/// Whether the service has our credential and no other.
pub fn is_alone() -> bool {
    let entries = file().and_then(|path| path.parent()?.read_dir().ok());
    entries.is_some_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == FILE_NAME))
    })
}
