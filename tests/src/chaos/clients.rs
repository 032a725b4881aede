//! The load: a client writes rows, changes tables and rotates keys until the server's life ends.

use std::sync::{Arc, PoisonError};

use fastrand::Rng;

use super::{
    messages,
    schema::{self, Kind, MARKER, create_table, k_of, text_of},
    shadow::{CLIENTS, Change, Changes, Existence, Share, Table},
    world::{Outcome, World},
};
use crate::key_files;

/// Above that many tables, one is dropped before the next is made.
const MOST_TABLES: usize = 20;
/// Above that many rows, a client deletes more than it inserts.
const MOST_ROWS_OF_SHARE: usize = 500;
/// Key ids for tables begin with it: 1 and 2 are the server's own.
const FIRST_KEY_ID: u32 = 3;
/// Above that many key ids, a new one is seldom.
const MANY_KEY_IDS: usize = 60;
/// Above that many key files, no rotation is of all keys: each start loads every version.
const MOST_KEY_FILES: usize = 1500;
/// Rows of a temporary table.
const TEMPORARY_ROWS: u32 = 1500;
/// Deadlock, and time-out of a lock: the transaction was rolled back.
const ROLLED_BACK: [&str; 2] = ["ERROR 1213", "ERROR 1205"];

/// One writer.
pub(super) struct Client<'w> {
    pub world: &'w World,
    pub number: u32,
    pub random: Rng,
}

impl Client<'_> {
    pub fn run(&mut self) {
        while !self.world.is_ending() {
            let goes_on = match self.random.u8(0..100) {
                0..62 => self.write(),
                62..66 => self.use_temporary_files(),
                66..80 => self.alter(),
                80..87 => self.create_or_drop(),
                87..94 => self.rotate(),
                _ => self.set_something(),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// One transaction, of one table or two. False if the server is gone.
    pub fn write(&mut self) -> bool {
        let mut tables = self.some_tables();
        tables.retain(|table| table.existence() == Existence::There);
        // Held, in the order of the tables, until the outcome is known.
        let existence: Vec<_> = tables
            .iter()
            .map(|table| {
                table
                    .existence
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
            })
            .collect();
        if tables.is_empty() || existence.iter().any(|it| **it != Existence::There) {
            return true;
        }
        let mut shares: Vec<_> = tables
            .iter()
            .map(|table| table.share(self.number))
            .collect();
        let mut statements = Vec::new();
        let mut transaction = Vec::new();
        for (table, share) in tables.iter().zip(&mut shares) {
            let (statement, changes) = self.change(table, share);
            statements.push(statement);
            transaction.push(Changes {
                table: Arc::clone(table),
                client: self.number,
                changes,
            });
        }
        let text = match statements.len() {
            1 => statements.remove(0),
            _ => format!("BEGIN; {}; COMMIT", statements.join("; ")),
        };
        match self.world.execute(&text) {
            Outcome::Done(_) => {
                let tally = &self.world.tally;
                for (changes, share) in transaction.iter().zip(&mut shares) {
                    share.apply(&changes.changes);
                    tally.add("load", "rows written", changes.changes.len() as u64);
                }
                tally.count("load", "transactions");
                true
            }
            Outcome::Refused(error) => {
                // Whatever becomes of KMS and broker, the keys in memory serve.
                let rolled_back = ROLLED_BACK.iter().any(|known| error.contains(known));
                assert!(rolled_back, "{text}\n{error}");
                self.world.tally.count("load", "rolled back");
                true
            }
            Outcome::Unknown => {
                drop(shares);
                self.world.shadow.leave_open(transaction);
                false
            }
        }
    }

    /// One table of any kind, or two of InnoDB, in order.
    fn some_tables(&mut self) -> Vec<Arc<Table>> {
        let tables = self.world.shadow.tables();
        let Some(first) = self.random.choice(&tables) else {
            return Vec::new();
        };
        let mut chosen = vec![Arc::clone(first)];
        if let Some(second) = self.random.choice(&tables)
            && self.random.u8(0..3) == 0
            && second.number != first.number
            && first.kind.is_innodb()
            && second.kind.is_innodb()
        {
            chosen.push(Arc::clone(second));
        }
        chosen.sort_by_key(|table| table.number);
        chosen
    }

    /// A statement that changes rows of this client.
    fn change(&mut self, table: &Table, share: &mut Share) -> (String, Vec<Change>) {
        let (number, kind) = (table.number, table.kind);
        let name = format!("d.t{number}");
        let is_full = share.rows.len() > MOST_ROWS_OF_SHARE;
        let what = self.random.u8(0..10);
        if share.rows.is_empty() || !is_full && what < 5 {
            let count = self.random.u32(1..40);
            let first = share.next_id;
            let last = first + (count - 1) * CLIENTS;
            // Never used again, whatever becomes of the statement.
            share.next_id = last + CLIENTS;
            let ids = (0..count).map(|nth| first + nth * CLIENTS);
            let insert = |id| Change {
                id,
                before: None,
                after: Some(1),
            };
            let statement = format!(
                "INSERT INTO {name} SELECT seq, 1, {}, {} FROM d.seq_{first}_to_{last}_step_{CLIENTS}",
                k_of(number, "seq", "1"),
                text_of(number, kind, "seq", "1"),
            );
            return (statement, ids.map(insert).collect());
        }
        let ids: Vec<u32> = share.rows.keys().copied().collect();
        let from = self.random.usize(0..ids.len());
        let to = (from + self.random.usize(0..60)).min(ids.len() - 1);
        let range = &ids[from..=to];
        let which = format!(
            "id BETWEEN {} AND {} AND id % {CLIENTS} = {}",
            range[0],
            range[range.len() - 1],
            (self.number + 1) % CLIENTS,
        );
        let deletes = is_full || what == 9;
        let change = |id: &u32| {
            let before = share.rows[id];
            Change {
                id: *id,
                before: Some(before),
                after: (!deletes).then_some(before + 1),
            }
        };
        let changes = range.iter().map(change).collect();
        let statement = if deletes {
            format!("DELETE FROM {name} WHERE {which}")
        } else {
            // Assignments are done from left to right: what follows has the new generation.
            format!(
                "UPDATE {name} SET generation = generation + 1, k = {}, t = {} WHERE {which}",
                k_of(number, "id", "generation"),
                text_of(number, kind, "id", "generation"),
            )
        };
        (statement, changes)
    }

    /// Temporary tables of both engines, sorts and joins that need files.
    fn use_temporary_files(&mut self) -> bool {
        let engine = if self.random.bool() { "InnoDB" } else { "Aria" };
        let statements = format!(
            "CREATE TEMPORARY TABLE d.temporary (id INT PRIMARY KEY, t BLOB, KEY (t(50))) ENGINE={engine};
             INSERT INTO d.temporary SELECT seq, CONCAT('{MARKER}', MD5(seq)) FROM d.seq_1_to_{TEMPORARY_ROWS};
             UPDATE d.temporary SET t = CONCAT('{MARKER}', MD5(id + 1));
             CREATE TEMPORARY TABLE d.sorted ENGINE={engine} SELECT DISTINCT one.id, two.t FROM d.temporary one
                 JOIN d.temporary two ON one.t = two.t ORDER BY two.t DESC, one.id;
             SELECT COUNT(*), COUNT(DISTINCT t), MIN(t = CONCAT('{MARKER}', MD5(id + 1))) FROM d.sorted"
        );
        match self.world.execute(&statements) {
            Outcome::Done(output) => {
                let expected = format!("{TEMPORARY_ROWS}\t{TEMPORARY_ROWS}\t1");
                assert_eq!(output.lines().last(), Some(expected.as_str()), "{output}");
                self.world.tally.count("load", "temporary tables");
                true
            }
            Outcome::Refused(error) => panic!("{statements}\n{error}"),
            Outcome::Unknown => false,
        }
    }

    fn alter(&mut self) -> bool {
        let tables = self.world.shadow.tables();
        let Some(table) = self.random.choice(&tables) else {
            return true;
        };
        // MariaDB does not do that atomically: a kill in the middle left a table without its .par file, and with
        // only one of its partitions (10.11.19). Nothing of encryption is in that file.
        if table.kind == Kind::Partitioned {
            return true;
        }
        let _definitions = self.world.definitions.read();
        let existence = table
            .existence
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if *existence != Existence::There {
            return true;
        }
        let mut key_id = None;
        let change = match (table.kind, self.random.u8(0..10)) {
            (Kind::Aria, _) | (_, 0..2) => "FORCE".into(),
            (Kind::Toggled, 2..6) => self.one_of(&["ENCRYPTED=NO", "ENCRYPTED=YES"]),
            (Kind::PageCompressed, 2..5) => {
                self.one_of(&["PAGE_COMPRESSED=0", "PAGE_COMPRESSED=1"])
            }
            (_, 2) => "FORCE, ALGORITHM=COPY".into(),
            (_, 3) => "ADD INDEX IF NOT EXISTS further (generation, t(30))".into(),
            (_, 4) => "DROP INDEX IF EXISTS further".into(),
            (Kind::Toggled, _) => "FORCE".into(),
            _ => {
                let id = self.key_id();
                key_id = Some(id);
                format!("ENCRYPTION_KEY_ID={id}")
            }
        };
        let statement = format!("ALTER TABLE d.t{} {change}", table.number);
        match self.world.execute(&statement) {
            Outcome::Done(_) => {
                self.world.tally.count("tables", "altered");
                if let Some(id) = key_id {
                    self.world.key_id_is_used(id);
                }
                true
            }
            Outcome::Refused(error) => self.is_refused_rightly(&statement, &error),
            Outcome::Unknown => false,
        }
    }

    fn create_or_drop(&mut self) -> bool {
        let _definitions = self.world.definitions.read();
        let tables = self.world.shadow.tables();
        if tables.len() > MOST_TABLES || self.random.u8(0..3) == 0 {
            // The first of each kind stay.
            let others = tables.get(Kind::ALL.len()..).unwrap_or_default();
            return self.random.choice(others).is_none_or(|it| self.drop(it));
        }
        let kind = Kind::ALL[self.random.usize(0..Kind::ALL.len())];
        self.create(kind)
    }

    /// Makes a table. False if the server is gone.
    pub fn create(&mut self, kind: Kind) -> bool {
        let number = self.world.shadow.next_number();
        let key_id = self.key_id();
        let statement = create_table(number, kind, key_id);
        match self.world.execute(&statement) {
            Outcome::Done(_) => {
                self.world.shadow.add(number, kind, Existence::There);
                self.world.tally.count("tables", "made");
                if kind.is_innodb() {
                    self.world.key_id_is_used(key_id);
                }
                true
            }
            Outcome::Refused(error) => self.is_refused_rightly(&statement, &error),
            Outcome::Unknown => {
                self.world.shadow.add(number, kind, Existence::Unknown);
                false
            }
        }
    }

    fn drop(&self, table: &Table) -> bool {
        let mut existence = table
            .existence
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if *existence != Existence::There {
            return true;
        }
        let statement = format!("DROP TABLE d.t{}", table.number);
        match self.world.execute(&statement) {
            Outcome::Done(_) => {
                *existence = Existence::Gone;
                self.world.tally.count("tables", "dropped");
                true
            }
            Outcome::Refused(error) => panic!("{statement}: {error}"),
            Outcome::Unknown => {
                *existence = Existence::Unknown;
                false
            }
        }
    }

    /// What needs a key may fail where KMS, session or broker were taken away, and then for that
    /// reason.
    fn is_refused_rightly(&self, statement: &str, error: &str) -> bool {
        let rolled_back = ROLLED_BACK.iter().any(|known| error.contains(known));
        let lacks_key = self.world.may_lack_keys() && messages::refuses_for_lack_of_a_key(error);
        assert!(rolled_back || lacks_key, "{statement}\n{error}");
        self.world.tally.count("tables", "refused without KMS");
        true
    }

    fn rotate(&mut self) -> bool {
        let datadir = self.world.datadir();
        let all = self.random.u8(0..5) == 0 && key_files(&datadir).len() < MOST_KEY_FILES;
        let ids = self.world.key_ids();
        let target = match self.random.choice(&ids) {
            Some(id) if !all => i64::from(*id),
            _ => -1,
        };
        let statement = format!("SET GLOBAL aws_key_management_rotate_key={target}");
        match self.world.execute(&statement) {
            Outcome::Done(output) => {
                let warned = messages::shows_warning_of_plugin(&output);
                assert!(
                    !warned || self.world.may_lack_keys(),
                    "{statement}\n{output}"
                );
                let what = match (warned, all) {
                    (true, _) => "rotations that failed for want of KMS",
                    (false, true) => "rotations of all",
                    (false, false) => "rotations of one",
                };
                self.world.tally.count("keys", what);
                true
            }
            Outcome::Refused(error) => panic!("{statement}: {error}"),
            Outcome::Unknown => false,
        }
    }

    fn set_something(&mut self) -> bool {
        let statement = self.one_of(&[
            "SET GLOBAL innodb_encryption_rotate_key_age=0",
            "SET GLOBAL innodb_encryption_rotate_key_age=1",
            "SET GLOBAL innodb_encryption_rotate_key_age=1",
            "SET GLOBAL innodb_encryption_threads=1",
            "SET GLOBAL innodb_encryption_threads=4",
            "SET GLOBAL aws_key_management_encryption_algorithm=AES_CBC",
            "SET GLOBAL aws_key_management_encryption_algorithm=AES_CTR",
            "SET GLOBAL aws_key_management_key_spec=AES_128",
            "SET GLOBAL aws_key_management_key_spec=AES_256",
            "SET GLOBAL innodb_max_dirty_pages_pct=0",
            "SET GLOBAL innodb_max_dirty_pages_pct=90",
            "FLUSH BINARY LOGS",
            "FLUSH TABLES",
            "PURGE BINARY LOGS BEFORE NOW() - INTERVAL 20 SECOND",
        ]);
        match self.world.execute(&statement) {
            Outcome::Done(_) => {
                self.world.tally.count("load", "settings and flushes");
                true
            }
            Outcome::Refused(error) => panic!("{statement}: {error}"),
            Outcome::Unknown => false,
        }
    }

    /// One that was used, or a new one.
    fn key_id(&mut self) -> u32 {
        let ids = self.world.key_ids();
        let new_ones_of_ten = if ids.len() < MANY_KEY_IDS { 7 } else { 1 };
        if self.random.u8(0..10) < new_ones_of_ten {
            return self.random.u32(FIRST_KEY_ID..FIRST_KEY_ID + 1000);
        }
        *self.random.choice(&ids).unwrap()
    }

    fn one_of(&mut self, texts: &[&str]) -> String {
        (*self.random.choice(texts).unwrap()).into()
    }
}

/// Makes the schema and a table of each kind.
pub(super) fn make_schema(client: &mut Client<'_>) {
    for statement in ["CREATE DATABASE d", &schema::create_control()] {
        assert!(matches!(client.world.execute(statement), Outcome::Done(_)));
    }
    for kind in Kind::ALL {
        assert!(client.create(kind));
    }
}
