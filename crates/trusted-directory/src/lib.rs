//! Checks that nobody else can replace what lies in a directory: the FIFO that takes MFA codes, the
//! broker's socket.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf, absolute};

use nix::unistd::geteuid;

const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Its members are trusted as root is: containers of OpenShift, say, run as users without a name in this
/// group, and own their directories through it alone.
const ROOTS_GROUP: u32 = 0;

/// Why a directory is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The directory, or one on the way to it, cannot be examined.
    #[error("cannot examine the directory {}: {source}", directory.display())]
    Examine {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could replace what lies in it.
    #[error("{who} the directory {}", directory.display())]
    Writable {
        /// The directory.
        directory: PathBuf,
        /// Who, with the verb: "every user can write to".
        who: String,
    },
}

/// Checks that only root, the user of this process and `owner` can replace what lies in `directory`,
/// or put another directory in its place: that they own it and every directory on the way to it, and
/// that none of these can be written by every user, or by a group other than root's, unless it is
/// sticky. (Where an access control list lets further users write, the mode shows it as the group's.)
///
/// Errors: [`DirectoryError::Writable`] names the directory and who can write it.
pub fn check(directory: &Path, owner: Option<u32>) -> Result<(), DirectoryError> {
    let examine = |source| DirectoryError::Examine {
        directory: directory.into(),
        source,
    };
    let path = absolute(directory).map_err(examine)?;
    let real_path = fs::canonicalize(&path).map_err(examine)?;
    // The path as it is written leads over the directories of its symbolic links, the real path over
    // those of their targets.
    path.ancestors()
        .chain(real_path.ancestors())
        .try_for_each(|ancestor| check_one(ancestor, owner))
}

fn check_one(directory: &Path, owner: Option<u32>) -> Result<(), DirectoryError> {
    let metadata = fs::metadata(directory).map_err(|source| DirectoryError::Examine {
        directory: directory.into(),
        source,
    })?;
    let trusted = [Some(0), Some(geteuid().as_raw()), owner];
    match who_can_write(metadata.uid(), metadata.gid(), metadata.mode(), trusted) {
        None => Ok(()),
        Some(who) => Err(DirectoryError::Writable {
            directory: directory.into(),
            who,
        }),
    }
}

/// Names who besides the `trusted` users can replace what lies in a directory with this owner, group and
/// mode, with the verb of the reason; `None`: nobody.
fn who_can_write(uid: u32, gid: u32, mode: u32, trusted: [Option<u32>; 3]) -> Option<String> {
    if !trusted.contains(&Some(uid)) {
        return Some(format!("user {uid} owns"));
    }
    if mode & STICKY != 0 {
        return None;
    }
    if mode & WRITABLE_BY_ALL != 0 {
        return Some("every user can write to".into());
    }
    if mode & WRITABLE_BY_GROUP != 0 && gid != ROOTS_GROUP {
        return Some(format!("every member of group {gid} can write to"));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn set_mode(directory: &Path, mode: u32) {
        fs::set_permissions(directory, PermissionsExt::from_mode(mode)).unwrap();
    }

    fn refusal(directory: &Path) -> String {
        check(directory, None).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_directory_that_every_user_can_write_is_refused_unless_it_is_sticky() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(refusal(directory.path()), "");
        set_mode(directory.path(), 0o777);
        let expected = format!(
            "every user can write to the directory {}",
            directory.path().display()
        );
        assert_eq!(refusal(directory.path()), expected);
        set_mode(directory.path(), 0o1777);
        assert_eq!(refusal(directory.path()), "");
    }

    /// Root, user 1000 who runs the program, and user 27 who owns its files.
    const TRUSTED: [Option<u32>; 3] = [Some(0), Some(1000), Some(27)];

    #[test]
    fn a_directory_that_a_group_can_write_is_refused_unless_it_is_sticky_or_the_group_is_roots() {
        let writers = |gid, mode| who_can_write(1000, gid, mode, TRUSTED);
        let group = Some("every member of group 3000 can write to".to_owned());
        assert_eq!(writers(3000, 0o40_775), group);
        assert_eq!(writers(3000, 0o40_020), group);
        assert_eq!(writers(3000, 0o41_775), None);
        assert_eq!(writers(3000, 0o40_755), None);
        assert_eq!(writers(0, 0o40_775), None);
        assert_eq!(writers(0, 0o40_777), Some("every user can write to".into()));
    }

    #[test]
    fn a_directory_on_the_way_is_checked_and_named() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        fs::create_dir(&inner).unwrap();
        set_mode(outer.path(), 0o777);
        let expected = format!(
            "every user can write to the directory {}",
            outer.path().display()
        );
        assert_eq!(refusal(&inner), expected);
    }

    #[test]
    fn the_directory_of_a_symbolic_link_and_that_of_its_target_are_checked() {
        let (open, safe) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        set_mode(open.path(), 0o777);
        symlink(safe.path(), open.path().join("link")).unwrap();
        symlink(open.path(), safe.path().join("link")).unwrap();
        for path in [open.path().join("link"), safe.path().join("link")] {
            assert!(refusal(&path).starts_with("every user"), "{path:?}");
        }
    }

    #[test]
    fn a_directory_of_another_user_is_refused_even_if_it_is_sticky() {
        for mode in [0o40_700, 0o41_777] {
            let writers = |uid, trusted| who_can_write(uid, 0, mode, trusted);
            assert_eq!(writers(3001, TRUSTED), Some("user 3001 owns".into()));
            assert_eq!(
                writers(27, [Some(0), Some(1000), None]),
                Some("user 27 owns".into())
            );
            for trusted in [0, 1000, 27] {
                assert_eq!(writers(trusted, TRUSTED), None);
            }
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let missing = tempfile::tempdir().unwrap().path().join("missing");
        let expected = format!(
            "cannot examine the directory {}: No such file or directory (os error 2)",
            missing.display()
        );
        assert_eq!(refusal(&missing), expected);
    }
}
