//! The server is killed while it makes keys: no row, no key and no version number may suffer.
//!
//! `IAM_KMS_CRASHES` says how often it is killed at random moments, 20 times unless set;
//! `IAM_KMS_CRASH_SEED` repeats a run that failed with that seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    sync::Mutex,
    thread,
    time::Duration,
};

use end_to_end_tests::{
    Database, ENCRYPT_ALL, Process, Sandbox, Scene, StoreDirectory, broker::unwrap, contains_bytes,
    dist, number_from_environment, try_sql,
};
use nix::sys::signal::Signal::SIGKILL;

const KILL_AT: &str = "AWS_KEY_MANAGEMENT_KILL_AT";
const ROWS_PER_INSERT: u32 = 20;
const FIRST_ID: u32 = 10;

/// What must be there after each crash.
#[derive(Default)]
struct Ledger {
    /// Content of each key file that has been seen.
    key_files: BTreeMap<String, Vec<u8>>,
    /// The versions that the server said it had made.
    made: BTreeSet<String>,
    /// Rows that are committed, by key id; there is a table for each.
    rows: BTreeMap<u32, u32>,
    tables_tried: u32,
}

/// A database whose server is killed again and again, and what is known of it.
struct Ordeal {
    broker_socket: PathBuf,
    database: Database,
    ledger: Mutex<Ledger>,
    store: Option<StoreDirectory>,
    _sandbox: Sandbox,
}

impl Ordeal {
    fn new(scene: &Scene) -> Self {
        let sandbox = Sandbox::new();
        let broker_socket = scene.configuration.broker_socket.clone();
        let database = Database::new(&sandbox)
            .with_our_plugin(&broker_socket)
            .options(&ENCRYPT_ALL)
            .options(&[
                "--aws-key-management=FORCE",
                "--innodb-encryption-threads=2",
                // Pages reach the disk, encrypted, while the test runs.
                "--innodb-max-dirty-pages-pct=0",
                "--innodb-max-dirty-pages-pct-lwm=0",
            ]);
        Self {
            broker_socket,
            database,
            ledger: Mutex::default(),
            store: None,
            _sandbox: sandbox,
        }
    }

    /// Starts the server, which must read back all that was there before.
    fn start(&self) -> Process {
        let server = self.database.start();
        self.check_server(&server);
        server
    }

    /// The same, with the N-th occurrence of a step of making a key as its end (`STEP:N`).
    fn start_to_die_at(&self, end: &str) -> Process {
        // What the last crash has left is cleared up before.
        let server = self.start();
        server.signal(SIGKILL);
        self.check_death(server);
        let server = Process::start(self.database.command().env(KILL_AT, end));
        self.database.wait_until_ready(&server);
        self.check_server(&server);
        server
    }

    fn check_server(&self, server: &Process) {
        let output = server.output();
        for line in output
            .lines()
            .filter(|line| line.contains("AWS KMS plugin"))
        {
            assert!(!line.contains("[ERROR]"), "{line}\n{output}");
        }
        let left = self.temporary_files();
        assert_eq!(left, [""; 0], "left behind\n{output}");
        let mut ledger = self.ledger.lock().unwrap();
        for (id, committed) in &mut ledger.rows {
            // The last row of the table, and whether all before it are there and as they were.
            let row = self.database.sql(&format!(
                "SELECT COALESCE(MAX(i), 0), COALESCE(MAX(i), 0) = COUNT(*) AND COALESCE(MIN(t = {}), 1) FROM d.t{id}",
                text_of(*id, "i"),
            ));
            let there: u32 = row
                .strip_suffix("\t1")
                .unwrap_or_else(|| panic!("t{id}: {row}\n{output}"))
                .parse()
                .unwrap();
            // The last INSERT may have been committed without a word.
            assert!(
                there == *committed || there == *committed + ROWS_PER_INSERT,
                "t{id} has {there} rows, {committed} were committed"
            );
            *committed = there;
        }
    }

    /// Waits for the end of a server that was killed, and looks at the key files.
    fn check_death(&self, mut server: Process) {
        let (status, output) = server.finish();
        assert_eq!(status.signal(), Some(SIGKILL as i32), "{output}");
        let mut ledger = self.ledger.lock().unwrap();
        for name in self.database.key_files() {
            let content = fs::read(self.database.datadir.join(&name)).unwrap();
            if let Some(store) = &self.store {
                assert!(store.has(&name, &content), "{name} is not in the key store");
            }
            match ledger.key_files.get(&name) {
                Some(before) => assert!(*before == content, "{name} has changed"),
                None => {
                    assert_eq!(unwrap(&self.broker_socket, &content).len(), 16, "{name}");
                    let is_known = ledger.key_files.values().any(|other| *other == content);
                    assert!(!is_known, "the key of {name} has two names");
                    ledger.key_files.insert(name, content);
                }
            }
        }
        for name in ledger.key_files.keys() {
            assert!(self.database.datadir.join(name).exists(), "{name} is gone");
        }
        for made in made_keys(&output) {
            assert!(
                ledger.key_files.contains_key(&made),
                "{made} is not on disk"
            );
            assert!(ledger.made.insert(made.clone()), "{made} was made twice");
        }
    }

    /// Files of keys in the making. mariadb-backup copies what begins with `aws-kms-key`.
    fn temporary_files(&self) -> Vec<String> {
        fs::read_dir(&self.database.datadir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(".aws-kms-key") && name.ends_with(".new"))
            .collect()
    }

    /// Runs a statement; false if the server died of it or before it.
    fn try_sql(&self, statement: &str) -> bool {
        let result = try_sql(&self.database.socket, statement);
        if let Err(error) = &result {
            assert!(error.has_lost_server(), "{statement}\n{}", error.text);
        }
        result.is_ok()
    }

    /// Makes a table with a new key id; false if the server died.
    fn create(&self) -> bool {
        let id = {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.tables_tried += 1;
            FIRST_ID + ledger.tables_tried
        };
        let made = self.try_sql(&format!(
            "CREATE TABLE d.t{id} (i INT PRIMARY KEY, t BLOB) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}"
        ));
        if made {
            self.ledger.lock().unwrap().rows.insert(id, 0);
        }
        made
    }

    fn insert(&self, id: u32) -> bool {
        let committed = self.ledger.lock().unwrap().rows[&id];
        let last = committed + ROWS_PER_INSERT;
        let inserted = self.try_sql(&format!(
            "INSERT INTO d.t{id} SELECT seq, {} FROM d.seq_{}_to_{last}",
            text_of(id, "seq"),
            committed + 1
        ));
        if inserted {
            self.ledger.lock().unwrap().rows.insert(id, last);
        }
        inserted
    }

    fn rotate(&self, id: i64) -> bool {
        self.try_sql(&format!("SET GLOBAL aws_key_management_rotate_key={id}"))
    }

    fn ids(&self) -> Vec<u32> {
        self.ledger.lock().unwrap().rows.keys().copied().collect()
    }
}

/// The text of a row, in SQL.
fn text_of(id: u32, row: &str) -> String {
    format!("REPEAT(MD5(CONCAT({id}, ':', {row})), 8)")
}

/// The files of the versions that the server said it had made.
fn made_keys(output: &str) -> impl Iterator<Item = String> {
    output.lines().filter_map(|line| {
        let (_, made) = line.split_once("AWS KMS plugin: made key ")?;
        let (id, rest) = made.split_once(", version ")?;
        let (version, _) = rest.split_once(',')?;
        Some(format!("aws-kms-key.{id}.{version}"))
    })
}

/// One step of making a key: the server dies there while it makes the first keys of a new datadir,
/// the first version of a key, the next one, and the next ones of all keys at once.
fn die_at(step: &str, leaves_temporary_file: bool) {
    die_with(step, leaves_temporary_file, None);
    die_with(step, leaves_temporary_file, Some(&Sandbox::new()));
}

/// The same, with a key store in the sandbox if there is one.
fn die_with(step: &str, leaves_temporary_file: bool, sandbox: Option<&Sandbox>) {
    let mut scene = Scene::new().with_broker();
    let store = sandbox.map(StoreDirectory::new);
    if let Some(store) = &store {
        scene = scene.line(&format!("key_store = {}", store.location()));
    }
    let _broker = scene.start_broker();
    let mut ordeal = Ordeal::new(&scene);
    ordeal.store = store;
    ordeal.database = ordeal.database.with_fault_points();
    let dies = |server: Process| {
        ordeal.check_death(server);
        assert_eq!(
            ordeal.temporary_files().len(),
            usize::from(leaves_temporary_file),
            "{:?}",
            ordeal.temporary_files()
        );
    };
    let once = format!("{step}:1");
    dies(Process::start(
        ordeal.database.command().env(KILL_AT, &once),
    ));

    let server = ordeal.start();
    ordeal.database.sql("CREATE DATABASE d");
    assert!(ordeal.create() && ordeal.create());
    let ids = ordeal.ids();
    for _ in 0..2 {
        assert!(ids.iter().all(|id| ordeal.insert(*id)) && ordeal.rotate(-1));
    }
    server.signal(SIGKILL);
    ordeal.check_death(server);

    let server = ordeal.start_to_die_at(&once);
    assert!(!ordeal.create());
    dies(server);

    let server = ordeal.start_to_die_at(&once);
    assert!(ordeal.insert(ids[0]) && !ordeal.rotate(ids[0].into()));
    dies(server);

    // Each key has a file of its own, but several may get into the manifest at once.
    let occurrence = if step.starts_with("Manifest") { 1 } else { 3 };
    let server = ordeal.start_to_die_at(&format!("{step}:{occurrence}"));
    assert!(ordeal.insert(ids[1]) && !ordeal.rotate(-1));
    // Another thread may have been writing a file at that moment.
    ordeal.check_death(server);

    let server = ordeal.start();
    assert!(ordeal.create() && ordeal.rotate(-1));
    assert!(ordeal.ids().into_iter().all(|id| ordeal.insert(id)));
    server.signal(SIGKILL);
    ordeal.check_death(server);
    ordeal.start();
}

#[test]
fn nothing_is_lost_with_a_key_that_kms_has_just_made() {
    die_at("Generated", false);
}

#[test]
fn nothing_is_lost_with_a_key_that_has_proved_to_open() {
    die_at("Unwrapped", false);
}

#[test]
fn nothing_is_lost_with_a_key_whose_version_is_chosen() {
    die_at("VersionChosen", false);
}

#[test]
fn nothing_is_lost_with_an_empty_temporary_file() {
    die_at("TemporaryMade", true);
}

#[test]
fn nothing_is_lost_with_half_a_temporary_file() {
    die_at("HalfWritten", true);
}

#[test]
fn nothing_is_lost_with_a_whole_temporary_file() {
    die_at("Written", true);
}

#[test]
fn nothing_is_lost_with_a_temporary_file_that_is_on_disk() {
    die_at("FileSynced", true);
}

#[test]
fn nothing_is_lost_with_a_key_file_that_has_its_name() {
    die_at("Named", false);
}

#[test]
fn nothing_is_lost_with_a_key_file_whose_name_is_on_disk() {
    die_at("DirectorySynced", false);
}

#[test]
fn nothing_is_lost_with_half_a_temporary_manifest() {
    die_at("ManifestHalfWritten", true);
}

#[test]
fn nothing_is_lost_with_a_temporary_manifest_that_is_on_disk() {
    die_at("ManifestFileSynced", true);
}

#[test]
fn nothing_is_lost_with_a_manifest_that_has_its_name() {
    die_at("ManifestNamed", false);
}

#[test]
fn nothing_is_lost_with_a_manifest_whose_name_is_on_disk() {
    die_at("ManifestDirectorySynced", false);
}

#[test]
fn nothing_is_lost_with_a_key_that_is_in_memory() {
    die_at("Published", false);
}

/// Makes tables, rows and new versions of keys until the server dies.
fn load(ordeal: &Ordeal, random: &mut fastrand::Rng) {
    let mut rotating = random.fork();
    thread::scope(|scope| {
        scope.spawn(|| while ordeal.create() && insert_anywhere(ordeal, random) {});
        scope.spawn(|| {
            while match rotating.u8(0..8) {
                0 => ordeal.rotate(-1),
                _ => rotating
                    .choice(ordeal.ids())
                    .is_none_or(|id| ordeal.rotate(id.into())),
            } {}
        });
    });
}

fn insert_anywhere(ordeal: &Ordeal, random: &mut fastrand::Rng) -> bool {
    (0..3).all(|_| {
        random
            .choice(ordeal.ids())
            .is_none_or(|id| ordeal.insert(id))
    })
}

/// Kills the server after `pause`, whatever it is doing.
fn kill_after(server: &Process, pause: Duration) {
    thread::sleep(pause);
    server.signal(SIGKILL);
}

#[test]
fn nothing_is_lost_at_random_moments() {
    const CRASHES_OF_ONE_DATADIR: u64 = 10;
    let crashes = number_from_environment("IAM_KMS_CRASHES").unwrap_or(20);
    let seed = number_from_environment("IAM_KMS_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("IAM_KMS_CRASH_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let scene = Scene::new()
        .with_broker()
        .line("session_duration_seconds = 36000");
    let _broker = scene.start_broker();
    let mut left = crashes;
    while left > 0 {
        let ordeal = Ordeal::new(&scene);
        let mut is_new = true;
        for _ in 0..left.min(CRASHES_OF_ONE_DATADIR) {
            left -= 1;
            let pause = Duration::from_millis(random.u64(0..600));
            if random.u8(0..4) == 0 {
                let server = Process::start(&mut ordeal.database.command());
                kill_after(&server, pause);
                ordeal.check_death(server);
                continue;
            }
            let server = ordeal.start();
            if is_new {
                ordeal.database.sql("CREATE DATABASE d");
                is_new = false;
            }
            thread::scope(|scope| {
                scope.spawn(|| kill_after(&server, pause));
                load(&ordeal, &mut random);
            });
            ordeal.check_death(server);
        }
        ordeal.start();
    }
}

#[test]
fn the_installed_plugin_has_no_fault_points() {
    let has_them = |plugin: &str| {
        let library = fs::read(dist(plugin).join("aws_key_management.so")).unwrap();
        contains_bytes(&library, KILL_AT.as_bytes())
    };
    assert!(has_them("test-plugin"));
    assert!(!has_them("plugin"));
}
