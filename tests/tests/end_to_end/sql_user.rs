//! What a SQL user with the privilege FILE reads, where `secure_file_priv` lets them.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use end_to_end_tests::{Database, Scene, after};
use nix::unistd::Pid;
use serde_json::Value;

const READ_ALL: [&str; 1] = ["--secure-file-priv=/"];

const MAKE_READER: &str = "CREATE DATABASE d; CREATE TABLE d.t (a LONGTEXT) CHARACTER SET latin1;
     CREATE USER reader@localhost; GRANT FILE ON *.* TO reader@localhost;
     GRANT ALL ON d.* TO reader@localhost";

/// Reads into a table all that a SQL user can name of the server's process; returns which of
/// the session's and the long-term secrets are there.
fn secrets_read(scene: &Scene, database: &Database) -> Vec<&'static str> {
    let document = scene.aws.session_document();
    // A descriptor of which it is known that it can be read: so the others would have been, too.
    let marker = scene.sandbox.write("marker", "can be read\0");
    let prefix = [
        "sh",
        "-c",
        "exec 9< \"$0\" && exec \"$@\"",
        marker.to_str().unwrap(),
    ];
    let wrapper = scene.spawn(&mut after(&prefix, &scene.database_command(database)));
    wrapper.wait_for_fifo();
    wrapper.write(document.as_bytes());
    database.wait_until_ready(&wrapper.process);
    database.sql(MAKE_READER);
    for file in files_of(wrapper.process.pid(), &database.datadir) {
        read_as_reader(&database.socket, &file);
    }
    let read = database.sql("SELECT a FROM d.t");
    assert!(read.contains("can be read"), "{read}");
    let document: Value = serde_json::from_str(&document).unwrap();
    let of_session = |name: &str| document["Credentials"][name].as_str().unwrap().to_owned();
    let (_, long_term_key) = scene.aws.long_term_key();
    [
        ("secret key", of_session("SecretAccessKey")),
        ("session token", of_session("SessionToken")),
        ("long-term key", long_term_key),
    ]
    .into_iter()
    .filter_map(|(what, secret)| read.contains(&secret).then_some(what))
    .collect()
}

/// Environment, command line and what is open, without the data itself.
fn files_of(server: Pid, datadir: &Path) -> Vec<String> {
    let mut files = vec!["/proc/self/environ".into(), "/proc/self/cmdline".into()];
    for entry in fs::read_dir(format!("/proc/{server}/fd")).unwrap() {
        let entry = entry.unwrap().path();
        let is_data = fs::read_link(&entry).is_ok_and(|file| file.starts_with(datadir));
        if !is_data && fs::metadata(&entry).is_ok_and(|file| file.is_file()) {
            let number = entry.file_name().unwrap().to_string_lossy().into_owned();
            files.push(format!("/proc/self/fd/{number}"));
        }
    }
    files
}

fn read_as_reader(socket: &Path, file: &str) {
    let statement = format!(
        "LOAD DATA INFILE '{file}' INTO TABLE d.t CHARACTER SET latin1
         FIELDS TERMINATED BY '\\n' ESCAPED BY '' LINES TERMINATED BY '\\0'"
    );
    let output = as_reader(socket, &statement);
    assert!(output.status.success(), "{file}: {output:?}");
}

fn as_reader(socket: &Path, statement: &str) -> Output {
    let output = Command::new("mariadb")
        .args(["--no-defaults", "--user=reader", "-e", statement])
        .arg(format!("--socket={}", socket.display()))
        .output();
    output.unwrap()
}

#[test]
fn a_sql_user_with_file_reads_no_credential_where_a_broker_has_them() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&READ_ALL);
    assert_eq!(secrets_read(&scene, &database), [""; 0]);
}

/// Not of our doing: the server takes `/proc/self/environ` for an empty file.
#[test]
fn nor_where_the_session_is_handed_over_in_the_environment() {
    let scene = Scene::new();
    let database = Database::new(&scene.sandbox).options(&READ_ALL);
    assert_eq!(secrets_read(&scene, &database), [""; 0]);
}

#[test]
fn a_sql_user_with_file_cannot_talk_to_the_broker() {
    let scene = Scene::new().with_broker();
    let broker = &scene.configuration.broker_socket;
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(broker)
        .options(&READ_ALL);
    let _wrapper = scene.start_database(&database);
    database.sql(MAKE_READER);
    let file = scene.sandbox.path("run/file");
    for (write, read, place) in [
        // The control: with a file in the same directory, both work.
        ("", "", &file),
        ("already exists", "No such device or address", broker),
    ] {
        for (statement, error) in [
            (
                format!("SELECT 1 INTO OUTFILE '{}'", place.display()),
                write,
            ),
            (
                format!("LOAD DATA INFILE '{}' INTO TABLE d.t", place.display()),
                read,
            ),
        ] {
            let output = as_reader(&database.socket, &statement);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.success(), error.is_empty(), "{said}");
            assert!(said.contains(error), "{said}");
        }
    }
}
