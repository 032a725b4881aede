//! Two key servers with one key store, and fifty hosts that start, rotate and back up while one of the two is killed again
//! and again. `make test-key-servers` runs it.
//!
//! - `versions`: every key version that a host was told of, and that it is what it was when it was made.
//! - `servers`: the two key servers, and how they are killed.
//! - `databases`: hosts with MariaDB and mariadb-backup.
//! - `clients`: hosts that ask their broker with the plugin's own client, without a server around it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod clients;
mod databases;
mod servers;
mod versions;

use std::{
    fmt::Write,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use end_to_end_tests::{
    LocalAws, Sandbox, StoreDirectory,
    fleet::in_a_network_of_its_own,
    key_server::{Authority, DAY},
    number_from_environment,
};
use fastrand::Rng;

use clients::Client;
use databases::DatabaseHost;
use servers::{Servers, give_addresses};
use versions::Versions;

const HOSTS: usize = 50;
/// Hosts with MariaDB.
const DATABASES: usize = 5;
/// Hosts that share their name space with two others, as the nodes of a cluster do.
const CLUSTERED: usize = 12;
const CLUSTER: usize = 3;
/// Both key servers are killed at least so often, or the test has shown little.
const LEAST_KILLS: usize = 5;

/// What all hosts share.
#[derive(Default)]
struct World {
    versions: Versions,
    /// How often a host with MariaDB, and one without, has started, rotated and backed up.
    databases: AtomicUsize,
    clients: AtomicUsize,
    is_over: AtomicBool,
}

impl World {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Ends the run when it is dropped, also by a panic.
struct Run<'a>(&'a World);

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

fn host_name(host: usize) -> String {
    format!("db{host}.example")
}

fn name_space(host: usize) -> String {
    match HOSTS - host {
        left if left <= CLUSTERED => format!("cluster{}", host % (CLUSTERED / CLUSTER)),
        _ => host_name(host),
    }
}

#[test]
fn no_start_fails_and_no_version_is_lost_while_either_key_server_is_killed_at_any_moment() {
    let seconds = number_from_environment("KEY_SERVERS_SECONDS").unwrap_or(75);
    let seed = number_from_environment("KEY_SERVERS_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{seconds} seconds, KEY_SERVERS_SEED={seed}");
    in_a_network_of_its_own(|| {
        give_addresses();
        run(Duration::from_secs(seconds), seed);
    });
}

fn run(duration: Duration, seed: u64) {
    let sandbox = Sandbox::new();
    let aws = LocalAws::start_with(&sandbox, &[]);
    let store = StoreDirectory::new(&sandbox);
    let authority = Authority::new(sandbox.directory("authority"));
    let mut sections = String::new();
    for host in 0..HOSTS {
        writeln!(
            sections,
            "[client {:?}]\nkey_ids = 1-99\nmay_make = true\nname_space = {}",
            host_name(host),
            name_space(host)
        )
        .unwrap();
    }
    let mut servers = Servers::start(&aws, &store, &authority, &sections);
    // Somewhat as far away as it is, so that many requests are under way when a key server is killed.
    for operation in ["Decrypt", "GenerateDataKeyWithoutPlaintext"] {
        aws.fault(&format!(
            "--operation {operation} --kind delay --milliseconds 10"
        ));
    }
    let identities: Vec<_> = (0..HOSTS)
        .map(|host| {
            let name = host_name(host);
            authority.issue(&name, &[&name], 100 * DAY)
        })
        .collect();
    let world = World::default();

    let began = Instant::now();
    let databases = thread::scope(|scope| {
        let _run = Run(&world);
        let world = &world;
        let mut databases = Vec::new();
        let mut clients = Vec::new();
        for (host, tls) in identities.iter().enumerate() {
            let rng = Rng::with_seed(seed.wrapping_add(host as u64));
            let (space, upstream) = (name_space(host), servers.upstream(host));
            if host < DATABASES {
                databases.push(scope.spawn(move || {
                    let _run = Run(world);
                    let mut host = DatabaseHost::new(&upstream, tls, &space);
                    while !world.is_over() {
                        host.live(world);
                        world.databases.fetch_add(1, Ordering::Relaxed);
                    }
                    host
                }));
            } else {
                clients.push(scope.spawn(move || {
                    let _run = Run(world);
                    let mut client = Client::new(&upstream, tls, &space, rng);
                    while !world.is_over() {
                        client.live(world);
                        world.clients.fetch_add(1, Ordering::Relaxed);
                    }
                }));
            }
        }
        let mut rng = Rng::with_seed(seed);
        while began.elapsed() < duration && !world.is_over() {
            servers.kill_one(&mut rng);
        }
        world.is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap();
        }
        databases
            .into_iter()
            .map(|host| host.join().unwrap())
            .collect::<Vec<_>>()
    });

    let kills = servers.kills();
    println!(
        "{} s: {} and {} kills; {} starts, rotations and backups of MariaDB, {} of clients; {} key versions",
        began.elapsed().as_secs(),
        kills[0],
        kills[1],
        world.databases.load(Ordering::Relaxed),
        world.clients.load(Ordering::Relaxed),
        world.versions.count()
    );
    assert!(kills.iter().all(|&kills| kills >= LEAST_KILLS), "{kills:?}");
    for host in databases {
        host.restore_last_backup();
    }
    // Each of both gives each version, with nothing in its memory.
    for server in servers.restarted() {
        for (host, tls) in identities.iter().enumerate() {
            world.versions.check(&name_space(host), &store, server, tls);
        }
    }
}
