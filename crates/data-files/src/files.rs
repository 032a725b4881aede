//! Which files of a data directory may be encrypted.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::OsStr,
    fs,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{
    binary_log,
    log_lists::LogList,
    scan::{ScanError, open},
};

/// More than any list of binary logs, or path, is long.
const MAX_LIST_BYTES: u64 = 16 << 20;

/// MariaDB's manual, "InnoDB-Based Binary Log": files like `binlog-000001.ibb` in the data directory
/// or in `binlog_directory`.
const INNODB_BINARY_LOG: ScanError =
    ScanError::Unsupported("belongs to the InnoDB-based binary log of MariaDB 12.3 and later");
/// MariaDB's manual, "InnoDB Log Archiving".
const ARCHIVED_REDO_LOG: ScanError = ScanError::Unsupported(
    "is an archived redo log (innodb_log_archive) of MariaDB 13.0 and later",
);

/// What may be encrypted with data keys and is still there after a start of the server.
#[derive(Debug, Default)]
pub struct Files {
    /// `ibdata1` and those that follow it, in order.
    pub system_tablespace: Vec<PathBuf>,
    /// Tables and undo tablespaces of InnoDB.
    pub tablespaces: Vec<PathBuf>,
    /// InnoDB's redo logs: one is as it should be.
    pub redo_logs: Vec<PathBuf>,
    /// Binary logs and relay logs.
    pub binary_logs: BTreeSet<PathBuf>,
    /// Files of Aria's log, which is never encrypted.
    pub aria_logs: Vec<PathBuf>,
    /// Definitions of tables (`.frm`), which are never encrypted.
    pub table_definitions: Vec<PathBuf>,
    /// What mariadb-upgrade leaves behind.
    pub upgrade_info: Vec<PathBuf>,
    /// InnoDB's redo logs of MariaDB 13.0 and later with `innodb_log_archive`, which take the place of
    /// the other ones. They are among the `unreadable` too.
    pub archived_redo_logs: Vec<PathBuf>,
    /// Index files of Aria's tables.
    pub aria_indexes: Vec<PathBuf>,
    /// What could not be looked into.
    pub unreadable: Vec<(PathBuf, ScanError)>,
}

/// How far a database's directory is below the data directory, or one that was named with it.
const DATABASE_DEPTH: usize = 1;

impl Files {
    /// Looks through the data directory, the further ones, and the directories in each, and further down for
    /// binary logs. What it cannot look into is in `unreadable`.
    pub fn find(datadir: &Path, further: &[PathBuf]) -> Self {
        let mut roots = vec![datadir];
        roots.extend(further.iter().map(PathBuf::as_path));
        let mut files = Self::walk(&roots, usize::MAX, |files, depth, path| match depth {
            ..=DATABASE_DEPTH => files.add(path, datadir),
            // A server can be told to write its binary logs anywhere.
            _ => files.add_if_binary_log(path),
        });
        for path in &files.archived_redo_logs {
            files.unreadable.push((path.clone(), ARCHIVED_REDO_LOG));
        }
        files
    }

    /// Looks for InnoDB's tablespaces only, and opens no file but those that name one elsewhere.
    pub fn find_tablespaces(datadir: &Path) -> Self {
        Self::walk(&[datadir], DATABASE_DEPTH, |files, _, path| {
            files.add_tablespace(path);
        })
    }

    /// Adds the binary logs that further lists name. A list that does not exist names none.
    pub fn with_listed(mut self, lists: &[LogList], datadir: &Path) -> Self {
        let mut connections = BTreeMap::new();
        for path in lists.iter().flat_map(|list| &list.connections) {
            if !connections.contains_key(path) {
                connections.insert(path, self.connections(&datadir.join(path)));
            }
        }
        let connections = |list: &LogList| {
            let path = list.connections.as_ref();
            path.and_then(|path| connections.get(path))
                .map_or(&[][..], Vec::as_slice)
        };
        let directories: BTreeSet<_> = lists.iter().map(|list| &list.directory).collect();
        for directory in directories {
            let here = datadir.join(directory);
            // One that cannot be looked for may exist, and so may what a link to a disk leads to that is not mounted.
            if !is_there(&here) {
                continue;
            }
            for path in self.entries(&here) {
                let is_named = |list: &LogList| {
                    &list.directory == directory
                        && path
                            .file_name()
                            .is_some_and(|name| list.is_named(name, connections(list)))
                };
                if lists.iter().any(is_named) {
                    self.add_listed(path, datadir);
                }
            }
        }
        self
    }

    /// The named connections of a replica with several masters. The server writes their names there, one in a line.
    fn connections(&mut self, list: &Path) -> Vec<String> {
        match read_list(list) {
            Ok(names) => names.lines().map(str::to_owned).collect(),
            Err(error) if error.is_not_found() && !is_there(list) => Vec::new(),
            Err(error) => {
                self.unreadable.push((list.to_owned(), error));
                Vec::new()
            }
        }
    }

    /// Calls `add` with everything but directories that is at most `max_depth` below one of `roots`, and with how far
    /// below. A directory is looked through once, whatever it is called. Databases contain no directories, so there are
    /// few.
    fn walk(roots: &[&Path], max_depth: usize, add: impl Fn(&mut Self, usize, PathBuf)) -> Self {
        let mut files = Self::default();
        let mut known = BTreeSet::new();
        let mut directories: VecDeque<_> =
            roots.iter().map(|root| (0, root.to_path_buf())).collect();
        while let Some((depth, directory)) = directories.pop_front() {
            let directory = match directory.canonicalize() {
                Ok(directory) => directory,
                Err(_) if depth > 0 && !is_there(&directory) => continue,
                Err(error) => {
                    files.unreadable.push((directory, error.into()));
                    continue;
                }
            };
            if !known.insert(directory.clone()) {
                continue;
            }
            for path in files.entries(&directory) {
                match path.metadata() {
                    Ok(metadata) if !metadata.is_dir() => add(&mut files, depth, path),
                    Ok(_) if depth == max_depth => {}
                    Ok(_) => directories.push_back((depth + 1, path)),
                    Err(_) if !is_there(&path) || is_never_encrypted(&path) => {}
                    // What is no directory to be looked through.
                    Err(_) if depth == max_depth => add(&mut files, depth, path),
                    // A link to a disk that is not mounted, or to what may not be searched.
                    Err(error) => files.unreadable.push((path, error.into())),
                }
            }
        }
        files
            .system_tablespace
            .sort_by_key(|path| number_after(path, "ibdata"));
        files
    }

    fn entries(&mut self, directory: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(directory)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        entries.unwrap_or_else(|error: io::Error| {
            // A database that the server has dropped meanwhile is no doubt. Neither is fsck's directory, which only root can
            // read. One that can be read may be a database: 10.5 makes it for `#mysql50#lost+found`.
            let is_of_fsck = error.kind() == io::ErrorKind::PermissionDenied
                && directory.ends_with("lost+found");
            if is_there(directory) && !is_of_fsck {
                self.unreadable.push((directory.to_owned(), error.into()));
            }
            Vec::new()
        })
    }

    fn add(&mut self, path: PathBuf, datadir: &Path) {
        let Some(path) = self.add_tablespace(path) else {
            return;
        };
        if matches!(number_after(&path, "ib_logfile"), Some(0..=100)) {
            self.redo_logs.push(path);
        } else if number_after(&path, "aria_log.").is_some() {
            self.aria_logs.push(path);
        } else if path.ends_with("mariadb_upgrade_info") || path.ends_with("mysql_upgrade_info") {
            self.upgrade_info.push(path);
        } else if is_archived_redo_log(&path) {
            self.archived_redo_logs.push(path);
        } else {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("MAI") => self.aria_indexes.push(path),
                Some("frm") => self.table_definitions.push(path),
                Some("index") => self.add_listed(path, datadir),
                Some("ibb") => self.unreadable.push((path, INNODB_BINARY_LOG)),
                _ => self.add_if_binary_log(path),
            }
        }
    }

    /// Gives back what is no tablespace.
    fn add_tablespace(&mut self, path: PathBuf) -> Option<PathBuf> {
        if number_after(&path, "ibdata").is_some() {
            self.system_tablespace.push(path);
        } else if number_after(&path, "undo").is_some() {
            self.tablespaces.push(path);
        } else {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("ibd") => self.tablespaces.push(path),
                // DATA DIRECTORY: the file names the tablespace, which lies elsewhere.
                Some("isl") => match read_list(&path) {
                    Ok(target) => self.add_linked_tablespace(&path, target.trim().into()),
                    Err(error) => self.unreadable.push((path, error)),
                },
                _ => return Some(path),
            }
        }
        None
    }

    /// One that is not there is not lost to the server while `link` names it.
    fn add_linked_tablespace(&mut self, link: &Path, tablespace: PathBuf) {
        match tablespace.metadata() {
            Err(error) if is_there(link) => self.unreadable.push((tablespace, error.into())),
            _ => self.tablespaces.push(tablespace),
        }
    }

    fn add_if_binary_log(&mut self, path: PathBuf) {
        // Sockets and the like cannot be opened.
        if !path.is_file() {
            return;
        }
        match begins_like_a_binary_log(&path) {
            Ok(true) => self.add_binary_log(path),
            Ok(false) => {}
            Err(error) => self.unreadable.push((path, error)),
        }
    }

    /// The binary logs that `list` names, wherever they are.
    fn add_listed(&mut self, list: PathBuf, datadir: &Path) {
        match read_list(&list) {
            Ok(names) => {
                for name in names.lines().filter(|name| !name.is_empty()) {
                    self.add_binary_log(datadir.join(name));
                }
            }
            Err(error) => self.unreadable.push((list, error)),
        }
    }

    fn add_binary_log(&mut self, path: PathBuf) {
        // One name for each, since lists call them ./NAME; what is not there is told when it is read.
        self.binary_logs.insert(path.canonicalize().unwrap_or(path));
    }
}

/// Whether a name exists, also that of a link to nowhere.
pub(crate) fn is_there(path: &Path) -> bool {
    !matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Whether nothing that has this name is, or contains, anything encrypted, so a link may lead nowhere: one to the server's
/// socket does before its start, an editor's lock always. A directory of logs can have nearly any name.
fn is_never_encrypted(path: &Path) -> bool {
    let is_lock = |name: &OsStr| name.as_bytes().starts_with(b".#");
    let extension = path.extension().and_then(OsStr::to_str);
    path.file_name().is_some_and(is_lock)
        || matches!(
            extension,
            Some("cnf" | "err" | "frm" | "lock" | "MYD" | "MYI" | "opt" | "pid" | "sock")
        )
}

fn begins_like_a_binary_log(path: &Path) -> Result<bool, ScanError> {
    let mut beginning = Vec::new();
    let bytes = binary_log::MAGIC.len() as u64;
    open(path)?.take(bytes).read_to_end(&mut beginning)?;
    Ok(beginning == binary_log::MAGIC)
}

fn read_list(path: &Path) -> Result<String, ScanError> {
    let mut text = String::new();
    open(path)?.take(MAX_LIST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// `ib_` and an LSN of 16 hexadecimal digits.
fn is_archived_redo_log(path: &Path) -> bool {
    let lsn = path
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix("ib_")?.strip_suffix(".log"));
    lsn.is_some_and(|lsn| lsn.len() == 16 && lsn.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The number that follows `prefix` in the name of a file.
fn number_after(path: &Path, prefix: &str) -> Option<u32> {
    let digits = path.file_name()?.to_str()?.strip_prefix(prefix)?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}
