//! Where a server keeps the lists of its binary and relay logs.

use std::{
    env,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

const EXTENSION: &str = ".index";

/// The lists that one option of a server places somewhere.
#[derive(Debug)]
pub struct LogList {
    /// May be relative to the data directory.
    pub(crate) directory: PathBuf,
    stem: Vec<u8>,
    extension: Vec<u8>,
    /// Where the server lists its named connections.
    pub(crate) connections: Option<PathBuf>,
}

impl LogList {
    /// The list that `log_bin_index` or `relay_log_index` names. The server adds `.index` to a name without extension.
    pub fn named(index: &Path) -> Self {
        let (directory, name) = split(index);
        let end = name.iter().rposition(|&byte| byte == b'.');
        let (stem, extension) = name.split_at(end.unwrap_or(name.len()));
        Self {
            directory,
            stem: stem.to_vec(),
            extension: match extension {
                [] => EXTENSION.into(),
                extension => extension.to_vec(),
            },
            connections: None,
        }
    }

    /// The list beside the logs that `log_bin` or `relay_log` names. The server replaces all extensions of the name.
    pub fn beside(logs: &Path) -> Self {
        let (directory, name) = split(logs);
        let stem = name.split(|&byte| byte == b'.').next();
        Self {
            directory,
            stem: stem.unwrap_or_default().to_vec(),
            extension: EXTENSION.into(),
            connections: None,
        }
    }

    /// The same and, as for relay logs, one list for each named connection (multi-source replication). The server lists
    /// these beside what the option `master_info_file` names.
    #[must_use]
    pub fn with_connections(self, master_info_file: &Path) -> Self {
        let (directory, name) = split(master_info_file);
        let name = [b"multi-", &*name].concat();
        Self {
            connections: Some(directory.join(OsStr::from_bytes(&name))),
            ..self
        }
    }

    /// Whether a file of the directory has the name of such a list. `connections` are those that the server has, if the
    /// option has one for each: the list of another one is another server's, whose `relay_log` begins with the same letters.
    pub(crate) fn is_named(&self, name: &OsStr, connections: &[String]) -> bool {
        let rest = name
            .as_bytes()
            .strip_prefix(&*self.stem)
            .and_then(|name| name.strip_suffix(&*self.extension));
        match rest {
            Some([]) => true,
            Some([b'-', connection @ ..]) => {
                connections.iter().any(|known| may_be(connection, known))
            }
            _ => false,
        }
    }
}

/// Whether a part of a file name may be that of a connection: in lower case and, from its first special character on,
/// encoded as names of tables are.
fn may_be(part: &[u8], connection: &str) -> bool {
    let is_special = |byte: u8| !byte.is_ascii_alphanumeric() && byte != b'_';
    let special = connection.bytes().position(is_special);
    match part.split_at_checked(special.unwrap_or(connection.len())) {
        Some((plain, rest)) => {
            let is_same = connection.as_bytes()[..plain.len()].eq_ignore_ascii_case(plain);
            is_same && rest.first() == special.map(|_| &b'@')
        }
        None => false,
    }
}

/// Directory and file name. The server reads `~/` as its home directory.
fn split(path: &Path) -> (PathBuf, Vec<u8>) {
    let home = || Some(Path::new(&env::var_os("HOME")?).join(path.strip_prefix("~").ok()?));
    let path = home().unwrap_or_else(|| path.to_owned());
    let directory = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default();
    (directory.to_owned(), name.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_named(list: &LogList, path: &str) -> bool {
        is_named_with(&["B".into(), "Na.me".into(), "ö".into()], list, path)
    }

    fn is_named_with(connections: &[String], list: &LogList, path: &str) -> bool {
        let path = Path::new(path);
        Some(&*list.directory) == path.parent()
            && list.is_named(path.file_name().unwrap(), connections)
    }

    /// What MariaDB 10.11 makes.
    #[test]
    fn a_list_has_the_name_that_the_server_gives_it() {
        for (index, list) in [
            ("/l/list", "/l/list.index"),
            ("/l.d/list", "/l.d/list.index"),
            ("/l/my.list", "/l/my.list"),
            ("/l/a.b.c", "/l/a.b.c"),
            ("list", "list.index"),
            ("l/list.index", "l/list.index"),
        ] {
            assert!(is_named(&LogList::named(Path::new(index)), list), "{index}");
        }
        for (logs, list) in [
            ("/l/bin", "/l/bin.index"),
            ("/l/bin.x.y", "/l/bin.index"),
            ("/l.d/bin", "/l.d/bin.index"),
            ("/l/.hid", "/l/.index"),
            ("bin", "bin.index"),
        ] {
            assert!(is_named(&LogList::beside(Path::new(logs)), list), "{logs}");
        }
        let home = env::var("HOME").unwrap();
        let list = LogList::beside(Path::new("~/l/bin"));
        assert!(is_named(&list, &format!("{home}/l/bin.index")));
    }

    #[test]
    fn relay_logs_have_a_list_for_each_connection_of_the_server() {
        for (list, of_connection) in [
            (LogList::named(Path::new("/l/list")), "/l/list-b.index"),
            (LogList::named(Path::new("/l/a.b.c")), "/l/a.b-b.c"),
            (LogList::beside(Path::new("/l/relay.x")), "/l/relay-b.index"),
        ] {
            assert!(!is_named_with(&[], &list, of_connection), "{of_connection}");
            assert!(is_named(&list, of_connection), "{of_connection}");
            assert!(!is_named(&list, "/l/listed.index"));
            assert!(!is_named(&list, "/l/relay-b.000001"));
            let of = |connection: &str| of_connection.replace("-b.", &format!("-{connection}."));
            for known in ["na@002eme", "@00f6"] {
                assert!(is_named(&list, &of(known)), "{known}");
            }
            for unknown in ["2", "bb", "", "name", "na", "n@002eme", "b@002e"] {
                assert!(!is_named(&list, &of(unknown)), "{unknown}");
            }
        }
    }

    #[test]
    fn the_connections_are_listed_beside_the_file_of_the_first_one() {
        for (file, connections) in [
            ("master.info", "multi-master.info"),
            ("/m/main", "/m/multi-main"),
            ("sub/m.info", "sub/multi-m.info"),
        ] {
            let list = LogList::beside(Path::new("relay")).with_connections(Path::new(file));
            assert_eq!(list.connections.unwrap(), Path::new(connections));
        }
    }
}
