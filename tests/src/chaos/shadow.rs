//! The committed rows, kept outside the server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use super::schema::Kind;

/// Threads that write. Each has row ids of its own in every table, so that it alone knows what
/// became of them.
pub(super) const CLIENTS: u32 = 4;
/// Differences that a report lists; more of them say nothing more.
const LISTED: usize = 20;

/// Committed rows: the generation of each id.
pub(super) type Rows = BTreeMap<u32, u32>;

/// Whether there is a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existence {
    There,
    Gone,
    /// The server went while it made or dropped it.
    Unknown,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// At once, whatever it did.
    Killed,
    /// By itself, as it was told to.
    Stopped,
}

/// A table and its committed rows.
pub(super) struct Table {
    pub number: u32,
    pub kind: Kind,
    /// Held while a statement uses the table, and exclusively while one drops it.
    pub existence: RwLock<Existence>,
    shares: Vec<Mutex<Share>>,
}

/// The rows of one client in one table.
pub(super) struct Share {
    pub rows: Rows,
    /// The first id that was never used.
    pub next_id: u32,
}

/// What a statement does to one row. `None`: there is no such row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    pub id: u32,
    pub before: Option<u32>,
    pub after: Option<u32>,
}

/// Changes of one client in one table.
pub(super) struct Changes {
    pub table: Arc<Table>,
    pub client: u32,
    pub changes: Vec<Change>,
}

/// A row, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundRow {
    pub generation: u32,
    /// Whether the row has what belongs to its id and generation.
    pub is_intact: bool,
}

/// What was read of a table.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub rows: BTreeMap<u32, FoundRow>,
    /// What is wrong with the table itself.
    pub complaints: Vec<String>,
}

/// The committed rows of all tables at one moment.
pub(super) type Snapshot = BTreeMap<u32, TableSnapshot>;

/// The committed rows of one table at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct TableSnapshot {
    pub kind: Option<Kind>,
    pub rows: Rows,
    /// For each client, the first id that it had not used.
    pub next_ids: Vec<u32>,
}

impl Table {
    fn new(number: u32, kind: Kind, existence: Existence) -> Self {
        let share = |client| {
            Mutex::new(Share {
                rows: Rows::new(),
                next_id: client + 1,
            })
        };
        Self {
            number,
            kind,
            existence: RwLock::new(existence),
            shares: (0..CLIENTS).map(share).collect(),
        }
    }

    pub fn share(&self, client: u32) -> MutexGuard<'_, Share> {
        let share = &self.shares[client as usize];
        share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn existence(&self) -> Existence {
        *self
            .existence
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_existence(&self, existence: Existence) {
        let mut guard = self
            .existence
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *guard = existence;
    }

    fn snapshot(&self) -> TableSnapshot {
        let mut snapshot = TableSnapshot {
            kind: Some(self.kind),
            ..TableSnapshot::default()
        };
        for client in 0..CLIENTS {
            let share = self.share(client);
            snapshot.rows.extend(&share.rows);
            snapshot.next_ids.push(share.next_id);
        }
        snapshot
    }
}

impl Share {
    /// Takes the changes over: they are committed.
    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change.after {
                Some(generation) => self.rows.insert(change.id, generation),
                None => self.rows.remove(&change.id),
            };
        }
    }
}

impl Changes {
    /// Whether the table is as it was before these changes, or as it is after them.
    fn is_as(&self, found: &Found, side: impl Fn(&Change) -> Option<u32>) -> bool {
        self.changes.iter().all(|change| {
            let there = found.rows.get(&change.id).map(|row| row.generation);
            there == side(change)
        })
    }

    /// Those of the changes after which the rows are as found.
    fn done(&self, found: &Found) -> Vec<Change> {
        let is_done =
            |change: &&Change| found.rows.get(&change.id).map(|row| row.generation) == change.after;
        self.changes.iter().filter(is_done).copied().collect()
    }
}

/// All tables.
#[derive(Default)]
pub(super) struct Shadow {
    tables: Mutex<Vec<Arc<Table>>>,
    /// Transactions of which nobody knows whether they were committed.
    open: Mutex<Vec<Vec<Changes>>>,
    numbers: AtomicU32,
}

impl Shadow {
    /// A number that no table has had.
    pub fn next_number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn add(&self, number: u32, kind: Kind, existence: Existence) {
        self.tables_guard()
            .push(Arc::new(Table::new(number, kind, existence)));
    }

    /// The tables that are there, or may be.
    pub fn tables(&self) -> Vec<Arc<Table>> {
        self.tables_guard().clone()
    }

    fn tables_guard(&self) -> MutexGuard<'_, Vec<Arc<Table>>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves it to the next start of the server whether this transaction was committed.
    pub fn leave_open(&self, transaction: Vec<Changes>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(transaction);
    }

    /// What is committed. Waits for the transactions under way.
    pub fn snapshot(&self) -> Snapshot {
        let tables = self.tables();
        let there = tables
            .iter()
            .filter(|table| table.existence() == Existence::There);
        there
            .map(|table| (table.number, table.snapshot()))
            .collect()
    }

    /// Finds out what became of open transactions and tables by what is there, and compares the
    /// rest. `end` is how the server ended since the last time. Returns the number of rows, or all
    /// differences.
    pub fn settle_and_compare(
        &self,
        end: End,
        mut read: impl FnMut(u32, Kind) -> Option<Found>,
    ) -> Result<u64, Vec<String>> {
        let mut all_found = BTreeMap::new();
        for table in self.tables() {
            let found = read(table.number, table.kind);
            if table.existence() == Existence::Unknown {
                let existence = match found {
                    Some(_) => Existence::There,
                    None => Existence::Gone,
                };
                table.set_existence(existence);
            }
            all_found.insert(table.number, found);
        }
        self.tables_guard()
            .retain(|table| table.existence() != Existence::Gone);
        let mut differences = Vec::new();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for transaction in open.drain(..) {
            differences.extend(settle(&transaction, end, &all_found));
        }
        drop(open);
        let snapshot = self.snapshot();
        match compare(&snapshot, &snapshot, |number, _| {
            all_found.remove(&number).flatten()
        }) {
            Ok(rows) if differences.is_empty() => Ok(rows),
            Ok(_) => Err(differences),
            Err(further) => {
                differences.extend(further);
                Err(differences)
            }
        }
    }
}

/// A transaction is there as a whole, or not at all. A table may have been dropped since.
///
/// Aria takes nothing back while the server runs, and a stop interrupts statements: what such a
/// statement had done by then stays (seen without encryption too). After a kill, recovery takes it
/// back.
fn settle(
    transaction: &[Changes],
    end: End,
    found: &BTreeMap<u32, Option<Found>>,
) -> Option<String> {
    if end == End::Stopped && transaction.iter().all(|it| !it.table.kind.is_innodb()) {
        for changes in transaction {
            if let Some(Some(found)) = found.get(&changes.table.number) {
                let mut share = changes.table.share(changes.client);
                share.apply(&changes.done(found));
            }
        }
        return None;
    }
    let is_as = |side: fn(&Change) -> Option<u32>| {
        transaction.iter().all(|changes| {
            let found = found.get(&changes.table.number).and_then(Option::as_ref);
            found.is_none_or(|found| changes.is_as(found, side))
        })
    };
    if is_as(|change| change.before) {
        return None;
    }
    if is_as(|change| change.after) {
        for changes in transaction {
            changes.table.share(changes.client).apply(&changes.changes);
        }
        return None;
    }
    let mut text = String::from("a transaction is there by half:");
    for changes in transaction {
        write!(text, " t{} {:?}", changes.table.number, changes.changes).unwrap();
    }
    Some(text)
}

/// Compares tables with what was committed between two moments, which may be one. Returns the number
/// of rows, or all differences.
pub(super) fn compare(
    before: &Snapshot,
    after: &Snapshot,
    mut read: impl FnMut(u32, Kind) -> Option<Found>,
) -> Result<u64, Vec<String>> {
    let mut differences = Vec::new();
    let mut rows = 0;
    for (number, old) in before {
        // What was dropped meanwhile may be there or not.
        let (Some(new), Some(kind)) = (after.get(number), old.kind) else {
            continue;
        };
        let Some(found) = read(*number, kind) else {
            differences.push(format!("t{number} ({kind:?}) is missing"));
            continue;
        };
        rows += found.rows.len() as u64;
        let of_table = difference(old, new, &found);
        differences.extend(
            of_table
                .into_iter()
                .map(|difference| format!("t{number} ({kind:?}): {difference}")),
        );
    }
    if differences.is_empty() {
        return Ok(rows);
    }
    let more = differences.len().saturating_sub(LISTED);
    differences.truncate(LISTED);
    if more > 0 {
        differences.push(format!("and {more} more"));
    }
    Err(differences)
}

fn difference(old: &TableSnapshot, new: &TableSnapshot, found: &Found) -> Vec<String> {
    let mut differences = found.complaints.clone();
    let ids: BTreeSet<u32> = old
        .rows
        .keys()
        .chain(new.rows.keys())
        .chain(found.rows.keys())
        .copied()
        .collect();
    for id in ids {
        let row = found.rows.get(&id);
        if row.is_some_and(|row| !row.is_intact) {
            differences.push(format!("row {id} does not have what belongs to it"));
        }
        let generation = row.map(|row| row.generation);
        let (was, is) = (old.rows.get(&id).copied(), new.rows.get(&id).copied());
        if was == is && generation == is && is.is_some() {
            continue;
        }
        if !was_possible(was, is, generation, || is_new(id, old, new)) {
            differences.push(match (generation, was) {
                (None, Some(committed)) => {
                    format!("row {id} is missing; generation {committed} was committed")
                }
                (Some(there), Some(committed)) => {
                    format!("row {id} has generation {there}; {committed} was committed")
                }
                (Some(there), None) => {
                    format!("row {id} of generation {there} was never committed, or was deleted")
                }
                (None, None) => format!("row {id} is missing; it was committed meanwhile"),
            });
        }
    }
    differences
}

/// Whether a row can have been like that at some moment between the two. Ids are not used again, and
/// generations only grow.
fn was_possible(
    was: Option<u32>,
    is: Option<u32>,
    there: Option<u32>,
    is_new: impl FnOnce() -> bool,
) -> bool {
    match (was, is, there) {
        (Some(was), Some(is), Some(there)) => (was..=is).contains(&there),
        (Some(_), Some(_), None) => false,
        (Some(was), None, Some(there)) => there >= was,
        (None, Some(is), Some(there)) => there <= is,
        (_, _, None) => true,
        // Inserted and deleted again in between.
        (None, None, Some(_)) => is_new(),
    }
}

/// Whether `id` was first used between the two moments.
fn is_new(id: u32, old: &TableSnapshot, new: &TableSnapshot) -> bool {
    let client = ((id - 1) % CLIENTS) as usize;
    (old.next_ids[client]..new.next_ids[client]).contains(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rows: &[(u32, u32)]) -> Found {
        let row = |&(id, generation)| {
            let row = FoundRow {
                generation,
                is_intact: true,
            };
            (id, row)
        };
        Found {
            rows: rows.iter().map(row).collect(),
            complaints: Vec::new(),
        }
    }

    /// A table with rows 1 and 5, of generations 1 and 3.
    fn shadow() -> (Shadow, Arc<Table>) {
        shadow_of(Kind::Plain)
    }

    fn shadow_of(kind: Kind) -> (Shadow, Arc<Table>) {
        let shadow = Shadow::default();
        let number = shadow.next_number();
        shadow.add(number, kind, Existence::There);
        let table = shadow.tables().pop().unwrap();
        let mut share = table.share(0);
        share.rows.extend([(1, 1), (5, 3)]);
        share.next_id = 9;
        drop(share);
        (shadow, table)
    }

    fn differences(rows: &[(u32, u32)]) -> String {
        let (shadow, _) = shadow();
        let result = shadow.settle_and_compare(End::Killed, |_, _| Some(found(rows)));
        result.unwrap_err().join("\n")
    }

    #[test]
    fn what_was_committed_is_all_there() {
        let (shadow, _) = shadow();
        let rows = shadow.settle_and_compare(End::Killed, |_, _| Some(found(&[(1, 1), (5, 3)])));
        assert_eq!(rows, Ok(2));
    }

    #[test]
    fn a_row_that_was_lost_is_named() {
        let text = differences(&[(1, 1)]);
        assert_eq!(
            text,
            "t1 (Plain): row 5 is missing; generation 3 was committed"
        );
    }

    #[test]
    fn a_row_that_went_back_is_named() {
        let text = differences(&[(1, 1), (5, 2)]);
        assert_eq!(text, "t1 (Plain): row 5 has generation 2; 3 was committed");
    }

    #[test]
    fn a_row_that_nobody_committed_is_named() {
        let text = differences(&[(1, 1), (2, 1), (5, 3)]);
        assert!(text.contains("row 2 of generation 1 was never"), "{text}");
    }

    #[test]
    fn a_row_with_other_content_and_a_complaint_of_the_table_are_named() {
        let (shadow, _) = shadow();
        let result = shadow.settle_and_compare(End::Killed, |_, _| {
            let mut found = found(&[(1, 1), (5, 3)]);
            found.rows.get_mut(&5).unwrap().is_intact = false;
            found.complaints.push("CHECK TABLE does not say OK".into());
            Some(found)
        });
        let text = result.unwrap_err().join("\n");
        assert!(text.contains("row 5 does not have"), "{text}");
        assert!(text.contains("CHECK TABLE"), "{text}");
    }

    #[test]
    fn a_table_that_is_gone_is_named_unless_the_server_may_have_dropped_it() {
        let (shadow, table) = shadow();
        assert_eq!(
            shadow.settle_and_compare(End::Killed, |_, _| None),
            Err(vec!["t1 (Plain) is missing".into()])
        );
        table.set_existence(Existence::Unknown);
        assert_eq!(shadow.settle_and_compare(End::Killed, |_, _| None), Ok(0));
        assert!(shadow.tables().is_empty());
    }

    /// Row 5 is updated and row 9 inserted, by one transaction.
    fn left_open(kind: Kind) -> (Shadow, Arc<Table>) {
        let (shadow, table) = shadow_of(kind);
        let change = |id, before, after| Change { id, before, after };
        shadow.leave_open(vec![Changes {
            table: Arc::clone(&table),
            client: 0,
            changes: vec![change(5, Some(3), Some(4)), change(9, None, Some(1))],
        }]);
        (shadow, table)
    }

    #[test]
    fn an_open_transaction_may_be_there_or_not() {
        for rows in [&[(1, 1), (5, 3)][..], &[(1, 1), (5, 4), (9, 1)]] {
            let (shadow, table) = left_open(Kind::Plain);
            let result = shadow.settle_and_compare(End::Killed, |_, _| Some(found(rows)));
            assert_eq!(result, Ok(rows.len() as u64));
            assert_eq!(table.share(0).rows, rows.iter().copied().collect());
        }
    }

    #[test]
    fn an_open_transaction_may_not_be_there_by_half() {
        for rows in [&[(1, 1), (5, 4)][..], &[(1, 1), (5, 3), (9, 1)]] {
            let (shadow, _) = left_open(Kind::Plain);
            let result = shadow.settle_and_compare(End::Killed, |_, _| Some(found(rows)));
            let text = result.unwrap_err().join("\n");
            assert!(text.contains("by half"), "{text}");
        }
    }

    #[test]
    fn what_a_stop_has_interrupted_is_there_by_half_in_aria_alone() {
        for (kind, end, is_right) in [
            (Kind::Aria, End::Stopped, true),
            (Kind::Aria, End::Killed, false),
            (Kind::Plain, End::Stopped, false),
        ] {
            let (shadow, table) = left_open(kind);
            let rows = [(1, 1), (5, 4)];
            let result = shadow.settle_and_compare(end, |_, _| Some(found(&rows)));
            assert_eq!(result.is_ok(), is_right, "{kind:?} {end:?}");
            if is_right {
                assert_eq!(table.share(0).rows, rows.into_iter().collect());
            }
        }
        // A row that is neither as before nor as after is wrong all the same.
        let (shadow, _) = left_open(Kind::Aria);
        let result = shadow.settle_and_compare(End::Stopped, |_, _| Some(found(&[(1, 1), (5, 5)])));
        assert!(result.is_err());
    }

    #[test]
    fn a_copy_of_a_time_in_between_may_have_either_side_of_each_change_and_nothing_else() {
        let (shadow, table) = shadow();
        let before = shadow.snapshot();
        let mut share = table.share(0);
        share.rows.extend([(1, 3), (13, 1)]);
        share.rows.remove(&5);
        share.next_id = 17;
        drop(share);
        let after = shadow.snapshot();
        let is_possible =
            |rows: &[(u32, u32)]| compare(&before, &after, |_, _| Some(found(rows))).is_ok();
        assert!(is_possible(&[(1, 1), (5, 3)]));
        assert!(is_possible(&[(1, 2), (5, 4), (9, 1)]));
        assert!(is_possible(&[(1, 3), (13, 1)]));
        assert!(!is_possible(&[(5, 3)]));
        assert!(!is_possible(&[(1, 4)]));
        assert!(!is_possible(&[(1, 1), (5, 2)]));
        assert!(!is_possible(&[(1, 1), (13, 2)]));
        assert!(!is_possible(&[(1, 1), (17, 1)]));
        assert!(!is_possible(&[(1, 1), (2, 1)]));
    }
}
