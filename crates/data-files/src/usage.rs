//! Whether any file of a data directory is encrypted with a key, whatever its version.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    aria, binary_log,
    files::{Files, is_there},
    innodb::{self, SpaceKey},
    log_lists::LogList,
    scan::{self, Needs, SYSTEM_KEY_ID, ScanError},
};

/// A file that does not tell which key it is encrypted with.
#[derive(Debug, thiserror::Error)]
#[error("cannot tell which keys '{}' needs: it {source}", path.display())]
pub struct UnclearFile {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: ScanError,
}

/// Why it is not known whether a key is in use, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Unclear {
    /// A file does not tell.
    #[error("{0}; repair that file or move it out of the data directory")]
    File(#[from] UnclearFile),
    /// InnoDB's redo log is somewhere else.
    #[error("the data directory has tablespaces, but no redo log, which may be encrypted: if innodb_log_group_home_dir is another directory, make a symbolic link '{}' to the ib_logfile0 there until the key is made", .0.display())]
    NoRedoLog(PathBuf),
}

/// Looks for a file of the data directory that is encrypted with key `key_id`, while the server runs or
/// not. `None` if there is none.
///
/// `log_lists` are where lists of binary logs may be, also outside the data directory. Those that do not exist do not
/// count.
///
/// The cost is one read of 64 KiB at most for each tablespace, and for key 1, which also encrypts redo
/// log, binary logs and Aria, a small one for every other file and one of each encrypted Aria table up to
/// its first encrypted page, or its end.
///
/// Errors: a file that may be encrypted with the key, and cannot be read or found.
pub fn find(
    datadir: &Path,
    log_lists: &[LogList],
    key_id: u32,
) -> Result<Option<PathBuf>, Unclear> {
    let files = match key_id {
        SYSTEM_KEY_ID => Files::find(datadir, &[]).with_listed(log_lists, datadir),
        _ => Files::find_tablespaces(datadir),
    };
    let is_read_below = |path: &PathBuf| {
        // A binary log that InnoDB keeps is never encrypted.
        path.extension().is_some_and(|extension| extension == "ibb")
            || files.archived_redo_logs.contains(path)
    };
    let mut unclear = files
        .unreadable
        .into_iter()
        .filter(|(path, _)| !is_read_below(path))
        .map(|(path, source)| UnclearFile { path, source }.into())
        .collect::<Vec<Unclear>>();
    let redo_logs = [files.redo_logs, files.archived_redo_logs].concat();
    let has_tablespaces = !(files.system_tablespace.is_empty() && files.tablespaces.is_empty());
    if key_id == SYSTEM_KEY_ID && has_tablespaces && redo_logs.is_empty() {
        unclear.push(Unclear::NoRedoLog(datadir.join("ib_logfile0")));
    }
    let mut find = |paths: Vec<PathBuf>, uses: &dyn Fn(&Path) -> Result<bool, ScanError>| {
        paths.into_iter().find(|path| match uses(path) {
            Ok(uses) => uses,
            // The server drops tables and purges logs meanwhile.
            Err(error) if error.is_not_found() && !is_there(path) => false,
            Err(source) => {
                let path = path.clone();
                unclear.push(UnclearFile { path, source }.into());
                false
            }
        })
    };
    let mut tablespaces = files.system_tablespace;
    // Only the first of its files has a page 0.
    tablespaces.truncate(1);
    tablespaces.extend(files.tablespaces);
    let found = find(tablespaces, &|path| tablespace_uses(path, key_id))
        .or_else(|| find(redo_logs, &redo_log_is_encrypted))
        .or_else(|| find(files.aria_indexes, &aria_is_encrypted))
        .or_else(|| {
            find(
                files.binary_logs.into_iter().collect(),
                &binary_log_is_encrypted,
            )
        });
    match (found, unclear.into_iter().next()) {
        (Some(path), _) => Ok(Some(path)),
        (None, Some(unclear)) => Err(unclear),
        (None, None) => Ok(None),
    }
}

/// What binary and relay logs say about key 1, the only one that encrypts them.
#[derive(Debug, Default)]
pub struct LogVersions {
    /// The versions that encrypt logs, each with the first of these logs by name.
    pub versions: BTreeMap<u32, PathBuf>,
    /// What does not tell.
    pub unclear: Vec<UnclearFile>,
}

/// Reads which versions of key 1 encrypt the binary and relay logs that `log_lists` name. A list or log that does not
/// exist does not count.
///
/// The cost is two small reads for each log.
pub fn find_log_versions(datadir: &Path, log_lists: &[LogList]) -> LogVersions {
    let files = Files::default().with_listed(log_lists, datadir);
    let unreadable = files.unreadable.into_iter();
    let mut found = LogVersions {
        versions: BTreeMap::new(),
        unclear: unreadable
            .map(|(path, source)| UnclearFile { path, source })
            .collect(),
    };
    for path in files.binary_logs {
        match binary_log_needs(&path) {
            Ok(needs) => {
                for (_, version) in needs.into_keys() {
                    found
                        .versions
                        .entry(version)
                        .or_insert_with(|| path.clone());
                }
            }
            // The server purges logs meanwhile.
            Err(error) if error.is_not_found() => {}
            Err(source) => found.unclear.push(UnclearFile { path, source }),
        }
    }
    found
}

/// An Aria table that is encrypted with a version of key 1 that is not there.
#[derive(Debug, PartialEq, Eq)]
pub struct UnreadableAria {
    /// The index file (`.MAI`) of the table.
    pub table: PathBuf,
    /// The version; `None` if no version is loaded.
    pub key_version: Option<u32>,
}

/// Looks for an Aria table that cannot be read with the versions of key 1 of which `has_version` is true;
/// without it, there are no versions. `None` if there is no such table.
///
/// The cost is a small read of every file, and with `has_version` one of all encrypted tables from end to
/// end.
///
/// Errors: a table that does not tell.
pub fn find_unreadable_aria(
    datadir: &Path,
    has_version: Option<&dyn Fn(u32) -> bool>,
) -> Result<Option<UnreadableAria>, UnclearFile> {
    for index in Files::find(datadir, &[]).aria_indexes {
        let missing = missing_version(&index, has_version).map_err(|source| UnclearFile {
            path: index.clone(),
            source,
        })?;
        if let Some(key_version) = missing {
            return Ok(Some(UnreadableAria {
                table: index,
                key_version,
            }));
        }
    }
    Ok(None)
}

/// The version that a table needs and that is not loaded; `Some(None)` if it needs one and none is loaded.
#[allow(
    clippy::option_option,
    reason = "no version at all is something else than no need of one"
)]
fn missing_version(
    index: &Path,
    has_version: Option<&dyn Fn(u32) -> bool>,
) -> Result<Option<Option<u32>>, ScanError> {
    let mut file = scan::open(index)?;
    let Some(layout) = aria::Layout::read(&mut file)? else {
        return Ok(None);
    };
    let Some(has_version) = has_version else {
        return Ok(Some(None));
    };
    let missing = |needs: Needs| {
        let mut versions = needs.into_keys().map(|(_, version)| version);
        versions.find(|&version| !has_version(version))
    };
    let mut found = missing(layout.scan_index(&mut file)?);
    let data = aria::data_file(index);
    // MariaDB 10.5 asks for the key of a new table before it makes this file.
    if found.is_none() && is_there(&data) {
        found = missing(layout.scan_data(&mut scan::open(&data)?)?);
    }
    Ok(found.map(Some))
}

fn tablespace_uses(path: &Path, key_id: u32) -> Result<bool, ScanError> {
    let uses = |key: SpaceKey| key.key_id == key_id && key.in_use;
    match innodb::key_of_page_0(path) {
        Ok(key) => Ok(key.is_some_and(uses)),
        Err(ScanError::Malformed(_)) => {
            // Made a moment ago: InnoDB has not written it yet.
            if begins_with_zeros(path)? {
                return Ok(false);
            }
            // Or has since the first look.
            Ok(innodb::key_of_page_0(path)?.is_some_and(uses))
        }
        Err(error) => Err(error),
    }
}

fn begins_with_zeros(path: &Path) -> Result<bool, ScanError> {
    let mut page = Vec::new();
    scan::open(path)?
        .take(innodb::MIN_PAGE_BYTES)
        .read_to_end(&mut page)?;
    Ok(page.iter().all(|&byte| byte == 0))
}

/// Every format so far, also those that this crate cannot read, sets the highest bit of an encrypted log.
fn redo_log_is_encrypted(path: &Path) -> Result<bool, ScanError> {
    let mut format = [0];
    let read = scan::open(path)?.read(&mut format)?;
    Ok(read > 0 && format[0] & 1 << 7 != 0)
}

/// A table that is being made says that it is encrypted before its first page is: 10.5 asks for the key in between.
fn aria_is_encrypted(path: &Path) -> Result<bool, ScanError> {
    Ok(missing_version(path, Some(&|_| false))?.is_some())
}

fn binary_log_is_encrypted(path: &Path) -> Result<bool, ScanError> {
    Ok(!binary_log_needs(path)?.is_empty())
}

fn binary_log_needs(path: &Path) -> Result<Needs, ScanError> {
    let mut file: File = scan::open(path)?;
    Ok(binary_log::scan(&mut file)?.needs)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::tests::{aria_index, binary_log_file, redo_log_10_5, redo_log_10_8, tablespace};

    const PAGE_BYTES: usize = 16 << 10;
    const CRYPT: usize = 188 + 40 * 256;

    /// A tablespace of which page 0 names key 77.
    fn table(crypt_type: u8, min_key_version: u32) -> Vec<u8> {
        let mut file = tablespace(0x15, PAGE_BYTES, CRYPT, &[0]);
        file[CRYPT + 6] = crypt_type;
        file[CRYPT + 24..CRYPT + 28].copy_from_slice(&min_key_version.to_be_bytes());
        file
    }

    fn datadir(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        directory
    }

    fn found(files: &[(&str, &[u8])], key_id: u32) -> Option<String> {
        let directory = datadir(files);
        let path = find(directory.path(), &[], key_id).unwrap()?;
        Some(
            path.strip_prefix(directory.path())
                .unwrap()
                .display()
                .to_string(),
        )
    }

    #[test]
    fn a_tablespace_proves_the_key_that_it_is_encrypted_with_and_no_other() {
        let encrypted = [("d/t.ibd", table(1, 1)), ("ib_logfile0", Vec::new())];
        let files: Vec<_> = encrypted
            .iter()
            .map(|(name, content)| (*name, content.as_slice()))
            .collect();
        assert_eq!(found(&files, 77).as_deref(), Some("d/t.ibd"));
        assert_eq!(found(&files, 78), None);
        assert_eq!(found(&files, 1), None);
        // ENCRYPTED=NO names a key without using it; one that is still being decrypted uses it.
        assert_eq!(found(&[("d/t.ibd", &table(0, 0))], 77), None);
        assert!(found(&[("d/t.ibd", &table(0, 3))], 77).is_some());
        assert!(found(&[("undo001", &table(1, 1))], 77).is_some());
        assert!(found(&[("ibdata1", &table(1, 1))], 77).is_some());
    }

    #[test]
    fn a_tablespace_whose_first_page_is_written_meanwhile_proves_nothing_wrong() {
        let page = table(1, 1);
        let directory = tempfile::tempdir().unwrap();
        for number in 0..500 {
            let path = directory.path().join(format!("{number}.ibd"));
            fs::write(&path, vec![0; PAGE_BYTES]).unwrap();
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    let file = File::options().write(true).open(&path).unwrap();
                    file.write_all_at(&page, 0).unwrap();
                });
                while !tablespace_uses(&path, 77).unwrap() {}
            });
        }
    }

    #[test]
    fn logs_and_aria_prove_key_1_alone() {
        for (name, content) in [
            ("ib_logfile0", redo_log_10_8(b"\xd0hys", b"\xfa")),
            ("ib_logfile0", redo_log_10_8(b"\xf0\x9f\x97\x9d", b"\xfa")),
            ("ib_logfile0", redo_log_10_5(1)),
            ("ib_logfile0", b"\x80 a later format".to_vec()),
            ("ib_0000000000012288.log", b"\x80 a later format".to_vec()),
            ("d/t.MAI", aria_index()),
            ("binlog.000001", binary_log_file(1)),
        ] {
            assert_eq!(found(&[(name, &content)], 1).as_deref(), Some(name));
            assert_eq!(found(&[(name, &content)], 2), None);
        }
        for (name, content) in [
            ("ib_logfile0", redo_log_10_8(b"Phys", b"\xfa")),
            ("ib_logfile0", b"PHYS".to_vec()),
            ("ib_logfile0", Vec::new()),
            ("ib_0000000000012288.log", b"a later format".to_vec()),
            ("binlog-000001.ibb", b"never encrypted".to_vec()),
        ] {
            assert_eq!(found(&[(name, &content)], 1), None);
        }
        let mut only_made = aria_index();
        only_made[1024 + 13..].fill(0);
        let files: [(&str, &[u8]); 2] = [("d/t.MAI", &only_made), ("d/t.MAD", b"")];
        assert_eq!(found(&files, 1), None);
        assert_eq!(found(&files[..1], 1), None);
    }

    #[test]
    fn a_redo_log_that_is_not_there_may_need_key_1_and_a_list_elsewhere_names_binary_logs() {
        let directory = datadir(&[("d/t.ibd", &table(0, 0))]);
        let error = find(directory.path(), &[], 1).unwrap_err().to_string();
        assert!(error.contains("innodb_log_group_home_dir"), "{error}");
        assert!(find(directory.path(), &[], 2).unwrap().is_none());

        let logs = datadir(&[("ib_logfile0", &redo_log_10_8(b"Phys", b"\xfa"))]);
        let link = directory.path().join("ib_logfile0");
        std::os::unix::fs::symlink(logs.path().join("ib_logfile0"), link).unwrap();
        assert!(find(directory.path(), &[], 1).unwrap().is_none());

        let log = logs.path().join("binlog.000001");
        fs::write(&log, binary_log_file(1)).unwrap();
        let list = logs.path().join("binlog.index");
        let lists = || ["/gone/bin".as_ref(), list.as_path()].map(LogList::beside);
        let find = || find(directory.path(), &lists(), 1).unwrap();
        assert_eq!(find(), None);
        fs::write(&list, log.to_str().unwrap()).unwrap();
        assert_eq!(find().unwrap(), log.canonicalize().unwrap());
    }

    #[test]
    fn listed_logs_name_the_versions_of_key_1_and_what_does_not_tell_is_named() {
        let logs = datadir(&[
            ("bin.000001", &binary_log_file(7)),
            ("bin.000002", &binary_log_file(3)),
            ("bin.000003", &binary_log_file(3)),
            ("bin.000004", b""),
            ("bin.000005", b"\xfebin damaged"),
            ("not-listed", &binary_log_file(9)),
        ]);
        let list = logs.path().join("bin.index");
        let names: String = (1..=6)
            .map(|number| format!("{}/bin.00000{number}\n", logs.path().display()))
            .collect();
        fs::write(&list, names).unwrap();
        let datadir = datadir(&[]);
        let lists = ["/gone/bin".as_ref(), list.as_path()].map(LogList::named);
        let found = find_log_versions(datadir.path(), &lists);
        let log = |name: &str| logs.path().canonicalize().unwrap().join(name);
        let expected = [(3, log("bin.000002")), (7, log("bin.000001"))];
        assert_eq!(found.versions, expected.into());
        let unclear: Vec<_> = found.unclear.into_iter().map(|it| it.path).collect();
        assert_eq!(unclear, [log("bin.000005")]);
    }

    #[test]
    fn what_a_link_leads_to_may_be_encrypted_while_it_is_not_there() {
        let away = datadir(&[("d2/t.ibd", &table(1, 1)), ("u.ibd", &table(1, 1))]);
        for (link, target) in [
            ("d2", "d2"),
            ("d2.d", "d2"),
            ("d/u.ibd", "u.ibd"),
            ("d/u.isl", "u.ibd"),
        ] {
            let redo_log = redo_log_10_8(b"Phys", b"\xfa");
            let directory = datadir(&[("d/t.ibd", &table(0, 0)), ("ib_logfile0", &redo_log)]);
            let (link, target) = (directory.path().join(link), away.path().join(target));
            match link.extension().is_some_and(|extension| extension == "isl") {
                true => fs::write(link, target.to_str().unwrap()).unwrap(),
                false => std::os::unix::fs::symlink(&target, link).unwrap(),
            }
            assert!(find(directory.path(), &[], 77).unwrap().is_some());
            let unmounted = target.with_extension("unmounted");
            fs::rename(&target, &unmounted).unwrap();
            for key_id in [1, 77] {
                let error = find(directory.path(), &[], key_id).unwrap_err().to_string();
                assert!(error.contains("No such file"), "{error}");
            }
            fs::rename(&unmounted, &target).unwrap();
        }
    }

    #[test]
    fn a_link_to_nowhere_that_can_be_nothing_encrypted_is_passed_over() {
        let redo_log = redo_log_10_8(b"Phys", b"\xfa");
        let directory = datadir(&[("d/t.ibd", &table(0, 0)), ("ib_logfile0", &redo_log)]);
        for name in ["mysql.sock", "my.cnf", ".#notes", "d/m.MYD"] {
            std::os::unix::fs::symlink("/gone", directory.path().join(name)).unwrap();
        }
        for key_id in [1, 77] {
            assert!(find(directory.path(), &[], key_id).unwrap().is_none());
        }
        // A directory in that of a database has no tablespaces.
        std::os::unix::fs::symlink("/gone", directory.path().join("d/notes")).unwrap();
        assert!(find(directory.path(), &[], 77).unwrap().is_none());
        assert!(find(directory.path(), &[], 1).is_err());
    }

    #[test]
    fn a_list_behind_a_link_to_nowhere_may_name_logs() {
        let directory = datadir(&[("ib_logfile0", &redo_log_10_8(b"Phys", b"\xfa"))]);
        let link = directory.path().join("logs");
        let lists = [LogList::beside(&link.join("bin"))];
        assert!(find(directory.path(), &lists, 1).unwrap().is_none());
        let elsewhere = tempfile::tempdir().unwrap().path().join("logs");
        std::os::unix::fs::symlink(elsewhere, &link).unwrap();
        let found = find_log_versions(directory.path(), &lists);
        assert_eq!(found.unclear.len(), 1);
        assert_eq!(found.unclear[0].path, link);
    }

    #[test]
    fn a_binary_log_is_found_however_far_below_the_data_directory_it_is() {
        let log = binary_log_file(1);
        let name = "a/b/c/binlog.000001";
        let directory = datadir(&[(name, &log), ("a/b/c/notes", b"text")]);
        std::os::unix::fs::symlink(directory.path(), directory.path().join("a/b/loop")).unwrap();
        let found = find(directory.path(), &[], 1).unwrap().unwrap();
        assert!(found.ends_with(name), "{}", found.display());
        assert!(find(directory.path(), &[], 2).unwrap().is_none());
    }

    #[test]
    fn a_database_of_10_5_can_be_called_as_fscks_directory_is() {
        let directory = datadir(&[("lost+found/t.ibd", &table(1, 1)), ("d/lost+found", b"")]);
        let found = find(directory.path(), &[], 77).unwrap().unwrap();
        assert!(found.ends_with("lost+found/t.ibd"), "{}", found.display());
    }

    #[test]
    fn what_innodb_has_not_written_yet_proves_nothing_and_what_is_damaged_is_named() {
        assert_eq!(found(&[("d/t.ibd", &[0; PAGE_BYTES])], 77), None);
        assert_eq!(found(&[("d/t.ibd", b"")], 77), None);
        // 10.5 writes it twice, first without type and LSN.
        let mut only_made = table(1, 1);
        only_made[16..26].fill(0);
        only_made[34..38].copy_from_slice(&5u32.to_be_bytes());
        assert!(found(&[("d/t.ibd", &only_made)], 77).is_some());
        assert_eq!(found(&[("d/t.ibd", &only_made)], 78), None);
        let mut damaged = table(1, 1);
        damaged[24] = 0xff;
        let directory = datadir(&[("d/a.ibd", &damaged), ("d/b.ibd", &table(1, 1))]);
        let error = find(directory.path(), &[], 78).unwrap_err().to_string();
        assert!(
            error.contains("a.ibd") && error.contains("first page"),
            "{error}"
        );
        assert!(find(directory.path(), &[], 77).unwrap().is_some());
    }

    #[test]
    fn an_aria_table_is_unreadable_without_a_version_of_one_of_its_pages() {
        // Its page of the index has version 6.
        let index = aria_index();
        let directory = datadir(&[("d/t.MAI", &index), ("d/t.MAD", b"")]);
        let found = |has_version: Option<&dyn Fn(u32) -> bool>| {
            let found = find_unreadable_aria(directory.path(), has_version).unwrap();
            found.map(|unreadable| unreadable.key_version)
        };
        assert_eq!(found(None), Some(None));
        assert_eq!(found(Some(&|version| version == 5)), Some(Some(6)));
        assert_eq!(found(Some(&|version| version == 6)), None);
        let data = directory.path().join("d/t.MAD");
        fs::write(&data, b"less than a page").unwrap();
        let error = find_unreadable_aria(directory.path(), Some(&|_| true)).unwrap_err();
        assert!(error.path.ends_with("d/t.MAI"), "{error}");
        // A server that was killed while it made or dropped the table.
        fs::remove_file(&data).unwrap();
        assert_eq!(found(Some(&|_| true)), None);
    }
}
