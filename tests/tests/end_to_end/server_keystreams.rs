//! Whether a server ever encrypts different data with the same keystream of AES_CTR.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use end_to_end_tests::{Database, ENCRYPT_ALL, Process, Scene};
use nix::sys::signal::SIGKILL;

const STREAM_LOG: &str = "AWS_KEY_MANAGEMENT_STREAM_LOG";
const BLOCK_BYTES: u128 = 16;
/// Keys 1 and 2 are for other things than pages of tables.
const FIRST_PAGE_KEY: u32 = 3;

/// The streams of AES_CTR that a server has encrypted, and how many of them use keystream under which other
/// data was encrypted before.
#[derive(Debug, Default)]
struct Count {
    streams: usize,
    reused: usize,
    /// Those by key id.
    reused_by_id: BTreeMap<u32, usize>,
}

/// A stream begins with the counter block that is its IV.
struct Stream {
    first_block: u128,
    end_block: u128,
    id: u32,
    content: String,
}

/// What a killed server had encrypted and not yet written: InnoDB encrypts a page first, and writes it when the
/// redo log is on the disk up to the page's LSN. The next life of the server uses the LSNs beyond that again.
struct NeverWritten {
    /// So many lines were in the log when the server was killed.
    lines: usize,
    /// Where the redo log ended.
    end_lsn: u64,
}

impl NeverWritten {
    /// Of a server that was killed when the log had so many lines, by what the next one says.
    fn new(lines: usize, next_life: &Process) -> Self {
        let line = next_life.wait_for("log sequence number ");
        let (_, rest) = line.split_once("log sequence number ").unwrap();
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        Self {
            lines,
            end_lsn: digits.unwrap().parse().unwrap(),
        }
    }

    fn has(&self, line: usize, stream: &Stream) -> bool {
        let is_page = stream.id >= FIRST_PAGE_KEY;
        // Tablespace and page number of four bytes each come first, all little-endian.
        let lsn = u64::from_be_bytes(stream.first_block.to_be_bytes()[8..].try_into().unwrap());
        is_page && line < self.lines && lsn.swap_bytes() > self.end_lsn
    }
}

fn count(log: &Path, never_written: &NeverWritten) -> Count {
    let mut by_key: BTreeMap<String, Vec<Stream>> = BTreeMap::new();
    for (number, line) in fs::read_to_string(log).unwrap().lines().enumerate() {
        let [algorithm, key, iv, bytes, id, _version, checksum] =
            line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let bytes: u128 = bytes.parse().unwrap();
        if algorithm == "AES_CTR" && bytes > 0 {
            let first_block = u128::from_str_radix(iv, 16).unwrap();
            let stream = Stream {
                first_block,
                end_block: first_block + bytes.div_ceil(BLOCK_BYTES),
                id: id.parse().unwrap(),
                content: format!("{bytes} {checksum}"),
            };
            if !never_written.has(number, &stream) {
                by_key.entry(key.into()).or_default().push(stream);
            }
        }
    }
    let mut count = Count::default();
    for mut streams in by_key.into_values() {
        count.streams += streams.len();
        streams.sort_by_key(|stream| stream.first_block);
        let mut longest: Option<&Stream> = None;
        for stream in &streams {
            if let Some(before) = longest
                && stream.first_block < before.end_block
                && (stream.first_block, &stream.content) != (before.first_block, &before.content)
            {
                count.reused += 1;
                *count.reused_by_id.entry(stream.id).or_default() += 1;
            }
            if longest.is_none_or(|before| before.end_block <= stream.end_block) {
                longest = Some(stream);
            }
        }
    }
    count
}

fn start(database: &Database, log: &Path) -> Process {
    let server = Process::start(database.command().env(STREAM_LOG, log));
    database.wait_until_ready(&server);
    server
}

/// Three lives of a server, the second of which is killed: small transactions, temporary tables, tables of
/// InnoDB and Aria that are written again and again, and sorting in temporary files.
fn three_lives(database: &Database, log: &Path) -> Count {
    let mut server = start(database, log);
    database.sql(
        "CREATE DATABASE d; USE d; CREATE TABLE d.t (i INT PRIMARY KEY, t TEXT);
         CREATE TABLE d.zip (i INT PRIMARY KEY, t TEXT) ROW_FORMAT=COMPRESSED;
         CREATE TABLE d.compressed (i INT PRIMARY KEY, t TEXT) PAGE_COMPRESSED=1 ENCRYPTION_KEY_ID=4;
         CREATE TABLE d.aria (i INT PRIMARY KEY, t TEXT) ENGINE=Aria TRANSACTIONAL=0",
    );
    let mut never_written = None;
    for life in 1..=3 {
        for round in 1..=2 {
            let transactions: String = (1..=100)
                .map(|i| format!("REPLACE INTO d.t VALUES ({i}, 'life {life} round {round}');"))
                .collect();
            database.sql(&transactions);
            database.sql(&format!(
                "USE d; REPLACE INTO d.t SELECT seq, REPEAT('row', {round} * {life}) FROM seq_101_to_400;
                 REPLACE INTO d.zip SELECT i, REPEAT(t, {round}) FROM d.t;
                 REPLACE INTO d.compressed SELECT i, REPEAT(t, {round}) FROM d.t;
                 REPLACE INTO d.aria SELECT i, REPEAT(t, {round}) FROM d.t;
                 SET sort_buffer_size=65536;
                 CREATE TEMPORARY TABLE d.sorted ENGINE=InnoDB
                     SELECT seq, REPEAT('text ', {round}) AS t FROM seq_1_to_5000 ORDER BY MD5(seq);
                 SELECT COUNT(*) FROM (SELECT * FROM d.sorted ORDER BY MD5(seq) LIMIT 5000) AS again;
                 FLUSH TABLES d.t, d.zip, d.compressed FOR EXPORT; UNLOCK TABLES; FLUSH TABLES"
            ));
            for update in 1..=15 {
                database.sql(&format!(
                    "UPDATE d.t SET t = REPEAT(MD5(CONCAT({update}, t, i)), 25) WHERE i <= 200;
                     FLUSH TABLES d.t FOR EXPORT; UNLOCK TABLES"
                ));
            }
        }
        match life {
            1 => {
                database.stop(&mut server);
                server = start(database, log);
            }
            2 => {
                server.signal(SIGKILL);
                server.wait();
                let lines = fs::read_to_string(log).unwrap().lines().count();
                server = start(database, log);
                never_written = Some(NeverWritten::new(lines, &server));
            }
            _ => database.stop(&mut server),
        }
    }
    let count = count(log, &never_written.unwrap());
    eprintln!("{count:?}");
    count
}

fn options() -> Vec<&'static str> {
    let mut options = ENCRYPT_ALL.to_vec();
    options.extend([
        "--aws-key-management=FORCE",
        "--aws-key-management-encryption-algorithm=AES_CTR",
        "--innodb-encrypt-temporary-tables=ON",
        "--innodb-default-encryption-key-id=3",
        "--innodb-encryption-threads=2",
        // Pages are written again and again.
        "--innodb-max-dirty-pages-pct=0",
        "--innodb-max-dirty-pages-pct-lwm=0",
    ]);
    options
}

/// With the plugin that logs what it encrypts.
fn ours(scene: &Scene) -> Database {
    Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .with_fault_points()
        .options(&options())
}

#[test]
fn no_keystream_is_used_twice_with_aes_ctr() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let database = ours(&scene);
    let count = three_lives(&database, &scene.sandbox.path("streams"));
    assert!(count.streams > 500, "{count:?}");
    assert_eq!(count.reused, 0, "{count:?}");
}

/// MariaDB may write a page of such a table again after a crash, under the same LSN, with the same rows compressed a
/// little differently: under AES_CTR seen on 10.5 in 2 of 23 runs of the test above, and on 10.11 once.
#[test]
fn the_key_of_a_page_compressed_table_is_of_aes_cbc_before_a_crash_is_recovered() {
    let scene = Scene::new().with_broker();
    let _broker = scene.start_broker();
    let database = ours(&scene);
    let log = scene.sandbox.path("streams");
    let mut server = start(&database, &log);
    database.sql(
        "CREATE DATABASE d; USE d;
         CREATE TABLE d.plain (i INT PRIMARY KEY, t TEXT) ENCRYPTION_KEY_ID=3;
         CREATE TABLE d.zip (i INT PRIMARY KEY, t TEXT) ROW_FORMAT=COMPRESSED ENCRYPTION_KEY_ID=5;
         CREATE TABLE d.compressed (i INT PRIMARY KEY, t TEXT) PAGE_COMPRESSED=1 ENCRYPTION_KEY_ID=4;
         INSERT INTO d.plain SELECT seq, MD5(seq) FROM seq_1_to_2000;
         INSERT INTO d.zip SELECT * FROM d.plain;
         INSERT INTO d.compressed SELECT * FROM d.plain;
         FLUSH TABLES d.plain, d.zip, d.compressed FOR EXPORT; UNLOCK TABLES;
         UPDATE d.compressed SET t = CONCAT(t, t)",
    );
    server.wait_for("key 4 encrypts page-compressed tables with AES_CTR");
    server.signal(SIGKILL);
    server.wait();
    let lines = fs::read_to_string(&log).unwrap().lines().count();

    let mut server = start(&database, &log);
    server.wait_for("key 4 now has version 3, which uses AES_CBC");
    let files = database.key_files();
    let tables = files
        .iter()
        .filter(|name| name.ends_with(".ctr") || name.contains(".4."));
    assert_eq!(
        tables.collect::<Vec<_>>(),
        [
            "aws-kms-key.3.2.ctr",
            "aws-kms-key.4.2.ctr",
            "aws-kms-key.4.3",
            "aws-kms-key.5.2.ctr"
        ]
    );
    database.sql("UPDATE d.compressed SET t = MD5(t); UPDATE d.plain SET t = MD5(t)");
    assert_eq!(database.sql("SELECT COUNT(*) FROM d.compressed"), "2000");
    database.stop(&mut server);
    let text = fs::read_to_string(&log).unwrap();
    let streams = |id: &str| {
        let lines = text
            .lines()
            .skip(lines)
            .map(|line| line.split(' ').collect::<Vec<_>>());
        lines
            .filter(|fields| fields[4] == id)
            .map(|fields| fields[0].to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(streams("4"), BTreeSet::from(["AES_CBC".into()]));
    assert_eq!(streams("3"), BTreeSet::from(["AES_CTR".into()]));

    // Nor does a rotation bring AES_CTR back.
    let mut server = start(&database, &log);
    assert_eq!(database.key_files(), files);
    database.sql("SET GLOBAL aws_key_management_rotate_key=4");
    assert!(database.key_files().contains(&"aws-kms-key.4.4".into()));
    database.stop(&mut server);
}

/// What MariaDB does with AES_CTR for everything, as file_key_management has it: the control of the test above.
#[test]
fn keystreams_are_used_twice_where_all_keys_are_of_aes_ctr() {
    let scene = Scene::new();
    let keys: String = (1..=4)
        .map(|id| format!("{id};770a8a65da156d24ee2a09327753014{id}\n"))
        .collect();
    let keys = scene.sandbox.write("keys.txt", &keys);
    let database = Database::new(&scene.sandbox)
        .with_offline_keys(&keys, None)
        .with_fault_points()
        .options(&options());
    let count = three_lives(&database, &scene.sandbox.path("streams"));
    // Hundreds up to 10.7, tens of thousands with the redo log since.
    assert!(count.reused_by_id[&1] > 100, "{count:?}");
    assert_eq!(count.reused_by_id.get(&3), None, "{count:?}");
}
