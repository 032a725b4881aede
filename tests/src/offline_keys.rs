//! Key lists of file_key_management, encrypted by OpenSSL.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::Sandbox;

/// Encrypts a key list as MariaDB's manual says, with further options of `openssl enc`; returns it
/// and the file of its password.
pub fn encrypt(sandbox: &Sandbox, keys: &str, options: &str) -> (PathBuf, PathBuf) {
    let (plain, password) = (
        sandbox.write("keys.txt", keys),
        sandbox.write("password", "not the code\n"),
    );
    let encrypted = sandbox.path("keys.enc");
    encrypt_file(&plain, &encrypted, &password, options);
    fs::remove_file(plain).unwrap();
    (encrypted, password)
}

/// Encrypts a key list to another file.
pub fn encrypt_file(plain: &Path, encrypted: &Path, password: &Path, options: &str) {
    let mut openssl = Command::new("openssl");
    openssl
        .args(["enc", "-aes-256-cbc"])
        .args(options.split(' '))
        .arg("-pass")
        .arg(format!("file:{}", password.display()))
        .arg("-in")
        .arg(plain)
        .arg("-out")
        .arg(encrypted);
    assert!(openssl.output().unwrap().status.success(), "{options}");
    only_for_owner(encrypted);
}

/// Lets nobody but its owner use a file.
pub fn only_for_owner(file: &Path) {
    fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}
