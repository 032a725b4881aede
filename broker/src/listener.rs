//! The socket: for this user only or for a group as well, and for one broker at a time. It is bound again when somebody
//! has removed its file.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    net::SocketAddr,
    os::unix::{
        fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use nix::{fcntl::OFlag, unistd::geteuid};
use service::socket_path::{self, SocketFile, SocketPathError, has_listener, identity, is_at};
use tracing::{error, warn};

/// How often, and at what intervals, the holder of the lock is looked up.
const HOLDER_ATTEMPTS: u32 = 20;
const HOLDER_PAUSE: Duration = Duration::from_millis(10);

/// How often to check that the file of the socket is still there.
const PLACE_CHECK: Duration = Duration::from_secs(10);

/// Why the socket cannot be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenerError {
    #[error(transparent)]
    Path(#[from] SocketPathError),
    #[error("cannot listen on {path}: {source}", path = path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("cannot serve metrics at {address}: {source}; set metrics_listen to a free port")]
    BindMetrics {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(
        "cannot set the group of {path} as the configuration says: {source}; run the broker with that group (Group= or SupplementaryGroups= in the unit)",
        path = path.display()
    )]
    Group { path: PathBuf, source: io::Error },
    #[error("another broker listens on {path}{who}; stop its server first", path = path.display())]
    Busy { path: PathBuf, who: String },
    #[error("cannot lock {path}: {source}", path = path.display())]
    Lock { path: PathBuf, source: io::Error },
}

/// A bound socket, removed when dropped.
pub(crate) struct Listener {
    socket: UnixListener,
    file: SocketFile,
    gid: Option<u32>,
    /// Released after the socket is removed.
    lock: Lock,
}

impl Listener {
    /// Binds `path` with mode 0600, or 0660 for the group `gid`. Until that is set, the umask of the process keeps others
    /// out.
    pub fn bind(path: &Path, gid: Option<u32>) -> Result<Self, ListenerError> {
        let failed = |source| ListenerError::Bind {
            path: path.into(),
            source,
        };
        socket_path::check(path)?;
        let lock = Lock::take(path)?;
        remove_left_behind(path)?;
        let socket = UnixListener::bind(path).map_err(failed)?;
        let listener = Self {
            socket,
            file: SocketFile::of_bound(path).map_err(failed)?,
            gid,
            lock,
        };
        listener.set_access()?;
        Ok(listener)
    }

    /// Waits until somebody has removed the file of the socket, binds the socket again, and returns its acceptor.
    pub async fn bound_again(&mut self) -> UnixListener {
        let path = self.path().to_owned();
        let path = path.display();
        let mut reported = None;
        loop {
            tokio::time::sleep(PLACE_CHECK).await;
            if self.file.is_there() {
                continue;
            }
            match self.bind_again() {
                Ok(acceptor) => {
                    warn!("somebody removed the socket {path}; it is there again");
                    return acceptor;
                }
                Err(failure) => {
                    let failure = failure.to_string();
                    if reported.as_ref() != Some(&failure) {
                        error!(
                            "somebody removed the socket {path}, so no process can reach this broker: {failure}; trying again every {} s; if that does not help, restart this broker",
                            PLACE_CHECK.as_secs()
                        );
                        reported = Some(failure);
                    }
                }
            }
        }
    }

    fn bind_again(&mut self) -> Result<UnixListener, ListenerError> {
        let path = self.path().to_owned();
        let failed = |source| ListenerError::Bind {
            path: path.clone(),
            source,
        };
        socket_path::check(&path)?;
        if !self.lock.is_there() {
            self.lock = Lock::take(&path)?;
        }
        remove_left_behind(&path)?;
        // After a failure, the next attempt replaces this one.
        let socket = UnixListener::bind(&path).map_err(failed)?;
        let acceptor = acceptor(&socket).map_err(failed)?;
        self.set_access()?;
        self.file.was_bound_again().map_err(failed)?;
        self.socket = socket;
        Ok(acceptor)
    }

    fn set_access(&self) -> Result<(), ListenerError> {
        match self.gid {
            Some(gid) => self.open_to(gid),
            None => {
                let path = self.path();
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|source| {
                    ListenerError::Bind {
                        path: path.into(),
                        source,
                    }
                })
            }
        }
    }

    fn open_to(&self, gid: u32) -> Result<(), ListenerError> {
        let path = self.path();
        let failed = |source| ListenerError::Group {
            path: path.into(),
            source,
        };
        // The group first, so that nobody else can connect meanwhile. If it is our own group already,
        // skip the call, which systemd may have forbidden.
        if fs::symlink_metadata(path).map_err(failed)?.gid() != gid {
            chown(path, None, Some(gid)).map_err(failed)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)
    }

    /// Returns a non-blocking socket to accept connections from.
    pub fn acceptor(&self) -> io::Result<UnixListener> {
        acceptor(&self.socket)
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The group that may use the socket, if there is one.
    pub fn gid(&self) -> Option<u32> {
        self.gid
    }
}

fn acceptor(socket: &UnixListener) -> io::Result<UnixListener> {
    socket.set_nonblocking(true)?;
    socket.try_clone()
}

/// Removes the socket of a broker that was killed.
fn remove_left_behind(path: &Path) -> Result<(), ListenerError> {
    // A broker of release 0.1.0 takes no lock.
    if has_listener(path) {
        return Err(ListenerError::Busy {
            path: path.into(),
            who: String::new(),
        });
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ListenerError::Bind {
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

/// A locked file next to the socket, so that of two brokers that start together, neither removes the
/// other's socket. Removed when dropped.
struct Lock {
    path: PathBuf,
    /// Closing it releases the lock.
    file: File,
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, ListenerError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |source| ListenerError::Lock {
            path: path.clone(),
            source,
        };
        loop {
            let mut file = open_lock(&path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(ListenerError::Busy {
                        path: socket.into(),
                        who: holder(&mut file),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
            // Its last holder may have removed it before the lock was taken.
            if is_at(&path, identity(&file.metadata().map_err(failed)?)) {
                file.set_len(0).map_err(failed)?;
                write!(file, "{}", std::process::id()).map_err(failed)?;
                return Ok(Self { path, file });
            }
        }
    }

    fn is_there(&self) -> bool {
        let locked = self.file.metadata();
        locked.is_ok_and(|locked| is_at(&self.path, identity(&locked)))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Not that of another broker, or our next one.
        if self.is_there() {
            // A file that is left behind is reused.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.uid() == geteuid().as_raw() {
        return Ok(file);
    }
    Err(io::Error::other("it is not a file of this user; remove it"))
}

/// Names the holder of the lock, for messages. It writes its number right after it has locked the file.
fn holder(file: &mut File) -> String {
    for _ in 0..HOLDER_ATTEMPTS {
        let mut text = String::new();
        match file.take(16).read_to_string(&mut text) {
            Ok(0) => sleep(HOLDER_PAUSE),
            Ok(_) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                return format!(" (process {text})");
            }
            _ => break,
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path, None).unwrap();
        let Err(refusal @ ListenerError::Busy { .. }) = Listener::bind(&path, None) else {
            panic!("it was replaced");
        };
        let holder = format!("(process {})", std::process::id());
        assert!(refusal.to_string().contains(&holder), "{refusal}");
        drop(listener);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_broker_without_a_lock_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        let _live = UnixListener::bind(&path).unwrap();
        assert!(matches!(
            Listener::bind(&path, None),
            Err(ListenerError::Busy { .. })
        ));
    }

    #[test]
    fn one_of_many_concurrent_brokers_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        for _ in 0..20 {
            // As one that was killed leaves it.
            drop(UnixListener::bind(&path).unwrap());
            let (start, end) = (Barrier::new(8), Barrier::new(8));
            thread::scope(|scope| {
                let bound: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            let listener = Listener::bind(&path, None);
                            end.wait();
                            listener.is_ok()
                        })
                    })
                    .collect();
                let winners = bound.into_iter().filter_map(|it| it.join().ok());
                assert_eq!(winners.filter(|won| *won).count(), 1);
            });
        }
    }

    #[test]
    fn other_files_are_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::bind(&path, None),
            Err(ListenerError::Path(SocketPathError::Occupied { .. }))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_world_writable_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let refusal = Listener::bind(&directory.path().join("broker.sock"), None).err();
        let refusal = refusal.unwrap().to_string();
        assert!(refusal.contains("every user can write"), "{refusal}");
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.sock");
        let first = Listener::bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
