//! The main job: a code, a session, a server with encrypted tables.

use std::fs;

use end_to_end_tests::{Database, ENCRYPT_ALL, Sandbox, Scene, inspection::listener, wait_until};

const MARKER: &str = "marker-that-nobody-else-writes";

fn fill(database: &Database) {
    database.sql(&format!(
        "CREATE DATABASE d; USE d;
         CREATE TABLE d.secret (id INT PRIMARY KEY, t TEXT) ENGINE=InnoDB ENCRYPTED=YES;
         CREATE TABLE d.other_key (id INT PRIMARY KEY, t TEXT) ENGINE=InnoDB ENCRYPTED=YES ENCRYPTION_KEY_ID=7;
         CREATE TABLE d.aria (id INT, t TEXT) ENGINE=Aria;
         INSERT INTO d.secret SELECT seq, CONCAT('{MARKER}', seq) FROM seq_1_to_500;
         INSERT INTO d.other_key SELECT seq, CONCAT('{MARKER}', seq) FROM seq_1_to_500;
         INSERT INTO d.aria SELECT seq, CONCAT('{MARKER}', seq) FROM seq_1_to_500;
         FLUSH TABLES; FLUSH BINARY LOGS;"
    ));
}

const READ_BACK: &str = "SELECT COUNT(*), MIN(t LIKE 'marker-that-nobody%'), SUM(id) FROM";

#[test]
fn tables_are_encrypted_under_keys_from_kms_and_read_back_after_a_restart() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&ENCRYPT_ALL);

    let mut wrapper = scene.start_database(&database);
    fill(&database);
    assert_eq!(
        database.key_files(),
        ["aws-kms-key.1.1", "aws-kms-key.2.1", "aws-kms-key.7.1"]
    );
    database.stop(&mut wrapper.process);
    assert_eq!(
        database.files_with(MARKER.as_bytes()),
        [""; 0],
        "the marker is in the clear"
    );

    let mut wrapper = scene.start_database(&database);
    for table in ["d.secret", "d.other_key", "d.aria"] {
        assert_eq!(
            database.sql(&format!("{READ_BACK} {table}")),
            "500\t1\t125250",
            "{table}"
        );
    }
    let events = database.sql("SHOW BINLOG EVENTS LIMIT 5");
    assert!(events.contains("Start_encryption"), "{events}");
    database.stop(&mut wrapper.process);
}

#[test]
fn the_example_of_an_option_file_encrypts_everything() {
    let scene = Scene::new().with_broker();
    let socket = format!(
        "--aws-key-management-broker-socket={}",
        scene.configuration.broker_socket.display()
    );
    let example = include_str!("../../../examples/configuration/60-encryption.cnf");
    let database = Database::new(&scene.sandbox)
        .defaults_file(&scene.sandbox.write("60-encryption.cnf", example))
        .options(&[&socket, "--log-bin=binlog"]);
    let mut wrapper = scene.start_database(&database);
    fill(&database);
    database.stop(&mut wrapper.process);
    assert_eq!(
        database.files_with(MARKER.as_bytes()),
        [""; 0],
        "the marker is in the clear"
    );
}

/// Without this one the tests above would prove nothing.
#[test]
fn without_encryption_the_same_rows_are_in_the_files() {
    let sandbox = Sandbox::new();
    let database = Database::new(&sandbox).options(&["--log-bin=binlog"]);
    let mut server = database.start();
    database.sql(&format!(
        "CREATE DATABASE d; CREATE TABLE d.open (t TEXT) ENGINE=InnoDB;
         CREATE TABLE d.aria (t TEXT) ENGINE=Aria;
         INSERT INTO d.open VALUES ('{MARKER}'); INSERT INTO d.aria VALUES ('{MARKER}');
         FLUSH TABLES; FLUSH BINARY LOGS;"
    ));
    database.stop(&mut server);
    let found = database.files_with(MARKER.as_bytes());
    for file in ["binlog.000001", "d/aria.MAD", "d/open.ibd", "ib_logfile0"] {
        assert!(
            found.iter().any(|name| name == file),
            "{file} is not among {found:?}"
        );
    }
}

#[test]
fn neither_server_nor_broker_show_a_secret_to_other_processes() {
    let scene = Scene::new().with_broker();
    let database =
        Database::new(&scene.sandbox).with_our_plugin(&scene.configuration.broker_socket);
    let wrapper = scene.start_database(&database);
    let pid = wrapper.process.pid();
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    for name in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ] {
        assert!(
            !environment.contains(name),
            "{name} is in the server's environment"
        );
    }
    let (access_key_id, secret_access_key) = scene.aws.long_term_key();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let name = process.file_name().into_string().unwrap();
        let Ok(command) = fs::read_to_string(process.path().join("cmdline")) else {
            continue;
        };
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment);
        for secret in [&access_key_id, &secret_access_key] {
            assert!(
                !command.contains(secret.as_str()),
                "cmdline of {name}: {command}"
            );
            assert!(
                !environment.contains(secret.as_str()),
                "environ of {name}: {command}"
            );
        }
    }
}

#[test]
fn the_broker_leaves_with_its_server_however_that_ends() {
    let scene = Scene::new().with_broker();
    let database =
        Database::new(&scene.sandbox).with_our_plugin(&scene.configuration.broker_socket);
    for signal in [nix::sys::signal::SIGTERM, nix::sys::signal::SIGKILL] {
        let mut wrapper = scene.start_database(&database);
        assert!(scene.configuration.broker_socket.exists());
        wrapper.process.signal(signal);
        wrapper.process.wait();
        wait_until("the broker to leave", || {
            !scene.configuration.broker_socket.exists()
        });
    }
}

#[test]
fn a_group_signal_stops_the_server_before_the_broker() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--innodb-encrypt-tables=ON"]);
    let mut wrapper = scene.start_database(&database);
    // As systemd stops a unit: the broker gets the signal too.
    let broker = listener(&scene.configuration.broker_socket);
    nix::sys::signal::kill(broker, nix::sys::signal::SIGTERM).unwrap();
    database.sql("CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=9");
    database.stop(&mut wrapper.process);
    wait_until("the broker to leave", || {
        !scene.configuration.broker_socket.exists()
    });
}
