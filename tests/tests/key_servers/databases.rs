//! Hosts with MariaDB and mariadb-backup.

use std::{fs, path::PathBuf};

use aws_session::config::TlsFiles;
use end_to_end_tests::{Database, Process, backup, key_server::Host};
use key_files::manifest::{MANIFEST_NAME, Manifest};

use crate::World;

/// The key id of the first table.
const FIRST: u32 = 10;
/// Most tables of a host. Each has its own key.
const TABLES: u32 = 8;

/// A host.
pub struct DatabaseHost {
    host: Host,
    space: String,
    /// How many tables there are.
    tables: u32,
    /// How many rows each of them has, in the server and in its last backup.
    rows: Vec<u32>,
    backed_up: Vec<u32>,
}

impl DatabaseHost {
    /// Starts its broker.
    pub fn new(addresses: &[String], tls: &TlsFiles, space: &str) -> Self {
        Self {
            host: Host::with_upstream(addresses, tls),
            space: space.into(),
            tables: 0,
            rows: Vec::new(),
            backed_up: Vec::new(),
        }
    }

    /// Starts the server, makes a table with a new key, rotates all keys, backs up, and stops it.
    pub fn live(&mut self, world: &World) {
        let database = &self.host.database;
        let mut process = Process::start(&mut database.command());
        database.wait_until_ready(&process);
        assert_eq!(self.rows_in(&self.host.database), self.rows);
        if self.rows.is_empty() {
            database.sql("CREATE DATABASE d");
        }
        if self.tables < TABLES {
            let id = FIRST + self.tables;
            database.sql(&format!(
                "CREATE TABLE d.t{id} (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID={id}"
            ));
            self.tables += 1;
            self.rows.push(0);
        }
        database.sql("SET GLOBAL aws_key_management_rotate_key=-1");
        for (id, rows) in (FIRST..).zip(&mut self.rows) {
            database.sql(&format!("INSERT INTO d.t{id} VALUES (1)"));
            *rows += 1;
        }
        self.back_up();
        let database = &self.host.database;
        database.stop(&mut process);
        let manifest = fs::read(database.datadir.join(MANIFEST_NAME)).unwrap();
        for entry in Manifest::parse(&manifest).unwrap().entries() {
            let number = entry.name.number();
            world.versions.seen(&self.space, number, entry.check_value);
        }
        assert_eq!(database.key_files(), [""; 0]);
    }

    fn back_up(&mut self) {
        let target = self.last_backup();
        if !self.backed_up.is_empty() {
            fs::remove_dir_all(&target).unwrap();
        }
        let target = format!("--target-dir={}", target.display());
        let socket = format!("--socket={}", self.host.database.socket.display());
        backup(&["--backup", &target, &socket, "--user=root"]);
        backup(&["--prepare", &target]);
        self.backed_up = self.rows.clone();
    }

    fn last_backup(&self) -> PathBuf {
        self.host.sandbox.path("backup")
    }

    /// Starts a server on the last backup, which has all rows of then.
    pub fn restore_last_backup(&self) {
        let restored = self.host.database.on_datadir(&self.last_backup());
        let mut process = restored.start();
        assert_eq!(self.rows_in(&restored), self.backed_up);
        restored.stop(&mut process);
    }

    fn rows_in(&self, database: &Database) -> Vec<u32> {
        let rows = (FIRST..FIRST + self.tables).map(|id| {
            let rows = database.sql(&format!("SELECT COUNT(*) FROM d.t{id}"));
            rows.parse().unwrap()
        });
        rows.collect()
    }
}
