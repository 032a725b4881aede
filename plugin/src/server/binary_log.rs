//! The InnoDB-based binary log of MariaDB 12.3 and later, which the server does not encrypt.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use visible_text::escape;

/// Returns what to tell the administrator if `directory` holds an InnoDB-based binary log. Its files are named
/// `binlog-NUMBER.ibb`. Source: the page "InnoDB-Based Binary Log" of MariaDB's manual.
pub fn warning(directory: &Path) -> Option<String> {
    // A directory that cannot be read is reported by those who need it.
    let names = fs::read_dir(directory).ok()?.flatten();
    let found = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find(|name| is_innodb_binary_log(name))?;
    Some(format!(
        "{}: the InnoDB-based binary log (binlog_storage_engine=innodb) is not encrypted, even with encrypt_binlog. It \
         holds changes of encrypted tables in the clear, and mariadb-backup copies it. Unset binlog_storage_engine, \
         and delete these files when no replica needs them any more",
        escape(&found)
    ))
}

fn is_innodb_binary_log(name: &str) -> bool {
    let number = name
        .strip_prefix("binlog-")
        .and_then(|rest| rest.strip_suffix(".ibb"));
    number.is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_files_of_the_innodb_based_binary_log_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        for other in ["binlog.000001", "binlog-.ibb", "binlog-1x.ibb", "ibdata1"] {
            fs::write(directory.path().join(other), "").unwrap();
        }
        assert_eq!(warning(directory.path()), None);
        fs::write(directory.path().join("binlog-000000.ibb"), "").unwrap();
        let told = warning(directory.path()).unwrap();
        assert!(told.starts_with("binlog-000000.ibb: "), "{told}");
        assert!(told.len() < 480, "the server would cut it: {}", told.len());
    }
}
