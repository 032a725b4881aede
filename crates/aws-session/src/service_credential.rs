//! The AWS credentials that systemd passes to the service (`LoadCredential=` in systemd.exec(5)).

use std::{
    env,
    path::{Path, PathBuf},
};

/// The variable that names the directory of the service's credentials.
pub const DIRECTORY_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// The name of our credential there.
const FILE_NAME: &str = "aws-credentials";

/// Returns the path of our credential, if it exists.
pub fn file() -> Option<PathBuf> {
    let directory = env::var_os(DIRECTORY_VARIABLE).filter(|it| Path::new(it).is_absolute())?;
    let path = Path::new(&directory).join(FILE_NAME);
    // If that cannot be determined, assume that it exists: reading it gives a clear error.
    (!matches!(path.try_exists(), Ok(false))).then_some(path)
}

/// Whether ours is the only credential of the service.
pub fn is_alone() -> bool {
    let entries = file().and_then(|path| path.parent()?.read_dir().ok());
    entries.is_some_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == FILE_NAME))
    })
}
