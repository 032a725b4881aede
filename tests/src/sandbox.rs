//! A directory for each test.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// The path of a program or the plugin in the directory that `make dist` has filled.
pub fn dist(name: &str) -> PathBuf {
    let root = env::var_os("IAM_KMS_DIST")
        .expect("IAM_KMS_DIST names no directory; run the tests with `make e2e`");
    let path = Path::new(&root).join(name);
    assert!(
        path.exists(),
        "{} is missing; run `make dist`",
        path.display()
    );
    path
}

/// The number in an environment variable, if that is set.
pub fn number_from_environment(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={value} is not a number")),
    )
}

/// Copies a file or a folder, with owners, modes and times.
pub fn copy(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.arg("--archive").args([from, to]);
    assert!(copy.status().unwrap().success(), "{copy:?}");
}

/// A directory that is removed when the test ends, short enough for socket paths.
pub struct Sandbox {
    directory: TempDir,
}

impl Sandbox {
    /// Makes the directory, 0755: some tests run programs as another user.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ikw-").tempdir().unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        Self { directory }
    }

    /// Keeps the directory after the test, and returns its path.
    pub fn keep(&mut self) -> &Path {
        self.directory.disable_cleanup(true);
        self.directory.path()
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file inside, atomically, and returns its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let unfinished = self.path(&format!("{name}.new"));
        fs::write(&unfinished, text).unwrap();
        fs::rename(unfinished, &path).unwrap();
        path
    }

    /// Makes a directory inside and returns its path.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}
