//! What is in a table of a server.

use std::{collections::BTreeMap, path::Path};

use super::{
    schema::{Kind, k_of, text_of},
    shadow::{Found, FoundRow},
};
use crate::{SqlError, try_sql};

const NO_SUCH_TABLE: &str = "ERROR 1146";

/// Reads a table in three ways: its rows, its secondary index beside its rows, and CHECK TABLE.
/// `None` if there is no such table.
pub(super) fn read_table(
    socket: &Path,
    number: u32,
    kind: Kind,
) -> Result<Option<Found>, SqlError> {
    let k = k_of(number, "id", "generation");
    let text = text_of(number, kind, "id", "generation");
    let sum = "SELECT CONCAT_WS(' ', COUNT(*), BIT_XOR(CRC32(CONCAT_WS(':', id, k))))";
    let output = try_sql(
        socket,
        &format!(
            "SELECT id, generation, k = {k} AND t = {text} FROM d.t{number};
             SELECT 'by index', ({sum} FROM d.t{number} FORCE INDEX (by_k) WHERE k >= 0),
                    'by row', ({sum} FROM d.t{number} IGNORE INDEX (by_k));
             CHECK TABLE d.t{number} EXTENDED"
        ),
    );
    match output {
        Ok(output) => Ok(Some(parse(&output))),
        Err(error) if error.text.contains(NO_SUCH_TABLE) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(output: &str) -> Found {
    let mut rows = BTreeMap::new();
    let mut complaints = Vec::new();
    let mut is_checked = false;
    for line in output.lines() {
        let cells: Vec<_> = line.split('\t').collect();
        match cells[..] {
            [id, generation, is_intact] => {
                let row = FoundRow {
                    generation: generation.parse().unwrap(),
                    is_intact: is_intact == "1",
                };
                let doubled = rows.insert(id.parse().unwrap(), row).is_some();
                if doubled {
                    complaints.push(format!("row {id} is there twice"));
                }
            }
            ["by index", by_index, "by row", by_row] if by_index == by_row => {}
            [_, "check", "status", "OK"] => is_checked = true,
            _ => complaints.push(line.to_owned()),
        }
    }
    if !is_checked {
        complaints.push("CHECK TABLE does not say OK".into());
    }
    Found { rows, complaints }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "1\t1\t1\n2\t5\t1\nby index\t2 99\tby row\t2 99\nd.t1\tcheck\tstatus\tOK";

    #[test]
    fn rows_and_a_good_check_are_understood() {
        let found = parse(GOOD);
        assert_eq!(found.complaints, [""; 0]);
        assert_eq!(found.rows.len(), 2);
        assert_eq!(found.rows[&2].generation, 5);
        assert!(found.rows[&2].is_intact);
    }

    #[test]
    fn an_index_that_differs_and_a_check_that_is_not_ok_are_complained_of() {
        for (good, bad) in [
            ("by row\t2 99", "by row\t2 98"),
            ("status\tOK", "error\tCorrupt"),
            ("2\t5\t1", "1\t5\t1"),
        ] {
            assert_ne!(parse(&GOOD.replace(good, bad)).complaints, [""; 0], "{bad}");
        }
    }
}
