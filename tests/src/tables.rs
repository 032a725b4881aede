//! A table of each kind that the server encrypts in its own way, and rows that show damage.

use crate::Database;

const TABLES: [&str; 4] = ["d.plain", "d.compressed", "d.pages", "d.aria"];

/// Makes the tables.
pub fn make_tables(database: &Database) {
    database.sql(
        "CREATE DATABASE d;
         CREATE TABLE d.plain (i INT, t TEXT);
         CREATE TABLE d.compressed (i INT, t TEXT) ROW_FORMAT=COMPRESSED;
         CREATE TABLE d.pages (i INT, t TEXT) PAGE_COMPRESSED=1;
         CREATE TABLE d.aria (i INT, t TEXT) ENGINE=Aria",
    );
}

/// Inserts the rows with these numbers into each.
pub fn insert(database: &Database, from: u32, to: u32) {
    for table in TABLES {
        database.sql(&format!(
            "USE d; INSERT INTO {table} SELECT seq, REPEAT('text ', 20) FROM seq_{from}_to_{to}"
        ));
    }
}

/// Checks that the rows from 1 to `count` are in each as they were inserted.
pub fn assert_rows(database: &Database, count: u32) {
    for table in TABLES {
        assert_eq!(
            database.sql(&format!(
                "SELECT COUNT(*), SUM(i), MIN(t = REPEAT('text ', 20)) FROM {table}"
            )),
            format!("{count}\t{}\t1", count * (count + 1) / 2),
            "{table}"
        );
    }
}

/// Has the server check each.
pub fn check_tables(database: &Database) {
    let checked = database.sql(&format!("CHECK TABLE {}", TABLES.join(", ")));
    assert_eq!(checked.matches("\tOK").count(), TABLES.len(), "{checked}");
}
