//! Who may use what lies in a directory. The umask of a broker or of a tool, and root's ownership, must not keep an object
//! from the others that use the store.

use std::{
    fs::{File, Metadata, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Component, Path},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
    unistd::geteuid,
};

/// Gives an object, and the directories between it and `root`, the permissions that `root` has, and as root its owner.
/// What belongs to another user stays as it is.
///
/// Follows no link below `root`: those who may write there must not have root give them a file of somebody else.
pub(crate) fn share(root: &Path, object: &Path) -> io::Result<()> {
    let mut file = File::open(root)?;
    let of_root = file.metadata()?;
    let below = object.strip_prefix(root).map_err(io::Error::other)?;
    for part in below.components() {
        let Component::Normal(name) = part else {
            return Err(io::Error::other("a path with dots"));
        };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        file = openat(&file, name, flags, Mode::empty())?.into();
        adopt(&file, &of_root)?;
    }
    Ok(())
}

fn adopt(file: &File, of_root: &Metadata) -> io::Result<()> {
    let metadata = file.metadata()?;
    let is_root = geteuid().is_root();
    let is_ours = metadata.uid() == geteuid().as_raw();
    let is_one_file = metadata.is_file() && metadata.nlink() == 1;
    if !(is_root || is_ours) || !(metadata.is_dir() || is_one_file) {
        return Ok(());
    }
    let owner = (of_root.uid(), of_root.gid());
    let is_to_be_given = is_root && (metadata.uid(), metadata.gid()) != owner;
    let permissions = of_root.mode() & if metadata.is_dir() { 0o777 } else { 0o444 };
    let are_missing = permissions & !metadata.mode() != 0;
    if is_to_be_given {
        fchown(file, Some(owner.0), Some(owner.1))?;
    }
    if are_missing {
        let mode = metadata.mode() & 0o7777 | permissions;
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    if is_to_be_given || are_missing {
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn an_object_gets_the_permissions_of_the_store_and_nothing_behind_a_link_does() {
        let directory = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (
            directory.path().join("store"),
            directory.path().join("else"),
        );
        for path in [&root, &root.join("7"), &elsewhere] {
            fs::create_dir(path).unwrap();
            set_mode(path, 0o700);
        }
        let (object, other) = (root.join("7/1"), elsewhere.join("1"));
        for path in [&object, &other] {
            fs::write(path, "").unwrap();
            set_mode(path, 0o600);
        }
        for (of_root, of_directory, of_object) in [
            (0o700, 0o700, 0o600),
            (0o755, 0o755, 0o644),
            (0o700, 0o755, 0o644),
        ] {
            set_mode(&root, of_root);
            share(&root, &object).unwrap();
            assert_eq!(
                (mode(&root.join("7")), mode(&object)),
                (of_directory, of_object)
            );
        }
        set_mode(&root, 0o755);
        symlink(&elsewhere, root.join("8")).unwrap();
        symlink(&other, root.join("7/2")).unwrap();
        fs::hard_link(&other, root.join("7/3")).unwrap();
        share(&root, &root.join("8/1")).unwrap_err();
        share(&root, &root.join("7/2")).unwrap_err();
        share(&root, &root.join("7/3")).unwrap();
        assert_eq!((mode(&elsewhere), mode(&other)), (0o700, 0o600));
    }
}
