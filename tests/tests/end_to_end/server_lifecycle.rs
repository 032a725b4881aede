//! The plugin in the server's hands: installed and uninstalled at run time, required, asked for
//! help, part of a new data directory, its variables.

use std::{fs, os::unix::net::UnixListener};

use end_to_end_tests::{
    Database, ENCRYPT_ALL, Process, Scene, command, mariadb_program, write_fifo,
};

const INSTALL: &str = "INSTALL SONAME 'aws_key_management'";
const STATUS: &str = "SELECT PLUGIN_STATUS, LOAD_OPTION FROM information_schema.PLUGINS
    WHERE PLUGIN_NAME = 'aws_key_management'";

/// Name, type, default (`-`: empty), read-only, values.
const VARIABLES: [&str; 14] = [
    "BROKER_SOCKET VARCHAR /run/iam-kms-wrapper/broker.sock YES NULL",
    "ENCRYPTION_ALGORITHM ENUM AES_CBC NO AES_CBC,AES_CTR",
    "ENDPOINT_URL VARCHAR - YES NULL",
    "KEYFILE_DIR VARCHAR - YES NULL",
    "KEY_SPEC ENUM AES_128 NO AES_128,AES_256",
    "LOG_LEVEL ENUM Off NO Off,Fatal,Error,Warn,Info,Debug,Trace",
    "MASTER_KEY_ID VARCHAR - NO NULL",
    "OFFLINE_DIGEST ENUM sha1 YES sha1,sha224,sha256,sha384,sha512",
    "OFFLINE_FILEKEY VARCHAR - YES NULL",
    "OFFLINE_KEYS VARCHAR - YES NULL",
    "OFFLINE_USE_PBKDF2 INT_UNSIGNED 0 YES 0..4294967295",
    "REGION VARCHAR - YES NULL",
    "REQUEST_TIMEOUT INT 0 YES 0..2147483647",
    "ROTATE_KEY INT 0 NO -1..2147483647",
];

/// A server that does not load the plugin, and knows what it will need.
fn without_the_plugin(scene: &Scene) -> Database {
    let socket = scene.configuration.broker_socket.display();
    Database::new(&scene.sandbox).options(&[
        "--loose-aws-key-management-master-key-id=alias/mariadb",
        &format!("--loose-aws-key-management-broker-socket={socket}"),
    ])
}

#[test]
fn installed_at_run_time_it_encrypts_and_reads_back_after_a_restart() {
    let scene = Scene::new().with_broker();
    let database = without_the_plugin(&scene);
    let mut server = scene.start_database(&database);
    assert_eq!(database.sql(STATUS), "");

    database.sql(INSTALL);
    assert_eq!(database.sql(STATUS), "ACTIVE\tON");
    database.sql(
        "SET GLOBAL innodb_encrypt_tables=ON;
         CREATE DATABASE d; CREATE TABLE d.t (t TEXT); INSERT INTO d.t VALUES ('not for the disk')",
    );
    database.stop(&mut server.process);
    let found = database.files_with(b"not for the disk");
    assert!(!found.contains(&"d/t.ibd".into()), "{found:?}");

    let named = database
        .as_other_server()
        .with_our_plugin(&scene.configuration.broker_socket);
    let _server = scene.start_database(&named);
    assert_eq!(database.sql("SELECT t FROM d.t"), "not for the disk");
}

#[test]
fn a_server_that_wants_stable_plugins_loads_it_and_no_rotation_happens_at_start() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&[
            "--aws-key-management=FORCE",
            "--plugin-maturity=stable",
            "--aws-key-management-rotate-key=-1",
            "--innodb-encrypt-tables=ON",
        ]);
    let server = scene.start_database(&database);
    let log = server.process.output();
    assert!(
        log.contains("aws_key_management_rotate_key does nothing when the server starts"),
        "{log}"
    );
    assert_eq!(database.sql("SELECT @@aws_key_management_rotate_key"), "0");
    assert!(!database.key_files().contains(&"aws-kms-key.1.2".into()));
}

#[test]
fn what_was_installed_is_loaded_again_by_the_server() {
    let scene = Scene::new().with_broker();
    let database = without_the_plugin(&scene);
    let mut server = scene.start_database(&database);
    database.sql(INSTALL);
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES; INSERT INTO d.t VALUES (1)",
    );
    database.stop(&mut server.process);
    let _server = scene.start_database(&database);
    assert_eq!(database.sql(STATUS), "ACTIVE\tON");
    assert_eq!(database.sql("SELECT i FROM d.t"), "1");
}

#[test]
fn an_install_that_fails_says_why_and_works_when_the_reason_is_gone() {
    let scene = Scene::new().with_broker();
    let database = without_the_plugin(&scene);
    let mut server = database.start();
    let error = database.sql_error(INSTALL);
    let socket = scene.configuration.broker_socket.display().to_string();
    assert!(
        error.contains(&format!("AWS KMS plugin: no broker at '{socket}'")),
        "{error}"
    );
    assert_eq!(database.sql(STATUS), "");

    let broker = Process::start(&mut scene.broker_command());
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    broker.wait_for("is open until");
    database.sql(INSTALL);
    database.sql("CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES");
    database.stop(&mut server);
}

/// The server itself holds on to an encryption plugin.
#[test]
fn uninstalled_it_serves_until_the_server_ends() {
    let scene = Scene::new().with_broker();
    let database = without_the_plugin(&scene);
    let mut server = scene.start_database(&database);
    database.sql(INSTALL);
    database.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES; INSERT INTO d.t VALUES (1)",
    );
    let warning = database.sql("UNINSTALL SONAME 'aws_key_management'");
    assert!(warning.contains("uninstalled on shutdown"), "{warning}");
    database.sql(
        "CREATE TABLE d.new (i INT) ENCRYPTED=YES ENCRYPTION_KEY_ID=2; INSERT INTO d.t VALUES (2)",
    );
    assert_eq!(database.sql("SELECT SUM(i) FROM d.t"), "3");
    // Too late for this run of the server, and the server says nothing.
    database.sql(INSTALL);
    assert_eq!(database.sql(STATUS), "DELETED\tON");
    let error = database.sql_error("INSTALL PLUGIN aws_key_management SONAME 'aws_key_management'");
    assert!(error.contains("already installed"), "{error}");
    assert_eq!(database.sql("SELECT SUM(i) FROM d.t"), "3");
    database.stop(&mut server.process);

    let mut server = scene.start_database(&database);
    assert_eq!(database.sql(STATUS), "");
    database.sql_error("SELECT * FROM d.t");
    database.stop(&mut server.process);

    let with_it = database
        .as_other_server()
        .with_our_plugin(&scene.configuration.broker_socket);
    let _server = scene.start_database(&with_it);
    assert_eq!(database.sql("SELECT SUM(i) FROM d.t"), "3");
}

#[test]
fn force_plus_permanent_refuses_an_uninstall() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox)
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--aws-key-management=FORCE_PLUS_PERMANENT"]);
    let _server = scene.start_database(&database);
    for statement in [
        "UNINSTALL SONAME 'aws_key_management'",
        "UNINSTALL PLUGIN aws_key_management",
    ] {
        let error = database.sql_error(statement);
        assert!(error.contains("force_plus_permanent"), "{error}");
    }
    database.sql("CREATE DATABASE d; CREATE TABLE d.t (i INT) ENCRYPTED=YES");
}

#[test]
fn without_a_broker_a_server_starts_only_if_the_plugin_is_not_forced() {
    let scene = Scene::new().with_broker();
    let database =
        Database::new(&scene.sandbox).with_our_plugin(&scene.configuration.broker_socket);
    let mut server = database.start();
    assert_eq!(database.sql(STATUS), "");
    database.stop(&mut server);

    for option in ["FORCE", "FORCE_PLUS_PERMANENT"] {
        let forced = format!("--aws-key-management={option}");
        let mut line = database.command_line();
        line.push(forced);
        let (status, output) = Process::start(&mut command(&line)).finish();
        assert!(!status.success(), "{option}: {output}");
        assert!(output.contains("AWS KMS plugin: no broker at"), "{output}");
    }
}

#[test]
fn help_explains_every_variable_and_touches_nothing() {
    let scene = Scene::new().with_broker();
    let broker = UnixListener::bind(&scene.configuration.broker_socket).unwrap();
    broker.set_nonblocking(true).unwrap();
    let database =
        Database::new(&scene.sandbox).with_our_plugin(&scene.configuration.broker_socket);
    let before = database.files();
    let mut line = database.command_line();
    line.extend(["--help".into(), "--verbose".into()]);
    let output = command(&line).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!errors.contains("AWS KMS plugin"), "{errors}");
    assert_eq!(database.files(), before);
    assert!(broker.accept().is_err(), "the broker was asked");

    let help = String::from_utf8(output.stdout).unwrap();
    for variable in VARIABLES {
        let name = variable.split(' ').next().unwrap();
        let option = name.to_lowercase().replace('_', "-");
        let heading = format!("--aws-key-management-{option}=");
        let (_, text) = help
            .split_once(&heading)
            .unwrap_or_else(|| panic!("no {heading}"));
        let words = text.split("\n  --").next().unwrap().split_whitespace();
        assert!(words.count() > 5, "{heading} is not explained");
    }
}

#[test]
fn a_new_datadir_made_with_the_plugin_configured_starts() {
    let scene = Scene::new().with_broker();
    let database = Database::new(&scene.sandbox);
    fs::remove_dir_all(&database.datadir).unwrap();
    fs::create_dir(&database.datadir).unwrap();
    let database = database
        .with_our_plugin(&scene.configuration.broker_socket)
        .options(&["--aws-key-management=FORCE"])
        .options(&ENCRYPT_ALL);
    let server = database.command_line();
    let options = server.iter().filter(|option| *option != "--no-defaults");
    let lines = options.filter_map(|option| Some(option.strip_prefix("--")?.to_owned() + "\n"));
    let text = format!("[mariadbd]\n{}", lines.collect::<String>());
    let defaults = scene.sandbox.write("my.cnf", &text);
    let mut line = mariadb_program("/usr/bin/mariadb-install-db");
    line.extend([
        format!("--defaults-file={}", defaults.display()),
        "--auth-root-authentication-method=normal".into(),
        "--skip-test-db".into(),
    ]);
    // What the script gives the server itself counts more than the file.
    line.extend(
        server
            .into_iter()
            .filter(|option| option.starts_with("--plugin-dir=")),
    );
    let line: Vec<_> = line.iter().map(String::as_str).collect();
    let mut making = scene.start(&line);
    making.give_code(&scene.aws);
    let (status, output) = making.process.finish();
    assert!(status.success(), "{output}");
    let made = database.key_files();
    assert!(made.contains(&"aws-kms-key.1.1".into()), "{made:?}");

    let _server = scene.start_database(&database);
    assert_eq!(
        database.sql(
            "SELECT COUNT(*) > 2, MIN(ENCRYPTION_SCHEME)
             FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE NAME LIKE 'mysql/%'"
        ),
        "1\t1"
    );
}

#[test]
fn variables_are_the_stock_plugins_and_six_more() {
    let scene = Scene::new().with_broker();
    let database =
        Database::new(&scene.sandbox).with_our_plugin(&scene.configuration.broker_socket);
    let _server = scene.start_database(&database);
    let variables = database.sql(
        "SELECT CONCAT_WS(' ', REPLACE(VARIABLE_NAME, 'AWS_KEY_MANAGEMENT_', ''), REPLACE(VARIABLE_TYPE, ' ', '_'),
             IF(DEFAULT_VALUE = '', '-', DEFAULT_VALUE), READ_ONLY,
             COALESCE(ENUM_VALUE_LIST, CONCAT(NUMERIC_MIN_VALUE, '..', NUMERIC_MAX_VALUE), 'NULL'))
         FROM information_schema.SYSTEM_VARIABLES
         WHERE VARIABLE_NAME LIKE 'AWS_KEY_MANAGEMENT%' AND VARIABLE_SCOPE = 'GLOBAL'
             AND COMMAND_LINE_ARGUMENT = 'REQUIRED'
         ORDER BY VARIABLE_NAME",
    );
    assert_eq!(variables.lines().collect::<Vec<_>>(), VARIABLES);

    for variable in VARIABLES {
        let words: Vec<_> = variable.split(' ').collect();
        let set = format!("SET GLOBAL aws_key_management_{}=DEFAULT", words[0]);
        if words[3] == "YES" {
            let error = database.sql_error(&set);
            assert!(error.contains("read only"), "{error}");
        } else {
            database.sql(&set);
        }
    }
}

#[test]
fn the_manual_page_has_every_variable_with_its_default() {
    let page = include_str!("../../../packaging/man/aws_key_management.7");
    for variable in VARIABLES {
        let words: Vec<_> = variable.split(' ').collect();
        let name = words[0].to_lowercase();
        let default = if words[2] == "-" { "empty" } else { words[2] };
        let entry = format!(".B aws_key_management_{name}\nDefault: {default}.\n");
        assert!(page.contains(&entry), "{entry}");
    }
    assert_eq!(page.matches("\n.B aws_key_").count(), VARIABLES.len());
}
