//! The FIFO that takes codes.
//!
//! Somebody who could replace the FIFO would receive the codes. So each directory of its path must
//! belong to root or to this user, and must be sticky if others can write to it; an existing file is
//! used only if it is a FIFO of this user; and what was opened is checked again with `fstat`.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat},
    sys::stat::{
        FchmodatFlags::FollowSymlink, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat,
        major, minor,
    },
    unistd::{AccessFlags, Gid, Uid, UnlinkatFlags, access, fchown, geteuid, mkfifoat, unlinkat},
};
use tracing::warn;
use trusted_directory::DirectoryError;

use super::state_file::{self, Stage, StateFile};
use aws_session::config::FifoAccess;
use service::on_abort;

/// How long a broker may take to remove its FIFO after its server has ended.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(2);

const PREDECESSOR_PAUSE: Duration = Duration::from_millis(50);

/// Why the channel cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum FifoError {
    /// The directory does not exist or cannot be used.
    #[error(
        "cannot open the directory of the FIFO {path}: {source}; create it (for the default path, set RuntimeDirectory=iam-kms-wrapper in the unit)",
        path = path.display()
    )]
    Directory {
        /// The FIFO.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could replace the FIFO.
    #[error(
        "refusing to create the FIFO {path}: {source}, and could read the codes; use a directory that only the service can write to, such as /run/iam-kms-wrapper",
        path = path.display()
    )]
    DirectoryOpen {
        /// The FIFO.
        path: PathBuf,
        /// Who could.
        source: DirectoryError,
    },
    /// Something else is at the path.
    #[error(
        "refusing to use {path} as the FIFO: {what}; remove it, or set kms_mfa_socket to another path",
        path = path.display()
    )]
    Occupied {
        /// The FIFO.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// Another process waits for a code there.
    #[error(
        "{who} already waits for a code at the FIFO {path}; stop it, or set kms_mfa_socket to another path",
        path = path.display()
    )]
    Busy {
        /// The FIFO.
        path: PathBuf,
        /// Which process, if known.
        who: String,
    },
    /// A step of creating it failed.
    #[error("cannot {step} the FIFO {path}: {source}", path = path.display())]
    Make {
        /// The FIFO.
        path: PathBuf,
        /// What failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The terminal cannot be opened.
    #[error("cannot read the terminal: {0}")]
    Terminal(io::Error),
    /// Waiting for a code failed.
    #[error("cannot wait for a code: {0}")]
    Wait(io::Error),
    /// The terminal was closed, or standard input has ended.
    #[error("standard input was closed before anything was entered")]
    InputClosed,
}

impl FifoError {
    pub(super) fn wait(error: Errno) -> Self {
        Self::Wait(error.into())
    }

    /// Whether file descriptors or memory have run out, which may be temporary.
    pub(super) fn is_shortage(&self) -> bool {
        let shortages = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM];
        matches!(self, Self::Make { source, .. }
            if shortages.iter().any(|errno| source.raw_os_error() == Some(*errno as i32)))
    }
}

/// A FIFO that this process created, removed when dropped.
pub(super) struct Fifo {
    path: PathBuf,
    directory: OwnedFd,
    reader: OwnedFd,
    identity: (u64, u64),
    /// When the FIFO last changed, as last seen. Each write changes it.
    changed: (i64, i64),
    state: Option<StateFile>,
    /// Held as long as this process reads there; released after the FIFO is removed.
    _lock: Flock<OwnedFd>,
}

impl Fifo {
    /// Creates the FIFO with exactly this mode and group, or takes over one that an earlier process of
    /// this user left behind.
    pub fn make(path: &Path, access: FifoAccess) -> Result<Self, FifoError> {
        let directory = open_directory(path)?;
        let lock = lock(path, &directory)?;
        on_abort::FIFO.made(path);
        // Until the first writer has closed it, one descriptor serves both purposes.
        let reader = lock.as_fd().try_clone_to_owned();
        let mut fifo = Self {
            path: path.into(),
            identity: identity(&check_ours(path, &lock)?),
            directory,
            reader: reader.map_err(|source| make_error(path, "open", source))?,
            changed: (0, 0),
            state: None,
            _lock: lock,
        };
        fifo.open_to_writers(access)?;
        fifo.changed = changed(&check_ours(path, &fifo.reader)?);
        fifo.state = StateFile::make(path, &fifo.directory, access)
            .inspect_err(|error| {
                warn!(
                    "cannot create the file {}.state, which tells writers the result of their code: {error}",
                    path.display()
                );
            })
            .ok();
        Ok(fifo)
    }

    fn open_to_writers(&self, access: FifoAccess) -> Result<(), FifoError> {
        let failed = |step| move |error: Errno| make_error(&self.path, step, error);
        if let Some(gid) = access.gid {
            fchown(&self.reader, None, Some(Gid::from_raw(gid)))
                .map_err(failed("set the group of"))?;
        }
        // After the group: the wider mode must never apply to the group that the file was created with.
        fchmod(&self.reader, Mode::from_bits_truncate(access.mode))
            .map_err(failed("set the mode of"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reports the result of the last input to its writer.
    pub fn tell(&mut self, stage: Stage, text: &str) {
        if let Some(state) = &mut self.state {
            state.tell(stage, text);
        }
    }

    /// Whether somebody has written to the FIFO since [`Self::make`] or [`Self::reopen`], or changed
    /// its mode. (The kernel does not record writes through a read-only mount.)
    pub fn has_changed(&self) -> bool {
        fstat(&self.reader).is_ok_and(|status| changed(&status) != self.changed)
    }

    /// Fails if the FIFO is no longer at its path, where nobody could write to it.
    pub fn check_place(&self) -> Result<(), FifoError> {
        match is_at(&self.path, &self.directory, self.identity) {
            true => Ok(()),
            false => Err(occupied(
                &self.path,
                "it was removed or replaced while this process waited",
            )),
        }
    }

    /// Reopens the FIFO after its last writer has closed it; otherwise poll(2) would keep reporting
    /// that. The old descriptor stays open until the new one exists, so a writer always finds a reader
    /// and nothing that was written in between is lost.
    pub fn reopen(&mut self) -> Result<(), FifoError> {
        let reader = open_reader(&self.path, &self.directory)?;
        let status = check_ours(&self.path, &reader)?;
        if identity(&status) != self.identity {
            return Err(occupied(&self.path, "it was replaced with another FIFO"));
        }
        self.reader = reader;
        self.changed = changed(&status);
        Ok(())
    }
}

impl AsFd for Fifo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        on_abort::FIFO.removed();
        if !is_at(&self.path, &self.directory, self.identity) {
            return;
        }
        state_file::remove(&self.path, &self.directory);
        let name = self.path.file_name().unwrap_or_default();
        if let Err(error) = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            warn!(
                "cannot remove the FIFO {}: {}",
                self.path.display(),
                io::Error::from(error)
            );
        }
    }
}

/// Checks whether a FIFO could be created at `path`, without changing anything. The error is the one
/// that creating it would give.
pub fn check(path: &Path) -> Result<(), FifoError> {
    let directory = open_directory(path)?;
    let name = path.file_name().unwrap_or_default();
    if let Ok(status) = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        check_left_behind(path, &directory)?;
        return match holder(&status) {
            Some(pid) => Err(busy(path, Some(pid))),
            None => Ok(()),
        };
    }
    access(
        path.parent().unwrap_or(Path::new("/")),
        AccessFlags::W_OK | AccessFlags::X_OK,
    )
    .map_err(|error| make_error(path, "create", error))
}

/// Opens the directory of the FIFO, in which nobody else may be able to replace it.
fn open_directory(path: &Path) -> Result<OwnedFd, FifoError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let (status, descriptor) = open(directory, flags, Mode::empty())
        .and_then(|descriptor| Ok((fstat(&descriptor)?, descriptor)))
        .map_err(|error| FifoError::Directory {
            path: path.into(),
            source: error.into(),
        })?;
    trusted_directory::check(directory, None).map_err(|error| match error {
        DirectoryError::Examine { source, .. } => FifoError::Directory {
            path: path.into(),
            source,
        },
        source => FifoError::DirectoryOpen {
            path: path.into(),
            source,
        },
    })?;
    if is_world_writable_of_another(&status) {
        warn_of_protection(path);
    }
    Ok(descriptor)
}

fn is_world_writable_of_another(directory: &FileStat) -> bool {
    let owner = Uid::from_raw(directory.st_uid);
    directory.st_mode & Mode::S_IWOTH.bits() != 0 && owner != geteuid()
}

/// In a sticky directory of another user, fs.protected_fifos may prevent even root from writing to the
/// FIFO: the kernel refuses open(2) with O_CREAT, which the shell's `>` uses, to everybody but the
/// owner.
///
/// Source: <https://docs.kernel.org/admin-guide/sysctl/fs.html>.
fn warn_of_protection(path: &Path) {
    let protected = std::fs::read_to_string("/proc/sys/fs/protected_fifos");
    if protected.is_ok_and(|level| level.trim() != "0") {
        warn!(
            "the FIFO {path} is in a world-writable directory, where this kernel \
             (fs.protected_fifos) refuses `echo … > {path}` to all but user {uid}, root included; \
             set kms_mfa_socket to a path in a directory that belongs to the service, such as {default}",
            path = path.display(),
            uid = geteuid(),
            default = aws_session::config::DEFAULT_FIFO,
        );
    }
}

fn make_or_take_over(path: &Path, directory: &OwnedFd) -> Result<(), FifoError> {
    let name = path.file_name().unwrap_or_default();
    let made = mkfifoat(directory, name, Mode::S_IRUSR | Mode::S_IWUSR);
    match made {
        // The umask, which the command inherits, may have removed even this user's permission to open
        // it. Changed by name, because it cannot be opened yet; others cannot rename in this directory.
        Ok(()) => fchmodat(
            directory,
            name,
            Mode::S_IRUSR | Mode::S_IWUSR,
            FollowSymlink,
        )
        .map_err(|error| make_error(path, "set the mode of", error)),
        Err(Errno::EEXIST) => check_left_behind(path, directory),
        Err(error) => Err(make_error(path, "create", error)),
    }
}

/// Creates the FIFO, or takes one over, and locks it: two processes that read from one FIFO would take
/// each other's codes, and the first one to end would remove it.
fn lock(path: &Path, directory: &OwnedFd) -> Result<Flock<OwnedFd>, FifoError> {
    let until = Instant::now() + PREDECESSOR_PATIENCE;
    loop {
        make_or_take_over(path, directory)?;
        let reader = match open_reader(path, directory) {
            // Its process has removed it in the meantime.
            Err(FifoError::Make { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            reader => reader?,
        };
        let status = check_ours(path, &reader)?;
        match Flock::lock(reader, FlockArg::LockExclusiveNonblock) {
            Ok(lock) if is_at(path, directory, identity(&status)) => return Ok(lock),
            Ok(_) => {}
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() < until => {
                thread::sleep(PREDECESSOR_PAUSE);
            }
            Err((_, Errno::EWOULDBLOCK)) => return Err(busy(path, holder(&status))),
            Err((_, error)) => return Err(make_error(path, "lock", error)),
        }
    }
}

/// Whether the FIFO of this identity is at its path.
fn is_at(path: &Path, directory: &OwnedFd, wanted: (u64, u64)) -> bool {
    let name = path.file_name().unwrap_or_default();
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|there| identity(&there) == wanted)
}

/// Names the process that holds the lock, if that is visible. Source: proc_locks(5).
fn holder(status: &FileStat) -> Option<i32> {
    let file = format!(
        "{:02x}:{:02x}:{}",
        major(status.st_dev),
        minor(status.st_dev),
        status.st_ino
    );
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == "FLOCK").then_some(())?;
        let pid = words.nth(2)?.parse().ok()?;
        (words.next()? == file).then_some(pid)
    })
}

fn busy(path: &Path, holder: Option<i32>) -> FifoError {
    let name = |pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.map_or_else(|_| String::new(), |name| format!(" ({})", name.trim_end()))
    };
    FifoError::Busy {
        path: path.into(),
        who: holder.map_or_else(
            || "another process".into(),
            |pid| format!("process {pid}{}", name(pid)),
        ),
    }
}

/// Checks that the file at the path is a FIFO that an earlier process of this user could not remove.
/// Writers may already wait there, so it is used as it is.
fn check_left_behind(path: &Path, directory: &OwnedFd) -> Result<(), FifoError> {
    let status = fstatat(
        directory,
        path.file_name().unwrap_or_default(),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(|error| make_error(path, "examine", error))?;
    check_kind(path, &status)
}

fn open_reader(path: &Path, directory: &OwnedFd) -> Result<OwnedFd, FifoError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(
        directory,
        path.file_name().unwrap_or_default(),
        flags,
        Mode::empty(),
    )
    .map_err(|error| make_error(path, "open", error))
}

fn check_ours(path: &Path, reader: &OwnedFd) -> Result<FileStat, FifoError> {
    let status = fstat(reader).map_err(|error| make_error(path, "examine", error))?;
    check_kind(path, &status)?;
    Ok(status)
}

fn check_kind(path: &Path, status: &FileStat) -> Result<(), FifoError> {
    let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
    let what = match kind {
        SFlag::S_IFIFO if Uid::from_raw(status.st_uid) != geteuid() => "it belongs to another user",
        SFlag::S_IFIFO if status.st_nlink != 1 => "it has a second name (hard link)",
        SFlag::S_IFIFO => return Ok(()),
        SFlag::S_IFLNK => "it is a symbolic link",
        SFlag::S_IFDIR => "it is a directory",
        SFlag::S_IFSOCK => "it is a socket",
        SFlag::S_IFREG => {
            "it is a regular file (perhaps a code that was written while there was no FIFO)"
        }
        _ => "it is a device",
    };
    Err(occupied(path, what))
}

fn occupied(path: &Path, what: &'static str) -> FifoError {
    FifoError::Occupied {
        path: path.into(),
        what,
    }
}

fn make_error(path: &Path, step: &'static str, error: impl Into<io::Error>) -> FifoError {
    FifoError::Make {
        path: path.into(),
        step,
        source: error.into(),
    }
}

fn identity(status: &FileStat) -> (u64, u64) {
    (status.st_dev, status.st_ino)
}

fn changed(status: &FileStat) -> (i64, i64) {
    (status.st_ctime, status.st_ctime_nsec)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        process,
    };

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    const PRIVATE: FifoAccess = FifoAccess {
        mode: 0o600,
        gid: None,
    };

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mfa");
        (directory, path)
    }

    /// The reason why no FIFO is created at `path`; the check beforehand gives the same.
    fn refusal(path: &Path) -> String {
        let text = |error: FifoError| error.to_string();
        let checked = check(path).err().map(text).unwrap_or_default();
        let made = Fifo::make(path, PRIVATE).err().map(text);
        assert_eq!(checked, made.unwrap_or_default());
        checked
    }

    #[test]
    fn a_fifo_lives_as_long_as_its_owner() {
        let (_directory, path) = directory();
        let fifo = Fifo::make(
            &path,
            FifoAccess {
                mode: 0o622,
                gid: None,
            },
        )
        .unwrap();
        let metadata = path.symlink_metadata().unwrap();
        assert!(metadata.file_type().is_fifo());
        assert_eq!(metadata.mode() & 0o7777, 0o622);
        drop(fifo);
        assert!(!path.exists());
    }

    #[test]
    fn a_fifo_left_behind_is_taken_over_with_the_configured_mode() {
        let (_directory, path) = directory();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let before = path.metadata().unwrap().ino();
        check(&path).unwrap();
        let _fifo = Fifo::make(&path, PRIVATE).unwrap();
        assert_eq!(path.metadata().unwrap().ino(), before);
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn other_files_at_the_path_are_refused_and_not_changed() {
        let (directory, path) = directory();
        std::fs::write(&path, "111676").unwrap();
        assert!(
            refusal(&path).contains("it is a regular file"),
            "{}",
            refusal(&path)
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "111676");
        std::fs::remove_file(&path).unwrap();

        std::fs::create_dir(&path).unwrap();
        assert!(refusal(&path).contains("it is a directory"));
        std::fs::remove_dir(&path).unwrap();

        let elsewhere = directory.path().join("elsewhere");
        nix::unistd::mkfifo(&elsewhere, Mode::S_IRWXU).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(refusal(&path).contains("it is a symbolic link"));
    }

    /// As below /var/run.
    #[test]
    fn a_fifo_left_behind_in_a_directory_reached_through_a_symbolic_link_is_taken_over() {
        let (directory, _) = directory();
        let real = directory.path().join("real");
        std::fs::create_dir(&real).unwrap();
        symlink(&real, directory.path().join("link")).unwrap();
        let path = directory.path().join("link/mfa");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        check(&path).unwrap();
        drop(Fifo::make(&path, PRIVATE).unwrap());
        assert!(!real.join("mfa").exists());
        // What is safe for a new one is safe for one that was left behind, and nothing else.
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        std::fs::set_permissions(&real, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(refusal(&path).contains("every user can write to the directory"));
    }

    #[test]
    fn a_world_writable_directory_is_refused_unless_it_is_sticky() {
        let (directory, path) = directory();
        let set_mode = |mode| {
            std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(mode)).unwrap();
        };
        set_mode(0o777);
        assert!(refusal(&path).contains("every user can write to the directory"));
        set_mode(0o1777);
        assert_eq!(refusal(&path), "");
        assert!(!path.exists());
    }

    #[test]
    fn an_error_names_a_missing_directory_and_what_to_do() {
        let error = refusal(Path::new("/nonexistent/mfa"));
        assert!(
            error.contains("RuntimeDirectory=iam-kms-wrapper"),
            "{error}"
        );
    }

    #[test]
    fn a_fifo_that_was_replaced_is_neither_reopened_nor_removed() {
        let (_directory, path) = directory();
        let mut fifo = Fifo::make(&path, PRIVATE).unwrap();
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert!(fifo.reopen().is_err());
        drop(fifo);
        assert!(path.exists());
    }

    #[test]
    fn a_fifo_has_one_reader_who_is_named_to_others_and_followed_once_it_has_ended() {
        let (_directory, path) = directory();
        let first = Fifo::make(&path, PRIVATE).unwrap();
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        let who = format!(
            "process {} ({}) already waits",
            process::id(),
            name.trim_end()
        );
        assert!(refusal(&path).starts_with(&who), "{}", refusal(&path));
        let successor = thread::spawn({
            let path = path.clone();
            move || Fifo::make(&path, PRIVATE).map(|fifo| fifo.check_place())
        });
        // Nothing shows that the other one has tried and waits.
        thread::sleep(4 * PREDECESSOR_PAUSE);
        drop(first);
        successor.join().unwrap().unwrap().unwrap();
    }

    #[test]
    fn programs_do_not_inherit_it() {
        let (_directory, path) = directory();
        let mut fifo = Fifo::make(&path, PRIVATE).unwrap();
        let is_inherited = |descriptor: BorrowedFd<'_>| {
            fcntl(descriptor, FcntlArg::F_GETFD).unwrap() != FdFlag::FD_CLOEXEC.bits()
        };
        assert!(!is_inherited(fifo._lock.as_fd()));
        fifo.reopen().unwrap();
        assert!(!is_inherited(fifo.as_fd()) && !is_inherited(fifo.directory.as_fd()));
    }

    #[test]
    fn a_fifo_of_another_user_or_with_a_second_name_is_refused() {
        let (directory, path) = directory();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let second = directory.path().join("second");
        std::fs::hard_link(&path, &second).unwrap();
        assert!(refusal(&path).contains("it has a second name"));
        std::fs::remove_file(&second).unwrap();
        let mut status = nix::sys::stat::stat(&path).unwrap();
        check_kind(&path, &status).unwrap();
        status.st_uid += 1;
        let error = check_kind(&path, &status).unwrap_err();
        assert!(error.to_string().contains("it belongs to another user"));
    }

    #[test]
    fn a_socket_and_a_device_are_refused_by_name() {
        let (_directory, path) = directory();
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(refusal(&path).contains("it is a socket"));
        assert!(refusal(Path::new("/dev/null")).contains("it is a device"));
    }

    #[test]
    fn a_file_is_no_directory_for_a_fifo() {
        let (_directory, path) = directory();
        std::fs::write(&path, "").unwrap();
        let error = refusal(&path.join("mfa"));
        assert!(
            error.contains("cannot open the directory of the FIFO"),
            "{error}"
        );
    }

    /// Root may create one.
    #[test]
    fn a_directory_that_cannot_be_written_is_found_beforehand() {
        let (directory, path) = directory();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o500)).unwrap();
        assert_eq!(refusal(&path).is_empty(), geteuid().is_root());
    }

    #[test]
    fn only_a_world_writable_directory_of_another_user_may_be_protected_by_the_kernel() {
        let (directory, _) = directory();
        let mut status = nix::sys::stat::stat(directory.path()).unwrap();
        for (other, mode, expected) in [
            (0, 0o1777, false),
            (1, 0o1777, true),
            (0, 0o755, false),
            (1, 0o755, false),
        ] {
            status.st_uid = geteuid().as_raw() + other;
            status.st_mode = mode;
            assert_eq!(is_world_writable_of_another(&status), expected, "{mode:o}");
        }
    }
}
