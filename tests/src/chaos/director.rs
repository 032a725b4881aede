//! The lives of the server: each begins with a comparison of all rows, and ends in some way.

mod broker_care;
mod copies;
mod disturbances;

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use nix::{
    sys::signal::{
        Signal::{SIGKILL, SIGTERM},
        kill,
    },
    unistd::Pid,
};

use super::{
    Sabotage,
    clients::{Client, make_schema},
    deck::Deck,
    messages,
    reading::read_table,
    schema::{CONTROL, CONTROL_FILE, Cleartext, MARKER, cleartext, read_control},
    shadow::{CLIENTS, End},
    watch::UnderWay,
    world::{Outcome, World, text_of},
};
use broker_care::CODE_PATIENCE;
use disturbances::Disturbance;

use crate::{Database, ENCRYPT_ALL, Process, Scene, StoreDirectory, contains_bytes};

/// Start and stop of a server take that long at most, even on a busy machine.
const START_AND_STOP_BOUND: Duration = Duration::from_secs(240);

/// Before the first stop.
const FIRST_TRANSACTIONS: u32 = 50;
const HANG: &str = "SELECT SLEEP(1000)";

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Killed,
    KilledWithBroker,
    Stopped,
    /// And its files are checked and copied.
    StoppedAndChecked,
}

/// What else happens in a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Verify,
    Rewrap,
    FullBackup,
    /// Seldom, since mariadb-backup itself may fail at it.
    IncrementalBackup,
}

const ENDINGS: [Ending; 7] = [
    Ending::Killed,
    Ending::Killed,
    Ending::Killed,
    Ending::KilledWithBroker,
    Ending::KilledWithBroker,
    Ending::Stopped,
    Ending::StoppedAndChecked,
];
const BESIDE: [Beside; 8] = [
    Beside::Nothing,
    Beside::Nothing,
    Beside::Nothing,
    Beside::Verify,
    Beside::Rewrap,
    Beside::Rewrap,
    Beside::FullBackup,
    Beside::IncrementalBackup,
];

/// Decides what happens, and does it, while the clients write.
pub(super) struct Director<'w> {
    pub world: &'w World,
    pub scene: &'w mut Scene,
    pub store: Option<&'w StoreDirectory>,
    pub database: Database,
    pub random: Rng,
    /// The broker that is a service, if there is one.
    pub service: Option<Process>,
    pub server: Option<Process>,
    pub stopped_broker: Option<Pid>,
    /// Where AWS was, while it is not there.
    pub aws_endpoint: Option<String>,
    pub key_is_disabled: bool,
    /// The id of `alias/mariadb`.
    pub master_key_id: String,
    /// What `rewrap` may be told.
    pub master_keys: Vec<String>,
    pub session_opened: Instant,
    pub backups: u32,
    lives: u32,
    logs: u32,
    endings: Deck<Ending>,
    /// How the server ended that clients last wrote to.
    last_end: End,
    besides: Deck<Beside>,
    starts: Deck<Start>,
    disturbances: Deck<Disturbance>,
    kinds: Deck<LifeKind>,
}

/// How a server starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Beside a broker that is a service.
    WithService,
    /// The same, and the broker has no session yet.
    WithoutSession,
    /// Behind the launcher, which starts a broker.
    Launched,
}

const STARTS: [Start; 6] = [
    Start::WithService,
    Start::WithService,
    Start::WithService,
    Start::WithoutSession,
    Start::Launched,
    Start::Launched,
];

/// What a life is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LifeKind {
    /// Nothing is missing: nothing may fail.
    Calm,
    /// Things are taken away.
    Stormy,
    /// The server is killed while it starts.
    KilledAtStart,
    /// AWS is not reachable while it starts.
    StartWithoutAws,
}

const KINDS: [LifeKind; 9] = [
    LifeKind::Calm,
    LifeKind::Calm,
    LifeKind::Calm,
    LifeKind::Stormy,
    LifeKind::Stormy,
    LifeKind::Stormy,
    LifeKind::Stormy,
    LifeKind::KilledAtStart,
    LifeKind::StartWithoutAws,
];

/// What is missing at a start. With a disabled key, KMS refuses only some versions: `rewrap` has put
/// the others under another.
const AT_START: [Disturbance; 4] = [
    Disturbance::Unreachable,
    Disturbance::Fault("500"),
    Disturbance::Fault("silence"),
    Disturbance::DisabledKey,
];

impl<'w> Director<'w> {
    pub fn new(
        world: &'w World,
        scene: &'w mut Scene,
        store: Option<&'w StoreDirectory>,
        seed: u64,
    ) -> Self {
        let other_key = scene.aws.key(&["--alias=alias/other"]);
        let query = ["--query=KeyMetadata.KeyId", "--output=text"];
        let describe = ["kms", "describe-key", "--key-id=alias/mariadb"];
        let master_key_id = scene.aws.cli(&[&describe[..], &query].concat());
        let database = Database::new(&scene.sandbox)
            .with_our_plugin(&scene.configuration.broker_socket)
            .options(&ENCRYPT_ALL)
            .options(&[
                "--aws-key-management=FORCE",
                "--aws-key-management-request-timeout=4000",
                "--innodb-encrypt-temporary-tables=ON",
                "--encrypt-tmp-disk-tables=ON",
                "--innodb-encryption-threads=2",
                // What is temporary reaches the disk.
                "--tmp-memory-table-size=32k",
                "--max-heap-table-size=32k",
                "--sort-buffer-size=32k",
                "--join-buffer-size=16k",
                "--binlog-cache-size=4k",
                "--max-binlog-size=1M",
                // Clients lock no rows of each other.
                "--transaction-isolation=READ-COMMITTED",
                "--innodb-lock-wait-timeout=30",
                "--lock-wait-timeout=120",
            ]);
        Self {
            world,
            master_keys: vec!["alias/mariadb".into(), other_key],
            master_key_id,
            scene,
            store,
            database,
            random: Rng::with_seed(seed),
            service: None,
            server: None,
            stopped_broker: None,
            aws_endpoint: None,
            key_is_disabled: false,
            session_opened: Instant::now(),
            backups: 0,
            lives: 0,
            logs: 0,
            endings: Deck::new(&ENDINGS),
            last_end: End::Killed,
            besides: Deck::new(&BESIDE),
            starts: Deck::new(&STARTS),
            disturbances: Deck::new(&disturbances::ALL),
            kinds: Deck::new(&KINDS),
        }
    }

    pub fn run(&mut self, until: Instant) {
        self.first_life();
        while Instant::now() < until {
            self.lives += 1;
            let kind = self.kinds.deal(&mut self.random);
            self.world.note(format!("life {}: {kind:?}", self.lives));
            match kind {
                LifeKind::Calm => self.live(false),
                LifeKind::Stormy => self.live(true),
                LifeKind::KilledAtStart => self.kill_at_start(),
                LifeKind::StartWithoutAws => self.start_without_aws(),
            }
        }
        self.world.note("the last life");
        self.start();
        self.end(Ending::StoppedAndChecked);
        self.check_and_copy();
        self.stop_service();
    }

    /// Ends what runs, and keeps its logs: something may have gone wrong at any moment.
    pub fn leave(&mut self) {
        self.continue_broker();
        for (name, process) in [
            ("server", self.server.take()),
            ("broker", self.service.take()),
        ] {
            let Some(mut process) = process else { continue };
            self.world.watch.forget(name);
            if !process.has_ended() {
                process.signal(SIGKILL);
            }
            let (_, output) = process.finish();
            self.keep_log(name, &output);
        }
    }

    /// Something begins that takes as long as a start at most.
    pub fn begin(&self, what: &str) -> UnderWay<'w> {
        self.world.watch.begin(what, START_AND_STOP_BOUND)
    }

    fn first_life(&mut self) {
        self.start();
        let mut maker = self.client(0);
        make_schema(&mut maker);
        for _ in 0..FIRST_TRANSACTIONS {
            assert!(maker.write());
        }
        self.sabotage();
        self.end(Ending::Stopped);
    }

    fn client(&mut self, number: u32) -> Client<'w> {
        Client {
            world: self.world,
            number,
            random: self.random.fork(),
        }
    }

    /// A start, a comparison, load, and an end.
    fn live(&mut self, is_stormy: bool) {
        self.start();
        let ending = self.endings.deal(&mut self.random);
        let mut clients: Vec<_> = (0..CLIENTS).map(|number| self.client(number)).collect();
        let world = self.world;
        thread::scope(|scope| {
            let threads: Vec<_> = clients
                .iter_mut()
                .map(|client| {
                    let name = format!("client {}", client.number);
                    let run = || {
                        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| client.run())) {
                            world.fail(text_of(&*panic));
                        }
                    };
                    thread::Builder::new()
                        .name(name)
                        .spawn_scoped(scope, run)
                        .unwrap()
                })
                .collect();
            let result = catch_unwind(AssertUnwindSafe(|| {
                if is_stormy {
                    self.storm();
                } else {
                    self.calm();
                }
                self.end(ending);
            }));
            // Each ends after its present statement, which the end of the server ends.
            world.end_life();
            if let Err(panic) = result {
                self.leave();
                resume_unwind(panic);
            }
            for client in threads {
                client.join().unwrap();
            }
        });
        assert!(!world.has_failed(), "a client has failed");
        if ending == Ending::StoppedAndChecked {
            // Only now is known what became of the last statements.
            self.start();
            self.end(ending);
            self.check_and_copy();
        }
    }

    fn calm(&mut self) {
        self.pause_up_to(2500);
        match self.besides.deal(&mut self.random) {
            Beside::Nothing => {}
            Beside::Verify => self.run_data_keys("verify"),
            Beside::Rewrap => self.run_data_keys("rewrap"),
            Beside::FullBackup => self.back_up(false),
            Beside::IncrementalBackup => self.back_up(true),
        }
        if self.session_ends_soon() {
            self.world.disturb();
        }
        self.pause_up_to(2000);
    }

    fn storm(&mut self) {
        for _ in 0..self.random.u8(1..4) {
            self.pause_up_to(1200);
            let disturbance = self.disturbances.deal(&mut self.random);
            self.disturb(disturbance);
            // The end may come in the middle of it.
            if self.random.u8(0..4) > 0 {
                self.recover();
            }
        }
        self.pause_up_to(1500);
    }

    fn pause_up_to(&mut self, milliseconds: u64) {
        let pause = self.random.u64(0..milliseconds);
        self.world.pause(Duration::from_millis(pause));
    }

    /// Starts the server, beside a service or under the launcher, and compares.
    fn start(&mut self) {
        let start = self.starts.deal(&mut self.random);
        match start {
            Start::Launched => {
                self.end_faults();
                self.stop_service();
                self.world.tally.count("broker", "started by the launcher");
            }
            Start::WithService => self.ensure_service(),
            Start::WithoutSession => {
                self.end_faults();
                self.stop_service();
                self.start_service_without_session();
            }
        }
        self.world.note(format!("start the server: {start:?}"));
        let mut command = match start {
            Start::Launched => self.scene.database_command(&self.database),
            _ => self.database.command(),
        };
        self.await_start(Process::start(&mut command));
        self.world.tally.count("server", "starts");
        self.compare();
        self.world.begin_life(&self.database);
    }

    fn start_service_without_session(&mut self) {
        let broker = Process::start(&mut self.scene.broker_command());
        self.world.watch.follow("broker", broker.pid());
        self.service = Some(broker);
        self.world
            .tally
            .count("codes", "servers that waited for one");
        self.world.wait_until(|| self.awaits_code());
    }

    /// Gives codes to whoever asks until the server is ready.
    fn await_start(&mut self, server: Process) {
        let _under_way = self.begin("the start of the server");
        self.world.watch.follow("server", server.pid());
        self.server = Some(server);
        let mut next_code = Instant::now();
        loop {
            let server = self.server.as_mut().unwrap();
            let output = server.output();
            if output.contains("ready for connections") {
                return;
            }
            assert!(!server.has_ended(), "the server does not start:\n{output}");
            if self.awaits_code() && Instant::now() >= next_code {
                self.pause_up_to(1000);
                self.write_code();
                next_code = Instant::now() + CODE_PATIENCE;
            }
            self.world.pause(Duration::from_millis(20));
        }
    }

    /// A start that is cut short; the next one finds out what that has left.
    fn kill_at_start(&mut self) {
        self.ensure_service();
        let mut server = Process::start(&mut self.database.command());
        self.world.watch.follow("server", server.pid());
        self.pause_up_to(1500);
        self.world.watch.forget("server");
        server.signal(SIGKILL);
        let (_, output) = server.finish();
        self.check_log("the log of a start that was cut short", &output, false);
        self.world.tally.count("server", "killed while starting");
        self.scan(&self.database.datadir.clone());
    }

    /// A start that cannot succeed, or only by what the broker keeps: nothing is lost by it.
    fn start_without_aws(&mut self) {
        self.ensure_service();
        let disturbance = *self.random.choice(&AT_START).unwrap();
        self.disturb(disturbance);
        let _under_way = self.begin("a start without AWS");
        let mut server = Process::start(&mut self.database.command());
        self.world.watch.follow("server", server.pid());
        let end = Instant::now() + Duration::from_millis(self.random.u64(500..6000));
        while Instant::now() < end && !server.has_ended() {
            self.world.pause(Duration::from_millis(20));
        }
        self.world.watch.forget("server");
        if !server.has_ended() {
            server.signal(SIGKILL);
        }
        let (_, output) = server.finish();
        self.keep_log("server-without-aws", &output);
        self.world.tally.count("server", "starts without KMS");
        self.end_faults();
    }

    /// Compares every row of every table with the shadow.
    fn compare(&mut self) {
        self.world.note("compare");
        let _under_way = self.begin("the comparison");
        let socket = self.database.socket.clone();
        let (query, expected) = read_control();
        if self.lives > 0 {
            assert_eq!(
                self.database.sql(&query),
                expected,
                "the table in the clear"
            );
        }
        let result = self
            .world
            .shadow
            .settle_and_compare(self.last_end, |number, kind| {
                read_table(&socket, number, kind)
                    .unwrap_or_else(|error| panic!("t{number}: {}", error.text))
            });
        match result {
            Ok(rows) => self.world.tally.add("checks", "rows verified", rows),
            Err(differences) => panic!("the data differ:\n{}", differences.join("\n")),
        }
        self.database.read_binary_logs();
    }

    /// Ends the server as said, and looks at what it has left.
    fn end(&mut self, ending: Ending) {
        self.world.note(format!("end: {ending:?}"));
        if self.random.u8(0..3) == 0 {
            self.scan_open_files();
        }
        if matches!(ending, Ending::Stopped | Ending::StoppedAndChecked) {
            // 2 is as good as a kill to `check`.
            let fast = self.random.u8(0..2);
            let set = format!("SET GLOBAL innodb_fast_shutdown={fast}");
            let outcome = self.world.execute(&set);
            assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        }
        let broker = match ending {
            Ending::KilledWithBroker if self.broker_is_there() => Some(self.broker_pid()),
            _ => None,
        };
        self.world.end_life();
        let _under_way = self.begin("the end of the server");
        let mut server = self.server.take().unwrap();
        let may_lack_keys = self.world.may_lack_keys();
        match ending {
            Ending::Stopped | Ending::StoppedAndChecked => {
                server.signal(SIGTERM);
                let status = server.wait();
                assert!(status.success(), "{status}\n{}", server.output());
                self.last_end = End::Stopped;
                self.world.tally.count("server", "stopped");
            }
            Ending::Killed | Ending::KilledWithBroker => {
                server.signal(SIGKILL);
                self.last_end = End::Killed;
                self.world.tally.count("server", "killed");
            }
        }
        if let Some(broker) = broker {
            // Of a launcher, it may have left with its server.
            let _ = kill(broker, SIGKILL);
            self.world.tally.count("broker", "killed with the server");
            if let Some(mut service) = self.service.take() {
                let (_, output) = service.finish();
                self.keep_log("broker", &output);
            }
        }
        // A launcher's broker holds the server's log open until it leaves.
        self.continue_broker();
        self.world.watch.forget("server");
        let (status, output) = server.finish();
        if matches!(ending, Ending::Killed | Ending::KilledWithBroker) {
            assert_eq!(status.signal(), Some(SIGKILL as i32), "{status}\n{output}");
        }
        self.keep_log("server", &output);
        self.check_log("the server's log", &output, may_lack_keys);
        self.scan(&self.database.datadir.clone());
    }

    /// No log reports damage, nor of an unprovoked error.
    pub(super) fn check_log(&self, what: &str, log: &str, may_lack_keys: bool) {
        let wrong = messages::wrong_lines(log, may_lack_keys);
        assert!(wrong.is_empty(), "{what} says:\n{}", wrong.join("\n"));
        self.world.tally.count("checks", "logs read");
    }

    /// Keeps a log for the case that something is wrong later.
    pub(super) fn keep_log(&mut self, name: &str, log: &str) {
        self.logs += 1;
        let file = format!("report/{:04}-{name}.log", self.logs);
        fs::write(self.scene.sandbox.path(&file), log).unwrap();
    }

    /// No file has what is encrypted in the clear; and one has what is not, or this would show
    /// nothing.
    pub(super) fn scan(&self, datadir: &Path) {
        let database = self.database.on_datadir(datadir);
        let mut found_control = false;
        for file in database.all_files() {
            let content = fs::read(&file).unwrap();
            self.look_for_cleartext(&file, &content);
            found_control |=
                file.ends_with(CONTROL_FILE) && contains_bytes(&content, CONTROL.as_bytes());
        }
        assert!(
            found_control,
            "{CONTROL_FILE} does not have its text in the clear"
        );
        self.world.tally.count("checks", "scans for the marker");
    }

    fn look_for_cleartext(&self, file: &Path, content: &[u8]) {
        match cleartext(file, content) {
            Cleartext::None => {}
            Cleartext::OfMariaDb => {
                let what = "files that MariaDB leaves in the clear";
                self.world.tally.count("checks", what);
            }
            Cleartext::Marker => {
                // It may be gone with the server.
                let kept = self.scene.sandbox.path("report/in-the-clear");
                fs::write(kept, content).unwrap();
                panic!("{} has the marker in the clear", file.display());
            }
        }
    }

    /// The same of files without a name, which only the running server has.
    fn scan_open_files(&self) {
        let pid = self.server.as_ref().unwrap().pid();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        for descriptor in descriptors.flatten() {
            // A pipe must not be read, and any of them may be closed meanwhile.
            if !fs::metadata(descriptor.path()).is_ok_and(|file| file.is_file()) {
                continue;
            }
            let Ok(content) = fs::read(descriptor.path()) else {
                continue;
            };
            let name = fs::read_link(descriptor.path()).unwrap_or_default();
            self.look_for_cleartext(&name, &content);
        }
        self.world.tally.count("checks", "scans of open files");
    }

    /// Does the damage that a run is to find.
    fn sabotage(&mut self) {
        let Some(sabotage) = self.world.sabotage else {
            return;
        };
        let statement = match sabotage {
            Sabotage::RemoveRow => "DELETE FROM d.t1 ORDER BY id LIMIT 1",
            Sabotage::ChangeRow => "UPDATE d.t1 SET t = CONCAT(t, ' ') ORDER BY id LIMIT 1",
            Sabotage::WriteMarkerInTheClear => &format!(
                "CREATE TABLE d.leak ENCRYPTED=NO SELECT '{MARKER}' t; FLUSH TABLES d.leak FOR EXPORT; UNLOCK TABLES"
            ),
            Sabotage::Hang => {
                let _under_way = self.world.watch.begin(HANG, Duration::ZERO);
                self.database.sql_error(HANG);
                return;
            }
        };
        self.database.sql(statement);
    }
}
