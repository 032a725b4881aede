//! Asks a running server through its own client, which knows its option files, sockets and passwords.

use std::{ffi::OsString, process::Command};

use visible_text::escape;

use super::progress::{Rotation, Settings, Tablespace};
use crate::DataKeysError;

const CLIENT: &str = "mariadb";

/// The settings on one line, then a line for each encrypted tablespace. The name comes last. Limits of the client or
/// the server (`safe-updates`, `sql_select_limit`) would leave out tablespaces without a word.
const QUESTION: &str = "
SET SESSION sql_select_limit = 18446744073709551615, sql_big_selects = 1;
SELECT @@innodb_encryption_threads, @@innodb_encryption_rotate_key_age, @@innodb_encryption_rotation_iops,
       @@innodb_encrypt_tables;
SELECT e.current_key_id, e.min_key_version, e.current_key_version,
       COALESCE(e.key_rotation_page_number, 0), COALESCE(e.key_rotation_max_page_number, 0),
       COALESCE(s.file_size DIV s.page_size, 0), e.name
  FROM information_schema.innodb_tablespaces_encryption e
  LEFT JOIN information_schema.innodb_sys_tablespaces s ON s.space = e.space
 WHERE e.encryption_scheme = 1";

/// Asks the server for its tablespaces.
pub(super) fn ask(client_options: &[OsString]) -> Result<Rotation, DataKeysError> {
    let output = Command::new(CLIENT)
        .args(client_options)
        .args(["--batch", "--skip-column-names", "--execute", QUESTION])
        .output()
        .map_err(|error| DataKeysError::System("run the mariadb client", error))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        // The client repeats the statement before it.
        let reason = text.find("ERROR ").and_then(|start| text.get(start..));
        let lines: Vec<_> = reason.unwrap_or(&text).trim().lines().collect();
        return Err(DataKeysError::Server(escape(&lines.join(" "))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| {
        let start: String = text.chars().take(200).collect();
        DataKeysError::Server(format!("unexpected answer: {}", escape(&start)))
    })
}

fn parse(text: &str) -> Option<Rotation> {
    let mut lines = text.lines();
    let mut fields = lines.next()?.split('\t');
    let mut number = || fields.next()?.parse::<u64>().ok();
    let (threads, rotate_key_age, pages_per_second) = (number()?, number()?, number()?);
    let settings = Settings {
        threads,
        rotate_key_age,
        pages_per_second,
        // OFF, ON or FORCE.
        encrypts_tables: fields.next()? != "OFF",
    };
    let tablespaces: Option<Vec<_>> = lines.map(tablespace).collect();
    Some(Rotation::new(settings, tablespaces?))
}

fn tablespace(line: &str) -> Option<Tablespace> {
    let mut fields = line.splitn(7, '\t');
    let mut number = || fields.next()?.parse::<u64>().ok();
    Some(Tablespace {
        key_id: number()?.try_into().ok()?,
        min_version: number()?.try_into().ok()?,
        current_version: number()?.try_into().ok()?,
        rotated_pages: number()?,
        rotating_pages: number()?,
        pages: number()?,
        name: fields.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read() {
        let answer =
            "4\t1\t100\tON\n1\t3\t5\t0\t0\t768\tinnodb_system\n10\t2\t4\t64\t640\t640\td/t\\t1\n";
        let rotation = parse(answer).unwrap();
        let ids: Vec<_> = rotation.keys().iter().map(|key| key.id).collect();
        assert_eq!(ids, [1, 10]);
    }

    #[test]
    fn other_answers_are_refused() {
        for answer in [
            "",
            "4\t1\t100",
            "4\t1\t100\tON\nx\t3\t5\t0\t0\t768\ta",
            "a\t1\t1\tON",
        ] {
            assert!(parse(answer).is_none(), "{answer:?}");
        }
    }
}
