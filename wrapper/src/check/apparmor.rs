//! What an AppArmor profile lets the server do, as the kernel itself answers it.
//!
//! Debian's server has an enforced profile since 1:11.8.6-4.

use std::{
    fs::OpenOptions,
    io::{self, Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

/// Answers what a loaded profile allows; any user may ask.
///
/// Source: `query_label` in the kernel's security/apparmor/apparmorfs.c, which libapparmor's
/// aa_query_label(2) uses.
const QUERIES: &str = "/sys/kernel/security/apparmor/.access";

/// Names of the profile in MariaDB's and the distributions' files.
const PROFILES: [&str; 4] = [
    "mariadbd",
    "/usr/sbin/mariadbd",
    "mysqld",
    "/usr/sbin/mysqld",
];

/// Asks about a file (`AA_CLASS_FILE`).
const CLASS_FILE: u8 = 2;
const WRITE: u32 = 2;
const READ: u32 = 4;
const LOCK: u32 = 0x8000;
const ANSWER_BYTES: u64 = 256;

/// What the profile says about what this project's plugin needs.
pub(super) enum ServerProfile {
    /// This profile allows all of it.
    Allows(&'static str),
    /// What to add to which profile.
    Denies(String),
    /// AppArmor is off, or no profile of a server is loaded.
    None,
}

/// Asks whether the server may use the broker's `socket` and its directory of key files, which it locks.
///
/// Errors: the kernel does not answer.
pub(super) fn server_profile(socket: &Path, key_directory: &Path) -> io::Result<ServerProfile> {
    let Some(profile) = loaded_profile(socket)? else {
        return Ok(ServerProfile::None);
    };
    let directory = key_directory.join("");
    let needed = [
        (
            READ | WRITE,
            socket.to_owned(),
            "rw",
            socket.display().to_string(),
        ),
        (
            READ | WRITE | LOCK,
            directory.clone(),
            "rwk",
            directory.display().to_string(),
        ),
        (
            READ | WRITE,
            directory.join("aws-kms-key.1.1"),
            "rwk",
            format!("{}**", directory.display()),
        ),
    ];
    let mut missing = Vec::new();
    for (permissions, path, letters, pattern) in needed {
        if allowed_permissions(profile, &path)? & permissions != permissions {
            missing.push(format!("{pattern} {letters},"));
        }
    }
    if missing.is_empty() {
        return Ok(ServerProfile::Allows(profile));
    }
    Ok(ServerProfile::Denies(advice(profile, &missing.join(" "))))
}

/// Packages name the file of `mariadbd` alike, and those of the other profiles differently.
fn advice(profile: &str, rules: &str) -> String {
    match profile {
        "mariadbd" => format!(
            "the profile {profile} keeps the server from what the plugin needs; append to /etc/apparmor.d/local/mariadbd: {rules} \
             and run apparmor_parser -r /etc/apparmor.d/mariadbd"
        ),
        _ => format!(
            "the profile {profile} keeps the server from what the plugin needs; find its file (grep -rl '{profile}' /etc/apparmor.d), \
             add to it, or to the one that it includes from local/: {rules} and reload it (apparmor_parser -r FILE)"
        ),
    }
}

/// The profile of a server that the kernel has, asked about any path.
fn loaded_profile(path: &Path) -> io::Result<Option<&'static str>> {
    for profile in PROFILES {
        match allowed_permissions(profile, path) {
            Ok(_) => return Ok(Some(profile)),
            // AppArmor is off, or has no profile of that name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// What `profile` lets a process do with `path`.
fn allowed_permissions(profile: &str, path: &Path) -> io::Result<u32> {
    let mut kernel = OpenOptions::new().read(true).write(true).open(QUERIES)?;
    // One query is one write.
    kernel.write_all(&query(profile, path))?;
    let mut answer = String::new();
    kernel.take(ANSWER_BYTES).read_to_string(&mut answer)?;
    allowed(&answer).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{QUERIES} answers {answer:?}"),
        )
    })
}

fn query(profile: &str, path: &Path) -> Vec<u8> {
    let mut query = b"label\0".to_vec();
    query.extend(profile.as_bytes());
    query.extend([0, CLASS_FILE]);
    query.extend(path.as_os_str().as_bytes());
    query
}

/// The permissions that an answer allows; `None` if it is none.
fn allowed(answer: &str) -> Option<u32> {
    let line = |name| answer.lines().find_map(|line| line.strip_prefix(name));
    let bits = |name| u32::from_str_radix(line(name)?.strip_prefix("0x")?, 16).ok();
    Some(bits("allow ")? & !bits("deny ")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_profile_class_and_path() {
        let asked = query("mariadbd", Path::new("/run/x"));
        assert_eq!(asked, b"label\0mariadbd\0\x02/run/x");
    }

    #[test]
    fn what_is_denied_is_not_allowed() {
        let answer = "allow 0x00000006\ndeny 0x00000002\naudit 0x00000000\nquiet 0x00000000\n";
        assert_eq!(allowed(answer), Some(READ));
    }

    #[test]
    fn half_an_answer_is_no_answer() {
        for answer in ["", "allow 0x00000006\n", "allow 6\ndeny 0\n", "deny 0x0\n"] {
            assert_eq!(allowed(answer), None, "{answer}");
        }
    }
}
