//! A Galera cluster of three whose nodes share a key store: everything encrypted, real state transfers, each start
//! through `galera_recovery` as MariaDB's unit has it.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
};

use end_to_end_tests::{
    Database, ENCRYPT_ALL, Process, Sandbox, Scene, StoreDirectory, contains_bytes, try_sql,
    wait_until,
};
use nix::unistd::User;

const MARKER: &str = "cluster-text-that-must-be-encrypted";
const ROTATE: &str = "SET GLOBAL aws_key_management_rotate_key=-1";

struct Cluster {
    scene: Scene,
    store: StoreDirectory,
    broker: Option<Process>,
    sst_method: &'static str,
    /// Where Galera's cache is, which the server never encrypts: in memory.
    caches: tempfile::TempDir,
}

struct Node {
    name: &'static str,
    port: u16,
    _sandbox: Sandbox,
    database: Database,
    options: PathBuf,
    process: Option<Process>,
}

/// Ports that are free: of the group, of incremental transfers, of state transfers. They lie below those that the
/// kernel gives to whoever asks for any, and no other node here gets them.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(3, Ordering::Relaxed);
        let all = [port, port + 1, port + 2].map(|port| TcpListener::bind(("127.0.0.1", port)));
        if all.iter().all(Result::is_ok) {
            return port;
        }
    }
}

impl Cluster {
    fn new(sst_method: &'static str) -> Self {
        let scene = Scene::new()
            .with_broker()
            .line("broker_socket_group = mysql");
        let store = StoreDirectory::new(&scene.sandbox);
        let scene = scene.line(&format!("key_store = {}", store.location()));
        let broker = Some(scene.start_broker());
        let caches = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
        Self {
            scene,
            store,
            broker,
            sst_method,
            caches,
        }
    }

    /// The same with a broker that has this key store, or none.
    fn with_store(mut self, location: Option<&str>) -> Self {
        drop(self.broker.take());
        self.scene = self.scene.without("key_store");
        if let Some(location) = location {
            self.scene = self.scene.line(&format!("key_store = {location}"));
        }
        self.broker = Some(self.scene.start_broker());
        self
    }

    fn node(&self, name: &'static str) -> Node {
        let sandbox = Sandbox::new();
        let database = Database::new(&sandbox);
        Node {
            name,
            port: free_ports(),
            options: sandbox.path("my.cnf"),
            _sandbox: sandbox,
            database,
            process: None,
        }
    }

    /// Writes the option file of a node, and gives its files to user mysql.
    fn prepare(&self, node: &Node, others: &[&Node]) {
        let cache = self.caches.path().join(node.name);
        fs::create_dir_all(&cache).unwrap();
        let mysql = User::from_name("mysql").unwrap().unwrap();
        std::os::unix::fs::chown(self.caches.path(), Some(mysql.uid.as_raw()), None).unwrap();
        std::os::unix::fs::chown(&cache, Some(mysql.uid.as_raw()), None).unwrap();
        let members: Vec<_> = others
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect();
        // The server's own options, without the program and what only a command line has.
        let line: Vec<_> = node
            .database
            .command_line()
            .into_iter()
            .filter_map(|option| option.strip_prefix("--").map(str::to_owned))
            .filter(|option| !matches!(option.as_str(), "no-defaults" | "user=root"))
            .collect();
        let encryption: Vec<_> = ENCRYPT_ALL
            .iter()
            .map(|option| option.trim_start_matches("--"))
            .collect();
        let text = format!(
            "[mysqld]\nuser = mysql\n{}\nplugin-load-add = aws_key_management\naws-key-management = FORCE\n\
             aws-key-management-master-key-id = alias/mariadb\naws-key-management-broker-socket = {}\n{}\n\
             binlog-format = ROW\ninnodb-autoinc-lock-mode = 2\nlog-slave-updates\n\
             wsrep-on = ON\nwsrep-provider = /usr/lib/galera/libgalera_smm.so\n\
             wsrep-cluster-name = test\nwsrep-node-name = {}\nwsrep-node-address = 127.0.0.1:{}\n\
             wsrep-cluster-address = gcomm://{}\nwsrep-sst-method = {}\nwsrep-sst-auth = root:\n\
             wsrep-sst-receive-address = 127.0.0.1:{}\n\
             wsrep-provider-options = base_port={};gmcast.listen_addr=tcp://127.0.0.1:{};ist.recv_addr=127.0.0.1:{};gcache.dir={};gcache.size=16M\n",
            line.join("\n"),
            self.scene.configuration.broker_socket.display(),
            encryption.join("\n"),
            node.name,
            node.port,
            members.join(","),
            self.sst_method,
            node.port + 2,
            node.port,
            node.port,
            node.port + 1,
            cache.display(),
        );
        fs::write(&node.options, text).unwrap();
        node.database.give_to(mysql.uid.as_raw());
    }

    /// Starts a node as MariaDB's unit does; the start of the server may fail.
    fn try_start(&self, node: &mut Node, others: &[&Node]) -> Result<(), String> {
        self.prepare(node, others);
        let defaults = format!("--defaults-file={}", node.options.display());
        let recovery = Command::new("/usr/bin/galera_recovery")
            .arg(&defaults)
            .output()
            .unwrap();
        let position = String::from_utf8(recovery.stdout).unwrap();
        if !recovery.status.success() {
            return Err(String::from_utf8_lossy(&recovery.stderr).into());
        }
        let mut command = Command::new("/usr/sbin/mariadbd");
        command.arg(&defaults).args(position.split_whitespace());
        if others.is_empty() {
            command.arg("--wsrep-new-cluster");
        }
        node.process = Some(Process::start(&mut command));
        Ok(())
    }

    fn start(&self, node: &mut Node, others: &[&Node]) {
        self.try_start(node, others).unwrap();
        node.wait_until_synced();
    }
}

impl Node {
    fn sql(&self, statements: &str) -> String {
        self.database.sql(statements)
    }

    fn wait_until_synced(&self) {
        let process = self.process.as_ref().unwrap();
        process.wait_for("ready for connections");
        wait_until("the node to be synced", || {
            let state = try_sql(
                &self.database.socket,
                "SHOW STATUS LIKE 'wsrep_local_state_comment'",
            );
            state.is_ok_and(|state| state.contains("Synced"))
        });
    }

    fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        self.database.stop(&mut process);
        let log = process.output();
        for line in log.lines().filter(|line| line.contains("AWS KMS plugin")) {
            assert!(!line.contains("[ERROR]"), "{}: {line}", self.name);
        }
    }

    /// Replaces the data directory by that of a new installation.
    fn lose_data(&self) {
        let new = Sandbox::new();
        let fresh = Database::new(&new);
        fs::remove_dir_all(&self.database.datadir).unwrap();
        fs::rename(&fresh.datadir, &self.database.datadir).unwrap();
    }

    fn rows(&self) -> String {
        self.sql(
            "SET SESSION wsrep_sync_wait=1;
             SELECT COUNT(*), SUM(CRC32(t)) FROM d.plain; SELECT COUNT(*), SUM(CRC32(t)) FROM d.keyed;
             SELECT COUNT(*), SUM(CRC32(t)) FROM d.aria",
        )
    }

    /// No file has the text of the rows.
    fn assert_encrypted(&self) {
        for file in self.database.all_files() {
            let content = fs::read(&file).unwrap_or_default();
            // MariaDB does not encrypt Aria's log.
            let is_aria_log = file
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("aria_log."));
            assert!(
                is_aria_log || !contains_bytes(&content, MARKER.as_bytes()),
                "{} of {}",
                file.display(),
                self.name
            );
        }
    }
}

fn insert(table: &str, from: u32, to: u32) -> String {
    format!(
        "INSERT INTO d.{table} SELECT seq, CONCAT('{MARKER}', MD5(seq)) FROM d.seq_{from}_to_{to};"
    )
}

fn create_tables(node: &Node) {
    node.sql(&format!(
        "CREATE DATABASE d; USE d;
         CREATE TABLE plain (n INT PRIMARY KEY, t TEXT);
         CREATE TABLE keyed (n INT PRIMARY KEY, t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=10;
         CREATE TABLE aria (n INT PRIMARY KEY, t TEXT) ENGINE=Aria;
         {}",
        insert("aria", 1, 100)
    ));
}

fn write(node: &Node, from: u32, to: u32) {
    node.sql(&format!(
        "{}{}",
        insert("plain", from, to),
        insert("keyed", from, to)
    ));
}

fn a_cluster_lives_with_one_key_store(sst_method: &'static str) {
    let mut cluster = Cluster::new(sst_method);
    let mut one = cluster.node("one");
    cluster.start(&mut one, &[]);
    create_tables(&one);
    write(&one, 1, 300);
    // A node joins, after a rotation; another one during a rotation.
    one.sql(ROTATE);
    write(&one, 301, 400);
    let mut two = cluster.node("two");
    cluster.start(&mut two, &[&one]);
    assert_eq!(two.rows(), one.rows());
    assert_eq!(two.database.key_files(), one.database.key_files());
    let mut three = cluster.node("three");
    cluster.try_start(&mut three, &[&one, &two]).unwrap();
    one.sql(ROTATE);
    three.wait_until_synced();
    write(&three, 401, 500);
    assert_eq!(three.rows(), one.rows());

    // A short absence: an incremental transfer.
    two.stop();
    one.sql(ROTATE);
    write(&one, 501, 600);
    cluster.start(&mut two, &[&one, &three]);
    let log = two.process.as_ref().unwrap().output();
    assert!(
        log.contains("IST received") || log.contains("Receiving IST"),
        "{log}"
    );
    assert_eq!(two.rows(), one.rows());

    // A node that has lost its data directory.
    three.stop();
    write(&one, 601, 700);
    three.lose_data();
    cluster.start(&mut three, &[&one, &two]);
    assert_eq!(three.rows(), one.rows());

    // One that lived without the key store, and has keys of its own.
    three.stop();
    three.lose_data();
    let location = cluster.store.location();
    cluster = cluster.with_store(None);
    cluster.prepare(&three, &[]);
    fs::write(
        &three.options,
        fs::read_to_string(&three.options)
            .unwrap()
            .replace("wsrep-on = ON", "wsrep-on = OFF"),
    )
    .unwrap();
    let mut alone = Process::start(
        Command::new("/usr/sbin/mariadbd")
            .arg(format!("--defaults-file={}", three.options.display())),
    );
    three.database.wait_until_ready(&alone);
    three.database.stop(&mut alone);
    cluster = cluster.with_store(Some(&location));
    let error = cluster.try_start(&mut three, &[&one, &two]).unwrap_err();
    assert!(
        error.contains("aws-kms-key.1.1 is another key here"),
        "{error}"
    );
    three.lose_data();
    cluster.start(&mut three, &[&one, &two]);
    write(&three, 701, 800);
    let rows = one.rows();
    assert_eq!(rows.lines().next().unwrap().split('\t').next(), Some("800"));

    for node in [&mut three, &mut two, &mut one] {
        assert_eq!(node.rows(), rows, "{}", node.name);
        assert_eq!(
            node.sql("CHECK TABLE d.plain, d.keyed, d.aria EXTENDED")
                .matches("OK")
                .count(),
            3
        );
        node.stop();
        node.assert_encrypted();
    }
    assert!(Path::new(cluster.store.path()).join("10/1").exists());
}

#[test]
fn a_cluster_whose_nodes_rotated_apart_moves_into_a_key_store() {
    let mut cluster = Cluster::new("mariabackup");
    let location = cluster.store.location();
    cluster = cluster.with_store(None);
    let (mut one, mut two) = (cluster.node("one"), cluster.node("two"));
    cluster.start(&mut one, &[]);
    create_tables(&one);
    write(&one, 1, 100);
    cluster.start(&mut two, &[&one]);
    one.sql(ROTATE);
    two.sql(ROTATE);
    write(&two, 101, 200);
    two.stop();
    let wrapped = |node: &Node| fs::read(node.database.datadir.join("aws-kms-key.10.2")).unwrap();
    assert_ne!(wrapped(&one), wrapped(&two), "they have rotated apart");

    // As the book says: one node pushes, the others join with nothing of their own.
    let push = cluster
        .scene
        .aws
        .data_keys_command(
            "bin",
            &["push", &format!("--store={location}")],
            &one.database.datadir,
        )
        .output()
        .unwrap();
    assert!(push.status.success(), "{push:?}");
    cluster = cluster.with_store(Some(&location));
    let error = cluster.try_start(&mut two, &[&one]).unwrap_err();
    assert!(
        error.contains("aws-kms-key.10.2 is another key here"),
        "{error}"
    );
    two.lose_data();
    cluster.start(&mut two, &[&one]);
    assert_eq!(two.rows(), one.rows());
    assert_eq!(wrapped(&one), wrapped(&two));
    two.sql(ROTATE);
    write(&one, 201, 300);
    assert_eq!(two.rows(), one.rows());
    for node in [&mut two, &mut one] {
        node.stop();
        node.assert_encrypted();
    }
}

#[test]
fn a_cluster_lives_with_one_key_store_and_state_transfers_by_rsync() {
    a_cluster_lives_with_one_key_store("rsync");
}

#[test]
fn a_cluster_lives_with_one_key_store_and_state_transfers_by_mariadb_backup() {
    a_cluster_lives_with_one_key_store("mariabackup");
}
