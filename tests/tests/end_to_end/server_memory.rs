//! Data keys in the server's memory: not in a core, not in swap.

use std::{fs, path::PathBuf, process::Command};

use end_to_end_tests::{
    Database, ENCRYPT_ALL, Scene, Wrapper, after, broker::unwrap, contains_bytes, inspection,
};
use nix::unistd::{Pid, User};

const MARKER: &str = "a text that the server keeps in its memory";
const LOCK_WARNING: &str = "keys in memory may be swapped to disk";

/// Little else than keys in memory: a core is written of all of it.
const SMALL: [&str; 3] = [
    "--loose-innodb-buffer-pool-size-max=32M",
    "--aria-pagecache-buffer-size=8M",
    "--key-buffer-size=1M",
];

fn database(scene: &Scene) -> Database {
    Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL)
        .options(&SMALL)
}

/// A core as gdb writes it: as the kernel does it leaves out what is marked so.
fn core(scene: &Scene, server: &Wrapper) -> Vec<u8> {
    let prefix = scene.sandbox.path("core");
    let pid = server.process.pid().to_string();
    // A server that reserves all the address space it may ever use must not fill the disk.
    let output = Command::new("prlimit")
        .args(["--fsize=2000000000", "gcore", "-o"])
        .arg(&prefix)
        .arg(&pid)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let core = PathBuf::from(format!("{}.{pid}", prefix.display()));
    let bytes = fs::read(&core).unwrap();
    fs::remove_file(core).unwrap();
    bytes
}

#[test]
fn a_core_holds_no_key_but_what_the_server_copied_for_itself() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let start = || {
        let mut command = scene.database_command(&database);
        // Otherwise each thread reserves 64 MiB, which would be in the core as zeros.
        scene.spawn_database(command.env("MALLOC_ARENA_MAX", "1"), &database)
    };
    let mut server = start();
    database.sql(
        "CREATE DATABASE d;
         CREATE TABLE d.read (t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=3;
         CREATE TABLE d.left_alone (t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=4;
         INSERT INTO d.read VALUES ('x'); INSERT INTO d.left_alone VALUES ('x');
         SET GLOBAL aws_key_management_rotate_key=-1",
    );
    database.stop(&mut server.process);
    // Keys that are loaded at the start, and keys that are made.
    let server = start();
    database.sql(&format!(
        "SELECT * FROM d.read;
         CREATE TABLE d.new (t TEXT) ENCRYPTED=YES ENCRYPTION_KEY_ID=5;
         INSERT INTO d.new VALUES ('x');
         SET GLOBAL aws_key_management_rotate_key=3; SET GLOBAL init_connect='/* {MARKER} */'"
    ));

    let core = core(&scene, &server);
    let holds = |bytes: &[u8]| contains_bytes(&core, bytes);
    assert!(holds(MARKER.as_bytes()), "this is no core of the server");
    // The server encrypts the binary log with the key itself, in memory of its own.
    const OF_THE_BINARY_LOG: &str = "aws-kms-key.1.2";
    let files = database.key_files();
    assert_eq!(files.len(), 10, "{files:?}");
    for file in files {
        let wrapped = fs::read(database.datadir.join(&file)).unwrap();
        let key = unwrap(&scene.configuration.broker_socket, &wrapped);
        assert_eq!(holds(&key), file == OF_THE_BINARY_LOG, "{file}");
    }
}

#[test]
fn keys_are_locked_in_memory() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let server = scene.start_database(&database);
    assert_ne!(locked(server.process.pid()), "0 kB");
    assert!(!server.process.output().contains(LOCK_WARNING));
}

#[test]
fn where_memory_may_not_be_locked_the_log_says_what_to_do() {
    let scene = Scene::new().with_broker();
    let database = database(&scene);
    let mysql = User::from_name("mysql").unwrap().unwrap();
    database.give_to(mysql.uid.as_raw());
    let command = scene.database_command(&database);
    let mut limited = after(&["prlimit", "--memlock=0"], &command);
    let server = scene.spawn_database(&mut limited, &database);
    assert_eq!(locked(server.process.pid()), "0 kB");
    let output = server.process.output();
    let warnings: Vec<_> = output
        .lines()
        .filter(|line| line.contains(LOCK_WARNING))
        .collect();
    assert_eq!(warnings.len(), 1, "{output}");
    assert!(warnings[0].contains("[Warning]"), "{warnings:?}");
    assert!(warnings[0].contains("LimitMEMLOCK"), "{warnings:?}");
    database.sql("CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES");
}

fn locked(pid: Pid) -> String {
    inspection::status(pid, "VmLck")
}
